"""`tool convert FILE -o FILE`: LoRAs among kohya's, the original, diffusers' and peft's names; checkpoints to another precision, pruned, to .safetensors."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from ..sd.files import UNET
from ..sd.kinds import describe
from .arguments import DTYPE, FORCE, OUT, Argument, dtype_of
from .command import Made, Tool
from .lora_names import FORMS, peft_files, read_any, write_any
from .provenance import kept_metadata
from .weights import EMA, MODELS, Planned, Told, Weights, is_part_of_model, keep_yaml, kept, stored_as, write_weights

_NOT = {"embedding": "the Train tab writes embeddings in every form", "hypernetwork": "the WebUI reads hypernetworks as .pt alone"}


def run(args: Namespace, told: Told) -> Made:
    """Writes the file in its new form."""
    weights = None if args.file.is_dir() else Weights(args.file)
    if weights is None or weights.kind == "lora":
        return _lora(args)
    if args.names:
        raise ValueError(f"Names are for LoRAs, and {args.file.name} is {describe(weights.kind)}.")
    if weights.kind in ("empty", "unknown", *_NOT):
        reason = _NOT.get(weights.kind, "nothing is known of its form")
        raise ValueError(f"{args.file.name} is {describe(weights.kind)}, which this tool does not convert: {reason}.")
    if (args.prune or args.ema) and weights.kind not in MODELS:
        raise ValueError(f"Pruning and averaged weights are for checkpoints, and {args.file.name} is {describe(weights.kind)}.")
    dropped = convert(weights, args.out, dtype_of(args), args.prune, args.ema or ("drop" if args.prune else "keep"), told)
    return Made((args.out,), said=(f"{describe(weights.kind)}" + (f", {dropped} tensors left out" if dropped else ""),))


def _lora(args: Namespace) -> Made:
    if args.prune or args.ema:
        raise ValueError(f"{args.file.name} is a LoRA: pruning and averaged weights are for checkpoints, not for a LoRA.")
    file = read_any(args.file)
    own = next(t.dtype for parts in file.modules.values() for name, t in parts.items() if name != "alpha")
    written = write_any(args.out, file, args.names or FORMS[0], kept_metadata(file.metadata, args.out), dtype_of(args) or own)
    return Made(tuple(written), said=(str(file),))


def _outputs(args: Namespace) -> tuple[tuple[Path, str], ...]:
    """Of peft's form the files in the folder."""
    return tuple((path, "") for path in peft_files(args.out)) if args.names == "peft" else ((args.out, ".safetensors"),)


def convert(weights: Weights, path: Path, dtype: torch.dtype | None = None, prune: bool = False, ema: str = "keep", told: Told | None = None) -> int:
    """Writes a file's tensors as .safetensors, those of whole numbers as they are; returns how many are left out.

    `prune` keeps what draws; `ema`: "keep" both, "drop" the averaged weights, or "use" them in the weights' place.
    Raises ValueError where there are none to use.
    """
    averaged = {key: own for key in weights.shapes if key.startswith(UNET) and (own := _ema_of(key)) in weights.shapes}
    if ema == "use" and not averaged:
        raise ValueError(f"{weights.path.name} has no averaged weights ({EMA}...), so they cannot be used; keep or drop them instead.")
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


TOOL = Tool(
    "convert", "Convert a file", "Changes a LoRA's names for other programs, or a checkpoint's precision and container.",
    "cat.safetensors --names diffusers -o d.safetensors\nmodel.ckpt --prune --dtype fp16 -o model.safetensors",
    (
        Argument("file", "file", "File", "A LoRA in any spelling (a folder of peft too), or a checkpoint, VAE or ControlNet (.safetensors, .ckpt, .pt).",
                 required=True, of=("lora", "checkpoint", "control", "vae")),
        Argument("names", "choice", "Names", "A LoRA's names: kohya (the WebUI's), ldm (the original layers'), diffusers, peft (a folder).",
                 choices=FORMS, empty="kohya", only="lora"),
        Argument("prune", "flag", "Prune", "Keeps a checkpoint's UNet, VAE and text encoder alone.", only="checkpoint"),
        Argument("ema", "choice", "Averaged weights", "A checkpoint's averaged weights (EMA): keep both, drop them, or use them as the weights.",
                 choices=("keep", "drop", "use"), empty="as they are; without them where it is pruned", only="checkpoint"),
        replace(OUT, help="The .safetensors file to write; of peft's names the folder."), FORCE, replace(DTYPE, more=False),
    ),
    run, lambda args: "-".join(filter(None, [args.file.stem, args.names, "pruned" * args.prune, args.ema and f"ema-{args.ema}", args.dtype])), outputs=_outputs,
)  # fmt: skip
main = TOOL.main
