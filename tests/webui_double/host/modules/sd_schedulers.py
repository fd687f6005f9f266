"""Schedules: from how many steps to which noise levels, highest first, 0 last. A level is the noise's size beside a picture of size 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class Levels:
    """The noise levels that a model knows, by its timesteps; `at` and `time_of` go between them."""

    def __init__(self, alphas_cumprod: Tensor):
        kept = alphas_cumprod.detach().double().cpu()
        self.known = ((1 - kept) / kept).sqrt()
        self.last = len(kept) - 1

    def at(self, times: Tensor) -> Tensor:
        """Levels of timesteps, which may lie between the known ones."""
        low = times.floor().long().clamp(0, self.last)
        logs, part = self.known.log(), times - low
        return torch.lerp(logs[low], logs[(low + 1).clamp(max=self.last)], part).exp()

    def time_of(self, level: float) -> float:
        logs, wanted = self.known.log(), math.log(level)
        above = int(torch.searchsorted(logs, wanted).clamp(1, self.last))
        below, step = float(logs[above - 1]), float(logs[above] - logs[above - 1])
        return min(max(above - 1 + (wanted - below) / step, 0.0), float(self.last))


@dataclass(frozen=True)
class Scheduler:
    """One that can be chosen. `make` gives the levels of n steps, without the last one, 0."""

    name: str
    label: str
    make: Callable[[Levels, int], Tensor]

    def levels(self, known: Levels, steps: int) -> Tensor:
        return torch.cat([self.make(known, steps), torch.zeros(1, dtype=torch.float64)])


def _ramp(known: Levels, steps: int, rho: float) -> Tensor:
    """Karras et al. 2206.00364, eq. 5; rho of infinity is a straight line of the logarithms."""
    high, low = (math.log(float(known.known[i])) for i in (-1, 0))
    if math.isinf(rho):
        return torch.linspace(high, low, steps, dtype=torch.float64).exp()
    return torch.linspace(math.exp(high / rho), math.exp(low / rho), steps, dtype=torch.float64) ** rho


def _even(known: Levels, steps: int) -> Tensor:
    """Timesteps at even distances from the last to the first."""
    return known.at(torch.linspace(known.last, 0, steps, dtype=torch.float64))


def _trailing(known: Levels, steps: int) -> Tensor:
    """The same with the first left out."""
    return known.at(torch.linspace(known.last, 0, steps + 1, dtype=torch.float64)[:-1])


schedulers = [
    Scheduler("automatic", "Automatic", _even),
    Scheduler("uniform", "Uniform", _even),
    Scheduler("karras", "Karras", lambda known, steps: _ramp(known, steps, 7.0)),
    Scheduler("exponential", "Exponential", lambda known, steps: _ramp(known, steps, math.inf)),
    Scheduler("polyexponential", "Polyexponential", lambda known, steps: _ramp(known, steps, math.inf)),  # with its usual exponent of 1 the same
    Scheduler("sgm_uniform", "SGM Uniform", _trailing),
]
schedulers_map = {key: known for known in schedulers for key in (known.name, known.label)}
