"""`tool inspect FILE`: what a file is, how it was trained, and how strong it is in each block of the UNet."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..config import METADATA_KEY
from ..disk import absolute, json_values
from ..methods.embedding_file import PICTURES, read_embedding
from ..methods.factors import family
from ..methods.lora_file import LoraFile
from ..sd.files import TEXT, UNET, current_name
from ..sd.kinds import describe
from ..sd.names import BLOCKS26, block_name
from ..sd.pickles import read_pickle
from .arguments import FORCE, Argument
from .command import Made, Tool
from .deltas import delta, flat_factors
from .lora_names import read_any
from .picture import draw_blocks
from .provenance import table
from .resize import square_sum
from .weights import CODES, Told, Weights

FACTS = (  # what is told of a file beside its training, of which each kind has some
    "size", "tensors", "parameters", "precision", "trained by", "modules", "ranks", "alphas", "embeddings", "name", "vectors", "width", "vector norms", "step",
    "trained on", "sizes", "layer structure", "activation func", "is layer norm", "use dropout", "last layer dropout", "activate output", "sd checkpoint name",
    "hint channels", "input channels",
)  # fmt: skip
EMBEDDINGS = {  # by width; 0 stands for all others
    0: "a textual inversion embedding", 768: "a textual inversion embedding for Stable Diffusion 1.x", 1024: "a textual inversion embedding for Stable Diffusion 2",
}  # fmt: skip
TAGS = 24  # as many as the WebUI's card shows
_BLOCKS_OF = ("sd1", "sd1-inpainting", "sd2", "pix2pix", "controlnet", "unet")  # kinds whose UNet has the 25 blocks
ABOUT = {  # what is told -> where it stands
    "title": "modelspec.title", "trigger words": "modelspec.trigger_phrase", "merged from": "modelspec.merged_from", "architecture": "modelspec.architecture",
    "base model": "ss_sd_model_name", "base version": "ss_base_model_version", "network": "ss_network_module", "network arguments": "ss_network_args",
    "steps": "ss_steps", "epochs": "ss_epoch", "pictures": "ss_num_train_images", "batch": "ss_total_batch_size", "resolution": "ss_resolution",
    "learning rate": "ss_learning_rate", "UNet learning rate": "ss_unet_lr", "text encoder learning rate": "ss_text_encoder_lr", "schedule": "ss_lr_scheduler",
    "optimizer": "ss_optimizer", "precision": "ss_mixed_precision", "clip skip": "ss_clip_skip", "seed": "ss_seed", "prediction": "modelspec.prediction_type",
}  # fmt: skip


def run(args: Namespace, told: Told) -> Made:
    """Says what the file is, and draws it where a picture is named."""
    report = inspect(args.file, told)
    if args.picture:
        if not report["blocks"]:
            raise ValueError(f"{args.file.name} is {report['is']}, which has no blocks to draw.")
        draw_blocks(args.picture, report["blocks"], f"{args.file.name}: {report['norms']}")
    files = (args.picture,) if args.picture else ()
    return Made(files, tuple([json.dumps(json_values(report), indent=2, ensure_ascii=False)] if args.json else lines(report)), report)


def inspect(path: Path, told: Told | None = None) -> dict[str, Any]:
    """What a file is: `kind` by `sd.kinds`, `is` in words, and what is known of its kind. Raises ValueError or OSError for what is no weights file."""
    report: dict[str, Any] = {"file": absolute(path).name, "kind": "", "is": "", "blocks": {}, "norms": ""}
    if path.is_dir():
        return {**report, "kind": "lora", **_lora(path, None, told)}
    report["bytes"] = path.stat().st_size if path.is_file() else 0
    if path.suffix.lower() in PICTURES:
        return {**report, "kind": "embedding", **_embedding(path)}
    weights = Weights(path)
    numbers = Counter(CODES.get(dtype, str(dtype)) for dtype in weights.dtypes.values())
    report |= {
        "kind": weights.kind, "is": describe(weights.kind), "tensors": len(weights.shapes), "parameters": sum(math.prod(s) for s in weights.shapes.values()),
        "precision": dict(numbers.most_common()), **_about(weights.metadata),
    }  # fmt: skip
    own: dict[str, Callable[[], dict[str, Any]]] = {
        "lora": lambda: _lora(path, weights, told), "embedding": lambda: _embedding(path), "hypernetwork": lambda: _hypernetwork(path, weights),
        "controlnet": lambda: _inputs(weights, "input_hint_block.0.weight", "hint channels"),
        "t2i-adapter": lambda: _inputs(weights, "conv_in.weight", "input channels"),
    }  # fmt: skip
    report |= own.get(weights.kind, dict)()
    if weights.kind in _BLOCKS_OF:
        report |= {"blocks": _weight_norms(weights, told), "norms": "norm of the weights of each block"}
    return report


# ---- training --------------------------------------------------------------------------------------------------------


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata says of the training, tags by how often they occur, and our own settings where it was the Tuner."""
    training = {name: value for name, key in ABOUT.items() if (value := metadata.get(key, "")) not in ("", "None", "{}")}
    if started := metadata.get("ss_training_started_at", ""):
        try:
            training["date"] = datetime.fromtimestamp(float(started), timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        except (ValueError, OverflowError, OSError):
            training["date"] = started
    tags: Counter[str] = Counter()
    for counts in table(metadata, "ss_tag_frequency").values():
        tags.update({tag.strip(): int(n) for tag, n in counts.items() if isinstance(n, (int, float))} if isinstance(counts, dict) else {})
    settings = table(metadata, METADATA_KEY)
    program = "the Tuner" if settings else "a program that writes kohya's metadata" if any(key.startswith("ss_") for key in metadata) else ""
    return {**({"trained by": program} if program else {}), "training": training, "tags": dict(tags.most_common()), "settings": settings}


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _lora(path: Path, weights: Weights | None, told: Told | None) -> dict[str, Any]:
    try:
        file = read_any(path)
    except ValueError as error:
        if weights is None:
            raise
        return {"note": str(error)}
    kinds = Counter(family(parts) for parts in file.modules.values())
    more = [name for name, part in (("DoRA", "dora_scale"), ("Tucker", "lora_mid.weight")) if any(part in parts for parts in file.modules.values())]
    convs = any(tensor.shape[2:] == (3, 3) for parts in file.modules.values() for tensor in parts.values())
    families = [("LoCon" if name == "LoRA" and convs else name) for name in kinds]
    return {
        "is": f"a LoRA for Stable Diffusion 1.5 ({', '.join([*families, *more])})", "modules": dict(Counter(part for part, _ in file.modules)),
        "ranks": dict(sorted(Counter(file.ranks.values()).items())), "alphas": dict(sorted(Counter(file.alphas.values()).items())),
        "embeddings": {name: len(vectors) for name, vectors in file.embeddings.items()}, "blocks": _change_norms(file, told),
        "norms": "norm of the change of each block" + (", lengths left aside" if "DoRA" in more else ""), "summary": str(file),
    }  # fmt: skip


def _change_norms(file: LoraFile, told: Told | None) -> dict[str, float]:
    squares = dict.fromkeys(BLOCKS26, 0.0)
    for number, (module, parts) in enumerate(file.modules.items()):
        plain = {name: tensor for name, tensor in parts.items() if name != "dora_scale"}
        square = square_sum(*flat_factors(module, plain)) if family(plain) == "LoRA" else float(delta(module, plain).double().square().sum())
        squares[block_name(module[1])] += square
        if told:
            told(number + 1, len(file.modules))
    return {name: math.sqrt(square) for name, square in squares.items()}


def _weight_norms(weights: Weights, told: Told | None) -> dict[str, float]:
    squares = dict.fromkeys(BLOCKS26, 0.0)
    for number, (key, dtype) in enumerate(weights.dtypes.items()):
        name = _block_of(key)
        if name and dtype.is_floating_point:
            squares[name] += float(torch.linalg.vector_norm(weights.get(key).float()).double() ** 2)
        if told:
            told(number + 1, len(weights.dtypes))
    return {name: math.sqrt(square) for name, square in squares.items()}


def _block_of(key: str) -> str:
    key = current_name(key)
    if key.startswith((TEXT, "cond_stage_model.")):
        return BLOCKS26[0]
    path = key.removeprefix(UNET).removeprefix("control_model.")
    if not path.startswith(("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.")):
        return ""
    return block_name(path)


def _embedding(path: Path) -> dict[str, Any]:
    try:
        found = read_embedding(path)
    except ValueError as error:
        if path.suffix.lower() in PICTURES:
            raise
        return {"note": str(error)}
    width = found.vectors.shape[1]
    norms = [round(float(n), 4) for n in found.vectors.norm(dim=1)]
    return {
        "is": EMBEDDINGS[width if width in EMBEDDINGS else 0], "name": found.name, "vectors": len(found.vectors), "width": width,
        "vector norms": norms, "step": found.step, "trained on": f"{found.model_name} {found.model_hash}".strip(),
    }  # fmt: skip


def _hypernetwork(path: Path, weights: Weights) -> dict[str, Any]:
    names = ("name", "step", "layer_structure", "activation_func", "is_layer_norm", "use_dropout", "last_layer_dropout", "activate_output",
             "sd_checkpoint_name")  # fmt: skip
    content = read_pickle(path) if not weights.metadata and path.suffix.lower() != ".safetensors" else {}
    content = content if isinstance(content, Mapping) else {}
    facts = {name.replace("_", " "): content[name] for name in names if isinstance(content.get(name), (str, int, list, bool, float))}
    return {"sizes": sorted({int(key.partition(".")[0]) for key in weights.shapes if key.partition(".")[0].isdigit()}), **facts}


def _inputs(weights: Weights, ending: str, name: str) -> dict[str, Any]:
    return next(({name: shape[1]} for key, shape in weights.shapes.items() if key.endswith(ending)), {})


# ---- words -----------------------------------------------------------------------------------------------------------


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people: the longest tables are cut, `--json` has all."""
    told = [f"{report['file']}: {report['is']}"]
    shown = {"summary": "layers", "note": "note"}
    skipped = ("file", "kind", "is", "blocks", "norms", "training", "tags", "settings", "modules", "ranks", "alphas", *shown)
    told += [f"  {name}: {report[key]}" for key, name in shown.items() if key in report]
    told += [f"  {key}: {_shown(value)}" for key, value in report.items() if key not in skipped and value not in (None, "", {}, [])]
    told += _rows("training", report.get("training", {}))
    if tags := report.get("tags"):
        more = f" and {len(tags) - TAGS} more" if len(tags) > TAGS else ""
        told.append("tags: " + ", ".join(f"{tag} ({n})" for tag, n in list(tags.items())[:TAGS]) + more)
    told += _rows("settings", report.get("settings", {}))
    if report["blocks"]:
        told.append(f"{report['norms']}:")
        told += [f"  {name:5}  {norm:10.4g}" for name, norm in report["blocks"].items()]
    return told


def _rows(title: str, values: Mapping[str, Any]) -> list[str]:
    return [f"{title}:", *(f"  {name}: {_shown(value)}" for name, value in values.items() if value != "")] if values else []


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} ({n})" for key, n in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


TOOL = Tool(
    "inspect", "Look into a file", "Says what a file is: its kind, ranks, training and tags, and how strong it is in each block of the UNet.",
    "cat.safetensors --picture blocks.png",
    (
        Argument("file", "file", "File", "A LoRA, embedding (pictures too), hypernetwork, checkpoint, ControlNet, T2I-Adapter, VAE ...", required=True),
        Argument("json", "flag", "Show all of it as JSON", "All that is known, as JSON for other programs.", more=True),
        Argument("picture", "picture", "Picture of the blocks", "Draws the norms of the blocks into this .png file.", empty="none", more=True),
        replace(FORCE, help="Replaces a picture that exists; an input is never replaced.", more=True),
    ),
    run, lambda args: f"{args.file.stem}-blocks.png", step="tensor", outputs=lambda args: ((args.picture, ".png"),) if args.picture else (),
)  # fmt: skip
main = TOOL.main
