"""A caption file as bytes, as lines, and as tags; what no edit touches goes back to the disk byte for byte.

A caption has lines (each one variant of the caption), a line has tags between commas. Line breaks, encoding, byte order mark, and the blanks and commas
between tags are kept apart from the tags, so that taking one tag out leaves its neighbours as they were typed.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from sys import intern

from .items import Problem

Tags = tuple[str, ...]

USUAL = ", "  # the separator of a line that shows none
KINDS = ("auto", "tags", "text")
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_BREAK = re.compile(r"(\r\n|\n|\r)")  # str.splitlines would also part at letters that a caption may hold
_MARK = re.compile(r"(?<![:;=])\\?[()]|,")  # not the mouths of :( and ;)
_SENTENCE = re.compile(r"(?:[\w'-]{1,30}\s+){2}[\w'-]{1,30}[.!?]['\")]*(?:\s+[^\Wa-z]|\s*$)")  # three words, a full stop, and a new sentence or nothing
ASCII_BLANKS = " \t\f\v"  # bytes of an unknown encoding that look like other blanks may be halves of letters
_WORDY = 4  # words between commas, on average, from which on a line is prose: Danbooru's tags have 1.6, with few names of over five


class Unfit(ValueError):
    """A caption cannot be written as an edit wants it; the others can."""


@dataclass(frozen=True)
class Line:
    """One variant of a caption. `kind`: tags, text (sentences), or auto (by `reads_as_text`); `blanks`: what is cut off around tags, None for any."""

    text: str
    kind: str = "auto"
    blanks: str | None = None

    @cached_property
    def _split(self) -> tuple[Tags, tuple[str, ...] | None, str]:
        """The tags; what is before, between and after them (None where it is the separator throughout); the usual separator of this line, "" for unknown."""
        text = self.text
        if "(" not in text:
            tags = [part.strip(self.blanks) for part in text.split(",")]
            if USUAL.join(tags) == text and all(tags):
                return tuple(map(intern, tags)), None, USUAL if len(tags) > 1 else ""
        tags, gaps = _parted(text, self.blanks)
        single = Counter(gap for gap in gaps[1:-1] if gap.count(",") == 1)
        return tuple(map(intern, tags)), gaps, single.most_common(1)[0][0] if single else ""

    @property
    def tags(self) -> Tags:
        """The parts between commas, trimmed, without empty ones; a comma in (parentheses:1.2) or \\(escaped ones\\) parts nothing."""
        return self._split[0]

    @property
    def separator(self) -> str:
        """What is most often between two tags; "" where there are no two."""
        return self._split[2]

    @cached_property
    def is_text(self) -> bool:
        """Whether the line is sentences, which no edit sorts or cuts to pieces."""
        return self.kind == "text" or (self.kind == "auto" and reads_as_text(self.text, len(self.tags)))

    def with_tags(self, tags: Tags, usual: str = USUAL) -> Line:
        """The line with other tags: those that stay keep what was typed before them, new ones take the line's separator (`usual` where it shows none)."""
        old, gaps, separator = self._split
        separator = separator or usual
        plain = gaps is None or not tags or not old
        return Line(separator.join(tags) if plain else _joined(tags, old, gaps, separator), self.kind, self.blanks)


def reads_as_text(text: str, parts: int) -> bool:
    """Whether a line is sentences: it holds one that ends like a sentence, or four words and more between commas on average.

    The average, since one tag may be a long title; underscores join words, as taggers write them.
    """
    stops = "." in text or "!" in text or "?" in text  # the pattern takes its time
    return len(text.split()) >= _WORDY * max(parts, 1) or (stops and bool(_SENTENCE.search(text)))


def tags_of(text: str, blanks: str | None = None) -> Tags:
    """The tags of a text that somebody typed, over all its lines: trimmed, without empty ones."""
    return tuple(tag for line in _BREAK.split(text) for tag in Line(line, blanks=blanks).tags)


def _parted(text: str, blanks: str | None) -> tuple[list[str], tuple[str, ...]]:
    """Tags and the n + 1 gaps around them."""
    tags: list[str] = []
    gaps: list[str] = []
    gap, start = "", 0
    for comma in (*_commas(text), len(text)):
        piece = text[start:comma]
        core = piece.strip(blanks)
        if core:
            at = piece.index(core)
            tags.append(core)
            gaps.append(gap + piece[:at])
            gap = piece[at + len(core) :]
        else:
            gap += piece
        gap += text[comma : comma + 1]
        start = comma + 1
    return tags, (*gaps, gap)


