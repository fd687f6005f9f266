"""Whether what is drawn follows a hint: a T2I-Adapter or a ControlNet for the embedded model, judged on held-out pictures of the drawn world.

The prompt names no shape, no colour and no place, so without the hint a picture has what the hint shows by chance alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..config import build
from ..data.conditions import Recipe, make_hint
from ..data.pictures import from_pixels, to_pixels
from ..events import Finished, Stepped
from ..host import GenerateRequest, Host
from ..methods import METHODS
from ..settings import TrainConfig
from ..train import train
from .judge import Judge, interval
from .world import ATTRIBUTES, HELD_OUT_FILLS, HELD_OUT_SHAPES, draw, random_scenes

LEARNED, JUDGED = 256, 96  # pictures
PROMPT = "a picture"
FIRST = {"loss.min_snr": 5.0, "loss.t_distribution": "cubic"}  # where a picture is in the noisiest steps is what a hint has to tell
SHARED = {"hint": "colour", "cell": 8, "attributes": ("colour", "background", "place"), "lr": "4e-3", "steps": 400}
TASKS: dict[str, dict[str, Any]] = {  # what each method is asked to follow, and with which settings
    "t2i_adapter": {**SHARED, "own": {**FIRST, "t2i_adapter.small_start": True}},
    "controlnet": {**SHARED, "own": FIRST},
}


class Follower:
    """One method's task: its data, its settings, and its score."""

    def __init__(self, kind: str, folder: Path, steps: int = 0, seed: int = 1):
        self.kind, self.folder, self.task, self.seed = kind, folder, TASKS[kind], seed
        self.steps = steps or self.task["steps"]

    def settings(self) -> TrainConfig:
        """The run's settings."""
        kind, task = self.kind, self.task
        values = {
            "name": f"follow-{kind}", "method": kind, "output": str(self.folder / "runs"), "data.folder": str(self.folder / "pictures"), "steps": self.steps, "save_every": 0,
            "seed": self.seed, "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8, "data.batch": 8, "optim.lr": task["lr"], "optim.schedule": "cosine",
            "optim.warmup": 20, f"{kind}.hint": task["hint"], f"{kind}.cell": task["cell"], **task["own"],
        }  # fmt: skip
        return build(TrainConfig, values, METHODS[kind].Config)

    def write_data(self) -> None:
        """Pictures to learn from, all with the same caption."""
        generator = torch.Generator().manual_seed(100 + self.seed)
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        for i, pixels in enumerate(draw(random_scenes(LEARNED, generator), generator)):
            from_pixels(pixels).save(self.folder / "pictures" / f"{i:03d}.png")
            (self.folder / "pictures" / f"{i:03d}.txt").write_text(PROMPT, encoding="utf-8")

    def score(self, host: Host, method: Any, judge: Judge) -> dict[str, list[float]]:
        """Per attribute [part, low, high] of the `JUDGED` held-out pictures whose hint is followed; with no method, of as many pictures without a hint."""
        generator = torch.Generator().manual_seed(7000 + self.seed)
        scenes = random_scenes(JUDGED, generator)
        hints = [make_hint((pixels + 1) / 2, self._recipe()).expand(3, -1, -1) for pixels in draw(scenes, generator)]
        drawn = torch.stack([to_pixels(picture) for picture in self._drawn(host, method, hints)])
        logits, found = judge(drawn), {}
        for name in self.task["attributes"]:
            part = float((logits[name].argmax(1) == getattr(scenes, name)).float().mean())
            found[name] = [round(value, 3) for value in (part, *interval(part, JUDGED))]
        return found

    def _recipe(self) -> Recipe:
        return Recipe(self.task["hint"], cell=self.task["cell"])

    def _drawn(self, host: Host, method: Any, hints: list[Tensor]) -> list[Image.Image]:
        """A picture under each hint, as many at once as the host draws at once."""
        requests = [GenerateRequest(PROMPT, width=64, height=64, steps=12, cfg=1.0, seed=500 + i) for i in range(len(hints))]
        pictures = []
        for at in range(0, len(hints), 48):
            if method is not None:
                method.begin(SimpleNamespace(hint=torch.stack(hints[at : at + 48]), indices=()))
            pictures += host.generate(requests[at : at + 48])
        return pictures


def measure(kind: str, folder: Path, host_class: Callable[[TrainConfig], Host], steps: int = 0, seed: int = 1) -> dict[str, Any]:
    """Trains one of `TASKS` in an empty folder and judges it: per attribute the part of held-out pictures that show what their hint shows, with its 95%
    interval, `with_hint` and `without`, beside `chance`; and what it took. `steps` 0: the task's own number.
    """
    began, task, judge = time.monotonic(), Follower(kind, folder, steps, seed), Judge.load()
    task.write_data()
    cfg = task.settings()
    host, method = host_class(cfg), METHODS[kind](cfg)
    without, score, losses = task.score(host, None, judge), None, []
    with closing(train(cfg, method, host)) as events:
        for event in events:
            if isinstance(event, Stepped):
                losses.append(float(event.loss))
            if isinstance(event, Finished) and event.reason == "done":
                score = task.score(host, method, judge)  # still attached: the run ends when its generator does
    if score is None:
        raise RuntimeError(f"The run of {kind} ended early.")
    tenth = max(1, len(losses) // 10)
    return {
        "method": kind, "hint": task.task["hint"], "pictures": JUDGED, "steps": cfg.steps, "seconds": round(time.monotonic() - began, 1), "with_hint": score, "without": without,
        "chance": {name: chance(name) for name in score}, "loss": [round(sum(part) / tenth, 4) for part in (losses[:tenth], losses[-tenth:])],
    }  # fmt: skip


def chance(attribute: str) -> float:
    """How often two random pictures have the same."""
    left_out = {"shape": HELD_OUT_SHAPES, "fill": HELD_OUT_FILLS}.get(attribute, ())
    return round(1 / (len(ATTRIBUTES[attribute]) - len(left_out)), 3)
