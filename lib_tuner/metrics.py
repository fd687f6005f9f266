"""Numbers that say which saved step is best: the loss on held-out pictures, and how far the model has moved from what it was.

B pictures, latents (B, c, h, w), text states (B, L, C), timesteps t (B,). Both numbers use noise that depends on the seed, the picture and the
timestep alone, so they are comparable between steps, runs and machines; the average over random noise would hide what changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .data.prompts import mentions
from .sd.inpaint import joined
from .sd.loss import generator_for
from .sd.schedule import Schedule

ORDINARY = ("a photo of a dog", "a house beside a lake", "a portrait of a woman", "a red car on a road")  # what hardly any run is about
TOGETHER = 4  # predictions at once: the training step has found room for few
ROOM = TOGETHER * 64 * 64  # latent pixels of so many at 512 px: small pictures go together in larger numbers
TIMESTEPS = (200, 400, 600, 800)  # kohya's linspace(0, 1000, 6)[1:-1] (train_network.py, validation)

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # xt, t, ctx -> prediction
Encode = Callable[[list], Tensor]


@torch.no_grad()
def validation_loss(unet: Denoiser, encode: Encode, batches: Iterable[Any], schedule: Schedule, seed: int,
                    begin: Callable[[Any], None] | None = None, timesteps: Sequence[int] = TIMESTEPS) -> float:
    """Mean squared error of the prediction over every held-out picture at every timestep, without weights, masks or dropout.

    `batches` give `latents` (B, c, h, w), an inpainting model's `extra` (B, 5, h, w) or None, `captions`, and `indices`, which choose the noise;
    `begin` hands each batch to the method.
    `encode(captions)` gives (B, L, C). The caller puts the method's own layers into eval mode. The global random state is left as it was.
    Raises ValueError where there is no picture.
    """
    losses: list[Tensor] = []
    with _eval(unet):
        for batch in batches:
            if not len(batch.indices):
                continue
            device = _device(unet, batch.latents)
            with _rng_kept(device):
                if begin is not None:
                    begin(batch)
                x0 = batch.latents.to(device, torch.float32)
                losses += _losses(joined(unet, batch.extra), encode(batch.captions), x0, batch.indices, _reaching(schedule, timesteps).to(device), seed, timesteps)
    if not losses:
        raise ValueError("data.validation_folder: there is no picture in it to validate on; add some, or set validate_every to 0.")
    return torch.cat(losses).cpu().double().mean().item()


def _losses(unet: Denoiser, ctx: Tensor, x0: Tensor, indices: Sequence[int], schedule: Schedule, seed: int, timesteps: Sequence[int]) -> list[Tensor]:
    """Each picture's error (B,) at each timestep, on its device: nothing is read before the end."""
    losses = []
    for t in timesteps:
        noise, ts = _noise(x0, seed, indices, f"validation {t}"), torch.full((len(x0),), t, device=x0.device)
        pred = unet(schedule.add_noise(x0, noise, ts), ts, ctx)
        losses.append((pred.float() - schedule.target(x0, noise, ts)).square().mean((1, 2, 3)))
    return losses


@torch.no_grad()
def prior_drift(unet: Denoiser, disabled: Callable[[], AbstractContextManager], encode: Encode, latents: Tensor, prompts: list[str],
                schedule: Schedule, seed: int) -> float:
    """How far training moved the predictions for `prompts` it was not about: Σ (adapted - frozen)² / Σ frozen²; 0: not at all.

    latents (B, c, h, w), one per prompt. Inside `disabled()` the model is the frozen one. The global random state is left as it was.
    """
    if len(latents) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need {len(prompts)} latents, not {len(latents)}.")
    device = _device(unet, latents)
    schedule, x0 = _reaching(schedule, TIMESTEPS).to(device), latents.to(device, torch.float32)
    with _eval(unet), _rng_kept(device):
        adapted = _predictions(unet, encode(prompts), x0, schedule, seed)
        with disabled():
            frozen = _predictions(unet, encode(prompts), x0, schedule, seed)
    return moved(adapted, frozen)


def _predictions(unet: Denoiser, ctx: Tensor, x0: Tensor, schedule: Schedule, seed: int) -> Tensor:
    """(T, B, c, h, w) in double precision, which not every device has: their differences are small."""
    result = []
    for t in TIMESTEPS:
        ts = torch.full((len(x0),), t, device=x0.device)
        xt = schedule.add_noise(x0, _noise(x0, seed, range(len(x0)), f"drift {t}"), ts)
        parts = [unet(xt[i : i + TOGETHER], ts[i : i + TOGETHER], ctx[i : i + TOGETHER]) for i in range(0, len(x0), TOGETHER)]
        result.append(torch.cat(parts).cpu().double())
    return torch.stack(result)


