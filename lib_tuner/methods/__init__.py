"""The methods, one line each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..config import build, flatten, meant, method_name
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
    """The settings of a run out of values, the chosen method's own included, fit for the method. Raises ValueError with a line per problem."""
    name = method_name(TrainConfig, values)
    if len(several := [part for part in re.split(r"[\s,+&/]+", name) if part in METHODS]) > 1:
        raise ValueError(f"method: {' and '.join(several)} are not trained at once; a word beside a LoRA, LoHa or LoKr is: method = pivotal with pivotal.inversion_steps = 0")
    if name not in METHODS:
        raise ValueError(f"method: {name!r} is not one of {', '.join(METHODS)}{meant(name, METHODS)}")
    method, flat = METHODS[name], flatten(values)
    if absent := [f"{name}{key}: {why}" for key, why in method.refuses.items() if name + key in flat]:
        raise ValueError("\n".join(absent))
    cfg = build(TrainConfig, flat, method.Config)
    method.check(cfg)
    return cfg
