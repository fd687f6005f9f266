"""Two other forms of kohya's settings, brought into those of its trainer: the JSON of bmaltais' GUI and the `ss_*` metadata of a trained file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .draft import Draft, is_on, number
from .kohya import Raw, arguments, of_config

_GUI_NAMES = {"optimizer": "optimizer_type", "max_resolution": "resolution", "lora_network_weights": "network_weights"}
_SHOWN = {"network_args algo": "LoRA_type", "network_module": "LoRA_type", "network_args preset": "LyCORIS_preset"}
_COMMON = ("rank_dropout", "module_dropout", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_CONV = ("conv_dim", "conv_alpha")
_BLOCKS = (
    "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
)  # fmt: skip
_LYCORIS = (
    "LyCORIS_preset", "use_tucker", "use_cp", "use_scalar", "dora_wd", "bypass_mode", "rank_dropout_scale", "train_norm", "factor", "decompose_both",
    "constrain", "rescaled", "unit", "train_on_input",
)  # fmt: skip
_HANDED = {"standard": (*_COMMON, *_BLOCKS), "kohya locon": (*_COMMON, *_CONV, *_BLOCKS), "lycoris": (*_COMMON, *_CONV, *_LYCORIS)}
_MODULES = {"standard": "networks.lora", "kohya locon": "networks.lora", "lycoris": "lycoris.kohya"}
_TEMPLATES = {"object template": "use_object_template", "style template": "use_style_template"}


def of_gui(raw: Raw, methods: Mapping[str, Any]) -> Draft:
    """The GUI's values are often text, and "" or 0 where nothing is set; it makes the trainer's settings out of them as its `train_model` does."""
    names = {_GUI_NAMES.get(key, key): key for key in raw}
    raw = {new: raw[old] for new, old in names.items()}
    for rule in (_network, _rates, _noise, _length, _template):
        rule(raw)
    shown = {**names, **_SHOWN}
    return of_config(raw, methods, lambda name: shown.get(name, name.removeprefix("network_args ")))


def _network(raw: dict[str, Any]) -> None:
    """What the chosen type of LoRA hands to the trainer; the form keeps the fields of the other types too."""
    if "LoRA_type" not in raw:
        return
    chosen = str(raw.pop("LoRA_type")).lower()
    chosen = "lycoris/locon" if chosen == "locon" else chosen  # its name before 2023
    family, _, algo = chosen.partition("/")
    fields = {key: raw.pop(key, "") for key in (*_COMMON, *_CONV, *_BLOCKS, *_LYCORIS)}
    given = {key.removeprefix("LyCORIS_"): fields[key] for key in _HANDED.get(family, ()) if str(fields[key]) not in ("", "None")}
    raw["network_module"] = _MODULES.get(family, chosen)
    raw["network_args"] = {**given, **({"algo": algo} if algo else {})}


def _rates(raw: dict[str, Any]) -> None:
    """A rate of 0 for one part means that only the other is trained; 0 for both, that both have the common rate."""
    unet, text = (number(raw.get(key) or 0) for key in ("unet_lr", "text_encoder_lr"))
    if "text_encoder_lr" in raw and unet and not text:
        raw["network_train_unet_only"] = True
    if "unet_lr" in raw and text and not unet:
        raw["network_train_text_encoder_only"] = True
    for key in [key for key in ("unet_lr", "text_encoder_lr") if not is_on(raw.get(key))]:
        raw.pop(key, None)


def _noise(raw: dict[str, Any]) -> None:
    """Of the two kinds of noise the LoRA page hands over the one that is chosen."""
    kind = raw.pop("noise_offset_type", None)
    if "network_module" in raw and kind in ("Original", "Multires"):
        other = ("multires_noise_iterations", "multires_noise_discount") if kind == "Original" else ("noise_offset", "adaptive_noise_scale")
        for key in other:
            raw.pop(key, None)


def _length(raw: dict[str, Any]) -> None:
    """Warm-up is in percent unless given in steps; restarts that are not given are as many as epochs."""
    percent = raw.pop("lr_warmup", 0)
    if is_on(percent) and not is_on(raw.get("lr_warmup_steps")):
        raw["lr_warmup_steps"] = f"{percent}%"
    if raw.get("lr_scheduler") == "cosine_with_restarts" and raw.get("lr_scheduler_num_cycles") == "":
        raw["lr_scheduler_num_cycles"] = raw.get("epoch", 1)


def _template(raw: dict[str, Any]) -> None:
    if key := _TEMPLATES.get(str(raw.pop("template", ""))):
        raw[key] = True


# ---- metadata --------------------------------------------------------------------------------------------------------

_META_NAMES = {"debiased_estimation": "debiased_estimation_loss", "batch_size_per_device": "train_batch_size"}
_META_IDLE = re.compile(
    r"session_id|training_(started|finished)_at|num_\w+|steps|epoch|base_model_version|\w+_hash|bucket_info|\w*dataset_dirs|tag_frequency|total_batch_size"
)


def of_metadata(raw: Raw, methods: Mapping[str, Any], trains_text: bool) -> Draft:
    """Out of `ss_*` without the prefix. Whether the text encoder was trained, the file's own layers tell, not its metadata."""
    found = {_META_NAMES.get(key, key): value for key, value in raw.items() if not _META_IDLE.fullmatch(key) and value != "None"}
    found = {**_data(found.pop("datasets", "")), **found}
    name, _, given = str(found.pop("optimizer", "AdamW")).partition("(")
    found |= {"optimizer_type": name, "optimizer_args": arguments(given.removesuffix(")"))}
    found |= {"network_args": _arguments(found.get("network_args", "")), "network_train_unet_only": not trains_text}
    return of_config(found, methods, _called)


def _called(name: str) -> str:
    return "ss_" + {"optimizer_type": "optimizer", **{new: old for old, new in _META_NAMES.items()}}.get(name, name)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _arguments(text: str) -> dict[str, Any]:
    found = _parsed(text) if text else {}
    return found if isinstance(found, dict) else {"unreadable": text}  # of which nothing is known, so that it is missed


def _data(text: str) -> dict[str, Any]:
    """Of a run with a description of its data: the first set and its first folder, with the number of sets where there are several."""
    sets = _parsed(text) if text else []
    if not isinstance(sets, list) or not all(isinstance(one, dict) for one in sets):
        return {"datasets": text}
    known: dict[str, Any] = {}
    for one in sets[:1]:
        known = {**one, **next((folder for folder in one.get("subsets") or [] if isinstance(folder, dict)), {})}
    kept = {_META_NAMES.get(key, key): value for key, value in known.items() if key in _DATA_KEYS}
    return {**kept, **({"datasets": f"{len(sets)}, of which the first was read"} if len(sets) > 1 else {})}


_DATA_KEYS = {
    "batch_size_per_device", "resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "color_aug", "flip_aug", "random_crop", "shuffle_caption",
    "keep_tokens", "keep_tokens_separator", "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix",
}  # fmt: skip