def _commas(text: str) -> list[int]:
    """Where tags are parted. Only parentheses that are closed hold commas together: a lone one is a letter."""
    commas: list[int] = []
    opened: dict[str, list[int]] = {"(": [], "\\(": []}
    for found in _MARK.finditer(text):
        mark = found[0]
        if mark == ",":
            commas.append(found.start())
        elif mark in opened:
            opened[mark].append(len(commas))
        elif stack := opened[mark.replace(")", "(")]:
            del commas[stack.pop() :]
    return commas


def _joined(tags: Tags, old: Tags, gaps: tuple[str, ...], separator: str) -> str:
    """Tags with the gaps that they, or those whose places they take, had before them."""
    places = range(len(old)) if len(tags) == len(old) else _places(tags, old)
    text, before = gaps[0], -1
    for number, (tag, place) in enumerate(zip(tags, places)):
        gap = gaps[place] if place > 0 else separator
        if gap.count(",") != 1 and (before != place - 1 or tag != old[place]):
            gap = separator  # an empty tag beside what changed goes with it
        text += (gap if number else "") + tag
        before = place
    return text + gaps[-1]


def _places(tags: Tags, old: Tags) -> list[int]:
    """For each tag the place it had; -1 for a new one."""
    where: dict[str, list[int]] = {}
    for place in reversed(range(len(old))):
        where.setdefault(old[place], []).append(place)
    return [where[tag].pop() if where.get(tag) else -1 for tag in tags]


# ---- captions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caption:
    """A caption file's content: lines, the line break after each ("" after the last), and how they are written as bytes."""

    lines: tuple[Line, ...] = (Line(""),)
    ends: tuple[str, ...] = ("",)
    encoding: str = "utf-8"  # utf-8, utf-16-le, utf-16-be, or cp1252: anything else, whose bytes are kept
    bom: bytes = b""

    @property
    def text(self) -> str:
        """All of it, with the file's own line breaks."""
        if len(self.lines) == 1:
            return self.lines[0].text + self.ends[0]
        return "".join(line.text + end for line, end in zip(self.lines, self.ends))

    @property
    def tags(self) -> Tags:
        """The tags of all lines, one after the other."""
        return self.lines[0].tags if len(self.lines) == 1 else tuple(tag for line in self.lines for tag in line.tags)

    @property
    def unknown(self) -> bool:
        """Whether the letters are a guess."""
        return self.encoding == "cp1252" or self.has_nul

    @property
    def halves(self) -> str:
        """`utf-16-le` or `utf-16-be` where NULs lie as in that encoding of Latin letters, and are as many; else empty."""
        data = self.to_bytes()
        even, odd, enough = data[::2].count(0), data[1::2].count(0), 0.3 * len(data) / 2
        if len(data) % 2 or even and odd or max(even, odd) < enough:
            return ""
        return "utf-16-le" if odd else "utf-16-be"

    @property
    def has_nul(self) -> bool:
        """Whether it holds NUL characters: most likely it is UTF-16 without a byte order mark."""
        return any("\0" in line.text for line in self.lines)

    @property
    def problem(self) -> str:
        """What the user should know of the file's encoding; empty where all is well."""
        if self.has_nul:
            return "holds NUL characters, as UTF-16 without a byte order mark does; it is left alone; save it as UTF-8"
        return "is neither UTF-8 nor UTF-16 and was read as Windows-1252; its bytes are kept" if self.unknown else ""

    def to_bytes(self) -> bytes:
        """The file. Raises Unfit where its encoding cannot hold a letter."""
        text = self.text
        try:
            return self.bom + text.encode(self.encoding, _ERRORS[self.encoding])
        except UnicodeEncodeError as error:
            name = "Windows-1252" if self.encoding == "cp1252" else self.encoding.upper()
            raise Unfit(f"cannot hold {text[error.start : error.end][:8]!r} in its encoding {name}; save it as UTF-8 first") from None

    def edited(self, change: Callable[[Tags], Tags], sentences: bool = True) -> Caption:
        """The caption with the tags of each line changed; lines of sentences only where `sentences`. A line that loses all its tags goes."""
        return self.with_lines(lambda line: line.tags if not sentences and line.is_text else change(line.tags), Line.with_tags)

    def with_lines(self, change: Callable[[Line], Tags | str], build: Callable[[Line, Tags | str, str], Line]) -> Caption:
        """The caption where `build(line, change(line), separator)` takes the place of each line that `change` gives something else than its tags or text for.

        Blank lines stay as they are, unless there is no other.
        """
        if len(self.lines) == 1:  # most captions
            line = self.lines[0]
            new = change(line)
            return self if new in (line.tags, line.text) else replace(self, lines=(build(line, new, self._usual()),))
        usual, lines, ends, changed = self._usual(), [], [], False
        filled = any(line.tags for line in self.lines)
        for number, (line, end) in enumerate(zip(self.lines, self.ends)):
            if line.tags or (number == 0 and not filled):
                new = change(line)
                if new != line.tags and new != line.text:
                    line, changed = build(line, new, usual), True
                    if not new and len(self.lines) > 1 and filled:
                        ends[-1:] = [end] if ends and not end else ends[-1:]
                        continue
            lines.append(line)
            ends.append(end)
        return Caption(tuple(lines) or (Line(""),), tuple(ends) or ("",), self.encoding, self.bom) if changed else self

    def with_text(self, text: str) -> Caption:
        """The caption with another text in the same encoding, with the same kind of line breaks, and one at the end where there was one."""
        if _BREAK.sub("\n", text).rstrip("\n") == _BREAK.sub("\n", self.text).rstrip("\n"):
            return self
        breaks = Counter(end for end in self.ends if end)
        usual = breaks.most_common(1)[0][0] if breaks else "\n"
        parts = _BREAK.sub("\n", text).rstrip("\n").split("\n")
        if len(self.lines) > 1 and not self.lines[-1].text:
            parts.append("")
        kind, blanks = self.lines[0].kind, self.lines[0].blanks
        return replace(self, lines=tuple(Line(part, kind, blanks) for part in parts), ends=(*[usual] * (len(parts) - 1), ""))

    def _usual(self) -> str:
        return next((line.separator for line in self.lines if line.separator), USUAL)


