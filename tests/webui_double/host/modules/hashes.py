"""Digests of files, kept until the file changes."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache

from .shared_cmd_options import cmd_opts


def sha256(filename: str, title: str) -> str | None:
    """None with --no-hashing. `title` is what the real host keeps it under."""
    if cmd_opts.no_hashing:
        return None
    status = os.stat(filename)
    return _digest(os.path.abspath(filename), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=None)
def _digest(path: str, *state: int) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
