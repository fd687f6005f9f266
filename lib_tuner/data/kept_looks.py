"""What pictures of a folder looked like, kept in `<folder>/.tuner/looks.jsonl`, so that a second audit decodes nothing and reads only what has changed.

A line a picture: its path in the folder, size and time when it was looked at, and its `Look`. All of it is a cache: deleting it costs time alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..disk import atomic
from .audit import look_at
from .journal import SIDE
from .look import Look
from .tag_scores import stamp_of

FILE = "looks.jsonl"
Stamp = tuple[int, int]
Kept = dict[Path, tuple[Stamp, Look]]


def kept_looks(folder: Path) -> Kept:
    """The looks that were kept; what another version wrote, or is damaged, is left out."""
    try:
        lines = (folder / SIDE / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found: Kept = {}
    for line in lines:
        try:
            row = json.loads(line)
            look = Look.from_json(row["look"])
            if look:
                found[folder / row["path"]] = ((row["size"], row["time"]), look)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def keep_looks(folder: Path, looks: Mapping[Path, tuple[Stamp, Look]]) -> None:
    """Keeps them, all or none. Raises OSError."""
    lines = [json.dumps({"path": path.relative_to(folder).as_posix(), "size": size, "time": time, "look": look.to_json()}, ensure_ascii=True) for path, ((size, time), look) in looks.items()]
    with atomic(folder / SIDE / FILE, durable=False) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def look_again(paths: Iterable[Path], known: Kept) -> Iterator[tuple[Path, Look]]:
    """Each picture's path and look, as `look_at` gives them, which `known` then holds; a file of the same size and time is not read."""
    by_digest = {look.digest: look for _, look in known.values()}
    for path in paths:
        try:
            stamp = stamp_of(path.stat())
        except OSError:
            stamp = (-1, -1)
        if path in known and known[path][0] == stamp:
            yield path, known[path][1]
            continue
        look = next(look_at([path], by_digest))[1]
        if look.digest:
            known[path] = (stamp, look)
        yield path, look
