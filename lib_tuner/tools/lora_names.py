"""LoRA files in every spelling: kohya's and the original layer names (`methods.lora_file`), diffusers' two and peft's.

Spellings: diffusers' utils/state_dict_utils.py (`unet.….lora.down.weight`, `text_encoder.….lora_linear_layer.down.weight`, before that
`….processor.to_q_lora.down.weight`) and peft's save_and_load.py (`base_model.model.….lora_A.weight` with adapter_config.json beside it).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import absolute, atomic
from ..methods.factors import family
from ..methods.lora_file import LoraFile, Module, check_factors, read_lora, write_factors
from ..sd.files import read_tensors, write_tensors
from ..sd.names import diffusers_path, kohya_key, text_paths, unet_paths

FORMS = ("kohya", "ldm", "diffusers", "peft")
_PARTS = {
    "lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight", "lora.up.weight": "lora_up.weight", "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight", "lora_down.weight": "lora_down.weight", "lora_up.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale", "lora_magnitude_vector.weight": "dora_scale", "lora_magnitude_vector.default.weight": "dora_scale",
    "dora_scale": "dora_scale", "alpha": "alpha",
}  # fmt: skip
_ENDS = re.compile(r"^(.+?)\.(" + "|".join(re.escape(name) for name in sorted(_PARTS, key=len, reverse=True)) + ")$")
_OLD = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight$")
_CONFIG = "adapter_config.json"


def read_any(path: str | Path) -> LoraFile:
    """A LoRA in any spelling; a peft folder by its path, or by that of its file. Raises ValueError or OSError, each one sentence."""
    path = Path(path)
    if path.is_dir():
        return _read_folder(absolute(path))  # `.` has no name to speak of
    tensors, metadata = read_tensors(path)
    if not any(_ENDS.match(_modern(key)) for key in tensors) or any(key.startswith(("lora_unet_", "lora_te")) for key in tensors):
        file = read_lora(path)
    else:
        file = _read_other(path, tensors, metadata)
    for parts in file.modules.values():
        try:
            family(parts)
        except ValueError as error:
            raise ValueError(f"{path.name} {error}.") from None
    return file


def _read_folder(path: Path) -> LoraFile:
    """What peft wrote: one adapter, or one in `unet` and one in `text_encoder`."""
    found = [folder for folder in (path, path / "unet", path / "text_encoder") if (folder / "adapter_model.safetensors").is_file()]
    if not found:
        raise ValueError(f"{path.name} is a folder without adapter_model.safetensors, so no LoRA of peft; choose a LoRA's file.")
    files = [read_any(folder / "adapter_model.safetensors") for folder in found]
    return LoraFile(path, {module: parts for file in files for module, parts in file.modules.items()}, files[0].metadata)


def _read_other(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoraFile:
    modules: dict[Module, dict[str, Tensor]] = {}
    unknown = []
    config = _config(path, metadata)
    names: dict[Module, str] = {}
    for key, tensor in tensors.items():
        match = _ENDS.match(_modern(key))
        module = _module(match[1]) if match else None
        if module is None:
            unknown.append(key)
            continue
        modules.setdefault(module, {})[_PARTS[match[2]]] = tensor
        names[module] = match[1]
    if unknown:
        some = ", ".join(unknown[:2])
        raise ValueError(f"{path.name} has weights for layers that Stable Diffusion 1.5 does not have, or no LoRA has ({some}); it was made for another model.")
    for module, parts in modules.items():
        if not {"lora_down.weight", "lora_up.weight"} <= parts.keys():
            raise ValueError(f"{path.name} is incomplete: it lacks a factor of {names[module]}; download it again.")
        if "dora_scale" in parts:
            parts["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * (parts["lora_down.weight"].ndim - 1))  # a length per channel out
        alpha = _alpha(config, names[module], len(parts["lora_down.weight"]))
        if "alpha" not in parts and alpha is not None:
            parts["alpha"] = torch.tensor(alpha)
    check_factors(path, modules)
    return LoraFile(path, modules, dict(metadata))


def _modern(key: str) -> str:
    """Attention processors' names as those of the layers."""
    return _OLD.sub(lambda m: f".to_{'out.0' if m[1] == 'out' else m[1]}.lora.{m[2]}.weight", key)


def _module(name: str) -> Module | None:
    name = name.removeprefix("base_model.model.")
    for prefix in ("unet.", "text_encoder."):
        name = name.removeprefix(prefix)
    if name.startswith(("encoder.layers.", "text_model.")):
        path = "text_model." + name.removeprefix("text_model.")
        return ("text", path) if path in _text_modules() else None
    return _unet_modules().get(name)


@lru_cache(maxsize=1)
def _unet_modules() -> dict[str, Module]:
    return {diffusers_path(path): ("unet", path) for path in (*unet_paths(), "input_blocks.10.0.skip_connection")}


@lru_cache(maxsize=1)
def _text_modules() -> frozenset[str]:
    return frozenset(text_paths())


# ---- peft's settings -------------------------------------------------------------------------------------------------


def _config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """peft's settings: of adapter_config.json beside the file, or of the metadata that diffusers writes (there under `unet.` and `text_encoder.`)."""
    beside = path.with_name(_CONFIG)
    text = beside.read_text(encoding="utf-8") if path.name == "adapter_model.safetensors" and beside.is_file() else metadata.get("lora_adapter_metadata", "{}")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name}: peft's settings with it are no JSON ({error}); without them nobody knows its alpha.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path.name}: peft's settings with it are not a table; without them nobody knows its alpha.")
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path.name} is a {config['peft_type']} adapter of peft; only its LoRA is read.")
    return config


