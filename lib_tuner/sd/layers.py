"""Pieces that the UNet and the VAE share. Axes: B batch, C channels, h w height and width, L length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

GROUPS = 32  # hard-coded in the original code too, so every width is a multiple of 32


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm of 32 groups; eps is 1e-5 in residual blocks of the UNet and 1e-6 everywhere else (original code)."""
    return nn.GroupNorm(GROUPS, channels, eps=eps)


def conv(c_in: int, c_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of the picture (divided by `stride`)."""
    return nn.Conv2d(c_in, c_out, size, stride, padding=size // 2)


@torch.no_grad()
def start_as_usual(layer: nn.Conv2d, generator: torch.Generator) -> None:
    """torch's own start of a convolution, uniform within 1 / sqrt(fan in), from a generator on the CPU."""
    limit = layer.weight[0].numel() ** -0.5
    for p in (layer.weight, layer.bias):
        p.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * limit)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Multi-head attention of q (B, L, C) over k, v (B, M, C) -> (B, L, C)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, L, C / heads)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


_STARTS = {nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_}


class Unfilled(TorchFunctionMode):
    """While it is entered, modules of this thread are made on the meta device, and nothing is computed for their start: they wait for `from_state`.

    `torch.device("meta")` alone goes through every layer's random numbers without drawing them, which is a third of what it takes to load a small model.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _STARTS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def from_state(module: nn.Module, state: dict[str, Tensor], what: str) -> nn.Module:
    """Gives `module` (made while `Unfilled`) the tensors of `state` themselves, without a copy; the keys must be the same."""
    ours = module.state_dict()
    missing, extra = sorted(ours.keys() - state.keys()), sorted(state.keys() - ours.keys())
    if missing or extra:
        shown = ", ".join([f"no {k}" for k in missing[:3]] + [f"unknown {k}" for k in extra[:3]])
        raise ValueError(f"The {what} in this file is not that of Stable Diffusion 1.5 ({len(missing)} tensors missing, {len(extra)} unknown: {shown}).")
    for key, value in ours.items():
        if value.shape != state[key].shape:
            raise ValueError(f"The {what} in this file is not that of Stable Diffusion 1.5: {key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}.")
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
