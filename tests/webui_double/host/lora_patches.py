"""The Lora extension's functions in the place of torch's: for all layers of the process, whoever made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
from torch import nn

from modules import patches, shared

CLASSES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
_FIELDS = {"forward": "forward", "load_state_dict": "_load_from_state_dict"}  # of this object's attributes, and of torch


class Replaced:
    """Replaces them, and keeps the original ones as `Linear_forward`, `Linear_load_state_dict` and so on."""

    def __init__(self) -> None:
        for kind in CLASSES:
            for name, field in _FIELDS.items():
                own = getattr(kind, field)
                setattr(self, f"{kind.__name__}_{name}", patches.patch(__name__, kind, field, _MADE[name](kind, own)))

    def undo(self) -> None:
        for kind in CLASSES:
            for name, field in _FIELDS.items():
                patches.undo(__name__, kind, field)
                setattr(self, f"{kind.__name__}_{name}", None)


def _forward(kind: type[nn.Module], own: Callable[..., Any]) -> Callable[..., Any]:
    beside = kind in (nn.Linear, nn.Conv2d)

    def forward(layer: nn.Module, *given: Any, **named: Any) -> Any:
        if beside and shared.opts.lora_functional:
            return networks.network_forward(layer, *given, original=own, **named)
        networks.network_apply_weights(layer)
        return own(layer, *given, **named)

    return forward


def _loading(kind: type[nn.Module], own: Callable[..., Any]) -> Callable[..., Any]:
    def _load_from_state_dict(layer: nn.Module, *given: Any, **named: Any) -> Any:
        networks.network_reset_cached_weight(layer)
        return own(layer, *given, **named)

    return _load_from_state_dict


_MADE = {"forward": _forward, "load_state_dict": _loading}
