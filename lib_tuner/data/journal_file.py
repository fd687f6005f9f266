"""One entry of a journal as a file of JSON lines that a person can read: a line on the edit, then one line per file.

    {"edit": "remove", "args": {"tags": ["lips"]}, "when": "2026-11-27T10:00:00+01:00", "files": 37, "part": ".tuner-1b2c3d4e.part"}
    {"path": "10_cat/a.txt", "before": "cat, lips", "after": "cat"}

Content that is not UTF-8 is {"base64": ...}, a file that is not there null. Paths are relative to the data folder where they are in it. A line with
"stays" is of a file that somebody changed after the edit: no undo or redo touches it any more, and a person finds here what it was.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NAMED = 3  # files that stay


@dataclass(frozen=True)
class Change:
    """A file's content before and after an edit; None: no file."""

    path: Path
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True)
class Move:
    """A file that goes to another place of the same disk; `of` is the one that it belongs to, as a mask does to its picture."""

    path: Path
    to: Path
    of: Path | None = None


@dataclass(frozen=True)
class Entry:
    """An edit in the journal. `state`: applied, undone, overtaken (all its files were changed since), or on its way: applying, undoing, cancelling.

    `part` names its temporary files; `left` are those of its files that an undo or redo has left as somebody else had changed them.
    """

    path: Path
    number: int
    state: str
    name: str
    args: dict[str, Any]
    when: str
    files: int
    part: str
    left: tuple[Change | Move, ...] = ()

    @property
    def told(self) -> str:
        """What a person is to know after an undo or redo that left files as they are; empty where it left none."""
        if not self.left:
            return ""
        trash = next((change.to.parent for change in self.left if isinstance(change, Move) and self.state != "applied" and os.path.lexists(change.to)), None)
        kept = f"What was deleted lies in {trash}." if trash else ""
        if self.state == "overtaken":
            said = f"All files of this edit were changed since ({self._names}), so they stay as they are; the edit is out of the history, and does not stand before others any more."
        else:
            said = f"Changed since, so left as they are now: {self._names}; {'files taken back' if self.state == 'undone' else 'files done again'}: {self.files:,}."
        return " ".join(filter(None, (said, kept)))

    @property
    def asked(self) -> str:
        """The same before it is done, as a question."""
        return f"Changed since, so left as they are now: {self._names}. {'Take back the rest' if self.state == 'applied' else 'Do the rest again'} (files: {self.files:,})?"

    @property
    def _names(self) -> str:
        more = f" and {len(self.left) - NAMED:,} more" if len(self.left) > NAMED else ""
        return ", ".join(change.path.name for change in self.left[:NAMED]) + more

    def at(self, path: Path, state: str) -> Entry:
        """The entry in another state."""
        return replace(self, path=path, state=state)


def entry_bytes(entry: Entry, changes: Sequence[Change | Move], folder: Path) -> bytes:
    """The entry's file."""
    head = {"edit": entry.name, "args": entry.args, "when": entry.when, "files": entry.files, "part": entry.part}
    encode, prefix = json.JSONEncoder(ensure_ascii=False).encode, f"{folder.as_posix().rstrip('/')}/"
    rows = [encode(head)]
    for change in changes:
        path = change.path.as_posix().removeprefix(prefix)
        if isinstance(change, Move):
            of = {"of": change.of.as_posix().removeprefix(prefix)} if change.of else {}
            rows.append(encode({"path": path, "moved": change.to.as_posix().removeprefix(prefix), **of}))
        else:
            rows.append(encode({"path": path, "before": _shown(change.before), "after": _shown(change.after)}))
    return _file(rows)


def parted(changes: Sequence[Change | Move], stale: Sequence[Change | Move]) -> tuple[list[Change | Move], list[Change | Move]]:
    """Those that can be carried out, and those that cannot: the stale ones, and what belongs to them."""
    paths = {change.path for change in stale}
    paths |= {change.path for change in changes if isinstance(change, Move) and change.of in paths}
    return [change for change in changes if change.path not in paths], [change for change in changes if change.path in paths]


