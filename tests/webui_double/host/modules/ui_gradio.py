"""The page in gradio: fields of the drawing tabs by their element ids, settings, and what extensions bring. It is never served."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gradio as gr

from . import script_callbacks, shared
from .sd_samplers import visible_sampler_names
from .sd_schedulers import schedulers

# element id without the tab's name -> kind, and what it is made with
FIELDS: dict[str, tuple[type, dict[str, Any]]] = {
    "prompt": (gr.Textbox, {"lines": 3}),
    "neg_prompt": (gr.Textbox, {"lines": 3}),
    "styles": (gr.Dropdown, {"choices": [], "multiselect": True}),
    "sampling": (gr.Dropdown, {"choices": visible_sampler_names, "value": "DPM++ 2M"}),
    "scheduler": (gr.Dropdown, {"choices": lambda: [known.label for known in schedulers], "value": "Automatic"}),
    "steps": (gr.Slider, {"minimum": 1, "maximum": 150, "step": 1, "value": 20}),
    "width": (gr.Slider, {"minimum": 64, "maximum": 2048, "step": 8, "value": 512}),
    "height": (gr.Slider, {"minimum": 64, "maximum": 2048, "step": 8, "value": 512}),
    "batch_count": (gr.Slider, {"minimum": 1, "maximum": 100, "step": 1, "value": 1}),
    "batch_size": (gr.Slider, {"minimum": 1, "maximum": 8, "step": 1, "value": 1}),
    "cfg_scale": (gr.Slider, {"minimum": 1, "maximum": 30, "step": 0.5, "value": 7}),
    "seed": (gr.Number, {"value": -1, "precision": 0}),
    "denoising_strength": (gr.Slider, {"minimum": 0, "maximum": 1, "step": 0.01, "value": 0.7}),
}
HIRES: dict[str, tuple[type, dict[str, Any]]] = {
    "hr-checkbox": (gr.Checkbox, {"value": False}),
    "hr_upscaler": (gr.Dropdown, {"choices": lambda: [*shared.latent_upscale_modes, *(known.name for known in shared.sd_upscalers)], "value": "Latent"}),
    "hires_steps": (gr.Slider, {"minimum": 0, "maximum": 150, "step": 1, "value": 0}),
    "hr_scale": (gr.Slider, {"minimum": 1, "maximum": 4, "step": 0.05, "value": 2}),
}
OUTPUT: dict[str, tuple[type, dict[str, Any]]] = {
    "gallery": (gr.Gallery, {"columns": 4}), "send_to_img2img": (gr.Button, {"value": "🖼️"}), "send_to_extras": (gr.Button, {"value": "📐"}),
}  # fmt: skip
BY_DEFAULT = {bool: gr.Checkbox, int: gr.Number, float: gr.Number}  # of a setting without a component of its own


class Page(gr.Blocks):
    """What `shared.demo` is: with the server's mark by which it is closed."""

    tabs: list[tuple[Any, str, str]]

    def close(self, *args: Any, **kwargs: Any) -> None:
        self.is_running = False


def make_page() -> Page:
    with Page(analytics_enabled=False) as page:
        parameters = [_drawing_tab("txt2img", HIRES), _drawing_tab("img2img", {})][0]
        with gr.Tab("Train"):
            script_callbacks.ui_train_tabs_callback(script_callbacks.UiTrainTabParams(txt2img_preview_params=parameters))
        with gr.Tab("Settings"):
            _settings()
    tabs = script_callbacks.ui_tabs_callback()  # outside, since they are pages of their own at first
    with page:
        for blocks, title, name in tabs:
            with gr.Tab(title, elem_id=f"tab_{name}"):
                blocks.render()
    page.tabs, page.server = tabs, SimpleNamespace(should_exit=False)
    return page


def _drawing_tab(name: str, more: dict[str, tuple[type, dict[str, Any]]]) -> list[Any]:
    with gr.Tab(name, elem_id=f"tab_{name}"):
        fields = [_field(f"{name}_{field}", *made) for field, made in FIELDS.items()]
        if more:
            with _field(f"{name}_hr", gr.Accordion, {"label": "Hires. fix", "open": False}):
                fields += [_field(f"{name}_{field}", *made) for field, made in more.items()]
        for field, made in OUTPUT.items():
            _field(f"{name}_{field}", *made)
    return fields


def _field(elem_id: str, kind: type, arguments: dict[str, Any]) -> Any:
    """One component, of which extensions are told; what they make then stands beside it."""
    known = {key: value() if callable(value) else value for key, value in arguments.items()}
    made = kind(elem_id=elem_id, **known)
    script_callbacks.after_component_callback(made, elem_id=elem_id, **known)
    return made


def _settings() -> None:
    for key, known in shared.opts.data_labels.items():
        arguments = known.component_args() if callable(known.component_args) else known.component_args or {}
        kind = known.component or BY_DEFAULT.get(type(known.default), gr.Textbox)
        _field(f"setting_{key}", kind, {"label": known.label, "value": getattr(shared.opts, key), **arguments})
