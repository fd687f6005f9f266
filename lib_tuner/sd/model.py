"""A checkpoint file as a model that runs: its three networks, tokenizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from .clip import CLIPText
from .files import read_checkpoint
from .schedule import Schedule
from .text import TextEncoder
from .unet import UNet
from .vae import VAE, Autoencoder


@dataclass(frozen=True, eq=False)
class Model:
    """SD1.5 or a model of its structure, frozen, in eval mode."""

    unet: UNet  # (B, 4, h, w), or (B, 9, h, w) of an inpainting model, (B,), (B, L, C) -> (B, 4, h, w)
    text: TextEncoder  # captions -> (B, 77 k, C)
    vae: Autoencoder  # (B, 3, H, W) in [-1, 1] <-> (B, 4, H / 8, W / 8)
    schedule: Schedule
    sha256: str
    name: str
    inpainting: bool


def load_model(path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", clip_skip: int = 1) -> Model:
    """Reads a checkpoint. UNet and text encoder get `dtype`; the VAE runs in fp32, since SD1.5's overflows in fp16.

    Raises ValueError or OSError with one sentence where the file is not a full SD1.x checkpoint.
    """
    file = read_checkpoint(path)
    unet = UNet.from_state(file.unet, file.heads.unet).to(device, dtype)
    clip = CLIPText.from_state(file.text, file.heads.text).to(device, dtype)
    vae = VAE.from_state(file.vae).to(device, torch.float32)
    schedule = Schedule.sd15(file.prediction).to(device)
    return Model(unet, TextEncoder(clip, clip_skip=clip_skip), Autoencoder(vae), schedule, file.sha256(), Path(path).stem, file.inpainting)
