"""The UNet of SD1.5 (686 tensors), named as in the original checkpoint without its prefix `model.diffusion_model.`.

Axes: B batch, C channels, h w height and width of the latent, L text length, N = h * w. Source of the structure: CompVis latent-diffusion, v1-inference.yaml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .layers import Unfilled, attend, conv, from_state, norm


@dataclass(frozen=True)
class UNetSizes:
    """Sizes of a UNet; the defaults are SD1.5's."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    context: int = 768
    heads: int = 8
    inputs: int = 4
    outputs: int = 4

    @classmethod
    def of(cls, state: dict[str, Tensor], heads: int = 8) -> UNetSizes:
        """Reads the sizes off the shapes of a state dict; the head count is in no shape and is given."""
        levels = [i for i in range(1, 99, 3) if f"input_blocks.{i}.0.out_layers.3.weight" in state]
        if not levels or "middle_block.1.transformer_blocks.0.attn2.to_k.weight" not in state:
            raise ValueError("This file holds no UNet of Stable Diffusion 1.5: its first residual block or its middle attention is missing.")
        return cls(
            channels=tuple(state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in levels),
            attention=tuple(f"input_blocks.{i}.1.norm.weight" in state for i in levels),
            context=state["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
            heads=heads,
            inputs=state["input_blocks.0.0.weight"].shape[1],
            outputs=state["out.2.weight"].shape[0],
        )


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of timesteps t (B,) -> (B, width), cosines first."""
    freqs = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device, dtype=torch.float32) / (width // 2))
    angles = t[:, None].float() * freqs  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, emb: int):
        super().__init__()
        self.in_layers = nn.Sequential(norm(c_in, 1e-5), nn.SiLU(), conv(c_in, c_out))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out))
        self.out_layers = nn.Sequential(norm(c_out, 1e-5), nn.SiLU(), nn.Dropout(0.0), conv(c_out, c_out))
        self.skip_connection = nn.Identity() if c_in == c_out else conv(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor, ctx: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    attend = staticmethod(attend)

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, ctx: Tensor) -> Tensor:
        return self.to_out(self.attend(self.to_q(x), self.to_k(ctx), self.to_v(ctx), self.heads))


class GEGLU(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.attn1 = Attention(width, width, heads)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, ctx: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), ctx)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.norm = norm(width, 1e-6)
        self.proj_in = conv(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, heads)])
        self.proj_out = conv(width, width, 1)

    def forward(self, x: Tensor, emb: Tensor, ctx: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x))
        y = rearrange(y, "b c h w -> b (h w) c").contiguous()  # (B, N, C); else every norm of the blocks copies it, on the way forth and back
        for block in self.transformer_blocks:
            y = block(y, ctx)
        y = rearrange(y, "b (h w) c -> b c h w", h=x.shape[2])  # (B, C, h, w)
        return x + self.proj_out(y)


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.op = conv(width, width, 3, stride=2)

    def forward(self, x: Tensor, emb: Tensor, ctx: Tensor) -> Tensor:
        return self.op(x)  # (B, C, h / 2, w / 2)


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x: Tensor, emb: Tensor, ctx: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))  # (B, C, 2h, 2w), or one less where the way down halved an odd side


class First(nn.Conv2d):
    """The first convolution, which takes and ignores what the other members of a block need."""

    def forward(self, x: Tensor, emb: Tensor, ctx: Tensor) -> Tensor:
        return super().forward(x)


class Block(nn.Sequential):
    """What the original calls TimestepEmbedSequential: every member gets the time embedding and the text too, and an Upsample the size to reach."""

    def forward(self, x: Tensor, emb: Tensor, ctx: Tensor, size: torch.Size | None = None) -> Tensor:
        for layer in self:
            x = layer(x, emb, ctx, size) if isinstance(layer, Upsample) else layer(x, emb, ctx)
        return x


class UNet(nn.Module):
    """Predicts noise: x (B, inputs, h, w), timesteps (B,), ctx (B, L, context) -> (B, outputs, h, w).

    Any h and w: where a side cannot be halved evenly the way up meets the way down's sizes, as in diffusers; the original code fails there.
    """

    def __init__(self, sizes: UNetSizes = UNetSizes()):
        super().__init__()
        self.sizes = sizes
        self.checkpointing = False  # computes a block's activations again in the backward pass
        first, emb = sizes.channels[0], 4 * sizes.channels[0]
        self.time_embed = nn.Sequential(nn.Linear(first, emb), nn.SiLU(), nn.Linear(emb, emb))

        def block(c_in: int, c_out: int, level: int, *more: nn.Module) -> Block:
            attention = [SpatialTransformer(c_out, sizes.context, sizes.heads)] if sizes.attention[level] else []
            return Block(ResBlock(c_in, c_out, emb), *attention, *more)

        self.input_blocks = nn.ModuleList([Block(First(sizes.inputs, first, 3, padding=1))])
        skips, width, last = [first], first, len(sizes.channels) - 1
        for level, channels in enumerate(sizes.channels):
            for _ in range(2):
                self.input_blocks.append(block(width, channels, level))
                width = channels
                skips.append(width)
            if level < last:
                self.input_blocks.append(Block(Downsample(width)))
                skips.append(width)
        self.middle_block = Block(ResBlock(width, width, emb), SpatialTransformer(width, sizes.context, sizes.heads), ResBlock(width, width, emb))
        self.output_blocks = nn.ModuleList([])
        for level, channels in reversed(list(enumerate(sizes.channels))):
            for i in range(3):
                up = [Upsample(channels)] if i == 2 and level > 0 else []
                self.output_blocks.append(block(width + skips.pop(), channels, level, *up))
                width = channels
        self.out = nn.Sequential(norm(first, 1e-5), nn.SiLU(), conv(first, sizes.outputs))

    @classmethod
    def from_state(cls, state: dict[str, Tensor], heads: int = 8) -> UNet:
        """Builds the UNet whose sizes the tensors have, around these very tensors. Raises ValueError where it is none of SD1.5's structure."""
        with Unfilled():
            unet = cls(UNetSizes.of(state, heads))
        return from_state(unet, state, "UNet")

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        dtype = self.out[2].weight.dtype
        emb = self.time_embed(timestep_embedding(timesteps, self.sizes.channels[0]).to(dtype))  # (B, 4 * first)
        h, ctx = x.to(dtype), context.to(dtype)
        skips = []
        for block in self.input_blocks:
            h = self._run(block, h, emb, ctx)
            skips.append(h)
        h = self._run(self.middle_block, h, emb, ctx)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(block, h, emb, ctx, skips[-1].shape[2:] if skips else None)
        return self.out(h)

    def _run(self, block: Block, h: Tensor, emb: Tensor, ctx: Tensor, size: torch.Size | None = None) -> Tensor:
        return run_block(block, (h, emb, ctx, size), self.checkpointing)


def run_block(block: Block, args: tuple, checkpointing: bool) -> Tensor:
    """The block's output; where `checkpointing`, what is inside is computed again in the backward pass."""
    if not (checkpointing and torch.is_grad_enabled()):
        return block(*args)
    # Non-reentrant: the reentrant kind loses the gradients of adapters when the UNet is frozen (reference trap T1).
    return checkpoint(block, *args, use_reentrant=False)
