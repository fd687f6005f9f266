"""What the families of adapters share: which modules get one and of what rank, dropout, starting from a file, and writing one.

Axes: B samples, L tokens or pixels, r rank, C channels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..config import opt
from ..disk import expanded
from ..host import Components
from ..optim import text_scale
from ..sd.inpaint import FIRST, INPUTS
from ..sd.loss import generator_for
from ..sd.names import BLOCKS26, block_name
from .base import Layer, LayerMethod, Target, parts, weight_shapes
from .blocks import RATE_HELP, block_ranks, block_rates, check_blocks, chosen_blocks, rate_of
from .lora_file import check_fits, read_lora, write_lora
from .metadata import Made, lora_metadata, write_card

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
OUTER = (FIRST, "out.2", "time_embed.0", "time_embed.2")  # in no block of the UNet


@dataclass(frozen=True)
class AdapterConfig:
    """What gets an adapter, and how large it is."""

    rank: int = opt(16, "Rank", "Size of the adapter: more learns more and forgets more.", min=1, max=1024, essential=True)
    alpha: float = opt(16.0, "Alpha", "The adapter's effect is alpha / rank; often equal to the rank, or 1.", min=0.001, max=4096.0)
    conv_rank: int = opt(0, "Convolution rank", "Rank on the 3x3 convolutions and time projections (LoCon); 0: none.", min=0, max=1024)
    conv_alpha: float = opt(1.0, "Convolution alpha", "As alpha, for the convolutions.", min=0.001, max=4096.0)
    attention: bool = opt(True, "Attention", "Train the attention's query, key, value and output.")
    feed_forward: bool = opt(True, "Feed-forward", "Train the feed-forward layers.")
    projections: bool = opt(True, "Projections", "Train the projections into and out of the transformers.")
    outer: bool = opt(False, "Outer layers", "Train the first and the last convolution and the time embedding too, at the convolutions' rank; of an inpainting model not the first.")
    text_encoder: bool = opt(False, "Text encoder", "Train the text encoder too, on its own learning rate.")
    blocks: str = opt("all", "Blocks", "Which blocks of the UNet: all, or names such as `IN04, IN05, M00, OUT03` (IN00-IN11, M00, OUT00-OUT11).")
    block_ranks: str = opt("", "Ranks of blocks", "Ranks that differ from the rank, as `M00=4, OUT03=32, BASE=8` (BASE: the text encoder).")
    block_rates: str = opt("", "Learning rates of blocks", RATE_HELP)
    module_dropout: float = opt(0.0, "Module dropout", "Probability that a whole layer's adapter is skipped.", min=0.0, max=0.95)
    dora: bool = opt(False, "DoRA", "Learn the length of the weights apart from their direction (2402.09353), as the WebUI reads it; alpha must be the rank.")
    start: str = opt("", "Start from", "A LoRA file to go on from; its ranks are taken over. What is switched off here (the text encoder too) stays as it is there.")
    save_dtype: str = opt("fp16", "Saved precision", "Precision of the saved file.", choices=("fp16", "bf16", "fp32"), kept=False)

    def check(self) -> None:
        """Raises ValueError for block names there are not, and for what no file can say."""
        check_blocks(self, self.text_encoder)
        ranks = block_ranks(self.block_ranks)
        if self.start and ranks:
            raise ValueError("block_ranks: the file in start says the ranks of its blocks: leave block_ranks empty, or start without a file")
        # the WebUI multiplies by alpha / rank after it has brought the weights to their length (its network.py), which is right at 1 alone
        if self.dora and (self.alpha != self.rank or self.conv_rank and self.conv_alpha != self.conv_rank or set(ranks.values()) - {self.rank}):
            raise ValueError("dora: alpha must be the rank, conv_alpha the convolutions' rank, and block_ranks empty: the WebUI draws any other wrongly")


class Draws:
    """Random numbers of the current batch: one generator per sample and layer, so that no sample depends on another or on the number of processes."""

    def __init__(self, seed: int):
        self.seed, self.indices = seed, ()

    def bernoulli(self, keep: float, count: int, shape: tuple[int, ...], name: str) -> Tensor:
        """(count, *shape) of 0 and 1 / keep; `count` is a multiple of the batch (captions of several chunks)."""
        each = max(1, count // max(1, len(self.indices)))
        draws = [torch.rand((each, *shape), generator=generator_for(self.seed, i, name)) for i in self.indices]
        return (torch.cat(draws)[:count] < keep).float() / keep


class Adapter(Layer):
    """A layer of a family: its factors are its parameters."""

    file_names: Mapping[str, str] = {}  # how the factors are called in a file
    rank: int

    def __init__(self, module: nn.Module, alpha: float):
        super().__init__()
        self.conv = {"stride": module.stride, "padding": module.padding} if isinstance(module, nn.Conv2d) else None
        self.shape = tuple(module.weight.shape)
        self.alpha = alpha
        self.skip = 0.0  # probability of module dropout
        self.draws: Draws | None = None
        self.name = ""

    @property
    def scale(self) -> float:
        """What the WebUI multiplies the change by."""
        return self.alpha / self.rank

    def whole(self, y: Tensor) -> Tensor:
        """Module dropout: each sample with or without the layer; nothing is scaled up, as in kohya's networks/lora.py."""
        if not (self.training and self.draws and self.skip):
            return y
        keep = self.draws.bernoulli(1 - self.skip, len(y), (), f"{self.name}/module") * (1 - self.skip)
        return y * keep.reshape(len(y), *[1] * (y.ndim - 1)).to(y)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """`weight`, of the module's shape, applied as the module applies its own, without its bias."""
        return F.conv2d(x, weight, **self.conv) if self.conv else F.linear(x, weight)

    def _in_file(self, name: str) -> str:
        return "dora_scale" if name == "magnitude" else self.file_names[name]

    def tensors(self) -> dict[str, Tensor]:
        return {**{self._in_file(name): p.detach() for name, p in self.named_parameters()}, "alpha": torch.tensor(float(self.alpha))}

    def fill(self, known: Mapping[str, Tensor]) -> None:
        """Takes a file's factors over, of whatever rank they are, and its alpha."""
        for name, p in list(self.named_parameters()):
            value = known[self._in_file(name)]
            setattr(self, name, nn.Parameter(value.to(p.device, torch.float32).reshape(self.filled_shape(name, p, value))))
        self.alpha = float(known.get("alpha", self.rank))

    def filled_shape(self, name: str, p: nn.Parameter, value: Tensor) -> tuple[int, ...]:
        """The shape in which a file's factor is kept here."""
        return tuple(p.shape)


