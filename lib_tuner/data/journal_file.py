"""One entry of a journal as a file of JSON lines that a person can read: a line on the edit, then one line per file.

    {"edit": "remove", "args": {"tags": ["lips"]}, "when": "2026-11-27T10:00:00+01:00", "files": 37, "part": ".tuner-1b2c3d4e.part"}
    {"path": "10_cat/a.txt", "before": "cat, lips", "after": "cat"}

Content that is not UTF-8 is {"base64": ...}, a file that is not there null. Paths are relative to the data folder where they are in it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Change:
    """A file's content before and after an edit; None: no file."""

    path: Path
    before: bytes | None
    after: bytes | None


@dataclass(frozen=True)
class Move:
    """A file that goes to another place of the same disk."""

    path: Path
    to: Path


@dataclass(frozen=True)
class Entry:
    """An edit in the journal. `state`: applied, undone, or on its way: applying, undoing, cancelling; `part` names its temporary files."""

    path: Path
    number: int
    state: str
    name: str
    args: dict[str, Any]
    when: str
    files: int
    part: str

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
            rows.append(encode({"path": path, "moved": change.to.as_posix().removeprefix(prefix)}))
        else:
            rows.append(encode({"path": path, "before": _shown(change.before), "after": _shown(change.after)}))
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
        raise ValueError(f"{path} is damaged; move it out of its folder, then go on without what it could undo.") from None


def read_changes(entry: Entry, folder: Path) -> list[Change | Move]:
    """All lines of an entry's file but the first. Raises ValueError where it is damaged."""
    changes: list[Change | Move] = []
    for line in entry.path.read_bytes().split(b"\n")[1:-1]:
        row = _row(entry.path, line)
        if "moved" in row:
            changes.append(Move(folder / row["path"], folder / row["moved"]))
        else:
            changes.append(Change(folder / row["path"], _bytes(row["before"]), _bytes(row["after"])))
    return changes


def _row(path: Path, line: bytes) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        raise ValueError(f"{path} is damaged; move it out of its folder, then go on without what it could undo.") from None


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
