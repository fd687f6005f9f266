"""Low-rank factors of a change of weights: the singular value decomposition, and how many values are kept.

Axes: D channels out, N channels in times the kernel, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keep:
    """How many singular values are kept: as few as reach `energy` and lie above the largest over `ratio`, at most `rank` (0: no such limit)."""

    rank: int = 0
    energy: float = 1.0  # part of the sum of squares
    ratio: float = 0.0

    def count(self, values: Tensor) -> int:
        """Of values (r,) in falling order; 1 at least."""
        n = int((values > 0).sum())
        if self.energy < 1:
            squares = values.double().square().cumsum(0)
            n = min(n, 1 + int((squares < self.energy * squares[-1] * (1 - 1e-9)).sum()))  # a part that is reached but for rounding is reached
        if self.ratio:
            n = min(n, int((values * self.ratio >= values[0]).sum()))
        return max(1, min(n, self.rank or n))


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u (D, r), values (r,), vh (r, N) of (D, N), r the smaller size."""
    return torch.linalg.svd(matrix, full_matrices=False)


def svd_of_product(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `svd` of up (D, r) @ down (r, N), of small matrices alone where r is small."""
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return svd(up @ down)
    (left, a), (right, b) = torch.linalg.qr(up), torch.linalg.qr(down.t())
    u, values, vh = svd(a @ b.t())
    return left @ u, values, vh @ right.t()


def factors(parts: tuple[Tensor, Tensor, Tensor], keep: Keep, clamp: float = 1.0) -> tuple[Tensor, Tensor]:
    """up (D, r), down (r, N) of a decomposition; both have the values' roots, so that neither is too small for half precision.

    With `clamp` below 1 it is kohya's form (networks/extract_lora_from_models.py; cloneofsimo's svd_distill): up has the values, and both factors are
    clamped at that quantile of all their numbers.
    """
    u, values, vh = parts
    n = keep.count(values)
    u, values, vh = u[:, :n], values[:n], vh[:n]
    if clamp >= 1:
        roots = values.sqrt()
        return u * roots, roots[:, None] * vh
    up = u * values
    limit = _quantile(torch.cat([up.flatten(), vh.flatten()]), clamp)
    return up.clamp(-limit, limit), vh.clamp(-limit, limit)


def _quantile(numbers: Tensor, q: float) -> float:
    """torch.quantile, which takes no more than 16 million numbers."""
    at = q * (len(numbers) - 1)
    low, high = int(at), min(int(at) + 1, len(numbers) - 1)
    a, b = (float(numbers.kthvalue(k + 1).values) for k in (low, high))
    return a + (b - a) * (at - low)
