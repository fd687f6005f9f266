"""The LoRA that the last picture left in the weights: out for the run, and back as it was. Works on the Lora extension's `networks` module.

The extension rewrites weights in place in the first forward after its list has changed, in whatever grad mode that is, and keeps copies to go back
to (extensions-builtin/Lora/networks.py). Trained weights would be overwritten by such a copy, so none is left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)  # the table names all modules, these alone are rewritten
_COPIES = ("network_current_names", "network_weights_backup", "network_bias_backup")


@contextmanager
def without_networks(networks: Any, current: Callable[[], Any]) -> Iterator[None]:
    """The checkpoint's own weights; afterwards the same LoRAs as before are in them. `networks`: None where the extension is off; `current`: the model, which may be another one then."""
    layers = _layers(current())
    if networks is None or not layers:
        yield
        return
    before, baked = list(networks.loaded_networks), any(getattr(layer, "network_current_names", ()) for layer in layers)
    absent = [[name for name in _COPIES if name not in vars(layer)] for layer in layers]
    networks.loaded_networks.clear()
    _apply(networks, layers)
    _forget(networks, layers)
    try:
        yield
    finally:
        now = _layers(current())
        _forget(networks, now)
        networks.loaded_networks[:] = before
        if baked:
            _apply(networks, now)
        for layer, names in zip(now, absent) if now == layers and not baked else ():
            for name in names:
                vars(layer).pop(name, None)


def take_out(networks: Any, model: Any, names: set[str]) -> None:
    """Takes these LoRAs out of the weights, if they are there: the extension would not write a new file of an old name over what the old one left.

    With them go the words inside their files, which would be in the way of the new files' words.
    """
    if names & {net.name for net in networks.loaded_networks}:
        networks.load_networks([])
        _apply(networks, _layers(model))


def _layers(model: Any) -> list[nn.Module]:
    """The layers that the extension rewrites."""
    return [layer for layer in getattr(model, "network_layer_mapping", {}).values() if isinstance(layer, PATCHED)]


@torch.no_grad()  # in grad mode the restored biases would become part of a graph
def _apply(networks: Any, layers: list[Any]) -> None:
    for layer in layers:
        networks.network_apply_weights(layer)


def _forget(networks: Any, layers: list[Any]) -> None:
    for layer in layers:
        networks.network_reset_cached_weight(layer)
