"""Saved files on a model for the time of some pictures or numbers: LoRAs in the weights, embeddings as words, hypernetworks as hooks, checkpoints in the place of the weights.

Nothing is copied to where a host looks for files, and the model is bit for bit as it was afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..host import Components
from ..methods import METHODS, settings
from ..methods.base import Target, parts, weight_shapes
from ..methods.blocks import block_rates, rate_of
from ..methods.embedding_file import PICTURES, read_embedding
from ..methods.lora_file import LoraFile
from ..sd.files import is_safetensors, place_of, read_header, read_tensors
from ..sd.kinds import describe, kind_of
from ..tools.deltas import Parts, change
from ..tools.lora_names import read_any
from ..tools.merge_lora import check_lora

KINDS = ("lora", "embedding", "hypernetwork")
READ = 12  # LoRAs whose factors are kept: a grid comes back to each in every row


@dataclass(frozen=True)
class Use:
    """A saved file and how strong it is. `blocks`: weights of a LoRA's blocks, as `methods.blocks.block_rates` reads them; `word`: an embedding's, empty for the file's name."""

    path: Path
    weight: float = 1.0
    blocks: str = ""
    word: str = ""


def kind_of_file(path: Path) -> str:
    """One of KINDS. Raises ValueError, one sentence, for a file that is none of them or not there, OSError."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not there any more ({path.parent}); choose another file.")
    return _kind(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _kind(path: Path, written: int) -> str:
    if path.suffix.lower() in PICTURES:
        return "embedding"
    shapes = read_header(path)[0] if is_safetensors(path) else {key: tuple(tensor.shape) for key, tensor in read_tensors(path)[0].items()}
    kind = kind_of(shapes)
    if kind not in KINDS:
        raise ValueError(f"{path.name} is {describe(kind)}; choose a LoRA, an embedding or a hypernetwork.")
    return kind


@contextmanager
def applied(sd: Components, uses: Iterable[Use]) -> Iterator[None]:
    """The model with these files on it. Raises ValueError, one sentence, for a file that does not fit the model, before anything is changed by it."""
    with ExitStack() as stack:
        loras = []
        for use in uses:
            kind = kind_of_file(use.path)
            if kind == "lora":
                file = _lora(use.path, use.path.stat().st_mtime_ns)
                loras.append((file, use))
                words = file.embeddings
            elif kind == "embedding":
                words = {use.word or use.path.stem: read_embedding(use.path, sd.text.embedding.weight.shape[1]).vectors}
            else:
                stack.enter_context(_hypernetwork(sd, use))
                words = {}
            for word, vectors in words.items():
                stack.enter_context(sd.text.splice(word, vectors.to(sd.device, torch.float32)))
        stack.enter_context(_in_weights(sd, loras))
        yield


@contextmanager
def replaced(sd: Components, path: Path) -> Iterator[None]:
    """The model with the UNet and the text encoder of a checkpoint of its kind; its VAE stays, which no run trains.

    Raises ValueError, one sentence, for a file with other tensors, before anything is changed; OSError.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is not there any more ({path.parent}); choose another file.")
    there = {(part, name.replace(".wrapped.", ".")): p for part, root in parts(sd).items() for name, p in root.named_parameters()}  # the WebUI wraps the token embedding
    found = {place: tensor for key, tensor in read_tensors(path)[0].items() if (place := place_of(key)) in there}
    if odd := [name for (part, name), p in there.items() if (part, name) not in found or found[part, name].shape != p.shape]:
        raise ValueError(f"{path.name} has no {odd[0]} of this model's shape; choose a checkpoint of the model that is loaded.")
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for place, p in there.items():
                value = found.pop(place).to(p.device, p.dtype)
                if not torch.equal(value, p):
                    before.append((p, p.detach().to("cpu", copy=True)))
                    p.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for p, kept in before:
                p.copy_(kept)


def forget() -> None:
    """Lets go of the factors that were kept in memory."""
    _lora.cache_clear()


@lru_cache(maxsize=READ)
def _lora(path: Path, written: int) -> LoraFile:
    return read_any(path)


@contextmanager
def _hypernetwork(sd: Components, use: Use) -> Iterator[None]:
    method: Any = METHODS["hypernetwork"](settings({"method": "hypernetwork", "hypernetwork.start": str(use.path)}))
    method.strength = use.weight
    with method.attached(sd):
        method.train(False)
        yield


@contextmanager
def _in_weights(sd: Components, loras: list[tuple[LoraFile, Use]]) -> Iterator[None]:
    """W + Σ weight * change, of the weight's precision, as a host makes it; each change is that of the frozen weight."""
    shapes = weight_shapes(sd)
    changes: dict[Target, list[tuple[Parts, float]]] = {}
    for file, use in loras:
        check_lora(file, shapes)
        rates = block_rates(use.blocks)
        for module, factors in file.modules.items():
            if strength := use.weight * rate_of(rates, *module):
                changes.setdefault(module, []).append((factors, strength))
    with weights_put_back(sd, changes) as weights:
        with torch.no_grad():
            for module, weight in weights.items():
                weight.copy_(_changed(weight.float(), module, changes[module]).to(weight.dtype))
        yield


def _changed(weight: Tensor, module: Target, changes: list[tuple[Parts, float]]) -> Tensor:
    whole = weight
    for factors, strength in changes:
        whole = whole + strength * change(module, {name: tensor.to(weight.device) for name, tensor in factors.items()}, weight)
    return whole


@contextmanager
def weights_put_back(sd: Components, modules: Iterable[Target]) -> Iterator[dict[Target, Tensor]]:
    """The weights of modules, to be changed in place; what they were lies in RAM and is put back."""
    roots = parts(sd)
    weights = {(part, path): roots[part].get_submodule(path).weight for part, path in modules}
    before = {module: weight.detach().to("cpu", copy=True) for module, weight in weights.items()}
    try:
        yield weights
    finally:
        with torch.no_grad():
            for module, kept in before.items():
                weights[module].copy_(kept)
