"""`bench methods`: what each method costs beside LoRA, on random full-size weights, and what it learns on the embedded model.

Everything goes into one JSON file as soon as it is measured, so that a run which was stopped goes on where it was.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .bench import REPORTS, WEIGHTS, Child, draw_pictures, random_weights, rounded, scratch, take_turns
from .bench_worker import HostClass, Side
from .demo import followed, learned
from .demo.judge import interval
from .disk import atomic
from .methods import METHODS
from .progress import Status

SIZE, ROUNDS = 256, 3
BESIDE = "lora"  # whose updates take turns with each method's
LEARNS = (*learned.TASKS, *followed.TASKS)


def main(args: Namespace, host: HostClass) -> int:
    """Measures what the report lacks, and writes the table to stdout, the progress to stderr."""
    known = sorted({*METHODS, *LEARNS})
    if wrong := [name for name in args.only if name not in known]:
        raise ValueError(f"--only {wrong[0]}: there is no such row; there are {', '.join(known)}.")
    report, status = Report(Path(args.report) if args.report else REPORTS / f"{time.strftime('%Y-%m-%d')}-methods.json"), Status(sys.stderr)
    chosen = set(args.only or known)
    todo = [] if args.no_costs else [name for name in METHODS if name in chosen and not report.has("costs", name)]
    if todo:
        costs(todo, random_weights(WEIGHTS, status), host, report, status)
    for seed in range(1, args.seeds + 1):  # a whole table with few seeds before the next seed
        for name in LEARNS:
            if name in chosen and not report.has("learned", name, seed):
                status.line(f"{name}, seed {seed}")
                with scratch() as folder:
                    report.add("learned", learned.measure(name, seed, folder, host))
    status.clear()
    sys.stdout.write(table(report.rows))
    return 0


class Report:
    """The rows in their file: `costs`, one per method, and `learned`, one per task and seed."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {"costs": [], "learned": []}
        if path.is_file():
            try:
                self.rows |= {kind: list(json.loads(path.read_text(encoding="utf-8"))[kind]) for kind in self.rows}
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is no report of `bench methods`; name another file with --report.") from None

    def has(self, kind: str, task: str, seed: int | None = None) -> bool:
        return any(row["task"] == task and row.get("seed") == seed for row in self.rows[kind])

    def add(self, kind: str, row: dict[str, Any]) -> None:
        self.rows[kind].append({**row, "date": time.strftime("%Y-%m-%d")})
        whole = {"packages": {"torch": version("torch")}, "threads": torch.get_num_threads(), **self.rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as part:
            part.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


# ---- what an update costs


def costs(names: Iterable[str], weights: Path, host: HostClass, report: Report, status: Status, make: Callable[..., Child] = Child) -> None:
    """Seconds, memory, parameters and the saved file of each method at its defaults (`bench_worker.OWN` but for them), taking turns with LoRA's updates."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        draw_pictures(folder / "pictures", SIZE, 1)
        beside = _started(make, Side("ours", BESIDE, SIZE, "auto", weights, folder / "beside"), folder, host, stack)
        for name in names:
            status.line(f"{name}: {ROUNDS} updates beside {BESIDE}'s")
            with ExitStack() as one:
                child = _started(make, Side("ours", name, SIZE, "auto", weights, folder / name), folder, host, one)
                beside.seconds.clear()
                take_turns([beside, child], ROUNDS, 1, float("inf"), lambda n: status.show(f"{name}: round {n}"))
                seconds, lora = median(child.seconds), median(beside.seconds)
                report.add("costs", {
                    "task": name, "size": SIZE, "seconds": rounded(seconds), "lora_seconds": rounded(lora), "ratio": rounded(seconds / lora), "repeats": len(child.seconds),
                    "gb": rounded(child.ask("peak")), "lora_gb": rounded(beside.ask("peak")), "dtype": child.ask("dtype"), "parameters": child.ask("parameters"), "file": child.ask("saved"),
                })  # fmt: skip


def _started(make: Callable[..., Child], side: Side, folder: Path, host: HostClass, stack: ExitStack) -> Child:
    """The side in its process, loaded, with pictures of its own beside those in `folder`."""
    side.folder.mkdir()
    (side.folder / "pictures").symlink_to(folder / "pictures", target_is_directory=True)
    child = make(side, host)
    stack.callback(child.end)
    child.answer()
    return child


# ---- what people read


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Both tables as Markdown."""
    return "\n".join([*_costs(rows["costs"]), "", *_learned(rows["learned"]), "", *_followed(rows["learned"])]) + "\n"


def _costs(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| method | parameters | file | seconds per update, LoRA's = 1 | memory, LoRA's = 1 |\n|---|---|---|---|---|"
    for row in rows:
        yield f"| {row['task']} | {row['parameters'] / 1e6:.3g} M | {row['file'] / 1e6:.3g} MB | {row['ratio']:.2f} | {row['gb'] / row['lora_gb']:.2f} |"


def _learned(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Parts of all seeds' pictures with Wilson's interval; `kept` as the mean and the range over seeds."""
    yield "| method | steps | seeds | subject before | after | kept of everything else |\n|---|---|---|---|---|---|"
    for name in learned.TASKS:
        if mine := [row for row in rows if row["task"] == name]:
            count, kept = sum(row["pictures"] for row in mine), [row["kept"] for row in mine]
            before, after = (sum(row[when] * row["pictures"] for row in mine) / count for when in ("before", "after"))
            low, high = interval(after, count)
            spread = f"{sum(kept) / len(kept):.0%}" + (f" ({min(kept):.0%} to {max(kept):.0%})" if len(kept) > 1 else "")
            yield f"| {name} | {mine[0]['steps']} | {len(mine)} | {before:.0%} | {after:.0%} [{low:.0%}, {high:.0%}] | {spread} |"


def _followed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Per attribute the parts of all seeds' pictures that show what their hint shows, under the hint and without it."""
    yield "| method | hint | steps | seeds | attribute | followed | without the hint | by chance |\n|---|---|---|---|---|---|---|---|"
    for name in followed.TASKS:
        if mine := [row for row in rows if row["task"] == name]:
            count = sum(row["pictures"] for row in mine)
            for attribute, chance in mine[0]["chance"].items():
                parts = [sum(row[side][attribute][0] * row["pictures"] for row in mine) / count for side in ("with_hint", "without")]
                low, high = interval(parts[0], count)
                yield f"| {name} | {mine[0]['hint']} | {mine[0]['steps']} | {len(mine)} | {attribute} | {parts[0]:.0%} [{low:.0%}, {high:.0%}] | {parts[1]:.0%} | {chance:.0%} |"
