"""What a tagger is, and the WD14 models: ONNX files that turn a picture into a probability per tag.

Axes: N pictures, S the side that the model asks for (448 px). The input is float32 (N, S, S, 3), blue first, 0 to 255; the output (N, tags), in the order of
the list of tags. As SmilingWolf's own space makes it: alpha on white, padded to a square with white, Pillow's bicubic. Peers that pad with repeated edges or
stretch give the model what it never saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from . import onnx
from .tag_list import TagList, read_tags
from .tag_rules import Thresholds

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8  # pictures at once, where the model takes more than one
_WHITE = (255, 255, 255)


class Tagger(Protocol):
    """Gives pictures a score per tag. Another one needs these and nothing else."""

    name: str  # with its version: scores are kept under it
    tags: TagList
    thresholds: Thresholds
    batch: int  # pictures that `scores` takes at most
    device: str  # where it computes, for people

    def prepare(self, picture: Image.Image) -> Tensor:
        """An RGB picture as the model takes it, without the batch axis; called from several threads."""
        ...

    def scores(self, prepared: Tensor) -> Tensor:
        """(N, ...) of what `prepare` made -> probabilities (N, tags) in [0, 1]."""
        ...


def squared(picture: Image.Image, side: int) -> Image.Image:
    """The picture on a white square, centred (an odd pixel goes right or below), in S x S px."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), _WHITE)
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return square if longest == side else square.resize((side, side), Image.Resampling.BICUBIC)


def wd14_input(picture: Image.Image, side: int) -> Tensor:
    """(S, S, 3) in float32, blue first, 0 to 255, of an RGB picture."""
    import torch

    flat = torch.frombuffer(bytearray(squared(picture, side).tobytes()), dtype=torch.uint8)
    return flat.view(side, side, 3).flip(-1).float()


class WD14:
    """A WD14 model in an onnxruntime session: `run((N, S, S, 3)) -> (N, tags)`. `fixed`: the only number of pictures that the model takes, or 0."""

    def __init__(self, name: str, tags: TagList, run: Callable[[Tensor], Tensor], side: int, fixed: int = 0):
        self.name, self.tags, self.side = name, tags, side
        self.thresholds, self.device = Thresholds(), "CPU"
        self.batch, self._fixed, self._run = fixed or BATCH, fixed, run

    def prepare(self, picture: Image.Image) -> Tensor:
        """(S, S, 3) of a picture."""
        return wd14_input(picture, self.side)

    def scores(self, prepared: Tensor) -> Tensor:
        """(N, S, S, 3) -> (N, tags). Raises ValueError where the model fails."""
        import torch

        n = len(prepared)
        if self._fixed > n:  # a model of a fixed number gets blank pictures besides
            prepared = torch.cat([prepared, prepared.new_full((self._fixed - n, *prepared.shape[1:]), 255)])
        return self._run(prepared)[:n]


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine; `sha256` of the model is "" where nobody recorded one."""

    name: str
    model: Path
    tags: Path
    thresholds: Thresholds = Thresholds()
    sha256: str = ""

    @property
    def tagger(self) -> str:
        """The name of the tagger that this model makes, which its scores are kept under: another file is another tagger."""
        return f"{self.name} {(self.sha256 or digest_of(self.model))[:12]}"


def open_wd14(files: ModelFiles, cpu: bool = False) -> WD14:
    """Loads a model, on a GPU where onnxruntime has one, unless `cpu`.

    Raises ValueError for files that are no WD14 model and where there is no onnxruntime, OSError for files that cannot be read.
    """
    listed = read_tags(files.tags.read_bytes(), files.tags.name)
    model = onnx.Model(files.model, cpu)
    side, fixed = _input(files.model, model)
    tagger = WD14(files.tagger, listed, model, side, fixed)
    tagger.thresholds, tagger.device = files.thresholds, model.device
    return tagger


def digest_of(path: Path) -> str:
    """sha256 of a large file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _input(path: Path, model: onnx.Model) -> tuple[int, int]:
    """The side S and the fixed number N (0: any) of the model's input. Raises ValueError where it takes no (N, S, S, 3)."""
    shape = model.shape or []
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int):
        raise ValueError(f"{path.name} is no WD14 model: it takes {model.takes} where those take one float input (N, side, side, 3).")
    return shape[1], shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
