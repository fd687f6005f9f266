"""Frozen 3x3 convolutions over few pixels as one matrix product each, on the CPU.

At the UNet's lower levels the weights (up to 118 MB) are far larger than what they are applied to. torch's convolution brings them into another order at
every call, which costs more than the work itself; a product reads them once, as they lie (measured: `benchmarks/README.md`).

Axes: B samples, C and D channels in and out, h w pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MANY_WEIGHTS = 640 * 1280  # C * D from which the weights' order costs more than the pixels
FEW_PIXELS = 256  # B * h * w up to which it does


class Convolve3(torch.autograd.Function):
    """x (B, C, h, w), frozen weight (D, C, 3, 3), bias (D,) or None -> (B, D, h, w): stride 1, zero padding 1. Differentiable once, by x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        columns = F.unfold(x, 3, padding=1).transpose(0, 1).reshape(weight[0].numel(), -1)  # (9 C, B h w)
        product = weight.flatten(1) @ columns if bias is None else torch.addmm(bias[:, None], weight.flatten(1), columns)
        return product.unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.to(ctx.weight.dtype)  # under autocast it comes in two bytes
        columns = ctx.weight.flatten(1).t() @ grad.transpose(0, 1).flatten(1)  # (9 C, B h w)
        return F.fold(columns.unflatten(1, (ctx.shape[0], -1)).transpose(0, 1), ctx.shape[2:], 3, padding=1), None, None


def fits(conv: nn.Module) -> bool:
    """Whether a module is a 3x3 convolution with weights enough for this to pay."""
    if not isinstance(conv, nn.Conv2d) or conv.in_channels * conv.out_channels < MANY_WEIGHTS:
        return False
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


@contextmanager
def few_pixels_as_products(unet: nn.Module) -> Iterator[None]:
    """While it lasts, the UNet's frozen convolutions of many weights and few pixels on the CPU run as products; everything else as before."""
    changed = [module for module in unet.modules() if fits(module) and "forward" not in vars(module)]
    for module in changed:
        module.forward = partial(_forward, module, module.forward)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forward(conv: nn.Conv2d, usual: Any, x: Tensor) -> Tensor:
    weight = conv.weight
    few = x.device.type == "cpu" and x.shape[0] * x.shape[2:].numel() <= FEW_PIXELS
    if not few or weight.requires_grad or weight.dtype != x.dtype:
        return usual(x)
    return Convolve3.apply(x, weight, conv.bias)
