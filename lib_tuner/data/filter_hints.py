"""Why a filter may have named nothing. Said beside the empty result and no refusal: a word with a colon may be meant as a tag, such as `:d` or `re:zero`."""

from __future__ import annotations

import re

from .crop_plan import KINDS
from .filters import FIELDS, fields_of
from .library import Library
from .tag_edits import key


def hints(line: str, library: Library) -> list[str]:
    """One sentence for each thing in a line that cannot name a picture as things are; the line is one that `filters.parse` takes."""
    return list(dict.fromkeys(hint for name, value in fields_of(line) if (hint := _hint(name, value, library))))


def _hint(name: str, value: str, library: Library) -> str:
    if name not in FIELDS:
        known = library.index.matching(re.compile(re.escape(key(f"{name}:")) + ".*", re.DOTALL))
        conditions = " ".join(f"{field}:" for field in FIELDS)  # as they are typed, in any language
        return "" if known else f"There is no condition {name!r} (there are {conditions}) and no tag that begins like that."
    if name == "problem" and not library.found and value not in KINDS:
        return "Nothing was checked yet: click Check, and problem: finds what that has found."
    if name == "score" and not any(map(library.scores, library.pictures.values())):
        return "No tagger has seen these pictures; tag them first."
    return ""
