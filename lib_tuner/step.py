"""How one update runs: noise, timesteps, prediction, loss, backward, clipping, optimizer; eager. Also the plan of precision and memory.

Axes: B samples, h w latent pixels, L text length, C text width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .data.batches import Batch, Batches
from .data.cache import TextCache
from .data.prompts import literal
from .host import Components
from .methods.base import Method
from .optim import EMA, set_lr, weights_for_eval
from .sd.inpaint import joined
from .sd.loss import diffusion_loss, generator_for, noise_for, timesteps_for
from .sd.rounding import rounded_step
from .sd.schedule import Schedule
from .settings import LossConfig, TrainConfig

_OWN = ("lr_scale", "fused", "foreach")  # of an optimizer's groups: settings and device say them, also where a resumed run has other ones
LEAST_SCALE = 2.0**-10  # of fp16's gradients: it is halved at each that is no number, which happens now and then, and not 26 times in a row from the 65536 at the start
READ_EVERY = 10  # updates between two looks at the not-a-number flag on a GPU, where looking means waiting


class NotANumber(ArithmeticError):
    """The loss or the gradients stopped being numbers; `Step.good` holds the last weights whose loss was one."""


@dataclass
class State:
    """All of a run that is not a function of (settings, seed, step)."""

    method: Method
    optimizer: Optimizer
    ema: EMA | None = None
    scaler: Any = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        saved, own = state["optimizer"], [{key: group[key] for key in _OWN if key in group} for group in self.optimizer.param_groups]
        groups = [{**group, **kept} for group, kept in zip(saved["param_groups"], own)] + saved["param_groups"][len(own) :]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})  # by these flags torch decides where its counters of steps lie
        for part, saved in ((self.ema, state["ema"]), (self.scaler, state["scaler"])):
            if (part is None) != (saved is None):
                raise ValueError("The saved run used another EMA or precision; resume with the settings of the run that was saved.")
            if part is not None:
                part.load_state_dict(saved)


def schedule_for(cfg: LossConfig, schedule: Schedule) -> Schedule:
    """The model's schedule under the loss settings: another prediction kind, zero terminal SNR."""
    schedule = schedule if cfg.prediction == "auto" else replace(schedule, prediction=cfg.prediction)
    return schedule.zero_terminal_snr() if cfg.zero_terminal_snr else schedule


