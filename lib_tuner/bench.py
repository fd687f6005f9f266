"""`bench`: our LoRA and Textual Inversion update beside the same work of diffusers, transformers and peft, on the same random full-size weights.

Every measured side lives in a process of its own, so that its peak memory is its own, and the sides of a comparison take turns, update by update,
so that whatever else the machine does hits them alike.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from .bench_peers import PEERS
from .bench_worker import HostClass, Ours, Side, Worker
from .disk import atomic
from .progress import Status
from .step import has_bf16

PEER = "diffusers+peft"
TASKS = ("lora", "textual_inversion")
WEIGHTS = Path("outputs/bench/random-sd15.safetensors")
REPORTS = Path(__file__).resolve().parent.parent / "benchmarks"
SAME = {"float32": 1e-3}  # largest relative difference of the losses by which it is the same work
SAME_HALF = 5e-2  # where one of the sides computes in two bytes


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds of one turn per side, and seconds for all of it."""

    rounds: int
    seconds: float = math.inf


QUICK, FULL = Effort(3, 85.0), Effort(5)
LEAST = 2  # rounds that are measured however long they take


@dataclass(frozen=True)
class Pair:
    """A row to be: our precision (fp32, bf16, or default: what we choose) beside the peer's."""

    precision: str
    peer: str


@dataclass(frozen=True)
class Comparison:
    """Rows whose sides take turns, all of one task, size, batch and device."""

    task: str
    size: int
    pairs: tuple[Pair, ...]
    batch: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.task}, {self.size} px, batch {self.batch}, {self.device}, {' and '.join(pair.precision for pair in self.pairs)}"


def comparisons(quick: bool, bf16: bool, cuda: bool) -> list[Comparison]:
    """What is measured. `quick` shares a peer's process between rows; the full run does not, since 512 px in fp32 need its memory."""
    fp32, default, half = Pair("fp32", "fp32"), Pair("default", "fp32"), Pair("bf16", "bf16")
    groups = [(fp32, default)] if quick else [(fp32,), (default,), *([(half,)] if bf16 else [])]
    sizes = (256,) if quick else (256, 512)
    on_cpu = [Comparison(task, size, group) for size in sizes for task in TASKS for group in groups]
    on_gpu = [Comparison(task, size, (Pair("default", "bf16"),), batch, "cuda") for size in sizes for batch in (1, 8) for task in TASKS]
    return on_cpu + (on_gpu if cuda else [])


# ---- the command


def main(args: Namespace, host: HostClass) -> int:
    """Measures and writes the rows to stdout, the progress to stderr; 1 where something failed or the two sides did not do the same work."""
    _check_peers()
    began, effort, status = time.monotonic(), QUICK if args.quick else FULL, Status(sys.stderr)
    cuda = torch.cuda.is_available() and has_bf16(torch.device("cuda"))
    weights = random_weights(WEIGHTS, status)
    todo, rows, report = comparisons(args.quick, has_bf16(torch.device("cpu")), cuda), [], ""
    place = report_place(REPORTS, device_name("cuda"), args.quick) if cuda else None
    for left, comparison in zip(range(len(todo), 0, -1), todo):
        now = time.monotonic()
        ends = now + max(0.0, began + effort.seconds - now) / left
        rows += rows_of(comparison, weights, host, effort, ends, status)
        if place:
            report = reported(place, rows, left == 1)
    status.clear()
    sys.stdout.write((json.dumps(rows, indent=1) if args.json else table(rows)) + "\n")
    if report:
        status.line(report)
    return 1 if "not written" in report or any("error" in row or not row.get("same_work", True) for row in rows) else 0


def rows_of(what: Comparison, weights: Path, host: HostClass, effort: Effort, ends: float, status: Status) -> list[dict[str, Any]]:
    """The rows of a comparison; where one of its processes dies, what would have been measured and why it was not: the other comparisons go on."""
    try:
        return measure(what, weights, host, effort, ends, status)
    except ChildProcessError as error:
        status.line(str(error))
        about = {"task": what.task, "size": what.size, "peer": PEER, "batch": what.batch, "device": device_name(what.device), "error": str(error)}
        return [{**about, "precision": pair.precision} for pair in what.pairs]


def reported(place: Path, rows: list[dict[str, Any]], whole: bool) -> str:
    """Writes the report of what is measured so far, and says where it is, or why it is not written; it has its name only when it is whole."""
    try:
        return f"Written: {write_report(place, rows, device_name('cuda'), whole)}"
    except OSError as error:
        return f"The report was not written ({error.filename or place}: {error.strerror or error})."


