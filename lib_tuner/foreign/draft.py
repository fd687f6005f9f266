"""Settings on their way from a foreign file into ours: every key of the file becomes a setting, makes no difference, or is missed by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..config import build, flat_values
from ..settings import TrainConfig

_USUAL = {"huber_scale": 1, "factor": -1, "unit": 1, "d_coef": 1, "caption_separator": ","}  # not 0, and yet as if it were not there
_SHOWN = 60


class Draft:
    """Keys are taken out of `raw`; what they became is in `values`, what became nothing in `without`. `called`: a key as the file writes it."""

    def __init__(self, raw: Mapping[str, Any], kind: str, called: Callable[[str], str] = str):
        self.raw = {key: value for key, value in raw.items() if str(value).strip() not in ("", "None", "[]", "{}")}
        self.kind, self.called = kind, called
        self.chosen = True  # whether the file says which method; else the form keeps its own
        self.values: dict[str, Any] = {}
        self.origins: dict[str, tuple[str, Any]] = {}
        self.without: list[str] = []

    def take(self, key: str, default: Any = None) -> Any:
        return self.raw.pop(key, default)

    def put(self, key: str, value: Any, name: str, was: Any = None) -> None:
        """Our `key` (`.rank`: the method's own) becomes `value`, because the file's `name` is `was` (default: the value)."""
        key = self.kind + key if key.startswith(".") else key
        self.values[key], self.origins[key] = value, (name, value if was is None else was)

    def miss(self, name: str, value: Any) -> None:
        """The file's `name` has no counterpart, which is worth a word only where it is switched on."""
        usual = _USUAL.get(name.rpartition(" ")[2])
        if is_on(value) and (usual is None or usual not in (value, number(value))):
            shown = " ".join(str(value).split())
            self.without.append(f"{self.called(name)} = {shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + '...'}")

    def miss_rates(self) -> None:
        for key in [key for key in ("optim.lr", "optim.text_lr") if key in self.values]:
            del self.values[key]
            self.miss(*self.origins[key])

    def put_rest(self, same: Mapping[str, str], choices: Mapping[str, tuple[str, Mapping[str, Any]]], idle: re.Pattern) -> None:
        """What is left in `raw`: settings of another name, settings of other words too, what makes no difference; all else is missed."""
        for key, value in self.raw.items():
            ours, words = choices.get(key, (same.get(key, ""), None))
            found = value if words is None else words.get(str(value).strip().lower())
            if ours and found is not None:
                self.put(ours, found, key, value)
            elif not idle.fullmatch(key):
                self.miss(key, value)

    def fit(self, config: type) -> dict[str, Any]:
        """The values that `build` accepts, as it reads them. Tried one by one, since some are allowed beside others only; what never fits is missed."""
        kept, rest, before = {"method": self.kind}, dict(self.values), -1
        while len(rest) != before:
            before = len(rest)
            for key in list(rest):
                if _builds({**kept, key: rest[key]}, config):
                    kept[key] = rest.pop(key)
        for key in rest:
            self.miss(*self.origins[key])
        flat = flat_values(build(TrainConfig, kept, config))
        return {key: flat[key] for key in kept if self.chosen or key != "method"}


def _builds(values: Mapping[str, Any], config: type) -> bool:
    try:
        build(TrainConfig, values, config)
    except ValueError:
        return False
    return True


def number(value: Any) -> float | None:
    """The value as a number, or None where it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def is_on(value: Any) -> bool:
    """Whether a value switches something on: it is not empty, off or 0."""
    return str(value).strip().lower() not in ("", "none", "false", "no", "off", "disabled", "[]", "{}") and number(value) != 0
