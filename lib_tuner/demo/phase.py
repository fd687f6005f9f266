"""One resumable training phase of the small model: AdamW, a learning-rate curve, an EMA, a log."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..optim import EMA

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """`steps` updates at learning rate `lr`: warm-up, constant up to the part `hold` of the run, then half a cosine down to a hundredth."""

    name: str
    steps: int
    lr: float
    warmup: int
    hold: float = 0.0
    decay: float = 0.999
    weight_decay: float = 0.01
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        after = max(0.0, (step / self.steps - self.hold) / (1 - self.hold))
        return self.lr * min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * after)))

    def generator(self, step: int) -> torch.Generator:
        """All randomness of a step, so that a resumed phase is the same phase."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


def run(phase: Phase, module: nn.Module, loss_at: Callable[[int, torch.Generator], tuple[Tensor, float]], folder: Path, every: int = 250) -> None:
    """Trains `module` in place to its EMA weights; saves `folder/<name>.pt` every `every` steps and goes on from there when called again."""
    module.train().requires_grad_(True)
    parameters = list(module.parameters())
    flat = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()} | {id(p) for p in parameters if p.ndim < 2}
    groups = [{"params": [p for p in parameters if id(p) not in flat], "weight_decay": phase.weight_decay},
              {"params": [p for p in parameters if id(p) in flat], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=phase.lr, betas=(0.9, 0.99))
    ema, path, start = EMA(parameters, phase.decay), folder / f"{phase.name}.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    began, figures = time.monotonic(), []
    for step in range(start, phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.rate(step)
        loss, figure = loss_at(step, phase.generator(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update()
        figures.append(figure)
        done = step + 1
        if done % 25 == 0:
            pace = (time.monotonic() - began) / (done - start)
            log.info("%s %d/%d  %.4f  %.2f s/step  %.0f min left", phase.name, done, phase.steps, sum(figures[-25:]) / 25, pace, pace * (phase.steps - done) / 60)
        if done % every == 0 or done == phase.steps:
            state = {"module": module.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            torch.save(state, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    with torch.no_grad():
        for p, average in zip(parameters, ema.average):
            p.copy_(average)
    module.eval().requires_grad_(False)
