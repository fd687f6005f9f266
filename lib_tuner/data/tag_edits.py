"""What is done to a caption's tags, each edit a pure function from tags to tags.

Every function here makes such an edit from its arguments, so that what can be computed once is not computed for each of 10,000 captions. No edit leaves a
tag that is empty or has blanks around it, and none raises for what a caption holds. Tags are the same where they differ in capitals (CLIP reads small
letters), underscores for blanks, or escaped parentheses: see `key`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from .captions import ASCII_BLANKS, USUAL, Tags, tags_of

TagEdit = Callable[[Tags], Tags]

# names of Danbooru whose underscore is no blank: the list that three taggers share (reference: WD14 taggers' KAOMOJIS)
KAOMOJI = frozenset("0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||".split())
SORTS = ("alphabet", "frequency", "confidence", "length")

_ESCAPED = re.compile(r"\\([()])")
_BARE = re.compile(r"(?<!\\)[()]")
_WEIGHT = re.compile(r"\(.*:\s*[\d.]+\s*\)")  # emphasis of the WebUI, whose parentheses are no letters
_LETTER = re.compile(r"[^\W_]")


def key(tag: str) -> str:
    """A tag as it is compared with others: `Long_Hair` is `long hair`, `x_\\(y\\)` is `x (y)`."""
    return with_spaces(_ESCAPED.sub(r"\1", tag) if "\\" in tag else tag).lower()


def with_spaces(tag: str) -> str:
    """The tag with blanks for underscores, unless it is a face."""
    if "_" not in tag or _ESCAPED.sub(r"\1", tag).lower() in KAOMOJI or not _LETTER.search(tag):
        return tag
    return " ".join(tag.replace("_", " ").split())


class _Keys(dict):
    """`key` of each tag, computed once: a data set has few tags, many times."""

    def __missing__(self, tag: str) -> str:
        found = self[tag] = key(tag)
        return found


# ---- which tags ------------------------------------------------------------------------------------------------------


def add(tags: Sequence[str], where: str = "last", after: str = "", pinned: Sequence[str] = ()) -> TagEdit:
    """Adds tags: `last` where they are not there yet, `first` (moved there, but behind the pinned ones), or behind the tag `after` (last without it)."""
    _one_of("where", where, ("last", "first", "after"))
    if where == "after" and not after.strip():
        raise ValueError("add: `after` is empty; name the tag behind which the new ones go.")
    keys, new = _Keys(), _unique(tags)
    own, anchor, fixed = {key(tag) for tag in new}, key(after.strip()), {key(tag) for tag in pinned} - {key(tag) for tag in new}

    def edit(old: Tags) -> Tags:
        if where == "last":
            here = {keys[tag] for tag in old}
            return (*old, *(tag for tag in new if keys[tag] not in here))
        rest = tuple(tag for tag in old if keys[tag] not in own)
        if where == "first":
            place = next((i for i, tag in enumerate(rest) if keys[tag] not in fixed), len(rest))
        else:
            place = next((i + 1 for i, tag in enumerate(rest) if keys[tag] == anchor), len(rest))
        return (*rest[:place], *new, *rest[place:])

    return edit


def remove(tags: Sequence[str]) -> TagEdit:
    """Takes these tags out."""
    gone = _Wanted(tags)
    return lambda old: tuple([tag for tag in old if not gone[tag]])


def keep(tags: Sequence[str]) -> TagEdit:
    """Takes all other tags out."""
    kept = _Wanted(tags)
    return lambda old: tuple([tag for tag in old if kept[tag]])


class _Wanted(dict):
    """Whether a tag is one of some, computed once for each."""

    def __init__(self, names: Iterable[str]):
        super().__init__()
        self._keys = {key(name.strip()) for name in names}

    def __missing__(self, tag: str) -> bool:
        found = self[tag] = key(tag) in self._keys
        return found


def above(least: float, scores: Mapping[str, float], pinned: Sequence[str] = ()) -> TagEdit:
    """Drops tags that a tagger gave less than `least`; what it gave no score, and what is pinned, stays."""
    known, fixed = {key(tag): score for tag, score in scores.items()}, _Wanted(pinned)
    return lambda old: tuple(tag for tag in old if fixed[tag] or known.get(key(tag), least) >= least)


def truncate(limit: int, tokens: Callable[[str], int], pinned: Sequence[str] = ()) -> TagEdit:
    """Drops tags from the end until the caption has at most `limit` tokens by `tokens(text)`; pinned tags and one tag at least stay."""
    if limit < 1:
        raise ValueError(f"truncate: {limit} is no number of tokens; choose 1 or more, such as 75.")
    fixed = _Wanted(pinned)

    def cut(old: Tags, count: int) -> Tags:
        return tuple(tag for i, tag in enumerate(old) if i < count or fixed[tag])

    def edit(old: Tags) -> Tags:
        fits, over = 0, len(old) + 1  # the largest count that fits is searched by halves: tokens grow with it
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if tokens(USUAL.join(cut(old, middle))) <= limit else (fits, middle)
        return cut(old, fits) or old[:1]

    return edit


def deduplicate() -> TagEdit:
    """Keeps the first of tags that are the same."""
    keys = _Keys()

    def edit(old: Tags) -> Tags:
        first: dict[str, str] = {}
        for tag in old:
            first.setdefault(keys[tag], tag)
        return old if len(first) == len(old) else tuple(first.values())

    return edit


def choose(tag: str, group: Sequence[str]) -> TagEdit:
    """Sets one of a group of which a picture has one only: it takes the place of the first that is there, the others go; without any it comes last."""
    new = _unique([tag])
    if len(new) != 1:
        raise ValueError(f"choose: {tag!r} is not one tag; name one of the group.")
    members, own = _Wanted([*group, *new]), _Wanted(new)

    def edit(old: Tags) -> Tags:
        here = [t for t in old if members[t]]
        if len(here) == 1 and own[here[0]]:
            return old
        place = next((i for i, t in enumerate(old) if members[t]), len(old))
        return (*old[:place], *new, *(t for t in old[place:] if not members[t]))

    return edit


# ---- their order -----------------------------------------------------------------------------------------------------


def front(tags: Sequence[str]) -> TagEdit:
    """Moves those of these tags that are there to the front, in the order given."""
    return _sorted(lambda tag: 0, tags, False)


def sort(by: str, counts: Mapping[str, int], scores: Mapping[str, float], pinned: Sequence[str] = (), reverse: bool = False) -> TagEdit:
    """Sorts by alphabet, frequency in the data set, confidence of a tagger (highest first, unknown last), or length (shortest first); pinned tags lead."""
    _one_of("by", by, SORTS)
    known = {key(tag): score for tag, score in scores.items()} if by == "confidence" else {}
    ranks: dict[str, Callable[[str], Any]] = {
        "alphabet": str.casefold,
        "frequency": lambda tag: -counts.get(tag, 0),
        "confidence": lambda tag: -known.get(key(tag), -1.0),
        "length": len,
    }
    return _sorted(ranks[by], pinned, reverse)


def _sorted(rank: Callable[[str], Any], pinned: Sequence[str], reverse: bool) -> TagEdit:
    places: dict[str, int] = {}
    for tag in pinned:
        places.setdefault(key(tag.strip()), len(places))
    keys = _Keys()

    def edit(old: Tags) -> Tags:
        fixed = sorted([tag for tag in old if keys[tag] in places], key=lambda tag: places[keys[tag]]) if places else ()
        rest = [tag for tag in old if keys[tag] not in places] if fixed else old
        return (*fixed, *sorted(rest, key=rank, reverse=reverse))

    return edit


# ---- their letters ---------------------------------------------------------------------------------------------------


def rename(names: Mapping[str, str]) -> TagEdit:
    """Gives tags other names: "" takes one out, "a, b" makes two of it; where the new one is there already, they become one."""
    new = {key(old.strip()): tags_of(text) for old, text in names.items()}
    return _each(lambda tag: new.get(key(tag)))


def replace(find: str, text: str) -> TagEdit:
    """Replaces part of tags, letter for letter."""
    if not find:
        raise ValueError("replace: there is nothing to find; type what is to be replaced.")
    return _each(lambda tag: _tags_in(tag.replace(find, text), tag) if find in tag else None)


def regex(pattern: str, text: str) -> TagEdit:
    """Replaces what a regular expression finds in each tag; \\1 in `text` is its first group."""
    found = Expression(pattern, text)
    return _each(lambda tag: None if (new := found.replaced(tag)) == tag else _tags_in(new, tag))


class Expression:
    """A regular expression and the text that takes the place of what it finds, stopped after a number of seconds in all.

    Some expressions, such as (a|aa)+$, take longer than anybody lives on a few dozen letters, and Python's `re` cannot be stopped; the package regex, which
    finds the same, can. Raises ValueError for what `re` does not take.
    """

    def __init__(self, pattern: str, text: str, seconds: float = 10.0):
        import regex as stoppable  # not above: the other edits do without

        try:
            re.compile(pattern).sub(text, "")  # regex looks at the text only once it has found something
            self._found = stoppable.compile(pattern)
        except (re.error, stoppable.error, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(f"regex: {pattern!r} with {text!r} is no regular expression ({error}); escape letters such as ( + ? with a \\.") from None
        self._pattern, self._text, self._left = pattern, text, seconds

    def replaced(self, text: str) -> str:
        """The text with all that was found replaced. Raises ValueError once the time is over."""
        began = time.monotonic()
        try:
            return self._found.sub(self._text, text, timeout=max(self._left, 0.001))
        except TimeoutError:
            raise ValueError(f"regex: {self._pattern!r} takes too long on these captions; write it without a repetition inside a repetition.") from None
        finally:
            self._left -= time.monotonic() - began


def spaces() -> TagEdit:
    """Blanks for underscores, but not in faces such as ^_^."""
    return _letters(with_spaces)


def underscores() -> TagEdit:
    """Underscores for blanks."""
    return _letters(lambda tag: tag if _WEIGHT.fullmatch(tag) else "_".join(tag.split()))


def escape() -> TagEdit:
    """A backslash before parentheses that have none, as the WebUI's prompts want it; those of a weight, (tag:1.2), stay."""
    return _letters(lambda tag: tag if _WEIGHT.fullmatch(tag) else _BARE.sub(r"\\\g<0>", tag))


