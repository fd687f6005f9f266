"""Weights in bf16 that still learn: an update far smaller than half a bf16 step would be lost at every rounding, so it is kept by chance.

Stochastic rounding goes up or down with the probability of how near each is, so its mean is the value itself (Gupta et al. 1502.02551). The optimizer
computes in fp32 on a few weights at a time; what it keeps of them is rounded in the same way, since a slow average would stand still in bf16 too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

AT_ONCE = 1 << 25  # weights that are fp32 at one moment: 134 MB, and as much for gradients and each average that the optimizer keeps
_KEPT = ("exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")  # AdamW's, Lion's and Adafactor's averages; other state stays as it is


def stochastic_bf16(x: Tensor, generator: Generator) -> Tensor:
    """x (fp32, any shape) as bf16, up or down at random; its mean over many draws is x. `generator` is of x's device."""
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    # bf16 is the upper half of fp32: what the lower half adds up to a carry with is how near the next one is
    return (x.contiguous().view(torch.int32) + noise).bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


@torch.no_grad()
def rounded_step(optimizer: Optimizer, generator: Generator, at_once: int = AT_ONCE) -> None:
    """`optimizer.step()` for bf16 weights: in fp32, a part of them at a time, and rounded stochastically. Weights without a gradient stay."""
    members = [group["params"] for group in optimizer.param_groups]
    try:
        for n, params in enumerate(members):
            for part in _parts([p for p in params if p.grad is not None], at_once):
                for i, group in enumerate(optimizer.param_groups):
                    group["params"] = part if i == n else []
                _step_in_fp32(optimizer, part, generator)
    finally:
        for group, params in zip(optimizer.param_groups, members):
            group["params"] = params


def _parts(params: list[Tensor], at_once: int) -> Iterator[list[Tensor]]:
    part: list[Tensor] = []
    for p in params:
        if part and sum(q.numel() for q in part) + p.numel() > at_once:
            yield part
            part = []
        part.append(p)
    if part:
        yield part


def _step_in_fp32(optimizer: Optimizer, params: list[Tensor], generator: Generator) -> None:
    before = [(p, p.data, p.grad) for p in params]
    for p, value, grad in before:
        p.grad = None  # has to be of the weight's precision
        p.data, p.grad = value.float(), grad.float()
        _convert(optimizer, p, lambda kept: kept.float())
    try:
        optimizer.step()
    finally:
        for p, value, grad in before:
            moved, p.grad = p.data, None
            p.data, p.grad = value.copy_(stochastic_bf16(moved, generator)), grad
            _convert(optimizer, p, lambda kept: stochastic_bf16(kept, generator))


def _convert(optimizer: Optimizer, p: Tensor, to: object) -> None:
    state = optimizer.state.get(p, {})
    for name in _KEPT:
        if name in state:
            state[name] = to(state[name])
