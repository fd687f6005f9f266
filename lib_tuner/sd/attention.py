"""Attention over many pixels as plain products in bf16, for CPUs on which torch's kernel takes as long in bf16 as in fp32.

Scores are computed and normalised in fp32, some rows at a time, which stay in the cache. The probabilities are rounded to bf16, as in torch's kernel, and kept,
so that the backward pass is four products; where memory is short they are computed again, with the same bits (measured: `benchmarks/README.md`).

Axes: B samples, N queries, M keys, C channels, H heads, G = B * H, d = C / H channels of a head, R rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .layers import attend
from .threads import Run, side_by_side

MANY = 2**18  # N * M from which the products win
CELLS = 2**20  # R * M: the scores of that many stay in the cache of a core or near it
PIECES = 4  # of the work, for each thread: how much one has still to do when nothing is left for the others
LARGE = 2**25  # G * N * M from which pieces side by side win: the threads with which torch shares out operations spin for milliseconds before they give way
VECTOR = 16  # a product's columns are filled up to a multiple of it, the fp32 numbers of a register: with 40 columns it takes longer than with 48


class Spare:
    """Memory for probabilities that nobody reads now. To get it from the system anew in every update takes a tenth of the attention's time."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, count: int) -> Tensor:
        """A flat tensor of `count` numbers or more, of any values: the smallest there is, or a new one in the place of one that is too small."""
        self._free.sort(key=Tensor.numel)
        fitting = next((i for i, flat in enumerate(self._free) if flat.numel() >= count), None)
        if fitting is not None:
            return self._free.pop(fitting)
        if self._free:
            self._free.pop()
        return torch.empty(count, dtype=torch.bfloat16)

    def give(self, flat: Tensor) -> None:
        """Takes back what nobody reads any more."""
        self._free.append(flat)


class Attend(torch.autograd.Function):
    """q (B, N, C), k and v (B, M, C) in bf16 -> (B, N, C). Differentiable once. Probabilities are kept in `spare`; None: they are computed again.

    `run` is a `map` over the pieces of the work, which do not touch each other.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, spare: Spare | None, run: Run) -> Tensor:
        rows = _Rows(q, k, heads)
        flat = spare.take(rows.shape.numel()) if spare and any(ctx.needs_input_grad) else None
        kept, values = rows.of(flat), _filled(_split(v, heads))
        out = q.new_empty(*rows.shape[:2], values.shape[2])  # (G, N, d or more)

        def work(piece: Piece) -> None:
            for at, p in rows.probabilities(piece, kept):
                torch.mm(p, values[piece.head], out=out[piece.head, at])

        rows.through(work, run)
        out = _join(out[..., : q.shape[2] // heads], heads)
        ctx.save_for_backward(q, k, v, out, flat)
        ctx.heads, ctx.spare, ctx.run, ctx.given = heads, spare, run, False
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With s the scores before softmax, p the probabilities: ds = p * (dp - delta), where dp = grad v' and delta = the rows' sums of grad * out."""
        q, k, v, out, flat = ctx.saved_tensors
        rows = _Rows(q, k, ctx.heads)
        queries, keys, values, grads, out = (_split(x, ctx.heads) for x in (q, k, v, grad, out))
        delta = (grads.float() * out.float()).sum(-1, keepdim=True)
        high = delta.bfloat16()
        # delta's two halves beside grad and ones beside v: the product is the bracket, rounded once
        left = torch.cat([grads, -high, (high - delta).bfloat16()], -1)  # (G, N, d + 2)
        right = F.pad(values, (0, 2), value=1.0).mT  # (G, d + 2, M)
        queries, grads, keys = queries.mT.contiguous(), grads.mT.contiguous(), _filled(keys)
        kept, dq = rows.of(flat), q.new_empty(*rows.shape[:2], keys.shape[2])  # (G, N, d or more)
        dk, dv = (torch.zeros(rows.shape[0], rows.parts, queries.shape[1], rows.shape[2]) for _ in range(2))  # (G, parts, d, M), summed in fp32

        def work(piece: Piece) -> None:
            g, part = piece.head, piece.part
            ds, some = q.new_empty(rows.count, rows.shape[2]), q.new_empty(queries.shape[1], rows.shape[2])
            for at, p in rows.probabilities(piece, kept, known=kept is not None):
                dv[g, part].add_(torch.mm(grads[g, :, at], p, out=some))
                own = torch.mm(left[g, at], right[g], out=ds[: len(p)]).mul_(p)
                torch.addmm(dq[g, at], own, keys[g], beta=0, alpha=rows.scale, out=dq[g, at])
                dk[g, part].add_(torch.mm(queries[g, :, at], own, out=some))

        rows.through(work, ctx.run)
        if flat is not None:
            if ctx.given:
                raise AssertionError("the graph was kept for a second backward pass, but the probabilities are somebody else's by now")
            ctx.given = True
            ctx.spare.give(flat)
        dk, dv = ((x[:, 0] if rows.parts == 1 else x.sum(1)) * scale for x, scale in ((dk, rows.scale), (dv, 1.0)))
        dk, dv = (x.to(q.dtype).mT for x in (dk, dv))
        return _join(dq[..., : dk.shape[2]], ctx.heads), _join(dk, ctx.heads), _join(dv, ctx.heads), None, None, None


