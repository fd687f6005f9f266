"""How alike pictures and texts are, by a CLIP of open_clip: both of its towers, read from the weights file alone.

`import open_clip` loads torchvision, which is in places missing; the structure is that of OpenAI's CLIP and short. Axes: B pictures or texts, L places, W width,
E width of what comes out. Pictures are prepared as open_clip does: shorter side to the model's, bicubic, centre crop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..data.item import Item
from ..data.pictures import load, to_pixels
from ..data.sources import Reader
from ..sd.files import read_tensors
from ..sd.layers import attend
from ..sd.tokenizer import Tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # open_clip/constants.py
NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # how the hub calls open_clip's weights
HEAD = {1280: 80, 1408: 88, 1664: 104}  # width of a head in picture towers of that width (ViT-H, g, bigG); else 64
TOGETHER = 16


def found() -> Path | None:
    """The smallest CLIP in open_clip's cache; None where there is none. Nothing is downloaded."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    files = [file for name in NAMES for file in hub.glob(f"models--*CLIP-ViT*/snapshots/*/{name}") if file.is_file()]
    return min(files, key=lambda file: file.stat().st_size, default=None)


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP on a device, in fp32."""

    state: dict[str, Tensor]
    quick: bool  # OpenAI's own activation instead of GELU

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Clip:
        """Raises ValueError, one sentence, for a file that is no CLIP with a ViT in open_clip's form, or OSError."""
        state = {key: tensor.to(device, torch.float32) for key, tensor in read_tensors(path)[0].items() if tensor.is_floating_point()}
        lacks = [key for key in ("visual.conv1.weight", "visual.proj", "visual.positional_embedding", "token_embedding.weight", "text_projection", "ln_final.weight") if key not in state]
        if lacks:
            raise ValueError(f"{path.name} is no CLIP with a ViT as open_clip writes it ({lacks[0]} is missing); choose its open_clip_model.safetensors.")
        return cls(state, _is_quick(path))

    @cached_property
    def side(self) -> int:
        """Of the pictures it sees."""
        return round((len(self.state["visual.positional_embedding"]) - 1) ** 0.5) * self.state["visual.conv1.weight"].shape[2]

    @torch.no_grad()
    def pictures(self, images: Iterable[Image.Image]) -> Tensor:
        """(B, E) of length 1."""
        pixels, s = [self._prepared(image) for image in images], self.state
        found = []
        for at in range(0, len(pixels), TOGETHER):
            x = torch.stack(pixels[at : at + TOGETHER]).to(s["visual.proj"].device)
            x = F.conv2d(x, s["visual.conv1.weight"], stride=s["visual.conv1.weight"].shape[2]).flatten(2).transpose(1, 2)  # (B, L, W)
            x = torch.cat([s["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + s["visual.positional_embedding"]
            x = self._blocks(self._norm(x, "visual.ln_pre"), "visual.", HEAD.get(x.shape[2], 64), causal=False)
            found.append(F.normalize(self._norm(x[:, 0], "visual.ln_post") @ s["visual.proj"], dim=1))
        return torch.cat(found) if found else torch.zeros(0, s["visual.proj"].shape[1])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, E) of length 1; what is longer than the model reads is cut."""
        s, tokenizer = self.state, Tokenizer()
        length = len(s["positional_embedding"])
        ids = [[tokenizer.bos, *tokenizer.encode(text)[: length - 2], tokenizer.eos] for text in texts]
        ends = torch.tensor([len(row) - 1 for row in ids])
        device = s["text_projection"].device
        x = s["token_embedding.weight"][torch.tensor([row + [0] * (length - len(row)) for row in ids], device=device)] + s["positional_embedding"]
        x = self._norm(self._blocks(x, "", 64, causal=True), "ln_final")
        return F.normalize(x[torch.arange(len(ids)), ends.to(device)] @ s["text_projection"], dim=1)

    def _prepared(self, image: Image.Image) -> Tensor:
        """(3, S, S)"""
        side, image = self.side, image.convert("RGB")
        scale = side / min(image.size)
        image = image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))), Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        pixels = (to_pixels(image.crop((left, top, left + side, top + side))) + 1) / 2
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _linear(self, x: Tensor, name: str, joint: str = ".") -> Tensor:
        return F.linear(x, self.state[f"{name}{joint}weight"], self.state[f"{name}{joint}bias"])

    def _blocks(self, x: Tensor, tower: str, head: int, causal: bool) -> Tensor:
        number = 0
        while f"{tower}transformer.resblocks.{number}.ln_1.weight" in self.state:
            at = f"{tower}transformer.resblocks.{number}"
            q, k, v = self._linear(self._norm(x, f"{at}.ln_1"), f"{at}.attn", ".in_proj_").chunk(3, -1)
            x = x + self._linear(attend(q, k, v, max(1, x.shape[2] // head), causal), f"{at}.attn.out_proj")
            inner = self._linear(self._norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
            inner = inner * torch.sigmoid(1.702 * inner) if self.quick else F.gelu(inner)
            x, number = x + self._linear(inner, f"{at}.mlp.c_proj"), number + 1
        return x


def _is_quick(path: Path) -> bool:
    """No tensor tells the activation: the description beside the file does, else its name, as OpenAI's weights alone have their own."""
    try:
        return bool(json.loads((path.parent / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"].get("quick_gelu", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return any(word in str(path).lower() for word in ("openai", "quickgelu"))


# ---- the numbers of a step -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Looks:
    """A run's samples seen by the CLIP in a file: `prompts` are those of its samples, `items` its training pictures."""

    file: Path
    folder: Path
    prompts: Sequence[str]
    items: Sequence[Item]

    def stamps(self, step: int) -> list[list[Any]]:
        """What the numbers of a step depend on, beside the run."""
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in (self.file, *self._samples(step))]

    def numbers(self, step: int) -> dict[str, float]:
        """Those of the samples that the run drew at a step; none where it drew none. Raises ValueError for a file that is no CLIP."""
        files = self._samples(step)[: len(self.prompts)]
        if not files:
            return {}
        return similarities(self._clip, self._clip.pictures(map(Image.open, files)), list(self.prompts[: len(files)]), self._training)

    def _samples(self, step: int) -> list[Path]:
        return sorted((self.folder / "samples").glob(f"{step:06d}-*.png"), key=lambda file: int(file.stem.rpartition("-")[2]))

    @cached_property
    def _clip(self) -> Clip:
        return Clip.load(self.file, "cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _training(self) -> Tensor:
        read = Reader()
        return self._clip.pictures(load(item, read.picture(item), False, None)[0] for item in self.items)


def similarities(clip: Clip, samples: Tensor, prompts: Sequence[str], training: Tensor) -> dict[str, float]:
    """Of samples (S, E) drawn for `prompts` beside training pictures (T, E): how alike they are on average, how near the nearest is, how different samples are from each other.

    image, text: mean cosine, of each sample with each training picture, with its prompt; nearest: 1 - the largest cosine with a training picture, 0 where one was
    learned by heart; diversity: mean of 1 - cosine over pairs of samples, absent for a single one.
    """
    if not len(samples) or not len(training):
        return {}
    each = samples @ training.T  # (S, T)
    numbers = {"image": each.mean().item(), "text": (samples * clip.texts(prompts)).sum(1).mean().item(), "nearest": 1 - each.max().item()}
    if (count := len(samples)) > 1:
        numbers["diversity"] = 1 - ((samples @ samples.T).sum() - samples.square().sum()).item() / (count * (count - 1))
    return numbers
