"""What is minimised and at which noise: timesteps, noise, and the weighted distance of a prediction to its target.

Axes: B samples, c channels (4), h x w latent pixels. `cfg` is any object with the fields of `settings.LossConfig`.
Formulas equal kohya's sd-scripts (library/custom_train_functions.py, library/train_util.py), except that nothing here mixes samples:
a sample's noise, timestep and loss are the same alone, in a batch, and on any number of machines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .schedule import Schedule


def generator_for(seed: int, index: int, stream: str) -> Generator:
    """The CPU generator of one sample for one purpose ("noise", "t", ...); equal arguments give equal draws, on every machine."""
    key = hashlib.blake2b(f"{seed}/{index}/{stream}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(key, "little"))


def timesteps_for(u: Tensor, cfg: Any, total: int = 1000) -> Tensor:
    """Timesteps (B,) long in [t_min, t_max) from uniform numbers u (B,) in [0, 1): t = t_min + floor(w (t_max - t_min)).

    The density p(w) over [0, 1]: uniform 1; cubic (1-w)^(-2/3) / 3, T2I-Adapter's 1-u³, mostly noisy; sigmoid the logit-normal
    exp(-logit(w)²/2) / (sqrt(2π) w (1-w)), mostly the middle (Esser et al. 2403.03206); early 2(1-w), mostly clean; late 2w, mostly noisy.
    """
    lo, hi = cfg.t_min, min(cfg.t_max, total)
    if lo >= hi:
        raise ValueError(f"loss.t_min: {lo} leaves no timestep below {hi}; set it lower than loss.t_max.")
    w = _INVERSE_CDF[cfg.t_distribution](u.double())
    return (lo + (w * (hi - lo)).floor()).long().clamp(lo, hi - 1)  # w = 1 occurs in cubic


_INVERSE_CDF = {
    "uniform": lambda u: u,
    "cubic": lambda u: 1 - u**3,
    "sigmoid": lambda u: torch.special.ndtri(u).sigmoid(),
    "early": lambda u: 1 - (1 - u).sqrt(),
    "late": lambda u: u.sqrt(),
}


def noise_for(x0: Tensor, cfg: Any, generators: Sequence[Generator]) -> tuple[Tensor, Tensor]:
    """The noise of the target and the noise of the input, (B, c, h, w) fp32 each, every sample's from its own generator.

    They differ by the input perturbation alone (Ning et al. 2301.11706): xt = add_noise(x0, noise_of_the_input, t).
    """
    if len(generators) != len(x0):
        raise ValueError(f"{len(x0)} samples need {len(x0)} generators, not {len(generators)}.")
    # |mean| per channel, which the adaptive offset follows; other runs do not pay for the copy from the device
    means = x0.float().mean((2, 3), keepdim=True).abs().cpu() if cfg.adaptive_offset else [None] * len(x0)
    pairs = [_noise(x0.shape[1:], cfg, mean, g) for mean, g in zip(means, generators)]
    noise = torch.stack([n for n, _ in pairs]).to(x0.device)  # (B, c, h, w)
    if not cfg.input_perturbation:
        return noise, noise
    return noise, torch.stack([n for _, n in pairs]).to(x0.device)


def _noise(shape: Sequence[int], cfg: Any, mean: Tensor | None, g: Generator) -> tuple[Tensor, Tensor]:
    """One sample's (c, h, w) noises, in kohya's order: offset, pyramid, perturbation."""
    noise = torch.randn(shape, generator=g)
    if cfg.noise_offset or cfg.adaptive_offset:
        offset = cfg.noise_offset + (cfg.adaptive_offset * mean if cfg.adaptive_offset else 0.0)
        noise = noise + offset * torch.randn((shape[0], 1, 1), generator=g)  # crosslabs.org, "Diffusion with offset noise"
    if cfg.pyramid:
        noise = pyramid_noise(noise, cfg.pyramid, cfg.pyramid_discount, g)
    if not cfg.input_perturbation:
        return noise, noise
    return noise, noise + cfg.input_perturbation * torch.randn(shape, generator=g)


def pyramid_noise(noise: Tensor, iterations: int, discount: float, g: Generator) -> Tensor:
    """Multires noise of one sample (c, h, w): ε + Σ discount^i · up(ε_i), ε_i smaller by a random r_i^i, r_i in [2, 4); then unit deviation.

    kohya divides by the deviation of the whole batch; here it is the sample's own, so that it does not depend on its neighbours.
    """
    c, h, w = noise.shape
    for i in range(iterations):
        r = 2 + 2 * torch.rand((), generator=g).item()
        hi, wi = max(1, int(h / r**i)), max(1, int(w / r**i))
        coarse = torch.randn((1, c, hi, wi), generator=g)
        noise = noise + discount**i * F.interpolate(coarse, size=(h, w), mode="bilinear")[0]
        if hi == 1 or wi == 1:
            break
    return noise / noise.std()


def diffusion_loss(pred: Tensor, target: Tensor, t: Tensor, schedule: Schedule, cfg: Any, mask: Tensor | None = None) -> Tensor:
    """Each sample's loss (B,) fp32: mean over c, h, w of distance x mask, times the weights of its timestep.

    pred, target (B, c, h, w); t (B,) long; mask (B, 1, h, w), not renormalised (kohya). Weights by a picture's own weight are the caller's.
    """
    loss = distance(pred.float(), target.float(), t, schedule, cfg)  # (B, c, h, w)
    if mask is not None:
        loss = loss * mask
    return loss.mean((1, 2, 3)) * snr_weight(t, schedule, cfg)


def distance(pred: Tensor, target: Tensor, t: Tensor, schedule: Schedule, cfg: Any) -> Tensor:
    """Element-wise loss: d², |d|, Huber 2c(√(d²+c²) - c) or smooth L1 2(√(d²+c²) - c), with c of the timestep."""
    d = pred - target
    if cfg.kind == "mse":
        return d.square()
    if cfg.kind == "l1":
        return d.abs()
    c = huber_c(t, schedule, cfg).reshape(-1, 1, 1, 1)
    return (2 * c if cfg.kind == "huber" else 2) * ((d.square() + c.square()).sqrt() - c)


def huber_c(t: Tensor, schedule: Schedule, cfg: Any) -> Tensor:
    """Huber's c (B,): constant c0; exponential c0^(t/T); snr (1-c0)/(1+σ)² + c0 with σ = √((1-ā)/ā): 1 at no noise, c0 at pure noise."""
    c0 = cfg.huber_c
    if cfg.huber_schedule == "exponential":
        return torch.exp(t * (math.log(c0) / len(schedule)))
    if cfg.huber_schedule == "snr":
        sigma = schedule.snr(t).rsqrt()
        return (1 - c0) / (1 + sigma) ** 2 + c0
    return torch.full(t.shape, c0, device=t.device)


