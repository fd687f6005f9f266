"""What an inpainting model's UNet reads: 4 channels of the noisy latent, 1 of the mask, 4 of the latent of what the mask leaves of the picture.

Axes: B samples, h w latent pixels, H W = 8 h, 8 w pixels. Order and preparation are those of runwayml's stable-diffusion-inpainting, as diffusers and the
WebUI feed it: the mask is 1 where something is to be painted and comes to the latent's size by its nearest pixel; what it hides is grey, 0 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LATENT, INPUTS = 4, 9  # channels of a latent, and of what such a UNet reads
FIRST = "input_blocks.0.0"  # the convolution that reads them


def is_inpainting(unet: nn.Module) -> bool:
    """Whether a UNet, ours or ldm's, is that of an inpainting model."""
    return unet.input_blocks[0][0].weight.shape[1] == INPUTS


def hidden(pixels: Tensor, mask: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] without what the mask (H, W) of true and false hides."""
    return pixels.masked_fill(mask, 0.0)


def channels(mask: Tensor, latent: Tensor) -> Tensor:
    """(5, h, w): the mask (H, W) at the size of the latent (4, h, w) of what it leaves, before that latent."""
    factor = mask.shape[0] // latent.shape[1]
    return torch.cat([mask[None, ::factor, ::factor].to(latent), latent])


def all_hidden(vae: Any, size: tuple[int, int]) -> Tensor:
    """(5, h, w) of a picture (W, H) that is hidden as a whole: what txt2img gives an inpainting model.

    The WebUI draws from the distribution of which this is the mean.
    """
    grey = torch.zeros(1, 3, size[1], size[0])
    return channels(torch.ones(size[1], size[0], dtype=torch.bool), vae.encode(grey)[0][0].float())


def joined(unet: Callable[..., Tensor], extra: Tensor | None) -> Callable[..., Tensor]:
    """`unet(xt, t, ctx)` for latents alone; `extra` (B, 5, h, w) goes along, None for a model that reads nothing else.

    More latents than that, such as those with and without a prompt, get it once more in the same order.
    """
    if extra is None:
        return unet

    def predict(xt: Tensor, t: Tensor, ctx: Tensor) -> Tensor:
        return unet(torch.cat([xt, extra.to(xt).repeat(len(xt) // len(extra), 1, 1, 1)], 1), t, ctx)  # (B, 9, h, w)

    return predict
