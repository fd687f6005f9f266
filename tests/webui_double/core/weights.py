"""Checkpoint files of small random models with SD1.5's structure."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from lib_tuner.sd.clip import CLIPSizes, CLIPText
from lib_tuner.sd.files import save_checkpoint
from lib_tuner.sd.unet import UNet, UNetSizes
from lib_tuner.sd.vae import VAE, VAESizes

UNET = UNetSizes(channels=(32, 64, 96, 96), context=48, heads=4)
TEXT = CLIPSizes(width=48, layers=2, heads=4, inner=96)
SMALL_VAE = VAESizes((32, 32, 32, 32))


def write_small(path: Path, seed: int) -> Path:
    """A checkpoint with weights of its own for each seed; the random numbers of others go on where they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, text, vae = UNet(UNET), CLIPText(TEXT), VAE(SMALL_VAE)
        # with a bias of 0 the states have a mean of exactly 0, by which the host's emphasis divides
        torch.nn.init.normal_(text.text_model.final_layer_norm.bias, mean=0.1, std=0.2)
    heads = {"tuner_unet_heads": str(UNET.heads), "tuner_text_heads": str(TEXT.heads)}
    return save_checkpoint(path, unet.state_dict(), vae.state_dict(), text.state_dict(), heads)


@lru_cache(maxsize=1)
def _store() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="webui-double-")


@lru_cache(maxsize=None)
def _made(seed: int) -> Path:
    return write_small(Path(_store().name) / f"{seed}.safetensors", seed)


def put_small(path: Path, seed: int) -> Path:
    """The small checkpoint of a seed at `path`; each is made once per process."""
    return put(path, _made(seed))


def put(path: Path, source: Path) -> Path:
    """Links or copies a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
    return path
