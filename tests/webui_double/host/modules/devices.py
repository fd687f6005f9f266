"""Device and precisions. The double computes on the CPU; without --no-half in half precision, with the autocast that a GPU would have."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from .shared_cmd_options import cmd_opts

HALF = torch.float16

cpu = torch.device("cpu")
device = device_interrogate = torch.device("cpu")
dtype = dtype_unet = torch.float32 if cmd_opts.no_half else HALF
dtype_vae = torch.float32 if cmd_opts.no_half_vae else dtype
dtype_inference = torch.float32 if cmd_opts.precision == "full" else dtype
unet_needs_upcast = cmd_opts.upcast_sampling and dtype == HALF


def autocast(disable: bool = False) -> AbstractContextManager:
    """What pictures are computed in: nothing special in full precision."""
    if disable or dtype_inference == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=HALF)


class NansException(Exception):
    """A picture is no picture."""


def test_for_nans(x: torch.Tensor, where: str) -> None:
    """Raises NansException where nothing else is in x."""
    if x.isnan().all():
        raise NansException(f"A tensor with all NaNs was produced in {where}.")


def torch_gc() -> None:
    """Gives memory back that a GPU's cache holds; the double has none."""
