"""The data folders that the page and scripts have open: what they show, and what is done to them, as JSON has it.

A client names pictures by numbers (rows) and folders by ids, never by paths; so nothing outside a folder that a user has opened can be asked for.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from .data.edits import OPERATIONS, Edit, Plan
from .data.filter_hints import hints
from .data.journal import SIDE, Partly
from .data.journal_file import Entry
from .data.kept_scores import KeptScores
from .data.library import Library
from .data.tag_edits import key
from .data.tagger import Tagger
from .data.thumbnails import thumbnail
from .disk import absolute
from .host import Captioner
from .work import Progress, Told, Work

Part = TypeVar("Part")
OPEN = 4  # folders at once; the one that was asked for longest ago is closed
PLANS = 8  # that are kept until they are carried out
SHOWN_PROBLEMS = 200
PATIENCE = 10.0  # s that work has to end when its folder is closed
ID = 8  # bytes of chance: whoever may use the routes may open folders, so an id keeps apart, not out


@dataclass(frozen=True)
class Scope:
    """Which pictures an edit is for: these rows, or those that the filter names, or all."""

    rows: tuple[int, ...] | None = None
    filter: str = ""

    def of(self, library: Library) -> list[int]:
        """The rows. Raises ValueError for a filter that is none."""
        if self.rows is None:
            return library.find(self.filter)
        there = [row for row in dict.fromkeys(self.rows) if row in library.pictures]
        if self.rows and not there:
            raise ValueError("That picture is not in the folder any more; read the folder anew.")
        return there


class OpenFolder:
    """One open folder. Everything is done one after the other: requests come in many threads."""

    def __init__(self, library: Library, identity: str = ""):
        self.id, self.library, self.identity = secrets.token_hex(ID), library, identity
        self.version = 0  # goes up with each change, so that a page knows that another one has changed something
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self.lock = threading.RLock()
        self._work: Work | None = None
        self._writing: Progress | None = None  # files are being written; whoever looks need not wait for the lock
        self.kept = library.scores = KeptScores(library.folder, lambda: library.pictures.values())
        self._parts: dict[type, Any] = {}

    def part(self, kind: type[Part], make: Callable[[], Part]) -> Part:
        """What another part of the panel (crops, tagger, checks) knows of this folder; `make` makes it where it is first asked for."""
        with self.lock:
            if kind not in self._parts:
                self._parts[kind] = make()
            return self._parts[kind]

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """The folder, what is wrong in it, and what can be taken back."""
        with self.lock:
            library = self.library
            problems = Counter(problem.kind for problem in library.problems)
            return {
                "id": self.id, "folder": str(library.folder), "name": library.folder.name, "pictures": len(library.pictures), "version": self.version,
                "editable": library.journal is not None, "reason": library.reason, "problems": dict(problems),
                "told": [str(problem) for problem in library.problems[:SHOWN_PROBLEMS]], **self._history(),
            }  # fmt: skip

    def found(self, line: str) -> dict[str, Any]:
        """Rows that a filter names, in the order of the folder; where there are none, hints why."""
        with self.lock:
            rows = self.library.find(line)
            return {"rows": rows, "version": self.version, "hints": [] if rows else hints(line, self.library)}

    def details(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """What a cell and the large view show of each row that is there."""
        with self.lock:
            return [self._row(row) for row in dict.fromkeys(rows) if row in self.library.pictures]

    def tags(self, line: str = "", like: str = "", limit: int = 500) -> dict[str, Any]:
        """Tags with their counts among the rows that a filter names, the most frequent first; `like` is part of their names."""
        with self.lock:
            library = self.library
            if line.strip():
                counts = Counter(tag for row in library.find(line) for tag in set(library.tags(row)))
            else:
                counts = Counter(library.index.counts())
            part = key(like)
            fitting = [(tag, count) for tag, count in counts.items() if part in key(tag)]
            fitting.sort(key=lambda pair: (-pair[1], pair[0]))
            return {"tags": fitting[:limit], "distinct": len(fitting), "version": self.version}

    def thumbnail(self, row: int, side: int) -> bytes:
        """A row's picture in small. Raises ValueError, OSError."""
        path = self.library.picture(row)
        return thumbnail(path, side, self.library.folder / SIDE if self.library.journal else None)

    def history(self) -> list[dict[str, Any]]:
        """What was done, the newest first."""
        with self.lock:
            entries = self.library.journal.entries() if self.library.journal else []
            return [_entry(entry) for entry in reversed(entries)]

    def _row(self, row: int) -> dict[str, Any]:
        library = self.library
        caption = library.caption(row)
        return {
            "row": row, "name": library.name(row), "place": library.place(row), "text": caption.text, "tags": list(caption.tags), "is_text": caption.lines[0].is_text,
            "lines": len(caption.lines), "tokens": library.tokens(row), "crop": library.crop(row), "troubles": list(library.troubles(row)),
        }  # fmt: skip

    def _history(self) -> dict[str, Any]:
        entries = self.library.journal.entries() if self.library.journal else []
        done, undone = [e for e in entries if e.state == "applied"], [e for e in entries if e.state == "undone"]
        return {"undo": _entry(done[-1]) if done else None, "redo": _entry(undone[0]) if undone else None}

    # ---- what is done ------------------------------------------------------------------------------------------------

    def plan(self, edit: Edit, scope: Scope) -> dict[str, Any]:
        """What an edit would change; it is kept for `apply`. Raises ValueError."""
        with self.lock:
            return self.planned(self.library.plan(edit, scope.of(self.library)))

    def planned(self, planned: Plan) -> dict[str, Any]:
        """A plan as it is shown before it is carried out."""
        name = secrets.token_hex(4)
        self._plans[name] = planned
        while len(self._plans) > PLANS:
            self._plans.popitem(last=False)
        samples = [{"name": path.name, "before": before, "after": after} for path, before, after in planned.samples()]
        return {"plan": name, "changes": len(planned.changes), "total": planned.total, "emptied": planned.emptied, "samples": samples,
                "told": [str(problem) for problem in planned.problems[:SHOWN_PROBLEMS]]}  # fmt: skip

    def apply(self, name: str) -> dict[str, Any]:
        """Carries a plan out. Raises ValueError where there is no such plan or a file changed since, OSError."""
        with self.lock:
            planned = self._plans.pop(name, None)
            if planned is None:
                raise ValueError("That preview is too old; look at it anew.")
            return self._written("apply", lambda: self.library.apply(planned))

    def edit(self, edit: Edit, scope: Scope, was: str | None = None) -> dict[str, Any]:
        """Plans an edit and carries it out at once. `was` is the caption that somebody saw before typing another one: one that is different now is not lost.

        Raises as both do, and ValueError where nothing can be written.
        """
        with self.lock:
            rows = scope.of(self.library)
            if was is not None and any(_plain(self.library.text(row)) != _plain(was) for row in rows):
                raise ValueError("This caption was changed elsewhere meanwhile; read the folder anew, then look at it again.")
            planned = self.library.plan(edit, rows)
            if planned.problems and not planned.changes:
                raise ValueError(str(planned.problems[0]))
            return self._written("apply", lambda: self.library.apply(planned))

    def delete(self, scope: Scope) -> dict[str, Any]:
        """Moves pictures and captions to the folder's trash. Raises ValueError, OSError."""
        with self.lock:
            return self._written("delete", lambda: self.library.delete(scope.of(self.library)))

    def undo(self, number: int | None = None, partly: bool = True) -> dict[str, Any]:
        """Takes the last edit back; `number` is the one that is meant. Where files were changed since and it is not to be taken back `partly`, nothing is done,
        and `ask` is the question. Raises ValueError, also where that is not the last, OSError.
        """
        return self._turn("undo", number, lambda: self.library.undo(partly))

    def redo(self, number: int | None = None, partly: bool = True) -> dict[str, Any]:
        """Does again what was taken back last; the rest as above. Raises ValueError, OSError."""
        return self._turn("redo", number, lambda: self.library.redo(partly))

    def _turn(self, way: str, number: int | None, turn: Callable[[], Entry | None]) -> dict[str, Any]:
        with self.lock:
            entry = self._history()[way]
            if number is not None and (entry is None or entry["number"] != number):
                raise ValueError("Something else was done meanwhile; look at what Undo and Redo say now.")
            try:
                return self._written(way, turn)
            except Partly as question:
                return {**self._answer(None), "ask": str(question)}

    def read(self) -> dict[str, Any]:
        """Reads the folder anew; one that could not be edited may be by now."""
        with self.lock:
            self.library.try_again()
            self._changed(lambda: self.library.read())
            self.kept.forget()
            return self.about()

    # ---- what takes its time -----------------------------------------------------------------------------------------

    def begin(self, name: str, make: Callable[[Told], Any], **facts: Any) -> dict[str, Any]:
        """Sets long work going, one at a time: `make(told)` runs in a thread and takes `lock` itself where it needs it. Raises ValueError."""
        with self.lock:
            if self._work and self._work.going:
                raise ValueError("Something else is going in this folder; wait until it is done, or stop it.")
            self._work = Work(name, make, **facts).start()
            return self._work.status()

    def work(self) -> dict[str, Any] | None:
        """What is going, or was last: files that are being written, which cannot be stopped, or else long work."""
        now = self._writing or self._work
        return now and now.status()

    def stop(self, wait: float = 0.0) -> dict[str, Any] | None:
        """Asks the work that is going to end."""
        if self._work:
            self._work.stop(wait)
        return self.work()

    def _written(self, stage: str, work: Callable[[], Entry | None]) -> dict[str, Any]:
        """As `_changed`, and `work` of this folder tells how far it is."""
        writing = Progress("write", stoppable=False)
        writing.stage = stage  # also before the first file
        if self.library.journal:
            self.library.journal.told = lambda done, total: writing.told(done, total, stage)
        self._writing = writing
        try:
            return self._changed(work)
        finally:
            self._writing = None

    def _changed(self, work: Callable[[], Entry | None]) -> dict[str, Any]:
        entry = work()
        self._plans.clear()  # they saw what is no more
        self.version += 1
        return self._answer(entry)

    def _answer(self, entry: Entry | None) -> dict[str, Any]:
        return {"entry": entry and _entry(entry), "told": entry.told if entry else "", "version": self.version, "pictures": len(self.library.pictures), **self._history()}


