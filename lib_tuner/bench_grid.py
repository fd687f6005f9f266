"""`bench compare --grid`: what a grid costs beside the pictures that are in it, as seconds of the processor, the two in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from .compare.applied import Use
from .compare.cells import Axis, Cell, Choice, Offer, plan_grid
from .compare.draw import draw, infotext, png_info
from .compare.sheet import compose
from .demo.run import HostClass
from .host import GenerateRequest, Host
from .methods import METHODS, settings
from .methods.metadata import Made
from .sd.loss import generator_for
from .settings import TrainConfig

SIDE, ROUNDS = 5, 3
PART = 0.03  # of the pictures' own time, that the grid may cost


def grid_cost(host_class: HostClass, folder: Path, steps: int = 20, size: int = 64, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """A grid of five LoRAs by five seeds, drawn, saved and put together, beside the same 25 pictures of the model alone."""
    cfg = settings({})
    host = host_class(cfg)
    files = [_lora(host, cfg, folder / f"save-{number}", number) for number in range(SIDE)]
    request = GenerateRequest("a red star on a white background", width=size, height=size, steps=steps, cfg=3.0)
    plan = plan_grid(Cell(request, (Use(files[0]),)), {"x": Axis("file", ", ".join(file.stem for file in files)), "y": Axis("seed", f"1-{SIDE}")}, Offer(files=tuple(map(Choice, files))))
    seconds: dict[str, list[float]] = {"pictures": [], "grid": []}
    for number in range(ROUNDS):
        told(f"round {number + 1} of {ROUNDS}")
        seconds["pictures"].append(_timed(lambda: _alone(host, plan)))
        seconds["grid"].append(_timed(lambda: _grid(host, plan, folder)))
    pictures, grid = median(seconds["pictures"]), median(seconds["grid"])
    return {"op": "grid", "cells": len(plan.cells), "size": size, "steps": steps, "pictures_s": round(pictures, 3), "grid_s": round(grid, 3), "over": round(grid / pictures - 1, 4)}


def _timed(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _alone(host: Host, plan: Any) -> None:
    """The pictures as the grid asks for them: a column of the same file at a time."""
    with host.exclusive():
        for x in range(SIDE):
            host.generate([plan.cells[plan.at(x, y)].request for y in range(SIDE)])


def _grid(host: Host, plan: Any, folder: Path) -> None:
    pictures: list[Any] = [None] * len(plan.cells)
    for drawn in draw(plan, lambda checkpoint: host):
        pictures[drawn.index] = drawn.picture
        drawn.picture.save(folder / f"cell-{drawn.index:04d}.png", pnginfo=png_info(infotext(plan.cells[drawn.index])))
    compose(plan, pictures).save(folder / "grid.png")


def _lora(host: Host, cfg: TrainConfig, path: Path, seed: int) -> Path:
    """A LoRA with the demo's layers, whose factors are drawn."""
    method: Any = METHODS["lora"](cfg)
    with host.exclusive() as sd, method.attached(sd):
        for number, layer in enumerate(method.layers.values()):
            layer.up.data.normal_(0, 0.01, generator=generator_for(seed, number, "bench"))
        return method.export(path, {}, Made(1, 1, 0.0, 0.0, sd.model_hash, sd.model_name, "eps"))[0]
