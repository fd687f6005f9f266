"""The scores that taggers left in a folder, read once and only where somebody asks: for the filter `score:lips>0.5` and for edits that go by confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from .tag_edits import key
from .tag_scores import ScoreStore, ScoreTable, scores_file


class KeptScores:
    """Called with a picture it gives scores by tag, written as `tag_edits.key` has them; of several taggers the highest. Empty for a picture that none has seen.

    Scores below `tag_scores.LEAST` are not kept; of them those of `tags` are given, as 0: else an edit would take a tag that is surely wrong for an unknown one.

    `pictures` are those of the folder. Where no tagger was ever asked nothing is made in the folder. All raise OSError where the scores cannot be read.
    """

    def __init__(self, folder: str | Path, pictures: Callable[[], Iterable[Path]]):
        self.folder, self._pictures = Path(folder), pictures
        self.forget()

    def forget(self) -> None:
        """What was read is no longer so: read it anew."""
        self._tables: dict[str, ScoreTable] | None = None
        self._digests: dict[Path, str] = {}
        self._texts: dict[str, dict[str, str]] = {}

    def texts(self) -> Mapping[str, Mapping[str, str]]:
        """All that each captioner said, by content."""
        self._read()
        return self._texts

    def tables(self) -> Mapping[str, ScoreTable]:
        """All that each tagger gave."""
        self._read()
        return self._tables or {}

    def digests(self) -> Mapping[Path, str]:
        """The content of each picture that is as it was when it was scored."""
        self._read()
        return self._digests

    def __call__(self, picture: Path, tags: Iterable[str] = ()) -> Mapping[str, float]:
        self._read()
        digest, found = self._digests.get(picture, ""), {}
        for table in (self._tables or {}).values():
            if digest not in table.rows:
                continue
            names, known = _keys(table.tags.names)
            found.update((words, 0.0) for words in map(key, tags) if words in known and words not in found)
            for place, score in zip(*table.rows[digest]):
                found[names[place]] = max(score, found.get(names[place], 0.0))
        return found

    def _read(self) -> None:
        if self._tables is not None:
            return
        tables: dict[str, ScoreTable] = {}
        if scores_file(self.folder).is_file():
            with ScoreStore(self.folder) as store:
                tables = {name: table for name in store.taggers() if (table := store.table(name)) is not None}
                self._texts = {name: store.captions(name) for name in store.captioners()}
                self._digests = store.digests(self._pictures())
        self._tables = tables


@lru_cache(maxsize=8)
def _keys(names: tuple[str, ...]) -> tuple[list[str], frozenset[str]]:
    keys = [key(name) for name in names]
    return keys, frozenset(keys)
