"""Optimizers by name, the learning rate as a function of the step, and averages of the weights.

`cfg` is any object with the fields of `settings.OptimConfig`. A parameter group is a dict as torch takes it; its own `weight_decay` wins over
the setting (embeddings pass 0), and `lr_scale` (1 if absent) multiplies the learning rate (text encoder, LoRA+).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# ---- the learning rate


def parse_lr(text: str) -> list[tuple[float, int | None]]:
    """Reads A1111's `0.05:10, 0.02:20, 0.005` as [(rate, until_step)]: each rate holds for steps below its own; None (or -1): to the end.

    Raises ValueError, naming the entry: no number, negative, steps that do not rise, an entry behind one without a step.
    """
    entries: list[tuple[float, int | None]] = []
    for part in [part for part in str(text).split(",") if part.strip()] or [""]:  # the WebUI takes a comma at the end, too
        rate, until = _entry(part.strip(), text)
        if entries and entries[-1][1] is None:
            raise ValueError(f"optim.lr: in {text!r}, {part.strip()!r} is never reached, because the rate before it has no step.")
        if entries and until is not None and until <= entries[-1][1]:
            raise ValueError(f"optim.lr: in {text!r}, step {until} does not come after {entries[-1][1]}; steps count from the start of the run.")
        entries.append((rate, until))
    if not any(rate for rate, _ in entries):
        raise ValueError(f"optim.lr: {text!r} learns nothing; give a rate above 0.")
    return entries


def _entry(part: str, text: str) -> tuple[float, int | None]:
    rate, colon, until = part.partition(":")
    try:
        number, step = float(rate), int(until) if colon else -1
    except ValueError:
        raise ValueError(f"optim.lr: {part!r} in {text!r} is not a rate or rate:step, such as 1e-4 or 0.05:10.") from None
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"optim.lr: {rate.strip()} in {text!r} is not a rate; it must be a number from 0 up.")
    if step < 1 and step != -1:
        raise ValueError(f"optim.lr: step {step} in {text!r} must be 1 or more, or -1 for the end of the run.")
    return number, None if step == -1 else step


def lr_at(cfg: Any, step: int, total: int) -> float:
    """The learning rate of 0-based `step` in a run of `total`: a pure function, so a resumed run goes on as it would have.

    Schedules and warm-up (linear, 0 at step 0) are diffusers.optimization's; `floor` is the part of the rate at which they end.
    The step syntax takes the place of the schedule, not of the warm-up.
    """
    entries = parse_lr(cfg.lr)
    rise = step / cfg.warmup if step < cfg.warmup else None
    if len(entries) > 1 or entries[0][1] is not None:
        rate = next((r for r, until in entries if until is None or step < until), entries[-1][0])
        return rate * (1 if rise is None else rise)
    if rise is not None:
        return entries[0][0] * rise
    p = min((step - cfg.warmup) / max(1, total - cfg.warmup), 1.0)
    return entries[0][0] * (cfg.floor + (1 - cfg.floor) * _SCHEDULES[cfg.schedule](p, cfg))


_SCHEDULES: dict[str, Callable[[float, Any], float]] = {  # progress 0..1 -> multiplier 1..0
    "constant": lambda p, cfg: 1.0,
    "linear": lambda p, cfg: 1 - p,
    "cosine": lambda p, cfg: 0.5 * (1 + math.cos(math.pi * p)),
    "restarts": lambda p, cfg: 0.0 if p >= 1 else 0.5 * (1 + math.cos(math.pi * (cfg.cycles * p % 1))),
    "polynomial": lambda p, cfg: (1 - p) ** cfg.power,
    "rex": lambda p, cfg: (1 - p) / (0.5 + 0.5 * (1 - p)),  # Chen et al. 2107.04197
}


def text_scale(cfg: Any) -> float:
    """How many times the learning rate the text encoder's is, for `lr_scale`."""
    return cfg.text_lr / max(rate for rate, _ in parse_lr(cfg.lr)) if cfg.text_lr else 1.0


