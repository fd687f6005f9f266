"""`tool scale`: how strong what was learned is: W0 + α ΔW, of two checkpoints or of a LoRA."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from ..methods.factors import Parts, family
from ..methods.lora_file import LoraFile, write_factors
from .arguments import DTYPE, FORCE, OUT, Argument, dtype_of
from .command import Made, Tool
from .lora_names import flat_names, read_any, with_modules
from .merge_checkpoints import Recipe, merge
from .provenance import kept_metadata
from .weights import Told


def run(args: Namespace, told: Told) -> Made:
    """Writes the LoRA, or the base with the tuned checkpoint's difference, at another strength."""
    if args.tuned is None:
        scale_lora(read_any(args.file), args.alpha, args.out, dtype_of(args))
    else:
        merge(Recipe(args.file, args.tuned, None, args.alpha, dtype_of(args)), args.out, told)
    return Made((args.out,))


def scale_lora(file: LoraFile, alpha: float, path: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the LoRA with α times its change; its factors stay as they are wherever its own alpha can say it. Raises ValueError for a DoRA."""
    if any("dora_scale" in parts for parts in file.modules.values()):
        raise ValueError(f"{file.path.name} is a DoRA, which has no strength of its own; merge it into a checkpoint and scale that.")
    found = {module: _scaled(parts, alpha) for module, parts in file.modules.items()}
    own = next((t.dtype for parts in found.values() for name, t in parts.items() if name != "alpha"), torch.float16)
    metadata = kept_metadata(file.metadata, path, [f"{file.path.stem} x {alpha:g}"])
    write_factors(path, flat_names(with_modules(file, found)), metadata, dtype or own)


def _scaled(parts: Parts, alpha: float) -> dict[str, Tensor]:
    whole = "diff" if family(parts) == "full" else "lokr_w1" if {"lokr_w1", "lokr_w2"} <= parts.keys() else ""
    if whole:  # a form whose alpha no reader looks at
        return {**parts, whole: (parts[whole].float() * alpha).to(parts[whole].dtype)}
    rank = next(len(parts[name]) for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts)
    return {**parts, "alpha": torch.tensor(float(parts.get("alpha", rank)) * alpha)}


TOOL = Tool(
    "scale", "Make it weaker or stronger", "Changes how strong a LoRA is, or what a tuned checkpoint has learned beyond its base.",
    "base.safetensors tuned.safetensors --alpha 0.7 -o weaker.safetensors\ncat.safetensors --alpha 0.7 -o c.safetensors",
    (
        Argument("file", "file", "LoRA or base checkpoint", "A LoRA; or the base that the tuned checkpoint comes from.", required=True, of=("lora", "checkpoint")),
        Argument("tuned", "file", "Tuned checkpoint", "The checkpoint that came out of the training; of a LoRA nothing.", of=("checkpoint",), only="checkpoint"),
        Argument("alpha", "number", "Strength", "0: nothing of it, 1: as it is, above 1: more.", required=True), OUT, FORCE, DTYPE,
    ),
    run, lambda args: f"{(args.tuned or args.file).stem}-x{args.alpha:g}",
)  # fmt: skip
main = TOOL.main
