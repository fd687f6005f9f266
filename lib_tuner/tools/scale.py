"""`tool scale`: how strong what was learned is: W0 + α ΔW, of two checkpoints or of a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..methods.lora_file import LoraFile, write_factors
from . import command
from .command import Parser
from .deltas import Parts, family
from .lora_names import flat_names, read_any, with_modules
from .merge_checkpoints import Recipe, merge
from .provenance import kept_metadata


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file named on the command line; returns the exit code. Raises ValueError or OSError, each one sentence."""
    parser = Parser(
        "scale", "Make what was learned weaker or stronger: a LoRA, or the difference of a tuned checkpoint from its base.",
        "base.safetensors tuned.safetensors --alpha 0.7 -o weaker.safetensors\n  python3 -m lib_tuner tool scale cat.safetensors --alpha 0.7 -o c.safetensors",
    )  # fmt: skip
    parser.add_argument("files", nargs="+", type=Path, help="a LoRA; or the base checkpoint and the tuned one")
    parser.add_argument("--alpha", type=command.number, required=True, help="0 nothing of it, 1 as it is, above 1 more")
    command.add_output(parser)
    command.add_dtype(parser)
    args = parser.parse_args(argv)
    if len(args.files) > 2:
        parser.error("it takes a LoRA, or a base and a tuned checkpoint, and no more files")
    path = command.output(args, args.files)
    if len(args.files) == 1:
        scale_lora(read_any(args.files[0]), args.alpha, path, command.dtype_of(args))
    else:
        base, tuned = args.files
        merge(Recipe(base, tuned, None, args.alpha, command.dtype_of(args)), path, command.Progress("writing tensor"))
    return command.say([command.size_of(path)])


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
