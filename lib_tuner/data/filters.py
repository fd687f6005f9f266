"""The filter language of the panel: a line that the user types -> the rows that it names.

    lips                     pictures that have the tag lips: capitals and underscores make no difference
    long hair, NOT hat       a comma is AND; NOT binds before AND, AND before OR; parentheses group
    *hair* OR saber_(fate)   * stands for any letters, ? for one; \\* is a star
    "saber (fate)"           quotes around what holds blanks and parentheses, or is AND, OR or NOT itself
    name:*.png  path:10_cat  parts of the file's name, or of its path in the folder
    text:"a cat"             parts of the caption
    tags:>13  tokens:>75     numbers: > >= < <= = or a range such as 5..10; also chars: lines:
    untagged                 pictures without a caption
    score:lips>0.5           what a tagger gave for a tag
    problem:blurred  crop:auto    what an audit found; how far its crop is

A line is compiled once. Tags are looked up in the index; fields look at rows one by one, and after AND only at those that are left.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Protocol

from .tag_edits import key
from .tag_index import Rows, TagIndex

DEEPEST = 100  # parentheses and NOT of a line
Condition = Callable[["Table", Rows], Rows]  # those of some rows that are meant


class Table(Protocol):
    """What rows are asked for."""

    index: TagIndex

    def name(self, row: int) -> str: ...
    def place(self, row: int) -> str: ...  # its path in the folder, with /
    def text(self, row: int) -> str: ...
    def tags(self, row: int) -> Collection[str]: ...
    def tokens(self, row: int) -> int: ...
    def lines(self, row: int) -> int: ...
    def score(self, row: int, tag: str) -> float | None: ...  # None: no tagger has seen it
    def troubles(self, row: int) -> Iterable[str]: ...
    def crop(self, row: int) -> str: ...


# ---- words -----------------------------------------------------------------------------------------------------------

_WORDS = re.compile(
    r"""\s*(?:
    (?P<operator>(?:AND|OR|NOT)(?=[\s(]|$) | [(),])
    | (?P<field>(?:name|path|text|tag|tags|tokens|chars|lines|score|problem|crop):) (?P<value>(?:"(?:\\.|[^"\\])*" | \\. | [^\s()",] | (?<=[^\s(",:])\([^()\s]*\))*)
    | (?P<quoted>"(?:\\.|[^"\\])*")
    | (?P<word>(?:\\. | [^\s()",\\] | \\$ | (?<=[^\s(",])\([^()\s]*\))+)
    | (?P<wrong>\S))""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Word:
    """A piece of the line; `kind`: operator, field, quoted, word or end."""

    kind: str
    text: str
    value: str = ""


def _words(line: str) -> Iterator[_Word]:
    for found in _WORDS.finditer(line.rstrip()):
        kind = found.lastgroup if found.lastgroup != "value" else "field"
        if kind == "wrong":
            raise ValueError('The filter has a " that is not closed; put one at the end of what it begins.')
        yield _Word(kind, found["field"][:-1] if kind == "field" else found[kind], found["value"] or "")
    yield _Word("end", "")


class _Parser:
    """Recursive descent: any -> all (OR all)*; all -> one ((AND | ,) one)*; one -> NOT one | ( any ) | condition."""

    def __init__(self, line: str):
        self.words, self.at, self.deep = list(_words(line)), 0, 0

    def line(self) -> Condition:
        condition = self.any()
        if self.next != "end":
            raise ValueError(f'The filter has {self.shown} where AND or OR is needed; what holds blanks and parentheses goes in quotes, such as "saber (fate)".')
        return condition

    @property
    def next(self) -> str:
        word = self.words[self.at]
        return word.text if word.kind == "operator" else word.kind

    @property
    def shown(self) -> str:
        return repr(self.words[self.at].text) if self.next != "end" else "its end"

    def take(self) -> _Word:
        self.at += 1
        return self.words[self.at - 1]

    def any(self) -> Condition:
        parts = [self.all()]
        while self.next == "OR":
            self.take()
            parts.append(self.all())
        return parts[0] if len(parts) == 1 else lambda table, rows: set().union(*(part(table, rows) for part in parts))

    def all(self) -> Condition:
        parts = [self.one()]
        while self.next in ("AND", ","):
            self.take()
            if self.next not in ("end", ")") or self.words[self.at - 1].text == "AND":  # people end lists with a comma
                parts.append(self.one())
        return parts[0] if len(parts) == 1 else lambda table, rows: reduce(lambda left, part: part(table, left), parts, rows)

    def one(self) -> Condition:
        word = self.take()
        self.deep += word.text in ("NOT", "(")
        if self.deep > DEEPEST:
            raise ValueError(f"The filter has more than {DEEPEST} parentheses and NOT; write it in fewer.")
        if word.kind == "field":
            return FIELDS[word.text](word.text, word.value)
        if word.kind == "quoted":
            return _tag(_unquoted(word.text))
        if word.kind == "word":
            return self.plain(word.text)
        if word.text == "NOT":
            inner = self.one()
            return lambda table, rows: rows - inner(table, rows)
        if word.text == "(":
            inner = self.any()
            if self.next != ")":
                raise ValueError("The filter has a ( that is not closed; put a ) at the end of what it begins.")
            self.take()
            return inner
        self.at -= 1
        raise ValueError(f"The filter has {self.shown} where a tag or a condition is needed.")

    def plain(self, first: str) -> Condition:
        """Words without an operator between them are one tag."""
        words = [first]
        while self.next == "word":
            words.append(self.take().text)
        return _untagged if words == ["untagged"] else _tag(" ".join(words))


@lru_cache(maxsize=64)
def parse(line: str) -> Condition:
    """The condition that a line is; nothing typed is all rows. Raises ValueError, whose text says what is wrong with the line."""
    if not line.strip():
        return lambda table, rows: rows
    return _Parser(line).line()


_LIKE_FIELD = re.compile(r"([^\W\d]\w*):(.*)")


def fields_of(line: str) -> list[tuple[str, str]]:
    """(name, value) of all in a line that is written like a field, of names that are none too."""
    found = []
    for word in _words(line):
        like = _LIKE_FIELD.fullmatch(word.text) if word.kind == "word" else None
        if word.kind == "field":
            found.append((word.text, _value(word.value)))
        elif like:
            found.append((like[1], like[2]))
    return found


# ---- conditions ------------------------------------------------------------------------------------------------------


_WILD = re.compile(r"(?<!\\)[*?]")
_LITERAL = re.compile(r"\\([*?])")


def _unquoted(text: str) -> str:
    return re.sub(r'\\(["\\])', r"\1", text[1:-1])


def _value(text: str) -> str:
    """A field's value, whose quotes may be anywhere in it."""
    return re.sub(r'"((?:\\.|[^"\\])*)"', lambda found: _unquoted(found[0]), text)


def _pattern(text: str) -> re.Pattern[str]:
    """`*` and `?` as a pattern for the whole of something.

    What lies between two stars is looked for once, from the left, and kept there: a later place leaves no more to the rest. Without that, ten stars on a long
    caption take hours. Python 3.10 has no atomic groups; a look-ahead, whose choice is kept too, and what it found are one.
    """
    first, *rest = [_fixed(part) for part in re.split(r"(?<!\\)\*+", text)]
    if not rest:
        return re.compile(first, re.IGNORECASE | re.DOTALL)
    *middle, last = rest
    kept = "".join(f"(?=(?P<m{i}>.*?{part}))(?P=m{i})" for i, part in enumerate(middle) if part)
    return re.compile(f"{first}{kept}.*{last}", re.IGNORECASE | re.DOTALL)


def _fixed(text: str) -> str:
    parts = re.findall(r"\\[*?]|\?|[^?\\]+|\\", text)
    return "".join("." if part == "?" else re.escape(_LITERAL.sub(r"\1", part)) for part in parts)


def _part(text: str) -> Callable[[str], object]:
    """Whether something holds a text, or where that has `*` or `?` is it as a whole."""
    if _WILD.search(text):
        return _pattern(text).fullmatch
    needle = _LITERAL.sub(r"\1", text).lower()
    return lambda there: needle in there.lower()


def _tag(text: str) -> Condition:
    if not _WILD.search(text):
        return lambda table, rows: rows & table.index.rows(_LITERAL.sub(r"\1", text))
    pattern = _pattern(key(text))
    return lambda table, rows: rows & table.index.matching(pattern)


def _untagged(table: Table, rows: Rows) -> Rows:
    return rows - table.index.tagged()


def _needed(field: str, value: str, example: str) -> str:
    value = _value(value)
    if not value:
        raise ValueError(f"{field}: is to be followed by what is looked for, such as {field}:{example}.")
    return value


def _text_field(of: Callable[[Table, int], str], example: str) -> Callable[[str, str], Condition]:
    def make(field: str, value: str) -> Condition:
        holds = _part(_needed(field, value, example))
        return lambda table, rows: {row for row in rows if holds(of(table, row))}

    return make


_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "=": operator.eq, "": operator.eq}
_NUMBER = re.compile(r"(>=|<=|>|<|=|)(\d+(?:\.\d+)?)|(\d+)\.\.(\d+)")


