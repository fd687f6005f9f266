"""`bench compare`: how often the suggested step of a run is about the best one, by the drawn world's classifier, and what the numbers cost.

Short runs on the embedded model with different methods, rates and seeds, of which every save is measured and judged. Everything goes into one JSON file as
soon as a run is done, so that a bench that was stopped goes on where it was. The suggestion sees nothing of what the judge says.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from .bench import REPORTS, scratch
from .bench_grid import PART as GRID_PART
from .bench_grid import grid_cost
from .compare.applied import applied
from .compare.numbers import Asked, Saved, numbers, row_of, saves_of
from .compare.suggest import Suggestion, suggest
from .demo import learned
from .demo.judge import Judge, interval
from .demo.run import MOON, HostClass, caption, judged, random_scenes, rest, write_data, write_pictures
from .disk import atomic
from .events import Finished, Saved as SavedEvent
from .host import Host
from .methods import METHODS
from .progress import Status
from .recorders import csv
from .settings import TrainConfig
from .train import train

NEAR = 0.95  # of the best save's score
SAVES = 6
SEEDS = (0, 50, 100)  # of the prompts for the subject, 48 pictures each; of the ordinary ones the first
FIRST = 101  # seed of the first run: the rule was made up on runs with smaller ones
LEAST = 0.2  # of a save that has learned anything: where none has, no step is a good one
PART = 0.05  # of the training time, that ten saves' numbers may cost


@dataclass(frozen=True)
class Case:
    """A kind of run: a row of `bench methods`, other settings, and whether pictures are held out for the numbers."""

    task: str
    values: Mapping[str, Any]
    held_out: bool = True


def _case(task: str, lr: str = "", held_out: bool = True, **values: Any) -> Case:
    """At the demo's rate with its schedule, or all the time at another one."""
    return Case(task, {**({"optim.lr": lr, "optim.schedule": "constant"} if lr else {}), **values}, held_out)


CASES = (  # rates at which a run of this length learns well, too little or too much
    _case("lora"), _case("textual_inversion"), _case("loha", "1e-2"), _case("lora", "8e-3", **learned.ALONE), _case("hypernetwork"), _case("lora", "1e-3", False),
    _case("textual_inversion", "3e-1", False), _case("lokr", "8e-3", **learned.ALONE), _case("locon"), _case("lora, DoRA", "4e-3", False), _case("pivotal"), _case("loha", "", False, **learned.ALONE),
)  # fmt: skip


def main(args: Namespace, host: HostClass) -> int:
    """Makes the runs that the report lacks, and writes the table to stdout, the progress to stderr."""
    torch.set_num_threads(1)  # as the demo: this model's tensors are too small to share
    if args.grid:
        return _grid(args, host)
    report, status = Report(Path(args.report) if args.report else REPORTS / f"{time.strftime('%Y-%m-%d')}-compare.json"), Status(sys.stderr)
    for number in range(args.runs):
        if not report.has(number):
            case = CASES[number % len(CASES)]
            status.line(f"run {number + 1} of {args.runs}: {case.task} {case.values.get('optim.lr', '')}".rstrip())
            with scratch() as folder:
                report.add(measure(number, case, folder, host, lambda text: status.show(text)))
    status.clear()
    sys.stdout.write(json.dumps(report.whole()) + "\n" if args.json else table(report.rows))
    return 0


def _grid(args: Namespace, host: HostClass) -> int:
    status = Status(sys.stderr)
    with scratch() as folder:
        row = grid_cost(host, folder, told=status.line)
    status.clear()
    said = f"A grid of {row['cells']} pictures ({row['size']} px, {row['steps']} steps) costs {row['over']:.1%} over the pictures themselves ({row['pictures_s']} s; the aim is {GRID_PART:.0%})."
    sys.stdout.write((json.dumps(row) if args.json else said) + "\n")
    return 0


class Report:
    """The runs in their file, each with what the rule suggests now."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []
        if path.is_file():
            try:
                self.rows = list(json.loads(path.read_text(encoding="utf-8"))["runs"])
                self.rows = [judgement(row) for row in self.rows]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is no report of `bench compare`; name another file with --report.") from None

    def has(self, number: int) -> bool:
        return any(row["run"] == number for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(judgement({**row, "date": time.strftime("%Y-%m-%d")}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.path) as part:
            part.write_text(json.dumps(self.whole(), indent=1) + "\n", encoding="utf-8")

    def whole(self) -> dict[str, Any]:
        """What the file holds."""
        return {"packages": {"torch": version("torch")}, "threads": torch.get_num_threads(), "runs": self.rows}


# ---- a run -----------------------------------------------------------------------------------------------------------


def measure(number: int, case: Case, folder: Path, host_class: HostClass, told: Callable[[str], None] = lambda text: None, more: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """One run in an empty folder: its saves with their numbers and the judge's scores, and the seconds of the processor that training and numbers took."""
    task, seed = learned.TASKS[case.task], FIRST + number
    cfg = settings(case, folder, seed, more)
    host, judge = host_class(cfg), Judge.load()
    told("training")
    began = time.process_time()
    made, saves = _trained(cfg, host)
    trained = time.process_time() - began
    told("numbers")
    began = time.process_time()
    rows = list(numbers(made, cfg, saves, host))
    measured = time.process_time() - began
    before = rest(host, judge, seed)
    scores = {}
    for save in saves:
        told(f"judging step {save.step}")
        with host.exclusive() as sd, applied(sd, Asked(cfg).uses(save)):
            seen = sum(judged(host, judge, task.subject, seed + s)[0] for s in SEEDS) / len(SEEDS)
            kept = 1.0 if task.method == "textual_inversion" else rest(host, judge, seed).kept(before)  # a word leaves everything else as it is
        scores[save.step] = {"seen": round(seen, 4), "kept": round(kept, 4), "score": round(seen * kept, 4)}
    return {
        "run": number, "task": case.task, "method": task.method, "seed": seed, "values": dict(case.values), "steps": cfg.steps, "training": round(trained, 2), "numbers": round(measured, 2),
        "rows": [asdict(row) for row in rows], "scores": scores,
    }  # fmt: skip


