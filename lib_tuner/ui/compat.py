"""What differs between gradio 3.41.2, the WebUI's, and the current one, which the standalone page runs on."""

from __future__ import annotations

from typing import Any

import gradio as gr

OLD = gr.__version__.startswith("3.")


def js(code: str) -> dict[str, Any]:
    """The argument of an event listener that runs JavaScript in the browser."""
    return {"_js" if OLD else "js": code}


def private() -> dict[str, Any]:
    """The argument of an event listener that keeps it out of the page's own API, where positions of fields would become a promise."""
    return {"api_name": False} if OLD else {"api_visibility": "private"}


def quiet() -> dict[str, Any]:
    """No spinner over the outputs: the page says itself what it waits for."""
    return {"show_progress": "hidden"}


def latest() -> dict[str, Any]:
    """An event that comes while the same one is answered is answered afterwards; the old gradio drops it, so our script waits with it (tuner_form.js)."""
    return {} if OLD else {"trigger_mode": "always_last"}


def unhurried(page: gr.Blocks) -> gr.Blocks:
    """The page, whose queue looks for events twenty times a second and for progress ten times, as in the old gradio and on Windows: the current one looks a
    thousand and a hundred times, 4% of a core for as long as the program is open."""
    queue = getattr(page, "_queue", None)  # not part of gradio's promises: without it the page only rests less
    for name, seconds in (("sleep_when_free", 0.05), ("progress_update_sleep_when_free", 0.1)):
        if hasattr(queue, name):
            setattr(queue, name, max(getattr(queue, name), seconds))
    return page


def plain_html(content: str, **more: Any) -> gr.HTML:
    """HTML without the frame, padding and looks that the current gradio gives it."""
    return gr.HTML(content, **more) if OLD else gr.HTML(content, padding=False, apply_default_css=False, **more)


def file_path(value: Any) -> str:
    """The path of what a File component gives: a temporary file object in the old one, a path in the current one."""
    return str(getattr(value, "name", value) or "")
