"""`tool convert FILE -o FILE`: LoRAs among kohya's, the original, diffusers' and peft's names; checkpoints to another precision, pruned, to .safetensors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ..sd.files import UNET
from ..sd.kinds import describe
from . import command
from .command import Parser
from .lora_names import FORMS, peft_files, read_any, write_any
from .provenance import kept_metadata
from .weights import EMA, MODELS, Planned, Told, Weights, is_part_of_model, keep_yaml, kept, stored_as, write_weights

_NOT = {"embedding": "the Train tab writes embeddings in every form", "hypernetwork": "the WebUI reads hypernetworks as .pt alone"}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file named on the command line; returns the exit code. Raises ValueError or OSError, each one sentence."""
    parser = Parser(
        "convert", "Convert a LoRA's names, or a checkpoint's precision and container.",
        "cat.safetensors --names diffusers -o d.safetensors\n  python3 -m lib_tuner tool convert model.ckpt --prune --dtype fp16 -o model.safetensors",
    )  # fmt: skip
    parser.add_argument("file", type=Path, help="a LoRA in any spelling (a folder of peft too), or a checkpoint, VAE or ControlNet (.safetensors, .ckpt, .pt)")
    parser.add_argument("--names", choices=FORMS, help="a LoRA's names: kohya (the default), ldm (the original layers'), diffusers, peft (a folder)")
    parser.add_argument("--prune", action="store_true", help="a checkpoint's UNet, VAE and text encoder alone")
    parser.add_argument("--ema", choices=("keep", "drop", "use"), help="a checkpoint's averaged weights: keep both, drop them, or use them as the weights")
    command.add_output(parser, "the .safetensors file to write; of --names peft the folder")
    command.add_dtype(parser)
    args = parser.parse_args(argv)
    weights = None if args.file.is_dir() else Weights(args.file)
    if weights is None or weights.kind == "lora":
        return _lora(args, parser)
    if args.names:
        parser.error(f"--names is for LoRAs, and {args.file.name} is {describe(weights.kind)}")
    if weights.kind in ("empty", "unknown", *_NOT):
        reason = _NOT.get(weights.kind, "nothing is known of its form")
        raise ValueError(f"{args.file.name} is {describe(weights.kind)}, which this tool does not convert: {reason}.")
    if (args.prune or args.ema) and weights.kind not in MODELS:
        parser.error(f"--prune and --ema are for checkpoints, and {args.file.name} is {describe(weights.kind)}")
    path = command.output(args, [args.file])
    dropped = convert(weights, path, command.dtype_of(args), args.prune, args.ema or ("drop" if args.prune else "keep"), command.Progress("writing tensor"))
    return command.say([f"{command.size_of(path)}, {describe(weights.kind)}" + (f", {dropped} tensors left out" if dropped else "")])


def _lora(args: argparse.Namespace, parser: Parser) -> int:
    if args.prune or args.ema:
        parser.error("--prune and --ema are for checkpoints, not for a LoRA")
    form = args.names or "kohya"
    inputs = [args.file, *(args.file.rglob("adapter_*") if args.file.is_dir() else ())]
    for path in peft_files(args.out) if form == "peft" else (args.out,):
        command.output(args, inputs, path.suffix if form == "peft" else ".safetensors", path)
    file = read_any(args.file)
    own = next(t.dtype for parts in file.modules.values() for name, t in parts.items() if name != "alpha")
    written = write_any(args.out, file, form, kept_metadata(file.metadata, args.out), command.dtype_of(args) or own)
    return command.say([*map(command.size_of, written), str(file)])


def convert(weights: Weights, path: Path, dtype: torch.dtype | None = None, prune: bool = False, ema: str = "keep", told: Told | None = None) -> int:
    """Writes a file's tensors as .safetensors, those of whole numbers as they are; returns how many are left out.

    `prune` keeps what draws; `ema`: "keep" both, "drop" the averaged weights, or "use" them in the weights' place.
    Raises ValueError where there are none to use.
    """
    averaged = {key: own for key in weights.shapes if key.startswith(UNET) and (own := _ema_of(key)) in weights.shapes}
    if ema == "use" and not averaged:
        raise ValueError(f"{weights.path.name} has no averaged weights ({EMA}...), so they cannot be used; leave --ema out.")
    plan: dict[str, Planned] = {}
    for key in weights.shapes:
        if key.startswith(EMA) and ema != "keep" or prune and not is_part_of_model(key):
            continue
        plan[key] = kept(weights, averaged[key] if ema == "use" and key in averaged else key, dtype)
        if ema == "use" and dtype is None:  # the averages are often in fp32 beside weights in fp16
            plan[key] = Planned(plan[key].shape, stored_as(weights.dtypes[key], None), plan[key].make)
    write_weights(path, plan, kept_metadata(weights.metadata, path), told)
    keep_yaml(weights.path, path)
    return len(weights.shapes) - len(plan)


def _ema_of(key: str) -> str:
    """ldm's LitEma keeps the average of `model.a.b` as `model_ema.ab` (ldm/modules/ema.py)."""
    return EMA + key.removeprefix("model.").replace(".", "")
