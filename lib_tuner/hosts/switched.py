"""Another checkpoint in the WebUI for a while, by its own means, and then the one that its user has chosen. `w` is the host's modules.

Where a file turns out to be broken only while the host reads it, the host is left with a model off its device and without its wrappers, or with none
(modules/sd_models.py, `reload_model_weights`); so a file is read here first, and the model put back by force where it still failed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..compare.draw import Lost
from ..sd.files import read_checkpoint
from ..words import first_line
from .kept import random_state
from .ldm import refuse
from .networks import without_networks

LOG = logging.getLogger("lib_tuner")


@contextmanager
def switched(w: Any, path: Path) -> Iterator[None]:
    """The host with this checkpoint. Entered under its lock and before anything refers to its model, which may be another object within and afterwards.

    Raises ValueError or OSError, one sentence, for a file that is no SD1.5 checkpoint, before the host's model is touched; Lost at the end where the host is left without its own.
    """
    data, own = w.sd_models.model_data, _own(w)
    info = _entry(w, own, path)
    if info is own:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(random_state())
        stack.enter_context(_kept(w))
        stack.enter_context(without_networks(w.networks, lambda: data.sd_model))
        stack.callback(_put_back, w, own, [(model, model.sd_checkpoint_info) for model in data.loaded_sd_models])
        try:
            _load(w, info)
        except Exception as error:  # whatever the host raises for a file that it does not take
            LOG.warning("The WebUI could not load %s", path, exc_info=True)
            raise ValueError(f"{path.name} could not be loaded by the WebUI ({first_line(error)}); choose another checkpoint.") from error
        yield


def _own(w: Any) -> Any:
    """The entry of what is loaded. Raises ValueError where it could not be loaded again, or where no other model could be used either, however it is loaded."""
    model = w.shared.sd_model
    if model is None or getattr(model, "lowvram", False) or getattr(w.devices, "fp8", False):
        refuse(model)
    file = Path(model.sd_checkpoint_info.filename)
    if not file.is_file():
        raise ValueError(f"{file.name}, which the WebUI has loaded, is not there any more and could not be loaded again afterwards: choose another checkpoint at the top of the page.")
    return model.sd_checkpoint_info


def _entry(w: Any, own: Any, path: Path) -> Any:
    """The host's entry of a file, or one of ours where the file lies outside its folders. Raises ValueError or OSError for a file that cannot be read."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not there any more ({path.parent}); choose another file.")
    if path.samefile(own.filename):
        return own
    read_checkpoint(path)
    for info in w.sd_models.checkpoints_list.values():
        if Path(info.filename).is_file() and path.samefile(info.filename):
            return info
    info = copy.copy(own)  # a new one would put the file's metadata into the host's cache: under its bare name, which saves of two runs may share, as hashes are
    vars(info).update(filename=str(path), name=path.name, name_for_extra=path.stem, model_name=path.stem, title=str(path), short_title=path.stem, metadata={})
    vars(info).update(hash=None, sha256=None, shorthash=None, calculate_shorthash=lambda: None, is_safetensors=path.suffix.lower() == ".safetensors")  # as with --no-hashing
    return info


def _load(w: Any, info: Any) -> None:
    """Also where the host has no model left or one whose wrappers are off: a switch that failed half-way, which it does not mend by itself."""
    models, data = w.sd_models, w.sd_models.model_data
    now = data.sd_model
    if now is None or now.sd_checkpoint_info is info:
        there = next((model for model in data.loaded_sd_models if model.sd_checkpoint_info is info), now)
        if now is not None and now is not there:  # another one, into which the host has put this checkpoint in its need
            models.send_model_to_trash(now)
        data.sd_model = now = there
    with models.SkipWritingToConfig():
        if now is None:
            models.load_model(info)
        else:
            models.reload_model_weights(info=info, forced_reload=now.sd_checkpoint_info is info)


def _put_back(w: Any, own: Any, loaded: list[tuple[Any, Any]]) -> None:
    """The host's own checkpoint again; of the models that it holds in memory none is there because of us, nor has our file in it."""
    data = w.sd_models.model_data
    try:
        _load(w, own)
    except Exception as error:  # whatever the host raises: the user has to choose
        LOG.warning("The WebUI could not load %s again", own.filename, exc_info=True)
        raise Lost(f"{own.model_name} could not be loaded again by the WebUI ({first_line(error)}): choose a checkpoint at the top of the page.") from error
    for model in [m for m in data.loaded_sd_models if m is not data.sd_model and not any(m is known and m.sd_checkpoint_info is info for known, info in loaded)]:
        data.loaded_sd_models.remove(model)
        w.sd_models.send_model_to_trash(model)


@contextmanager
def _kept(w: Any) -> Iterator[None]:
    """What the host changes by the way when it loads: the hash among its settings, the hypernetworks of the last picture, the files that it keeps in memory, and
    what it knows of its model's layers, which it forgets of one that it has kept beside another."""
    options, name, cache, hijack = w.shared.opts.data, "sd_checkpoint_hash", w.sd_models.checkpoints_loaded, w.sd_hijack.model_hijack
    before, there, networks, files = options.get(name), name in options, list(w.shared.loaded_hypernetworks), list(cache.items())
    model, layers, clip = w.sd_models.model_data.sd_model, hijack.layers, hijack.clip
    try:
        yield
    finally:
        cache.clear()
        cache.update(files)
        if w.sd_models.model_data.sd_model is model and model.cond_stage_model is clip:  # else its wrappers are new, and known
            hijack.layers, hijack.clip = layers, clip
        w.shared.loaded_hypernetworks[:] = networks
        if there:
            options[name] = before
        else:
            options.pop(name, None)
