"""Settings as widgets and back: every field of the settings becomes one widget, whose value goes to `build` under the field's key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import gradio as gr

from ..config import Option, options
from ..methods import METHODS
from ..settings import TrainConfig
from .compat import plain_html

LINES = {"sample.prompts": 3, "prior.prompt": 3, "sample.negative": 1, "textual_inversion.embeddings": 2, "pivotal.words.embeddings": 2}  # of fields that hold more than one
OWN = "own"  # where the method's own essentials stand
ROWS = (("checkpoint", "method"), ("name", "trigger"), ("data.folder",), ("steps", "optim.lr"), (OWN,), ("data.resolution", "data.batch"), ("sample.prompts",))
ESSENTIALS = frozenset(key for row in ROWS for key in row)
SECTIONS = {"": "Run", "data": "Data", "optim": "Optimizer", "loss": "Loss", "inpaint": "Inpainting models", "prior": "Prior preservation", "sample": "Samples", "memory": "Memory", "webui": "Samples in the WebUI"}
_SECTION = re.compile(r"(?:([\w.]+): )?(.*)")  # `optim.lr: ...`, `sample: every is ...`, or a sentence of the run's own settings
LEFT_OUT = frozenset(("resume",))  # a button of its own


def named(models: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{path: name} of checkpoints, a path's own words where two have the same name."""
    pairs = list(models)
    names = [name for name, _ in pairs]
    return {path: name if names.count(name) == 1 else path for name, path in pairs}


