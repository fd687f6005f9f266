"""Fewer tokens in the UNet's self-attention at the largest size: a part of them share their values with a neighbour (after 2303.17604)."""

from __future__ import annotations

from typing import Any

import torch
from ldm.modules.attention import SpatialTransformer
from torch import Tensor


def merge_tokens(unet: Any, ratio: float) -> None:
    """In the first transformers of the way down and the last of the way up; ratio 0 takes it off."""
    for hook in vars(unet).pop("merging", ()):
        hook.remove()
    if ratio > 0:
        largest = (part for block in (*unet.input_blocks[:3], *unet.output_blocks[-3:]) for part in block if isinstance(part, SpatialTransformer))
        attentions = [block.attn1 for transformer in largest for block in transformer.transformer_blocks]
        unet.merging = [attention.register_forward_pre_hook(lambda _, given: (_shared(given[0], ratio), *given[1:])) for attention in attentions]


def _shared(x: Tensor, ratio: float) -> Tensor:
    """x (B, N, C): the tokens of the first pairs have their pair's mean."""
    count = 2 * int(min(ratio, 0.5) * x.shape[1])
    means = x[:, :count].unflatten(1, (-1, 2)).mean(2)
    return torch.cat([means.repeat_interleave(2, 1), x[:, count:]], 1)
