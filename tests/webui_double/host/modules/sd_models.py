"""Checkpoints and the model of now. A checkpoint with the same config is loaded into the object that is there; with another config a new object takes its
place, and the old one goes to `meta`."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ldm.modules.midas.api
import torch
from ldm.models.diffusion.ddpm import LatentDiffusion, LatentInpaintDiffusion
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from . import devices, errors, extra_networks, hashes, paths_internal, script_callbacks, sd_hijack, sd_vae, shared
from .token_merging import merge_tokens

model_path = os.path.join(paths_internal.models_path, "Stable-diffusion")
midas = ldm.modules.midas
for _type, _file in midas.api.ISL_PATHS.items():
    midas.api.ISL_PATHS[_type] = os.path.join(paths_internal.models_path, "midas", os.path.basename(_file))
DEFAULT_CONFIG, INPAINTING_CONFIG = (os.path.join(paths_internal.script_path, "configs", f"v1-{kind}inference.yaml") for kind in ("", "inpainting-"))
FIRST = "model.diffusion_model.input_blocks.0.0.weight"


# ---- files -----------------------------------------------------------------------------------------------------------


class CheckpointInfo:
    """A file, by all the names it may be asked for, if it is registered. Its hash, and with that its title, is not known before it is loaded for the first time."""

    def __init__(self, filename: str):
        self.filename = os.path.abspath(filename)
        inside = Path(self.filename).is_relative_to(model_path)
        self.name = os.path.relpath(self.filename, model_path).replace(os.sep, "/") if inside else os.path.basename(filename)
        self.name_for_extra = Path(self.name).stem
        self.model_name = os.path.splitext(self.name)[0].replace("/", "_")
        self._hashed(_known_hashes.get(self._state()))

    def _state(self) -> tuple[str, int]:
        return self.filename, os.stat(self.filename).st_mtime_ns

    def _hashed(self, sha256: str | None) -> None:
        self.sha256, self.shorthash = sha256, sha256 and sha256[:10]
        self.title = f"{self.name} [{self.shorthash}]" if sha256 else self.name

    @property
    def ids(self) -> list[str]:
        return [name for name in (self.title, self.name, self.name_for_extra, self.model_name, self.filename, self.shorthash, self.sha256) if name]

    def register(self) -> None:
        for table, names in ((checkpoints_list, [self.title]), (checkpoint_aliases, self.ids)):
            table.update(dict.fromkeys(names, self))

    def calculate_shorthash(self) -> str | None:
        """None with --no-hashing."""
        if self.sha256 is None:
            self._hashed(hashes.sha256(self.filename, f"checkpoint/{self.name}"))
            if self.sha256:
                _known_hashes[self._state()] = self.sha256
                checkpoints_list.pop(self.name, None)
                self.register()
        return self.shorthash


checkpoints_list: dict[str, CheckpointInfo] = {}  # by title
checkpoint_aliases: dict[str, CheckpointInfo] = {}  # by any name
checkpoints_loaded: dict[CheckpointInfo, dict[str, Tensor]] = {}  # contents of files, for as many as a setting allows
_known_hashes: dict[tuple[str, int], str] = {}


def list_models() -> None:
    """Reads the folders."""
    for table in (checkpoints_list, checkpoint_aliases):
        table.clear()
    found = (path for folder in (model_path, shared.cmd_opts.ckpt_dir) if folder for path in Path(folder).rglob("*"))
    for path in sorted(found, key=lambda path: str(path).lower()):
        if path.suffix in (".safetensors", ".ckpt"):
            CheckpointInfo(str(path)).register()


def get_closet_checkpoint_match(wanted: str | None) -> CheckpointInfo | None:
    """By a name of it, or else the one with the shortest title of those whose title contains the words."""
    bare = re.sub(r"\s*\[\w+\]$", "", wanted or "")
    inside = sorted((title for title in checkpoints_list if bare and bare in title), key=len)
    return checkpoint_aliases.get(wanted) or checkpoint_aliases.get(bare) or next((checkpoints_list[title] for title in inside), None)


def select_checkpoint() -> CheckpointInfo:
    """The one of the settings, or the first. Raises FileNotFoundError where there is none."""
    chosen = get_closet_checkpoint_match(shared.opts.sd_model_checkpoint) or next(iter(checkpoints_list.values()), None)
    if chosen is None:
        raise FileNotFoundError(f"There is no checkpoint in {model_path}.")
    return chosen


def read_state_dict(path: str) -> dict[str, Tensor]:
    content = load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu")
    return content.get("state_dict", content)


# ---- the model of now ------------------------------------------------------------------------------------------------


@dataclass
class Current:
    """Loads the first model when somebody asks for it; while it is loaded, other threads wait."""

    sd_model: Any = None
    loaded_sd_models: list[Any] = field(default_factory=list)  # the one of now first
    was_loaded_at_least_once: bool = False
    _loading: Any = field(default_factory=threading.RLock)  # loading asks for the model itself

    def get_sd_model(self) -> Any:
        with self._loading:
            if not self.was_loaded_at_least_once:
                self.was_loaded_at_least_once = True
                try:
                    load_model()
                except Exception as error:  # whatever is wrong with the file
                    errors.display(error, "loading the first model")
        return self.sd_model

    def set_sd_model(self, model: Any) -> None:
        self.sd_model = model
        self.loaded_sd_models[:] = [held for held in (model, *(held for held in self.loaded_sd_models if held is not model)) if held is not None]


model_data = Current()
_unwritten: list[None] = []  # as many as there are SkipWritingToConfig


@contextmanager
def SkipWritingToConfig() -> Iterator[None]:  # noqa: N802  a class in the host
    """Within it a model that is loaded is not written into the settings."""
    _unwritten.append(None)
    try:
        yield
    finally:
        _unwritten.pop()


def send_model_to_trash(model: Any) -> None:
    model.to("meta")


def load_model(checkpoint_info: CheckpointInfo | None = None) -> Any:
    """A new object, in the place of the one of now; where it cannot be loaded there is none."""
    info = checkpoint_info or select_checkpoint()
    state = read_state_dict(info.filename)
    model, old, hijack = _built(info, state), model_data.sd_model, sd_hijack.model_hijack
    if old is not None:
        hijack.undo_hijack(old)
        send_model_to_trash(old)
        model_data.sd_model = None
        model_data.loaded_sd_models[:] = [held for held in model_data.loaded_sd_models if held is not old]
    _put_weights(model, info, state)
    hijack.hijack(model)
    model.cond_stage_model.training = False  # eval(), which ldm does not let through to what is inside
    model_data.set_sd_model(model)
    model_data.was_loaded_at_least_once = True
    hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)  # another width may be wanted now
    script_callbacks.model_loaded_callback(model)
    extra_networks.activate(None, {})  # what the last picture had is not loaded any more
    with torch.no_grad(), devices.autocast():
        model.cond_stage_model_empty_prompt = model.cond_stage_model([""])
    return model


def reload_model_weights(sd_model: Any = None, info: CheckpointInfo | None = None, forced_reload: bool = False) -> Any:
    """Another checkpoint, or with `forced_reload` the file of the one that is there. Flags of parameters and modules stay as they are.

    A file that cannot be read leaves a model without its wrappers; where one cannot be put into the model, the weights of before come back.
    """
    info, model = info or select_checkpoint(), sd_model or model_data.sd_model
    if model is None:
        raise AttributeError("'NoneType' object has no attribute 'lowvram'")  # as in 1.9.4, where it would go to the CPU
    if model.sd_model_checkpoint == info.filename and not forced_reload:
        return model
    before = model.sd_checkpoint_info
    if before.filename != info.filename:
        model = model_data.sd_model = _place_of(info)
        if model is None:
            return load_model(info)
        if model.sd_checkpoint_info.filename == info.filename and not forced_reload:  # nothing is told of it, nor wrapped
            model_data.set_sd_model(model)
            return model
    sd_hijack.model_hijack.undo_hijack(model)
    state = read_state_dict(info.filename)
    if model.used_config != config_of(info):
        return load_model(info)
    try:
        _put_weights(model, info, state)
    except RuntimeError:
        _put_weights(model, before, read_state_dict(before.filename))
        raise
    finally:
        sd_hijack.model_hijack.hijack(model)
        script_callbacks.model_loaded_callback(model)
    model_data.set_sd_model(model)
    return model


def _place_of(info: CheckpointInfo) -> Any:
    """Of the models in memory the one with this file, or the one whose place it gets, which is not among them any more; None where there is room for another."""
    held, limit = model_data.loaded_sd_models, shared.opts.sd_checkpoints_limit
    found = next((model for model in held if model.sd_checkpoint_info.filename == info.filename), None)
    for model in [model for model in reversed(held) if model is not found][: max(len(held) - limit, 0)]:
        held.remove(model)
        send_model_to_trash(model)
    if found is not None or not held or limit > len(held):
        return found
    return held.pop()


def config_of(info: CheckpointInfo) -> str:
    beside = os.path.splitext(info.filename)[0] + ".yaml"
    if os.path.isfile(beside):
        return beside
    return INPAINTING_CONFIG if _inputs(info.filename) == 9 else DEFAULT_CONFIG


def _inputs(path: str) -> int:
    """Channels that a checkpoint's UNet reads."""
    if not path.endswith(".safetensors"):
        return read_state_dict(path)[FIRST].shape[1]
    with safe_open(path, "pt") as file:
        return file.get_slice(FIRST).get_shape()[1]


