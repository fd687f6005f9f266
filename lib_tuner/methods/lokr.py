"""LoKr: the change is a Kronecker product (Yeh et al. 2309.14859, LyCORIS), so that a small file can reach a high rank.

ΔW = w1 ⊗ w2 * scale. D = a b channels out, C = c d channels in: w1 is (a, c), w2 is (b, d) or (b, d, k, k), or w2_a (b, r) @ w2_b (r, d k k).
Axes: B samples, L tokens or pixels, r rank, k kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..config import opt
from .adapters import Adapter, AdapterConfig, Adapters, kaiming


@dataclass(frozen=True)
class LoKrConfig(AdapterConfig):
    """What gets a layer, and how large it is."""

    rank: int = opt(8, "Rank", "Size of the adapter: more learns more and forgets more.", min=1, max=1024, essential=True)
    alpha: float = opt(8.0, "Alpha", "The adapter's effect is alpha / rank; often equal to the rank, or 1.", min=0.001, max=4096.0)
    factor: int = opt(-1, "Factor", "Largest size of the first matrix: small makes larger files; -1: as square as possible.", min=-1, max=1024)
    full_matrix: bool = opt(False, "Full matrices", "The second matrix whole, not of low rank; alpha then plays no part.")
    decompose_both: bool = opt(False, "Low rank of both", "The first matrix of low rank too, where it is large enough.")

    def check(self) -> None:
        """Raises ValueError for block names there are not, and for what no file can say."""
        super().check()
        if self.factor == 0:
            raise ValueError("factor: 0 divides nothing; use -1 for as square as possible, or a number such as 8")


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """(m, n) with m * n = size and m <= n: m the largest divisor up to `factor`, or up to the square root of `size`.

    >>> factorization(320), factorization(320, 8), factorization(768, 6)
    ((16, 20), (8, 40), (6, 128))
    """
    most = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    m = next(m for m in range(most, 0, -1) if size % m == 0)
    return m, size // m


class LoKrLayer(Adapter):
    """w1 or w1_a @ w1_b, and w2 or w2_a @ w2_b; the last of them starts at 0."""

    file_names = {name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")}

    def __init__(self, module: nn.Module, rank: int, alpha: float, generator: Generator, settings: LoKrConfig):
        super().__init__(module, alpha)
        (a, b), (c, d) = (factorization(size, settings.factor) for size in self.shape[:2])
        kernel = self.shape[2:]
        self.kron = a, c
        for name in self.file_names:
            self.register_parameter(name, None)
        if settings.decompose_both and rank < max(a, c) / 2:
            self.w1_a, self.w1_b = kaiming((a, rank), generator, rank), kaiming((rank, c), generator, c)
        else:
            self.w1 = kaiming((a, c), generator, c)
        if settings.full_matrix or rank >= max(b, d) / 2:
            self.w2 = nn.Parameter(torch.zeros(b, d, *kernel))
        else:
            inner = d * math.prod(kernel)
            self.w2_a, self.w2_b = kaiming((b, rank), generator, rank), nn.Parameter(torch.zeros(rank, inner))
        self._rank = rank

    @property
    def rank(self) -> int:
        return next((p.shape[0] for p in (self.w2_b, self.w1_b) if p is not None), self._rank)

    @property
    def scale(self) -> float:
        """1 where both matrices are whole: the WebUI then ignores alpha (its network_lokr.py)."""
        return 1.0 if self.w1 is not None and self.w2 is not None else super().scale

    def matrices(self) -> tuple[Tensor, Tensor]:
        """w1 (a, c) with the scale, w2 (b, d) or (b, d, k, k)."""
        w1 = self.w1 if self.w1 is not None else self.w1_a @ self.w1_b
        w2 = self.w2 if self.w2 is not None else (self.w2_a @ self.w2_b).reshape(self.shape[0] // self.kron[0], self.shape[1] // self.kron[1], *self.shape[2:])
        return w1 * self.scale, w2

    def forward(self, x: Tensor) -> Tensor:
        w1, w2 = (w.to(x.dtype) for w in self.matrices())
        if self.conv:  # x (B, c d, h, w): w2 on each of c groups, then w1 over the groups
            y = F.conv2d(x.unflatten(1, (self.kron[1], -1)).flatten(0, 1), w2, **self.conv).unflatten(0, (len(x), -1))  # (B, c, b, h', w')
            return self.whole(torch.einsum("ac,ncbhw->nabhw", w1, y).flatten(1, 2))
        y = F.linear(x.unflatten(-1, (self.kron[1], -1)), w2)  # (B, L, c, b)
        return self.whole((w1 @ y).flatten(-2))

    def delta_weight(self) -> Tensor:
        w1, w2 = self.matrices()
        return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous()).reshape(self.shape)

    def fill(self, known: Mapping[str, Tensor]) -> None:
        for name, stored in self.file_names.items():  # which of the matrices are whole is the file's to say
            setattr(self, name, nn.Parameter(torch.empty_like(known[stored], dtype=torch.float32)) if stored in known else None)
        self._rank = int(float(known.get("alpha", 1)))  # where both are whole it plays no part
        super().fill(known)
        first = self.w1 if self.w1 is not None else self.w1_a @ self.w1_b
        self.kron = first.shape[0], first.shape[1]
        if self.w2 is not None:
            self.w2 = nn.Parameter(self.w2.detach().reshape(self.shape[0] // self.kron[0], self.shape[1] // self.kron[1], *self.shape[2:]))


class LoKr(Adapters):
    """Kronecker products beside the chosen modules."""

    Config, kind, label = LoKrConfig, "lokr", "LoKr"
    settings: LoKrConfig

    def make(self, module: nn.Module, rank: int, alpha: float, generator: Generator) -> LoKrLayer:
        return LoKrLayer(module, rank, alpha, generator, self.settings)

    def of_family(self, factors: set[str]) -> bool:
        return factors in [w1 | w2 for w1 in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}) for w2 in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})]
