"""Ways to compute attention: all give the same. They call the module's four layers as modules, and hypernetworks take part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .hypernetworks import hypernetwork


@dataclass(frozen=True)
class SdOptimization:
    """`forward` takes CrossAttention.forward's place while it is chosen; the highest priority is the automatic choice."""

    name: str
    priority: int
    forward: Callable[..., Tensor]

    def title(self) -> str:
        """What the settings call it."""
        return self.name


def _whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1).to(v.dtype) @ v


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, rows: int) -> Tensor:
    """So many queries at a time, for less memory."""
    return torch.cat([_whole(part, k, v) for part in q.split(rows, dim=-2)], dim=-2)


def _forward(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(attention: Any, x: Tensor, context: Tensor | None = None, **more: Any) -> Tensor:
        return hypernetwork.attend(attention, x, context, product)

    return forward


_WAYS = {
    "InvokeAI": (1000, _whole), "Doggettx": (90, partial(_in_pieces, rows=4096)), "sdp-no-mem": (80, F.scaled_dot_product_attention),
    "sdp": (70, F.scaled_dot_product_attention), "sub-quadratic": (10, partial(_in_pieces, rows=1024)), "V1": (10, partial(_in_pieces, rows=256)),
}  # fmt: skip
known = [SdOptimization(name, priority, _forward(product)) for name, (priority, product) in _WAYS.items()]
