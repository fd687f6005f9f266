"""What scripts want to be told of, and telling them. A callback that raises is reported, and the next one is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import errors, extensions

EVENTS = (
    "app_started model_loaded ui_tabs ui_train_tabs ui_settings cfg_denoiser after_component before_ui script_unloaded on_reload list_optimizers list_unets"
).split()


@dataclass
class ScriptCallback:
    """One entry: the script's file, what is called, and a name that no other of the list has."""

    script: str
    callback: Callable[..., Any]
    name: str


@dataclass
class CFGDenoiserParams:
    """What the UNet is about to be given at one step; may be changed."""

    x: Any
    image_cond: Any
    sigma: Any
    sampling_step: int
    total_sampling_steps: int
    text_cond: Any
    text_uncond: Any
    denoiser: Any = None


@dataclass
class UiTrainTabParams:
    txt2img_preview_params: list[Any]


callback_map: dict[str, list[ScriptCallback]] = {f"callbacks_{event}": [] for event in EVENTS}


def _caller() -> str:
    """The file that called the function which asks for this."""
    return sys._getframe(2).f_code.co_filename


def add_callback(
    callbacks: list[ScriptCallback], fun: Callable[..., Any], *, name: str | None = None, category: str = "unknown", filename: str | None = None
) -> None:
    """Puts a function at the end of one of callback_map's lists. A file of no extension, or of one that is a link, counts as the host's."""
    script = filename or _caller()
    owner = extensions.find_extension(script)
    wanted = "/".join((owner.canonical_name if owner else "base", os.path.basename(script), "_".join(filter(None, (category, name)))))
    taken = {entry.name for entry in callbacks}
    names = (f"{wanted}-{i}" if i else wanted for i in range(len(taken) + 1))
    callbacks.append(ScriptCallback(script, fun, next(each for each in names if each not in taken)))


def ordered_callbacks(category: str) -> list[ScriptCallback]:
    """In the order of their registration."""
    return [*callback_map[f"callbacks_{category}"]]


def clear_callbacks() -> None:
    for entries in callback_map.values():
        entries.clear()


def _remove(unwanted: Callable[[ScriptCallback], bool]) -> None:
    for entries in callback_map.values():
        entries[:] = [entry for entry in entries if not unwanted(entry)]


def remove_callbacks_for_function(callback_func: Callable[..., Any]) -> None:
    _remove(lambda entry: entry.callback == callback_func)


# ---- registering: on_<event>(callback) -------------------------------------------------------------------------------


def _registrar(event: str) -> Callable[..., None]:
    def register(callback: Callable[..., Any], *, name: str | None = None) -> None:
        add_callback(callback_map[f"callbacks_{event}"], callback, name=name, category=event, filename=_caller())

    return register


globals().update({f"on_{event}": _registrar(event) for event in EVENTS if event != "on_reload"})
on_before_reload = _registrar("on_reload")


# ---- telling: <event>_callback(...) ----------------------------------------------------------------------------------


def _answers(event: str, *args: Any, backwards: bool = False, **kwargs: Any) -> Iterator[Any]:
    entries = ordered_callbacks(event)
    for entry in reversed(entries) if backwards else entries:
        try:
            yield entry.callback(*args, **kwargs)
        except Exception as error:  # whatever an extension raises
            errors.display(error, f"{entry.script}: {event}")


def _teller(event: str, backwards: bool = False) -> Callable[..., None]:
    def tell(*args: Any, **kwargs: Any) -> None:
        for _ in _answers(event, *args, backwards=backwards, **kwargs):
            pass

    return tell


globals().update({f"{event}_callback": _teller(event) for event in EVENTS})
app_reload_callback = _teller("on_reload")
before_ui_callback, script_unloaded_callback = _teller("before_ui", backwards=True), _teller("script_unloaded", backwards=True)


def ui_tabs_callback() -> list[tuple[Any, str, str]]:
    """(Blocks, title, element id) of all tabs."""
    return [tab for tabs in _answers("ui_tabs") for tab in tabs or ()]


def _collected(event: str) -> list[Any]:
    found: list[Any] = []
    _teller(event)(found)
    return found


def list_optimizers_callback() -> list[Any]:
    """Callbacks add to the list that they are given."""
    return _collected("list_optimizers")


def list_unets_callback() -> list[Any]:
    return _collected("list_unets")