def leaving(entry: Entry, folder: Path, left: Collection[Change | Move]) -> bytes:
    """The entry's file where these of its files stay as they are from now on."""
    paths, (head, *rows) = {change.path for change in left}, map(json.loads, entry.path.read_bytes().split(b"\n")[:-1])
    rows = [{**row, "stays": True} if folder / row["path"] in paths else row for row in rows]
    return _file([json.dumps(row, ensure_ascii=False) for row in ({**head, "files": sum("stays" not in row for row in rows)}, *rows)])


def _file(rows: Sequence[str]) -> bytes:
    try:
        return "\n".join([*rows, ""]).encode("utf-8")
    except UnicodeEncodeError:  # a file's name may be bytes that are no text, and a page may send halves of letters
        return "\n".join([*(json.dumps(json.loads(row)) for row in rows), ""]).encode("ascii")


def read_entry(path: Path) -> Entry:
    """The first line of an entry's file. Raises ValueError where it is damaged."""
    number, state, _ = path.name.split(".")
    with open(path, "rb") as file:
        head = _row(path, file.readline())
    try:
        return Entry(path, int(number), state, head["edit"], head["args"], head["when"], head["files"], head["part"])
    except (KeyError, ValueError):
        raise _damaged(path) from None


def read_changes(entry: Entry, folder: Path) -> list[Change | Move]:
    """All lines of an entry's file but the first, without what stays. Raises ValueError where it is damaged."""
    rows = [_row(entry.path, line) for line in entry.path.read_bytes().split(b"\n")[1:-1]]
    try:
        return [_change(row, folder) for row in rows if "stays" not in row]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise _damaged(entry.path) from None


def is_at(change: Change | Move, after: bool, lenient: bool) -> bool:
    """Whether a file is as after, or as before, a change. `lenient`: or empty, which is nobody's words, and what some disks leave after a loss of power.

    Raises OSError where it cannot be read.
    """
    if isinstance(change, Move):
        present, absent = (change.to, change.path) if after else (change.path, change.to)
        return os.path.lexists(present) and not os.path.lexists(absent)
    found = _content(change.path)
    return found == (change.after if after else change.before) or (lenient and found == b"")


def _content(path: Path) -> bytes | None:
    """A file's bytes; None where there is no file."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except FileNotFoundError:
        return None


def _row(path: Path, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise _damaged(path)
    return row


def _change(row: dict[str, Any], folder: Path) -> Change | Move:
    if "moved" in row:
        return Move(folder / row["path"], folder / row["moved"], folder / row["of"] if "of" in row else None)
    return Change(folder / row["path"], _bytes(row["before"]), _bytes(row["after"]))


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged; move it out of its folder, then go on without what it could undo.")


def _shown(data: bytes | None) -> str | dict[str, str] | None:
    if data is None:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _bytes(shown: str | dict[str, str] | None) -> bytes | None:
    if shown is None:
        return None
    return shown.encode("utf-8") if isinstance(shown, str) else base64.b64decode(shown["base64"])


def new_file(call: Any, path: str | Path, data: bytes, sync: bool = False) -> None:
    """Writes one by `call`'s calls. Raises OSError where one is there."""
    descriptor = call.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[call.write(descriptor, view) :]
        if sync:
            call.fsync(descriptor)
    finally:
        call.close(descriptor)


def advice(error: OSError) -> str:
    """What to do where a file cannot be written."""
    known = {
        errno.ENOSPC: "make room on the disk",
        errno.EDQUOT: "make room on the disk",
        errno.EXDEV: "choose a side folder on the disk of the pictures",
        errno.ENAMETOOLONG: "give it a shorter name",
    }
    return known.get(error.errno or 0, "check that the folder and its files are writable")
