"""The crops of an open folder, as the page and scripts see and change them: found, moved by hand, approved, written out.

    crops = FolderCrops.of(opened)                      # one for each open folder; also makes the filter's `crop:` and `problem:` true
    crops.find(scope, cfg); crops.read(rows, cfg); crops.change(row, [Crop(...)], cfg); crops.export(scope, cfg, how)

The geometry that a page needs to draw and drag a frame goes along with each crop, in fractions of the upright picture: the sides of its largest frame, and by
how much that one is enlarged. What a person sets is on the disk when the order is answered, in .tuner/crops.json; pictures are never changed.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from .config import options
from .data.crop_acts import Acts, KeptActs, Overtaken
from .data.crop_export import Exported, export
from .data.crop_file import Book, Crop, CropsFile, Noting, PictureCrops, mark, unnoted
from .data.crop_names import ExportConfig, named
from .data.crop_plan import CropConfig, Piece, pieces, problems_of, propose
from .data.crop_view import inside, shown
from .data.file_names import Names
from .data.focal import Detector, face_detector
from .data.item import Item
from .data.items import Problem, item_of
from .data.pictures import load
from .data.sources import digest
from .data.tag_scores import ScoreStore, stamp_of
from .datasets import SHOWN_PROBLEMS, OpenFolder, Scope
from .settings import DataConfig
from .work import Told

BATCH = 200  # pictures after which what was found is written, or a tenth of those with crops, so that a power cut costs no more
HAND = "hand"  # how a crop was found that a person has set on a picture without any
_NOT_ASKED = ("no caption", "clash", "duplicate", "repeats")  # of a scan: what does not matter here
Stamp = tuple[int, int]


class FolderCrops:
    """The crops of one open folder; what it keeps in memory alone is which file has which content."""

    def __init__(self, opened: OpenFolder):
        self.opened, self.library, self.folder = opened, opened.library, opened.library.folder
        self.cfg = CropConfig()  # as whoever asked last has it: by it crops have problems
        self._file = CropsFile(self.folder)
        self._book: Book = {}
        self._read: Book = {}  # the book as the file has it, where that cannot be written
        self._digests: dict[Path, tuple[Stamp, str]] = {}
        self._acts = KeptActs(self.folder) if self.library.journal else Acts()
        self._zip: tuple[Path, Stamp | None] | None = None  # that the last export has made
        self.library.crops, self.library.crop_troubles = self._state, self._troubles

    @classmethod
    def of(cls, opened: OpenFolder) -> FolderCrops:
        """Those of an open folder."""
        return opened.part(cls, lambda: cls(opened)._ready())

    def _ready(self) -> FolderCrops:
        with suppress(ValueError, OSError):  # a damaged file is said where crops are asked for; the captions can be edited all the same
            self._load()
        return self

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def read(self, rows: Iterable[int], cfg: CropConfig) -> dict[str, Any]:
        """The crops of each row that is there. Raises ValueError where the file of crops is damaged, OSError."""
        with self.opened.lock:
            self._load(cfg)
            return {"crops": [self._row(row) for row in dict.fromkeys(rows) if row in self.library.pictures], "version": self.opened.version}

    def summary(self, cfg: CropConfig) -> dict[str, Any]:
        """How many pictures have crops in each state, and problems of each kind. Raises as `read` does."""
        with self.opened.lock:
            self._load(cfg)
            return self._summary()

    def _summary(self) -> dict[str, Any]:
        count = len(self.library.pictures)
        more = {"undo": self._undo(), "version": self.opened.version, "zip": self._zip[0].name if self._zip and _stamp(self._zip[0]) == self._zip[1] else ""}
        if not self._book:
            return {"pictures": count, "states": {"none": count}, "troubles": {}, **more}
        paths = self.library.pictures.values()
        states, kinds = Counter(map(self._state, paths)), Counter(kind for path in paths for kind in self._troubles(path))
        return {"pictures": count, "states": dict(states), "troubles": dict(kinds), **more}

    def _undo(self) -> dict[str, Any] | None:
        """What would be taken back."""
        act = self._acts.last()
        return act and {"number": act.number, "name": act.name, "pictures": len(act.before)}

    def _row(self, row: int) -> dict[str, Any]:
        path = self.library.pictures[row]
        record, state = self._book.get(self._key(path)), self._state(path)
        if record is None:
            return {"row": row, "state": state, "mark": "", "size": None, "found": "", "crops": [], "troubles": [], "told": []}
        problems = self._problems(path, record)
        return {
            "row": row, "state": state, "mark": mark(record), "size": record.size, "found": record.found, "crops": [shown(record, crop, self.cfg) for crop in record.crops],
            "troubles": list(dict.fromkeys(problem.kind for problem in problems)), "told": [str(problem) for problem in problems if problem.kind != "review"],
        }  # fmt: skip

    # ---- what is done ------------------------------------------------------------------------------------------------

    def change(self, row: int, crops: Sequence[Crop], cfg: CropConfig, was: str | None = None) -> dict[str, Any]:
        """Sets the crops of one row, none to take them away; frames are pushed inside the picture. `was` is the mark of those that somebody saw before.

        Raises ValueError, also where they are others by now, OSError.
        """
        with self.opened.lock:
            self._load(cfg)
            path = self.library.picture(row)
            key, records = self._key(path), {}
            if crops:
                record = self._fresh(path)
                records = {key: replace(record, crops=tuple(inside(record, crop, cfg) for crop in crops))}
            self._write(lambda kept: {**_without(_seen(kept, key, was), key), **records}, self._acts.noting("change"))
            self._remember(records)
            return {**self._row(row), "undo": self._undo(), "version": self.opened.version}

    def approve(self, scope: Scope, cfg: CropConfig, was: str | None = None) -> dict[str, Any]:
        """Approves all crops of a scope but those that are stale; how many pictures that changed. `was` as above, where the scope is one row.

        Raises ValueError, OSError.
        """
        with self.opened.lock:
            self._load(cfg)
            paths = [self.library.pictures[row] for row in scope.of(self.library)]
            for path in paths:
                _seen(self._book, self._key(path), was)
            records = {self._key(path): self._book[self._key(path)] for path in paths if self._state(path) in ("auto", "adjusted")}
            approved = {key: replace(record, crops=tuple(replace(crop, state="approved") for crop in record.crops)) for key, record in records.items()}
            self._keep(approved, True, self._acts.noting("approve"))
            return {"approved": len(records), **self._summary()}

    def undo(self, number: int, cfg: CropConfig) -> dict[str, Any]:
        """Takes the last act back; `number` is the one that is meant. Raises ValueError where it is not the last or its crops were changed since, OSError."""
        with self.opened.lock:
            self._load(cfg)
            act = self._acts.last()
            if act is None or act.number != number:
                raise ValueError("Something else was done meanwhile; look at what Undo says now.")
            try:
                self._write(act.taken_back)
            except Overtaken:
                self._acts.drop(act)  # it never can be, and would stand before those that can
                raise
            self._acts.drop(act)
            return {"rows": [row for row, path in self.library.pictures.items() if self._key(path) in act.before], **self._summary()}

    def find(self, scope: Scope, cfg: CropConfig, again: bool = False) -> dict[str, Any]:
        """Sets to work on finding crops. What a person has set stays, unless `again`. Raises ValueError, OSError."""
        detector = face_detector() if cfg.focus in ("auto", "face") else None
        if cfg.focus == "face" and detector is None:
            raise ValueError("Faces need the package opencv-python-headless: install it, or choose auto or detail.")
        with self.opened.lock:
            self._load(cfg)
            paths = [self.library.pictures[row] for row in scope.of(self.library)]
            wanted = [path for path in paths if again or not self._touched(self._book.get(self._key(path)))]
        return self.opened.begin("crop", lambda told: self._find(wanted, cfg, detector, again, told) | {"kept": len(paths) - len(wanted)})

    def export(self, scope: Scope, cfg: CropConfig, how: ExportConfig, out: str = "", as_zip: bool = False) -> dict[str, Any]:
        """Sets to work on writing the crops of a scope. Raises ValueError, OSError."""
        with self.opened.lock:
            self._load(cfg)
            chosen = {self.library.pictures[row]: self._book.get(self._key(self.library.pictures[row])) for row in scope.of(self.library)}
        records = {path: record for path, record in chosen.items() if record}
        if not records:
            raise ValueError("None of these pictures has a crop yet; find crops first.")
        target = self._target(out, as_zip)
        how = how if out.strip() else replace(how, existing="next")
        return self.opened.begin("crop-export", lambda told: self._export(records, cfg, how, target, told))

    def made_zip(self) -> Path:
        """The ZIP that the last export has made, if that was one. Raises ValueError."""
        path, stamp = self._zip or (None, None)
        if path is None:
            raise ValueError("No ZIP was saved last; save the crops as ZIP first.")
        if _stamp(path) != stamp:
            raise ValueError(f"{path} is not there any more as it was saved; save the crops as ZIP again.")
        return path

    # ---- the work ----------------------------------------------------------------------------------------------------

    def _find(self, paths: Sequence[Path], cfg: CropConfig, detector: Detector | None, again: bool, told: Told) -> dict[str, Any]:
        noting = self._acts.noting("find", secrets.token_hex(4))  # what is found in one go is one act
        found: dict[str, PictureCrops] = {}
        problems: list[Problem] = []
        count = 0
        try:
            for done, path in enumerate(paths):
                told(done, len(paths))
                try:
                    found[self._key(path)] = self._proposed(path, cfg, detector)
                    count += 1
                except (ValueError, OSError) as error:
                    problems.append(_unread(path, error))
                if len(found) >= max(BATCH, len(self._book) // 10):  # each time the whole file is written
                    self._keep(found, again, noting)
                    found = {}
            told(len(paths), len(paths))
        finally:  # also where it was stopped: what was found is good
            self._keep(found, again, noting)
        with self.opened.lock:
            return {"found": count, "problems": len(problems), "told": [str(problem) for problem in problems[:SHOWN_PROBLEMS]], **self._summary()}

    def _proposed(self, path: Path, cfg: CropConfig, detector: Detector | None) -> PictureCrops:
        stamp, data = stamp_of(os.stat(path)), path.read_bytes()
        item = Item(path, "", digest=digest(data))
        picture, _ = load(item, data)
        self._digests[path] = stamp, item.digest
        return propose(replace(item, size=picture.size), picture, cfg, detector)

    def _export(self, records: Mapping[Path, PictureCrops], cfg: CropConfig, how: ExportConfig, target: Path, told: Told) -> dict[str, Any]:
        data, total = DataConfig(folder=str(self.folder), masks=how.masks, caption_from="file", caption_extension=how.captions), len(records)
        made, problems, names = list[Piece](), list[Problem](), Names()
        for done, (path, record) in enumerate(records.items()):
            told(done, 2 * total)
            item, wrong = item_of(path, data, names)
            some, found = pieces(item, record, cfg) if item else ([], [])
            made += some
            problems += [*(problem for problem in wrong if problem.kind not in _NOT_ASKED), *found]
        if not made:
            raise ValueError(f"There is nothing to write: {problems[0]}" if problems else "There is nothing to write: choose a smaller size, or allow an enlargement.")
        outputs, unmirrored = named(made, self.folder, how)
        with closing(export(outputs, self.folder, target, how)) as events:
            for event in events:
                if isinstance(event, Exported):
                    problems += [*unmirrored, *event.problems]
                    self._zip = (event.path, _stamp(event.path)) if event.path.is_file() else None
                    return {"path": str(event.path), "zip": self._zip is not None, "pictures": event.pictures, "problems": len(problems), "told": [str(problem) for problem in problems[:SHOWN_PROBLEMS]]}
                told(total + total * event.done // event.total, 2 * total)
        raise AssertionError("an export ends with what it wrote")

    def _target(self, out: str, as_zip: bool) -> Path:
        """Where crops go: as named, from the folder that the data folder is in; else beside the data folder."""
        name = out.strip().strip('"')
        if "\0" in name:
            raise ValueError(f"{name!r} is no path.")
        path = self.folder.parent / os.path.expanduser(name or f"{self.folder.name}-crops")
        if as_zip:
            return path if path.suffix.lower() == ".zip" else path.with_name(f"{path.name}.zip")
        if path.suffix.lower() == ".zip":
            raise ValueError(f"{path} is the name of a ZIP; name a folder, or save as ZIP.")
        return path if name else _free(path)

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def _load(self, cfg: CropConfig | None = None) -> None:
        """Reads the crops anew where another program has changed them."""
        if cfg:
            cfg.check()  # by these settings the filter asks from now on
            self.cfg = cfg
        held = self._held()
        if self.library.journal and not isinstance(self._acts, KeptActs):  # it can be written now
            self._acts = KeptActs(self.folder)
            if held:
                self._book = self._read = self._file.change(lambda kept: {**kept, **held})
        read = self._file.read()
        if read is not self._read:
            first, self._book, self._read = not self._book, {**read, **self._held()}, read
            if first and read:
                self._recall()

    def _held(self) -> Book:  # what was set while nothing could be written here, and is in memory alone
        return {} if isinstance(self._acts, KeptActs) else {key: record for key, record in self._book.items() if self._read.get(key) != record}

    def _keep(self, records: Book, again: bool, noting: Noting) -> None:
        """Writes crops of some pictures; `again`: also over what a person has set."""
        if records:
            with self.opened.lock:
                self._write(lambda kept: {**kept, **{key: record for key, record in records.items() if again or not self._touched(kept.get(key))}}, noting)
            self._remember(records)

    def _write(self, change: Callable[[Book], Book], noting: Noting = unnoted) -> None:
        if self.library.journal is None:  # nothing can be written here; crops can be exported all the same
            after = dict(change(self._book))
            if after != self._book:
                with noting(self._book, after):
                    self._book = after
        else:
            self._book = self._read = self._file.change(change, noting)
        self.opened.version += 1

    def _fresh(self, path: Path) -> PictureCrops:
        """What is kept of a picture, or a new record where it has none or has changed since."""
        record = self._book.get(self._key(path))
        if record and record.digest == self._digest(path):
            return record
        stamp, data = stamp_of(os.stat(path)), path.read_bytes()
        item = Item(path, "", digest=digest(data))
        self._digests[path] = stamp, item.digest
        return PictureCrops(load(item, data)[0].size, item.digest, (), (), HAND)

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()  # `key_of`, for a folder that is absolute: it is asked for each picture

    @staticmethod
    def _touched(record: PictureCrops | None) -> bool:
        return record is not None and record.touched

    # ---- what the filter asks ----------------------------------------------------------------------------------------

    def _state(self, path: Path) -> str:
        """none, stale, or that of its least finished crop."""
        record = self._book.get(self._key(path))
        if record is None or not record.crops:
            return "none"
        if record.digest != self._digest(path):
            return "stale"
        states = {crop.state for crop in record.crops}
        return next(state for state in ("auto", "adjusted", "approved") if state in states)

    def _troubles(self, path: Path) -> tuple[str, ...]:
        record = self._book.get(self._key(path))
        return tuple(dict.fromkeys(problem.kind for problem in self._problems(path, record))) if record else ()

    def _problems(self, path: Path, record: PictureCrops) -> tuple[Problem, ...]:
        return _problems(path, record, self._digest(path), self.cfg)

    def _digest(self, path: Path) -> str:
        """The content of a file, which is read when it has changed; empty where it is gone."""
        try:
            stamp = stamp_of(os.stat(path))
            known = self._digests.get(path)
            if known is None or known[0] != stamp:
                known = self._digests[path] = stamp, digest(path.read_bytes())
            return known[1]
        except OSError:
            return ""

    def _recall(self) -> None:
        """Which file has which content, from when it was read last: a folder of ten thousand pictures is not read to be opened."""
        with suppress(OSError):
            if self.library.journal:
                with ScoreStore(self.folder) as store:
                    for path, content in store.digests(self.library.pictures.values()).items():
                        self._digests.setdefault(path, (stamp_of(os.stat(path)), content))

    def _remember(self, records: Iterable[str]) -> None:
        with suppress(OSError):
            if self.library.journal:
                with ScoreStore(self.folder) as store:
                    store.remember({path: self._digests[path] for path in (self.folder / key for key in records) if path in self._digests})


# ---- pure parts ------------------------------------------------------------------------------------------------------


def crop_fields() -> list[dict[str, Any]]:
    """The settings of cropping and of an export, for whoever draws a form."""
    return [
        {"key": o.key, "of": of, "kind": "choice" if o.choices else {bool: "flag", str: "text"}.get(o.type, "number"), "label": o.label, "help": o.help,
         "choices": list(o.choices or ()), "value": o.default if o.type is bool else f"{o.default:g}" if o.type is float else str(o.default)}
        for of, kind in (("crop", CropConfig), ("export", ExportConfig)) for o in options(kind)
    ]  # fmt: skip


@lru_cache(maxsize=1 << 15)
def _problems(path: Path, record: PictureCrops, content: str, cfg: CropConfig) -> tuple[Problem, ...]:
    """A picture whose content is that of its record has its size too, so nothing is decoded."""
    return tuple(problems_of(Item(path, "", size=record.size, digest=content), record, cfg))


def _without(book: Book, key: str) -> Book:
    return {other: record for other, record in book.items() if other != key}


def _seen(book: Book, key: str, was: str | None) -> Book:
    """The book, where the crops of a picture are those that somebody saw before changing them."""
    if was is not None and mark(book.get(key)) != was:
        raise ValueError("The crops of this picture were changed elsewhere meanwhile, so nothing was changed; look at them as they are now.")
    return book


def _free(path: Path) -> Path:
    """The path, or with the first number that is not taken."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}_{number}")
    return found


def _unread(path: Path, error: ValueError | OSError) -> Problem:
    return Problem(path, f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ").rstrip("."))


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells that a file is another one; None where there is none."""
    try:
        return stamp_of(os.stat(path))
    except FileNotFoundError:
        return None