# ---- one set of questions for many saves -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Questions:
    """What every save of a run is asked: pictures of one size at fixed noise, at every timestep, N in all. `target` is what a perfect model would answer."""

    captions: list[str]  # N
    xt: Tensor  # (N, c, h, w)
    t: Tensor  # (N,)
    target: Tensor  # (N, c, h, w)
    extra: Tensor | None = None  # (N, 5, h, w), of an inpainting model

    @classmethod
    def of(cls, latents: Tensor, captions: Sequence[str], indices: Iterable[Any], schedule: Schedule, seed: int, stream: str = "validation", extra: Tensor | None = None) -> Questions:
        """Pictures (B, c, h, w) with their captions; the noise of each is that of `validation_loss` (or, as `stream` says, of `prior_drift`)."""
        schedule, x0, indices = _reaching(schedule, TIMESTEPS).to(latents.device), latents.float(), list(indices)
        noise = torch.cat([_noise(x0, seed, indices, f"{stream} {t}") for t in TIMESTEPS])  # (T * B, c, h, w)
        x0, t = x0.repeat(len(TIMESTEPS), 1, 1, 1), torch.tensor(TIMESTEPS, device=x0.device).repeat_interleave(len(x0))
        extra = None if extra is None else extra.repeat(len(TIMESTEPS), 1, 1, 1)
        return cls(list(captions) * len(TIMESTEPS), schedule.add_noise(x0, noise, t), t, schedule.target(x0, noise, t), extra)

    def asked(self, captions: Sequence[str]) -> Questions:
        """The same at the same noise with other captions of the B pictures."""
        return replace(self, captions=list(captions) * (len(self.captions) // len(captions)))

    @torch.no_grad()
    def answers(self, unet: Denoiser, encode: Encode) -> Tensor:
        """(N, c, h, w), on the model's device. Each caption is encoded once."""
        each = list(dict.fromkeys(self.captions))
        ctx = encode(each)[[each.index(caption) for caption in self.captions]]
        many = max(1, ROOM // (self.xt.shape[2] * self.xt.shape[3]))
        parts = [slice(at, at + many) for at in range(0, len(self.t), many)]
        with _eval(unet), _rng_kept(self.xt.device):
            return torch.cat([joined(unet, None if self.extra is None else self.extra[i])(self.xt[i], self.t[i], ctx[i]).float() for i in parts])

    def errors(self, answers: Tensor) -> Tensor:
        """(N,): each answer's mean squared error, in double precision on the CPU."""
        return (answers - self.target).square().mean((1, 2, 3)).cpu().double()


def moved(answers: Tensor, frozen: Tensor) -> float:
    """How far answers are from those of the frozen model: Σ (a - f)² / Σ f², as `prior_drift` has it."""
    a, f = answers.cpu().double(), frozen.cpu().double()
    return ((a - f).square().sum() / f.square().sum()).item()


# ---- their parts -----------------------------------------------------------------------------------------------------


def drift_prompts(class_prompts: Sequence[str], trigger: str) -> list[str]:
    """What language drift is measured on: a few class prompts and ordinary ones, none with a word of the trigger that stands for the subject."""
    prompts = [*class_prompts[:4], *ORDINARY]
    return [p for p in prompts if not mentions(p, trigger)]


def _noise(x0: Tensor, seed: int, indices: Iterable[Any], stream: str) -> Tensor:
    return torch.stack([torch.randn(x0.shape[1:], generator=generator_for(seed, int(i), stream)) for i in indices]).to(x0.device)  # (B, c, h, w)


def _reaching(schedule: Schedule, timesteps: Sequence[int]) -> Schedule:
    if max(timesteps) >= len(schedule):
        raise ValueError(f"Timestep {max(timesteps)} is not one of the model's {len(schedule)}; validate at lower ones.")
    return schedule


@contextmanager
def _eval(unet: Denoiser) -> Iterator[None]:
    """Eval mode, and afterwards each module's own mode again."""
    modules = list(unet.modules()) if isinstance(unet, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes):
            module.training = mode


def _device(unet: Denoiser, latents: Tensor) -> torch.device:
    """Where the model is; latents come from a cache in the CPU's memory."""
    first = next(unet.parameters(), latents) if isinstance(unet, nn.Module) else latents
    return first.device


def _rng_kept(device: torch.device) -> AbstractContextManager:
    """Whatever draws from the global state here must not change the training steps that follow."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
