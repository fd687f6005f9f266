"""DeepDanbooru: tags in a row. The double's model knows the three colours, and a rating."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import nn

from . import devices, modelloader, paths, shared

TAGS = ["blue_sky", "red_(colour)", "green_field", "rating:safe"]
_CHANNELS = (2, 0, 1)


class SmallDanbooru(nn.Module):
    """(1, 512, 512, 3) in [0, 1] -> (1, tags)."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = TAGS
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(1, 2)) * self.weight  # (1, 3)
        return torch.cat([means[:, _CHANNELS], torch.ones(1, 1)], dim=1)


class DeepDanbooru:
    """Loaded at its first use; `tag_multi` is for whoever calls `start` before and `stop` after."""

    def __init__(self) -> None:
        self.model: Any = None

    def load(self) -> None:
        if self.model is not None:
            return
        files = modelloader.load_models(
            model_path=os.path.join(paths.models_path, "torch_deepdanbooru"), model_url="https://example.org/model-resnet_custom_v3.pt", ext_filter=[".pt"],
            download_name="model-resnet_custom_v3.pt",
        )  # fmt: skip
        with open(files[0], "rb"):
            self.model = SmallDanbooru().eval()
        self.model.to(devices.cpu, devices.dtype)

    def start(self) -> None:
        self.load()
        self.model.to(devices.device)

    def stop(self) -> None:
        if not shared.opts.interrogate_keep_models_in_memory:
            self.model.to(devices.cpu)
            devices.torch_gc()

    def tag(self, pil_image: Any) -> str:
        self.start()
        text = self.tag_multi(pil_image)
        self.stop()
        return text

    def tag_multi(self, pil_image: Any, force_disable_ranks: bool = False) -> str:
        import numpy

        opts = shared.opts
        pixels = numpy.expand_dims(numpy.array(pil_image.convert("RGB").resize((512, 512)), dtype=numpy.float32), 0) / 255
        with torch.no_grad(), devices.autocast():
            scores = self.model(torch.from_numpy(pixels).to(devices.device))[0].float().tolist()
        unwanted = {word.strip().replace(" ", "_") for word in opts.deepbooru_filter_tags.split(",")}
        found = {tag: score for tag, score in zip(self.model.tags, scores) if score >= opts.interrogate_deepbooru_score_threshold and not tag.startswith("rating:")}
        order = sorted(found) if opts.deepbooru_sort_alpha else sorted(found, key=lambda tag: -found[tag])
        return ", ".join(self._written(tag, found[tag], force_disable_ranks) for tag in order if tag not in unwanted)

    def _written(self, tag: str, score: float, plain: bool) -> str:
        tag = tag.replace("_", " ") if shared.opts.deepbooru_use_spaces else tag
        tag = re.sub(r"([\\()])", r"\\\1", tag) if shared.opts.deepbooru_escape else tag
        return f"({tag}:{score:.3f})" if shared.opts.interrogate_return_ranks and not plain else tag


model = DeepDanbooru()
