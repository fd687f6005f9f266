"""Transformers over the UNet's pixels. x (B, N, C), context (B, M, D)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .diffusionmodules.util import Checkpointed, Shapes, below, layer, norm, numbered


class CrossAttention(nn.Module):
    """The host replaces `forward` in the class, by one that calls the same four layers."""

    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (layer(shapes, name) for name in ("to_q", "to_k", "to_v"))
        self.to_out = nn.Sequential(layer(shapes, "to_out.0"), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        parts = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.to_q(x), self.to_k(source), self.to_v(source)))
        return self.to_out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.proj = layer(shapes, "proj")

    def forward(self, x: Tensor) -> Tensor:
        wide = self.proj(x)
        half = wide.shape[-1] // 2
        return F.gelu(wide[..., half:]) * wide[..., :half]


class FeedForward(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.net = nn.Sequential(GEGLU(below(shapes, "net.0")), nn.Dropout(0.0), layer(shapes, "net.2"))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(Checkpointed):
    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        self.checkpoint = True
        self.attn1, self.attn2 = (CrossAttention(below(shapes, name), heads) for name in ("attn1", "attn2"))
        self.ff = FeedForward(below(shapes, "ff"))
        self.norm1, self.norm2, self.norm3 = (norm(shapes, f"norm{i}") for i in (1, 2, 3))

    def _forward(self, x: Tensor, context: Tensor) -> Tensor:
        for calm, part, more in ((self.norm1, self.attn1, ()), (self.norm2, self.attn2, (context,)), (self.norm3, self.ff, ())):
            x = torch.add(x, part(calm(x), *more))
        return x


class SpatialTransformer(nn.Module):
    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        self.norm = norm(shapes, "norm", 1e-6)
        self.proj_in, self.proj_out = layer(shapes, "proj_in"), layer(shapes, "proj_out")
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(each, heads) for each in numbered(below(shapes, "transformer_blocks")))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        pixels = torch.movedim(self.proj_in(self.norm(x)).flatten(2), 1, 2)
        for block in self.transformer_blocks:
            pixels = block(pixels, context)
        return x + self.proj_out(torch.movedim(pixels, 2, 1).unflatten(2, x.shape[2:]))
