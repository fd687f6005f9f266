"""What a check finds in a data set, as data: a page lists it, counts it by kind, and offers its mends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .edits import Edit


@dataclass(frozen=True)
class Finding:
    """One thing to look at: pictures for checks of pictures, caption files for checks of captions.

    `mends` are edits of which one is to be chosen, the likeliest first; each is meant for the captions at `paths`: `edits.plan(those files, mend)`.
    `amount` is what was measured, in the unit that the kind's text names; the larger or smaller it is, the surer the finding.
    """

    kind: str
    paths: tuple[Path, ...]
    text: str
    mends: tuple[Edit, ...] = ()
    amount: float = 0.0
    tag: str = ""  # which it is about, where it is about one

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON takes it; a mend is what `Edit.from_json` reads."""
        mends = [{"name": mend.name, "args": dict(mend.args)} for mend in self.mends]
        return {"kind": self.kind, "paths": [str(path) for path in self.paths], "text": self.text, "mends": mends, "amount": self.amount, "tag": self.tag}


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """How many files each kind concerns, the most frequent first."""
    files: dict[str, set[Path]] = {}
    for finding in findings:
        files.setdefault(finding.kind, set()).update(finding.paths)
    return dict(Counter({kind: len(paths) for kind, paths in files.items()}).most_common())
