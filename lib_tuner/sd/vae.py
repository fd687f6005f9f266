"""The VAE of SD1.5 (248 tensors), named as in the original checkpoint without its prefix `first_stage_model.`.

Axes: B batch, C channels, H W pixels, h w latent pixels (H / 8). Source of the structure: CompVis latent-diffusion, v1-inference.yaml.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Unfilled, attend, conv, from_state, norm
from .place import Place, stays


@dataclass(frozen=True)
class VAESizes:
    """Sizes of a VAE; the defaults are SD1.5's."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    latent: int = 4

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> VAESizes:
        """Reads the sizes off the shapes of a state dict."""
        levels = [i for i in range(99) if f"encoder.down.{i}.block.0.conv1.weight" in state]
        if not levels or "post_quant_conv.weight" not in state:
            raise ValueError("This file holds no VAE of Stable Diffusion 1.5: its encoder or post_quant_conv is missing.")
        return cls(tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels), state["post_quant_conv.weight"].shape[0])


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in, 1e-6), conv(c_in, c_out)
        self.norm2, self.conv2 = norm(c_out, 1e-6), conv(c_out, c_out)
        if c_in != c_out:
            self.nin_shortcut = conv(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (conv(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (rearrange(f(y), "b c h w -> b (h w) c") for f in (self.q, self.k, self.v))
        return x + self.proj_out(rearrange(attend(q, k, v, heads=1), "b (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # padded right and below only, as in the original


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResnetBlock(width, width), AttnBlock(width), ResnetBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The residual blocks of one resolution; the encoder adds `downsample`, the decoder `upsample`."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Encoder(nn.Module):
    def __init__(self, sizes: VAESizes):
        super().__init__()
        width, last = sizes.channels[0], len(sizes.channels) - 1
        self.conv_in = conv(3, width)
        self.down = nn.ModuleList()
        for i, channels in enumerate(sizes.channels):
            level = Level([width, channels, channels])
            if i < last:
                level.downsample = Downsample(channels)
            self.down.append(level)
            width = channels
        self.mid = Middle(width)
        self.norm_out, self.conv_out = norm(width, 1e-6), conv(width, 2 * sizes.latent)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            h = level.downsample(h) if hasattr(level, "downsample") else h
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(self, sizes: VAESizes):
        super().__init__()
        width = sizes.channels[-1]
        self.conv_in, self.mid = conv(sizes.latent, width), Middle(width)
        levels = []
        for i, channels in reversed(list(enumerate(sizes.channels))):
            level = Level([width, channels, channels, channels])
            if i > 0:
                level.upsample = Upsample(channels)
            levels.append(level)
            width = channels
        self.up = nn.ModuleList(reversed(levels))  # up.0 is the largest picture, run last
        self.norm_out, self.conv_out = norm(width, 1e-6), conv(width, 3)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            h = level.upsample(h) if hasattr(level, "upsample") else h
        return self.conv_out(F.silu(self.norm_out(h)))


class VAE(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] <-> latents (B, 4, H / 8, W / 8), unscaled."""

    def __init__(self, sizes: VAESizes = VAESizes()):
        super().__init__()
        self.sizes = sizes
        self.encoder, self.decoder = Encoder(sizes), Decoder(sizes)
        self.quant_conv, self.post_quant_conv = conv(2 * sizes.latent, 2 * sizes.latent, 1), conv(sizes.latent, sizes.latent, 1)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> VAE:
        """Builds the VAE whose sizes the tensors have, around these very tensors. Raises ValueError where it is none of SD1.5's structure."""
        with Unfilled():
            vae = cls(VAESizes.of(state))
        return from_state(vae, state, "VAE")

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, 4, h, w) of the latent's distribution."""
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, torch.exp(0.5 * logvar.clamp(-30.0, 20.0))

    def decode(self, z: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))


class Autoencoder:
    """A VAE whose latents are scaled as the UNet sees them: pixels (B, 3, H, W) in [-1, 1] <-> (B, 4, H / 8, W / 8)."""

    factor = 8

    def __init__(self, vae: VAE, scale: float = 0.18215):
        self.vae, self.scale = vae, scale
        self.place: Place = stays

    @cached_property
    def cache_key(self) -> str:
        """A hash of the encoder, by which cached latents are told apart."""
        return encoder_hash(self.vae.state_dict(), self.scale)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, 4, h, w) of the scaled latent, fp32 on the VAE's device."""
        with self.place():
            weight = self.vae.quant_conv.weight
            mean, std = self.moments(pixels.to(weight.device, weight.dtype))
        return mean.float() * self.scale, std.float() * self.scale

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, 4, h, w) of the unscaled latent, in the VAE's precision."""
        return self.vae.encode(pixels)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), fp32, about [-1, 1]."""
        with self.place():
            weight = self.vae.post_quant_conv.weight
            return self.vae.decode((latents / self.scale).to(weight.device, weight.dtype)).float()


def encoder_hash(state: Mapping[str, Tensor], scale: float) -> str:
    """A hash of an encoder's tensors, by their names without a prefix, and of what its latents are multiplied by."""
    digest = hashlib.sha256(str(scale).encode())
    for key, value in sorted(state.items()):
        if key.startswith(("encoder.", "quant_conv.")):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
