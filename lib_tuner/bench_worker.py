"""One measured side of the benchmark, in a process of its own: what both sides compute, how it is timed, and our side.

Axes: B samples, h w latent pixels, L text length, C text width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .bench_memory import process_peak
from .config import build
from .data.batches import Batch, Batches
from .events import Event, Finished, Saved, Started, Stepped
from .host import Components, Host, LoadReport
from .methods import METHODS
from .sd.loss import generator_for, noise_for, timesteps_for
from .sd.schedule import Schedule
from .settings import TrainConfig
from .train import train

HostClass = Callable[[TrainConfig], Host]

WORD = "zxqbench"  # the word that Textual Inversion learns; no caption contains it by chance
VECTORS, RANK = 4, 16
RATES = {"lora": "1e-4", "textual_inversion": "5e-3"}
CLIPS = {"lora": 1.0, "textual_inversion": 0.0}  # longest gradient, 0: off; as in diffusers' example scripts
OWN = {  # settings of the method that are not its defaults: sizes that both sides share; word and adapter in every update; what fits beside another process
    "lora": {"rank": RANK, "alpha": RANK}, "textual_inversion": {"vectors": VECTORS}, "pivotal": {"inversion_steps": 0}, "dreambooth": {"masters": "bf16"},
}


@dataclass(frozen=True)
class Side:
    """One measured thing: who ("ours" or "peer") does what. `precision` is fp32, bf16 or auto, which is our own choice."""

    who: str
    task: str  # of METHODS
    size: int  # pixels of a side
    precision: str
    checkpoint: Path
    folder: Path  # holds `pictures`; runs are made in it
    batch: int = 1
    device: str = "cpu"  # or cuda


def config_for(side: Side) -> TrainConfig:
    """The run that a side measures: every batch has all pictures, and nothing is saved, sampled or validated on the way."""
    own = OWN.get(side.task, {})
    return build(TrainConfig, {
        "name": WORD, "method": side.task, "checkpoint": str(side.checkpoint), "output": str(side.folder / "runs"), "steps": 10**6, "save_every": 0,
        "data": {"folder": str(side.folder / "pictures"), "resolution": side.size, "batch": side.batch, "buckets": False, "latent": "deterministic"},
        "optim": {"lr": RATES.get(side.task, "1e-5"), "clip": CLIPS.get(side.task, 1.0)}, "memory": {"precision": side.precision, "device": side.device}, side.task: own,
    }, METHODS[side.task].Config)  # fmt: skip


class RandomLatents:
    """Stands in for the VAE, so that latents are the same numbers on both sides and encoding is in nobody's time."""

    cache_key, factor = "random", 8

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> mean, standard deviation (B, 4, H / 8, W / 8); the same for every picture."""
        h, w = (side // self.factor for side in pixels.shape[2:])
        mean = torch.randn(4, h, w, generator=generator_for(0, 0, "bench")).expand(len(pixels), -1, -1, -1)
        return mean, torch.zeros_like(mean)


@dataclass(frozen=True)
class Inputs:
    """What an update computes on: x0, noise (B, 4, h, w), t (B,), and the captions."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    captions: list[str]
    batch: Batch


class Drawn:
    """The inputs of every update as our step draws them, for those who are handed them: the peer, and the bare pass."""

    def __init__(self, cfg: TrainConfig, device: Any):
        self.cfg, self.device = cfg, device
        trigger = METHODS[cfg.method](cfg).triggers()
        self.batches = Batches(cfg.data, SimpleNamespace(vae=RandomLatents()), cfg.seed, trigger)

    def at(self, number: int) -> Inputs:
        batch, cfg = self.batches.at(number), self.cfg
        u = torch.stack([torch.rand((), generator=generator_for(cfg.seed, i, "t")) for i in batch.indices])
        noise, _ = noise_for(batch.latents, cfg.loss, [generator_for(cfg.seed, i, "noise") for i in batch.indices])
        t = timesteps_for(u, cfg.loss, len(Schedule.sd15()))
        return Inputs(batch.latents.to(self.device), noise.to(self.device), t.to(self.device), batch.captions, batch)