def _number(field: str, value: str) -> Callable[[float], bool]:
    found = _NUMBER.fullmatch(value)
    if not found:
        raise ValueError(f"{field}:{value} is no comparison; write one such as {field}:>13, {field}:<=5 or {field}:5..10.")
    if found[3]:
        low, high = int(found[3]), int(found[4])
        return lambda number: low <= number <= high
    compare, bound = _COMPARE[found[1]], float(found[2])
    return lambda number: compare(number, bound)


def _number_field(of: Callable[[Table, int], int]) -> Callable[[str, str], Condition]:
    def make(field: str, value: str) -> Condition:
        right = _number(field, value)
        return lambda table, rows: {row for row in rows if right(of(table, row))}

    return make


def _tag_field(field: str, value: str) -> Condition:
    return _tag(_needed(field, value, "lips"))


def _score(field: str, value: str) -> Condition:
    tag, comparison = re.fullmatch(r"(.*?)((?:>=|<=|>|<|=)[\d.]*)?", _value(value), re.DOTALL).groups()
    if not tag or not comparison:
        raise ValueError(f"score:{value} is no comparison; write a tag and a number, such as score:lips>0.5.")
    right = _number(f"score:{tag}", comparison)
    return lambda table, rows: {row for row in rows if (score := table.score(row, tag)) is not None and right(score)}


def _list_field(of: Callable[[Table, int], Iterable[str]], example: str) -> Callable[[str, str], Condition]:
    def make(field: str, value: str) -> Condition:
        pattern = _pattern(_needed(field, value, example))
        return lambda table, rows: {row for row in rows if any(map(pattern.fullmatch, of(table, row)))}

    return make


FIELDS: dict[str, Callable[[str, str], Condition]] = {
    "name": _text_field(lambda table, row: table.name(row), "*.png"),
    "path": _text_field(lambda table, row: table.place(row), "10_cat"),
    "text": _text_field(lambda table, row: table.text(row), "cat"),
    "tag": _tag_field,
    "tags": _number_field(lambda table, row: len(table.tags(row))),
    "tokens": _number_field(lambda table, row: table.tokens(row)),
    "chars": _number_field(lambda table, row: len(table.text(row).strip())),
    "lines": _number_field(lambda table, row: table.lines(row)),
    "score": _score,
    "problem": _list_field(lambda table, row: table.troubles(row), "blurred"),
    "crop": _list_field(lambda table, row: [table.crop(row)], "auto"),
}
