"""Which pictures have which tags, kept up to date row by row: an edit costs what it changes, not what the data set holds."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .tag_edits import key

Rows = set[int]


class TagIndex:
    """Tags as they are typed -> the rows that have them. A row counts once, however often it has a tag."""

    def __init__(self) -> None:
        self._rows: dict[str, Rows] = {}
        self._spellings: dict[str, dict[str, None]] = {}  # by `tag_edits.key`, in the order in which they came
        self._tagged: Rows = set()

    def put(self, row: int, before: Iterable[str], after: Iterable[str]) -> None:
        """A row had the tags `before`, all of them, and has the tags `after` from now on."""
        old, new = set(before), set(after)
        (self._tagged.add if new else self._tagged.discard)(row)
        for tag in old - new:
            rows = self._rows[tag]
            rows.discard(row)
            if not rows:
                self._forget(tag)
        for tag in new - old:
            rows = self._rows.get(tag)
            if rows is None:
                rows = self._rows[tag] = set()
                self._spellings.setdefault(key(tag), {})[tag] = None
            rows.add(row)

    def counts(self) -> dict[str, int]:
        """Tags and in how many rows each is."""
        return {tag: len(rows) for tag, rows in self._rows.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, tag: str) -> Rows:
        """Rows that have a tag in any of its spellings; see `tag_edits.key`."""
        return self._joined(self._spellings.get(key(tag), ()))

    def matching(self, pattern: re.Pattern[str]) -> Rows:
        """Rows that have a tag whose key the pattern matches as a whole."""
        return self._joined(tag for known, tags in self._spellings.items() if pattern.fullmatch(known) for tag in tags)

    def tagged(self) -> Rows:
        """Rows that have any tag."""
        return self._tagged

    def _joined(self, tags: Iterable[str]) -> Rows:
        return set().union(*(self._rows[tag] for tag in tags))

    def _forget(self, tag: str) -> None:
        del self._rows[tag]
        spellings = self._spellings[key(tag)]
        del spellings[tag]
        if not spellings:
            del self._spellings[key(tag)]
