"""What was done to the crops of a folder, so that it can be taken back: each act with the crops as they were, in a file of the side folder.

    .tuner/crop-acts/000012.json    {"version": 1, "name": "approve", "run": "", "before": {"10_cat/a.png": {...}, "b.png": null}, "after": {"10_cat/a.png": "5f0c..."}}

`before` are records as crops.json has them, null where there was none; `after` are their marks, by which it is seen that nobody has changed them since.
An act is written before the crops are, and goes where they cannot be; so what crops.json says can be taken back, whenever a program ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..disk import atomic, json_bytes
from .crop_file import Book, Noting, PictureCrops, crops_file, mark, record_of, row_of
from .journal import Limits

FOLDER, VERSION = "crop-acts", 1
NAMES = ("find", "change", "approve")
LIMITS = Limits(entries=100, size=64 << 20)


class Overtaken(ValueError):
    """The crops are no longer as the act left them."""


@dataclass(frozen=True)
class Act:
    """One thing that was done: the crops of its pictures before it, and the marks of those after it. Acts of one `run` are one."""

    number: int
    name: str
    before: Mapping[str, PictureCrops | None]
    after: Mapping[str, str]
    run: str = ""

    def taken_back(self, book: Book) -> Book:
        """The crops without it. Raises Overtaken where somebody has changed one of them since.

        One that is as before counts as taken back: a program that ended between writing the act and the crops has not changed it.
        """
        if any(book.get(key) != self.before.get(key) and mark(book.get(key)) != after for key, after in self.after.items()):
            raise Overtaken("These crops were changed by another program since, so nothing was taken back; set them anew where they are not as you want them.")
        kept = {key: record for key, record in book.items() if key not in self.before}
        return {**kept, **{key: record for key, record in self.before.items() if record}}

    def and_then(self, later: Act) -> Act:
        """Both as one."""
        return Act(self.number, self.name, {**later.before, **self.before}, {**self.after, **later.after}, self.run)


class Acts:
    """The acts of a folder that can be taken back, the last one first; these are kept in memory alone."""

    def __init__(self) -> None:
        self._kept: list[Act] = []

    def last(self) -> Act | None:
        """The one that would be taken back."""
        return self._kept[-1] if self._kept else None

    def put(self, act: Act) -> None:
        """Keeps an act, or another form of the last one."""
        self._kept = [*(one for one in self._kept if one.number != act.number), act][-LIMITS.entries :]

    def drop(self, act: Act) -> None:
        """Forgets an act."""
        self._kept = [one for one in self._kept if one.number != act.number]

    def noting(self, name: str, run: str = "") -> Noting:
        """For `change_crops`: keeps what is changed as an act of this name."""

        @contextmanager
        def noted(before: Book, after: Book) -> Iterator[None]:
            last = self.last()
            act = _act((last.number if last else 0) + 1, name, before, after, run)
            joined = last.and_then(act) if last and run and last.run == run else None
            self.put(joined or act)
            try:
                yield
            except BaseException:
                if joined and last:
                    self.put(last)
                else:
                    self.drop(act)
                raise

        return noted


class KeptActs(Acts):
    """The same in files, so that a later program can take them back too."""

    def __init__(self, folder: str | Path, side: str | Path | None = None):
        super().__init__()
        self._folder = crops_file(folder, side).parent / FOLDER
        self._read: tuple[Path, tuple[int, int], Act] | None = None

    def last(self) -> Act | None:
        """The newest that can be read."""
        for path in reversed(self._files()):
            try:
                found = path.stat()
                stamp = (found.st_mtime_ns, found.st_size)
                if self._read is None or self._read[:2] != (path, stamp):
                    self._read = path, stamp, _read(path)
                return self._read[2]
            except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
                continue  # a damaged one cannot be taken back, and an older one is checked by its marks
        return None

    def put(self, act: Act) -> None:
        """As above. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        before = {key: record and row_of(record) for key, record in act.before.items()}
        data = json_bytes({"version": VERSION, "name": act.name, "run": act.run, "before": before, "after": dict(act.after)}, separators=(",", ":"))
        with atomic(self._path(act)) as temporary:
            temporary.write_bytes(data)
        self._forget_old()

    def drop(self, act: Act) -> None:
        """As above. Raises OSError."""
        self._path(act).unlink(missing_ok=True)

    def _path(self, act: Act) -> Path:
        return self._folder / f"{act.number:06}.json"

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*.json") if path.stem.isdecimal())

    def _forget_old(self) -> None:
        """The newest always stays."""
        size = 0
        for count, path in enumerate(reversed(self._files())):
            size += os.stat(path).st_size
            if count and (count >= LIMITS.entries or size > LIMITS.size):
                path.unlink(missing_ok=True)


def _act(number: int, name: str, before: Book, after: Book, run: str) -> Act:
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return Act(number, name, {key: before.get(key) for key in changed}, {key: mark(after.get(key)) for key in changed}, run)


def _read(path: Path) -> Act:
    value = json.loads(path.read_bytes())
    if value["version"] != VERSION or value["name"] not in NAMES:
        raise KeyError(value["name"])  # of a newer Tuner
    before = {key: row and record_of(row) for key, row in value["before"].items()}
    return Act(int(path.stem), value["name"], before, {key: str(after) for key, after in value["after"].items()}, str(value["run"]))
