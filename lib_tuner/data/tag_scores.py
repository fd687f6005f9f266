"""What taggers gave the pictures of a folder, kept, so that another threshold needs neither a model nor the pictures.

In the side folder, `<folder>/.tuner/scores/scores.sqlite`: a row of scores by picture content (sha256) and tagger; the list of tags of each tagger; what
captioners said of a content; and which content a file had at which size and time, so that 10,000 files need not be read to know it. All of it is a cache:
deleting it costs time alone.
Scores are kept as float16, those below `LEAST` not at all but for ratings: with 60 of 10,000 tags some 650 bytes a picture.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..disk import absolute
from .journal import SIDE
from .tag_list import TagList

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 0.05  # no threshold is lower
Row = tuple[tuple[int, ...], tuple[float, ...]]  # places in the list of tags, and their scores, highest first

_SCHEMA = """
create table if not exists taggers (tagger text primary key, tags text not null) without rowid;
create table if not exists scores (tagger text not null, digest text not null, row blob not null, primary key (tagger, digest)) without rowid;
create table if not exists captions (captioner text not null, digest text not null, text text not null, primary key (captioner, digest)) without rowid;
create table if not exists files (path text primary key, size integer not null, time integer not null, digest text not null) without rowid;
"""


@dataclass(frozen=True)
class ScoreTable:
    """What one tagger gave pictures, by their content."""

    tags: TagList
    rows: Mapping[str, Row]

    def by_tag(self, digest: str) -> dict[str, float]:
        """The scores of one picture by the tags' names, for edits that ask for them."""
        places, scores = self.rows.get(digest, ((), ()))
        return {self.tags.names[place]: score for place, score in zip(places, scores)}


def rows_of(scores: Tensor, tags: TagList) -> list[bytes]:
    """Scores (N, tags) in [0, 1] as the N rows that are kept. Raises ValueError for another number of tags, or what is no probability."""
    import torch

    if scores.ndim != 2 or scores.shape[1] != len(tags):
        raise ValueError(f"The model gives scores of the shape {tuple(scores.shape)} and its list has {len(tags)} tags; "
                         "take the selected_tags.csv that belongs to it.")
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ValueError("The model gives scores that are no probabilities from 0 to 1; it is no WD14 tagger.")
    kept = scores >= LEAST
    if tags.ratings:
        kept[:, torch.tensor(tags.ratings)] = True
    order = scores.masked_fill(~kept, -1).argsort(dim=1, descending=True, stable=True)
    counts = kept.sum(1).tolist()
    return [_packed(places[:count].tolist(), row[places[:count]].tolist()) for row, places, count in zip(scores, order, counts)]


def _packed(places: Sequence[int], scores: Sequence[float]) -> bytes:
    n = len(places)
    return struct.pack(f"<{n}I{n}e", *places, *scores)


def _row(data: bytes) -> Row:
    n = len(data) // 6
    values = struct.unpack(f"<{n}I{n}e", data)
    return values[:n], values[n:]


def scores_file(folder: Path, side: str | Path | None = None) -> Path:
    """Where a folder's scores lie, once there are any."""
    return (Path(side) if side else folder / SIDE) / "scores" / "scores.sqlite"


class ScoreStore:
    """The scores of one folder; a second program may use it at the same time. `moved`: a damaged file that was put aside, or None.

    Raises OSError where it cannot be made.
    """

    def __init__(self, folder: str | Path, side: str | Path | None = None):
        self.folder = absolute(folder)
        self.path = scores_file(self.folder, side)
        self.moved: Path | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._base = self._opened()
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path} cannot be written ({error}); check that its folder is writable and no other program holds it.") from error

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets the file go."""
        self._base.close()

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:  # no database, or a damaged one: what it held is computed anew
            self.moved = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, self.moved)
            return self._connected()

    def _connected(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        try:
            base.executescript(_SCHEMA)
        except sqlite3.Error:
            base.close()
            raise
        return base

    # ---- scores ------------------------------------------------------------------------------------------------------

    def known(self, tagger: str) -> set[str]:
        """The contents that a tagger has seen. Raises OSError, as all that reads here, where the file is damaged."""
        return {digest for (digest,) in self._read("select digest from scores where tagger = ?", tagger)}

    def add(self, tagger: str, tags: TagList, rows: Mapping[str, bytes]) -> None:
        """Keeps rows by content, all of them or none. Raises OSError where the disk takes them not."""
        listed = json.dumps([tags.names, tags.categories], ensure_ascii=False)
        self._write("insert or ignore into taggers values (?, ?)", [(tagger, listed)])
        self._write("insert or replace into scores values (?, ?, ?)", [(tagger, digest, row) for digest, row in rows.items()])

    def table(self, tagger: str) -> ScoreTable | None:
        """All that a tagger gave; None where it was never asked here."""
        found = self._read("select tags from taggers where tagger = ?", tagger)
        if not found:
            return None
        names, categories = json.loads(found[0][0])
        rows = self._read("select digest, row from scores where tagger = ?", tagger)
        return ScoreTable(TagList(tuple(names), tuple(categories)), {digest: _row(data) for digest, data in rows})

    def taggers(self) -> list[str]:
        """The taggers that were asked here."""
        return [tagger for (tagger,) in self._read("select tagger from taggers order by tagger")]

    # ---- captions ----------------------------------------------------------------------------------------------------

    def captions(self, captioner: str) -> dict[str, str]:
        """All that a captioner said, by content."""
        return dict(self._read("select digest, text from captions where captioner = ?", captioner))

    def captioners(self) -> list[str]:
        """Those that have said something here."""
        return [name for (name,) in self._read("select distinct captioner from captions order by captioner")]

    def keep_captions(self, captioner: str, texts: Mapping[str, str]) -> None:
        """Keeps texts by content. Raises OSError."""
        self._write("insert or replace into captions values (?, ?, ?)", [(captioner, digest, text) for digest, text in texts.items()])

    # ---- files -------------------------------------------------------------------------------------------------------

    def digests(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The contents of those files that have the size and time they had when they were read last."""
        rows = {path: (size, time, digest) for path, size, time, digest in self._read("select path, size, time, digest from files")}
        found = {}
        for path in paths:
            size, time, digest = rows.get(self._name(path), (None, None, ""))
            if digest and _stamp(path) == (size, time):
                found[path] = digest
        return found

    def remember(self, read: Mapping[Path, tuple[tuple[int, int], str]]) -> None:
        """Keeps what files were read as: `stamp_of` before a file was read, and its content. Raises OSError."""
        self._write("insert or replace into files values (?, ?, ?, ?)", [(self._name(path), *stamp, digest) for path, (stamp, digest) in read.items()])

    def _name(self, path: Path) -> str:
        name = Path(os.path.abspath(path)).as_posix().removeprefix(f"{self.folder.as_posix().rstrip('/')}/")
        return name.encode("utf-8", "backslashreplace").decode()  # a name on the disk may be bytes that are no text

    def _read(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            return self._base.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self.path} cannot be read ({error}); delete it, and the pictures are tagged anew.") from error

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            with self._base:
                self._base.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self.path} cannot be written ({error}); make room on the disk and check that its folder is writable.") from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        return stamp_of(os.stat(path))
    except OSError:
        return -1, -1


def stamp_of(stat: os.stat_result) -> tuple[int, int]:
    """What changes when a file is written: its size in bytes and its time in nanoseconds."""
    return stat.st_size, stat.st_mtime_ns
