"""What is seen of a tool on the command line alone: its help, how far it is, and what it says in the end."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from ..words import writable

PROGRAM = "python3 -m lib_tuner tool"


class Parser(argparse.ArgumentParser):
    """A tool's arguments; a wrong one is a ValueError of one sentence."""

    def __init__(self, name: str, text: str, example: str):
        self.name = name
        super().__init__(
            prog=f"{PROGRAM} {name}", description=text, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="example:\n" + "\n".join(f"  {PROGRAM} {name} {line}" for line in example.splitlines()),
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.name}: {message} (`{self.prog} --help` explains).")


class Progress:
    """`told(done, of all)` as one line on stderr that is written over; every tenth part of the way where it is no terminal."""

    def __init__(self, text: str, stream: TextIO | None = None):
        self.text, self.stream, self.at, self.tenth = text, stream or sys.stderr, 0.0, 0

    def __call__(self, done: int, total: int) -> None:
        if self.stream.isatty():
            if done == total or time.monotonic() - self.at > 0.1:
                self.at = time.monotonic()
                self.stream.write(f"\r{self.text} {done}/{total}" + "\n" * (done == total))
        elif done == total or done * 10 // total > self.tenth:
            self.tenth = done * 10 // total
            self.stream.write(f"{self.text} {done}/{total}\n")
        self.stream.flush()


def say(lines: Sequence[str]) -> int:
    """The result, on stdout; returns the exit code."""
    sys.stdout.write(writable("".join(f"{line}\n" for line in lines), sys.stdout))
    return 0


def exists(path: Path, other: str = "name") -> str:
    """What is said of an output that is there already; `other`: what a person can choose instead."""
    return f"{path} exists already; choose another {other}, or replace it with --force."
