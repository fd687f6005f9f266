"""The judge: a small classifier that says what a drawn picture shows; independent of the model it judges.

It is trained on drawings, on drawings through the VAE, and on blurred and noisy ones, the held-out robot, house and checkered fill among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .world import ATTRIBUTES, draw, random_scenes

FILE = Path(__file__).with_name("judge.safetensors")
UNSEEN = -100  # the label that torch's cross-entropy leaves out


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] -> one row of logits per attribute."""

    def __init__(self, width: int = 32):
        super().__init__()
        def stage(c_in: int, c_out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.GroupNorm(8, c_out), nn.SiLU(),
                                 nn.Conv2d(c_out, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU())

        self.features = nn.Sequential(stage(3, width), stage(width, 2 * width), stage(2 * width, 3 * width), stage(3 * width, 4 * width))
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, len(words)) for name, words in ATTRIBUTES.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        f = self.features(pixels)  # (B, 4 width, 4, 4)
        f = torch.cat([f.mean((2, 3)), f.amax((2, 3))], dim=1)
        return {name: head(f) for name, head in self.heads.items()}

    @torch.no_grad()
    def words(self, pixels: Tensor) -> list[dict[str, str]]:
        """What each picture shows."""
        best = {name: logits.argmax(1).tolist() for name, logits in self(pixels).items()}
        return [{name: ATTRIBUTES[name][best[name][i]] for name in ATTRIBUTES} for i in range(len(pixels))]

    @classmethod
    def load(cls, path: Path = FILE) -> Judge:
        """The shipped judge."""
        judge = cls()
        judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
        return judge.eval().requires_grad_(False)

    def save(self, path: Path = FILE) -> None:
        """Writes the weights in fp16."""
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, path)


def judge_loss(judge: Judge, through_vae: Callable[[Tensor], Tensor]) -> Callable[[int, torch.Generator], tuple[Tensor, float]]:
    """The loss of one step and the part of attributes that were right."""

    def loss_at(step: int, generator: torch.Generator) -> tuple[Tensor, float]:
        scenes = random_scenes(64, generator, held_out=True)
        pixels = worn(draw(scenes, generator), through_vae, generator)
        logits = judge(pixels)
        answers = {name: getattr(scenes, name) for name in logits}
        answers["fill"] = answers["fill"].masked_fill(~scenes.fill_shows(), UNSEEN)
        loss = sum(F.cross_entropy(logits[name], answers[name], label_smoothing=0.02) for name in logits)
        return loss, sum(float((logits[n].argmax(1) == answers[n]).float().mean()) for n in logits) / len(logits)

    return loss_at


@torch.no_grad()
def worn(pixels: Tensor, through_vae: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """Half as drawn, an eighth through the VAE, the rest blurred; noise of a random strength on top."""
    pixels = pixels.clone()
    n = len(pixels)
    pixels[: n // 8] = through_vae(pixels[: n // 8])
    pixels[n // 8 : n // 2] = F.avg_pool2d(F.pad(pixels[n // 8 : n // 2], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    strength = torch.rand(n, 1, 1, 1, generator=generator) ** 2 * 0.25
    return pixels + strength * torch.randn(pixels.shape, generator=generator)


def interval(part: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a part seen in n trials."""
    z = 1.96
    centre, half = part + z * z / (2 * n), z * math.sqrt(part * (1 - part) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
