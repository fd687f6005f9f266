"""Settings out of files that the form did not write: kohya's configurations, GUI and metadata, the WebUI's training settings; and our own from anywhere.

Every key of such a file either becomes a setting, makes no difference to what is trained, or is named in `without`: nothing is lost in silence.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import METADATA_KEY, flatten, from_metadata, options, read_toml
from ..presets import LEFT_OUT
from ..sd.files import read_header
from ..sd.pickles import read_pickle
from ..settings import TrainConfig
from . import kohya, kohya_forms, webui
from .draft import Draft

Methods = Mapping[str, Any]  # kind -> method, of which only `Config` is used
_LARGEST = 1 << 22  # characters; no settings file is longer
_ASSIGNMENT = re.compile(r"""^[ \t]*[\w."'-]+[ \t]*=""", re.MULTILINE)


@dataclass(frozen=True)
class Imported:
    """What a file says in our terms: `values` for `build`, `source` in a few words, and what has no counterpart, each as `key = value`."""

    values: dict[str, Any]
    source: str
    without: list[str]


def read_settings(path: str | Path, methods: Methods) -> Imported:
    """The settings in a file, told by its content. Raises ValueError, one sentence, for settings of other models and for files that hold none."""
    path = Path(path)
    try:
        draft, source = _draft(path, methods)
    except RecursionError:  # brackets in brackets by the thousand
        raise _no_settings(path) from None
    if draft.kind not in methods:
        draft.miss("method", draft.kind)
        draft.kind, draft.chosen = TrainConfig.method, False
        draft.miss_rates()  # a rate means something for its own method only
    values = draft.fit(methods[draft.kind].Config)
    return Imported(values, source, list(dict.fromkeys(draft.without)))


# ---- what a file is --------------------------------------------------------------------------------------------------


def _draft(path: Path, methods: Methods) -> tuple[Draft, str]:
    head = _head(path)
    if (head[8:9] == b"{" and head[4:8] == bytes(4)) or path.suffix.lower() == ".safetensors":  # the header's length, then the header
        return _of_header(path, methods), f"metadata of {path.name}"
    if head.startswith((b"PK", b"\x80")) or path.suffix.lower() in (".pt", ".ckpt", ".bin"):
        return _of_torch(path, methods), f"settings in {path.name}"
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _of_values(_json(path, text), path, methods, "JSON")
    lines = webui.read_lines(text)
    if len(lines.keys() & webui.SURE) > 1:
        return webui.of_webui(lines), "WebUI training settings"
    if path.suffix.lower() != ".toml" and not _ASSIGNMENT.search(text):
        raise _no_settings(path)
    return _of_values(read_toml(path), path, methods, "TOML")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_LARGEST + 1)
    except UnicodeDecodeError:
        raise _no_settings(path) from None
    if len(text) > _LARGEST or "\0" in text:
        raise _no_settings(path)
    return text


def _no_settings(path: Path) -> ValueError:
    return ValueError(f"{path.name} holds no settings that are known here: neither the Tuner's, nor those of kohya's trainer and its GUI, nor the WebUI's")


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        return flatten(json.loads(text))
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON: {error}") from None


def _of_values(flat: Mapping[str, Any], path: Path, methods: Methods, form: str) -> tuple[Draft, str]:
    """Of a TOML or JSON file, told by its keys."""
    raw = {key.rpartition(".")[2]: value for key, value in flat.items()}  # for kohya a key means the same in any section
    known = {option.key for option in options(TrainConfig)} | {o.key for name, method in methods.items() for o in options(method.Config, name)}
    ours, theirs = flat.keys() & known, raw.keys() & kohya.SURE
    if len(raw.keys() & webui.SURE) > 1:
        return webui.of_webui(raw), "WebUI training settings"
    if "datasets" in raw:
        raise ValueError(f"{path.name} is kohya's description of data (--dataset_config), not of a run; choose the run's own settings")
    if theirs and len(theirs) >= len(ours):
        kohya.refuse_other_models(raw, path.name)
        return (kohya_forms.of_gui(raw, methods), "settings of kohya's GUI") if raw.keys() & kohya.GUI else (kohya.of_config(raw, methods), f"kohya {form}")
    if ours:
        return _of_ours(flat, methods), "settings of the Tuner"
    raise _no_settings(path)


# ---- our own and metadata --------------------------------------------------------------------------------------------


def _of_ours(flat: Mapping[str, Any], methods: Methods) -> Draft:
    sections = [key.partition(".")[0] for key in flat if key.partition(".")[0] in methods]
    draft = Draft({}, str(flat.get("method") or next(iter(sections), TrainConfig.method)))
    draft.chosen = "method" in flat or bool(sections)
    for key, value in flat.items():
        if key != "method":
            draft.put(key, value, key)
    return draft


def _of_header(path: Path, methods: Methods) -> Draft:
    shapes, metadata = read_header(path)
    if METADATA_KEY in metadata:
        draft = _of_ours(from_metadata(metadata), methods)
        _keep_places_found(draft)
        return draft
    raw = {key.removeprefix("ss_"): value for key, value in metadata.items() if key.startswith("ss_")}
    if not raw:
        raise ValueError(f"{path.name} does not tell how it was trained: its metadata holds neither settings of the Tuner nor of kohya's trainer")
    kohya.refuse_other_models(raw, path.name)
    return kohya_forms.of_metadata(raw, methods, trains_text=any(key.startswith(("lora_te", "lycoris_te")) for key in shapes))


def _of_torch(path: Path, methods: Methods) -> Draft:
    """Of what the Tuner saves that way, such as a hypernetwork."""
    try:
        content = read_pickle(path)
    except (OSError, ValueError):  # damaged, or with code in it
        content = None
    if not isinstance(content, dict) or not isinstance(content.get(METADATA_KEY), str):
        raise ValueError(f"{path.name} is a file of weights that tells no settings; choose a .safetensors file, or the file of settings of that run")
    draft = _of_ours(from_metadata(content), methods)
    _keep_places_found(draft)
    return draft


def _keep_places_found(draft: Draft) -> None:
    """A saved file knows only the last name of an absolute path (`methods.metadata`): what is not found under it would fail, so it is missed."""
    for key in [key for key in draft.values if key in LEFT_OUT and key != "name" or key.endswith(".start")]:
        value = draft.values[key]
        if value and not os.path.exists(str(value)):
            del draft.values[key]
            if value != getattr(TrainConfig, key, ""):
                draft.miss(key, value)
