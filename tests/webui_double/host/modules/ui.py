"""The page: with gradio, as far as extensions look at it; else what belongs to it without any fields."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from . import script_callbacks, scripts

with_gradio = False  # set before the start


def create_ui() -> Any:
    """Settings, drawing tabs, tabs of the Train tab, tabs of extensions, in this order. `tabs` of what comes back are the extensions'."""
    script_callbacks.ui_settings_callback()
    for runner, is_img2img in ((scripts.scripts_txt2img, False), (scripts.scripts_img2img, True)):
        runner.set_up(is_img2img)
    if with_gradio:
        from . import ui_gradio

        return ui_gradio.make_page()
    script_callbacks.ui_train_tabs_callback(script_callbacks.UiTrainTabParams(txt2img_preview_params=[]))
    return SimpleNamespace(tabs=script_callbacks.ui_tabs_callback(), server=SimpleNamespace(should_exit=False), close=lambda: None)
