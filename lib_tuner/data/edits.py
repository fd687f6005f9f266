"""Edits of many captions: named, with arguments as JSON has them; planned, so that what they change is seen first; carried out through the journal.

    edit = Edit("remove", {"tags": ["lips"]})
    plan = plan(files, edit)              # nothing is written; str(plan) is "37 of 412 change"
    apply(plan, journal)                  # then journal.undo(), journal.redo()
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from . import tag_edits
from .captions import Caption, CaptionFile, Line, Tags, Unfit, parse, tags_of
from .items import Problem, file_words, folder_words
from .journal import Journal
from .journal_file import Change, Entry

CaptionEdit = Callable[[Caption], Caption]
_SUPPLIED = ("counts", "scores", "tokens")  # arguments that the data set gives, not the user
_PLACES = {"{folder}": folder_words, "{name}": file_words}  # words in tags, for which a file's own are put


@dataclass(frozen=True)
class Context:
    """What edits may need besides captions: `tokens` counts those of a text, `scores` gives a tagger's by tag for a caption file."""

    tokens: Callable[[str], int] | None = None
    scores: Callable[[Path], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Edit:
    """An edit by its name in OPERATIONS, and its arguments. Raises ValueError for names, arguments and values that there are not."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in OPERATIONS:
            raise ValueError(f"There is no edit {self.name!r}; choose one of {', '.join(OPERATIONS)}.")
        known = OPERATIONS[self.name].arguments()
        for name in self.args:
            if name not in known:
                raise ValueError(f"{self.name}: there is no argument {name!r}; it takes {', '.join(known) or 'none'}.")
        missing = [name for name, default in known.items() if default is inspect.Parameter.empty and name not in self.args]
        if missing:
            raise ValueError(f"{self.name}: {' and '.join(missing)} must be given.")
        object.__setattr__(self, "args", {name: _checked(self.name, name, value) for name, value in self.args.items()})

    @staticmethod
    def kind_of(argument: str) -> tuple[type, str]:
        """What an argument is (list, str, dict, int, float or bool), and that in words."""
        return _KINDS[argument]

    @classmethod
    def from_json(cls, value: Any) -> Edit:
        """The edit that a page sent: {"name": ..., "args": {...}}. Raises ValueError."""
        args = value.get("args", {}) if isinstance(value, dict) else None
        if not isinstance(args, dict) or not isinstance(value.get("name"), str) or value.keys() - {"name", "args"}:
            raise ValueError('An edit is {"name": ..., "args": {...}}, such as {"name": "remove", "args": {"tags": ["lips"]}}.')
        return cls(value["name"], args)


@dataclass(frozen=True)
class Operation:
    """What an edit's name stands for. `on`: tags, line (its text), or caption; `sentences`: whether lines that are no tags are changed too;
    `letters`: whether it takes letters for what they look like, see `tag_edits.sealed`.
    """

    make: Callable[..., Any]
    on: str = "tags"
    sentences: bool = True
    letters: bool = False

    def arguments(self) -> dict[str, Any]:
        """Names that the user may give, and their defaults; `inspect.Parameter.empty` where there is none."""
        return {name: parameter.default for name, parameter in inspect.signature(self.make).parameters.items() if name not in _SUPPLIED}

    def needs(self) -> set[str]:
        """What the data set has to give."""
        return set(_SUPPLIED) & inspect.signature(self.make).parameters.keys()

    def edit(self, args: Mapping[str, Any]) -> CaptionEdit:
        """The edit of a caption with these arguments. Raises ValueError."""
        change = self.make(**args)
        if self.on == "caption":
            return change
        if self.on == "line":
            return lambda caption: caption.with_lines(lambda line: change(line.text), _with_text)
        careful = tag_edits.sealed(change) if self.letters else change
        return lambda caption: caption.edited(careful if caption.unknown else change, self.sentences)


# ---- planning --------------------------------------------------------------------------------------------------------


class Named(Protocol):
    """What the journal keeps of an edit, so that a person reads there what was done: an `Edit`, or what tagging wrote."""

    @property
    def name(self) -> str: ...
    @property
    def args(self) -> Mapping[str, Any]: ...  # as JSON has them


@dataclass(frozen=True)
class Plan:
    """What an edit does to files, of which there are `total`; `emptied` counts captions that lose all they had."""

    edit: Named
    changes: tuple[Change, ...]
    total: int
    emptied: int = 0
    problems: tuple[Problem, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.changes):,} of {self.total:,} change" + (f", {self.emptied:,} of them lose all their words" if self.emptied else "")

    def samples(self, count: int = 5) -> list[tuple[Path, str, str]]:
        """Path, text before and text after of some changes, from all over the data set."""
        step = max(1, len(self.changes) // max(count, 1))
        return [(c.path, parse(c.before or b"").text, parse(c.after or b"").text) for c in self.changes[::step][:count]]


def plan(files: Iterable[CaptionFile], edit: Edit, context: Context = Context()) -> Plan:
    """What an edit would do; nothing is written. A caption that cannot hold the new letters stays, as a problem.

    Raises ValueError where the edit cannot be made.
    """
    files = list(files)
    return plan_each(files, edit, _edits(files, edit, context))


def plan_each(files: Iterable[CaptionFile], edit: Named, edit_of: Callable[[Path], CaptionEdit]) -> Plan:
    """What an edit of its own for each caption file would do; nothing is written. `plan` says more."""
    changes, problems, seen, emptied = [], [], set(), 0
    for file in files:
        if file.path in seen:
            problems.append(Problem(file.path, "is the caption of several pictures and is changed once; rename one of them", "clash"))
            continue
        seen.add(file.path)
        try:
            caption = edit_of(file.path)(file.caption)
            if caption is file.caption:
                continue
            if caption.has_nul:  # what an edit adds would be in another encoding
                raise Unfit(caption.problem)
            data = caption.to_bytes()
        except Unfit as error:
            problems.append(Problem(file.path, str(error), "encoding"))
            continue
        if data != (file.data or b""):
            changes.append(Change(file.path, file.data, data))
            emptied += not data.strip()
    return Plan(edit, tuple(changes), len(seen), emptied, tuple(problems))


def by_scores(edit: Edit) -> bool:
    """Whether an edit goes by what a tagger gave the tags."""
    return edit.name == "above" or edit.args.get("by") == "confidence"


def apply(planned: Plan, journal: Journal) -> Entry | None:
    """Carries a plan out, all of it or nothing, and returns its place in the journal. Raises ValueError where a file changed since, OSError."""
    return journal.commit(planned.edit.name, dict(planned.edit.args), planned.changes)


def _edits(files: list[CaptionFile], edit: Edit, context: Context) -> Callable[[Path], CaptionEdit]:
    """The edit for each file: one for all, or where its own words or scores matter one for each."""
    operation = OPERATIONS[edit.name]
    needs, args = operation.needs(), dict(edit.args)
    if "tokens" in needs:
        if context.tokens is None:
            raise ValueError(f"{edit.name}: there is no tokenizer that counts; give one.")
        args["tokens"] = lru_cache(None)(context.tokens)
    if "counts" in needs:
        args["counts"] = Counter(tag for file in files for tag in file.caption.tags) if args.get("by") == "frequency" else {}
    if context.scores is None and by_scores(edit):
        raise ValueError(f"{edit.name}: there are no scores of a tagger; tag the pictures first.")
    placed = [name for name, value in args.items() if isinstance(value, list) and any(place in text for text in value for place in _PLACES)]
    if "scores" not in needs and not placed:
        common = operation.edit(args)
        return lambda path: common

    made: dict[str, CaptionEdit] = {}

    def own(path: Path) -> CaptionEdit:
        mine = {name: [_placed(text, path) for text in args[name]] for name in placed}
        if "scores" not in needs:  # files of one folder share one edit
            return made.setdefault(str(mine), made.get(str(mine)) or operation.edit({**args, **mine}))
        scores = {"scores": context.scores(path) if context.scores else {}} if "scores" in needs else {}
        return operation.edit({**args, **mine, **scores})

    own(Path("folder/file.txt"))  # what cannot be made is said, also for no files
    return own


def _placed(text: str, path: Path) -> str:
    for place, words in _PLACES.items():
        text = text.replace(place, words(path))
    return text


def _checked(edit: str, name: str, value: Any) -> Any:
    """An argument's value as the edit takes it: lists of tags may come as one text."""
    kind, what = _KINDS[name]
    if kind is list:
        value = list(tags_of(value)) if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None
        right = value is not None and all(isinstance(text, str) for text in value)
    elif kind is dict:
        right = isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)
    elif kind is bool or kind is str:
        right = isinstance(value, kind)
    else:
        right = isinstance(value, (int, kind)) and not isinstance(value, bool) and math.isfinite(value)
    if not right:
        raise ValueError(f"{edit}: {name} is to be {what}.")
    return value


_KINDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("tags", "pinned", "group"), (list, "tags: a list, or a text with commas")),
    **dict.fromkeys(("tag", "where", "after", "find", "text", "pattern", "by", "encoding"), (str, "a text")),
    "names": (dict, "an object of old and new names"),
    "limit": (int, "a whole number"),
    "least": (float, "a number"),
    "reverse": (bool, "true or false"),
}


# ---- edits of more than tags -----------------------------------------------------------------------------------------


def regex_line(pattern: str, text: str) -> Callable[[str], str]:
    """Replaces what a regular expression finds in a whole line, commas and sentences included."""
    return tag_edits.Expression(pattern, text).replaced


def write(text: str) -> CaptionEdit:
    """The caption as somebody typed it, in the file's encoding and with its kind of line breaks."""
    return lambda caption: caption.with_text(text)


def tidy() -> CaptionEdit:
    """One comma and one blank between tags, none before the first and after the last, no tag twice blank."""
    def text(line: Line) -> str:
        return ", ".join(tag if line.blanks and not tag.isascii() else " ".join(tag.split()) for tag in line.tags)

    return lambda caption: caption.with_lines(text, lambda line, text, _: Line(str(text), line.kind, line.blanks))


def utf8(encoding: str = "") -> CaptionEdit:
    """UTF-8 without a byte order mark; of captions that are neither UTF-8 nor UTF-16 those in this encoding, such as cp1252 or shift_jis."""
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise ValueError(f"utf8: {encoding!r} is no encoding; name one such as cp1252, shift_jis or gb18030.") from None

    def edit(caption: Caption) -> Caption:
        if not caption.unknown:
            return caption if caption.encoding == "utf-8" and not caption.bom else Caption(caption.lines, caption.ends)
        if not encoding:
            raise Unfit("is in an encoding that is not known; name it, such as cp1252 or shift_jis, or convert the file in an editor")
        if caption.halves not in ("", encoding) and encoding.startswith("utf-16-"):
            raise Unfit(f"is {caption.halves}, not {encoding}; name that")
        try:
            return parse(caption.to_bytes().decode(encoding).encode("utf-8"), caption.lines[0].kind)
        except UnicodeError:
            raise Unfit(f"cannot be read in the encoding {encoding}; name another one, or convert the file in an editor") from None

    return edit


