"""The crops of a data folder as data, in one file of its side folder; the pictures themselves are never changed.

    .tuner/crops.json    {"version": 1, "pictures": {"10_cat/a.png": {"size": [w, h], "digest": sha256, "found": "face", "subjects": [[l, t, r, b]],
                                                                     "crops": [{"x": .5, "y": .4, "zoom": 1.0, "target": "", "state": "auto"}]}}}

One picture a line. Paths are relative to the data folder, so it can be renamed; x, y and subjects are fractions of the picture upright, so another target needs no new drag.
The digest says for which bytes they were made: a picture that was changed since has stale crops, which nothing applies.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import absolute, atomic, json_bytes, take_lock
from .buckets import Size
from .crop import Box, Frame, Target
from .item import Item
from .journal import SIDE

NAME, VERSION = "crops.json", 1
STATES = ("auto", "adjusted", "approved")  # found by the program, moved by a person, seen and accepted
_PATIENCE = 2.0  # s for which another program's write is waited


@dataclass(frozen=True)
class Crop:
    """One crop of a picture. `target` is its own size (`512x768`, `bucket:512`); empty: that of the whole data set."""

    frame: Frame = Frame()
    target: str = ""
    state: str = "auto"

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"A crop is {', '.join(STATES)}, not {self.state!r}.")
        if self.target:
            Target.parse(self.target)


@dataclass(frozen=True)
class PictureCrops:
    """The crops of one picture: for which picture they were made, what its subjects are (boxes in fractions), and how they were found."""

    size: Size
    digest: str
    crops: tuple[Crop, ...] = (Crop(),)
    subjects: tuple[Box, ...] = ()
    found: str = "centre"

    def is_stale(self, item: Item) -> bool:
        """Whether the picture has changed since."""
        return self.size != item.size or self.digest != item.digest

    @property
    def touched(self) -> bool:
        """Whether a person has set or accepted one of them."""
        return any(crop.state != "auto" for crop in self.crops)


Book = Mapping[str, PictureCrops]  # by the picture's path within the folder
Noting = Callable[[Book, Book], AbstractContextManager[None]]  # what holds around the writing of a book, which is given before and after


def key_of(folder: str | Path, path: Path) -> str:
    """What a picture is called in the book."""
    return path.relative_to(absolute(folder)).as_posix()


def crops_file(folder: str | Path, side: str | Path | None = None) -> Path:
    """Where the crops of a folder lie; `side` is another side folder."""
    return absolute(side or Path(folder) / SIDE) / NAME


def unnoted(before: Book, after: Book) -> AbstractContextManager[None]:
    """A change that nothing keeps."""
    return nullcontext()


def read_crops(folder: str | Path, side: str | Path | None = None) -> Book:
    """The crops that are kept of a folder. Raises as `CropsFile.read`."""
    return CropsFile(folder, side).read()


def change_crops(folder: str | Path, change: Callable[[Book], Book], side: str | Path | None = None, noting: Noting = unnoted) -> Book:
    """Changes them. Raises as `CropsFile.change`."""
    return CropsFile(folder, side).change(change, noting)


class CropsFile:
    """The crops of a folder in their file, which is read only where it is another one than it was last; of ten thousand pictures a drag changes one."""

    def __init__(self, folder: str | Path, side: str | Path | None = None):
        self._path = crops_file(folder, side)
        self._stamp: tuple[int, int, int] | None = None
        self._book: Book = {}
        self._lines: dict[str, bytes] = {}  # what records of the book are in the file, where that is known

    def read(self) -> Book:
        """The crops, none where there is no file: the same object until they change. Raises ValueError for a file that is damaged or of a newer Tuner, OSError."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._book, self._lines, self._stamp = _read(self._path), {}, stamp
        return self._book

    def change(self, change: Callable[[Book], Book], noting: Noting = unnoted) -> Book:
        """Reads the crops, changes them and writes them, while no other program can; returns them. `noting` is what holds around the writing (`Acts.noting`).

        Raises ValueError where the file is damaged or another program does not end writing it, OSError where it cannot be written; then it is as before.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._path):
            before = self.read()
            after = dict(change(before))
            if after != before:
                lines = {key: self._line(key, after[key]) for key in sorted(after)}
                with noting(before, after), atomic(self._path) as temporary:
                    temporary.write_bytes(b'{"version": %d, "pictures": {\n%b\n}}\n' % (VERSION, b",\n".join(lines.values())))
                self._book, self._lines, self._stamp = after, lines, _stamp(self._path)
            return self._book

    def _line(self, key: str, record: PictureCrops) -> bytes:
        known = self._lines.get(key)
        return known if known and self._book.get(key) is record else json_bytes({key: row_of(record)})[1:-1]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> Book:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        value = json.loads(data)
        version = value["version"]
        if version == VERSION:
            return {key: record_of(row) for key, row in value["pictures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged and was left alone ({type(error).__name__}: {error}); move it away to start with new crops.") from error
    raise ValueError(f"{path} is of version {version}, and this Tuner reads version {VERSION}; update the Tuner, or move the file away.")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path.with_name(f"{NAME}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + _PATIENCE
        while not _taken(descriptor):
            if time.monotonic() > end:
                raise ValueError(f"{path} is being written by another program; try again when it is done.")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        take_lock(descriptor)
    except OSError:
        return False
    return True


def row_of(record: PictureCrops) -> dict[str, Any]:
    """A record as JSON has it."""
    crops = [{"x": float(c.frame.x), "y": float(c.frame.y), "zoom": float(c.frame.zoom), "target": c.target, "state": c.state} for c in record.crops]
    return {"size": list(record.size), "digest": record.digest, "found": record.found, "subjects": [list(map(float, box)) for box in record.subjects], "crops": crops}


def record_of(row: dict[str, Any]) -> PictureCrops:
    """The record again. Raises ValueError, KeyError or TypeError for what is none."""
    crops = tuple(Crop(Frame(float(c["x"]), float(c["y"]), float(c["zoom"])), str(c["target"]), str(c["state"])) for c in row["crops"])
    (w, h), subjects = row["size"], tuple(tuple(map(float, box)) for box in row["subjects"])
    if any(len(box) != 4 for box in subjects):
        raise ValueError("a box has four numbers")
    return PictureCrops((int(w), int(h)), str(row["digest"]), crops, subjects, str(row["found"]))


def mark(record: PictureCrops | None) -> str:
    """What tells one picture's crops from others; empty for none."""
    return hashlib.sha256(json.dumps(row_of(record)).encode()).hexdigest()[:16] if record else ""
