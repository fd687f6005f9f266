"""Samplers for previews and comparisons: DDIM, Euler ancestral, DPM++ 2M Karras, each a generator of its states, step for step diffusers' own.

B images of (c, h, w). σ is the noise level of x/√ā = x0 + σ ε (k-diffusion's variable, ā = 1/(1+σ²)); `denoise(xt, t)` always gets the
model's own xt = a x0 + s ε with a = √ā, s = √(1-ā). Coefficients are Python floats, states fp32: no step waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from .schedule import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]
_LEAST = 2**-24  # ā that stands for 0


class Stopped(Exception):
    """Raised by sample() when `on_step` returned True."""


@torch.no_grad()
def sample(denoise: Denoise, xT: Tensor, schedule: Schedule, steps: int, sampler: str, generators: Sequence[Generator],
           on_step: Callable[[int, int], bool | None] | None = None) -> Tensor:
    """Draws x0 (B, c, h, w) fp32 from unit noise xT of the same shape, in `steps` steps of "ddim", "euler_a" or "dpmpp_2m".

    `denoise(xt, t)` predicts what `schedule.prediction` says; t is (B,), whole but for Euler a, whose timesteps lie between the trained ones.
    `generators`, one per image, give the noise that Euler a adds. `on_step(i, steps)` is called after each step; True raises Stopped.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sample.sampler: {sampler!r} is not known; use one of {', '.join(SAMPLERS)}.")
    if not 1 <= steps <= len(schedule):
        raise ValueError(f"sample.steps: {steps} is outside 1 to {len(schedule)}.")
    x = xT.float()
    for i, x in enumerate(SAMPLERS[sampler](denoise, x, schedule, steps, partial(_noise_like, x, generators)), 1):
        if on_step is not None and on_step(i, steps):
            raise Stopped
    return x