class Form:
    """The widgets of all settings. Made inside a `gr.Blocks`; `hidden`: keys that the host decides (`webui.`: all of a section), `models`: checkpoints to choose from."""

    def __init__(self, values: Mapping[str, Any], models: Iterable[tuple[str, str]] = (), hidden: Iterable[str] = ()):
        self.start = dict(values)
        given = set(hidden)
        self.hidden = LEFT_OUT | {o.key for o in options(TrainConfig) if o.key in given or f"{o.key.partition('.')[0]}." in given}
        # what is chosen by another name than its value: gradio 3.41 has no pairs in its drop-downs
        self.names = {"method": {name: method.label for name, method in METHODS.items()}, "checkpoint": named(models)}
        self.widgets: dict[str, Any] = {}
        self.first: dict[str, Any] = {}  # what each widget is drawn with
        self.groups: dict[str, list[Any]] = {name: [] for name in METHODS}  # what is shown for one method alone
        self.method = str(values.get("method", TrainConfig.method))

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def essentials(self) -> None:
        """The ten or so fields that nearly every run sets."""
        known = {o.key: o for o in options(TrainConfig)}
        for keys in ROWS:
            if keys == (OWN,):
                self._of_methods(essential=True)
            else:
                self._row([known[key] for key in keys if key not in self.hidden])

    def everything(self) -> None:
        """All other fields, a section each; the method's own first."""
        self._of_methods(essential=False)
        for section, title in SECTIONS.items():
            fields = [o for o in options(TrainConfig) if o.key.rpartition(".")[0] == section and o.key not in ESSENTIALS | self.hidden]
            if not fields:
                continue
            with self.section(section or "run", title):
                for option in fields:
                    self._widget(option)

    def _of_methods(self, essential: bool) -> None:
        for name, method in METHODS.items():
            own = [o for o in options(method.Config, name) if o.essential == essential]
            if not own:
                continue
            with gr.Column(visible=name == self.method, elem_classes=["tuner-own"]) as group:
                self.groups[name].append(group)
                if essential:
                    self._row(own)
                else:
                    with self.section(name, method.label):
                        for option in own:
                            self._widget(option)

    def _row(self, fields: list[Option]) -> None:
        if not fields:
            return
        with gr.Row(elem_classes=["tuner-row"]):
            for option in fields:
                self._widget(option)

    def section(self, name: str, title: str) -> gr.Column:
        """A foldable section: the button above it is heard by javascript/, so that search can unfold it."""
        plain_html(f'<button type="button" class="tuner-fold" aria-expanded="false" aria-controls="tuner-s-{name}">{escape(title)}</button>', elem_classes=["tuner-head"])
        return gr.Column(elem_id=f"tuner-s-{name}", elem_classes=["tuner-section"])

    def _widget(self, option: Option) -> None:
        if option.key in self.hidden:
            return
        value = self.first[option.key] = self.start.get(option.key, option.default)
        common = {"label": label_of(option), "info": help_of(option), "elem_id": element_id(option.key), "elem_classes": ["tuner-field"], "min_width": 140}
        self.widgets[option.key] = self._made(option, value, common)

    def _made(self, option: Option, value: Any, common: dict[str, Any]) -> Any:
        if names := self.names.get(option.key):
            return gr.Dropdown([*names.values()], value=names.get(value, value), allow_custom_value=option.key != "method", **common)
        if option.choices:
            return gr.Dropdown([str(c) for c in option.choices], value=str(value), **common)
        if option.type is bool:
            return gr.Checkbox(value=bool(value), **common)
        if option.type in (int, float):
            return gr.Number(value=value, **common)  # limits are build's: gradio would round and cut without a word
        return gr.Textbox(value=str(value), lines=LINES.get(option.key, 1), **common)

    # ---- values ------------------------------------------------------------------------------------------------------

    def values(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """What `build` takes, from what a handler gets; of the methods' own settings those of the chosen one."""
        given = {key: self.value(key, data[widget]) for key, widget in self.widgets.items()}
        others = tuple(f"{name}." for name in METHODS if name != given["method"])
        return {key: value for key, value in given.items() if not key.startswith(others)}

    def value(self, key: str, shown: Any) -> Any:
        """A setting out of what its widget gives."""
        names = {label: value for value, label in self.names.get(key, {}).items()}
        return "" if shown is None else names.get(shown, shown)

    def changed(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        """What a handler gets, as far as it is not what the form was drawn with: what a browser keeps, so that all else follows the program."""
        given = {key: self.value(key, data[widget]) for key, widget in self.widgets.items()}
        return {key: value for key, value in given.items() if self._shown(key, value) != self._shown(key, self.first[key])}

    def fitting(self, kept: Any) -> dict[str, Any]:
        """Of what a browser has kept, maybe of another version, what the widgets can show; gradio answers nothing at all where one of them cannot."""
        known = kept if isinstance(kept, dict) else {}
        return {key: value for key, value in known.items() if key in self.widgets and self._fits(key, value)}

    def _fits(self, key: str, value: Any) -> bool:
        widget = self.widgets[key]
        if isinstance(widget, gr.Dropdown):
            choices = [choice[1] if isinstance(choice, tuple) else choice for choice in widget.choices]  # pairs in the current gradio
            return widget.allow_custom_value and isinstance(value, str) or self._shown(key, value) in choices
        if isinstance(widget, gr.Number):
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return isinstance(value, bool if isinstance(widget, gr.Checkbox) else str)

    def updates(self, values: Mapping[str, Any]) -> dict[Any, Any]:
        """What a handler returns so that the widgets show these settings; others stay as they are."""
        shown = {self.widgets[key]: gr.update(value=self._shown(key, value)) for key, value in values.items() if key in self.widgets}
        return {**shown, **(self.visible(values["method"]) if "method" in values else {})}

    def _shown(self, key: str, value: Any) -> Any:
        """A setting as its widget takes it."""
        text = isinstance(self.widgets[key], (gr.Dropdown, gr.Textbox))
        return str(self.names.get(key, {}).get(value, value)) if text else value

    def visible(self, method: str) -> dict[Any, Any]:
        """The groups of one method alone."""
        return {group: gr.update(visible=name == method) for name, groups in self.groups.items() for group in groups}

    @property
    def outputs(self) -> list[Any]:
        """All that `updates` may change."""
        return [*self.widgets.values(), *(group for groups in self.groups.values() for group in groups)]


def element_id(key: str) -> str:
    """The DOM id of a setting's widget."""
    return "tuner-f-" + key.replace(".", "-")


def label_of(option: Option) -> str:
    """What stands above a widget: the label with its unit."""
    return f"{option.label} ({option.unit})" if option.unit else option.label


def every_label() -> dict[str, str]:
    """key -> label of all settings, of all methods."""
    return {o.key: label_of(o) for o in (*options(TrainConfig), *(o for name, method in METHODS.items() for o in options(method.Config, name)))}


def help_of(option: Option) -> str:
    """The help text with the limits."""
    if option.min is None or option.max is None or option.choices:
        return option.help
    return f"{option.help} ({option.min:g} to {option.max:g})" if option.max < 1e6 else option.help


def problems_by_key(message: str, keys: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The lines of a ValueError of `build`, those that begin with a setting's key under that key; the rest as they are."""
    known, marked, rest = list(keys), {}, []
    for line in message.splitlines():
        section, text = _SECTION.match(line).groups()
        key = section if section in known else _section_key(section or "", text, known)
        if key:
            marked[key] = text
        elif line.strip():
            rest.append(line)
    return marked, rest


def _section_key(section: str, text: str, known: list[str]) -> str | None:
    """`sample: every is 5, but ...` belongs to the first setting of its section that it names."""
    own = [key for key in known if key.rpartition(".")[0] == section]
    return next((key for word in text.split()[:3] for key in own if key.rpartition(".")[2] == word.strip("():,")), None)
