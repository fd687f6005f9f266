"""A program of little memory that acts on a folder of captions and dies on the way, for the journal's tests: a fork of pytest, with torch in it, takes 50 ms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # where it is started as a program

from lib_tuner.data import aside
from lib_tuner.data.journal import Journal
from lib_tuner.data.journal_file import Change

CALLS = ("open", "write", "close", "fsync", "replace", "rename", "unlink", "chmod", "makedirs", "link")
BEFORE = {"a.txt": b"a, lips", "b.txt": b"caf\xe9, lips", "gone.png": b"PNG", "c.txt": b""}
AFTER = {"a.txt": b"a", "b.txt": b"caf\xe9", "new.txt": b"lips", "c.txt": b"filled"}


class Faulty:
    """The system's calls, of which the one with this number ends the program, or fails."""

    def __init__(self, at: int = -1, error: int = 0, only: tuple[str, ...] = CALLS, lasting: bool = False):
        self.at, self.error, self.only, self.lasting, self.count, self.names = at, error, only, lasting, 0, []

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            due = name in self.only
            here = due and (self.count == self.at or (self.lasting and 0 <= self.at < self.count))
            self.count += due
            self.names.append(name)
            if not here:
                return getattr(os, name)(*args, **kwargs)
            if self.error:
                raise OSError(self.error, os.strerror(self.error))
            if name == "write":  # half of it
                os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
            os._exit(9)

        return call


def changes(folder: Path) -> list[Change]:
    return [Change(folder / name, BEFORE.get(name), AFTER.get(name)) for name in ("a.txt", "b.txt", "new.txt", "gone.png", "c.txt")]


def act(folder: Path, what: str, system) -> None:
    with Journal(folder, system=system) as journal:
        do(journal, folder, what)


def do(journal: Journal, folder: Path, what: str) -> None:
    if what == "apply":
        journal.commit("remove", {}, changes(folder))
    elif what == "delete":
        journal.delete([folder / name for name in BEFORE])
    else:
        getattr(journal, what)()


class Program:
    """Acts in processes of their own, which may die."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def act(self, folder: Path, what: str, **faults) -> int:
        """`act` with the `Faulty` of these faults; the exit code."""
        self._process.stdin.write(json.dumps([aside.LEAST, str(folder), what, faults]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


def main() -> None:
    for line in sys.stdin:
        aside.LEAST, folder, what, faults = json.loads(line)
        if not (child := os.fork()):
            code = 1
            try:
                act(Path(folder), what, Faulty(**faults))
                code = 0
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
