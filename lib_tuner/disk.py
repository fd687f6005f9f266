"""Files that are whole or not there at all, and folders that one program at a time writes to."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator


@contextmanager
def atomic(path: Path, durable: bool = True, new: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` to write to; what is there when the block ends well is synced and takes the place of `path`, else it is deleted.

    `durable` False: not synced, for what can be made again. `new`: raises FileExistsError where there is a `path` by then, which stays as it is.
    """
    temporary = path.with_name(f".{path.name[:16]}.{secrets.token_hex(8)}.part")  # the whole name and more would be too long for a disk that the name just fits
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask wants it; safetensors 0.8 writes files that nobody else can read
        yield temporary
        temporary.chmod(mode)
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        _place(temporary, path) if new else os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path) -> None:
    """Gives a file a name that is free, at once and as a whole: a link fails where the name is taken. A disk without links needs two steps."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        path.open("xb").close()
        try:
            os.replace(temporary, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def json_bytes(value: Any, **how: Any) -> bytes:
    """JSON in UTF-8, in which a person can read every letter; in ASCII where a file's name in it is bytes that are no text, which UTF-8 has no letters for."""
    try:
        return json.dumps(value, ensure_ascii=False, **how).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, **how).encode("ascii")


def json_values(value: Any) -> Any:
    """The same without numbers that are none, which JSON has not, such as norms of a broken checkpoint: null stands for them, their name where they are keys."""
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, float) and not math.isfinite(key) else key: json_values(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def take_lock(descriptor: int) -> None:
    """Locks an open file. Raises OSError where another process has it; the system frees it when its holder ends, however that happens."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def expanded(path: str | Path) -> Path:
    """A path that a person has written, `~` for their home; `~name` of nobody here stays as it is, and is not there."""
    return Path(os.path.expanduser(path))


def absolute(path: str | Path) -> Path:
    """The same from the root on. Not resolved: a linked folder keeps its name, which may say how often its pictures are repeated."""
    return Path(os.path.abspath(expanded(path)))
