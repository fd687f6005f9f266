"""`tool extract BASE TUNED -o FILE`: what a tuned checkpoint learned, as a LoRA or LoCon (SVD of the difference of each layer)."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..methods.lora_file import Module, write_lora
from ..methods.low_rank import Keep
from ..sd.names import text_paths, unet_paths
from .arguments import DTYPE, FORCE, KEEP, OUT, PART, RANKS, Argument, Limits, dtype_of, keep_of
from .command import Made, Tool
from .join_loras import as_lora_of_change
from .merge_lora import model_of
from .provenance import lora_kind, new_lora
from .weights import Told, Weights, path_in


@dataclass(frozen=True)
class Plan:
    """Which layers get factors, and how large they are. `conv_rank` 0: convolutions, time projections and the outer layers get none."""

    keep: Keep = Keep(16)
    conv_rank: int = 0
    text: bool = True
    clamp: float = 1.0
    min_change: float = 0.0  # layers whose largest change is not above this count as unchanged

    def keep_of(self, module: Module) -> Keep | None:
        part, path = module
        if part == "text":
            return self.keep if self.text else None
        if ".transformer_blocks." in path or path.endswith(("proj_in", "proj_out")):
            return self.keep
        return replace(self.keep, rank=self.conv_rank) if self.conv_rank else None


@dataclass(frozen=True)
class Report:
    """What an extraction kept."""

    layers: int
    same: int  # layers that did not change
    kept: float  # part of the sum of squares of the chosen layers' change
    covered: float  # part that the chosen layers' change is of that of all weights (no biases) of UNet and text encoder

    def __str__(self) -> str:
        layers = f"{self.layers} layers ({self.same} unchanged ones left out)"
        return f"{layers}, which keep {self.kept:.2%} of their change; they hold {self.covered:.2%} of that of all weights"


def run(args: Namespace, told: Told) -> Made:
    """Writes the difference as a LoRA, and says how much of it that is."""
    plan = Plan(keep_of(args), args.conv_rank, not args.no_text, args.clamp, args.min_change)
    return Made((args.out,), said=(str(extract(args.base, args.tuned, args.out, plan, dtype_of(args), told)),))


def extract(base: Path, tuned: Path, path: Path, plan: Plan, dtype: torch.dtype = torch.float16, told: Told | None = None) -> Report:
    """Writes the difference of two checkpoints as a LoRA with kohya's keys, at alpha = rank. Raises ValueError where they differ in structure or not at all."""
    before, after = model_of(base), model_of(tuned)
    found: dict[Module, dict[str, Tensor]] = {}
    everything = chosen = kept = 0.0
    same = 0
    for module, change in _changes(before, after, told):
        square = float(torch.linalg.vector_norm(change)) ** 2
        everything += square
        keep = plan.keep_of(module) if module in _layers() else None
        if keep is None:
            continue
        if float(change.abs().max()) <= plan.min_change:
            same += 1
            continue
        found[module], part = as_lora_of_change(change, keep, plan.clamp)
        chosen += square
        kept += part * square
    if not found:
        raise ValueError(f"{tuned.name} does not differ from {base.name} in the chosen layers: there is nothing to extract.")
    about = {**new_lora(path, [f"{tuned.stem} - {base.stem}"]), **lora_kind(found), "ss_sd_model_name": base.name}
    about["ss_network_args"] = json.dumps({**json.loads(about.get("ss_network_args", "{}")), "extracted_from": tuned.name, "clamp": str(plan.clamp)})
    write_lora(path, found, about, dtype)
    return Report(len(found), same, kept / chosen, chosen / everything)


def _changes(before: Weights, after: Weights, told: Told | None) -> Iterator[tuple[Module, Tensor]]:
    """(module, change) of every weight in UNet and text encoder, one after another."""
    keys = {key: module for key in before.shapes if (module := path_in(key))}
    for number, (key, module) in enumerate(keys.items()):
        name = after.named(key)
        if name is None:
            raise ValueError(f"{after.path.name} lacks {key}, which {before.path.name} has: they are models of different structure.")
        if before.shapes[key] != after.shapes[name]:
            sizes = " and ".join("x".join(map(str, shape)) for shape in (before.shapes[key], after.shapes[name]))
            raise ValueError(f"{before.path.name} and {after.path.name} are models of different widths or kinds ({key} is {sizes}); take two of one kind.")
        change = after.get(name).float().sub_(before.get(key).float())
        if not torch.linalg.vector_norm(change).isfinite():
            raise ValueError(f"{key} holds NaN or infinite numbers in {before.path.name} or {after.path.name}; repair or replace that checkpoint.")
        yield module, change
        if told:
            told(number + 1, len(keys))


def _layers() -> frozenset[Module]:
    paths = (*unet_paths(), "input_blocks.10.0.skip_connection")
    return frozenset([*(("unet", path) for path in paths), *(("text", path) for path in text_paths())])


TOOL = Tool(
    "extract", "Extract a LoRA from a checkpoint", "Writes what a tuned checkpoint has learned beyond its base as a LoRA, with a rank for convolutions as a LoCon.",
    "base.safetensors tuned.safetensors -o learned.safetensors --rank 32 --conv-rank 16",
    (
        Argument("base", "file", "Base checkpoint", "The checkpoint that was trained on.", required=True, of=("checkpoint",)),
        Argument("tuned", "file", "Tuned checkpoint", "The checkpoint that came out.", required=True, of=("checkpoint",)),
        replace(KEEP[0], default=16),
        Argument("conv_rank", "number", "Rank of convolutions", "Largest rank of convolutions, time projections and outer layers.", 0, limits=RANKS, empty="none"),
        Argument("no_text", "flag", "Leave the text encoder out", "Takes the UNet's change alone."), *KEEP[1:],
        Argument("clamp", "number", "Clamp", "Clamps factors at this quantile of their numbers, as kohya's 0.99; 1: not at all.", 1.0, limits=PART, more=True),
        Argument("min_change", "number", "Smallest change", "Leaves layers out whose largest change is not above this.", 0.0, limits=Limits(float, 0), more=True),
        OUT, FORCE, replace(DTYPE, default="fp16"),
    ),
    run, lambda args: f"{args.tuned.stem}-lora", makes="lora", step="tensor",
)  # fmt: skip
main = TOOL.main