_ERRORS = {"utf-8": "strict", "utf-16-le": "surrogatepass", "utf-16-be": "surrogatepass", "cp1252": "surrogateescape"}  # each gives the bytes back


def parse(data: bytes, kind: str = "auto") -> Caption:
    """A caption file's bytes: `parse(data).to_bytes() == data`, whatever they are. `kind` says what its lines are, see `Line`."""
    encoding, bom = next(((name, mark) for mark, name in _BOMS.items() if data.startswith(mark)), ("utf-8", b""))
    text = _decoded(data[len(bom) :], encoding)
    if text is None:
        encoding, bom, text = "cp1252", b"", data.decode("cp1252", "surrogateescape")
    blanks = ASCII_BLANKS if encoding == "cp1252" else None
    if "\n" not in text and "\r" not in text:
        return Caption((Line(text, kind, blanks),), ("",), encoding, bom)
    parts = _BREAK.split(text)
    return Caption(tuple(Line(part, kind, blanks) for part in parts[::2]), (*parts[1::2], ""), encoding, bom)


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        text = data.decode(encoding, _ERRORS[encoding])
    except UnicodeDecodeError:
        return None
    return text if encoding == "utf-8" or text.encode(encoding, _ERRORS[encoding]) == data else None


@dataclass(frozen=True)
class CaptionFile:
    """A caption file as it was read; `data` None: there is none yet."""

    path: Path
    data: bytes | None
    caption: Caption


def read(paths: Iterable[Path], kind: str = "auto") -> tuple[list[CaptionFile], list[Problem]]:
    """The caption files at these paths, those that are not there yet among them, and what is wrong with others."""
    files, problems = [], []
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.readall()
        except FileNotFoundError:
            files.append(CaptionFile(path, None, Caption((Line("", kind),))))
            continue
        except OSError as error:
            problems.append(Problem(path, f"cannot be read ({error.strerror}); it is left alone", "unreadable"))
            continue
        file = CaptionFile(path, data, parse(data, kind))
        files.append(file)
        if file.caption.problem:
            problems.append(Problem(path, file.caption.problem, "encoding"))
    return files, problems