@dataclass(frozen=True)
class Wanted:
    """What a module's layer is to be."""

    rank: int
    alpha: float
    rate: float  # times the learning rate; 0: it stays as the file to start from has it
    known: Mapping[str, Tensor] = field(default_factory=dict)  # its factors in that file


class Adapters(LayerMethod):
    """An adapter beside each of the chosen modules."""

    settings: AdapterConfig
    words_beside: tuple[str, ...] = ()  # those that pivotal tuning learns with it

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.trains_text = self.settings.text_encoder or bool(self.settings.start)  # whose layers, if it has any, need the text encoder where it is
        self._draws = Draws(cfg.seed)
        self._blocks, self._rates = chosen_blocks(self.settings.blocks), block_rates(self.settings.block_rates)
        self._wanted: dict[Target, Wanted] = {}

    def make(self, module: nn.Module, rank: int, alpha: float, generator: Generator) -> Adapter:
        """A new layer of the family."""
        raise NotImplementedError

    def of_family(self, factors: set[str]) -> bool:
        """Whether the factors of a module in a file (without alpha and dora_scale) are the family's."""
        raise NotImplementedError

    def targets(self, sd: Components) -> Iterable[tuple[Target, nn.Module]]:
        return [(target, module) for target, module in _modules(sd) if target in self._wanted]

    def _from_settings(self, sd: Components) -> dict[Target, Wanted]:
        """A layer beside each module whose kind, block and rank are chosen."""
        ranks, found = block_ranks(self.settings.block_ranks), {}
        for (part, path), module in _modules(sd):
            rank, rate = self._rank(part, path, ranks), self._rate(part, path)
            if rank and rate and self._in_blocks(part, path):
                found[part, path] = Wanted(rank, self._alpha(path, module), rate)
        return found

    def _from_file(self, sd: Components) -> dict[Target, Wanted]:
        """A layer beside each module of the file to start from, which in most families says its rank and alpha too."""
        s, modules = self.settings, self._read_start(sd)
        found = {target: Wanted(s.rank, self._alpha(target[1], module), self._rate(*target), modules[target]) for target, module in _modules(sd) if target in modules}
        if lost := sorted({block_name(path) for part, path in modules if (part, path) not in found or not self._in_blocks(part, path)}, key=BLOCKS26.index):
            raise ValueError(f"blocks: the file in start has layers in {', '.join(lost)} too, which the saved file would lack; choose these blocks as well (block_rates 0 keeps them as they are).")
        return found

    def _in_blocks(self, part: str, path: str) -> bool:
        return part == "text" or path in OUTER or block_name(path) in self._blocks

    def _rank(self, part: str, path: str, ranks: Mapping[str, int]) -> int:
        """The rank of a module's layer by the settings; 0 where it gets none. `ranks`: those of blocks that have their own."""
        s = self.settings
        if part == "text":
            return ranks.get("BASE", s.rank) if ".encoder.layers." in path else 0
        if path in OUTER:
            return s.conv_rank or s.rank
        if ".transformer_blocks." in path or path.endswith(("proj_in", "proj_out")):
            return ranks.get(block_name(path), s.rank)
        inner = path.startswith(("input_blocks.", "middle_block.", "output_blocks."))
        return s.conv_rank if inner else 0

    def _alpha(self, path: str, module: nn.Module) -> float:
        s = self.settings
        return s.conv_alpha if _of_convolutions(path, isinstance(module, nn.Conv2d)) and s.conv_rank else s.alpha

    def _rate(self, part: str, path: str) -> float:
        """How many times the learning rate a module's layer learns at; 0 where the settings switch its kind off, or its block."""
        return rate_of(self._rates, part, path) * self._kind_on(part, path)

    def _kind_on(self, part: str, path: str) -> bool:
        """Whether layers of the module's kind are trained; those of convolutions are switched by their rank, which a file to start from says."""
        s = self.settings
        if part == "text":
            return s.text_encoder
        if path in OUTER:
            return s.outer
        if ".transformer_blocks." in path:
            return s.feed_forward if ".ff." in path else s.attention
        return s.projections or not path.endswith(("proj_in", "proj_out"))

    def new_layer(self, target: Target, module: nn.Module, generator: Generator) -> Adapter:
        s, wanted = self.settings, self._wanted[target]
        layer = self.make(module, wanted.rank, wanted.alpha, generator)
        layer.skip, layer.draws, layer.name = s.module_dropout, self._draws, ":".join(target)
        if s.dora or "dora_scale" in wanted.known:
            layer.decompose(module)
        if wanted.known:
            layer.fill(wanted.known)
        return layer

    def _read_start(self, sd: Components) -> Mapping[Target, Mapping[str, Tensor]]:
        """The factors of the file to start from. Raises ValueError for one that cannot be gone on from here."""
        file = read_lora(expanded(self.settings.start))
        for factors in file.modules.values():
            if not self.of_family(factors.keys() - {"alpha", "dora_scale"}):
                names = ", ".join(sorted(factors.keys() - {"alpha"})[:3])
                raise ValueError(f"start: {file.path.name} is no {self.label} (it has {names}), so it cannot be trained on as one.")
            if "dora_scale" in factors and factors["dora_scale"].shape[0] != 1:
                raise ValueError(f"start: {file.path.name} is a DoRA with a length per output channel, which the WebUI draws wrongly; only one per input channel goes on.")
            if self.settings.dora and "dora_scale" not in factors:
                raise ValueError(f"dora: {file.path.name} in start is no DoRA, so it goes on as what it is: turn dora off, or start without a file.")
        if not self.cfg.resume and (lost := [word for word in file.embeddings if word not in self.words_beside]):  # a run of an older version goes on as it was
            said = f"start: {file.path.name} has words inside that are not trained here and would be missing in the saved file ({', '.join(lost)}); "
            raise ValueError(said + ("give each a line in pivotal.words.embeddings." if self.words_beside else "go on with method = pivotal, the file in pivotal.layers.start and each word in a line of pivotal.words.embeddings."))
        check_fits(file, weight_shapes(sd))
        return file.modules

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        self._wanted = self._from_file(sd) if self.settings.start else self._from_settings(sd)
        groups = super().attach(sd)
        self.trains_text = self.settings.text_encoder
        if self.settings.text_encoder and not any(part == "text" for part, _ in self.layers):
            raise ValueError(f"{self.kind}.text_encoder is on, but the file in {self.kind}.start has no layer of the text encoder: turn it off, or start from another file.")
        return groups

    def groups(self) -> list[dict[str, Any]]:
        groups = []
        for part, scale in (("unet", 1.0), ("text", text_scale(self.cfg.optim))):
            by_rate: dict[float, list[Adapter]] = {}
            for (p, path), layer in self.layers.items():
                if p == part:
                    by_rate.setdefault(self._wanted[p, path].rate, []).append(layer)
            for layer in by_rate.pop(0.0, ()):  # of the file to start from: it takes part, and stays as it is
                layer.requires_grad_(False)
            groups += [{"params": params, "lr_scale": scale * rate * more} for rate, layers in by_rate.items() for params, more in self.split(layers)]
        return [group for group in groups if group["params"]]

    def split(self, layers: list[Adapter]) -> list[tuple[list[nn.Parameter], float]]:
        """The parameters of layers, by how many times faster than the rest they learn."""
        return [([p for layer in layers for p in layer.parameters()], 1.0)]

    def train(self, mode: bool = True) -> None:
        for target, layer in self.layers.items():  # what stays as it is drops nothing, so that the text encoder's states under it can be cached
            layer.train(mode and self._wanted[target].rate > 0)

    @property
    def saved_dtype(self) -> torch.dtype:
        return DTYPES[self.settings.save_dtype]

    def begin(self, batch: Any) -> None:
        self._draws.indices = batch.indices

    def saved_modules(self) -> dict[Target, dict[str, Tensor]]:
        """What the file has of each layer."""
        return {target: layer.tensors() for target, layer in self.layers.items()}

    def trained(self, modules: Iterable[Target]) -> list[Target]:
        """Those that do not stay as the file to start from has them."""
        return [target for target in modules if self._wanted[target].rate]

    @property
    def sized(self) -> Any:
        """The run's settings with ranks, alphas and DoRA as most layers have them, where a file to start from said them instead."""
        if not self.settings.start:
            return self.cfg
        found: dict[str, Any] = {"conv_rank": 0, "dora": any(layer.magnitude is not None for layer in self.layers.values())}
        for prefix, convolutions in (("", False), ("conv_", True)):
            sizes = Counter((layer.rank, layer.alpha) for (_, path), layer in self.layers.items() if _of_convolutions(path, layer.conv is not None) is convolutions)
            for size in (size for size, _ in sizes.most_common(1)):
                found |= dict(zip((f"{prefix}rank", f"{prefix}alpha"), size))
        return replace(self.cfg, settings=replace(self.settings, **found))

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        modules = self.saved_modules()
        metadata = lora_metadata(self.sized, summary, made, self.trained(modules), self.cfg)
        file = write_lora(path.with_name(path.name + ".safetensors"), modules, metadata, self.saved_dtype)
        write_card(file, self.cfg.trigger)
        return [file]


def _modules(sd: Components) -> Iterator[tuple[Target, nn.Module]]:
    """The modules that a layer can be beside, in the order in which random numbers are drawn for them."""
    for part, root in parts(sd).items():
        for path, module in root.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and not _of_nine(path, module):
                yield (part, path), module


def _of_convolutions(path: str, conv: bool) -> bool:
    """Whether a module has the convolutions' rank and alpha: they themselves, and the time projections."""
    return conv and not path.endswith(("proj_in", "proj_out")) or ".emb_layers." in path or path in OUTER


def _of_nine(path: str, module: nn.Module) -> bool:
    """Whether it is an inpainting model's first convolution: the WebUI takes a change of any for one of 4 channels and adds 5 (its networks.py)."""
    return path == FIRST and module.weight.shape[1] == INPUTS


def kaiming(shape: tuple[int, ...], generator: Generator, fan_in: int) -> nn.Parameter:
    """torch's kaiming_uniform(a = sqrt 5), by which the papers' code, kohya and LyCORIS start: uniform within 1 / sqrt(fan_in)."""
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in))
