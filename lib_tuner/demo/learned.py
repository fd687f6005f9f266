"""What each method learns of the demo's subjects on the embedded model, and what is kept of everything else: one row for `bench methods`.

A word of its own learns what it can, the purple striped moon, a combination of known parts; everything else that is used by a prompt learns the robot, which
the model has never drawn; what follows a hint is judged by `followed`.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..config import build
from ..methods import METHODS
from ..settings import TrainConfig
from . import followed
from .judge import Judge
from .run import JUDGED, SUBJECTS, Bar, HostClass, Rest, Subject, embedding_settings, judged, lora_settings, rest, trained, write_data

WORD = "zbot"  # what pivotal tuning calls the robot: a word without a meaning
PROMPTS = 64  # class prompts of the frozen prior


@dataclass(frozen=True)
class Task:
    """What a row of the table learns: a method, its subject, and the settings that differ from the demo's LoRA (or embedding)."""

    method: str
    subject: Subject
    values: Mapping[str, Any]


def _robot(method: str, steps: int = 480, lr: str = "4e-3", **own: Any) -> Task:
    sized = {f"{method}.{name}": value for name, value in own.items() if "." not in name}
    return Task(method, SUBJECTS["lora"], {"steps": steps, "optim.lr": lr, **sized, **{name: value for name, value in own.items() if "." in name}})


ALONE = {"data.class_folder": "", "data.class_share": 0.0}
EIGHT = {"rank": 8, "alpha": 8, "conv_rank": 8, "conv_alpha": 8}
LAYERS = {f"pivotal.layers.{name}": value for name, value in EIGHT.items()}
TASKS: dict[str, Task] = {
    "lora": _robot("lora", **EIGHT),
    "lora, DoRA": _robot("lora", **EIGHT, dora=True),
    "lora, rsLoRA": _robot("lora", **EIGHT, rank_stabilized=True),
    "locon": _robot("locon", **EIGHT),
    "locon, Tucker": _robot("locon", **EIGHT, tucker=True),
    "loha": _robot("loha", **EIGHT),
    "lokr": _robot("lokr", **EIGHT, factor=4),
    "adalora": _robot("adalora", rank=8, first_rank=12, alpha=12, conv_rank=8, conv_alpha=8),
    "textual_inversion": Task("textual_inversion", SUBJECTS["embedding"], {}),
    "pivotal": replace(
        _robot("pivotal", steps=600, inversion_steps=120, inversion_lr=6e-2, continue_lr=5e-3, **LAYERS, **{"pivotal.words.init": "a"}),
        subject=Subject(f"{{colour}} {WORD}", {"shape": "robot"}),
    ),
    "dreambooth": _robot("dreambooth", lr="1e-3", **{"data.class_share": 0.3}),
    "dreambooth, frozen prior": _robot("dreambooth", steps=240, lr="1e-3", **ALONE, **{"prior.weight": 1.0}),
    "dreambooth, no prior": _robot("dreambooth", steps=240, lr="1e-3", **ALONE),
    "hypernetwork": _robot("hypernetwork", lr="2e-3", structure="1, 4, 1", activation="swish"),
}


def settings(task: Task, folder: Path, seed: int, more: Mapping[str, Any] = MappingProxyType({})) -> TrainConfig:
    """The run's settings, into `folder / "runs"`, on data that `write_data` wrote to `folder / "data"`."""
    values = embedding_settings(folder) if task.method == "textual_inversion" else lora_settings(folder)
    shared = {name: value for name, value in values.items() if not name.startswith("lora.")}
    values = {**shared, "method": task.method, "seed": seed, **task.values, **more}
    if task.method == "pivotal":
        values |= {"name": WORD, "trigger": "", "data.folder": str(folder / "data" / WORD)}
    if values.get("prior.weight"):
        values["prior.prompt"] = "\n".join(file.read_text(encoding="utf-8") for file in sorted((folder / "data" / "class").glob("*.txt"))[:PROMPTS])
    return build(TrainConfig, values, METHODS[task.method].Config)


def rename_robot(folder: Path) -> None:
    """The robot's pictures once more, with a word of its own in the captions."""
    shutil.copytree(folder / "data" / "robot", folder / "data" / WORD)
    named(folder / "data" / WORD)


def named(folder: Path) -> None:
    """Puts the word of its own into the captions of robots."""
    for file in folder.glob("*.txt"):
        file.write_text(file.read_text(encoding="utf-8").replace("robot", WORD), encoding="utf-8")


def measure(name: str, seed: int, folder: Path, host_class: HostClass, more: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """One row: the task `name` of `TASKS` learned with a seed, judged before and after on that seed's prompts, in an empty folder."""
    if name in followed.TASKS:
        return {"task": name, "seed": seed, **followed.measure(name, folder, host_class, seed=seed)}
    task, judge, began = TASKS[name], Judge.load(), time.monotonic()
    write_data(folder / "data")
    if task.method == "pivotal":
        rename_robot(folder)
    cfg = settings(task, folder, seed, more)
    host = host_class(cfg)

    def look() -> tuple[float, Rest]:
        return judged(host, judge, task.subject, seed)[0], rest(host, judge, seed)

    before, rest_before = look()
    after, rest_after = trained(cfg, host, look, Bar(sys.stderr))
    quotients = {part: round(getattr(rest_after, part) / getattr(rest_before, part), 4) for part in ("right", "kinds", "saturation")}
    return {
        "task": name, "seed": seed, "pictures": JUDGED, "steps": cfg.steps, "before": round(before, 4), "after": round(after, 4),
        "kept": round(rest_after.kept(rest_before), 4), **quotients, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
