"""The methods, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import build, meant, method_name
from ..settings import TrainConfig
from .adalora import AdaLoRA
from .base import Method
from .controlnet import ControlNet
from .dreambooth import DreamBooth
from .hypernetwork import Hypernetwork
from .loha import LoHa
from .lokr import LoKr
from .lora import LoCon, LoRA
from .pivotal import PivotalTuning
from .t2i_adapter import T2I
from .textual_inversion import TextualInversion

METHODS: dict[str, type[Method]] = {
    method.kind: method for method in (LoRA, LoCon, LoHa, LoKr, AdaLoRA, TextualInversion, PivotalTuning, DreamBooth, Hypernetwork, T2I, ControlNet)
}


def settings(values: Mapping[str, Any]) -> TrainConfig:
    """The settings of a run out of values, the chosen method's own included. Raises ValueError with a line per problem."""
    name = method_name(TrainConfig, values)
    if name not in METHODS:
        raise ValueError(f"method: {name!r} is not one of {', '.join(METHODS)}{meant(name, METHODS)}")
    return build(TrainConfig, values, METHODS[name].Config)
