"""The UNet. x (B, C, h, w), emb (B, E): the timestep, context (B, M, D): the text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import SpatialTransformer
from .util import Checkpointed, Shapes, below, layer, norm, numbered


class ResBlock(Checkpointed):
    switch = "use_checkpoint"

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.use_checkpoint = True
        self.out_channels, self.channels = shapes["in_layers.2.weight"][:2]
        self.in_layers = nn.Sequential(norm(shapes, "in_layers.0", 1e-5), nn.SiLU(), layer(shapes, "in_layers.2"))
        self.emb_layers = nn.Sequential(nn.SiLU(), layer(shapes, "emb_layers.1"))
        self.out_layers = nn.Sequential(norm(shapes, "out_layers.0", 1e-5), nn.SiLU(), nn.Dropout(0.0), layer(shapes, "out_layers.3"))
        self.skip_connection = layer(shapes, "skip_connection") if "skip_connection.weight" in shapes else nn.Identity()

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.emb_layers(emb).reshape(len(x), -1, 1, 1)
        return self.out_layers(self.in_layers(x) + shift) + self.skip_connection(x)


class Downsample(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.op = layer(shapes, "op", stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.conv = layer(shapes, "conv")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class TimestepEmbedSequential(nn.Sequential):
    """Members by what their tensors are called; each is given what it takes."""

    def __init__(self, shapes: Shapes, heads: int):
        super().__init__(*(_member(each, heads) for each in numbered(shapes)))

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        more = {ResBlock: (emb,), SpatialTransformer: (context,)}
        for member in self:
            x = member(x, *more.get(type(member), ()))
        return x


def _member(shapes: Shapes, heads: int) -> nn.Module:
    if "proj_in.weight" in shapes:
        return SpatialTransformer(shapes, heads)
    kinds = {"in_layers.2.weight": ResBlock, "op.weight": Downsample, "conv.weight": Upsample}
    made = next((kind for mark, kind in kinds.items() if mark in shapes), None)
    return made(shapes) if made else layer({f"first.{key}": size for key, size in shapes.items()}, "first")


class UNetModel(nn.Module):
    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        self.use_checkpoint = True  # a switch of the original's that nothing asks
        self.time_embed = nn.Sequential(layer(shapes, "time_embed.0"), nn.SiLU(), layer(shapes, "time_embed.2"))
        self.input_blocks, self.output_blocks = (
            nn.ModuleList(TimestepEmbedSequential(each, heads) for each in numbered(below(shapes, name))) for name in ("input_blocks", "output_blocks")
        )
        self.middle_block = TimestepEmbedSequential(below(shapes, "middle_block"), heads)
        self.out = nn.Sequential(norm(shapes, "out.0", 1e-5), nn.SiLU(), layer(shapes, "out.2"))
        self.in_channels = self.input_blocks[0][0].in_channels

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None, y: Any = None, **more: Any) -> Tensor:
        """Precisions are the caller's affair: outside of autocast they have to fit."""
        emb, way = self.time_embed(waves(timesteps, self.time_embed[0].in_features)), []
        for block in self.input_blocks:
            x = block(x, emb, context)
            way.append(x)
        x = self.middle_block(x, emb, context)
        for block, beside in zip(self.output_blocks, reversed(way)):
            x = block(torch.cat((x, beside), 1), emb, context)
        return self.out(x)


def waves(times: Tensor, width: int) -> Tensor:
    """Timesteps (B,) as cosines and sines of width / 2 wavelengths from 2 pi to 2 pi 10000 (1706.03762, 3.5)."""
    lengths = torch.logspace(0, math.log10(10000), width // 2 + 1, dtype=torch.float64, device=times.device)[:-1]
    turns = times.double().outer(1 / lengths)
    return torch.cat((turns.cos(), turns.sin()), 1).float()
