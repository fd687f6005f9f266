"""`tool make-random FILE`: a full-size SD1.5 checkpoint of random weights, so that the path of real files is run without one (fp16, 2.1 GB)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Sequence

import torch
from torch import Tensor, nn

from ..sd.clip import CLIPText
from ..sd.files import save_checkpoint
from ..sd.unet import UNet
from ..sd.vae import VAE


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file named on the command line; returns the exit code. Raises ValueError or OSError where it cannot."""
    parser = argparse.ArgumentParser(prog="make-random", description="Write a full-size SD1.5 checkpoint of random weights (fp16, 2.1 GB).")
    parser.add_argument("file", type=Path, help="the .safetensors file to write")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same file (default 0)")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    args = parser.parse_args(argv)
    if args.file.suffix.lower() != ".safetensors":
        raise ValueError(f"{args.file}: the file's name must end in .safetensors.")
    if args.file.exists() and not args.force:
        raise FileExistsError(f"{args.file} exists already; choose another name, or replace it with --force.")
    with torch.device("meta"):
        parts = UNet(), VAE(), CLIPText()
    write_random(args.file, *parts, seed=args.seed)
    sys.stdout.write(f"{args.file}: {args.file.stat().st_size / 1e9:.2f} GB\n")
    return 0


def write_random(path: Path, unet: nn.Module, vae: nn.Module, text: nn.Module, seed: int = 0, metadata: dict[str, str] | None = None) -> Path:
    """Writes a checkpoint of these (meta) modules' names and shapes with random fp16 weights, in fan-in scale so that activations stay finite."""
    generator = torch.Generator().manual_seed(seed)
    states = [{key: _random(key, t.shape, generator) for key, t in part.state_dict().items()} for part in (unet, vae, text)]
    return save_checkpoint(path, *states, {"modelspec.architecture": "stable-diffusion-v1", **(metadata or {})}, position_ids=False)


def _random(key: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Norms are the identity, biases zero, the other weights of variance 1 / fan-in: each layer keeps the size of what it reads.

    The text encoder's last norm gets a bias, as any trained one has: without it the mean of its states is 0, by which the WebUI's emphasis divides.
    """
    if key == "text_model.final_layer_norm.bias":
        return torch.full(shape, 0.05, dtype=torch.float16)
    if len(shape) == 1:
        return torch.full(shape, float(key.endswith("weight")), dtype=torch.float16)
    std = 0.02 if "_embedding." in key and key.startswith("text_model.") else torch.Size(shape[1:]).numel() ** -0.5  # CLIP's own, 0.02 and 0.01
    return torch.randn(shape, generator=generator).mul_(std).half()
