"""What a tool's file says about itself: from which files and how it was made, and what those said of their training.

Key names: kohya-ss sd-scripts (`ss_*`; library/sai_model_spec.py) and https://github.com/Stability-AI/ModelSpec 1.0.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..config import METADATA_KEY
from ..methods.lora_file import LoraFile, Module

_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")  # of the file that was; the writer computes new ones
_OF_NETWORK = ("ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_network_module", METADATA_KEY)


def kept_metadata(metadata: Mapping[str, str], path: Path, sources: Sequence[str] = (), network: bool = True) -> dict[str, str]:
    """A single input's metadata for a file made of it; without `network` leave out what it says of ranks, which are others now."""
    kept = {key: value for key, value in metadata.items() if key not in (*_HASHES, "format") and (network or key not in _OF_NETWORK)}
    spec = _spec(path, sources)
    return {**spec, **kept} if not sources and network else {**kept, **spec}  # the same thing in another form keeps its title and date


def lora_kind(modules: Mapping[Module, Mapping[str, torch.Tensor]]) -> dict[str, str]:
    """kohya's minimum about a plain LoRA for SD1.5 whose alpha is its rank: `Dynamic` where ranks differ, as its resize_lora.py writes it."""
    ranks = {len(parts["lora_down.weight"]) for parts in modules.values()}
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    convs = any(parts["lora_down.weight"].shape[2:] == (3, 3) for parts in modules.values())
    return {
        "ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_network_dim": dim, "ss_network_alpha": dim,
        **({"ss_network_args": json.dumps({"conv_dim": dim, "conv_alpha": dim})} if convs else {}),
    }  # fmt: skip


def new_lora(path: Path, sources: Sequence[str]) -> dict[str, str]:
    """The metadata of a LoRA that no single file was the origin of."""
    return {
        "ss_output_name": path.stem, "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers", "modelspec.prediction_type": "epsilon", **_spec(path, sources),
    }  # fmt: skip


def joined(path: Path, files: list[LoraFile], sources: list[str]) -> dict[str, str]:
    """The metadata of several LoRAs in one: where they come from, and the tags and folders of all."""
    together = {key: json.dumps(value, ensure_ascii=False) for key in ("ss_tag_frequency", "ss_dataset_dirs") if (value := _union(files, key))}
    common = ("ss_clip_skip", "ss_resolution", "modelspec.resolution", "modelspec.prediction_type")
    shared = {key: value for key, value in files[0].metadata.items() if key in common}
    same = {key: value for key, value in shared.items() if all(file.metadata.get(key) == value for file in files)}
    words = [word for file in files if (word := file.metadata.get("modelspec.trigger_phrase"))]
    return {**new_lora(path, sources), **same, **together, **({"modelspec.trigger_phrase": ", ".join(dict.fromkeys(words))} if words else {})}


def merged_checkpoint(path: Path, metadata: Mapping[str, str], sources: Sequence[str]) -> dict[str, str]:
    """The metadata of a checkpoint made of others: the first one's, and where it comes from."""
    return {"modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "stable-diffusion-v1", **kept_metadata(metadata, path, sources)}


def _spec(path: Path, sources: Sequence[str]) -> dict[str, str]:
    merged = ", ".join(sources)
    now = datetime.now(timezone.utc).replace(microsecond=0).isoformat()
    return {"modelspec.title": path.stem, "modelspec.date": now, **({"modelspec.merged_from": merged} if merged else {})}


def _union(files: list[LoraFile], key: str) -> dict[str, Any]:
    """The tables of all files; folders of one name in two files get the file's name before them."""
    found: dict[str, Any] = {}
    for file in files:
        for name, value in table(file.metadata, key).items():
            found[f"{file.path.stem}/{name}" if name in found else name] = value
    return found


def table(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """A value that is JSON; {} where it is none."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
