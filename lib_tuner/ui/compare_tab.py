"""The comparison: the root in which javascript/ draws what is compared, the grid, and the numbers, out of its own routes (`/tuner/api/compare`)."""

from __future__ import annotations

import gradio as gr

from .compat import plain_html


class CompareTab:
    """Draws itself inside a `gr.Blocks`."""

    def __init__(self) -> None:
        with gr.Column(elem_id="tuner-compare", elem_classes=["tuner-away"]):
            plain_html('<div id="tuner-compare-root"><p class="tuner-wait">Loading…</p></div>')
