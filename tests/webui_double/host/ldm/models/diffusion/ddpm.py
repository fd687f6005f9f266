"""The three networks with their noise levels. x (B, 4, h, w), t (B,), c (B, M, D) or {"c_crossattn": [c], "c_concat": [(B, 5, h, w)]}."""

from __future__ import annotations

from typing import Any

import torch
from ldm.models.autoencoder import AutoencoderKL, DiagonalGaussianDistribution
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm.modules.diffusionmodules.util import Shapes, below
from ldm.modules.encoders.modules import FrozenCLIPEmbedder
from torch import Tensor, nn
from torch.nn import functional as F


class DiffusionWrapper(nn.Module):
    """`conditioning_key`: crossattn reads the text alone, hybrid also takes more channels beside x, as an inpainting model does."""

    def __init__(self, unet: UNetModel):
        super().__init__()
        self.diffusion_model, self.conditioning_key = unet, "crossattn" if unet.in_channels == 4 else "hybrid"

    def forward(self, x: Tensor, t: Tensor, c_concat: list[Tensor] | None = None, c_crossattn: list[Tensor] | None = None) -> Tensor:
        beside = c_concat if self.conditioning_key == "hybrid" else []  # where they are missing, that is a TypeError
        return self.diffusion_model(torch.cat([x] + beside, 1), t, context=torch.cat(c_crossattn, 1))


class LatentDiffusion(nn.Module):
    """As SD1.5's yaml describes it. A picture may put other noise levels into `alphas_cumprod`; `alphas_cumprod_original` keeps the model's own."""

    parameterization, first_stage_key, cond_stage_key, scale_factor, num_timesteps = "eps", "jpg", "txt", 0.18215, 1000

    def __init__(self, shapes: Shapes, unet_heads: int, text_heads: int):
        super().__init__()
        self.model = DiffusionWrapper(UNetModel(below(shapes, "model.diffusion_model"), unet_heads))
        self.first_stage_model = AutoencoderKL(below(shapes, "first_stage_model"))
        self.cond_stage_model: Any = FrozenCLIPEmbedder(below(shapes, "cond_stage_model"), text_heads)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, self.num_timesteps, dtype=torch.float64).square()
        kept = (1 - betas).cumprod(0)
        levels = {"betas": betas, "alphas_cumprod": kept, "sqrt_alphas_cumprod": kept.sqrt(), "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt()}
        for name, values in levels.items():
            self.register_buffer(name, values.float())
        self.alphas_cumprod_original = self.alphas_cumprod

    def apply_model(self, x: Tensor, t: Tensor, c: Tensor | dict[str, list[Tensor]]) -> Tensor:
        return self.model(x, t, **(c if isinstance(c, dict) else {"c_crossattn": [c]}))

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        picture, added = (level[t].reshape(-1, 1, 1, 1) for level in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))
        return picture * x + added * noise

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss at random timesteps, and what the original writes down of it."""
        t, noise = torch.randint(self.num_timesteps, x.shape[:1], device=x.device), torch.randn_like(x)
        loss = F.mse_loss(self.apply_model(self.q_sample(x, t, noise), t, c), noise)
        stage = "train" if self.training else "val"
        return loss, {f"{stage}/{name}": loss.detach() for name in ("loss_simple", "loss_vlb", "loss")}

    @torch.no_grad()
    def encode_first_stage(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        return self.first_stage_model.encode(pixels)

    def get_first_stage_encoding(self, encoded: DiagonalGaussianDistribution | Tensor) -> Tensor:
        """Scaled; of a distribution a sample."""
        return self.scale_factor * (encoded if isinstance(encoded, Tensor) else encoded.sample())

    @torch.no_grad()
    def decode_first_stage(self, latents: Tensor) -> Tensor:
        return self.first_stage_model.decode(latents / self.scale_factor)


class LatentInpaintDiffusion(LatentDiffusion):
    """As v1-inpainting-inference.yaml describes it: its UNet reads 9 channels."""
