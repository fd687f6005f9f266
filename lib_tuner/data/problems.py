"""What is wrong in a data folder, and how much of it a person is told at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHOWN = 8  # problems of all kinds together; no more than so many are told one by one
_OF_A_KIND = 3  # where there are more
_OF_ALL = ("folder", "repeats", "masks", "held out")  # kinds that concern the whole folder, and are told first
_MORE = {
    "folder": "folders are not as they should be",
    "repeats": "folders have a number that says how often their pictures occur",
    "held out": "pictures are held out for validation",
    "unreadable": "files cannot be read or used",
    "animated": "pictures are animated",
    "duplicate": "pictures are the same as another one",
    "clash": "pictures share their caption file with another one",
    "no caption": "pictures have no caption",
    "encoding": "text files are not plain UTF-8",
    "list": "lines of lists of captions are not as they should be",
    "mask": "masks do not fit or cannot be read",
    "hint": "hints are missing or do not fit",
}


@dataclass(frozen=True)
class Problem:
    """Something about a file; `kind` groups them: unreadable, animated, duplicate, clash, no caption, encoding, list, mask, hint, held out; and of a whole folder folder, repeats, masks."""

    path: Path
    text: str
    kind: str = "unreadable"

    def __str__(self) -> str:
        return f"{self.path.name} {self.text}."


def told(problems: list[Problem]) -> list[str]:
    """The first problems of each kind, and how many more of it there are: a folder may have one for each of thousands of pictures, which must not hide what concerns all of them."""
    if len(problems) <= SHOWN:
        return [str(problem) for problem in sorted(problems, key=_rank)]
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in sorted(problems, key=_rank)):
        group = [problem for problem in problems if problem.kind == kind]
        shown = group if len(group) <= _OF_A_KIND + 1 else group[:_OF_A_KIND]  # to say that there is one more takes as much room as that one
        lines += [*map(str, shown), *([_more(len(group) - len(shown), kind)] if len(shown) < len(group) else [])]
    return lines


def _rank(problem: Problem) -> int:
    return _OF_ALL.index(problem.kind) if problem.kind in _OF_ALL else len(_OF_ALL)


def _more(count: int, kind: str) -> str:
    return f"{count:,} more {_MORE[kind if kind in _MORE else 'unreadable']}."
