"""Hypernetwork, as AUTOMATIC1111's WebUI trains them: small networks before the keys and the values of every attention of the UNet.

context_k = x + f_k(x), context_v = x + f_v(x), with one pair of networks for each width of a context, which all attentions of that width share.
Axes: B samples, L tokens or pixels, C width of the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..config import opt
from ..disk import expanded
from ..host import Components
from ..sd.files import file_sha256
from ..sd.loss import generator_for
from .adapters import Draws
from .base import HookMethod, no_blocks
from .hypernetwork_file import ACTIVATIONS, INITS, HypernetworkFile, Structure, numbers, read_hypernetwork, write_hypernetwork
from .metadata import Made, settings_metadata

PARTS = ("to_k", "to_v")  # of an attention, in the order of a file's pairs


@dataclass(frozen=True)
class HypernetworkConfig:
    """What the networks consist of."""

    structure: str = opt("1, 2, 1", "Layer structure", "Widths of a network's layers as multiples of its input's; the first and the last are 1.", essential=True)
    activation: str = opt("linear", "Activation", "What is between the layers, by the WebUI's names (its swish is Hardswish); linear: nothing.",
                          choices=tuple(ACTIVATIONS), essential=True)
    activate_output: bool = opt(False, "Activate the output", "An activation behind the last layer too.")
    layer_norm: bool = opt(False, "Layer normalization", "A LayerNorm behind each layer.")
    dropout: str = opt("", "Dropout structure", "A probability for each width of the structure, as `0, 0.05, 0`: the first and the last are 0; empty: none.")
    init: str = opt("Normal", "Weight initialization", "How the weights are drawn; Normal: of deviation 0.01.", choices=INITS)
    zero_start: bool = opt(True, "Start that changes nothing", "The last layer starts at zero, so that the model first draws what it drew; the WebUI starts without.")
    sizes: str = opt("", "Sizes", "Widths of contexts that get networks: 768 is the text's, 320, 640 and 1280 the picture's; empty: all that the model has.")
    start: str = opt("", "Start from", "A hypernetwork file of the WebUI (.pt) to go on from; its structure, options and sizes are taken over.")

    def check(self) -> None:
        """Raises ValueError for a structure that cannot be, and for one that could not start at zero."""
        structure_of(self)
        chosen_sizes(self.sizes)
        open_end = self.activate_output and not self.layer_norm and not self.start
        if self.zero_start and open_end and not _learns_from_zero(self.activation):
            raise ValueError(f"zero_start: {self.activation} of 0 is not 0 or has no slope, so with activate_output nothing could start there: turn one of the two off")


def structure_of(cfg: HypernetworkConfig) -> Structure:
    """The structure that the settings describe. Raises ValueError, beginning with the setting's name."""
    values = {}
    for name in ("structure", "dropout"):
        try:
            values[name] = numbers(text) if (text := getattr(cfg, name).strip()) else None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    layers = values["structure"] or ()
    return Structure(layers, cfg.activation, cfg.activate_output, cfg.layer_norm, values["dropout"] or (0.0,) * len(layers), cfg.init)


