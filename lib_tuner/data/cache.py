"""What the frozen models make of pictures and captions, made once.

Axes: C latent channels (4), h w latent pixels, L tokens (77 per chunk), D width of the text states. Everything stays in fp32 and every picture is encoded
alone: a cached latent is the same whatever batch, process or machine encoded it, which bit-exact resume needs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..sd.inpaint import all_hidden, hidden
from ..sd.loss import generator_for
from . import pictures, sources
from .item import Item
from .pictures import View


WHOLE, SEEN = "latent", "seen latent"  # streams of random numbers: of a picture's latent, and of the latent of what a mask leaves of it


@dataclass(frozen=True, eq=False)
class Entry:
    """Distribution of one view's scaled latent: mean and std (C, h, w) on the CPU, and its mask (1, h, w) in [0, 1] or None.

    Without a std `mean` is the latent that every sample gets.
    """

    mean: Tensor
    std: Tensor | None
    mask: Tensor | None = None

    def sample(self, kind: str, seed: int, digest: str, index: int, stream: str = WHOLE) -> Tensor:
        """A latent (C, h, w): the mean ("deterministic"), the picture's one draw ("once"), or the draw of sample `index` ("random")."""
        if kind == "deterministic" or self.std is None:
            return self.mean
        generator = generator_for(seed, 0, f"{stream}/{digest}") if kind == "once" else generator_for(seed, index, stream)
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)


@dataclass(frozen=True)
class Draw:
    """How a run draws its latents, as in `Entry.sample`."""

    kind: str = "random"
    seed: int = 0

    def settled(self, entry: Entry, digest: str, stream: str) -> Entry:
        """What is used of an entry: where a picture has one latent only that, which is half."""
        return entry if self.kind == "random" else Entry(entry.sample(self.kind, self.seed, digest, 0, stream), None, entry.mask)


class LatentCache:
    """Entries of (item, view), or of what a mask leaves of it, encoded on first use and kept in memory, on disk, or not at all.

    In memory an entry is what `draw` leaves of it; on the disk it is whole, for any run.
    `vae.encode(pixels (1, 3, H, W)) -> (mean, std)`, `vae.cache_key` names its weights, `vae.factor` is H / h. Raises ValueError for a picture that changed
    or gives no finite latent, OSError for a cache folder that cannot be written.
    """

    def __init__(self, vae: Any, kind: str = "memory", folder: Path | None = None, masks: bool = False, draw: Draw = Draw()):
        self.vae, self.kind, self.folder, self.masks, self.draw = vae, kind, folder, masks, draw
        self._held: dict[str, Entry] = {}
        self._whole: dict[tuple[int, int], Tensor] = {}
        self._read = sources.Reader()

    def get(self, item: Item, view: View, hole: Tensor | None = None) -> Entry:
        """The entry of a picture's view, from the cache if it is there and whole; with a `hole` (H, W) that of what it does not hide."""
        if self.kind == "off":
            return self._encode(item, view, hole)
        key = self.key(item, view, hole)
        if self.kind == "disk":
            return self._load(key, view) or self._store(key, self._encode(item, view, hole))
        if key not in self._held:
            self._held[key] = self.draw.settled(self._encode(item, view, hole), item.digest, WHOLE if hole is None else SEEN)
        return self._held[key]

    def all_hidden(self, bucket: tuple[int, int]) -> Tensor:
        """(5, h, w) of any picture of that size (W, H) that is hidden as a whole."""
        if bucket not in self._whole:
            self._whole[bucket] = all_hidden(self.vae, bucket).cpu()
        return self._whole[bucket]

    def key(self, item: Item, view: View, hole: Tensor | None = None) -> str:
        """Names an entry by all that it is a function of: content, masks, view, VAE. Seeds are not among them."""
        made_of = [item.digest, item.mask_digest if self.masks else "", self.masks, asdict(view), self.vae.cache_key, 1]
        made_of += [] if hole is None else [hashlib.sha256(hole.numpy().tobytes()).hexdigest()]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def _encode(self, item: Item, view: View, hole: Tensor | None = None) -> Entry:
        mask_data = self._read.mask(item) if self.masks else None
        image, mask = pictures.load(item, self._read.picture(item), self.masks, mask_data)
        image, mask = pictures.fit(image, mask, view)
        pixels = pictures.to_pixels(image)[None]
        with torch.no_grad():
            mean, std = (x[0].detach().float().cpu().contiguous() for x in self.vae.encode(pixels if hole is None else hidden(pixels, hole)))
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise ValueError(f"{item.path}: the VAE gives numbers that are not finite for this picture; set memory.precision to bf16 or fp32.")
        return Entry(mean, std, None if mask is None or hole is not None else pictures.to_latent_mask(mask, self.vae.factor))

    # ---- disk --------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _load(self, key: str, view: View) -> Entry | None:
        """The stored entry; None where there is none that can be read, or it is damaged: it is written anew, and that says what is wrong."""
        try:
            tensors = load_tensors(self._path(key).read_bytes())
        except (OSError, SafetensorError):
            return None
        mean, std, mask = (tensors.get(name) for name in ("mean", "std", "mask"))
        h, w = (side // self.vae.factor for side in reversed(view.bucket))
        whole = mean is not None and std is not None and mean.shape == std.shape and mean.shape[1:] == (h, w)
        return Entry(mean, std, mask) if whole else None

    def _store(self, key: str, entry: Entry) -> Entry:
        tensors = {"mean": entry.mean, "std": entry.std} | ({} if entry.mask is None else {"mask": entry.mask})
        path = self._path(key)
        beside = path.with_name(f".{path.name}.{os.getpid()}")  # several processes may write the same entry
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(save_tensors(tensors))
            os.replace(beside, path)
        except OSError as error:
            text = f"the latent cache {str(self.folder)!r} cannot be written ({error.strerror}); set data.cache_folder, or data.cache to memory."
            raise OSError(text) from error
        finally:
            with suppress(OSError):  # gone after the replace; never there in a folder that cannot be written
                beside.unlink()
        return entry


class TextCache:
    """States of captions under a frozen text encoder: `encode(captions) -> (B, L, D)`, least recently used captions forgotten beyond `limit` bytes.

    Each caption is encoded alone, so what is cached never changes a result. A shorter caption in a batch is filled up with empty chunks,
    as the WebUI does it: chunks are encoded independently.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], limit: int = 512 * 2**20):
        self.encode, self.limit = encode, limit
        self.bytes = 0
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States (B, L, D), L that of the longest caption."""
        rows = [self._states(caption) for caption in captions]
        longest = max(len(row) for row in rows)
        return torch.stack([self._filled(row, longest) for row in rows])

    def clear(self) -> None:
        """Forgets everything, for when the text encoder's weights have changed."""
        self._held.clear()
        self.bytes = 0

    def _states(self, caption: str) -> Tensor:
        """(L, D) of one caption."""
        if caption not in self._held:
            with torch.no_grad():
                states = self.encode([caption])[0].detach()
            self._held[caption] = states
            self.bytes += states.numel() * states.element_size()
        self._held.move_to_end(caption)
        states = self._held[caption]
        while self.bytes > self.limit and self._held:
            _, old = self._held.popitem(last=False)
            self.bytes -= old.numel() * old.element_size()
        return states

    def _filled(self, row: Tensor, length: int) -> Tensor:
        if len(row) == length:
            return row
        empty = self._states("")  # one chunk
        return torch.cat([row, empty.repeat((length - len(row)) // len(empty), 1)])  # (L, D)
