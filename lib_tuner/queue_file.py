"""The queue as it lies on the disk: its entries in `queue.json`, and a lock, since two programs on one folder would overwrite each other's."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .config import MIGRATIONS, migrate
from .disk import atomic, json_bytes, take_lock

LOG = logging.getLogger("lib_tuner")
ENDED = ("done", "stopped", "nan", "failed")
GOING = ("running", "pausing", "stopping")


@dataclass
class Entry:
    """A run in the queue. `state`: waiting, paused, one of GOING, or one of ENDED."""

    id: str
    values: dict[str, Any]
    state: str = "waiting"
    folder: str = ""
    step: int = 0
    error: str = ""  # one sentence
    detail: str = ""  # the traceback, for who wants to report it

    @property
    def name(self) -> str:
        return str(self.values.get("name", ""))


class QueueFile:
    """`queue.json` in a folder, held by this program until `close`. Raises ValueError where another program holds it, OSError where it cannot be made."""

    def __init__(self, home: Path):
        home.mkdir(parents=True, exist_ok=True)
        self.path = home / "queue.json"
        self._lock = os.open(home / "queue.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            take_lock(self._lock)
        except OSError:
            os.close(self._lock)
            raise ValueError(f"{home} is in use by another Tuner: use its page, end it, or choose another folder with --out.") from None

    def save(self, entries: list[Entry], held: bool, outputs: list[str]) -> None:
        """Writes all of it. Raises OSError; then the file is as before."""
        version = len(MIGRATIONS) + 1
        rows = [{**asdict(e), "values": {"version": version, **e.values}} for e in entries]
        with atomic(self.path) as temporary:
            temporary.write_bytes(json_bytes({"held": held, "outputs": outputs, "entries": rows}, indent=1))

    def load(self) -> tuple[list[Entry], bool, list[str]]:
        """Entries, whether the queue is held, and output folders; a file that cannot be read is set aside, not overwritten."""
        if not self.path.is_file():
            return [], False, []
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return [_entry(row) for row in content["entries"]], bool(content.get("held")), list(content.get("outputs", []))
        except (ValueError, KeyError, TypeError, AttributeError):
            aside = self.path.with_suffix(".damaged.json")
            self.path.replace(aside)
            LOG.warning("The queue could not be read; it was set aside as %s.", aside)
            return [], False, []

    def close(self) -> None:
        """Lets the folder go; a second time does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _entry(row: Mapping[str, Any]) -> Entry:
    known = {f.name for f in fields(Entry)}
    entry = Entry(**{key: value for key, value in row.items() if key in known})
    entry.values = migrate(entry.values, "queue.json")
    return entry
