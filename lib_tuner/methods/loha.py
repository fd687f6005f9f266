"""LoHa: the change is the Hadamard product of two low-rank matrices (Hyeon-Woo et al. 2108.06098, as LyCORIS writes it), of rank r² at most.

ΔW = (w1_a @ w1_b) * (w2_a @ w2_b) * alpha / rank. Axes: r rank, C channels in, D channels out, k kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from ..config import opt
from .adapters import Adapter, AdapterConfig, Adapters
from .base import exactly


@dataclass(frozen=True)
class LoHaConfig(AdapterConfig):
    """What gets a layer, and how large it is."""

    rank: int = opt(8, "Rank", "Size of the adapter: more learns more and forgets more.", min=1, max=1024, essential=True)
    alpha: float = opt(4.0, "Alpha", "The adapter's effect is alpha / rank; often equal to the rank, or 1.", min=0.001, max=4096.0)


class LoHaLayer(Adapter):
    """w1_a, w2_a (D, r) and w1_b, w2_b (r, C k k), which start as LyCORIS's do: normal with 0.1 and 1, and w2_a at 0."""

    file_names = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}

    def __init__(self, module: nn.Module, rank: int, alpha: float, generator: Generator):
        super().__init__(module, alpha)
        out, inner = self.shape[0], module.weight[0].numel()
        self.w1_a = nn.Parameter(torch.randn(out, rank, generator=generator) * 0.1)
        self.w1_b = nn.Parameter(torch.randn(rank, inner, generator=generator))
        self.w2_a = nn.Parameter(torch.zeros(out, rank))
        self.w2_b = nn.Parameter(torch.randn(rank, inner, generator=generator))

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(ByWeight.apply(x, self._weight, self.apply_weight, self.w1_a, self.w1_b, self.w2_a, self.w2_b))

    def _weight(self, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        return ((w1_a @ w1_b) * (w2_a @ w2_b) * self.scale).reshape(self.shape)

    def delta_weight(self) -> Tensor:
        return self._weight(self.w1_a, self.w1_b, self.w2_a, self.w2_b)

    def filled_shape(self, name: str, p: nn.Parameter, value: Tensor) -> tuple[int, ...]:
        return (len(p), value.shape[1]) if name.endswith("_a") else (len(value), p.shape[1])


class ByWeight(torch.autograd.Function):
    """`apply(x, make(*factors))`, of which nothing as large as a weight is kept for the backward pass. Differentiable once.

    The factors are fp32; the weight is made in fp32 and applied in x's precision, or in that of autocast.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Callable[..., Tensor], apply: Callable[[Tensor, Tensor], Tensor], *factors: Tensor) -> Tensor:
        y = apply(x, _made(make, factors).to(x.dtype))
        ctx.make, ctx.apply_weight, ctx.dtype = make, apply, y.dtype
        ctx.save_for_backward(x, *factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
        inputs = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed)]
        with torch.enable_grad(), exactly(grad.device):
            y = ctx.apply_weight(inputs[0].to(ctx.dtype), _made(ctx.make, inputs[1:]).to(ctx.dtype))
        found = iter(torch.autograd.grad(y, [tensor for tensor in inputs if tensor.requires_grad], grad))
        given = [next(found) if tensor.requires_grad else None for tensor in inputs]
        return (given[0], None, None, *given[1:])


def _made(make: Callable[..., Tensor], factors: Any) -> Tensor:
    """In fp32 under autocast too: products of factors in two bytes lose what is learned."""
    with exactly(factors[0].device):
        return make(*factors)


class LoHa(Adapters):
    """Hadamard products beside the chosen modules."""

    Config, kind, label = LoHaConfig, "loha", "LoHa"
    settings: LoHaConfig

    def make(self, module: nn.Module, rank: int, alpha: float, generator: Generator) -> LoHaLayer:
        return LoHaLayer(module, rank, alpha, generator)

    def of_family(self, factors: set[str]) -> bool:
        return factors == set(LoHaLayer.file_names.values())
