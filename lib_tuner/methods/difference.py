"""The difference of two weights as a LoRA: the nearest matrix of a rank, which is that of the largest singular values (Eckart and Young 1936).

Axes: D outputs, C inputs (of a convolution: times the kernel), r rank.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .lora_file import Module


@torch.no_grad()
def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up (D, r) and down (r, C), fp32, whose product is nearest to `delta` (D, C); r is at most its rank.

    Of the singular value decomposition only the r largest are needed, so the smaller of A Aᵀ and Aᵀ A is decomposed, in double precision,
    which is far cheaper for wide matrices. Each factor gets the root of the singular values, so neither overflows in fp16.
    """
    a = delta.double() if delta.device.type != "mps" else delta.cpu().double()
    wide = a.shape[0] <= a.shape[1]
    squared, vectors = torch.linalg.eigh(a @ a.T if wide else a.T @ a)  # ascending
    kept = min(rank, len(squared))
    basis = vectors[:, -kept:].flip(1)  # (D, r) or (C, r)
    root = squared[-kept:].flip(0).clamp(min=0).sqrt().clamp(min=1e-30).sqrt()  # of the singular values
    up, down = (basis * root, basis.T @ a / root[:, None]) if wide else (a @ basis / root, basis.T * root[:, None])
    return up.float(), down.float()


def as_lora(changes: Iterable[tuple[Module, Tensor]], rank: int) -> dict[Module, dict[str, Tensor]]:
    """A LoRA's modules for changes of weights (D, C) or (D, C, k, k); those of weights that did not change are left out. The scale is 1."""
    modules = {}
    for module, delta in changes:
        if not delta.any():
            continue
        up, down = low_rank(delta.flatten(1), rank)
        if delta.ndim == 4:
            up, down = up[:, :, None, None], down.reshape(-1, *delta.shape[1:])
        modules[module] = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(float(len(down)))}
    return modules