def unescape() -> TagEdit:
    """Parentheses without their backslashes."""
    return _letters(lambda tag: _ESCAPED.sub(r"\1", tag))


def lower() -> TagEdit:
    """Small letters."""
    return _letters(str.lower)


def paste(tags: Sequence[str], where: str = "last") -> TagEdit:
    """Another picture's tags: before these or after them (what is there already is not doubled), or instead of them."""
    _one_of("where", where, ("last", "first", "instead"))
    new = _unique(tags)
    return (lambda old: new) if where == "instead" else add(new, where)


def sealed(change: TagEdit) -> TagEdit:
    """The edit for tags in an unknown encoding: one that is not all ASCII goes through whole, since what looks like a letter may be half of one."""

    def edit(old: Tags) -> Tags:
        seals = {tag: f"\0{number}" for number, tag in enumerate(old) if not tag.isascii()}
        if not seals:
            return change(old)
        tags = {seal: tag for tag, seal in seals.items()}
        return tuple(tags.get(tag, tag) for tag in change(tuple(seals.get(tag, tag) for tag in old)))

    return edit


def _letters(change: Callable[[str], str]) -> TagEdit:
    known: dict[str, str] = {}

    def edit(old: Tags) -> Tags:
        for tag in old:
            if tag not in known:
                known[tag] = change(tag).strip() or tag
        return tuple([known[tag] for tag in old])

    return edit


