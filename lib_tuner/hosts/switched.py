"""Another checkpoint in the WebUI for a while, by its own means, and then the one that its user has chosen. `w` is the host's modules.

Where a file turns out to be broken only while the host reads it, the host is left with a model off its device and without its wrappers, or with none
(modules/sd_models.py, `reload_model_weights`); so a file is read here first, and the model put back by force where it still failed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..compare.draw import Lost
from ..sd.files import read_checkpoint
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
        stack.callback(_put_back, w, own, list(data.loaded_sd_models))
        try:
            _load(w, info)
        except Exception as error:  # whatever the host raises for a file that it does not take
            LOG.warning("The WebUI could not load %s", path, exc_info=True)
            raise ValueError(f"{path.name} could not be loaded by the WebUI ({_first_line(error)}); choose another checkpoint.") from error
        yield


def _own(w: Any) -> Any:
    """The entry of what is loaded. Raises ValueError where it could not be loaded again."""
    model = w.shared.sd_model
    if model is None:
        refuse(model)
    file = Path(model.sd_checkpoint_info.filename)
    if not file.is_file():
        raise ValueError(f"{file.name}, which the WebUI has loaded, is not there any more and could not be loaded again afterwards: choose another checkpoint at the top of the page.")
    return model.sd_checkpoint_info


def _entry(w: Any, own: Any, path: Path) -> Any:
    """The host's entry of a file, or one of ours where the file lies outside its folders. Raises ValueError or OSError for a file that cannot be read."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not there any more ({path.parent}); choose another file.")
    read_checkpoint(path)
    for info in (own, *w.sd_models.checkpoints_list.values()):
        if Path(info.filename).is_file() and path.samefile(info.filename):
            return info
    info = w.sd_models.CheckpointInfo(str(path))
    info.sha256 = info.shorthash = None  # the host keeps hashes by a file's bare name, which saves of two runs may share: as with --no-hashing
    info.calculate_shorthash = lambda: None
    info.title = str(path)
    return info


def _load(w: Any, info: Any) -> None:
    """Also where the host has no model left or one whose wrappers are off: a switch that failed half-way, which it does not mend by itself."""
    models = w.sd_models
    now = models.model_data.sd_model
    with models.SkipWritingToConfig():
        if now is None:
            models.load_model(info)
        else:
            models.reload_model_weights(info=info, forced_reload=now.sd_checkpoint_info is info)


def _put_back(w: Any, own: Any, loaded: list[Any]) -> None:
    """The host's own checkpoint again; of the models that it holds in memory none is there because of us."""
    data = w.sd_models.model_data
    try:
        _load(w, own)
    except Exception as error:  # whatever the host raises: the user has to choose
        LOG.warning("The WebUI could not load %s again", own.filename, exc_info=True)
        raise Lost(f"{own.model_name} could not be loaded again by the WebUI ({_first_line(error)}): choose a checkpoint at the top of the page.") from error
    for model in [m for m in data.loaded_sd_models if m is not data.sd_model and not any(m is known for known in loaded)]:
        data.loaded_sd_models.remove(model)
        w.sd_models.send_model_to_trash(model)


@contextmanager
def _kept(w: Any) -> Iterator[None]:
    """What the host changes by the way when it loads: the hash among its settings, and the hypernetworks of the last picture."""
    options, name = w.shared.opts.data, "sd_checkpoint_hash"
    before, there, networks = options.get(name), name in options, list(w.shared.loaded_hypernetworks)
    try:
        yield
    finally:
        w.shared.loaded_hypernetworks[:] = networks
        if there:
            options[name] = before
        else:
            options.pop(name, None)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
