"""The journal of a data folder: what was changed lies on the disk before it changes, so that it can be undone, also by a later program.

In the side folder (`.tuner` in the data folder, unless another is given):
    journal/000007.applied.jsonl   one edit: a line on it, then one line per file with its content before and after
    trash/000007/...               files that were deleted, until somebody empties the folder
    lock                           held by the one program that may write

An entry's state is in its name, and changes by a rename: applying -> applied -> undoing -> undone -> applying (redo). An undo or redo leaves what somebody
changed since, and says so; where that is all, the entry is overtaken, and stands before none. The entry is synced once, before the
first caption is replaced; each caption is a temporary file that takes its place, so it is wholly as before or wholly as after. What was interrupted is
completed when the journal is opened next: the user had asked for it, and the words typed for it are in the journal only. What fails while the program
runs (a full disk, a file that another program changed) is taken back at once: then the user reads why, and nothing has changed.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn

from ..disk import absolute
from ..words import number_of
from .aside import Aside, free
from .folder_lock import is_held, locked
from .items import Problem
from .journal_file import Change, Entry, Move, advice, entry_bytes, is_at, leaving, new_file, parted, read_changes, read_entry

SIDE = ".tuner"
_HEADING = {"applying": (True, "applied"), "undoing": (False, "undone"), "cancelling": (False, "")}  # forward?, the state in the end ("": the entry goes)
_BACK = {"applying": "cancelling", "undoing": "applying", "redoing": "undoing"}


class Stale(ValueError):
    """A file is no longer what the plan saw."""


class Partly(ValueError):
    """Some files of an edit were changed since; its text asks whether the rest is to be taken back, or done again."""


@dataclass(frozen=True)
class Limits:
    """How much the journal keeps: edits, and bytes of them in all; the newest edit always stays."""

    entries: int = 200
    size: int = 512 << 20


class Journal:
    """The journal of one data folder, held until `close`; `interrupted` says what was found half done and completed.

    `side` is another place for it, `system` the calls that change the disk. Raises ValueError where another program holds it, OSError where it cannot be
    made or an interrupted edit not be completed.
    """

    def __init__(self, folder: str | Path, side: str | Path | None = None, limits: Limits = Limits(), system: Any = os):
        self.folder = absolute(folder)
        self.side = absolute(side) if side else self.folder / SIDE
        self.limits, self.interrupted = limits, list[Problem]()
        self.told: Callable[[int, int], None] = lambda done, total: None  # how many files of an edit are written, after each
        self._system, self._busy, self._lock, self._entries = system, threading.Lock(), -1, self.side / "journal"
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder; open the one that holds the pictures.")
        self._lock = self._opened()
        self._aside = Aside(self.side, 0)
        try:
            self._recover()
        except (OSError, ValueError):
            self.close()
            raise
        free(self.side)

    def _opened(self) -> int:
        """The side folder, made where there is none, and locked."""
        try:
            if not self._entries.is_dir():
                self._system.makedirs(self._entries, exist_ok=True)
                self._sync(self.side)
                self._sync(self.side.parent)
            return locked(self.folder, self.side)
        except OSError as error:
            raise OSError(f"{self.side} cannot be written ({error.strerror}), so nothing could be undone; {advice(error)}.") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets the folder go; a second time does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def entries(self) -> list[Entry]:
        """What can be undone (applied) and done again (undone), oldest first."""
        return [read_entry(path) for path in self._paths()]

    def commit(self, name: str, args: dict[str, Any], changes: Sequence[Change | Move]) -> Entry | None:
        """Carries changes out and keeps them; None where there are none.

        Raises ValueError where a file is no longer as before the change, OSError where one cannot be written; then nothing has changed.
        """
        with self._held():
            if not changes:
                return None
            self._check(changes)
            number = self._next()
            moment = datetime.now().astimezone().isoformat(timespec="seconds")
            path = self._entries / f"{number:06}.applying.jsonl"
            entry = Entry(path, number, "applying", name, args, moment, len(changes), f".tuner-{secrets.token_hex(4)}.part")
            try:
                self._publish(path, entry_bytes(entry, changes, self.folder))
            except OSError as error:
                raise OSError(f"The journal in {self.side} cannot be written ({error.strerror}), so nothing was changed; {advice(error)}.") from error
            entry = self._carry_out(entry, changes, "applying")
            self._prune()
            return entry

    def delete(self, paths: Sequence[Path], owners: Mapping[Path, Path] = MappingProxyType({})) -> Entry | None:
        """Moves files into the trash of the side folder, from where `undo` brings them back; one that has an owner only with it, lest it be another's.

        Raises ValueError for files outside the folder, OSError.
        """
        trash, moves = self.side / "trash" / f"{self._next():06}-{secrets.token_hex(2)}", []
        for path in dict.fromkeys(map(Path, paths)):
            if not path.is_relative_to(self.folder) or ".." in path.parts:
                raise ValueError(f"{path} is not in {self.folder}; only what is in the open folder can be deleted.")
            moves.append(Move(path, trash / path.relative_to(self.folder), owners.get(path)))
        return self.commit("delete", {}, moves)

    def undo(self, partly: bool = True) -> Entry | None:
        """Takes the last edit back, but for files that were changed since (`Entry.left`), or where not `partly` raises Partly; None where there is none.

        Raises as `commit` does.
        """
        with self._held():
            done = [path for path in self._paths() if _state(path) == "applied"]
            return self._turn(read_entry(done[-1]), "undoing", partly) if done else None

    def redo(self, partly: bool = True) -> Entry | None:
        """Does again what was taken back last, in the same way; None where there is none. Raises as `undo` does."""
        with self._held():
            undone = [path for path in self._paths() if _state(path) == "undone"]
            return self._turn(read_entry(undone[0]), "redoing", partly) if undone else None

    # ---- one entry ---------------------------------------------------------------------------------------------------

    def _turn(self, entry: Entry, way: str, partly: bool) -> Entry:
        changes, forward = read_changes(entry, self.folder), way == "redoing"
        changes, left = parted(changes, self._stale(changes, forward, lenient=True))
        entry = replace(entry, left=tuple(left), files=len(changes))
        if left and changes and not partly:
            raise Partly(entry.asked)
        state, path, before = "overtaken" if not changes else "applying" if forward else "undoing", entry.path, entry.path.read_bytes()
        try:
            try:
                if left:  # before any file changes: what ends an interrupted undo leaves them too
                    self._replace(path, leaving(entry, self.folder, left))
                entry = self._renamed(entry, state)
            except OSError as error:
                raise OSError(f"The journal in {self.side} cannot be written ({error.strerror}), so nothing was changed; {advice(error)}.") from error
            return self._carry_out(entry, changes, way) if changes else entry
        except (OSError, Stale):
            if left and path.exists():  # nothing was changed, so none of them is left behind for good
                with suppress(OSError):
                    self._replace(path, before)
            raise

    def _carry_out(self, entry: Entry, changes: Sequence[Change | Move], way: str) -> Entry:
        """All changes of an entry that is heading somewhere, or none of them."""
        forward, end = _HEADING[entry.state]
        self._aside = Aside(self.side, len(changes), self._system)
        for number, change in enumerate(changes):
            try:
                self._step(change, forward, entry.part, lenient=way != "applying")
            except (OSError, Stale) as error:
                self._take_back(entry, changes[: number + 1], way, error)
            self.told(number + 1, len(changes))
        try:
            entry = self._renamed(entry, end, sync=False)
        except OSError as error:
            self._take_back(entry, changes, way, error)
        self._aside.free()
        return entry

    def _take_back(self, entry: Entry, changes: Sequence[Change | Move], way: str, reason: OSError | Stale) -> NoReturn:
        name, why = changes[-1].path.name, reason.strerror if isinstance(reason, OSError) else "another program changed it"
        advised = advice(reason) if isinstance(reason, OSError) else "read the folder anew, then try again"
        try:
            self._settle(self._renamed(entry, _BACK[way]), changes)
        except OSError as error:
            said = f"{name} cannot be written ({why}), and what was written before it cannot be put back yet ({error.strerror})"
            raise OSError(f"{said}; {advice(error)}, then open {self.folder} again: that ends it.") from error
        raise (OSError if isinstance(reason, OSError) else Stale)(f"{name} cannot be written ({why}), so nothing was changed; {advised}.") from reason

    def _step(self, change: Change | Move, forward: bool, part: str, lenient: bool) -> None:
        """Brings one file from one side to the other. Raises Stale where it is not there, OSError."""
        if not is_at(change, not forward, lenient):
            raise Stale(f"{change.path.name} was changed by another program")
        if isinstance(change, Change):
            self._put(change.path, change.after if forward else change.before, part)
            return
        source, target = (change.path, change.to) if forward else (change.to, change.path)
        self._system.makedirs(target.parent, exist_ok=True)
        self._system.rename(source, target)

    def _put(self, path: Path, data: bytes | None, part: str) -> None:
        """A file's new content, under the file's own permissions; None deletes it. A link stays one: its target is replaced."""
        call = self._system
        if data is None:  # a link that led nowhere before the edit does so again
            call.unlink(os.path.realpath(path) if os.path.islink(path) else path)
            return
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                path = Path(os.path.realpath(path))
                mode = os.stat(path).st_mode
        except FileNotFoundError:
            mode = None
        temporary = os.path.join(path.parent, part)
        try:
            new_file(call, temporary, data)
            if mode is not None and mode != os.stat(temporary).st_mode:
                call.chmod(temporary, stat.S_IMODE(mode))
            if mode is not None:
                self._aside.keep(path)
            call.replace(temporary, path)
        except OSError:
            self._discard(temporary)
            raise

    def _check(self, changes: Sequence[Change | Move]) -> None:
        """Raises Stale, by name, where a file is not as it is to be before the change: somebody else's words would be lost."""
        stale = self._stale(changes, True)
        if stale:
            more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
            raise Stale(f"{stale[0].path.name}{more} changed on the disk since they were read, so nothing was changed; read the folder anew, then try again.")

    def _stale(self, changes: Sequence[Change | Move], forward: bool, lenient: bool = False) -> list[Change | Move]:
        """Those whose files are not as they are to be before the change. Raises OSError where one cannot be read."""
        stale = []
        for change in changes:
            try:
                stale += [] if is_at(change, not forward, lenient) else [change]
            except (IsADirectoryError, NotADirectoryError):
                stale.append(change)
            except OSError as error:
                raise OSError(f"{change.path.name} cannot be read ({error.strerror}), so nothing was changed; {advice(error)}.") from error
        return stale

    # ---- what was interrupted ----------------------------------------------------------------------------------------

    @contextmanager
    def _held(self) -> Iterator[None]:
        """One edit at a time, after what an earlier one left half done."""
        with self._busy:
            if self._lock < 0:
                raise ValueError(f"{self.folder} was closed; open it again.")
            if not self.folder.is_dir():
                raise ValueError(f"{self.folder} is no folder any more; open it again where it is now.")
            if not is_held(self._lock, self.side):  # somebody deleted the side folder, and other programs may have made another
                lock = self._opened()
                os.close(self._lock)
                self._lock = lock
            self._recover()
            yield

    def _recover(self) -> None:
        """Brings what is heading somewhere to its end."""
        for path in self._entries.glob("*.part"):
            self._discard(path)
        for path in self._paths():
            if _state(path) not in _HEADING:
                continue
            entry = read_entry(path)
            try:
                strays = self._settle(entry, read_changes(entry, self.folder))
            except OSError as error:
                said = f"An interrupted edit of {self.folder} cannot be completed ({error.strerror})"
                raise OSError(f"{said}; {advice(error)}, then open it again.") from error
            end = "taken back" if entry.state == "cancelling" else "completed"
            self.interrupted += [Problem(entry.path, f"was interrupted and is {end} ({entry.name}, {number_of(entry.files, 'file')})", "interrupted"), *strays]
        self._prune()

    def _settle(self, entry: Entry, changes: Sequence[Change | Move]) -> list[Problem]:
        """Brings each file to the side where its entry heads to; a file that is on neither side is somebody else's and stays. Raises OSError."""
        forward, end = _HEADING[entry.state]
        strays, owners = [], set[Path]()
        for folder in {os.path.dirname(path) for c in changes for path in (c.path, os.path.realpath(c.path))}:
            self._discard(os.path.join(folder, entry.part))
        for change in changes:
            if isinstance(change, Move) and change.of in owners:  # it would be a stranger's
                continue
            try:
                there, here = is_at(change, forward, False), is_at(change, not forward, True)
            except OSError:  # it is a folder now, or nobody may read it
                there = here = False
            if here and not there:
                self._step(change, forward, entry.part, lenient=True)
            elif not there:
                owners.add(change.path)
                strays.append(Problem(change.path, "was changed by another program while an edit was interrupted; it stays as it is", "interrupted"))
        self._renamed(entry, end, sync=False)
        return strays

    # ---- the folder --------------------------------------------------------------------------------------------------

    def _publish(self, path: Path, data: bytes) -> None:
        try:
            self._replace(path, data)
            self._sync(self._entries)
        except OSError:
            self._discard(path)
            raise

    def _replace(self, path: Path, data: bytes) -> None:
        part = path.with_suffix(".part")
        try:
            new_file(self._system, part, data, sync=True)
            self._system.replace(part, path)
        except OSError:
            self._discard(part)
            raise

    def _renamed(self, entry: Entry, state: str, sync: bool = True) -> Entry:
        """The entry in another state; "" takes it away."""
        if not state:
            self._system.unlink(entry.path)
            return entry
        path = entry.path.with_name(f"{entry.number:06}.{state}.jsonl")
        self._system.replace(entry.path, path)
        try:
            if sync:
                self._sync(self._entries)
        except OSError:
            self._system.replace(path, entry.path)
            raise
        return entry.at(path, state)

    def _sync(self, folder: Path) -> None:
        if os.name != "nt":  # Windows opens no folders
            descriptor = self._system.open(folder, os.O_RDONLY)
            try:
                self._system.fsync(descriptor)
            finally:
                self._system.close(descriptor)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self._entries.glob("*.jsonl") if path.name.count(".") == 2)

    def _next(self) -> int:
        return max((_number(path) for path in self._paths()), default=0) + 1

    def _prune(self) -> None:
        """Forgets what was undone before a newer edit, and the oldest edits beyond the limits; the trash stays."""
        paths = self._paths()
        newest = max((_number(path) for path in paths if _state(path) == "applied"), default=0)
        kept = size = 0
        for path in reversed(paths):
            size += path.stat().st_size
            over = kept and (kept >= self.limits.entries or size > self.limits.size)
            if over or (_state(path) == "undone" and _number(path) < newest):
                self._discard(path)
            else:
                kept += 1

    def _discard(self, path: str | Path) -> None:
        if os.path.lexists(path):
            self._system.unlink(path)


def _number(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _state(path: Path) -> str:
    return path.name.split(".")[1]
