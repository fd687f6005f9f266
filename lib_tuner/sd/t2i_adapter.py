"""The network of a T2I-Adapter (Mou et al. 2302.08453): a hint becomes one feature map per level of the UNet's way down.

Axes: B samples, H W pixels of the hint, C channels of a level. Structure and names are those of TencentARC's full adapter: two residual blocks a level,
no weights in the down-sampling (`nums_rb=2, sk=True, use_conv=False`), which the WebUI's ControlNet extension takes for the names `conv_in` and `body.N`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import conv

WIDTHS = (320, 640, 1280, 1280)  # of SD1.5's levels
AFTER = (2, 5, 8, 11)  # the input blocks behind which the features are added
SHRINK = 8  # pixels to a latent pixel
PER_LEVEL = 2


class AdapterBlock(nn.Module):
    """x + block2(relu(block1(x))), after a halving where `down`, and a 1x1 convolution where the width changes."""

    def __init__(self, c_in: int, c_out: int, down: bool):
        super().__init__()
        self.down = down
        self.in_conv = conv(c_in, c_out, 1) if c_in != c_out else None
        self.block1 = conv(c_out, c_out)
        self.block2 = conv(c_out, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            # rounded up as the UNet's halving is, and as in diffusers; the extension rounds down, which is the same for every size it can draw
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        return x + self.block2(F.relu(self.block1(x)))


class T2IAdapter(nn.Module):
    """hint (B, 3 or 1, H, W) in [0, 1] -> one (B, C, h, w) per level, h = H / 8, H / 16, ...; `grey`: of the hint its first channel alone."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, grey: bool = False):
        super().__init__()
        self.grey = grey
        self.conv_in = conv((1 if grey else 3) * SHRINK**2, widths[0])
        before = (widths[0], *widths[:-1])
        self.body = nn.ModuleList(
            AdapterBlock(c_in if j == 0 else c, c, down=i > 0 and j == 0) for i, (c_in, c) in enumerate(zip(before, widths)) for j in range(PER_LEVEL)
        )

    def forward(self, hint: Tensor) -> list[Tensor]:
        x = self.conv_in(F.pixel_unshuffle(hint[:, :1] if self.grey else hint, SHRINK))
        features = []
        for i, block in enumerate(self.body):
            x = block(x)
            if i % PER_LEVEL == PER_LEVEL - 1:
                features.append(x)
        return features

    @torch.no_grad()
    def shrink(self, scale: float) -> None:
        """Makes the features about `scale` times as large: all that is written into the stream of residuals is scaled, so gradients still reach every tensor."""
        written = [self.conv_in, *(block.block2 for block in self.body)]
        for module in written:
            module.weight.mul_(scale)
            module.bias.mul_(scale)
        for block in self.body:
            if block.in_conv is not None:  # its input is small already
                block.in_conv.bias.mul_(scale)


def diffusers_key(key: str) -> str:
    """The name of a tensor in diffusers' T2IAdapter: `body.2.block1.weight` -> `adapter.body.1.resnets.0.block1.weight`."""
    first, *rest = key.split(".")
    if first != "body":
        return f"adapter.{key}"
    level, j = divmod(int(rest[0]), PER_LEVEL)
    inner = ".".join(rest[1:])
    return f"adapter.body.{level}.{inner}" if inner.startswith("in_conv.") else f"adapter.body.{level}.resnets.{j}.{inner}"
