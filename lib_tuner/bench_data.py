"""`bench data`: what the data-set panel's core costs with many pictures, each size in a process of its own, which loads no torch.

The folder is made for it: small pictures, captions of thirty tags each, drawn from 3,000 by Zipf's law as tags of a booru are, and `lips` in all of them.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from .bench_memory import process_peak
from .data.edits import Edit
from .data.library import Library
from .data.thumbnails import thumbnail
from .progress import Status

SIZES = (1_000, 10_000, 100_000)
TAGS, VOCABULARY = 30, 3_000
SCREEN = 60  # thumbnails that a window shows at once
FILTERS = ("lips", "lips, NOT tag 3", "*ag 1*", "tags:>28", 'text:"tag 7,"', "name:*99*", "untagged OR (tag 5 AND chars:<250)")
LIMITS = {"open": 1.5, "plan": 0.2, "apply": 3.0, "undo": 3.0, "filter": 0.05, "thumbnails": 0.5}  # seconds for 10,000 pictures
MEMORY = 300  # MB, likewise


def main(args: Namespace) -> int:
    """Measures each size, and writes the rows to stdout, as a table or with `json`; the progress goes to stderr."""
    status, rows = Status(sys.stderr), []
    for count in args.sizes or SIZES:
        status.line(f"{count:,} pictures")
        rows += measure(count, Path(args.folder) if args.folder else None)
    status.clear()
    sys.stdout.write(json.dumps(rows) + "\n" if args.json else table(rows))
    return 0


def measure(count: int, below: Path | None = None) -> list[dict[str, Any]]:
    """The rows of one size; `below` is a folder on the disk to be measured."""
    with TemporaryDirectory(prefix="tuner-bench-", dir=below) as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        make(Path(folder), count)
        return pool.apply(operations, (Path(folder),))


def make(folder: Path, count: int) -> None:
    """A folder of pictures with captions."""
    chance = random.Random(count)
    words = [f"tag {number}" for number in range(VOCABULARY)]
    weights = [1 / (number + 1) for number in range(VOCABULARY)]
    content = io.BytesIO()
    Image.effect_noise((768, 512), 60).convert("RGB").save(content, "JPEG", quality=80)
    for number in range(count):
        stem = folder / f"10_set{number % 7}" / f"picture {number:06}"
        stem.parent.mkdir(exist_ok=True)
        stem.with_suffix(".jpg").write_bytes(content.getvalue() if number < SCREEN * 8 else b"")  # the rest is never looked at
        stem.with_suffix(".txt").write_text(", ".join(["lips", *dict.fromkeys(chance.choices(words, weights, k=TAGS - 1))]), encoding="utf-8")


def operations(folder: Path) -> list[dict[str, Any]]:
    """Opens the folder, and does with it what a user does."""
    times: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        times[name] = time.perf_counter() - began
        return result

    library: Library = timed("open", lambda: Library.open(folder))
    count = len(library.pictures)
    times["filter"] = max(_seconds(lambda line=line: library.find(line)) for line in FILTERS)
    planned = timed("plan", lambda: library.plan(Edit("remove", {"tags": ["lips"]})))
    timed("apply", lambda: library.apply(planned))
    timed("undo", library.undo)
    timed("redo", library.redo)
    shown, side = list(library.pictures.values())[:SCREEN], library.folder / ".tuner"
    timed("thumbnails, first time", lambda: [thumbnail(path, 256, side) for path in shown])
    timed("thumbnails", lambda: [thumbnail(path, 256, side) for path in shown])
    timed("read anew", library.read)
    library.close()
    if "torch" in sys.modules:
        raise AssertionError("the core of the panel has loaded torch")
    return [{"op": name, "n": count, "s": round(seconds, 4), "mb": round((process_peak() or 0) * 1000)} for name, seconds in times.items()]


def _seconds(work: Callable[[], Any]) -> float:
    """The least of three."""
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(once() for _ in range(3))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people: an operation a line, a size a column."""
    return "\n".join(_lines(rows)) + "\n"


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    sizes = sorted({row["n"] for row in rows})
    seconds = {(row["op"], row["n"]): row["s"] for row in rows}
    memory = {n: max(row["mb"] for row in rows if row["n"] == n) for n in sizes}
    yield "".join(["pictures".ljust(24), *(f"{n:>12,}" for n in sizes), "   aim for 10,000"])
    for op in dict.fromkeys(row["op"] for row in rows):
        yield "".join([op.ljust(24), *(f"{seconds[op, n]:>10.3f} s" if (op, n) in seconds else " " * 12 for n in sizes), f"   {LIMITS[op]:g} s" if op in LIMITS else ""])
    yield "".join(["memory".ljust(24), *(f"{memory[n]:>9,} MB" for n in sizes), f"   {MEMORY} MB"])
