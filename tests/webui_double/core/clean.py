"""Takes all traces of the double out of the process again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

HOST = Path(__file__).resolve().parent.parent / "host"
NAMES = ("modules", "ldm", "networks", "network", "network_names", "lora_patches", "extra_networks_lora")


def _ours(name: str) -> bool:
    return name.partition(".")[0] in NAMES


@contextmanager
def clean_process() -> Iterator[None]:
    """The double's modules can be imported within. Afterwards they are gone, with whatever they replaced, and with the modules that were imported on top of them."""
    there = [name for name in sys.modules if _ours(name)]
    if there:
        raise RuntimeError(f"{there[0]} is imported already: the double cannot be started in a real host, nor twice at a time.")
    path, load, known = list(sys.path), torch.load, set(sys.modules)
    sys.path.insert(0, str(HOST))
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        sys.path[:] = path
        torch.load = load
        if "modules.patches" in sys.modules:
            sys.modules["modules.patches"].undo_all()
        _forget(known)


def _forget(known: set[str]) -> None:
    ours = {name: module for name, module in sys.modules.items() if _ours(name)}
    marks = {id(module) for module in ours.values()}
    above = [name for name in set(sys.modules) - known if _uses(sys.modules[name], marks)]
    for name in {*ours, *above}:
        module = sys.modules.pop(name)
        package, _, last = name.rpartition(".")
        if package in sys.modules and vars(sys.modules[package]).get(last) is module:
            delattr(sys.modules[package], last)


def _uses(module: ModuleType, marks: set[int]) -> bool:
    """Whether one of its names is a module of the double: the next double needs it anew."""
    return any(id(value) in marks for value in list(vars(module).values()) if isinstance(value, ModuleType))