class NotOpen(ValueError):
    """Of a folder that was closed, or opened before the program was started anew."""


class Datasets:
    """The open folders of one program. `taggers` are those that need no file, `captioners` the host's, by the names that a page shows."""

    def __init__(self, taggers: Mapping[str, Callable[[], Tagger]] = MappingProxyType({}), captioners: Mapping[str, Captioner] = MappingProxyType({})) -> None:
        self.captioners = captioners
        self.taggers = {name: lru_cache(maxsize=1)(make) for name, make in taggers.items()}
        self._open: OrderedDict[str, OpenFolder] = OrderedDict()
        self._lock = threading.Lock()
        self._gates: dict[str, threading.Lock] = {}
        self.joining: set[Callable[[OpenFolder], Any]] = set()  # what is joined to each folder that is opened

    def open(self, folder: str) -> OpenFolder:
        """Opens a folder, or gives the one that is open. Raises ValueError where there is none or no picture in it."""
        if not folder.strip() or "\0" in folder:
            raise ValueError("Name the folder that holds the pictures.")
        path = absolute(folder.strip().strip('"'))
        same = _identity(path)
        with self._lock:
            gate = self._gates.setdefault(same, threading.Lock())
        with gate:  # to read a large folder takes its time, and the others are not to wait for it
            with self._lock:
                known = next((opened for opened in self._open.values() if opened.identity == same), None)
            if known:
                known.read()
                return self[known.id]
            opened = OpenFolder(Library.open(path), same)
            for join in self.joining:
                join(opened)
            with self._lock:
                self._open[opened.id] = opened
                left = list(self._open)[:-OPEN]
            self.close(left)
            return opened

    def __getitem__(self, name: str) -> OpenFolder:
        """An open folder by its id. Raises NotOpen."""
        with self._lock:
            if name not in self._open:
                raise NotOpen("That folder is not open any more; open it again.")
            self._open.move_to_end(name)
            return self._open[name]

    def close(self, names: Sequence[str] | None = None) -> None:
        """Lets folders go, or all of them."""
        with self._lock:
            gone = [opened for name in (list(self._open) if names is None else names) if (opened := self._open.pop(name, None))]
        for opened in gone:
            opened.stop(wait=PATIENCE)
            with opened.lock:
                opened.library.close()


def _identity(folder: Path) -> str:
    """The same for a folder however it is spelled, by links or with other capitals: one that is open twice could not be edited the second time."""
    return os.path.normcase(os.path.realpath(folder))


def operations() -> list[dict[str, Any]]:
    """The edits there are, with what each takes, for whoever draws a form."""
    return [{"name": name, "arguments": [{"name": argument, "kind": Edit.kind_of(argument)[0].__name__} for argument in operation.arguments()]} for name, operation in OPERATIONS.items()]


def _entry(entry: Entry) -> dict[str, Any]:
    return {"number": entry.number, "edit": entry.name, "args": entry.args, "when": entry.when, "files": entry.files, "state": entry.state}


def _plain(text: str) -> str:
    """A caption as a browser's field has it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