def _with_text(line: Line, text: Tags | str, usual: str) -> Line:
    """The line with another text, which may hold line breaks no more than before, and no new empty tags."""
    text = " ".join(str(text).split("\n")).replace("\r", " ")
    new = Line(text, line.kind, line.blanks)
    return new if _empty(new) <= _empty(line) else Line((new.separator or line.separator or usual).join(new.tags), line.kind, line.blanks)


def _empty(line: Line) -> int:
    return sum(not part.strip() for part in line.text.split(","))


OPERATIONS: dict[str, Operation] = {
    "add": Operation(tag_edits.add),
    "remove": Operation(tag_edits.remove),
    "keep": Operation(tag_edits.keep, sentences=False),
    "above": Operation(tag_edits.above, sentences=False),
    "truncate": Operation(tag_edits.truncate, sentences=False),
    "deduplicate": Operation(tag_edits.deduplicate, sentences=False, letters=True),
    "choose": Operation(tag_edits.choose, sentences=False),
    "front": Operation(tag_edits.front, sentences=False),
    "sort": Operation(tag_edits.sort, sentences=False),
    "rename": Operation(tag_edits.rename),
    "replace": Operation(tag_edits.replace),
    "regex": Operation(tag_edits.regex),
    "regex_line": Operation(regex_line, on="line"),
    "spaces": Operation(tag_edits.spaces, sentences=False, letters=True),
    "underscores": Operation(tag_edits.underscores, sentences=False, letters=True),
    "escape": Operation(tag_edits.escape, letters=True),
    "unescape": Operation(tag_edits.unescape, letters=True),
    "lower": Operation(tag_edits.lower, letters=True),
    "paste": Operation(tag_edits.paste, sentences=False),
    "write": Operation(write, on="caption"),
    "tidy": Operation(tidy, on="caption"),
    "utf8": Operation(utf8, on="caption"),
}