@dataclass
class Step:
    """One update of the weights as a call: `step(number) -> loss`, a 0-dim tensor of its own."""

    cfg: TrainConfig
    sd: Components
    state: State
    batches: Batches
    rank: int = 0
    world: int = 1
    reduce: Callable[[list[Tensor]], None] | None = None  # sums tensors over all processes, in place
    look_every: int = 0  # updates between two looks at whether all were numbers; 0: each where that is free
    _cached: TextCache = field(init=False)

    def __post_init__(self):
        self.schedule = schedule_for(self.cfg.loss, self.sd.schedule)
        self._cached = TextCache(self.sd.text)
        self._frozen_text = TextCache(self.sd.text)  # what the method does to the text encoder is not in it
        self.params = [p for group in self.state.optimizer.param_groups for p in group["params"]]
        self.look_every = self.look_every or (1 if self.sd.device.type == "cpu" else READ_EVERY)
        self._bad = torch.zeros((), dtype=torch.bool, device=self.sd.device)
        self.good: tuple[int, dict[str, Any]] = (0, {})  # updates done, and a snapshot of the method then

    def __call__(self, number: int) -> Tensor:
        """Update `number`, counted from 0. Raises NotANumber where the loss or a gradient is none; the weights are then as before."""
        optimizer, method = self.state.optimizer, self.state.method
        method.before_step(number, optimizer)
        set_lr(optimizer, method.lr_at(number))
        optimizer.zero_grad(set_to_none=True)
        total, count = self._backward(number)
        loss = total / count
        self._update(loss, number)
        method.after_step(number + 1)
        if self.state.ema:
            self.state.ema.update()
        return loss

    def _backward(self, number: int) -> tuple[Tensor, int]:
        """Summed loss over the update's samples, and their number; gradients are of the mean over all processes."""
        many = self.cfg.optim.accumulate
        micro = [self.batches.at(number * many + i, self.rank, self.world, update=number) for i in range(many)]
        samples, total = sum(map(len, micro)), torch.zeros((), device=self.sd.device)
        if self.state.scaler is not None:
            self.state.scaler.scale(total)  # its first call makes the scale, and a process may get no sample of the first batch
        if self.reduce:  # only here is the device asked for a number, which makes it wait
            count = torch.tensor(float(samples), device=self.sd.device)
            self.reduce([count])
            samples = int(count)
        for batch in filter(len, micro):
            loss = self.loss(batch)
            (loss / samples if self.state.scaler is None else self.state.scaler.scale(loss / samples)).backward()
            total = total + loss.detach()
        if self.reduce:
            trained = [p for p in self.params if p.requires_grad]
            for p in trained:  # a process that got no sample of a small batch still takes part
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.reduce([total, *(p.grad for p in trained)])
        return total, samples

    def loss(self, batch: Batch) -> Tensor:
        """The batch's summed loss, the method's own term included once per sample."""
        device, cfg, method = self.sd.device, self.cfg, self.state.method
        x0 = (batch.latents.pin_memory() if cfg.memory.pin and device.type == "cuda" else batch.latents).to(device, non_blocking=True)
        u = torch.stack([torch.rand((), generator=generator_for(cfg.seed, i, "t")) for i in batch.indices])
        t = timesteps_for(u, cfg.loss, len(self.schedule)).to(device)
        noise, noise_in = noise_for(x0, cfg.loss, [generator_for(cfg.seed, i, "noise") for i in batch.indices])
        xt, target = self.schedule.add_noise(x0, noise_in, t), self.schedule.target(x0, noise, t)
        mask = None if batch.mask is None else batch.mask.to(device)
        method.begin(batch)
        encode = self.sd.text if method.trains_text else self._cached  # asked each time: a stage may end in which words were learned
        unet = joined(self.sd.unet, None if batch.extra is None else batch.extra.to(device))

        def predict(ctx: Tensor) -> Tensor:
            return unet(xt, t, ctx).float()

        kept = self._kept(batch, predict, t, encode) if cfg.prior.weight else None
        with self.sd.autocast():
            pred = predict(encode(batch.captions))
        each = diffusion_loss(pred, target, t, self.schedule, cfg.loss, mask)  # (B,)
        each = each if kept is None else each + cfg.prior.weight * kept
        return (each * batch.weights.to(device)).sum() + len(batch) * method.extra_loss()

    def _kept(self, batch: Batch, predict: Callable[[Tensor], Tensor], t: Tensor, encode: Callable[[list[str]], Tensor]) -> Tensor:
        """How far each sample's prediction (B,) for a class prompt is from the frozen model's: what the frozen model would have said is the target.

        OneTrainer's prior prediction and ai-toolkit's differential output preservation; here at the noisy subject, so that no class picture is needed.
        """
        lines = [literal(line) for line in self.cfg.prior.prompts]
        prompts = [lines[int(torch.randint(len(lines), (), generator=generator_for(self.cfg.seed, i, "class prompt")))] for i in batch.indices]
        with torch.no_grad(), self.state.method.disabled(), self.sd.autocast():
            wanted = predict(self._frozen_text(prompts))
        with self.sd.autocast():  # one of its own: autocast keeps converted weights until its end, and those of before were the frozen ones
            pred = predict(encode(prompts))
        return diffusion_loss(pred, wanted, t, self.schedule, self.cfg.loss)

    def _update(self, loss: Tensor, number: int) -> None:
        """Unscales, clips and steps; a step whose gradients are no numbers changes nothing."""
        optimizer, scaler, clip = self.state.optimizer, self.state.scaler, self.cfg.optim.clip
        if scaler is not None:
            scaler.unscale_(optimizer)
        grads = [_laid_out(p) for p in self.params if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        # With a scaler an infinite gradient only means that the scale was too high, and scaler.step leaves that update out.
        fine = torch.isfinite(loss) if scaler is not None else torch.isfinite(loss) & torch.isfinite(norm)
        self._watch(fine, number)
        if clip:
            torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1.0))
        if self.look_every > 1:  # nobody has looked: what is bad moves nothing
            for grad in grads:
                grad.masked_fill_(~fine, 0.0)
        if scaler is None:
            self._move(number)
        else:
            scaler.step(optimizer)
            scaler.update()

    def _move(self, number: int) -> None:
        """The optimizer's step; weights in bf16 are moved in fp32 and rounded by the same chances in every process."""
        if self.params[0].dtype != torch.bfloat16:
            self.state.optimizer.step()
            return
        seed = generator_for(self.cfg.seed, number, "rounding").initial_seed()
        rounded_step(self.state.optimizer, torch.Generator(self.params[0].device).manual_seed(seed))

    def _watch(self, fine: Tensor, number: int) -> None:
        """Notes an update that is none, looks every few, and keeps a snapshot of weights that were seen to be good; the first ones are."""
        self._bad |= ~fine
        first = not self.good[1]
        if first:
            self._keep(number)
        if number % self.look_every == 0:
            self.look(number)
            if not first and number % self.state.method.good_every == 0:
                self._keep(number)

    def _keep(self, number: int) -> None:
        with weights_for_eval(self.state.optimizer, self.state.ema):  # those that would be saved
            self.good = (number, self.state.method.snapshot())

    def look(self, number: int) -> None:
        """Raises NotANumber where update `number` or one since the last look was none; a GPU is waited for."""
        lost = self.state.scaler is not None and self.state.scaler.get_scale() < LEAST_SCALE
        if bool(self._bad) or lost:
            raise NotANumber(
                f"The loss is no longer a number at step {number + 1}, learning rate {self.state.method.lr_at(number):g}: "
                "lower the learning rate, or train in fp32 or bf16 instead of fp16."
            )


def _laid_out(p: Tensor) -> Tensor:
    """A weight's gradient with the weight's strides: torch 2.1's fused AdamW refuses others, which cuDNN gives for a 1x1 convolution on a channels-last picture."""
    if p.grad.stride() != p.stride():
        p.grad = torch.empty_like(p).copy_(p.grad)
    return p.grad


def has_bf16(device: torch.device) -> bool:
    """Whether the machine computes in bf16 with instructions of its own."""
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= 8  # torch's own answer counts emulation, many times slower
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _cpu_flag("avx512_bf16", "amx_bf16", "bf16")


def slow_attention(device: torch.device) -> bool:
    """Whether torch's attention is as slow in bf16 as in fp32: on a CPU with instructions for bf16, but none for tiles (AMX), which torch's kernel makes use of."""
    return device.type == "cpu" and has_bf16(device) and _cpu_flag("avx512_bf16") and not _cpu_flag("amx_bf16")


def _cpu_flag(*names: str) -> bool:
    """Whether Linux lists one of these flags; elsewhere no, since emulated bf16 is slower than fp32."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return not set(names).isdisjoint(flags.split())