class Worker:
    """A side that is ready to be timed. Updates are numbered from 0 and come in order."""

    device: torch.device
    drawn: Drawn
    passes: Passes

    def update(self, number: int, given: Inputs) -> Tensor:
        """One update of the weights; returns its loss, a tensor that nobody has waited for."""
        raise NotImplementedError

    def start(self) -> dict[str, Any]:
        """What is trained, before the first update."""
        raise NotImplementedError

    def dtype(self) -> str:
        """Precision of the frozen UNet."""
        raise NotImplementedError

    def run(self, first: int, count: int) -> tuple[float, float, list[float]]:
        """Seconds per update over `count` updates from number `first`, those of them in the UNet's passes, and the losses, read after the clock has stopped.

        On a GPU the memory that a turn leaves unused is the other side's meanwhile; an update before, which is not timed, takes it again. Its loss comes first.
        """
        cuda = self.device.type == "cuda"
        given = [self.drawn.at(number) for number in range(first, first + count + cuda)]
        before = [float(self.update(first, inputs)) for inputs in given[:cuda]]
        self.passes.seconds()
        seconds, losses = timed(self.device, lambda: [self.update(first + cuda + i, inputs) for i, inputs in enumerate(given[cuda:])])
        measured = seconds / count, self.passes.seconds() / count, [*before, *(float(loss) for loss in losses)]
        if cuda:
            torch.cuda.empty_cache()
        return measured

    def peak(self) -> float | None:
        """Peak memory so far in GB (1e9 bytes): video memory on a GPU, else the process's."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else process_peak()

    def save_start(self, path: Path) -> None:
        """Writes where this side starts from, for `load_start` of the other side."""
        torch.save(self.start(), path)

    def close(self) -> None:
        """Ends the run."""


class Passes:
    """Adds up what the UNet's forward passes and the backward passes through it take.

    The end of a backward pass is what autograd's engine calls back, as it does for torch's DistributedDataParallel. On a GPU the marks are events in its
    stream, since there the calls return before the work is done.
    """

    def __init__(self, unet: nn.Module, device: torch.device):
        self.device, self._spans, self._began = device, [], None
        unet.register_forward_pre_hook(lambda *_: self._begin())
        unet.register_forward_hook(lambda module, args, output: self._forward_ends(output))

    def seconds(self) -> float:
        """Seconds since the last call; the device has done its work."""
        spans, self._spans = self._spans, []
        return sum(a.elapsed_time(b) / 1000 if self.device.type == "cuda" else b - a for a, b in spans)

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _begin(self) -> None:
        self._began = self._mark()

    def _end(self) -> None:
        self._spans.append((self._began, self._mark()))

    def _forward_ends(self, output: Any) -> None:
        self._end()
        pred = output if isinstance(output, Tensor) else output[0]
        if pred.requires_grad:
            pred.register_hook(lambda grad: self._backward_begins())

    def _backward_begins(self) -> None:
        self._begin()
        torch.autograd.Variable._execution_engine.queue_callback(self._end)


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that `work` takes, until the device has really done it, and what it returns."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - began, result


# ---- ours


class WithLatents:
    """A host whose VAE is replaced by `RandomLatents`."""

    def __init__(self, host: Host):
        self.host, self.sd = host, None

    @contextmanager
    def exclusive(self) -> Iterator[Components]:
        with self.host.exclusive() as sd:
            self.sd = replace(sd, vae=RandomLatents())
            yield self.sd

    def interrupted(self) -> bool:
        return False

    def reload(self, path: Path) -> LoadReport:
        return self.host.reload(path)


class Ours(Worker):
    """`train()` itself, advanced event by event: an update's time is that from one `Stepped` to the next."""

    def __init__(self, side: Side, host: HostClass):
        cfg = config_for(side)
        self.method, self.host, self._ended, self._groups = METHODS[side.task](cfg), WithLatents(host(cfg)), False, []
        attach = self.method.attach
        self.method.attach = lambda sd: self._noted(attach(sd))
        self.events = train(cfg, self.method, self.host, lambda: self._ended)
        self._next(Started)
        self.device = torch.device(self.host.sd.device)
        self.drawn, self.passes = Drawn(cfg, self.device), Passes(self.host.sd.unet, self.device)

    def _noted(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._groups = groups
        return groups

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for group in self._groups for p in group["params"])

    def saved(self) -> int:
        """Stops the run, and returns the bytes of the files that it saves; no update comes after."""
        self._ended = True
        event = self._next(Saved)
        self.events.close()  # before it writes a state to resume from
        return sum(path.stat().st_size for path in event.paths)

    def _next(self, kind: type[Event]) -> Any:
        for event in self.events:
            if isinstance(event, kind):
                return event
            if isinstance(event, Finished):
                break
        raise ValueError("The measured run has ended, because its loss was no number; the random weights are unusable: delete their file and run this again.")

    def update(self, number: int, given: Inputs) -> Tensor:
        """`given` is not looked at: our step draws the same numbers within the time measured."""
        return self._next(Stepped).loss

    def start(self) -> dict[str, Any]:
        return self.method.state_dict()

    def dtype(self) -> str:
        return str(self.host.sd.dtype).removeprefix("torch.")

    def close(self) -> None:
        self.events.close()
