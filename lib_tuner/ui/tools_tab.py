"""The Tools: the root in which javascript/ draws what each tool asks, out of the tools' own arguments (`/tuner/api/tools`), and the job that goes.

The switch above both stands for tabs of gradio's, whose two versions draw what is hidden at different times.
"""

from __future__ import annotations

import gradio as gr

from .compat import plain_html


def switch() -> None:
    """The choice between training and tools, drawn by javascript/; training is shown first."""
    plain_html('<div id="tuner-switch"></div>', elem_id="tuner-switch-root")


class ToolsTab:
    """Draws itself inside a `gr.Blocks`."""

    def __init__(self) -> None:
        with gr.Column(elem_id="tuner-toolbox", elem_classes=["tuner-away"]):
            plain_html('<div id="tuner-tools-root"><p class="tuner-wait">Loading…</p></div>')