def lr_ended(cfg: Any, step: int) -> bool:
    """Whether the step syntax has no rate left at `step`: A1111 ends the run there, before its last step."""
    until = parse_lr(cfg.lr)[-1][1]
    return until is not None and step >= until


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Gives every group `lr` times its `lr_scale`, in place where the rate is a tensor (a captured graph keeps its address)."""
    for group in optimizer.param_groups:
        value = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


# ---- optimizers


def make_optimizer(cfg: Any, groups: Iterable[dict]) -> Optimizer:
    """The optimizer `cfg.name` over parameter groups; raises ValueError with the install command where its package is missing."""
    if cfg.name not in OPTIMIZERS:
        raise ValueError(f"optim.name: {cfg.name!r} is not known; use one of {', '.join(OPTIMIZERS)}.")
    lr = max(rate for rate, _ in parse_lr(cfg.lr))  # of the first step set_lr decides; some optimizers refuse to be made with 0
    own = [{"weight_decay": cfg.weight_decay, **g, "params": list(g["params"]), "lr": lr * g.get("lr_scale", 1.0)} for g in groups]
    if not any(g["params"] for g in own):
        raise ValueError("There is nothing to train: the method has no weights under these settings.")
    return OPTIMIZERS[cfg.name](cfg, own)


def parse_betas(text: str) -> tuple[float, float]:
    """`0.9, 0.999` as two numbers in [0, 1)."""
    try:
        b1, b2 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"optim.betas: {text!r} is not two numbers such as 0.9, 0.999.") from None
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ValueError(f"optim.betas: {text!r} must lie in [0, 1).")
    return b1, b2


def _adamw(cfg: Any, groups: list[dict]) -> Optimizer:
    return torch.optim.AdamW(groups, betas=parse_betas(cfg.betas), eps=cfg.eps, fused=_has_fused(groups) or None)


def _has_fused(groups: list[dict]) -> bool:
    """Whether torch has a one-kernel AdamW for these weights: 528 LoRA matrices take 8 ms a step with it on one CPU core, 32 to 35 without."""
    devices = {"cuda", "cpu"} if tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 4) else {"cuda"}
    return all(p.device.type in devices and p.is_floating_point() for g in groups for p in g["params"])


def _adamw8bit(cfg: Any, groups: list[dict]) -> Optimizer:
    return _optional("bitsandbytes.optim", "bitsandbytes", cfg).AdamW8bit(groups, betas=parse_betas(cfg.betas), eps=cfg.eps)


def _lion(cfg: Any, groups: list[dict]) -> Optimizer:
    return _optional("lion_pytorch", "lion-pytorch", cfg).Lion(groups, lr=max(g["lr"] for g in groups), betas=parse_betas(cfg.betas))


def _adafactor(cfg: Any, groups: list[dict]) -> Optimizer:
    # transformers', as in kohya: torch's own always multiplies by the weight's RMS, which is 0 for LoRA's up matrices; eps and betas are its own
    options = {"lr": groups[0]["lr"] if groups else None, "relative_step": False, "scale_parameter": False, "warmup_init": False}
    return _optional("transformers.optimization", "transformers", cfg).Adafactor(groups, **options)


def _prodigy(cfg: Any, groups: list[dict]) -> Optimizer:
    if len({g["lr"] for g in groups} - {0.0}) > 1:
        raise ValueError("optim.name: prodigy finds one learning rate for all weights; take away text_lr, LoRA+ ratios and rates of blocks or choose another optimizer.")
    options = {"betas": parse_betas(cfg.betas), "eps": cfg.eps, "use_bias_correction": True, "safeguard_warmup": cfg.warmup > 0}
    return _optional("prodigyopt", "prodigyopt", cfg).Prodigy(groups, **options)


def _adamw_schedulefree(cfg: Any, groups: list[dict]) -> Optimizer:
    optimizer = _optional("schedulefree", "schedulefree", cfg).AdamWScheduleFree(groups, betas=parse_betas(cfg.betas), eps=cfg.eps)
    optimizer.train()
    return optimizer


_AVERAGES = {"adamw": 8, "adamw8bit": 2, "lion": 4, "adafactor": 1, "prodigy": 16, "adamw_schedulefree": 8}  # bytes per trained fp32 parameter


def average_bytes(name: str, itemsize: int = 4) -> float:
    """What an optimizer keeps of each trained parameter, whose own bytes are `itemsize`; 8-bit averages are 8-bit ones always."""
    return _AVERAGES[name] * (1.0 if name == "adamw8bit" else itemsize / 4)


OPTIMIZERS: dict[str, Callable[[Any, list[dict]], Optimizer]] = {
    "adamw": _adamw, "adamw8bit": _adamw8bit, "lion": _lion, "adafactor": _adafactor, "prodigy": _prodigy, "adamw_schedulefree": _adamw_schedulefree,
}


def _optional(module: str, package: str, cfg: Any) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"optim.name: {cfg.name} needs a package that does not import here ({error}); run `pip install {package}`.") from error


# ---- averages of the weights


class EMA:
    """An exponential moving average of `params` in fp32, with LDM's warm-up: decay min(decay, (1+n)/(10+n)) at its n-th update."""

    def __init__(self, params: Iterable[Tensor], decay: float):
        self.params, self.decay, self.n = list(params), decay, 0
        self.average = [p.detach().float().clone() for p in self.params]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the current weights in; call once after each optimizer step."""
        self.n += 1
        decay = min(self.decay, (1 + self.n) / (10 + self.n))
        for average, p in zip(self.average, self.params):
            average.lerp_(p.float(), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Puts the average in the weights' place; afterwards they are what they were, bit for bit."""
        with _kept(self.params):
            _fill(self.params, self.average)
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "average": [a.clone() for a in self.average]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if [a.shape for a in state["average"]] != [a.shape for a in self.average]:
            raise ValueError("The saved EMA belongs to other weights; resume with the settings of the run that was saved.")
        self.n = state["n"]
        _fill(self.average, state["average"])


@contextmanager
def weights_for_eval(optimizer: Optimizer, ema: EMA | None = None) -> Iterator[None]:
    """The weights to sample, validate and export with: EMA's, else schedule-free's average, else the weights as they are.

    What a run resumes from has to be saved outside: schedule-free continues from its training weights.
    """
    if ema is not None:
        with ema.swapped():
            yield
    elif any("train_mode" in g for g in optimizer.param_groups):
        with _schedulefree_average(optimizer):
            yield
    else:
        yield


@contextmanager
def _schedulefree_average(optimizer: Any) -> Iterator[None]:
    with _kept([p for g in optimizer.param_groups for p in g["params"]]):
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()  # moves the weights back up to rounding only; _kept makes it exact


@contextmanager
def _kept(params: list[Tensor]) -> Iterator[None]:
    """Puts the values of `params` back, in place; while it lasts they count as averages."""
    values = [p.detach().clone() for p in params]
    for p in params:
        p.holds_average = True
    try:
        yield
    finally:
        for p in params:
            del p.holds_average
        _fill(params, values)


def holds_average(param: Tensor) -> bool:
    """Whether an average is in the place of a trained weight, which comes back afterwards: what limits the weights limits it too."""
    return getattr(param, "holds_average", False)


@torch.no_grad()
def _fill(params: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(params, values):
        p.copy_(value)
