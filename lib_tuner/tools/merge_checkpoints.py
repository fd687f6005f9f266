"""`tool merge-checkpoints A B [C] -o FILE`: A + w (B - A), or A + w (B - C)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..sd.kinds import describe
from .arguments import DTYPE, FORCE, OUT, Argument, dtype_of
from .command import Made, Tool
from .provenance import merged_checkpoint
from .weights import MODELS, Planned, Told, Weights, drawing, is_part_of_model, keep_yaml, kept, stored_as, write_weights


@dataclass(frozen=True)
class Recipe:
    """a + weight * (b - c); without c: a + weight * (b - a)."""

    a: Path
    b: Path
    c: Path | None = None
    weight: float = 0.5
    dtype: torch.dtype | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.a, self.b, *([self.c] if self.c else []))

    def __str__(self) -> str:
        return f"{self.a.stem} + {self.weight:g} x ({self.b.stem} - {(self.c or self.a).stem})"


def run(args: Namespace, told: Told) -> Made:
    """Writes the merge."""
    recipe = Recipe(args.a, args.b, args.c, args.weight, dtype_of(args))
    left = merge(recipe, args.out, told)
    return Made((args.out,), said=(f"{recipe}" + (f"; {left} tensors that the others lack are those of {args.a.name}" if left else ""),))


def merge(recipe: Recipe, path: Path, told: Told | None = None) -> int:
    """Writes the merge; returns how many of the first file's tensors the others lack. Buffers and whole numbers are the first file's.

    An inpainting checkpoint as the first takes what the others have for the channels they have. Raises ValueError for models of different structure.
    """
    files = [Weights(each) for each in recipe.files]
    a, *others = files
    for file in files:
        if file.kind not in MODELS:
            raise ValueError(f"{file.path.name} is {describe(file.kind)}, not a checkpoint.")
    _check_kinds(a, others)
    plan, left = {}, 0
    for key in drawing(a):
        plan[key] = kept(a, key, recipe.dtype)
        names = [file.named(key) for file in others]
        if not a.dtypes[key].is_floating_point or not is_part_of_model(key):
            continue
        if None in names:
            left += 1
            continue
        _check_shapes(a, others, key, names)
        plan[key] = Planned(a.shapes[key], stored_as(a.dtypes[key], recipe.dtype), _merged(a, others, key, names, recipe.weight))
    if left == len(plan):
        raise ValueError(f"{a.path.name} has no tensor in common with {others[0].path.name}.")
    write_weights(path, plan, merged_checkpoint(path, a.metadata, [str(recipe)]), told)
    keep_yaml(a.path, path)
    return left


def _check_kinds(a: Weights, others: list[Weights]) -> None:
    for other in others:
        if other.kind != a.kind and (a.kind, other.kind) != ("sd1-inpainting", "sd1"):
            more = "; name the inpainting checkpoint first" if other.kind == "sd1-inpainting" else ""
            raise ValueError(f"{other.path.name} is {describe(other.kind)} and {a.path.name} {describe(a.kind)}: they cannot be merged{more}.")


def _check_shapes(a: Weights, others: list[Weights], key: str, names: list[str]) -> None:
    for other, name in zip(others, names):
        own, theirs = a.shapes[key], other.shapes[name]
        if own != theirs and not (key.endswith("input_blocks.0.0.weight") and own[0] == theirs[0] and own[1] == 9 and theirs[1] == 4):
            sizes = " and ".join("x".join(map(str, shape)) for shape in (own, theirs))
            raise ValueError(f"{a.path.name} and {other.path.name} are models of different widths ({key} is {sizes}): they cannot be merged.")


def _merged(a: Weights, others: list[Weights], key: str, names: list[str], weight: float) -> Callable[[], Tensor]:
    channels = min([a.shapes[key][1:2], *(file.shapes[name][1:2] for file, name in zip(others, names))], default=())
    part = (slice(None), slice(*channels)) if len(a.shapes[key]) == 4 else ...

    def make() -> Tensor:
        first = a.get(key).float()
        b = others[0].get(names[0]).float()[part]
        if len(others) == 1:
            first[part].mul_(1 - weight).add_(b, alpha=weight)  # so that at weight 1 it is exactly the other
        else:
            first[part].add_(b.sub_(others[1].get(names[1]).float()[part]), alpha=weight)
        return first

    return make


TOOL = Tool(
    "merge-checkpoints", "Merge checkpoints", "Mixes two checkpoints, A (1 - w) + B w; or with a third one adds what B has beyond it, A + w (B - C).",
    "a.safetensors b.safetensors --weight 0.3 -o ab.safetensors",
    (
        Argument("a", "file", "Checkpoint A", "The first checkpoint; what the others lack stays as it is here.", required=True, of=("checkpoint",)),
        Argument("b", "file", "Checkpoint B", "The second checkpoint.", required=True, of=("checkpoint",)),
        Argument("c", "file", "Checkpoint C", "What is taken away from the second; none: the two are mixed.", empty="none", of=("checkpoint",)),
        Argument("weight", "number", "Weight w", "How much comes from the second.", 0.5), OUT, FORCE, DTYPE,
    ),
    run, lambda args: f"{args.a.stem}-{args.b.stem}", makes="checkpoint",
)  # fmt: skip
main = TOOL.main
