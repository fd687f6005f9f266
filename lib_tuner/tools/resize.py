"""`tool resize LORA -o FILE`: a LoRA of another rank; LoHa, LoKr and Tucker forms become plain LoRAs."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from ..methods.factors import shape_of
from ..methods.lora_file import LoraFile, write_factors
from ..methods.low_rank import Keep
from .arguments import DTYPE, FORCE, KEEP, OUT, Argument, dtype_of, keep_of
from .command import Made, Tool
from .join_loras import as_lora, factors_of
from .lora_names import flat_names, read_any, with_modules
from .provenance import kept_metadata, lora_kind
from .weights import Told


def run(args: Namespace, told: Told) -> Made:
    """Writes the LoRA at its new rank, and says how much of the change is kept."""
    before = read_any(args.lora)
    done, energy = resize(before, args.out, keep_of(args), dtype_of(args), told)
    return Made((args.out,), said=(f"{done}; before: {before}; {energy:.2%} of the change is kept (sum of squares)",))


def resize(file: LoraFile, path: Path, keep: Keep, dtype: torch.dtype = torch.float16, told: Told | None = None) -> tuple[LoraFile, float]:
    """Writes the nearest plain LoRA of the ranks that `keep` leaves; returns it and the part of the sum of squares kept. Raises ValueError for a DoRA."""
    found, before, after = {}, 0.0, 0.0
    for number, (module, parts) in enumerate(file.modules.items()):
        up, down = factors_of(file, module)
        found[module] = as_lora(up, down, shape_of(module, parts), keep)
        before += square_sum(up, down)
        after += square_sum(found[module]["lora_up.weight"].flatten(1), found[module]["lora_down.weight"].flatten(1))
        if told:
            told(number + 1, len(file.modules))
    made = with_modules(file, found)
    metadata = {**kept_metadata(file.metadata, path, network=False), **lora_kind(found)}
    write_factors(path, flat_names(made), metadata, dtype)
    return made, min(1.0, after / before) if before else 1.0


def square_sum(up: torch.Tensor, down: torch.Tensor) -> float:
    """‖up @ down‖², of small matrices alone: the sum of the entries of (upᵀ up) * (down downᵀ). NaN where a factor holds it."""
    up, down = up.double(), down.double()
    return float(((up.t() @ up) * (down @ down.t())).sum().clamp(min=0))  # not max(), for which NaN is less than 0


TOOL = Tool(
    "resize", "Resize a LoRA", "Brings a LoRA of any family to another rank: the nearest plain LoRA (SVD). Without a limit its change stays.",
    "cat.safetensors -o cat-8.safetensors --rank 8",
    (
        Argument("lora", "file", "LoRA", "The LoRA (.safetensors, .pt, or a folder of peft).", required=True, of=("lora",)),
        *KEEP, OUT, FORCE, replace(DTYPE, default="fp16"),
    ),
    run, lambda args: f"{args.lora.stem}-{args.rank}" if args.rank else f"{args.lora.stem}-resized", makes="lora", step="layer",
)  # fmt: skip
main = TOOL.main