def guided(unet: Callable[[Tensor, Tensor, Tensor], Tensor], ctx: Tensor, uncond: Tensor, scale: float) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2207.12598): uncond + scale (cond - uncond), both in one call of `unet(x, t, ctx)`.

    ctx (B, L, C), uncond (1 or B, L', C); captions of another length than the negative prompt's take two calls; scale 1 takes cond alone.
    """
    uncond = uncond.expand(len(ctx), -1, -1)

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        if scale == 1:
            return unet(xt, t, ctx)
        if ctx.shape == uncond.shape:
            eps_u, eps_c = unet(torch.cat([xt, xt]), torch.cat([t, t]), torch.cat([uncond, ctx])).float().chunk(2)
        else:
            eps_u, eps_c = unet(xt, t, uncond).float(), unet(xt, t, ctx).float()
        return eps_u + scale * (eps_c - eps_u)

    return denoise


def ddim(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int, noise: Callable[[], Tensor], eta: float = 0.0) -> Iterator[Tensor]:
    """Song et al. 2010.02502, eq. 12 and 16; `eta` 0 is deterministic, 1 is DDPM. The last step goes to ā_0, as SD was made to (not to 1)."""
    ac = schedule.alphas_cumprod.cpu().double().tolist()
    T, stride = len(ac), len(ac) // steps
    ts = [min(i * stride + 1, T - 1) for i in reversed(range(steps))]  # "leading", offset 1: LDM's DDIM
    if ac[-1] == 0 and schedule.prediction == "v":
        ts = [round(T - i * T / steps) - 1 for i in range(steps)]  # "trailing": zero terminal SNR has to start at pure noise (2305.08891, 3.3)
    elif schedule.prediction == "eps":
        ac = [max(a, _LEAST) for a in ac]  # x0 is what is left over when the noise is taken away, divided by √ā
    for t in ts:
        at, ap = ac[t], ac[max(t - stride, 0)]
        pred = denoise(x, _full(t, x)).float()
        x0, eps = _x0_eps(schedule, x, pred, at**0.5, (1 - at) ** 0.5)
        sigma = eta * ((1 - ap) / (1 - at) * (1 - at / ap)) ** 0.5
        x = ap**0.5 * x0 + (1 - ap - sigma**2) ** 0.5 * eps
        if sigma:
            x = x + sigma * noise()
        yield x


def euler_a(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int, noise: Callable[[], Tensor]) -> Iterator[Tensor]:
    """k-diffusion's ancestral Euler: a step down to σ_down, then noise up to the next σ. Yields x0 + σ ε, not xt."""
    sigmas = _sigmas(schedule)
    ts = torch.linspace(len(sigmas) - 1, 0, steps, dtype=torch.float64).tolist()
    levels = [_between(sigmas, t) for t in ts] + [0.0]
    x = x * levels[0]
    for t, sigma, to in zip(ts, levels, levels[1:]):
        a = 1 / math.hypot(1, sigma)
        x0, eps = _x0_eps(schedule, a * x, denoise(a * x, _full(t, x)).float(), a, sigma * a)
        up = (to**2 * (sigma**2 - to**2) / sigma**2) ** 0.5
        down = (to**2 - up**2) ** 0.5
        x = x0 + down * eps
        if up:
            x = x + up * noise()
        yield x


def dpmpp_2m(denoise: Denoise, x: Tensor, schedule: Schedule, steps: int, noise: Callable[[], Tensor]) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2211.01095, Alg. 2) at Karras et al.'s noise levels (2206.00364, eq. 5, ρ = 7); first order at both ends."""
    sigmas = _sigmas(schedule)
    lo, hi = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
    levels = [(hi + i / max(steps - 1, 1) * (lo - hi)) ** 7 for i in range(steps)] + [0.0]
    old, h_old = None, 0.0
    for sigma, to in zip(levels, levels[1:]):
        (a, s), (an, sn) = _alpha_sigma(sigma), _alpha_sigma(to)
        x0, _ = _x0_eps(schedule, x, denoise(x, _full(_nearest(sigmas, sigma), x)).float(), a, s)
        h = math.log(sigma / to) if to else math.inf
        D = x0 if old is None or not to else x0 + h / (2 * h_old) * (x0 - old)
        x = sn / s * x + an * (1 - to / sigma) * D  # exp(-h) = to / sigma
        old, h_old = x0, h
        yield x


SAMPLERS = {"ddim": ddim, "euler_a": euler_a, "dpmpp_2m": dpmpp_2m}


def _x0_eps(schedule: Schedule, xt: Tensor, pred: Tensor, a: float, s: float) -> tuple[Tensor, Tensor]:
    """The clean image and the noise that a prediction at xt = a x0 + s ε implies."""
    if schedule.prediction == "eps":
        return (xt - s * pred) / a, pred
    return a * xt - s * pred, a * pred + s * xt


def _alpha_sigma(sigma: float) -> tuple[float, float]:
    a = 1 / math.hypot(1, sigma)
    return a, sigma * a


def _sigmas(schedule: Schedule) -> list[float]:
    """σ of every trained timestep; where ā is 0 it is as good as infinite, 2^12, as in diffusers."""
    ac = schedule.alphas_cumprod.cpu().double().clamp(min=_LEAST)
    return ((1 - ac) / ac).sqrt().tolist()


def _between(values: list[float], t: float) -> float:
    """`values` at a fractional index, linearly."""
    i = min(int(t), len(values) - 2)
    return values[i] + (t - i) * (values[i + 1] - values[i])


def _nearest(sigmas: list[float], sigma: float) -> int:
    """The trained timestep whose log σ is nearest."""
    return min(range(len(sigmas)), key=lambda t: abs(math.log(sigmas[t] / sigma)))


def _full(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, device=x.device)  # (B,): long where t is int


def _noise_like(x: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Unit noise (B, c, h, w), every image's from its own generator, so that it does not depend on the batch."""
    if len(generators) != len(x):
        raise ValueError(f"{len(x)} images need {len(x)} generators, not {len(generators)}.")
    return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x.device)
