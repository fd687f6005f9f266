"""LoRA (Hu et al. 2106.09685) on the UNet's attention, feed-forward and projections, its convolutions (LoCon) and the text encoder, as kohya saves it.

ΔW = up @ down * alpha / rank. Axes: B samples, L tokens or pixels, r rank, C channels, k kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..config import opt
from ..host import Components
from ..optim import parse_lr
from ..sd.loss import generator_for
from ..sd.names import BLOCKS26, block_name
from .base import Layer, LayerMethod, Target, parts, weight_shapes
from .lora_file import LoraFile, check_fits, read_lora, write_lora
from .metadata import Made, lora_metadata, write_card


@dataclass(frozen=True)
class LoRAConfig:
    """What gets a low-rank layer, and how large it is."""

    rank: int = opt(16, "Rank", "Size of the adapter: more learns more and forgets more.", min=1, max=1024, essential=True)
    alpha: float = opt(16.0, "Alpha", "The adapter's effect is alpha / rank; often equal to the rank, or 1.", min=0.001, max=4096.0)
    conv_rank: int = opt(0, "Convolution rank", "Rank on the 3x3 convolutions and time projections (LoCon); 0: none.", min=0, max=1024)
    conv_alpha: float = opt(1.0, "Convolution alpha", "As alpha, for the convolutions.", min=0.001, max=4096.0)
    attention: bool = opt(True, "Attention", "Train the attention's query, key, value and output.")
    feed_forward: bool = opt(True, "Feed-forward", "Train the feed-forward layers.")
    projections: bool = opt(True, "Projections", "Train the projections into and out of the transformers.")
    text_encoder: bool = opt(False, "Text encoder", "Train the text encoder too, on its own learning rate.")
    blocks: str = opt("all", "Blocks", "Which blocks of the UNet: all, or names such as `IN04, IN05, M00, OUT03` (IN00-IN11, M00, OUT00-OUT11).")
    block_ranks: str = opt("", "Ranks of blocks", "Ranks that differ from the rank, as `M00=4, OUT03=32, BASE=8` (BASE: the text encoder).")
    dropout: float = opt(0.0, "Dropout", "Probability that a value inside the adapter is dropped.", min=0.0, max=0.95)
    rank_dropout: float = opt(0.0, "Rank dropout", "Probability that a whole rank is dropped.", min=0.0, max=0.95)
    module_dropout: float = opt(0.0, "Module dropout", "Probability that a whole layer's adapter is skipped.", min=0.0, max=0.95)
    up_lr_ratio: float = opt(1.0, "LoRA+ ratio", "The up matrices learn this many times faster (LoRA+, 2402.12354: 16).", min=1.0, max=64.0)
    max_norm: float = opt(0.0, "Max norm", "Longest norm of a layer's change; 0: no limit.", min=0.0, max=1000.0)
    start: str = opt("", "Start from", "A LoRA file to go on from; its ranks are taken over.")
    save_dtype: str = opt("fp16", "Saved precision", "Precision of the saved file.", choices=("fp16", "bf16", "fp32"))

    def check(self) -> None:
        """Raises ValueError for block names there are not."""
        chosen_blocks(self.blocks)
        block_ranks(self.block_ranks)


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def chosen_blocks(text: str) -> frozenset[str]:
    """The blocks that `blocks` names."""
    names = frozenset(BLOCKS26) if text.strip().lower() in ("", "all") else frozenset(n.strip().upper() for n in text.split(",") if n.strip())
    if unknown := sorted(names - set(BLOCKS26)):
        raise ValueError(f"blocks: {unknown[0]!r} is no block; there are BASE, IN00 to IN11, M00 and OUT00 to OUT11, or write all")
    return names


def block_ranks(text: str) -> dict[str, int]:
    """`M00=4, OUT03=32` as a table."""
    table = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, rank = part.partition("=")
        if name.strip().upper() not in BLOCKS26 or not rank.strip().isdigit() or not 1 <= int(rank) <= 1024:
            raise ValueError(f"block_ranks: {part!r} is not a block and its rank, such as M00=4")
        table[name.strip().upper()] = int(rank)
    return table


class Draws:
    """Random numbers of the current batch: one generator per sample and layer, so that no sample depends on another or on the number of processes."""

    def __init__(self, seed: int):
        self.seed, self.indices = seed, ()

    def bernoulli(self, keep: float, count: int, shape: tuple[int, ...], name: str) -> Tensor:
        """(count, *shape) of 0 and 1 / keep; `count` is a multiple of the batch (captions of several chunks)."""
        each = max(1, count // max(1, len(self.indices)))
        draws = [torch.rand((each, *shape), generator=generator_for(self.seed, i, name)) for i in self.indices]
        return (torch.cat(draws)[:count] < keep).float() / keep


class LoRALayer(Layer):
    """up @ down beside a Linear (down (r, C), up (C', r)) or a Conv2d (down (r, C, k, k), up (C', r, 1, 1))."""

    def __init__(self, module: nn.Module, rank: int, alpha: float, generator: Generator):
        super().__init__()
        self.conv = {"stride": module.stride, "padding": module.padding} if isinstance(module, nn.Conv2d) else None
        out, shape = module.weight.shape[0], module.weight.shape[1:]
        tail = (1, 1) if self.conv else ()
        bound = 1 / math.sqrt(shape.numel())  # kaiming_uniform(a = sqrt 5), as kohya and the paper's code start
        self.down = nn.Parameter((torch.rand((rank, *shape), generator=generator) * 2 - 1) * bound)
        self.up = nn.Parameter(torch.zeros(out, rank, *tail))
        self.alpha = alpha
        self.drop: tuple[float, float, float] = (0.0, 0.0, 0.0)  # values, ranks, the whole layer
        self.draws: Draws | None = None
        self.name = ""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        scale = self.alpha / self.rank
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        h = F.conv2d(x, down, **self.conv) if self.conv else F.linear(x, down)  # (B, L, r) or (B, r, h, w)
        if self.training and self.draws and any(self.drop):
            h = self._dropped(h)
        h = h if scale == 1 else h * scale  # here, where it is smallest
        return F.conv2d(h, up) if self.conv else F.linear(h, up)

    def _dropped(self, h: Tensor) -> Tensor:
        """kohya's three dropouts (networks/lora.py), each sample on its own draws; kept values are scaled up but for module dropout."""
        value, rank, whole = self.drop
        axis, count = (1 if self.conv else h.ndim - 1), len(h)
        per_sample = [1] * (h.ndim - 1)
        if value:
            h = h * self.draws.bernoulli(1 - value, count, tuple(h.shape[1:]), f"{self.name}/value").to(h)
        if rank:
            per_sample[axis - 1] = self.rank
            h = h * self.draws.bernoulli(1 - rank, count, (self.rank,), f"{self.name}/rank").reshape(count, *per_sample).to(h)
        if whole:
            h = h * (self.draws.bernoulli(1 - whole, count, (), f"{self.name}/module") * (1 - whole)).reshape(count, *[1] * (h.ndim - 1)).to(h)
        return h

    def delta_weight(self) -> Tensor:
        change = (self.up.flatten(1) @ self.down.flatten(1)) * (self.alpha / self.rank)
        return change.reshape(self.up.shape[0], *self.down.shape[1:])

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_down.weight": self.down.detach(), "lora_up.weight": self.up.detach(), "alpha": torch.tensor(float(self.alpha))}


