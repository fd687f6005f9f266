"""Frozen 3x3 convolutions over many pixels by Winograd's minimal filtering F(4x4, 3x3), in fp32 on the CPU: a quarter of the multiplications.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4: a tile of 4 x 4 results is A' [(G w G') * (B' x B)] A, with x the 6 x 6
pixels it comes from; over the channels the product in the middle is 36 matrix products. The gradient by x is the same read backwards, with the same weights.
What it gains and how near it comes: `benchmarks/README.md`.

Axes: B samples, C and D channels in and out, h w pixels, T = h w / 16 tiles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

RESULTS, PIXELS = 4, 6  # sides of a tile

_B = torch.tensor([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.double)
_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.double) / 24
_A = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.double)
# of rows and columns at once
OF_PIXELS, OF_WEIGHTS, OF_RESULTS = (torch.kron(one, one) for one in (_B, _G, _A))  # (36, 36), (36, 9), (16, 36)


def transformed(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) -> (36, D, C): four times the weights' memory."""
    return (OF_WEIGHTS.to(weight) @ weight.detach().flatten(2).flatten(0, 1).t()).view(-1, *weight.shape[:2])


def in_tiles(x: Tensor) -> bool:
    """Whether the sides of x (B, C, h, w) are whole numbers of tiles."""
    return x.shape[2] % RESULTS == 0 and x.shape[3] % RESULTS == 0


class Convolve3InTiles(torch.autograd.Function):
    """x (B, C, h, w) with sides that are multiples of 4, transformed weights (36, D, C), bias (D,) or None -> (B, D, h, w): stride 1, zero padding 1.
    Differentiable once, by x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weights = weights
        batch, channels, h, w = x.shape
        pixels = F.unfold(x, PIXELS, padding=1, stride=RESULTS).view(batch, channels, PIXELS**2, -1)
        tiles = (OF_PIXELS.to(weights) @ pixels).permute(2, 1, 0, 3).flatten(2)  # (36, C, B T)
        results = OF_RESULTS.to(weights) @ (weights @ tiles).transpose(0, 1)  # (D, 16, B T)
        y = results.view(-1, RESULTS, RESULTS, batch, h // RESULTS, w // RESULTS).permute(3, 0, 4, 1, 5, 2).reshape(batch, -1, h, w)
        return y if bias is None else y.add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weights = ctx.weights
        batch, channels, h, w = grad.shape
        apart = grad.to(weights.dtype).reshape(batch, channels, h // RESULTS, RESULTS, w // RESULTS, RESULTS)
        results = apart.permute(1, 3, 5, 0, 2, 4).reshape(channels, RESULTS**2, -1)  # (D, 16, B T)
        tiles = weights.transpose(1, 2) @ (OF_RESULTS.t().to(weights) @ results).transpose(0, 1)  # (36, C, B T)
        pixels = (OF_PIXELS.t().to(weights) @ tiles.transpose(0, 1)).unflatten(2, (batch, -1))  # (C, 36, B, T)
        return F.fold(pixels.permute(2, 0, 1, 3).flatten(1, 2), (h, w), PIXELS, padding=1, stride=RESULTS), None, None
