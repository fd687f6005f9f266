"""The Train tab: the form, what answers to it, and the root in which javascript/ draws the run, the queue and the history.

Handlers answer with one JSON text in a hidden field, which the page's script reads: {problems: {key: sentence}, general, plan, said, added,
form: what the browser is to keep of the form, restored}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from .. import foreign, presets, runs
from ..config import flat_values
from ..comparisons import Comparisons
from ..datasets import Datasets
from ..host import Host
from ..jobs import Jobs
from ..methods import METHODS, settings
from ..outlook import outlook, refuse
from ..settings import TrainConfig
from ..toolbox import Toolbox
from .compat import file_path, js, latest, plain_html, private, quiet
from .form import Form, element_id, every_label, problems_by_key

NONE = "none"
REPLY = "(r) => { if (window.tuner) window.tuner.reply(r); return []; }"


@dataclass
class Shared:
    """What the tabs of one page have in common."""

    jobs: Jobs
    hosts: Callable[[TrainConfig], Host]
    home: Path  # the output folder; own presets lie in its `presets`
    values: dict[str, Any]  # what the form starts with
    models: list[tuple[str, str]] = field(default_factory=list)  # checkpoints to choose from: name, path
    api: str = "tuner/api"  # where the routes are, seen from the page
    hidden: tuple[str, ...] = ()  # settings that the host decides, by key or as `section.` all of one
    key: str = ""  # what the routes know the page by
    tools: Toolbox | None = None
    sets: Datasets | None = None
    comparisons: Comparisons | None = None

    @property
    def presets(self) -> Path:
        return self.home / "presets"


class TrainTab:
    """Draws itself inside a `gr.Blocks`."""

    def __init__(self, shared: Shared):
        self.shared = shared
        self.form = Form(shared.values, shared.models, shared.hidden)
        with gr.Row(elem_id="tuner-train"):
            with gr.Column(scale=5, min_width=320, elem_id="tuner-form"):
                self._draw_form()
            with gr.Column(scale=7, min_width=320, elem_id="tuner-side"):
                labels = escape(json.dumps(every_label()))
                plain_html(f'<div id="tuner-live" data-api="{escape(shared.api)}" data-key="{escape(shared.key)}" data-labels="{labels}" data-filled="{int(not shared.key and not shared.values.get("checkpoint"))}"><p class="tuner-wait">Loading…</p></div>', elem_id="tuner-live-root")
        self._hidden_fields()
        self._listen()

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def _draw_form(self) -> None:
        plain_html(
            '<div class="tuner-tools"><div role="radiogroup" aria-label="How many settings are shown" class="tuner-view">'
            '<button type="button" role="radio" aria-checked="true" data-view="essentials">Essentials</button>'
            '<button type="button" role="radio" aria-checked="false" data-view="everything">Everything</button></div>'
            '<input type="search" class="tuner-search" placeholder="Search settings" aria-label="Search settings"></div>',
            elem_id="tuner-tools")  # fmt: skip
        with gr.Row(elem_classes=["tuner-presets"]):
            self.goal = gr.Dropdown([NONE, *(goal.label for goal in presets.GOALS.values())], value=NONE, label="Preset for", info="What is learned.", elem_id="tuner-goal")
            self.pace = gr.Dropdown([NONE, *(pace.label for pace in presets.PACES.values())], value=NONE, label="Pace", info="How long it may take.", elem_id="tuner-pace")
        self.advice = plain_html("", elem_id="tuner-advice")
        self.form.essentials()
        self._draw_beside_samples()
        with gr.Column(elem_id="tuner-everything"):
            self.form.everything()
        self._draw_loading()
        with gr.Row(elem_id="tuner-actions"):
            self.plan_button = gr.Button("Show the plan", elem_id="tuner-plan-button", size="lg")
            self.train_button = gr.Button("Train", variant="primary", elem_id="tuner-train-button", size="lg")
        plain_html('<div id="tuner-plan" aria-live="polite"></div>')

    def _draw_beside_samples(self) -> None:
        """A place below the sample prompts, for a host that has more to offer."""

    def _draw_loading(self) -> None:
        with self.form.section("load", "Load and keep settings"):
            self.past = gr.Dropdown(list(self._past()), value=None, label="Settings of an earlier run", info="All settings of the run are put into the form.", elem_id="tuner-past", elem_classes=["tuner-field"])
            self.file = gr.File(label="Settings from a file: a trained .safetensors, our .toml, the WebUI's settings file, kohya's .toml or .json",
                                file_types=[".safetensors", ".toml", ".json", ".txt"], elem_id="tuner-file", elem_classes=["tuner-field"])
            with gr.Row():
                self.own = gr.Dropdown(presets.own_presets(self.shared.presets), value=None, label="Own preset", info="Puts a preset of yours into the form.",
                                       elem_id="tuner-own", elem_classes=["tuner-field"])
                self.own_name = gr.Textbox(label="Keep as preset", info="Name for the settings as they are now.", elem_id="tuner-own-name", elem_classes=["tuner-field"])
            with gr.Row():
                self.keep_button = gr.Button("Keep preset", elem_id="tuner-keep")
                self.drop_button = gr.Button("Delete preset", elem_id="tuner-drop")

    def _hidden_fields(self) -> None:
        """What the page's script and the handlers tell each other through."""
        with gr.Column(elem_classes=["tuner-hidden"]):
            self.reply = gr.Textbox(elem_id="tuner-reply", show_label=False)
            self.order = gr.Textbox(elem_id="tuner-order", show_label=False)
            self.order_button = gr.Button("order", elem_id="tuner-order-button")
            self.check_button = gr.Button("check", elem_id="tuner-check-button")
            self.dropped = gr.Button("drop", elem_id="tuner-drop-button")

    # ---- wiring ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        fields, reply = set(self.form.widgets.values()), [self.reply]
        both = [*self.form.outputs, self.reply]
        self._on(self.check_button.click, self.check, fields, reply, **latest())
        self._on(self.plan_button.click, self.plan, fields, reply)
        self._on(self.train_button.click, self.start, fields, reply)
        self._on(self.order_button.click, self.ordered, {self.order}, both)
        chosen = {self.goal, self.pace, self.form.widgets["method"]}
        self._on(self.form.widgets["method"].change, self.method_shown, {self.form.widgets["method"]}, both)
        for widget in (self.goal, self.pace, self.form.widgets["method"]):  # a preset is another one for another method
            self._on(widget.input, self.preset_chosen, chosen, [*both, self.advice])
        self._on(self.past.input, self.past_chosen, {self.past}, both)
        self._on(self.file.upload, self.file_given, {self.file}, both)
        self._on(self.own.input, self.own_chosen, {self.own}, both)
        self._on(self.keep_button.click, self.keep, {*fields, self.own_name}, [self.own, self.reply])
        self.drop_button.click(None, None, None, **js("() => { window.tuner.form.askToDrop(); return []; }"), **private())
        self._on(self.dropped.click, self.drop, {self.own}, [self.own, self.reply])

    def _on(self, event: Callable[..., Any], handler: Callable[..., Any], inputs: set[Any], outputs: list[Any], **more: Any) -> None:
        done = event(handler, inputs=inputs, outputs=outputs, **quiet(), **private(), **more)
        done.success(None, [self.reply], None, **js(REPLY), **private())

    def refresh(self) -> dict[Any, Any]:
        """What may have changed since the page was drawn, for a page that is opened."""
        return {self.past: gr.update(choices=list(self._past())), self.own: gr.update(choices=presets.own_presets(self.shared.presets))}

    @property
    def refreshed(self) -> list[Any]:
        """What `refresh` changes."""
        return [self.past, self.own]

    # ---- handlers: read values, call one function, say what came of it ----------------------------------------------

    def check(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Marks what is wrong, while the form is being filled in."""
        return {self.reply: self._answer(self.form.values(data), lambda cfg: refuse(cfg), form=self.form.changed(data))}

    def plan(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Says what the run would do."""
        return {self.reply: self._answer(self.form.values(data), lambda cfg: {"plan": self._outlook(cfg)})}

    def start(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Puts the run into the queue."""
        values = self.form.values(data)

        def add(cfg: TrainConfig) -> dict[str, Any]:
            refuse(cfg)
            return {"added": self.shared.jobs.add(values).id}

        return {self.reply: self._answer(values, add)}

    def ordered(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Sets what the page's own script asks for: {"set": {key: value}}, {"run": folder id}, {"kept": what the browser has kept} or {"afresh": true}."""
        order = json.loads(data[self.order] or "{}")
        if "kept" in order:
            return {**self.form.updates(self.form.fitting(order["kept"])), self.reply: reply(restored=True, recheck=True)}
        if "afresh" in order:
            return {**self.form.updates(self.form.first), self.reply: reply(recheck=True)}
        if "run" in order:
            return self._load(lambda: (runs_settings(self.shared.jobs.folder_of(order["run"])), "The run's settings are in the form."))
        return {**self.form.updates(order.get("set", {})), self.reply: reply(said="", recheck=True)}

    def method_shown(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """The fields of the method alone, whoever has chosen it."""
        return {**self.form.visible(self.form.value("method", data[self.form.widgets["method"]])), self.reply: reply(recheck=True)}

    def preset_chosen(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        goal, pace = named(presets.GOALS, data[self.goal]), named(presets.PACES, data[self.pace])
        values = presets.preset_values(goal, pace, self.form.value("method", data[self.form.widgets["method"]]))
        advice = f"<p>{escape(presets.GOALS[goal].advice)}</p>" if goal else ""
        return {**self.form.updates(values), self.advice: advice, self.reply: reply(recheck=True)}

    def past_chosen(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        folder = self._past().get(data[self.past])
        return self._load(lambda: (runs_settings(folder), f"The settings of {data[self.past]} are in the form.")) if folder else {self.reply: reply()}

    def file_given(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        path = file_path(data[self.file])
        return self._load(lambda: self._imported(path)) if path else {self.reply: reply()}

    def own_chosen(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        name = data[self.own]
        return self._load(lambda: (presets.read_own(self.shared.presets, name), f"Your preset {name} is in the form.")) if name else {self.reply: reply()}

    def keep(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        def save(cfg: TrainConfig) -> dict[str, Any]:
            try:
                return {"said": f"Kept as {presets.save_own(self.shared.presets, str(data[self.own_name] or ''), self.form.values(data)).stem}."}
            except (ValueError, OSError) as error:  # about the preset's name, which is no setting of the form
                return {"general": [str(error)]}

        answer = self._answer(self.form.values(data), save)
        return {self.own: gr.update(choices=presets.own_presets(self.shared.presets)), self.reply: answer}

    def drop(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        name = data[self.own]
        if not name:
            return {self.own: gr.update(), self.reply: reply(general=["Choose the preset to delete first."])}
        try:
            presets.delete_own(self.shared.presets, name)
        except (ValueError, OSError) as error:
            return {self.own: gr.update(choices=presets.own_presets(self.shared.presets)), self.reply: reply(general=[str(error)])}
        return {self.own: gr.update(choices=presets.own_presets(self.shared.presets), value=None), self.reply: reply(said=f"{name} is deleted.")}

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _answer(self, values: Mapping[str, Any], act: Callable[[TrainConfig], dict[str, Any] | None], **more: Any) -> str:
        """What `act` says of the settings, or what is wrong with them, field by field; and `more`."""
        try:
            return reply(**(act(settings(values)) or {}), **more)
        except (ValueError, OSError) as error:
            marked, rest = problems_by_key(str(error), self.form.widgets)
            return reply(problems={element_id(key): text for key, text in marked.items()}, general=rest, **more)

    def _outlook(self, cfg: TrainConfig) -> dict[str, Any]:
        forecast = self.shared.hosts(cfg).forecast()
        return asdict(outlook(cfg, forecast, runs.seconds_per_step(self.shared.jobs.outputs(), cfg, forecast.note)))

    def _load(self, read: Callable[[], tuple[dict[str, Any], str]]) -> dict[Any, Any]:
        """Settings into the form, or the sentence that says why not."""
        try:
            values, said = read()
        except (ValueError, OSError) as error:
            return {self.reply: reply(general=[str(error)])}
        return {**self.form.updates(values), self.reply: reply(said=said, recheck=True)}

    def _imported(self, path: str) -> tuple[dict[str, Any], str]:
        found = foreign.read_settings(path, METHODS)
        without = f" Without a counterpart here: {', '.join(found.without)}." if found.without else ""
        return found.values, f"Read as {found.source}: {len(found.values)} settings are in the form.{without}"

    def _past(self) -> dict[str, Path]:
        """The folders of all runs by what they are called, with the folder above where that is not this program's."""
        folders = [Path(row["folder"]) for row in self.shared.jobs.history()]
        return {folder.name if folder.parent == self.shared.home else str(folder): folder for folder in folders}


def runs_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run as flat values."""
    return flat_values(runs.settings_of(folder))


def named(table: Mapping[str, Any], label: str) -> str:
    """The name of the entry with this label; empty for none."""
    return next((name for name, entry in table.items() if entry.label == label), "")


def reply(**content: Any) -> str:
    """A handler's answer as the page's script reads it; in ASCII, as `web.answers.Answer`: gradio sends no text that UTF-8 has no bytes for."""
    return json.dumps({key: value for key, value in content.items() if value not in (None, "")})