def _each(change: Callable[[str], Tags | None]) -> TagEdit:
    """An edit of single tags; `change` gives None for a tag that stays. A new tag that is there already is not doubled."""
    known: dict[str, Tags | None] = {}

    def edit(old: Tags) -> Tags:
        for tag in old:
            if tag not in known:
                new = change(tag)
                known[tag] = None if new == (tag,) else new
        if all(known[tag] is None for tag in old):
            return old
        made = {new for tag in old for new in known[tag] or ()}
        out: list[str] = []
        for tag in old:
            new = known[tag]
            out += [t for t in ((tag,) if new is None else new) if t not in made or t not in out]
        return tuple(out)

    return edit


_HIGH = frozenset(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(128, 256))  # what bytes above ASCII are read as where nobody knows better


def _tags_in(text: str, was: str) -> Tags:
    """The tags in what one has become; a blank beside half a letter may be its other half, see `captions.ASCII_BLANKS`."""
    guessed = not was.isascii() and all(letter.isascii() or letter in _HIGH for letter in was)
    return tags_of(text, ASCII_BLANKS) if guessed else tags_of(text)


def _unique(tags: Iterable[str]) -> Tags:
    first: dict[str, str] = {}
    for tag in (tag for text in tags for tag in tags_of(text)):
        first.setdefault(key(tag), tag)
    return tuple(first.values())


def _one_of(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(choices)}.")
