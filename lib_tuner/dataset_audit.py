"""Checks and advice in an open folder, as long work: what is wrong with pictures and captions, what mends it, and which tags to leave out for what is to be learned.

Nothing is written: each mend and each suggestion is an edit that is shown before it is carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data.advisor import advise, balance, steps, uneven
from .data.audit import Target, audit
from .data.caption_audit import CaptionRules, audit_captions, audit_names
from .data.captions import CaptionFile
from .data.duplicates import Group, alike, groups, told_apart
from .data.finding import Finding
from .data.kept_looks import keep_looks, kept_looks, look_again
from .data.look import Look
from .datasets import OpenFolder, Scope
from .presets import GOALS
from .work import Told

SHOWN = 60  # findings of a kind, and groups of pictures that look alike
PICTURES, CAPTIONS = "look", "captions"  # stages


@dataclass(frozen=True)
class AuditOrder:
    """What is checked for: a goal of `presets.GOALS` or "", the trigger word or "", and the resolution in px. Raises ValueError."""

    goal: str = ""
    trigger: str = ""
    size: int = 512

    def __post_init__(self) -> None:
        if self.goal and self.goal not in GOALS:
            raise ValueError(f"There is no goal {self.goal!r}; choose one of {', '.join(GOALS)}.")
        if not 64 <= self.size <= 4096:
            raise ValueError(f"{self.size} px is no size to train at; choose 64 to 4096, such as 512.")


@dataclass(frozen=True)
class _Set:
    """The pictures that are checked, with their captions, as they were when the check began; `whole`: they are all of the folder."""

    rows: tuple[int, ...]
    captions: Mapping[Path, CaptionFile]
    version: int
    whole: bool


class FolderAudit:
    """The checks of one open folder; `result` is what the last one found, or None."""

    def __init__(self, opened: OpenFolder):
        self._opened = opened
        self.result: dict[str, Any] | None = None

    @classmethod
    def of(cls, opened: OpenFolder) -> FolderAudit:
        """That of a folder, the same each time."""
        return opened.part(cls, lambda: cls(opened))

    def begin(self, order: AuditOrder, scope: Scope) -> dict[str, Any]:
        """Begins a check of these pictures. Raises ValueError."""
        opened, library = self._opened, self._opened.library
        with opened.lock:
            rows = tuple(scope.of(library))
            seen = _Set(rows, {library.picture(row): library.file(row) for row in rows}, opened.version, len(rows) == len(library.pictures))
            return opened.begin("audit", lambda told: self._checked(order, seen, told))

    def _checked(self, order: AuditOrder, seen: _Set, told: Told) -> dict[str, Any]:
        looks = self._looks(seen, told)
        twins = groups(looks)
        told(0, 1, CAPTIONS)
        files = list(seen.captions.values())
        rules = CaptionRules(order.trigger, self._opened.library.count_tokens, pictures={file.path: picture for picture, file in seen.captions.items()})
        names = audit_names(seen.captions, self._opened.library.extensions) if seen.whole else ()
        found = [*audit(looks, Target(order.size)), *alike(twins, looks), *told_apart(twins, seen.captions), *audit_captions(files, rules), *names]
        advice = advise(files, order.goal, order.trigger) if order.goal else []
        told(1, 1, CAPTIONS)
        with self._opened.lock:
            self._note(found, seen)
            self.result = {
                "version": seen.version, "pictures": len(seen.rows), "whole": seen.whole, "kinds": self._kinds(found), "advice": self._kinds(advice), "goal": order.goal,
                "trigger": order.trigger, "size": order.size, "groups": self._groups(twins), **_length(list(seen.captions)),
            }  # fmt: skip
            return self.result

    def _looks(self, seen: _Set, told: Told) -> dict[Path, Look]:
        """Looks at the pictures; what was looked at is kept, also where the work is stopped."""
        library, looks = self._opened.library, {}
        known = kept_looks(library.folder)
        before = dict(known)
        try:
            for path, look in look_again(seen.captions, known):
                looks[path] = look
                told(len(looks), len(seen.rows), PICTURES)
        finally:
            if library.journal and known != before:
                keep_looks(library.folder, {path: kept for path, kept in known.items() if path in looks or path.exists()})
        return looks

    # ---- as JSON has it ----------------------------------------------------------------------------------------------

    def _note(self, found: Sequence[Finding], seen: _Set) -> None:
        """What the filter `problem:` finds. The kinds of pictures that were not checked stay."""
        library = self._opened.library
        kinds: dict[int, dict[str, None]] = {row: {} for row in seen.rows}
        for finding in found:
            for row in library.rows_at(finding.paths):
                kinds.setdefault(row, {})[finding.kind] = None
        library.found = {**library.found, **{row: tuple(names) for row, names in kinds.items()}}

    def _kinds(self, found: Sequence[Finding]) -> list[dict[str, Any]]:
        """Findings by kind, in the order in which they are found; `mend` is the edit that mends all of a kind, where there is one."""
        made = []
        for kind in Counter(finding.kind for finding in found):
            own = [finding for finding in found if finding.kind == kind]
            rows = self._opened.library.rows_at(path for finding in own for path in finding.paths)
            paths = {path for finding in own for path in finding.paths}
            shown = [self._row(finding) for finding in own[:SHOWN]]
            made.append({"kind": kind, "files": len(paths), "rows": rows, "findings": shown, "more": len(own) - len(shown), "mend": _common(own)})
        return made

    def _row(self, finding: Finding) -> dict[str, Any]:
        return {**{name: value for name, value in finding.to_json().items() if name != "paths"}, "rows": self._opened.library.rows_at(finding.paths)}

    def _groups(self, twins: Sequence[Group]) -> list[dict[str, Any]]:
        """Pictures that look alike: the row to keep, and those of the others."""
        def row(path: Path) -> int | None:
            return next(iter(self._opened.library.rows_at([path])), None)

        made = [{"keep": row(group.keep), "others": [{"row": row(t.path), "bits": t.bits, "mirrored": t.mirrored} for t in group.twins if row(t.path) is not None]} for group in twins]
        return [group for group in made if group["keep"] is not None and group["others"]][:SHOWN]


def _common(found: Sequence[Finding]) -> dict[str, Any] | None:
    """The one mend that all findings of a kind share."""
    mends = [finding.to_json()["mends"] for finding in found]
    return mends[0][0] if len(mends[0]) == 1 and all(mend == mends[0] for mend in mends) else None


def _length(pictures: Sequence[Path]) -> dict[str, Any]:
    """The usual number of steps of a LoRA and their batch, and what would balance the folders."""
    count, batch = steps(len(pictures)) if pictures else (0, 0)
    shares = balance(pictures)
    return {"steps": count, "batch": batch, "shares": [str(share) for share in shares] if uneven(shares) else []}
