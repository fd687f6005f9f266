"""Half precision as a GPU has it: under the CPU's own autocast norms of mixed precisions are an error, and its layers in half precision are slow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from . import patches
from .devices import HALF

ROUNDED = "conv2d", "linear"  # a GPU's autocast computes them in half precision
EXACT = "group_norm", "layer_norm"  # and these in full


def install() -> None:
    for name in (*ROUNDED, *EXACT):
        patches.patch(__name__, F, name, _as_on_a_gpu(getattr(F, name), name in ROUNDED))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _as_on_a_gpu(own: Callable[..., Tensor], rounded: bool) -> Callable[..., Tensor]:
    """Computes in fp32 what is half or is made half by autocast, and rounds the result. What has several precisions outside of autocast stays an error."""

    def function(*given: Any, **named: Any) -> Tensor:
        values, cast = [*given, *named.values()], torch.is_autocast_enabled("cpu")
        if not cast and {value.dtype for value in values if _is_float(value)} != {HALF}:
            return own(*given, **named)
        for dtype in (HALF, torch.float32) if rounded else (torch.float32,):
            values = [value.to(dtype) if _is_float(value) else value for value in values]
        with torch.autocast("cpu", enabled=False):
            out = own(*values[: len(given)], **dict(zip(named, values[len(given) :])))
        return out.to(HALF) if rounded or not cast else out

    return function