def settings(case: Case, folder: Path, seed: int, more: Mapping[str, Any] = MappingProxyType({})) -> TrainConfig:
    """The run's settings on data that are written here: those of the task, and pictures of its subject that are held out."""
    write_data(folder / "data")
    generator = torch.Generator().manual_seed(3000)
    moons, robots = random_scenes(8, generator).fixed(**MOON), random_scenes(8, generator).fixed(shape="robot", fill="solid", size="large")
    write_pictures(folder / "held" / "moon", moons, generator, lambda words, i: f"{words['background']} background")
    write_pictures(folder / "held" / "robot", robots, generator, lambda words, i: caption(words, (5, 0, 7, 11)[i % 4]).replace("solid ", ""))
    task = learned.TASKS[case.task]
    if task.method == "pivotal":
        learned.rename_robot(folder)
        learned.named(folder / "held" / "robot")
    cfg = learned.settings(task, folder, seed, {**case.values, **more})
    held = folder / "held" / ("moon" if task.method == "textual_inversion" else "robot")
    return replace(cfg, save_every=max(1, cfg.steps // SAVES), data=replace(cfg.data, validation_folder=str(held) if case.held_out else ""))


def _trained(cfg: TrainConfig, host: Host) -> tuple[Path, list[Saved]]:
    """The run's folder and its saves."""
    files: dict[Path, int] = {}
    with closing(csv(train(cfg, METHODS[cfg.method](cfg), host))) as events:
        for event in events:
            if isinstance(event, SavedEvent):
                files.update(dict.fromkeys(event.paths, event.step))
            last = event
    if not isinstance(last, Finished) or last.reason != "done":
        raise RuntimeError(f"The run {cfg.name} of `bench compare` ended early.")
    return next(iter(files)).parent, saves_of(files, files)


# ---- what comes of it ------------------------------------------------------------------------------------------------


def suggestion_of(row: dict[str, Any]) -> Suggestion:
    """What the rule suggests for a run of the report, by its numbers alone."""
    return suggest([row_of(values) for values in row["rows"]])


def judgement(row: dict[str, Any]) -> dict[str, Any]:
    """A run with the suggested step, the best one, and whether the first is nearly as good."""
    found, scores = suggestion_of(row), {int(step): s["score"] for step, s in row["scores"].items()}
    best = max(scores, key=scores.get)
    ten = row["numbers"] / len(row["rows"]) * 11  # ten saves and the model before the run
    return {
        **row, "scores": {str(step): row["scores"].get(step, row["scores"].get(str(step))) for step in scores}, "suggested": found.step, "why": found.why, "verdict": found.verdict,
        "best": best, "near": _near(row, found.step), "cost": round(ten / row["training"], 4),
    }  # fmt: skip


def _near(row: dict[str, Any], step: int | None) -> bool:
    """Whether a step's score is within a twentieth of the best one's; no step is not."""
    scores = {int(at): s["score"] for at, s in row["scores"].items()}
    return step is not None and scores[step] >= NEAR * max(scores.values())


def table(rows: list[dict[str, Any]]) -> str:
    """The runs as Markdown, and how often the suggestion was good."""
    lines = ["| run | method | rate | suggested step | its score | best step | its score | within 5% | ten saves cost |\n|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        score, verdict = {int(step): s["score"] for step, s in row["scores"].items()}, f" ({row['verdict']})" if row["verdict"] else ""
        taken = "none" if row["suggested"] is None else row["suggested"]
        lines.append(f"| {row['run'] + 1} | {row['task']} | {row['values'].get('optim.lr', 'as in the demo')} | {taken}{verdict} | {score.get(row['suggested'], 0):.2f} "
                     f"| {row['best']} | {score[row['best']]:.2f} | {'yes' if row['near'] else 'no'} | {row['cost']:.1%} |")  # fmt: skip
    return "\n".join([*lines, *_summary(rows)]) + "\n"


def _summary(rows: list[dict[str, Any]]) -> list[str]:
    """How often the suggestion was good, beside what two simpler rules would have taken; and the cost."""
    learned_any = [row for row in rows if max(s["score"] for s in row["scores"].values()) >= LEAST]
    lines = []
    if count := len(learned_any):
        good, (low, high) = sum(row["near"] for row in learned_any), interval(sum(row["near"] for row in learned_any) / count, count)
        last = sum(_near(row, row["rows"][-1]["step"]) for row in learned_any)
        least = sum(_near(row, min(row["rows"][1:], key=lambda r: r["loss"])["step"]) for row in learned_any)
        lines += ["", f"Within 5% of the best save in {good} of {count} runs ({good / count:.0%}, 95% interval {low:.0%} to {high:.0%})."]
        lines += [f"The last save is that good in {last}, the one with the least loss in {least}."]
    if nothing := len(rows) - len(learned_any):
        lines += [f"{nothing} run{'s' * (nothing > 1)} learned nothing and {'are' if nothing > 1 else 'is'} not counted (no score of {LEAST} or more)."]
    if costs := [row["cost"] for row in rows if row["method"] not in ("textual_inversion", "hypernetwork")]:
        lines += [f"Numbers of ten saves of a LoRA cost {sum(costs) / len(costs):.1%} of its training (at most {max(costs):.1%}; the aim is {PART:.0%})."]
    return lines