def _plain(file: LoraFile) -> LoraFile:
    """The file, where all its modules are those of a LoRA. Raises ValueError for LoHa, DoRA and other families, and for factors that do not fit each other."""
    for parts in file.modules.values():
        if extra := parts.keys() ^ {"lora_down.weight", "lora_up.weight"} ^ (parts.keys() & {"alpha"}):
            raise ValueError(f"start: {file.path.name} is not a plain LoRA (it has or lacks {', '.join(sorted(extra)[:3])}), so it cannot be trained on as one.")
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        if min(down.ndim, up.ndim) < 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"start: {file.path.name} has factors of different ranks ({tuple(down.shape)} and {tuple(up.shape)}); it is damaged.")
    return file


class LoRA(LayerMethod):
    """Low-rank layers beside the chosen modules."""

    Config, kind, label = LoRAConfig, "lora", "LoRA"
    settings: LoRAConfig

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.trains_text = self.settings.text_encoder
        self._draws = Draws(cfg.seed)
        self._start: Mapping[Target, Mapping[str, Tensor]] = {}

    def targets(self, sd: Components) -> Iterable[tuple[Target, nn.Module]]:
        blocks = chosen_blocks(self.settings.blocks)
        for part, root in parts(sd).items():
            for path, module in root.named_modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)) and self._rank(part, path, module) and (part == "text" or block_name(path) in blocks):
                    yield (part, path), module

    def _rank(self, part: str, path: str, module: nn.Module) -> int:
        """The rank of a module's layer; 0 where it gets none."""
        s, own = self.settings, block_ranks(self.settings.block_ranks)
        if self._start:
            known = self._start.get((part, path))
            return len(known["lora_down.weight"]) if known else 0
        if part == "text":
            return own.get("BASE", s.rank) if s.text_encoder and ".encoder.layers." in path else 0
        rank = own.get(block_name(path), s.rank)
        if ".transformer_blocks." in path:
            return rank if (s.feed_forward if ".ff." in path else s.attention) else 0
        if path.endswith(("proj_in", "proj_out")):
            return rank if s.projections else 0
        inner = path.startswith(("input_blocks.", "middle_block.", "output_blocks.")) and not path.startswith("input_blocks.0.")
        return s.conv_rank if inner else 0

    def new_layer(self, target: Target, module: nn.Module, generator: Generator) -> LoRALayer:
        s = self.settings
        known = self._start.get(target)
        small = isinstance(module, nn.Conv2d) and not target[1].endswith(("proj_in", "proj_out")) or ".emb_layers." in target[1]
        alpha = float(known.get("alpha", len(known["lora_down.weight"]))) if known else (s.conv_alpha if small else s.alpha)
        layer = LoRALayer(module, self._rank(*target, module), alpha, generator)
        layer.drop, layer.draws, layer.name = (s.dropout, s.rank_dropout, s.module_dropout), self._draws, ":".join(target)
        if known:
            self._fill(layer, known)
        return layer

    def _fill(self, layer: LoRALayer, known: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            layer.down.copy_(known["lora_down.weight"].reshape(layer.down.shape))
            layer.up.copy_(known["lora_up.weight"].reshape(layer.up.shape))

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        if self.settings.start:
            file = _plain(read_lora(self.settings.start))
            check_fits(file, weight_shapes(sd))
            self._start = file.modules
        groups = super().attach(sd)
        self.trains_text = any(part == "text" for part, _ in self.layers)  # those of a file to start from too
        if self.settings.text_encoder and not self.trains_text:
            raise ValueError("lora.text_encoder is on, but the LoRA in lora.start has no layer of the text encoder: turn it off, or start from another file.")
        return groups

    def groups(self) -> list[dict[str, Any]]:
        optim, s = self.cfg.optim, self.settings
        text_scale = optim.text_lr / max(rate for rate, _ in parse_lr(optim.lr)) if optim.text_lr else 1.0
        groups = []
        for part, scale in (("unet", 1.0), ("text", text_scale)):
            layers = [layer for (p, _), layer in self.layers.items() if p == part]
            groups.append({"params": [layer.down for layer in layers], "lr_scale": scale})
            groups.append({"params": [layer.up for layer in layers], "lr_scale": scale * s.up_lr_ratio})
        return [group for group in groups if group["params"]]

    @property
    def saved_dtype(self) -> torch.dtype:
        return DTYPES[self.settings.save_dtype]

    def begin(self, batch: Any) -> None:
        self._draws.indices = batch.indices

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        limit = self.settings.max_norm
        if not limit:
            return
        for layer in self.layers.values():  # kohya's scale_weight_norms: both factors share the correction
            ratio = (limit / layer.delta_weight().norm().clamp(min=1e-12)).clamp(max=1.0).sqrt()
            layer.down.mul_(ratio)
            layer.up.mul_(ratio)

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        modules = {target: layer.tensors() for target, layer in self.layers.items()}
        metadata = lora_metadata(self.cfg, summary, made, modules)
        file = write_lora(path.with_name(path.name + ".safetensors"), modules, metadata, self.saved_dtype)
        write_card(file, self.cfg.trigger)
        return [file]