def _alpha(config: Mapping[str, Any], name: str, rank: int) -> float | None:
    """A module's alpha as kohya means it; None where nothing is said."""
    name = name.removeprefix("base_model.model.")
    for prefix in ("unet.", "text_encoder."):
        if name.startswith(prefix) and f"{prefix}lora_alpha" in config:
            config = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
            name = name.removeprefix(prefix)
    if "lora_alpha" not in config:
        return None
    pattern = config.get("alpha_pattern") or {}
    alpha = next((float(value) for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), float(config["lora_alpha"]))  # as peft matches it
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_any(path: Path, file: LoraFile, form: str, metadata: Mapping[str, str], dtype: torch.dtype) -> list[Path]:
    """Writes a LoRA in one of FORMS; returns the files. Raises ValueError where that form cannot say what the file has."""
    if form in ("kohya", "ldm"):
        return [write_factors(path, flat_names(file, form), metadata, dtype)]
    modules = {module: _scaled(file, module, parts) for module, parts in file.modules.items()}
    if file.embeddings:
        raise ValueError(f"{file.path.name} bundles embeddings ({', '.join(file.embeddings)}), which {form}'s form has no place for.")
    if form == "diffusers":
        tensors = {f"{_diffusers_name(module, part)}": tensor for module, parts in modules.items() for part, tensor in parts.items()}
        return [write_tensors(path, {key: _finite(path, key, t.to(dtype)) for key, t in tensors.items()}, metadata)]
    written = [each for part in ("unet", "text") for each in _write_peft(path, part, modules, metadata, dtype)]
    for other in set(peft_files(path)).difference(written):  # of a LoRA that was there before: its text encoder would be read as this one's
        other.unlink(missing_ok=True)
    return written


def flat_names(file: LoraFile, form: str = "kohya") -> dict[str, Tensor]:
    """All that is in the file by its name in a file, bundled embeddings included."""
    own = {module for module in file.modules if form == "ldm" and module[0] == "unet"}
    names = {module: "lora_unet_" + module[1].replace(".", "_") if module in own else kohya_key(module[1], module[0]) for module in file.modules}
    tensors = {f"{names[module]}.{part}": tensor for module, parts in file.modules.items() for part, tensor in parts.items()}
    return tensors | {f"bundle_emb.{name}.string_to_param.*": vectors for name, vectors in file.embeddings.items()}


def _scaled(file: LoraFile, module: Module, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors at alpha = rank, which every reader takes for a scale of 1."""
    if family(parts) != "LoRA" or "lora_mid.weight" in parts:
        raise ValueError(f"{file.path.name} is no plain LoRA ({module[1]} has {', '.join(sorted(parts)[:3])}); make it one with `tool resize` first.")
    if "dora_scale" in parts and parts["dora_scale"].shape[0] == 1:
        raise ValueError(f"{file.path.name} is a DoRA with a length per channel in, as the WebUI reads it; diffusers and peft have one per channel out.")
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    scale = float(parts["alpha"]) / len(down) if "alpha" in parts else 1.0
    found = {"down": down, "up": (up.float() * scale).to(up.dtype) if scale != 1 else up}
    return found | ({"magnitude": parts["dora_scale"].flatten()} if "dora_scale" in parts else {})


def _diffusers_name(module: Module, part: str) -> str:
    if part == "magnitude":
        end = "lora_magnitude_vector"
    else:
        end = f"lora.{part}.weight" if module[0] == "unet" else f"lora_linear_layer.{part}.weight"
    return f"unet.{diffusers_path(module[1])}.{end}" if module[0] == "unet" else f"text_encoder.{module[1]}.{end}"


def _finite(path: Path, key: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise ValueError(f"{path.name} was not written: NaN or numbers too large for {str(tensor.dtype)[6:]} in {key}; choose another precision.")
    return tensor


def peft_files(folder: Path) -> list[Path]:
    """The files that a LoRA in peft's form may consist of."""
    return [folder / part / name for part in ("unet", "text_encoder") for name in ("adapter_model.safetensors", _CONFIG)]


def _write_peft(path: Path, part: str, modules: Mapping[Module, Mapping[str, Tensor]], metadata: Mapping[str, str], dtype: torch.dtype) -> list[Path]:
    """`unet/` or `text_encoder/` with adapter_model.safetensors and adapter_config.json; nothing for a part without modules."""
    own = {diffusers_path(place) if part == "unet" else place: parts for (p, place), parts in modules.items() if p == part}
    if not own:
        return []
    ends = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
    tensors = {f"base_model.model.{name}.{ends[which]}": tensor for name, parts in own.items() for which, tensor in parts.items()}
    folder = path / ("unet" if part == "unet" else "text_encoder")
    weights = write_tensors(folder / "adapter_model.safetensors", {key: _finite(folder, key, t.to(dtype)) for key, t in tensors.items()}, metadata)
    with atomic(folder / _CONFIG) as temporary:
        temporary.write_text(json.dumps(_peft_config(own), indent=2), encoding="utf-8")
    return [weights, folder / _CONFIG]


def _peft_config(own: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    ranks = {name: len(parts["down"]) for name, parts in own.items()}
    r = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: rank for name, rank in ranks.items() if rank != r}
    return {
        "peft_type": "LORA", "r": r, "lora_alpha": r, "rank_pattern": others, "alpha_pattern": dict(others), "target_modules": sorted(own), "lora_dropout": 0.0,
        "bias": "none", "use_dora": any("magnitude" in parts for parts in own.values()), "use_rslora": False, "inference_mode": True, "fan_in_fan_out": False,
    }  # fmt: skip


def with_modules(file: LoraFile, modules: Mapping[Module, dict[str, Tensor]]) -> LoraFile:
    """The file with other modules."""
    return replace(file, modules=dict(modules))
