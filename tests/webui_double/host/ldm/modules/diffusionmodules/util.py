"""Layers after the shapes of their tensors, and gradient checkpointing with the original's flaw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

Shapes = Mapping[str, Sequence[int]]


def below(shapes: Shapes, name: str) -> Shapes:
    """What `name` contains, by its names there."""
    return {key.removeprefix(f"{name}."): size for key, size in shapes.items() if key.startswith(f"{name}.")}


def numbered(shapes: Shapes) -> list[Shapes]:
    """The members 0, 1, ... of a list."""
    return [below(shapes, str(i)) for i in sorted({int(key.partition(".")[0]) for key in shapes})]


def layer(shapes: Shapes, name: str, stride: int = 1) -> nn.Linear | nn.Conv2d:
    """A linear layer, or a convolution that keeps the size but for its stride."""
    out, inside, *kernel = shapes[f"{name}.weight"]
    biased = f"{name}.bias" in shapes
    return nn.Conv2d(inside, out, kernel[0], stride, kernel[0] // 2, bias=biased) if kernel else nn.Linear(inside, out, biased)


def norm(shapes: Shapes, name: str, eps: float | None = None) -> nn.GroupNorm | nn.LayerNorm:
    """With an eps a GroupNorm of 32 groups, else a LayerNorm."""
    (width,) = shapes[f"{name}.weight"]
    return nn.LayerNorm(width) if eps is None else nn.GroupNorm(32, width, eps)


# ---- checkpointing ---------------------------------------------------------------------------------------------------


class Recomputed(torch.autograd.Function):
    """run(*inputs) without keeping what is in between. It is differentiated by the inputs and by the parameters that are named, and by nothing else: what
    hooks add inside gets no gradient, and frozen parameters are an error (T1 of the contract)."""

    @staticmethod
    def forward(ctx: Any, run: Any, count: int, *tensors: Tensor) -> Tensor:
        ctx.run, ctx.inputs, ctx.parameters = run, tensors[:count], tensors[count:]
        halves = any(tensor.dtype == torch.float16 for tensor in ctx.parameters)  # those are computed in autocast alone
        ctx.precision = torch.autocast("cpu", torch.float16) if halves else nullcontext()
        return run(*ctx.inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        inputs = [x.detach().requires_grad_() for x in ctx.inputs]
        with torch.enable_grad(), ctx.precision:
            again = ctx.run(*inputs)
        return None, None, *torch.autograd.grad(again, [*inputs, *ctx.parameters], grads, allow_unused=True)


class Checkpointed(nn.Module):
    """A block: `_forward` computes, and the attribute that `switch` names says whether it is computed again for the gradient."""

    switch = "checkpoint"

    def forward(self, *inputs: Tensor) -> Tensor:
        if getattr(self, self.switch):
            return Recomputed.apply(self._forward, len(inputs), *inputs, *self.parameters())
        return self._forward(*inputs)
