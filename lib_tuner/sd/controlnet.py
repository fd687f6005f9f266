"""The network of a ControlNet (Zhang et al. 2302.05543): a copy of the UNet's way down that reads a hint, joined by convolutions that start at zero.

Axes: B samples, C channels, h w latent pixels, H W = 8 h, 8 w pixels of the hint. Names are those of the original code (cldm/cldm.py) without its
prefix `control_model.`: 340 tensors at SD1.5's sizes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .inpaint import FIRST, LATENT
from .layers import Unfilled, conv, start_as_usual
from .names import diffusers_path
from .unet import UNet, UNetSizes, run_block, timestep_embedding

HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)  # of the convolutions that bring the hint down to the latent's size; the same at every width of the UNet
HALVING = (2, 4, 6)  # which of them have stride 2
COPIED = ("time_embed.", "input_blocks.", "middle_block.")


class ControlNet(nn.Module):
    """x (B, 4, h, w), hint (B, 3, H, W) in [0, 1], timesteps (B,), ctx (B, L, context) -> what is added to each of the 12 skips, and to the middle.

    Of what an inpainting model reads it is given the noisy latent alone, as by diffusers and the WebUI's ControlNet extension (its scripts/hook.py).
    """

    def __init__(self, sizes: UNetSizes = UNetSizes()):
        super().__init__()
        self.sizes = sizes
        self.checkpointing = False
        encoder = UNet(sizes)
        self.time_embed, self.input_blocks, self.middle_block = encoder.time_embed, encoder.input_blocks, encoder.middle_block
        self.input_hint_block = nn.Sequential(*_hint_layers(sizes.channels[0]))
        widths = [sizes.channels[0], *(width for width in sizes.channels for _ in range(3))][:-1]  # the last level is not halved
        self.zero_convs = nn.ModuleList(nn.Sequential(conv(width, width, 1)) for width in widths)
        self.middle_block_out = nn.Sequential(conv(sizes.channels[-1], sizes.channels[-1], 1))

    @classmethod
    def copy_of(cls, unet: nn.Module) -> ControlNet:
        """A ControlNet in fp32 with the weights of a UNet (ours or ldm's), on its device, whose outputs are all zero."""
        state = unet.state_dict()
        with Unfilled():
            net = cls(sizes_beside(unet))
        device = next(unet.parameters()).device
        net.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.startswith(COPIED):
                    parameter.copy_(state[name][:, :LATENT] if name == f"{FIRST}.weight" else state[name])
        return net

    def reset(self, generator: torch.Generator) -> None:
        """The hint's convolutions anew by torch's usual start, from the CPU `generator`; those that join the UNet, and the hint's last, at zero."""
        with torch.no_grad():
            for layer in self.input_hint_block:
                if isinstance(layer, nn.Conv2d):
                    start_as_usual(layer, generator)
            for layer in (self.input_hint_block[-1], *(zero[0] for zero in self.zero_convs), self.middle_block_out[0]):
                layer.weight.zero_()
                layer.bias.zero_()

    def forward(self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        dtype = self.middle_block_out[0].weight.dtype
        emb = self.time_embed(timestep_embedding(timesteps, self.sizes.channels[0]).to(dtype))  # (B, 4 * first)
        h, ctx = x[:, :LATENT].to(dtype), context.to(dtype)
        guide, added = self.input_hint_block(hint.to(dtype)), []
        for i, (block, zero) in enumerate(zip(self.input_blocks, self.zero_convs)):
            h = run_block(block, (h, emb, ctx), self.checkpointing)
            h = h + guide if i == 0 else h
            added.append(zero(h))
        h = run_block(self.middle_block, (h, emb, ctx), self.checkpointing)
        return [*added, self.middle_block_out(h)]


def sizes_beside(unet: nn.Module) -> UNetSizes:
    """The sizes of a ControlNet beside this UNet, which reads a latent also where the UNet is an inpainting model's."""
    return replace(UNetSizes.of(unet.state_dict(), heads_of(unet)), inputs=LATENT)


def _hint_layers(last: int) -> list[nn.Module]:
    layers, width = [], 3
    for i, after in enumerate(HINT_WIDTHS):
        layers += [conv(width, after, stride=2 if i in HALVING else 1), nn.SiLU()]
        width = after
    return [*layers, conv(width, last)]


def heads_of(unet: nn.Module) -> int:
    """The number of attention heads of a UNet of SD1.5's structure, which no tensor's shape shows."""
    return int(unet.middle_block[1].transformer_blocks[0].attn1.heads)


_HINT_NAMES = {0: "conv_in", 14: "conv_out"}


def diffusers_key(key: str) -> str:
    """The name of a tensor in diffusers' ControlNetModel: `zero_convs.3.0.weight` -> `controlnet_down_blocks.3.weight`."""
    path, _, leaf = key.rpartition(".")
    parts = path.split(".")
    if parts[0] == "input_hint_block":
        number = int(parts[1])
        return f"controlnet_cond_embedding.{_HINT_NAMES.get(number) or f'blocks.{number // 2 - 1}'}.{leaf}"
    if parts[0] == "zero_convs":
        return f"controlnet_down_blocks.{parts[1]}.{leaf}"
    if parts[0] == "middle_block_out":
        return f"controlnet_mid_block.{leaf}"
    return f"{diffusers_path(path)}.{leaf}"