class Piece(NamedTuple):
    """What one thread computes at a time: rows from `first` to before `end` of a head, its part number `part`."""

    head: int  # of G
    part: int
    first: int
    end: int


class _Rows:
    """The rows of the scores of q (B, N, C) and k (B, M, C), some at a time. Of shape (G, N, M) in all."""

    def __init__(self, q: Tensor, k: Tensor, heads: int):
        self.scale = (q.shape[2] // heads) ** -0.5
        self._queries = _split(q, heads).float() * self.scale
        self._keys = _split(k, heads).float().mT
        self.shape = torch.Size((*self._queries.shape[:2], k.shape[1]))
        many, n, m = self.shape
        self._large = self.shape.numel() >= LARGE
        length = -(-n // -(-PIECES * torch.get_num_threads() // many)) if self._large else n
        self.pieces = [Piece(g, part, i, min(i + length, n)) for g in range(many) for part, i in enumerate(range(0, n, length))]
        self.parts, self.count = len(range(0, n, length)), min(length, max(1, CELLS // m))

    def through(self, work: Callable[[Piece], None], run: Run) -> None:
        """Does the work on all pieces, by `run` where there is much of it."""
        tuple((run if self._large else map)(work, self.pieces))

    def of(self, flat: Tensor | None) -> Tensor | None:
        """The kept probabilities (G, N, M)."""
        return None if flat is None else flat[: self.shape.numel()].view(self.shape)

    def probabilities(self, piece: Piece, kept: Tensor | None, known: bool = False) -> Iterator[tuple[slice, Tensor]]:
        """A piece's rows, R at a time, and what they are, (R, M) in bf16: in `kept`, where it is given, else until the next are asked for. `known`: they are in it."""
        shape = self.count, self.shape[2]
        scores, rounded = (None, None) if known else (torch.empty(shape), torch.empty(shape, dtype=torch.bfloat16) if kept is None else None)
        for i in range(piece.first, piece.end, self.count):
            at = slice(i, min(i + self.count, piece.end))
            p = rounded[: at.stop - i] if kept is None else kept[piece.head, at]
            if not known:
                some = torch.mm(self._queries[piece.head, at], self._keys[piece.head], out=scores[: len(p)])
                p.copy_(torch._softmax(some, -1, False, out=some))
            yield at, p


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (G, N, d), in one piece."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def _join(x: Tensor, heads: int) -> Tensor:
    """(G, N, d) -> (B, N, C), in one piece."""
    return x.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2).contiguous()


def _filled(x: Tensor) -> Tensor:
    """(G, M, d) with columns of zeros up to a multiple of VECTOR."""
    return F.pad(x, (0, -x.shape[2] % VECTOR))


def kept_bytes(pixels: float, samples: int) -> float:
    """What the probabilities of an SD1.5 UNet's self-attention take where they are kept: 5 layers of 8 heads at each of its three levels."""
    levels = (pixels / 4**level for level in range(3))
    return samples * sum(5 * 8 * 2 * n * n for n in levels if n * n >= MANY)


@contextmanager
def attention_as_products(unet: nn.Module, keep: bool) -> Iterator[None]:
    """While it lasts, the UNet's attention over many pixels in bf16 on the CPU runs as products, everything else as before; `keep`: with its probabilities kept."""
    changed = [module for module in unet.modules() if getattr(module, "attend", None) is attend]
    spare = Spare() if keep else None
    with side_by_side() as run:
        for module in changed:
            module.attend = partial(_attend, spare, run)
        try:
            yield
        finally:
            for module in changed:
                del module.attend


def _attend(spare: Spare | None, run: Run, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    many = q.shape[1] * k.shape[1] >= MANY
    if not many or q.device.type != "cpu" or {q.dtype, k.dtype, v.dtype} != {torch.bfloat16}:
        return attend(q, k, v, heads)
    return Attend.apply(q, k, v, heads, spare, run)
