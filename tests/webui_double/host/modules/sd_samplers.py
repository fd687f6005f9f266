"""Samplers by the host's names. Four ways of stepping stand for all of them: the double's pictures need only differ by what a person has chosen.

A sampler goes from noise level to noise level; x is the noisy picture beside which the noise has that level, `guess(x, level)` the clean picture that
the model sees in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import script_callbacks, shared
from .sd_schedulers import Levels, schedulers_map

Guess = Callable[[Tensor, float], Tensor]


class Stopped(Exception):
    """Somebody pressed Interrupt or Skip."""


# ---- ways of stepping ------------------------------------------------------------------------------------------------


def _euler(guess: Guess, x: Tensor, levels: list[float], noise: Callable[[], Tensor], added: float = 0.0) -> Iterator[Tensor]:
    """Straight on along the way to the clean picture; `added` 1 goes further down and comes back up by new noise (ancestral)."""
    for now, after in pairwise(levels):
        clean = guess(x, now)
        up = added * after * (1 - (after / now) ** 2) ** 0.5
        x = torch.lerp(clean, x, (after**2 - up**2) ** 0.5 / now)
        yield x if up == 0 else x + up * noise()


def _heun(guess: Guess, x: Tensor, levels: list[float], noise: Callable[[], Tensor]) -> Iterator[Tensor]:
    """Euler's step, corrected by the direction at its end."""
    for now, after in pairwise(levels):
        first = (x - guess(x, now)) / now
        ahead = x + first * (after - now)
        if after > 0:
            ahead = x + (first + (ahead - guess(ahead, after)) / after) * (after - now) / 2
        x = ahead
        yield x


def _two_back(guess: Guess, x: Tensor, levels: list[float], noise: Callable[[], Tensor]) -> Iterator[Tensor]:
    """DPM-Solver++ of the second order (2211.01095, algorithm 2): the clean picture is carried on by the change since the step before."""
    earlier: tuple[Tensor, float] | None = None
    for now, after in pairwise(levels):
        clean = ahead = guess(x, now)
        if earlier is not None and after > 0:
            logs = torch.tensor([earlier[1], now, after]).log()
            ahead = clean + (clean - earlier[0]) * float((logs[1] - logs[2]) / (logs[0] - logs[1])) / 2
        x, earlier = torch.lerp(ahead, x, after / now), (clean, now)
        yield x


