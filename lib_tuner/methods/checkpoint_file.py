"""A whole checkpoint with trained weights in the place of its own: every key of the file it came from, and the yaml where the WebUI needs one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..disk import atomic
from ..sd.files import place_of, read_checkpoint, read_header, read_tensors, write_tensors
from ..sd.yaml import yaml_of

Place = tuple[str, str]  # (part, name of the tensor in it): ("unet", "out.2.weight")
_HEADS = ("tuner_unet_heads", "tuner_text_heads")  # of the metadata: no shape shows them


def write_whole(path: Path, source: Path, trained: Mapping[Place, Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> Path:
    """Writes `source` with the `trained` tensors as a .safetensors file, its three networks in `dtype`, under the source's own key names; atomically.

    EMA copies of the source's weights are left out, since they are of other weights now; noise schedules and position ids stay as they are.
    Raises ValueError or OSError, one sentence.
    """
    if not source.is_file():
        raise OSError(f"{path.name} was not saved: {source} is gone, from which the parts that were not trained are taken; put it back and resume the run.")
    tensors, own = read_tensors(source)
    found: dict[str, Tensor] = {}
    waiting = set(trained)
    for key, tensor in tensors.items():
        place = place_of(key)
        if place is not None:
            waiting.discard(place)
            found[key] = _stored(path, key, trained[place], dtype) if place in trained else tensor.to(dtype)
        elif not key.startswith("model_ema."):
            found[key] = tensor
    if waiting:
        raise ValueError(f"{path.name} was not saved: {source.name} has no {min(waiting)[1]} any more; it is not the file that was trained.")
    return write_tensors(path, found, {**{key: own[key] for key in _HEADS if key in own}, **metadata})


def _stored(path: Path, key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype)
    if not tensor.isfinite().all():
        raise ValueError(f"{path.name} was not saved: NaN or numbers too large for {str(dtype).partition('.')[2]} in {key}; use an earlier save.")
    return tensor


def write_yaml(path: Path, source: Path, prediction: str) -> Path | None:
    """Writes the yaml that the WebUI needs beside the checkpoint `path`, where it needs one: the source's own, or one that says v-prediction."""
    theirs, target = source.with_suffix(".yaml"), path.with_suffix(".yaml")
    if not theirs.is_file() and prediction != "v":
        return None
    checkpoint = read_checkpoint(source)
    same = theirs.is_file() and checkpoint.prediction == prediction
    text = theirs.read_text(encoding="utf-8") if same else yaml_of(checkpoint, prediction=prediction)
    with atomic(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def is_whole(path: Path) -> bool:
    """Whether a saved file is a whole checkpoint, not a LoRA or an embedding; one that cannot be read is none."""
    if path.suffix != ".safetensors":
        return False
    try:
        shapes, _ = read_header(path)
    except (OSError, ValueError):
        return False
    return any(key.startswith("model.diffusion_model.") for key in shapes)


def count_places(path: Path, shapes: Mapping[Place, tuple[int, ...]]) -> tuple[int, int]:
    """(tensors that a model of these shapes takes, all tensors of its three networks) of a checkpoint, read back from the disk."""
    found = {place: shape for key, shape in read_header(path)[0].items() if (place := place_of(key))}
    return sum(shapes.get(place) == shape for place, shape in found.items()), len(found)
