"""`tool join-loras LORA[:WEIGHT] ... -o FILE`: several LoRAs as one, exact (their ranks side by side) or of a smaller rank (SVD).

`[[lora]]` tables of a `--recipe` say the same as the command line.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..methods.factors import Shape, shape_of
from ..methods.lora_file import LoraFile, Module, write_lora
from ..methods.low_rank import Keep, factors, svd, svd_of_product
from .arguments import DTYPE, FORCE, KEEP, LORAS, OUT, dtype_of, keep_of, loras_of
from .command import Made, Tool
from .deltas import flat_factors
from .lora_names import read_any
from .provenance import joined, lora_kind
from .recipe import Weighted
from .weights import Told


def run(args: Namespace, told: Told) -> Made:
    """Writes the LoRA that the others come to."""
    done = join(loras_of(args), args.out, keep_of(args), dtype_of(args), told)
    return Made((args.out,), said=(str(done),))


def join(loras: Sequence[Weighted], path: Path, keep: Keep = Keep(), dtype: torch.dtype = torch.float16, told: Told | None = None) -> LoraFile:
    """Writes a LoRA whose change is the weighted sum of the others'; exact but for rounding where `keep` keeps all. Returns what it holds.

    Raises ValueError where layers are of different sizes, and for DoRAs.
    """
    files = [read_any(lora.path) for lora in loras]
    words = words_of(files)
    modules = list(dict.fromkeys(module for file in files for module in file.modules))
    found = {}
    for number, module in enumerate(modules):
        both = [(file, lora.weight(module[0])) for file, lora in zip(files, loras) if module in file.modules]
        shapes = {shape_of(module, file.modules[module]): file for file, _ in both}
        if len({(shape[:2], shape[2:] or (1, 1)) for shape in shapes}) > 1:
            (a, first), (b, second) = list(shapes.items())[:2]
            sizes = " and ".join("x".join(map(str, shape)) for shape in (a, b))
            raise ValueError(f"{first.path.name} and {second.path.name} are for models of different widths: {module[1]} is a layer of {sizes}.")
        pairs = [factors_of(file, module, weight) for file, weight in both]
        shape = max(shapes, key=len)  # a 1x1 convolution rather than a Linear
        found[module] = as_lora(*(torch.cat(tensors, dim) for tensors, dim in zip(zip(*pairs), (1, 0))), shape, keep)
        if told:
            told(number + 1, len(modules))
    write_lora(path, found, {**joined(path, files, list(map(str, loras))), **lora_kind(found)}, dtype, words)
    return LoraFile(path, found, embeddings=words)


def words_of(files: Sequence[LoraFile]) -> dict[str, Tensor]:
    """The words that LoRAs of pivotal tuning have inside. Raises ValueError where two of them mean another by the same one."""
    words: dict[str, Tensor] = {}
    for file in files:
        for name, vectors in file.embeddings.items():
            if name in words and not torch.equal(words[name], vectors):
                raise ValueError(f"{file.path.name} has another word {name!r} inside than a file before it; join them without one of the two.")
            words[name] = vectors
    return words


def factors_of(file: LoraFile, module: Module, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """`flat_factors` of a module of a file, times a weight. Raises ValueError, naming the file."""
    try:
        up, down = flat_factors(module, file.modules[module])
    except ValueError as error:
        raise ValueError(f"{file.path.name} {error}.") from None
    return up * weight, down


def as_lora(up: Tensor, down: Tensor, shape: Shape, keep: Keep) -> dict[str, Tensor]:
    """The parts of a layer of change up (D, r) @ down (r, C k k), at alpha = rank; no more ranks than the layer's size allows."""
    for factor in (up, down):
        if not factor.isfinite().all():
            raise ValueError("A factor of the inputs is NaN or infinite; use earlier saves.")
    if keep != Keep() or up.shape[1] > min(up.shape[0], down.shape[1]):
        up, down = factors(svd_of_product(up, down), keep)
    return parts_of(up, down, shape)


def parts_of(up: Tensor, down: Tensor, shape: Shape) -> dict[str, Tensor]:
    """The parts in a file of up (D, r) and down (r, C k k) for a weight of this shape."""
    rank = len(down)
    kernel = shape[2:]
    up = up.reshape(*up.shape, *[1] * len(kernel))
    return {"lora_up.weight": up, "lora_down.weight": down.reshape(rank, *shape[1:]), "alpha": torch.tensor(float(rank))}


def as_lora_of_change(found: Tensor, keep: Keep, clamp: float = 1.0) -> tuple[dict[str, Tensor], float]:
    """The parts of the nearest layer of lower rank to a change, and the part of the sum of squares that it keeps."""
    matrix = found.flatten(1)
    up, down = factors(svd(matrix), keep, clamp)
    rest = (matrix - up @ down).square().sum() / matrix.square().sum()
    return parts_of(up, down, tuple(found.shape)), 1 - float(rest)


TOOL = Tool(
    "join-loras", "Join LoRAs", "Makes one LoRA of several: exactly, by joining their ranks, unless a rank, an energy or a ratio asks for fewer.",
    "cat.safetensors:0.8 style.safetensors:0.5 -o both.safetensors --rank 32", (*LORAS, *KEEP, OUT, FORCE, replace(DTYPE, default="fp16")),
    run, lambda args: "-".join(lora.path.stem for lora in args.loras), makes="lora", step="layer",
)  # fmt: skip
main = TOOL.main
