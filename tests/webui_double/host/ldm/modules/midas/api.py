"""MiDaS as the host lends it: a network and what prepares a picture for it, from a file that lies where `ISL_PATHS` says. The network here is small, and gives the red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ISL_PATHS = {"dpt_large": "dpt_large-midas-2f21e586.pt", "dpt_hybrid": "dpt_hybrid-midas-501f0c75.pt", "midas_v21": "", "midas_v21_small": ""}


class Red(nn.Module):
    """(N, 3, h, w) normalised to [-1, 1] -> (N, h, w)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([100.0, 0.0, 0.0]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[:, 0]


def _prepared(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    image = sample["image"]
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError("too many values to unpack")
    scale = 384 / min(image.shape[:2])
    size = [round(side * scale / 32) * 32 for side in image.shape[:2]]
    x = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None], size, mode="bicubic")[0]
    return {"image": ((x - 0.5) / 0.5).numpy()}


def load_model(model_type: str) -> tuple[nn.Module, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]]:
    """As after the host's wrapper: what is not there is fetched, which no test can."""
    if not Path(ISL_PATHS[model_type]).is_file():
        raise URLError("no connection")
    return Red().eval(), _prepared
