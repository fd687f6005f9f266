"""The VAE. Pixels (B, 3, H, W) from -1 to 1, latents (B, 4, H / 8, W / 8)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modules.diffusionmodules.util import Shapes, below, layer, norm, numbered


class ResnetBlock(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.norm1, self.norm2 = (norm(shapes, name, 1e-6) for name in ("norm1", "norm2"))
        self.conv1, self.conv2 = (layer(shapes, name) for name in ("conv1", "conv2"))
        self.nin_shortcut = layer(shapes, "nin_shortcut") if "nin_shortcut.weight" in shapes else None

    def forward(self, x: Tensor) -> Tensor:
        change = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return change + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.norm = norm(shapes, "norm", 1e-6)
        self.q, self.k, self.v, self.proj_out = (layer(shapes, name) for name in ("q", "k", "v", "proj_out"))

    def forward(self, x: Tensor) -> Tensor:
        calm = self.norm(x)
        q, k, v = (project(calm).flatten(2).mT for project in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class Resize(nn.Module):
    """Half the size, padded at the right and below only; or twice the size."""

    def __init__(self, shapes: Shapes, up: bool):
        super().__init__()
        self.up, self.conv = up, layer(shapes, "conv", stride=1 if up else 2)
        if not up:
            self.conv.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2) if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """What is done at one size, and then the step to the next."""

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.block = nn.ModuleList(map(ResnetBlock, numbered(below(shapes, "block"))))
        for name in ("downsample", "upsample"):
            if f"{name}.conv.weight" in shapes:
                self.add_module(name, Resize(below(shapes, name), name == "upsample"))

    def forward(self, x: Tensor) -> Tensor:
        return _through((*self.block, *(module for name, module in self.named_children() if name != "block")), x)


def _through(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


class Half(nn.Module):
    """Encoder or decoder: the smallest size, `mid`, is the last or the first."""

    def __init__(self, shapes: Shapes, levels: str):
        super().__init__()
        self.conv_in, self.conv_out = layer(shapes, "conv_in"), layer(shapes, "conv_out")
        middle = {"block_1": ResnetBlock, "attn_1": AttnBlock, "block_2": ResnetBlock}
        self.mid = nn.ModuleDict({name: kind(below(shapes, f"mid.{name}")) for name, kind in middle.items()})
        self.add_module(levels, nn.ModuleList(map(Level, numbered(below(shapes, levels)))))
        self.norm_out = norm(shapes, "norm_out", 1e-6)

    def _order(self) -> list[nn.Module]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(_through(self._order(), self.conv_in(x)))))


class Encoder(Half):
    def __init__(self, shapes: Shapes):
        super().__init__(shapes, "down")

    def _order(self) -> list[nn.Module]:
        return [*self.down, *self.mid.values()]


class Decoder(Half):
    def __init__(self, shapes: Shapes):
        super().__init__(shapes, "up")

    def _order(self) -> list[nn.Module]:
        return [*self.mid.values(), *reversed(self.up)]


class DiagonalGaussianDistribution:
    """Of latents."""

    def __init__(self, parameters: Tensor):
        self.mean, logvar = parameters.tensor_split(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)

    @property
    def std(self) -> Tensor:
        return (self.logvar / 2).exp()

    def sample(self) -> Tensor:
        return torch.randn_like(self.std).mul(self.std).add(self.mean)

    def mode(self) -> Tensor:
        return self.mean


class AutoencoderKL(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.encoder, self.decoder = Encoder(below(shapes, "encoder")), Decoder(below(shapes, "decoder"))
        self.quant_conv, self.post_quant_conv = layer(shapes, "quant_conv"), layer(shapes, "post_quant_conv")

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
