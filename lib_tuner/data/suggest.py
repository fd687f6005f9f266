"""Tags to go on with while somebody types one: compared as `tag_edits.key` has them, so that underscores and blanks, large and small letters are alike."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from .tag_edits import key
from .tag_list import RATING, read_tags

Named = tuple[tuple[str, str], ...]  # (key, tag as it is written)


def fitting(named: Iterable[tuple[str, str]], part: str) -> list[tuple[str, str]]:
    """Those whose keys hold the part: first those that begin with it, else in the given order."""
    words = key(part.strip()).strip()
    found = [pair for pair in named if words in pair[0]]
    return [pair for pair in found if pair[0].startswith(words)] + [pair for pair in found if not pair[0].startswith(words)]


def named(tags: Iterable[str]) -> Named:
    """Tags with their keys, each key once; without commas, which would part a tag into two."""
    found: dict[str, str] = {}
    for tag in tags:
        tag = " ".join(tag.replace(",", " ").split())
        found.setdefault(key(tag), tag)
    return tuple(found.items())


def of_files(files: Iterable[Path]) -> Named:
    """The tags of lists on the disk, without ratings; a list that cannot be read has none."""
    return _joined(tuple((file, file.stat().st_mtime_ns) for file in files if file.is_file()))


@lru_cache(maxsize=4)
def _joined(files: tuple[tuple[Path, int], ...]) -> Named:
    """The time of a file is a part of what is remembered: another list is read anew."""
    tags: list[str] = []
    for file, _ in files:
        try:
            listed = read_tags(file.read_bytes(), file.name)
        except (OSError, ValueError):
            continue
        tags += [name for name, category in zip(listed.names, listed.categories) if category != RATING]
    return named(tags)
