"""`tool merge-lora CHECKPOINT LORA[:WEIGHT] ... -o FILE`: LoRAs of any family written into a checkpoint's UNet and text encoder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..methods.factors import Parts
from ..methods.lora_file import LoraFile, Module, check_fits
from ..sd.kinds import describe
from .arguments import DTYPE, FORCE, LORAS, OUT, Argument, dtype_of, loras_of
from .command import Made, Tool
from .deltas import change
from .lora_names import read_any
from .provenance import merged_checkpoint
from .recipe import Weighted
from .weights import Planned, Told, Weights, drawing, keep_yaml, kept, path_in, stored_as, write_weights

KINDS = ("sd1", "sd1-inpainting")


def run(args: Namespace, told: Told) -> Made:
    """Writes the checkpoint with the LoRAs in it."""
    loras = loras_of(args)
    changed, words = merge(args.checkpoint, loras, args.out, dtype_of(args), told)
    said = [f"{changed} layers changed by {', '.join(map(str, loras))}"]
    if words:
        said.append(f"A checkpoint has no place for words: keep {', '.join(words)} as embeddings, or go on using the LoRA they came in.")
    return Made((args.out,), said=tuple(said))


def merge(checkpoint: Path, loras: Sequence[Weighted], path: Path, dtype: torch.dtype | None = None, told: Told | None = None) -> tuple[int, list[str]]:
    """Writes `checkpoint` with the LoRAs in it: W + Σ weight * change, of W's own precision unless `dtype` says another.

    Returns how many layers change, and the words inside the LoRAs, for which a checkpoint has no place.
    A DoRA's change is that of the checkpoint's own weights, whatever other LoRAs add, as the WebUI has it.
    Raises ValueError for files that do not fit each other.
    """
    base = model_of(checkpoint)
    where = {module: key for key in base.shapes if (module := path_in(key))}
    files = [read_any(lora.path) for lora in loras]
    for file in files:
        check_lora(file, {module: base.shapes[key] for module, key in where.items()})
    plan = {key: kept(base, key, dtype) for key in drawing(base)}
    own: dict[Module, list[tuple[Parts, float]]] = {}
    for file, lora in zip(files, loras):
        for module, parts in file.modules.items():
            if lora.weight(module[0]):
                own.setdefault(module, []).append((parts, lora.weight(module[0])))
    for module, changes in own.items():
        key = where[module]
        plan[key] = Planned(base.shapes[key], stored_as(base.dtypes[key], dtype), _merged(base, key, module, changes))
    write_weights(path, plan, merged_checkpoint(path, base.metadata, [base.path.stem, *map(str, loras)]), told)
    keep_yaml(base.path, path)
    return len(own), sorted({word for file in files for word in file.embeddings})


def _merged(base: Weights, key: str, module: Module, changes: list[tuple[Parts, float]]) -> Callable[[], Tensor]:
    def make() -> Tensor:
        weight = base.get(key).float()
        return weight + sum(strength * change(module, parts, weight) for parts, strength in changes)

    return make


def model_of(path: Path) -> Weights:
    """A whole SD1.5 checkpoint. Raises ValueError for what is none."""
    weights = Weights(path)
    if weights.kind not in KINDS:
        raise ValueError(f"{path.name} is {describe(weights.kind)}, not a Stable Diffusion 1.5 checkpoint.")
    return weights


def check_lora(file: LoraFile, shapes: Mapping[Module, tuple[int, ...]]) -> None:
    """Raises ValueError where a LoRA of any family does not fit the weights' shapes."""
    first = ("unet", "input_blocks.0.0")
    shapes = dict(shapes)
    if first in file.modules and first in shapes and shapes[first][1] == 9:
        shapes[first] = (shapes[first][0], 4, *shapes[first][2:])  # an inpainting model's first convolution takes the change of its first four channels
    check_fits(file, shapes)


TOOL = Tool(
    "merge-lora", "Merge LoRAs into a checkpoint",
    "Writes LoRAs of any family (LoRA, LoCon, LoHa, LoKr, DoRA) into a new checkpoint, which then draws with them by itself.",
    "model.safetensors cat.safetensors:0.8 -o cat-model.safetensors",
    (
        Argument("checkpoint", "file", "Checkpoint", "An SD1.5 checkpoint, inpainting ones too (.safetensors or .ckpt).", required=True, of=("checkpoint",)),
        *LORAS, OUT, FORCE, DTYPE,
    ),
    run, lambda args: "-".join([args.checkpoint.stem, *(lora.path.stem for lora in args.loras)]), makes="checkpoint",
)  # fmt: skip
main = TOOL.main