def check_weights(schedule: Schedule, cfg: Any) -> None:
    """Raises ValueError where a timestep's weight would be infinite."""
    if cfg.debiased and cfg.zero_terminal_snr and schedule.prediction != "v":
        raise ValueError("loss.debiased: with zero terminal SNR an eps model's weight is infinite; turn one of them off or use v-prediction.")


def snr_weight(t: Tensor, schedule: Schedule, cfg: Any) -> Tensor:
    """The weight (B,) of each timestep: min-SNR (Hang et al. 2303.09556) times debiased estimation (Yu et al. 2310.08442).

    min-SNR: eps min(snr, γ)/snr, v min(snr, γ)/(snr+1). Debiased, snr capped at 1000 as in kohya: eps 1/√snr, v 1/(snr+1).
    """
    snr, v = schedule.snr(t), schedule.prediction == "v"
    weight = torch.ones_like(snr)
    if cfg.min_snr:
        weight = snr.clamp(max=cfg.min_snr) / (snr + 1) if v else (cfg.min_snr / snr).clamp(max=1)  # snr may be 0: zero terminal SNR
    if cfg.debiased:
        check_weights(schedule, cfg)
        snr = snr.clamp(max=1000)
        weight = weight * (1 / (snr + 1) if v else snr.rsqrt())
    return weight
