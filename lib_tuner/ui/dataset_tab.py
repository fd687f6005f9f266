"""The data-set panel: the root in which javascript/ draws the folder that is open, out of its own routes (`/tuner/api/data`)."""

from __future__ import annotations

import gradio as gr

from .compat import plain_html


class DatasetTab:
    """Draws itself inside a `gr.Blocks`."""

    def __init__(self) -> None:
        with gr.Column(elem_id="tuner-dataset", elem_classes=["tuner-away"]):
            plain_html('<div id="tuner-data-root"><p class="tuner-wait">Loading…</p></div>')
