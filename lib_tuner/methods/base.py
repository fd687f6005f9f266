"""What a training method is, and the kind that adds a small layer beside many of the model's layers.

Axes: B samples, L tokens or pixels, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..config import flat_values
from ..data.hints import Hints
from ..host import Components
from ..optim import average_bytes, lr_at
from ..sd.loss import generator_for
from ..settings import TrainConfig, check_final
from .metadata import Made

Target = tuple[str, str]  # (part, module path): part is "unet" or "text"


@dataclass(frozen=True)
class NoConfig:
    """A method without settings of its own."""


@dataclass(frozen=True)
class Costs:
    """Bytes beside the model and a forward pass: on the device while it learns, of a saved file, of a state to resume from. 0: too few to count."""

    device: float = 0.0
    file: float = 0.0
    state: float = 0.0


def no_blocks(why: str) -> dict[str, str]:
    """For `Method.refuses`: the method has no blocks to choose."""
    return dict.fromkeys((".blocks", ".block_ranks", ".block_rates"), why)


def file_named(path: str) -> str:
    """The name of the file at the end of a path, which may have been written on another system."""
    return PureWindowsPath(path).name  # takes both slashes


class Method:
    """What is trained. The hooks do nothing here; a method overrides three to five of them."""

    Config: type = NoConfig
    kind = ""  # the METHODS key, and the host's folder for its files
    label = ""
    identity_at_start = True  # attached but untrained, the model is unchanged
    needs_grads = False  # reads .grad in after_step, so gradients may not be freed during the backward pass
    in_prompt = True  # its file is used by a name in the prompt
    parameters = 0.0  # trained at SD1.5's widths, where they are so many that their memory counts
    hints: Hints | None = None  # for a method whose batches have hints
    trains_text = False  # the text encoder's states depend on what is trained, so they cannot be cached
    learns_words = False  # the trigger is a word with vectors of its own
    freezes = True  # the UNet's own weights stay as they are
    drifts = False  # changes the model so far that its language drift is measured unless somebody says no
    refuses: Mapping[str, str] = {}  # a setting of the run, or `.name` of its own that it has not -> why it makes no sense here, and what to do
    good_every = 1  # updates between two snapshots, which are kept for the case that the loss is no number any more

    def __init__(self, cfg: TrainConfig):
        self.cfg, self.settings = cfg, cfg.settings

    @classmethod
    def check(cls, cfg: TrainConfig) -> None:
        """Raises ValueError for settings of the run that make no sense for the method, with a line each; nothing is loaded for it."""
        given, usual = flat_values(cfg), flat_values(TrainConfig())
        problems = [f"{key}: {why}" for key, why in cls.refuses.items() if not key.startswith(".") and given[key] != usual[key]]
        if problems:
            raise ValueError("\n".join(problems))
        if cfg.prior.weight and cls.disabled is Method.disabled:
            raise ValueError(f"prior.weight: {cls.label} cannot be switched off while it learns, so there is no frozen model to compare with; set it to 0.")

    @classmethod
    def check_new(cls, cfg: TrainConfig) -> None:
        """Raises ValueError, beginning with the setting's key, for names that a new run may not take; earlier ones are read, and go on, with theirs."""
        check_final(cfg.name)

    @classmethod
    def starts(cls, cfg: TrainConfig) -> list[tuple[str, str]]:
        """The files that the run starts from, each behind the key of the setting that names it."""
        return [(key, file) for key, file in flat_values(cfg).items() if key.endswith(".start") and file]

    @classmethod
    def moved(cls, cfg: TrainConfig, key: str, *given: str) -> bool:
        """Whether a setting's two values name the same files in other folders: the state has what was learned from them, so that only their sizes and alphas are read again."""
        return key.endswith(".start") and all(given) and len(set(map(file_named, given))) == 1

    @contextmanager
    def attached(self, sd: Components) -> Iterator[list[dict[str, Any]]]:
        """Attaches, yields the optimizer's parameter groups, and detaches whatever happens."""
        try:
            yield self.attach(sd)
        finally:
            self.detach()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The frozen model while it lasts, for priors and drift."""
        raise NotImplementedError(f"{self.kind} cannot be disabled")
        yield

    @contextmanager
    def folded(self) -> Iterator[None]:
        """The model draws as it will with the saved file, for a host that writes such a file into the weights; nothing here."""
        yield

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        """Hooks into the model; returns parameter groups (`params`, and optionally `lr_scale`, `weight_decay`)."""
        raise NotImplementedError

    def detach(self) -> None:
        """Leaves the host's model bit for bit as it was."""

    def train(self, mode: bool = True) -> None:
        """Switches what behaves otherwise in training, such as dropout."""

    def lr_at(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0; a group's `lr_scale` multiplies it."""
        return lr_at(self.cfg.optim, step, self.cfg.steps)

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """The coming update, counted from 0: a method of several stages says here what is trained in it."""

    def begin(self, batch: Any) -> None:
        """Hands the coming batch to the hooks."""

    def extra_loss(self) -> Tensor | float:
        """A term beside the diffusion loss."""
        return 0.0

    def after_step(self, step: int) -> None:
        """Gradients are present and the weights have moved."""

    def follow(self) -> None:
        """The weights in the optimizer's groups were changed by somebody else (an average in their place): whatever is computed from them follows."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        raise NotImplementedError

    def snapshot(self) -> dict[str, Any]:
        """A state to export from if the run breaks; no more exact than the saved file, where a whole state would cost too much."""
        self.follow()  # it may be taken of averages
        return self.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a `state_dict` or a `snapshot` back; the method is attached."""
        raise NotImplementedError

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        """Writes what a user keeps, as `path` with the method's endings, and returns the files, the one to load first.

        `summary` is that of the data, `made` what else the file says of its making.
        """
        raise NotImplementedError

    def optimizer_records(self, paths: Sequence[Path], optimizer: Any) -> dict[Path, dict[str, Any]] | None:
        """What the WebUI's own trainer of the kind wants in which files beside the saved ones to go on from them; none where it knows no such optimizer,
        None where it has no such trainer."""
        return None

    def own_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """How many numbers are trained, where their memory is worth counting; `shapes`: of the UNet's tensors by name, SD1.5's where there are none."""
        width = next((shape[0] for name, shape in shapes.items() if name.endswith("input_blocks.0.0.weight")), 320)
        return self.parameters * (width / 320) ** 2

    @classmethod
    def file_kind(cls, path: Path) -> str:
        """The method whose rules a host follows to read a saved file, where one method saves files of several kinds."""
        return cls.kind

    def costs(self, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: str) -> Costs:
        """What it takes on a kind of device with a model of `dtype`; `sizes`: the parameters of its parts by name (unet, text, vae), `shapes` as above.

        Weights, gradients and the last good weights in fp32, their copy in half precision, the optimizer's averages.
        """
        copied = dtype.itemsize if dtype.itemsize < 4 else 0
        return Costs(self.own_parameters(shapes) * (12 + copied + average_bytes(self.cfg.optim.name) + 4 * bool(self.cfg.optim.ema)))

    def triggers(self) -> str:
        """The word that stands for [name] in templates and sample prompts; of several words `Triggers`."""
        return self.cfg.trigger.strip()


class HookMethod(Method):
    """Acts on the model through hooks alone, which ask `_on` whether they may; the model itself stays as it is."""

    def __init__(self, cfg: TrainConfig):
        super().__init__(cfg)
        self._handles: list[Any] = []
        self._on = True

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before


class Layer(nn.Module):
    """What is trained beside one Linear or Conv2d: adds `forward(x)` to its output, the effect of `delta_weight()`.

    With `decompose` it is a DoRA (Liu et al. 2402.09353): the sum of weight and change, brought to learned lengths. There is one length per input channel,
    since that is the axis which the WebUI reads (its network.py); the paper has one per output channel.
    """

    magnitude: nn.Parameter | None  # (1, C) or (1, C, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("magnitude", None)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def delta_weight(self) -> Tensor:
        """The change of the module's weight, of its shape, fp32: what `forward` does, and what a host adds to the weight; lengths left aside."""
        raise NotImplementedError

    def as_saved(self, dtype: torch.dtype) -> Layer:
        """A copy of the layer with the factors that a file of that precision has."""
        made = copy.copy(self)
        made._parameters = {name: p if p is None else nn.Parameter(p.to(dtype).to(p.dtype), False) for name, p in self._parameters.items()}
        return made

    def decompose(self, module: nn.Module) -> None:
        """Makes it a DoRA, with the weight's own lengths."""
        self.magnitude = nn.Parameter(_lengths(module.weight.detach().float()).cpu())

    def change(self, weight: Tensor) -> Tensor:
        """All that is added to the module's weight, fp32."""
        delta = self.delta_weight()
        return delta if self.magnitude is None else (weight.to(delta) + delta) * self._ratio(weight, delta) - weight.to(delta)

    def effect(self, module: nn.Module, x: Tensor) -> Tensor:
        """All that is added to the module's output."""
        if self.magnitude is None:
            return self(x)
        with exactly(x.device):  # in two bytes lengths are rounded more coarsely than they are learned
            with torch.no_grad():
                delta = self.delta_weight()
            ratio = self._ratio(module.weight, delta).flatten()  # (C,)
        ratio = ratio[:, None, None] if isinstance(module, nn.Conv2d) else ratio
        return _without_bias(module, x * (ratio - 1).to(x.dtype)) + self(x * ratio.to(x.dtype))

    def _ratio(self, weight: Tensor, delta: Tensor) -> Tensor:
        """Learned lengths / lengths; the latter count as constants, as in the paper's section 4.3."""
        return self.magnitude / _lengths(weight.detach().to(delta) + delta.detach()).clamp(min=1e-12)

    def tensors(self) -> dict[str, Tensor]:
        """The parts of the saved file, by kohya's names."""
        raise NotImplementedError


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast meanwhile, which a device may not know at all: older torch then refuses to switch it off."""
    try:
        return torch.autocast(device.type, enabled=False)
    except (RuntimeError, AssertionError):
        return nullcontext()


def _lengths(weight: Tensor) -> Tensor:
    """Norms of the columns: (D, C, ...) -> (1, C, ...) with ones for what comes behind."""
    return torch.linalg.vector_norm(weight, dim=[0, *range(2, weight.ndim)], keepdim=True)


def _without_bias(module: nn.Module, x: Tensor) -> Tensor:
    weight = module.weight.to(x.dtype)
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(x, weight)


class LayerMethod(HookMethod):
    """Adds a `Layer` to each target module by a forward hook."""

    def __init__(self, cfg: TrainConfig):
        super().__init__(cfg)
        self.layers: dict[Target, Layer] = {}
        self._beside: dict[Target, nn.Module] = {}

    def targets(self, sd: Components) -> Iterable[tuple[Target, nn.Module]]:
        """The modules that get a layer."""
        raise NotImplementedError

    def new_layer(self, target: Target, module: nn.Module, generator: Generator) -> Layer:
        """The layer of one target, with fp32 parameters; `generator` (CPU) is the target's own."""
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the layers."""
        raise NotImplementedError

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        for number, (target, module) in enumerate(self.targets(sd)):
            layer = self.new_layer(target, module, generator_for(self.cfg.seed, number, "layer")).to(module.weight.device)
            self.layers[target], self._beside[target] = layer, module
            self._handles.append(module.register_forward_hook(self._hook(layer)))
        if not self.layers:
            raise ValueError(f"{self.kind}: the chosen parts and blocks hold no layer to train; choose more of them.")
        return self.groups()

    def _hook(self, layer: Layer) -> Callable:
        def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return output + layer.effect(module, args[0]) if self._on else output

        return add

    def detach(self) -> None:
        super().detach()
        self.layers, self._beside = {}, {}

    @property
    def saved_dtype(self) -> torch.dtype:
        """The precision of the factors in the saved file."""
        return torch.float32

    @contextmanager
    def folded(self) -> Iterator[None]:
        """The weights as a host makes them of the saved file, factors rounded as there: W + ΔW in the weight's precision. Bit for bit as before afterwards."""
        before: list[tuple[nn.Module, Tensor]] = []
        try:
            with torch.no_grad():
                for target, layer in self.layers.items():
                    module = self._beside[target]
                    before.append((module, module.weight.to("cpu", copy=True)))
                    delta = layer.as_saved(self.saved_dtype).change(module.weight)
                    module.weight.copy_((module.weight.to(delta.dtype) + delta).to(module.weight.dtype))
            with self.disabled():
                yield
        finally:
            with torch.no_grad():
                for module, weight in before:
                    module.weight.copy_(weight)

    def train(self, mode: bool = True) -> None:
        for layer in self.layers.values():
            layer.train(mode)

    def state_dict(self) -> dict[str, Any]:
        return {f"{part}:{path}": {k: v.detach().clone() for k, v in layer.state_dict().items()} for (part, path), layer in self.layers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        names = {f"{part}:{path}": layer for (part, path), layer in self.layers.items()}
        shapes = {name: {k: v.shape for k, v in layer.state_dict().items()} for name, layer in names.items()}
        if shapes != {name: {k: v.shape for k, v in values.items()} for name, values in state.items()}:
            raise ValueError(f"The saved {self.kind} has other layers than these settings make; resume with the settings of the run that was saved.")
        for name, layer in names.items():
            layer.load_state_dict(state[name])


def weight_shapes(sd: Any) -> dict[Target, tuple[int, ...]]:
    """The shape of every weight in the trainable parts, by (part, module path); `sd` has `unet` and `text.transformer`."""
    return {(part, path): tuple(m.weight.shape) for part, root in parts(sd).items() for path, m in root.named_modules() if hasattr(m, "weight")}


def parts(sd: Any) -> dict[str, nn.Module]:
    """The two trainable parts of the model by name."""
    return {"unet": sd.unet, "text": sd.text.transformer}
