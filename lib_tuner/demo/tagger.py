"""The embedded tagger: the shipped judge as one that names what drawn pictures show, so that tagging works at once, without a download or onnxruntime."""

from __future__ import annotations

import hashlib

import torch
from PIL import Image
from torch import Tensor

from ..data.pictures import to_pixels
from ..data.tag_list import TagList
from ..data.tag_rules import Thresholds
from ..data.tagger import squared
from .judge import FILE, Judge
from .world import ATTRIBUTES

SIDE = 64  # px
_FORMS = {"background": "{} background", "place": "on the {}"}  # words that say nothing alone


class DemoTagger:
    """A tagger as `data.tagger.Tagger` has it. Each attribute's words share one probability of 1, so at 0.5 at most one of them is a tag."""

    def __init__(self) -> None:
        self._judge = Judge.load()
        self.name = f"demo {hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]}"
        self.tags = TagList.of([_FORMS.get(name, "{}").format(word) for name, words in ATTRIBUTES.items() for word in words])
        self.thresholds = Thresholds(0.5, 0.5, "the judge's own")
        self.batch, self.device = 32, "CPU"

    def prepare(self, picture: Image.Image) -> Tensor:
        """(3, 64, 64) in [-1, 1] of a picture."""
        return to_pixels(squared(picture, SIDE))

    def scores(self, prepared: Tensor) -> Tensor:
        """(N, 3, 64, 64) -> (N, tags)."""
        logits = self._judge(prepared)
        return torch.cat([logits[name].softmax(1) for name in ATTRIBUTES], dim=1).clamp(0, 1)