def _check_peers() -> None:
    missing = [name for name in ("diffusers", "transformers", "peft") if find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise ValueError(f"bench compares with {PEER}, and {names} is not in this Python: install lib_tuner/requirements-test.txt, or leave --no-venv out.")


def random_weights(path: Path, status: Status) -> Path:
    """The full-size checkpoint of random weights, written at the first start."""
    if path.is_file():
        return path
    from .sd.clip import CLIPText
    from .sd.unet import UNet
    from .sd.vae import VAE
    from .tools.make_random import write_random

    status.line(f"Writing random weights to {path} (2.1 GB, once)")
    with torch.device("meta"):
        parts = UNet(), VAE(), CLIPText()
    return write_random(path, *parts)


def report_place(folder: Path, device: str, quick: bool = False) -> Path:
    """`DATE-DEVICE.json`, of a quick run `DATE-DEVICE-quick.json`; with -2, -3 ... where an earlier run has that, finished or not: hours of measuring are in it."""
    name = f"{time.strftime('%Y-%m-%d')}-" + "".join(c if c.isalnum() else "-" for c in device.lower()) + "-quick" * quick
    number, place = 1, folder / f"{name}.json"
    while any(map(os.path.lexists, (place, unfinished(place)))):
        number += 1
        place = folder / f"{name}-{number}.json"
    return place


def unfinished(place: Path) -> Path:
    """Where a report is while its run goes on."""
    return place.with_name(f"{place.stem}-unfinished.json")


def write_report(place: Path, rows: list[dict[str, Any]], device: str, whole: bool) -> Path:
    """Writes the rows and the versions they were measured with: to `place` where it is `whole`, else to `unfinished`, which is gone afterwards."""
    packages = {package: version(package) for package in ("torch", "diffusers", "transformers", "peft")}
    part, date = unfinished(place), time.strftime("%Y-%m-%d")
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic(part) as file:
        file.write_text(json.dumps({"date": date, "device": device, "packages": packages, "rows": rows}, indent=1), encoding="utf-8")
    return part.replace(place) if whole else part


# ---- one comparison


def measure(what: Comparison, weights: Path, host: HostClass, effort: Effort, ends: float, status: Status) -> list[dict[str, Any]]:
    """The rows of a comparison; repeats end at `ends` (of time.monotonic) where the least is done. Raises ChildProcessError where a process dies."""
    count = 10 if what.device == "cuda" else 1  # updates per turn: a GPU runs ahead, and waiting for each would be the time measured
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        draw_pictures(folder / "pictures", what.size, what.batch)
        children = {}
        for side in sides(what, weights, folder):
            children[side] = Child(side, host)
            stack.callback(children[side].end)
        status.show(f"{what.name}: loading")
        _same_start(list(children.values()), folder / "start.pt")
        take_turns(list(children.values()), effort.rounds, count, ends, lambda n: status.show(f"{what.name}: " + (f"round {n}" if n else "warming up")))
        return [row(what, pair, *(children[side] for side in pair_sides(what, pair, weights, folder))) for pair in what.pairs]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards, as far as the system lets go of it."""
    with tempfile.TemporaryDirectory(prefix="tuner-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def pair_sides(what: Comparison, pair: Pair, weights: Path, folder: Path) -> tuple[Side, Side]:
    """Our side of a row and the peer's."""

    def side(who: str, precision: str) -> Side:
        return Side(who, what.task, what.size, precision, weights, folder, what.batch, what.device)

    return side("ours", "auto" if pair.precision == "default" else pair.precision), side("peer", pair.peer)


def sides(what: Comparison, weights: Path, folder: Path) -> list[Side]:
    """The sides of all rows, each once, ours first."""
    found = {side: None for pair in what.pairs for side in pair_sides(what, pair, weights, folder)}
    return sorted(found, key=lambda side: side.who)


def draw_pictures(folder: Path, size: int, count: int) -> None:
    """`count` square pictures with captions."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (size, size), (40 + 20 * i, 200 - 20 * i, 90)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a picture of number {i}, flat colour", encoding="utf-8")


def _same_start(children: list[Child], path: Path) -> None:
    """Waits until all are loaded; the peers then start from our first side's values."""
    for child in children:
        child.answer()
    children[0].ask("save_start", path)
    for child in children:
        if child.side.who == "peer":
            child.ask("load_start", path)


def take_turns(children: Iterable[Child], rounds: int, count: int, ends: float, on_round: Callable[[int], None]) -> None:
    """One unmeasured turn of each, then up to `rounds` measured ones, as long as another round would end in time."""
    for done in range(rounds + 1):
        began = time.monotonic()
        on_round(done)
        for child in children:
            child.turn(count, warm_up=done == 0)
        now = time.monotonic()
        if done >= LEAST and now + (now - began) > ends:
            return


def row(what: Comparison, pair: Pair, ours: Child, peer: Child) -> dict[str, Any]:
    """One line of the result; seconds are medians, `ratio` ours by theirs, GB 1e9 bytes.

    `loop` is the part of our updates that is not the UNet's forward and backward pass; with cached text that is the cost of the loop, so for LoRA alone.
    """
    ours_s, peer_s = median(ours.seconds), median(peer.seconds)
    difference = loss_difference(ours.losses, peer.losses)
    dtypes = ours.ask("dtype"), peer.ask("dtype")
    return {
        "task": what.task, "size": what.size, "precision": pair.precision, "ours_s": rounded(ours_s), "peer": PEER, "peer_s": rounded(peer_s),
        "ratio": rounded(ours_s / peer_s), "ours_gb": rounded(ours.ask("peak")), "peer_gb": rounded(peer.ask("peak")), "batch": what.batch,
        "device": device_name(what.device), "ours_dtype": dtypes[0], "peer_dtype": dtypes[1], "repeats": len(ours.seconds),
        "same_work": difference < max(SAME.get(dtype, SAME_HALF) for dtype in dtypes), "loss_difference": rounded(difference),
        "loop": rounded(median(1 - p / s for p, s in zip(ours.passes, ours.seconds))) if what.task == "lora" else None,
    }  # fmt: skip


def loss_difference(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference between the losses of the same updates; not a number counts as infinite."""
    worst = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs))
    return worst if math.isfinite(worst) else math.inf


def rounded(value: float | None) -> float | None:
    """Four digits; None stays."""
    return None if value is None else float(f"{value:.4g}")


def device_name(device: str) -> str:
    """`cpu`, or what the GPU calls itself."""
    return torch.cuda.get_device_name() if device == "cuda" else device


# ---- processes


def make_worker(side: Side, host: HostClass) -> Worker:
    """The side, loaded and ready."""
    return Ours(side, host) if side.who == "ours" else PEERS[side.task](side)


def serve(connection: Any, make: Callable[..., Worker], side: Side, host: HostClass) -> None:
    """The life of a child: makes its worker, then answers (method, arguments) with what the method returns, until None comes."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout belongs to the result; libraries greet there
    worker = make(side, host)
    connection.send(None)
    for name, arguments in iter(connection.recv, None):
        connection.send(getattr(worker, name)(*arguments))
    worker.close()


class Child:
    """A side in its process, with what was measured of it."""

    def __init__(self, side: Side, host: HostClass, make: Callable[..., Worker] = make_worker):
        self.side, self.number = side, 0
        self.seconds: list[float] = []
        self.passes: list[float] = []
        self.losses: list[float] = []
        context = multiprocessing.get_context("spawn")  # nothing of the parent's memory, and CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, side, host), daemon=True)
        self.process.start()
        theirs.close()

    def turn(self, count: int, warm_up: bool = False) -> None:
        """`count` updates; kept, unless to warm up."""
        seconds, passes, losses = self.ask("run", self.number, count)
        self.number += len(losses)
        self.losses += losses
        if not warm_up:
            self.seconds.append(seconds)
            self.passes.append(passes)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the worker's method returns."""
        try:
            self.connection.send((method, arguments))
        except OSError:
            raise self._ended() from None
        return self.answer()

    def answer(self) -> Any:
        """Waits for the next answer. Raises ChildProcessError where the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> ChildProcessError:
        self.process.join(10)
        code = self.process.exitcode
        killed = "was killed, most likely for want of memory: close other programs, or use --quick"
        reason = killed if code == -9 else f"ended early (exit code {code}); its error stands above"
        return ChildProcessError(f"The process that measures {self.side.who} {self.side.task} at {self.side.size} px in {self.side.precision} {reason}.")

    def end(self) -> None:
        """Lets the process go, by force where it does not."""
        try:
            self.connection.send(None)
        except OSError:  # it has ended already
            self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


# ---- what people read

COLUMNS = (  # heading, key, format
    ("task", "task", "{}"), ("px", "size", "{}"), ("batch", "batch", "{}"), ("device", "device", "{}"), ("precision", "precision", "{}"),
    ("ours", "ours_s", "{:.3g} s"), ("peer", "peer_s", "{:.3g} s"), ("ratio", "ratio", "{:.2f}"), ("ours", "ours_gb", "{:.1f} GB"),
    ("peer", "peer_gb", "{:.1f} GB"), ("same work", "same_work", "{}"), ("loop", "loop", "{:.1%}"),
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns, with what the columns mean below."""
    lines = [[heading for heading, _, _ in COLUMNS], *(list(_cells(row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)
    text += "".join(f"\n\n{error}" for error in dict.fromkeys(row["error"] for row in rows if "error" in row))
    return f"{text}\n\nSeconds per update and peak memory; peer: {PEER}; ratio = ours / peer; loop: part of ours that is not forward and backward pass."


def _cells(row: dict[str, Any]) -> Iterator[str]:
    for _, key, form in COLUMNS:
        value = "failed" if key == "ratio" and "error" in row else row.get(key)
        yield "" if value is None else {True: "yes", False: "NO"}[value] if isinstance(value, bool) else value if isinstance(value, str) else form.format(value)
