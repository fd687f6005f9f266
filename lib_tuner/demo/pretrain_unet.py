"""How the embedded UNet and text encoder were made: both from nothing, on latents of drawn scenes, captions drawn anew each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..sd.clip import CLIPSizes, CLIPText
from ..sd.schedule import Schedule
from ..sd.tokenizer import BOS, EOS, Tokenizer
from ..sd.unet import ResBlock, SpatialTransformer, UNet, UNetSizes
from ..sd.vae import VAE
from .world import PHRASES, Scenes, caption, draw, random_scenes

UNET = UNetSizes(channels=(64, 64, 128, 128), context=48, heads=8)
TEXT = CLIPSizes(width=48, layers=12, heads=4, inner=192)  # no UNet level has this width: hypernetworks are keyed by width
SHORT = 24  # tokens; no caption is longer. The encoder is causal, so this is the start of what 77 would give


def new_model(seed: int) -> nn.ModuleDict:
    """An untrained UNet, whose blocks start as identities, and text encoder."""
    torch.manual_seed(seed)
    unet, text = UNet(UNET), CLIPText(TEXT)
    for module in unet.modules():
        last = module.out_layers[-1] if isinstance(module, ResBlock) else module.proj_out if isinstance(module, SpatialTransformer) else None
        if last is not None:
            nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    nn.init.zeros_(unet.out[-1].weight), nn.init.zeros_(unet.out[-1].bias)
    embeddings = text.text_model.embeddings
    nn.init.normal_(embeddings.token_embedding.weight, std=0.1)  # words that are never trained end about as long as those that are
    nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
    return nn.ModuleDict({"unet": unet, "text": text})


@torch.no_grad()
def latents(vae: VAE, count: int, seed: int, path: Path) -> tuple[Scenes, Tensor]:
    """Scenes without the held-out parts, and their unscaled latents' means (count, 4, 8, 8); kept in a file."""
    scenes = random_scenes(count, torch.Generator().manual_seed(seed))
    if path.exists():
        return scenes, torch.load(path, weights_only=True).float()
    parts = []
    for i in range(0, count, 256):
        some = Scenes(**{name: value[i : i + 256] for name, value in vars(scenes).items()})
        pixels = draw(some, torch.Generator().manual_seed(seed + 1 + i))
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(pixels)[0].float())
    torch.save(torch.cat(parts).half(), path)
    return scenes, torch.cat(parts)


def token_ids(captions: list[str], tokenizer: Tokenizer, length: int) -> Tensor:
    """Ids (B, length) between BOS and EOS, padded with EOS as the WebUI does."""
    rows = [[BOS, *_encode(tokenizer, text)[: length - 2]] for text in captions]
    return torch.tensor([row + [EOS] * (length - len(row)) for row in rows])


@lru_cache(maxsize=1 << 16)
def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text))


def unet_loss(model: nn.ModuleDict, scenes: Scenes, z: Tensor, steps: int, batch: int = 64) -> Callable[[int, torch.Generator], tuple[Tensor, float]]:
    """The loss of one step: eps, min-SNR 5, a tenth of the captions empty, 24 tokens for the first 85% of the steps and 77 after."""
    schedule, tokenizer = Schedule.sd15(), Tokenizer()
    x = z * 0.18215
    words = [scenes.words(i) for i in range(len(scenes))]

    def loss_at(step: int, generator: torch.Generator) -> tuple[Tensor, float]:
        chosen = torch.randint(len(x), (batch,), generator=generator)
        phrases = torch.randint(len(PHRASES), (batch,), generator=generator).tolist()
        empty = (torch.rand(batch, generator=generator) < 0.1).tolist()
        captions = ["" if e else caption(words[i], p) for i, p, e in zip(chosen.tolist(), phrases, empty)]
        t = torch.randint(1000, (batch,), generator=generator)
        noise = torch.randn(batch, 4, 8, 8, generator=generator)
        ctx = model["text"](token_ids(captions, tokenizer, SHORT if step < 0.85 * steps else 77))
        pred = model["unet"](schedule.add_noise(x[chosen], noise, t), t, ctx)
        mse = F.mse_loss(pred, noise, reduction="none").mean((1, 2, 3))
        snr = schedule.snr(t)
        return (mse * snr.clamp(max=5) / snr).mean(), float(mse.detach().mean())

    return loss_at
