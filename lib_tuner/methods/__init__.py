"""The methods, one line each."""

from __future__ import annotations

from .base import Method
from .lora import LoRA
from .textual_inversion import TextualInversion

METHODS: dict[str, type[Method]] = {method.kind: method for method in (LoRA, TextualInversion)}
