"""What the Tuner draws inside the WebUI: its tab, a button beside the galleries, and the rows of its section in the Settings tab."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from .. import presets
from ..config import options
from ..disk import expanded
from ..data.incoming import save_with_caption
from ..progress import sentence
from ..settings import TrainConfig
from .compat import js, plain_html, private, quiet
from .compare_tab import CompareTab
from .dataset_tab import DatasetTab
from .form import help_of, label_of
from .tools_tab import ToolsTab, switch
from .train_tab import REPLY, Shared, TrainTab, reply

# settings of a run that the Settings tab has as defaults -> the WebUI's own training setting that means the same
SETTINGS: dict[str, str] = {
    "output": "", "memory.offload": "unload_models_when_training", "memory.pin": "pin_memory", "save_optimizer": "save_optimizer_state",
    "settings_text": "save_training_settings_to_txt", "csv_every": "training_write_csv_every", "tensorboard": "training_enable_tensorboard",
}  # fmt: skip

# fields of the txt2img tab (by element id) -> the settings that the samples get from them
FIELDS = {
    "txt2img_prompt": "sample.prompts", "txt2img_neg_prompt": "sample.negative", "txt2img_steps": "sample.steps", "txt2img_cfg_scale": "sample.cfg",
    "txt2img_width": "sample.width", "txt2img_height": "sample.height", "txt2img_seed": "sample.seed", "txt2img_sampling": "webui.sampler",
    "txt2img_scheduler": "webui.scheduler", "txt2img_styles": "webui.styles", "txt2img_hr_upscaler": "webui.hires_upscaler",
    "txt2img_denoising_strength": "webui.hires_denoise", "txt2img_hires_steps": "webui.hires_steps", "txt2img_hr_scale": "webui.hires_scale",
}  # fmt: skip
HIRES = "txt2img_hr-checkbox"  # the box that turns it on
WANTED = frozenset((*FIELDS, HIRES, "txt2img_gallery", "img2img_gallery"))


@dataclass
class WebUIShared(Shared):
    """What the tab shares with the rest of the page."""

    components: dict[str, Any] = field(default_factory=dict)  # of the host's tabs, by element id
    picture: Callable[[Any], Any] = lambda shown: None  # what a gallery shows -> PIL
    samplers: list[str] = field(default_factory=list)


def tab(shared: WebUIShared) -> gr.Blocks:
    """The tab as the host wants it: Blocks of its own, which the host puts into its page."""
    with gr.Blocks(analytics_enabled=False) as page:
        switch()
        WebUITab(shared)
        DatasetTab()
        CompareTab()
        ToolsTab()
    return page


def notice(text: str) -> gr.Blocks:
    """A tab that says why there is none."""
    with gr.Blocks(analytics_enabled=False) as page:
        plain_html(f'<p class="tuner-notice" role="alert">{escape(text)}</p>')
    return page


def send_button(tab: str) -> gr.Button:
    """Beside a gallery's own buttons: this picture becomes one to learn from."""
    return gr.Button("🧩", elem_id=f"tuner-take-{tab}", elem_classes=["tool"])


def settings_rows() -> list[tuple[str, str, str, Any, Any, dict[str, Any]]]:
    """(key, label, help, default, component, its arguments) of each row of our section in the Settings tab."""
    known = {o.key: o for o in options(TrainConfig)}
    kinds = {bool: (gr.Checkbox, {}), int: (gr.Number, {"precision": 0}), float: (gr.Number, {}), str: (gr.Textbox, {})}
    rows = [(key, label_of(known[key]), help_of(known[key]), "" if key == "output" else known[key].default, *kinds[known[key].type]) for key in SETTINGS]
    return [*rows, ("preset", "Preset", "Your own preset by its name, with which the form starts; empty: none.", "", gr.Textbox, {})]


def kept_preset(home: Path, name: str) -> dict[str, Any]:
    """The values of the preset that the form starts with; none where it is gone."""
    try:
        return presets.read_own(home / "presets", name) if name else {}
    except (ValueError, OSError):
        return {}


class WebUITab(TrainTab):
    """The Train tab, with what comes from the host's other tabs."""

    shared: WebUIShared

    def _draw_beside_samples(self) -> None:
        self.from_txt2img = gr.Button("Samples as in txt2img", elem_id="tuner-from-txt2img", size="sm")

    def _hidden_fields(self) -> None:
        super()._hidden_fields()
        with gr.Column(elem_classes=["tuner-hidden"]):
            self.index = gr.Number(value=0, elem_id="tuner-index", precision=0)

    def _listen(self) -> None:
        super()._listen()
        have = {name: self.shared.components[name] for name in (*FIELDS, HIRES) if name in self.shared.components}
        self._have = have
        self._on(self.from_txt2img.click, self.samples_taken, set(have.values()), [*self.form.outputs, self.reply])
        for tab_name in ("txt2img", "img2img"):
            button, gallery = self.shared.components.get(f"{tab_name}_to_tuner"), self.shared.components.get(f"{tab_name}_gallery")
            if button is not None and gallery is not None:
                self._take_from(button, gallery)

    def _take_from(self, button: Any, gallery: Any) -> None:
        folder = self.form.widgets["data.folder"]
        done = button.click(self.picture_taken, inputs=[gallery, self.index, folder], outputs=[folder, self.reply], **quiet(), **private(),
                            **js("(shown, index, folder) => [shown, selected_gallery_index(), folder]"))  # fmt: skip
        done.success(None, [self.reply], None, **js(REPLY), **private())

    def samples_taken(self, data: dict[Any, Any]) -> dict[Any, Any]:
        """The samples get the settings of the txt2img tab as they are now."""
        shown = {name: data[component] for name, component in self._have.items()}
        values = {key: _as_setting(key, shown[name]) for name, key in FIELDS.items() if shown.get(name) is not None}
        if not shown.get(HIRES):
            values["webui.hires_scale"] = 0.0
        if values.get("sample.seed", 0) < 0:
            values["sample.seed"] = 1
        return {**self.form.updates(values), self.reply: reply(said="The samples will be drawn as txt2img draws.", recheck=True)}

    def picture_taken(self, shown: list[Any] | None, index: int | float | None, folder: str) -> list[Any]:
        """The chosen picture of a gallery becomes a file in the data folder, its prompt the caption."""
        if not shown:
            return [folder, reply(general=["The gallery has no picture to take."])]
        folder = folder.strip() or str(self.shared.home / "pictures")
        try:
            picture = self.shared.picture(shown[max(0, int(index or 0)) % len(shown)])
            saved = save_with_caption(picture, expanded(folder))
        except (ValueError, OSError, AssertionError) as error:
            return [folder, reply(general=[sentence(error)])]
        gr.Info(f"{saved.name} is in the Tuner's data folder.")
        return [folder, reply(said=f"{saved.name} is in {folder}.", recheck=True)]


def _as_setting(key: str, shown: Any) -> Any:
    """A field's value as the setting takes it; a prompt of several lines is one sample prompt."""
    if key == "sample.prompts":
        return " ".join(str(shown).split("\n"))
    if key == "webui.styles":
        return ", ".join(shown) if isinstance(shown, list) else str(shown)
    if key == "webui.scheduler" and shown == "Automatic":
        return ""
    return shown