def chosen_sizes(text: str) -> list[int]:
    """`768, 320` as widths; empty: none are named."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"sizes: {text!r} is not widths separated by commas, such as 768, 320, 640, 1280")
    return list(dict.fromkeys(map(int, parts)))


def _learns_from_zero(activation: str) -> bool:
    make = ACTIVATIONS[activation]
    if make is None:
        return True
    with torch.enable_grad():
        x = torch.zeros(1, requires_grad=True)
        y = make().eval()(x)
        slope, = torch.autograd.grad(y.sum(), x)
    return bool(y == 0) and bool(slope != 0)


# ---- the networks ----------------------------------------------------------------------------------------------------


class WideDraws(Draws):
    """Random numbers of whole activations: drawn where they are used, since a step needs some hundred million of them."""

    def uniform(self, like: Tensor, name: str) -> Tensor:
        """Uniform numbers of [0, 1) in the shape of `like` (B, ...), each sample's own."""
        each, draws = max(1, len(like) // len(self.indices)), []
        for i in self.indices:
            generator = Generator(like.device).manual_seed(generator_for(self.seed, i, name).initial_seed())
            draws.append(torch.rand((each, *like.shape[1:]), generator=generator, device=like.device))
        return torch.cat(draws)[: len(like)]


class Network(nn.Module):
    """f: (B, L, C) -> (B, L, C), a row of layers named as in the WebUI's files; `place` says in which attention, for its own dropout."""

    def __init__(self, width: int, structure: Structure, draws: WideDraws):
        super().__init__()
        self.linear = nn.Sequential(*structure.members(width))
        self.draws = draws

    def forward(self, x: Tensor, place: str) -> Tensor:
        h = x
        for number, member in enumerate(self.linear):
            h = self._member(member, h, x.dtype, f"{place}/{number}")
        return h.to(x.dtype)

    def _member(self, member: nn.Module, h: Tensor, dtype: torch.dtype, name: str) -> Tensor:
        """The weights are fp32 and are cast to what the model computes in; a LayerNorm stays in fp32, as under the WebUI's autocast."""
        if isinstance(member, nn.Linear):
            return F.linear(h.to(dtype), member.weight.to(dtype), member.bias.to(dtype))
        if isinstance(member, nn.LayerNorm):
            return member(h.float())
        if isinstance(member, nn.PReLU):
            return F.prelu(h, member.weight.to(h.dtype))
        if isinstance(member, (nn.Dropout, nn.RReLU)):
            return self._random(member, h, name)
        return member(h)

    def _random(self, member: nn.Module, h: Tensor, name: str) -> Tensor:
        """Dropout, and RReLU's slopes: by the sample's own draws, so that a resumed run and gradient checkpointing meet them again."""
        training = self.training and bool(self.draws.indices)
        if isinstance(member, nn.Dropout):
            return h * ((self.draws.uniform(h, name) >= member.p) / (1 - member.p)).to(h.dtype) if training else h
        if not training:
            return F.rrelu(h, member.lower, member.upper, training=False)
        slope = member.lower + (member.upper - member.lower) * self.draws.uniform(h, name)
        return torch.where(h >= 0, h, h * slope.to(h.dtype))

    @torch.no_grad()
    def draw(self, structure: Structure, generator: Generator, zero: bool) -> None:
        """The WebUI's initialisations: no biases, LayerNorms as Normal whatever is chosen, Kaiming's for ReLU whatever is chosen."""
        for member in self.linear:
            if isinstance(member, nn.Linear):
                member.weight.copy_(_drawn(structure.init, tuple(member.weight.shape), generator))
                member.bias.zero_()
            elif isinstance(member, nn.LayerNorm):
                member.weight.copy_(_drawn("Normal", tuple(member.weight.shape), generator))
        if zero:  # a LayerNorm of zeros would blow the first step up, so where there is one it is the last layer
            last = [member for member in self.linear if isinstance(member, (nn.Linear, nn.LayerNorm))][-1]
            last.weight.zero_()


def _drawn(init: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Glorot & Bengio 2010 and He et al. 1502.01852 (fan in), gains 1 and √2."""
    if init == "Normal":
        return torch.randn(shape, generator=generator) * 0.01
    out, fan_in = shape
    deviation = math.sqrt(2 / (fan_in + out)) if init.startswith("Xavier") else math.sqrt(2 / fan_in)
    if init.endswith("Normal"):
        return torch.randn(shape, generator=generator) * deviation
    return (torch.rand(shape, generator=generator) * 2 - 1) * deviation * math.sqrt(3)


# ---- the method ------------------------------------------------------------------------------------------------------


class Hypernetwork(HookMethod):
    """Networks before the keys and the values of attention; the model itself stays as it is."""

    Config, kind, label = HypernetworkConfig, "hypernetwork", "Hypernetwork"
    refuses = no_blocks("its networks are shared by all attentions of a width, whatever the block; choose widths with hypernetwork.sizes")
    settings: HypernetworkConfig

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.identity_at_start = self.settings.zero_start and not self.settings.start
        self.pairs: dict[int, nn.ModuleList] = {}
        self.strength = 1.0  # of what is added; 1 while it learns
        self._draws = WideDraws(cfg.seed)
        self._structure, self._before = structure_of(self.settings), 0

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        found = dict(attentions(sd.unet))
        there = list(dict.fromkeys(module.to_k.weight.shape[1] for module in found.values()))
        known = self._read_start(there) if self.settings.start else {}
        for number, width in enumerate(known or self._widths(there)):
            self.pairs[width] = nn.ModuleList(Network(width, self._structure, self._draws) for _ in PARTS)
            for i, network in enumerate(self.pairs[width]):
                if known:
                    network.load_state_dict(known[width][i])
                else:
                    network.draw(self._structure, generator_for(self.cfg.seed, 2 * number + i, "hypernetwork"), self.settings.zero_start)
            self.pairs[width].to(sd.device)
        for path, module in found.items():
            for part, network in zip(PARTS, self.pairs.get(module.to_k.weight.shape[1], ())):
                self._handles.append(getattr(module, part).register_forward_pre_hook(self._hook(network, f"{path}.{part}")))
        # in one group and in the file's order, in which the WebUI's trainer gives them to its optimizer
        return [{"params": [p for pair in self.pairs.values() for p in pair.parameters()]}]

    def _widths(self, there: list[int]) -> list[int]:
        """Those that are asked for, else all, the text's first as in the WebUI's list."""
        chosen, narrowest = chosen_sizes(self.settings.sizes), min(self._structure.layers)
        if gone := [width for width in chosen or there if int(narrowest * width) < 1]:
            raise ValueError(f"{self.kind}.structure: {narrowest:g} times a width of {gone[0]} leaves nothing that could learn; write a larger number.")
        if lacking := [str(width) for width in chosen if width not in there]:
            raise ValueError(f"{self.kind}.sizes: no attention of this model has a context of width {lacking[0]}; it has {', '.join(map(str, sorted(there)))}.")
        return chosen or sorted(there)

    def _read_start(self, there: list[int]) -> dict[int, Any]:
        file = read_hypernetwork(expanded(self.settings.start))
        fitting = {width: pair for width, pair in file.pairs.items() if width in there}
        if not fitting:
            had, has = (", ".join(map(str, sorted(widths))) for widths in (file.pairs, there))
            raise ValueError(f"{self.kind}.start: {Path(self.settings.start).name} is for contexts of width {had}, but this model has {has}; it was made for another model.")
        self._structure, self._before = file.structure, file.step
        return fitting

    def _hook(self, network: Network, place: str) -> Any:
        def add(module: nn.Module, args: tuple) -> tuple | None:
            if not self._on:
                return None
            added = network(args[0], place)
            return (args[0] + (added if self.strength == 1 else added * self.strength), *args[1:])

        return add

    def detach(self) -> None:
        super().detach()
        self.pairs = {}

    def train(self, mode: bool = True) -> None:
        for pair in self.pairs.values():
            pair.train(mode)

    def begin(self, batch: Any) -> None:
        self._draws.indices = batch.indices

    def _networks(self) -> dict[str, Network]:
        return {f"{width}.{part}": network for width, pair in self.pairs.items() for part, network in zip(PARTS, pair)}

    def state_dict(self) -> dict[str, Any]:
        return {name: {k: v.detach().clone() for k, v in network.state_dict().items()} for name, network in self._networks().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        shapes = {name: {k: v.shape for k, v in values.items()} for name, values in self.state_dict().items()}
        if shapes != {name: {k: v.shape for k, v in values.items()} for name, values in state.items()}:
            raise ValueError("The saved hypernetwork has other layers than these settings make; resume with the settings of the run that was saved.")
        for name, network in self._networks().items():
            network.load_state_dict(state[name])

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        target = path.with_name(path.name + ".pt")
        pairs = {width: tuple(network.state_dict() for network in pair) for width, pair in self.pairs.items()}
        file = HypernetworkFile(self._structure, pairs, path.name, self._before + made.step, made.model_hash, made.model_name, extra=settings_metadata(self.cfg))
        return [write_hypernetwork(target, file)]


    def optimizer_records(self, paths: Sequence[Path], optimizer: Any) -> dict[Path, dict[str, Any]]:
        """The WebUI tells its state by the file's hash, and makes the optimizer by its name in torch.optim."""
        name = type(optimizer).__name__
        if type(optimizer) is not getattr(torch.optim, name, None):
            return {}
        return {path.with_name(path.name + ".optim"): {"optimizer_name": name, "hash": file_sha256(path)[:10], "optimizer_state_dict": optimizer.state_dict()} for path in paths}

    def own_parameters(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        there = {shape[1] for name, shape in shapes.items() if name.endswith(".to_k.weight")}
        widths = [width for width in chosen_sizes(self.settings.sizes) or there if width in there]
        return sum(2 * math.prod(shape) for width in widths for shape in self._structure.shapes(width).values())


def attentions(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The attentions of a UNet, ours or ldm's, by path: what has projections to keys and values."""
    for path, module in unet.named_modules():
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in PARTS):
            yield path, module