@dataclass(frozen=True)
class SamplerData:
    """One that can be chosen."""

    name: str
    way: Callable[..., Iterator[Tensor]]

    @property
    def timesteps(self) -> bool:
        """It has timesteps of its own, and takes no schedule."""
        return self.name in ("DDIM", "PLMS", "UniPC")

    def levels(self, known: Levels, steps: int, scheduler: str | None) -> list[float]:
        if self.timesteps:
            times = torch.arange(steps, dtype=torch.float64).flip(0) * ((known.last + 1) // steps) + 1
            return [*known.at(times).tolist(), float(known.known[0])]
        automatic = scheduler in (None, "automatic", "Automatic") and self.name.startswith("DPM")
        return schedulers_map["karras" if automatic else scheduler or "automatic"].levels(known, steps).tolist()


def _way(name: str) -> Callable[..., Iterator[Tensor]]:
    """The one that is nearest to what the name stands for."""
    if name.endswith((" a", "SDE", "SDE Heun", "LCM")):
        return partial(_euler, added=1.0)
    if name in ("Euler", "DDIM"):
        return _euler
    return _two_back if name in ("DPM++ 2M", "LMS", "PLMS", "UniPC") else _heun


_NAMES = """DPM++ 2M, DPM++ SDE, DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 2S a, DPM++ 3M SDE, Euler a, Euler, LMS, Heun, DPM2, DPM2 a, DPM fast, DPM adaptive,
Restart, DDIM, PLMS, UniPC, LCM"""
all_samplers = [SamplerData(name.strip(), _way(name.strip())) for name in _NAMES.split(",")]
samplers_map = {sampler.name.lower(): sampler.name for sampler in all_samplers}


def visible_samplers() -> list[SamplerData]:
    return list(all_samplers)


def visible_sampler_names() -> list[str]:
    return [sampler.name for sampler in visible_samplers()]


def sampler_of(name: str | None) -> SamplerData:
    """The first where no name is given; an unknown name is an AssertionError."""
    found = next((sampler for sampler in all_samplers if name in (sampler.name, None)), None)
    assert found is not None, f"There is no sampler {name!r}."
    return found


# ---- the way through a picture ---------------------------------------------------------------------------------------


@dataclass
class Guided:
    """The model's guess under a prompt and against another; callbacks see and change what it is given."""

    model: Any
    wanted: Tensor  # (B, 77 k, C)
    unwanted: Tensor
    scale: float
    known: Levels
    beside: Tensor  # (B, 5, h, w) for an inpainting model; (B, 5, 1, 1) of zeros, which nobody looks at, for others

    def __call__(self, x: Tensor, level: float) -> Tensor:
        state = shared.state
        sizes = x.new_full((2 * len(x),), level)
        seen = script_callbacks.CFGDenoiserParams(
            x=torch.cat([x, x]), image_cond=torch.cat([self.beside, self.beside]), sigma=sizes, sampling_step=state.sampling_step, total_sampling_steps=state.sampling_steps,
            text_cond=self.wanted, text_uncond=self.unwanted,
        )  # fmt: skip
        script_callbacks.cfg_denoiser_callback(seen)
        return self._together(seen, level) if seen.text_cond.shape == seen.text_uncond.shape else self._apart(seen, level)

    def _together(self, seen: Any, level: float) -> Tensor:
        wanted, unwanted = self._clean(seen.x, level, torch.cat([seen.text_cond, seen.text_uncond]), seen.image_cond).chunk(2)
        return torch.lerp(unwanted, wanted, self.scale)

    def _apart(self, seen: Any, level: float) -> Tensor:
        """One prompt has more chunks of 77 than the other."""
        sides = zip(seen.x.chunk(2), (seen.text_cond, seen.text_uncond), seen.image_cond.chunk(2))
        wanted, unwanted = (self._clean(x, level, states, beside) for x, states, beside in sides)
        return torch.lerp(unwanted, wanted, self.scale)

    def _clean(self, x: Tensor, level: float, states: Tensor, beside: Tensor) -> Tensor:
        size, given = (1 + level**2) ** 0.5, {"c_crossattn": [states], "c_concat": [beside]}
        said = self.model.apply_model(x / size, x.new_full((len(x),), self.known.time_of(level)), given).float()
        return x / size**2 - said * level / size if self.model.parameterization == "v" else x - level * said


def sample(sampler: SamplerData, scheduler: str | None, steps: int, guess: Guided, noise: Callable[[], Tensor], x: Tensor,
           start: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """Latents (B, 4, h, w) from unit noise x; from `start` with noise of a part of the way, where there is one. Interrupted: as far as it came."""
    levels = sampler.levels(guess.known, steps, scheduler)
    if start is None:
        x = x * (1 + levels[0] ** 2) ** 0.5
    else:
        levels = levels[-1 - max(1, min(int(strength * steps), steps)) :]
        x = start + levels[0] * x
    state, last = shared.state, x
    state.sampling_step, state.sampling_steps = 0, len(levels) - 1
    counted = iter(range(len(levels) * 2))

    def watched(x: Tensor, level: float) -> Tensor:
        nonlocal last
        last = guess(x, level)
        state.sampling_step = min(next(counted), state.sampling_steps - 1)
        if state.interrupted or state.skipped:
            raise Stopped
        return last

    with suppress(Stopped):
        for last in sampler.way(watched, x, levels, noise):
            pass
    return last / (1 + levels[-1] ** 2) ** 0.5  # timesteps end beside the clean picture, schedules at it