def _built(info: CheckpointInfo, state: dict[str, Tensor]) -> LatentDiffusion:
    """With the sizes of the file's tensors. Heads are in no shape: a file may name them, else they are SD1.5's."""
    said: dict[str, str] = {}
    if info.filename.endswith(".safetensors"):
        with safe_open(info.filename, "pt") as file:
            said = file.metadata() or said
    kind = LatentInpaintDiffusion if state[FIRST].shape[1] == 9 else LatentDiffusion
    with torch.random.fork_rng(devices=[]):
        model = kind({key: value.shape for key, value in state.items()}, int(said.get("tuner_unet_heads", 8)), int(said.get("tuner_text_heads", 12)))
    for part, dtype in ((model, devices.dtype), (model.model, devices.dtype_unet), (model.first_stage_model, devices.dtype_vae)):
        part.to(devices.device, dtype)
    model.requires_grad_(False)
    model.model.requires_grad_(True)
    model.used_config, model.lowvram = config_of(info), shared.cmd_opts.lowvram or shared.cmd_opts.medvram
    model.is_sd1, model.is_sd2, model.is_sdxl = True, False, False
    return model.eval()


def _put_weights(model: Any, info: CheckpointInfo, state: dict[str, Tensor]) -> None:
    """Into the parameters that are there. Noise levels are the model's own again, and in fp32."""
    model.sd_model_hash = info.calculate_shorthash()
    if not _unwritten:
        shared.opts.data["sd_model_checkpoint"] = info.title
    if shared.opts.sd_checkpoint_cache > 0:
        checkpoints_loaded[info] = state
    model.load_state_dict(state, strict=False)
    while len(checkpoints_loaded) > shared.opts.sd_checkpoint_cache:
        checkpoints_loaded.pop(next(iter(checkpoints_loaded)))
    model.alphas_cumprod = model.alphas_cumprod_original
    model.sd_model_checkpoint, model.sd_checkpoint_info = info.filename, info
    shared.opts.data["sd_checkpoint_hash"] = info.sha256
    sd_vae.forget()
    sd_vae.reload_vae_weights(model)


# ---- token merging ---------------------------------------------------------------------------------------------------


def apply_token_merging(model: Any, ratio: float) -> None:
    """From then on, until it is 0 again."""
    merge_tokens(model.model.diffusion_model, ratio)
    model.applied_token_merged_ratio = ratio
