"""The diffusion's noise schedule: xt = sqrt(ā_t) x0 + sqrt(1 - ā_t) ε, and what a model of either kind predicts of it.

Shapes: x0, xt, noise, pred (B, ...), t (B,) long in [0, T). Coefficients are fp32, so half-precision inputs come out in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels of a model: `betas` and `alphas_cumprod` (ā), both (T,) fp32, and what it predicts: "eps" or "v"."""

    betas: Tensor
    alphas_cumprod: Tensor
    prediction: str = "eps"

    def __post_init__(self):
        if self.prediction not in ("eps", "v"):
            raise ValueError(f"prediction: {self.prediction!r} is not known; use eps or v.")

    @classmethod
    def sd15(cls, prediction: str = "eps") -> Schedule:
        """Stable Diffusion 1.x's 1000 levels: sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012) (v1-inference.yaml)."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # fp64: as the original file's buffers were made
        return cls(betas.float(), (1 - betas).cumprod(0).float(), prediction)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> Schedule:
        """The same schedule on `device`."""
        return replace(self, betas=self.betas.to(device), alphas_cumprod=self.alphas_cumprod.to(device))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """xt = sqrt(ā) x0 + sqrt(1-ā) ε."""
        a, s = self._alpha_sigma(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should predict: ε, or v = sqrt(ā) ε - sqrt(1-ā) x0 (Salimans & Ho 2202.00512)."""
        if self.prediction == "eps":
            return noise
        a, s = self._alpha_sigma(t, x0)
        return a * noise - s * x0

    def x0(self, xt: Tensor, pred: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a prediction implies; an eps model cannot tell it where ā is 0."""
        a, s = self._alpha_sigma(t, xt)
        return (xt - s * pred) / a if self.prediction == "eps" else a * xt - s * pred

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ā / (1-ā) of each timestep, (B,)."""
        a = self.alphas_cumprod[t]
        return a / (1 - a)

    def zero_terminal_snr(self) -> Schedule:
        """A new schedule whose last timestep is pure noise: sqrt(ā) shifted to end at 0, scaled to keep its start (Lin et al. 2305.08891, Alg. 1)."""
        device = self.alphas_cumprod.device
        a = self.alphas_cumprod.cpu().double().sqrt()  # Apple's GPUs have no fp64
        a = (a - a[-1]) * (a[0] / (a[0] - a[-1]))
        ac = a**2
        alphas = torch.cat([ac[:1], ac[1:] / ac[:-1]])
        return replace(self, betas=(1 - alphas).float().to(device), alphas_cumprod=ac.float().to(device))

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        ac = self.alphas_cumprod[t].reshape(-1, *[1] * (like.ndim - 1))  # (B, 1, ..., 1)
        return ac.sqrt(), (1 - ac).sqrt()
