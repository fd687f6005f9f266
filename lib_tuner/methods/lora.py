"""LoRA (Hu et al. 2106.09685) on the UNet's attention, feed-forward and projections, its convolutions (LoCon) and the text encoder, as kohya saves it.

ΔW = up @ down * alpha / rank. Axes: B samples, L tokens or pixels, r rank, C channels, k kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..config import opt
from ..optim import holds_average
from .adapters import Adapter, AdapterConfig, Adapters, kaiming


@dataclass(frozen=True)
class LoRAConfig(AdapterConfig):
    """What gets a low-rank layer, and how large it is."""

    dropout: float = opt(0.0, "Dropout", "Probability that a value inside the adapter is dropped.", min=0.0, max=0.95)
    rank_dropout: float = opt(0.0, "Rank dropout", "Probability that a whole rank is dropped.", min=0.0, max=0.95)
    up_lr_ratio: float = opt(1.0, "LoRA+ ratio", "The up matrices learn this many times faster (LoRA+, 2402.12354: 16).", min=1.0, max=64.0)
    max_norm: float = opt(0.0, "Max norm", "Longest norm of a layer's change; 0: no limit.", min=0.0, max=1000.0)
    rank_stabilized: bool = opt(False, "rsLoRA", "The effect is alpha / √rank (2312.03732), so that a larger rank learns more; the file's alpha says so.")
    tucker: bool = opt(False, "Tucker", "3x3 convolutions in three parts (CP decomposition, as LyCORIS makes them): smaller files.")

    def check(self) -> None:
        """Raises ValueError for block names there are not, and for what no file can say."""
        super().check()
        if self.dora and self.rank_stabilized:
            raise ValueError("dora: it cannot be rank_stabilized, since the WebUI draws a DoRA rightly only where alpha is the rank; turn one of the two off")


@dataclass(frozen=True)
class LoConConfig(LoRAConfig):
    """As LoRA's, with the convolutions."""

    conv_rank: int = opt(8, "Convolution rank", "Rank on the 3x3 convolutions and time projections (LoCon); 0: none.", min=0, max=1024)
    conv_alpha: float = opt(8.0, "Convolution alpha", "As alpha, for the convolutions.", min=0.001, max=4096.0)


class LoRALayer(Adapter):
    """up @ down beside a Linear (down (r, C), up (C', r)) or a Conv2d (down (r, C, k, k), up (C', r, 1, 1)).

    With `tucker` a convolution has a part more: down (r, C, 1, 1), mid (r, r, k, k), up (C', r, 1, 1).
    """

    file_names = {"down": "lora_down.weight", "mid": "lora_mid.weight", "up": "lora_up.weight"}

    def __init__(self, module: nn.Module, rank: int, alpha: float, generator: Generator, tucker: bool = False):
        super().__init__(module, alpha)
        out, shape = module.weight.shape[0], module.weight.shape[1:]
        tucker = tucker and shape[1:].numel() > 1
        first = (shape[0], 1, 1) if tucker else tuple(shape)
        self.down = kaiming((rank, *first), generator, math.prod(first))
        self.up = nn.Parameter(torch.zeros(out, rank, *((1, 1) if self.conv else ())))
        self.mid = kaiming((rank, rank, *shape[1:]), generator, rank * shape[1:].numel()) if tucker else None
        self.drop: tuple[float, float] = (0.0, 0.0)  # values, ranks

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.mid is not None:
            h = F.conv2d(F.conv2d(x, down), self.mid.to(x.dtype), **self.conv)
        else:
            h = self.apply_weight(x, down)  # (B, L, r) or (B, r, h, w)
        if self.training and self.draws and any(self.drop):
            h = self._dropped(h)
        h = self.whole(h)
        h = h if self.scale == 1 else h * self.scale  # here, where it is smallest
        return F.conv2d(h, up) if self.conv else F.linear(h, up)

    def _dropped(self, h: Tensor) -> Tensor:
        """kohya's dropouts of values and ranks (networks/lora.py), each sample on its own draws; kept values are scaled up."""
        value, rank = self.drop
        axis, count = (1 if self.conv else h.ndim - 1), len(h)
        per_sample = [1] * (h.ndim - 1)
        if value:
            h = h * self.draws.bernoulli(1 - value, count, tuple(h.shape[1:]), f"{self.name}/value").to(h)
        if rank:
            per_sample[axis - 1] = self.rank
            h = h * self.draws.bernoulli(1 - rank, count, (self.rank,), f"{self.name}/rank").reshape(count, *per_sample).to(h)
        return h

    def delta_weight(self) -> Tensor:
        up = self.up.flatten(1)
        if self.mid is not None:
            return torch.einsum("nmkl,in,mj->ijkl", self.mid, up, self.down.flatten(1)) * self.scale
        return (up @ self.down.flatten(1) * self.scale).reshape(self.shape)

    def fill(self, known: Mapping[str, Tensor]) -> None:
        mid = known.get("lora_mid.weight")
        self.mid = None if mid is None else nn.Parameter(torch.empty_like(mid, dtype=torch.float32))
        super().fill(known)

    def filled_shape(self, name: str, p: nn.Parameter, value: Tensor) -> tuple[int, ...]:
        if name == "down":
            return (len(value), self.shape[1], *((1, 1) if self.mid is not None else self.shape[2:]))
        if name == "up":
            return (self.shape[0], value.shape[1], *((1, 1) if self.conv else ()))
        return tuple(p.shape)


class LoRA(Adapters):
    """Low-rank layers beside the chosen modules."""

    Config, kind, label = LoRAConfig, "lora", "LoRA"
    settings: LoRAConfig

    def make(self, module: nn.Module, rank: int, alpha: float, generator: Generator) -> LoRALayer:
        s = self.settings
        layer = LoRALayer(module, rank, alpha * math.sqrt(rank) if s.rank_stabilized else alpha, generator, s.tucker)
        layer.drop = (s.dropout, s.rank_dropout)
        return layer

    def of_family(self, factors: set[str]) -> bool:
        return factors - {"lora_mid.weight"} == {"lora_down.weight", "lora_up.weight"}

    def split(self, layers: list[Adapter]) -> list[tuple[list[nn.Parameter], float]]:
        ups = [layer.up for layer in layers]
        return [([p for layer in layers for p in layer.parameters() if p is not layer.up], 1.0), (ups, self.settings.up_lr_ratio)]

    def after_step(self, step: int) -> None:
        self._shorten(layer for layer in self.layers.values() if layer.up.requires_grad)

    def follow(self) -> None:
        self._shorten(layer for layer in self.layers.values() if holds_average(layer.up))  # that of short changes is not always short: it is of the factors

    @torch.no_grad()
    def _shorten(self, layers: Iterable[LoRALayer]) -> None:
        """Brings changes to the limit of norms."""
        limit = self.settings.max_norm
        if not limit:
            return
        for layer in layers:  # kohya's scale_weight_norms: the factors share the correction
            ratio = (limit / layer.delta_weight().norm().clamp(min=1e-12)).clamp(max=1.0)
            factors = [p for name, p in layer.named_parameters() if name != "magnitude"]
            for p in factors:
                p.mul_(ratio ** (1 / len(factors)))


class LoCon(LoRA):
    """LoRA on the convolutions too, as LyCORIS calls it; the same file."""

    Config, kind, label = LoConConfig, "locon", "LoCon"
