"""Writes down when it is called."""

from __future__ import annotations

import probe_log
from modules import script_callbacks, scripts

said = probe_log.script_loads(__name__, __file__, scripts.basedir())
for event in probe_log.EVENTS:
    getattr(script_callbacks, f"on_{event}")(said(event))


def add_axis():
    """Before the page is built."""
    plot = next(data.module for data in scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py")
    plot.axis_options.append(plot.AxisOption("[probe] early", str, lambda p, x, xs: None))


script_callbacks.on_before_ui(add_axis)


def seen(component, **more):
    """Components by their element ids."""
    if more.get("elem_id"):
        kind = next(cls.__name__ for cls in type(component).__mro__ if cls.__module__.startswith("gradio."))
        probe_log.LOG["components"].setdefault(more["elem_id"], kind)


script_callbacks.on_after_component(seen)
