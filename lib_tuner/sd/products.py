"""Frozen 3x3 convolutions as matrix products, on the CPU (measured: `benchmarks/README.md`).

Over few pixels one product each: at the UNet's lower levels the weights (up to 118 MB) are far larger than what they are applied to. torch's convolution brings
them into another order at every call, which costs more than the work itself; a product reads them once, as they lie. Over many pixels in fp32, where the plan
has memory for it, as in `winograd`.

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

from .winograd import Convolve3InTiles, in_tiles, transformed

MANY_WEIGHTS = 640 * 1280  # C * D from which the weights' order costs more than the pixels
FEW_PIXELS = 256  # B * h * w up to which it does
MANY_PIXELS = 1024  # h * w from which tiles win: with fewer the transformed weights are more than is read in the time they save
WIDE = 320 * 320  # C * D from which they do
OF_LEVELS = (1843200, 6963200, 21299200, 27852800)  # C * D of the wide convolutions that give pixels of each level of SD1.5's UNet, added up


class Convolve3(torch.autograd.Function):
    """x (B, C, h, w), frozen weight (D, C, 3, 3), bias (D,) or None -> (B, D, h, w): stride 1, zero padding 1. Differentiable once, by x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.shape = weight, x.shape
        columns = unfolded(x)
        product = weight.flatten(1) @ columns if bias is None else torch.addmm(bias[:, None], weight.flatten(1), columns)
        return product.unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.to(ctx.weight.dtype)  # under autocast it comes in two bytes
        columns = ctx.weight.flatten(1).t() @ grad.transpose(0, 1).flatten(1)  # (9 C, B h w)
        return folded(columns, ctx.shape), None, None


def unfolded(x: Tensor) -> Tensor:
    """x (B, C, h, w) -> (9 C, B h w): F.unfold's columns for padding 1 as a copy of overlapping rows, which takes a fifth of its time."""
    batch, channels, h, w = x.shape
    around = F.pad(x, (1, 1, 1, 1))
    b, c, down, right = around.stride()
    return around.as_strided((channels, 3, 3, batch, h, w), (c, down, right, b, down, right)).reshape(9 * channels, -1)


def folded(columns: Tensor, shape: torch.Size) -> Tensor:
    """(9 C, B h w) -> (B, C, h, w), each pixel the sum of where `unfolded` has put it: as F.fold, which rounds after each of the nine, in a fifth of its time."""
    batch, channels, h, w = shape
    parts = columns.view(channels, 3, 3, batch, h, w)
    around = columns.new_zeros(channels, batch, h + 2, w + 2, dtype=torch.promote_types(columns.dtype, torch.float32))
    for i in range(3):
        for j in range(3):
            around[:, :, i : i + h, j : j + w].add_(parts[:, i, j])
    return around[:, :, 1:-1, 1:-1].transpose(0, 1).to(columns.dtype, memory_format=torch.contiguous_format)


class Weights:
    """Transformed weights of convolutions, made when a convolution first needs them and anew when its weight is another one."""

    def __init__(self) -> None:
        self._made: dict[nn.Module, tuple[Tensor, int, Tensor]] = {}

    def of(self, conv: nn.Conv2d) -> Tensor:
        """(36, D, C)"""
        weight, version = conv.weight.detach(), conv.weight._version
        made = self._made.get(conv)
        if made is None or made[0].data_ptr() != weight.data_ptr() or made[1] != version:
            made = self._made[conv] = weight, version, transformed(weight)  # while it is held, no other weight comes to lie where it does
        return made[2]


def fits(conv: nn.Module, weights: int) -> bool:
    """Whether a module is a 3x3 convolution, stride 1, zero padding 1, with that many weights (C * D) or more."""
    if not isinstance(conv, nn.Conv2d) or conv.in_channels * conv.out_channels < weights:
        return False
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def tiles_bytes(pixels: float) -> float:
    """What the transformed weights of SD1.5's UNet take at latents of that many pixels."""
    return sum(4 * 36 * weights for level, weights in enumerate(OF_LEVELS) if pixels / 4**level >= MANY_PIXELS)


@contextmanager
def convolutions_as_products(unet: nn.Module, tiles: bool) -> Iterator[None]:
    """While it lasts, the UNet's frozen convolutions of many weights and few pixels on the CPU run as products, with `tiles` those of many pixels in fp32 too;
    everything else as before."""
    changed = [module for module in unet.modules() if fits(module, WIDE if tiles else MANY_WEIGHTS) and "forward" not in vars(module)]
    weights = Weights() if tiles else None
    for module in changed:
        module.forward = partial(_forward, module, module.forward, weights)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forward(conv: nn.Conv2d, usual: Any, weights: Weights | None, x: Tensor) -> Tensor:
    weight, pixels = conv.weight, x.shape[2:].numel()
    if x.device.type != "cpu" or weight.requires_grad or weight.dtype != x.dtype:
        return usual(x)
    if len(x) * pixels <= FEW_PIXELS and conv.in_channels * conv.out_channels >= MANY_WEIGHTS:
        return Convolve3.apply(x, weight, conv.bias)
    if weights is not None and pixels >= MANY_PIXELS and x.dtype == torch.float32 and in_tiles(x):
        with torch.autocast("cpu", enabled=False):  # two bytes are too few between the transforms
            return Convolve3InTiles.apply(x, weights.of(conv), conv.bias)
    return usual(x)
