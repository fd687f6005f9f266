"""The model that the WebUI has loaded, as the parts that training needs: an ldm LatentDiffusion, never copied, only called.

Axes as in host.py. Sources: host.md's contract, modules/sd_hijack_clip.py and ldm/models/diffusion/ddpm.py of the WebUI 1.9.4.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..sd.inpaint import INPUTS, LATENT
from ..sd.schedule import Schedule
from ..sd.text import TextEncoder
from ..sd.vae import Autoencoder


class HostText(TextEncoder):
    """Captions through the host's own CLIP, every character literal, whatever embeddings and emphasis the host would read into them."""

    def __init__(self, model: Any, clip_skip: int):
        super().__init__(model.cond_stage_model.wrapped.transformer, clip_skip=clip_skip)

    @property
    def embedding(self) -> nn.Module:
        """The bare look-up: the host's module around it substitutes embeddings that occur in the text it tokenized itself."""
        around = super().embedding
        return getattr(around, "wrapped", around)

    def states(self, ids: Tensor) -> Tensor:
        out = self.transformer(input_ids=ids, output_hidden_states=self.clip_skip > 1)
        if self.clip_skip <= 1:
            return out.last_hidden_state
        return self.transformer.text_model.final_layer_norm(out.hidden_states[-self.clip_skip])


class HostVAE(Autoencoder):
    """The host's VAE; its own `encode_first_stage` draws a sample, which the cache of latents must not."""

    def __init__(self, model: Any):
        super().__init__(model.first_stage_model, float(model.scale_factor))

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation. Raises ValueError where half precision overflows."""
        latent = self.vae.encode(pixels)
        if latent.mean.dtype == torch.float16 and not torch.isfinite(latent.mean).all():
            raise ValueError("The VAE gives no numbers in half precision for one of the pictures: start the WebUI with --no-half-vae.")
        return latent.mean, latent.std


def schedule_of(model: Any) -> Schedule:
    """The noise levels that the model was trained with: a generation may have replaced `alphas_cumprod` by its own (downcast, zero terminal SNR)."""
    alphas = getattr(model, "alphas_cumprod_original", model.alphas_cumprod).float()
    before = torch.cat([torch.ones_like(alphas[:1]), alphas[:-1]])
    return Schedule((1 - alphas / before).clamp(0, 1), alphas, "v" if model.parameterization == "v" else "eps")


def refuse(model: Any, devices: Any = None) -> None:
    """Raises ValueError, with what to change, for a model or an option of the host that cannot be trained on; touches nothing. `devices`: the host's, where it is to be computed."""
    if model is None:
        raise ValueError("The WebUI has no model loaded: choose an SD1.5 checkpoint at the top of the page.")
    if hasattr(model, "forge_objects"):
        raise ValueError("This is Forge, which keeps its model in another way: the Tuner trains in AUTOMATIC1111's WebUI, or on its own page (python3 -m lib_tuner).")
    if getattr(model, "is_sdxl", False):
        raise ValueError("The loaded model is SDXL, and the Tuner trains SD1.5: choose an SD1.5 checkpoint at the top of the page.")
    if getattr(model, "is_sd2", False):
        raise ValueError("The loaded model is SD2, and the Tuner trains SD1.5: choose an SD1.5 checkpoint at the top of the page.")
    if not getattr(model, "is_sd1", True) or not hasattr(getattr(model, "cond_stage_model", None), "wrapped"):
        raise ValueError("The loaded model is none of SD1.5's kind: choose an SD1.5 checkpoint at the top of the page.")
    if getattr(model, "lowvram", False):
        raise ValueError("With --medvram or --lowvram the WebUI moves the model about in pieces, which training cannot: start the WebUI without it, and turn gradient checkpointing on.")
    inputs, key = model.model.diffusion_model.input_blocks[0][0].weight.shape[1], model.model.conditioning_key
    if (inputs, key) not in ((LATENT, "crossattn"), (INPUTS, "hybrid")):  # 8: InstructPix2Pix; 5: depth
        raise ValueError(f"The loaded model is of a kind that cannot be trained (its UNet reads {inputs} channels, {key}): choose an ordinary SD1.5 checkpoint or an inpainting one.")
    if any("float8" in str(p.dtype) for p in model.parameters()):
        raise ValueError("The model's weights are kept in fp8, which has too few digits to train on: turn FP8 weight off in Settings > Optimizations.")
    if devices is not None:
        _refuse_place(model, devices)


def _refuse_place(model: Any, devices: Any) -> None:
    if next(model.parameters()).device.type != torch.device(devices.device).type:
        raise ValueError("The WebUI's model was unloaded to RAM: press Load SD checkpoint to VRAM from RAM in Settings > Actions, then train.")
    if not isinstance(devices.autocast(), (torch.autocast, nullcontext)):  # `manual_cast`: weights change their type around each layer, which a backward pass does not survive
        raise ValueError("On this GPU (GTX 16xx, Apple, Intel) the WebUI computes half precision in a way that cannot be trained through: start the WebUI with --no-half.")


def checkpoint_hash(model: Any) -> str:
    """sha256 of the checkpoint's file: the host's own, or computed here where it runs with --no-hashing."""
    info = model.sd_checkpoint_info
    if not info.sha256:
        info.calculate_shorthash()
    if info.sha256:
        return info.sha256
    import hashlib

    digest = hashlib.sha256()
    with open(info.filename, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
