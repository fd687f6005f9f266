"""Depth of a picture by a model: an ONNX file of one's own (Depth Anything, MiDaS, DPT) through onnxruntime, or whatever a host lends.

Axes: H W pixels of the picture, h w those that the model is given. A picture is (3, H, W) in [0, 1]; depth (1, H, W) in [0, 1], the nearest point white, as the
ControlNet extension's preprocessors draw it. The models give relative inverse depth, whose scale differs from picture to picture, so each is stretched to its own
least and greatest value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from . import onnx

Depth = Callable[[Tensor], Tensor]  # (3, H, W) -> (1, H, W)
SETTINGS = "preprocessor_config.json"  # of the model's repository, beside the file or a folder above it


@dataclass(frozen=True)
class Preparation:
    """What a model asks of its input; the defaults are Depth Anything's and, but for the size, MiDaS 2.1's."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size: tuple[int, int] = (518, 518)  # height, width
    multiple: int = 14
    keeps_shape: bool = True  # of the picture; else it is stretched to `size`


class OnnxDepth:
    """An ONNX file of one picture at a time, in a fixed size or in any."""

    def __init__(self, path: Path, cpu: bool = False):
        """Raises ValueError where there is no onnxruntime, or the file takes something else than pictures (1, 3, h, w)."""
        self.asks, self._model = _preparation(path), onnx.Model(path, cpu)
        shape = self._model.shape or []
        if len(shape) != 4 or shape[1] != 3 and isinstance(shape[1], int) or isinstance(shape[0], int) and shape[0] not in (-1, 1):
            raise ValueError(f"{path.name} is no depth model: it takes {self._model.takes} where those take one float input (1, 3, height, width).")
        self._fixed, self.name = tuple(side if isinstance(side, int) and side > 0 else 0 for side in shape[2:]), path.name

    def __call__(self, picture: Tensor) -> Tensor:
        """Raises ValueError where the model fails or gives no map."""
        size = picture.shape[1:]
        h, w = (own or side for own, side in zip(self._fixed, fitted(size, self.asks)))
        x = F.interpolate(picture[None], (h, w), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.asks.mean, self.asks.std))
        found = self._model(((x - mean) / std).contiguous()).squeeze()
        if found.ndim != 2:
            raise ValueError(f"{self.name} is no depth model: for a picture it gives {tuple(found.shape)} where those give (1, height, width).")
        return stretched(found, size)


def fitted(size: tuple[int, int], asks: Preparation) -> tuple[int, int]:
    """(h, w) for a picture of (H, W): that side becomes the model's which then changes less, both a multiple (transformers' DPTImageProcessor)."""
    scales = tuple(own / length for own, length in zip(asks.size, size))
    if asks.keeps_shape:
        scales = (min(scales, key=lambda s: abs(1 - s)),) * 2
    h, w = (max(1, round(scale * length / asks.multiple)) * asks.multiple for scale, length in zip(scales, size))
    return h, w


def stretched(found: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, H, W) in [0, 1] of a model's map (h, w); black where all of it is equally far. Raises ValueError where it is not finite."""
    found = F.interpolate(found[None, None].float(), tuple(size), mode="bicubic", align_corners=False)[0]
    if not torch.isfinite(found).all():
        raise ValueError("The depth model gives no finite numbers for a picture; use another model, or one in fp32.")
    least, most = found.min(), found.max()
    return (found - least) / (most - least) if most - least > 1e-6 * most.abs().clamp(min=1e-6) else torch.zeros_like(found)


def _preparation(path: Path) -> Preparation:
    """As the model's repository says, where its settings lie by the file."""
    file = next((folder / SETTINGS for folder in (path.parent, path.parent.parent) if (folder / SETTINGS).is_file()), None)
    if file is None:
        return Preparation()
    usual = Preparation()
    try:
        own = json.loads(file.read_text(encoding="utf-8"))
        size = own.get("size") or usual.size[0]
        height, width = (int(size if not isinstance(size, dict) else size.get(name) or size["shortest_edge"]) for name in ("height", "width"))
        mean, std = (tuple(float(v) for v in own.get(name) or default) for name, default in (("image_mean", usual.mean), ("image_std", usual.std)))
        if own.get("do_normalize", True) is False:
            mean, std = (0.0,) * 3, (1.0,) * 3
        made = Preparation(mean, std, (height, width), int(own.get("ensure_multiple_of") or 1), bool(own.get("keep_aspect_ratio", False)))  # as the processor's own defaults
        if not (len(mean) == len(std) == 3 and min(std) > 0 and min(made.size) > 0 and made.multiple > 0):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{file} says nothing that a depth model could be given (image_mean, image_std, size, ensure_multiple_of); download it anew, or take it away.") from None
    return made
