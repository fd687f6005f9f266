"""Settings. What nobody has set is not in `data`: it is the default, and a key of config.json only once it is set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import errors


@dataclass
class OptionInfo:
    """What is known of a setting."""

    default: Any = None
    label: str = ""
    component: Any = None  # a class of gradio
    component_args: Any = None  # a dict, or what makes one
    onchange: Callable[[], Any] | None = None
    section: tuple[str | None, str] = (None, "")
    comment_after: str = ""

    def info(self, info: str) -> OptionInfo:
        self.comment_after += f" <small>{info}</small>"
        return self

    def needs_reload_ui(self) -> OptionInfo:
        return self.info("takes effect after Reload UI")


def options_section(section_identifier: tuple[str, str], options_dict: Mapping[str, OptionInfo]) -> dict[str, OptionInfo]:
    """The settings with the section they are in."""
    for known in options_dict.values():
        known.section = section_identifier
    return {**options_dict}


class Options:
    """A setting is an attribute; other attributes can be set as on any object."""

    def __init__(self, data_labels: dict[str, OptionInfo]):
        vars(self).update(data_labels=data_labels, data={})

    def __getattr__(self, name: str) -> Any:
        own = vars(self)
        if name in own.get("data", ()):
            return own["data"][name]
        if name in own.get("data_labels", ()):
            return own["data_labels"][name].default
        raise AttributeError(f"There is no setting {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        is_setting = name in self.data or name in self.data_labels
        (self.data if is_setting else vars(self))[name] = value

    def set(self, key: str, value: Any, is_api: bool = False, run_callbacks: bool = True) -> bool:
        """Whether it is another value now. Raises KeyError for what is no setting; where what has to follow fails, the old value is put back."""
        known = self.data_labels[key]
        before = getattr(self, key)
        if self.data.get(key) == value:
            return False
        self.data[key] = value
        try:
            if run_callbacks and known.onchange:
                known.onchange()
        except Exception as error:  # whatever it may be
            errors.display(error, f"changing setting {key} to {value}")
            self.data[key] = before
            return False
        return True

    def get_default(self, key: str) -> Any:
        return self.data_labels[key].default if key in self.data_labels else None

    def add_option(self, key: str, info: OptionInfo) -> None:
        """An extension's setting, which is in `data` from the start."""
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def onchange(self, key: str, func: Callable[[], Any], call: bool = True) -> None:
        self.data_labels[key].onchange = func
        if call:
            func()

    def save(self, filename: str) -> None:
        Path(filename).write_text(json.dumps(self.data, indent=4, ensure_ascii=False), encoding="utf-8")

    def load(self, filename: str) -> None:
        self.data = json.loads(Path(filename).read_text(encoding="utf-8"))
