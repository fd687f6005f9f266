"""A script of the throw-away extension by which record.py asks a real WebUI: it waits for page and model, asks in a thread, writes the answers and ends the host."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import probe_log

from modules import script_callbacks, sd_models, sd_models_config, shared

# the checkpoints without a yaml beside them have one config together, as SD1.5's have
sd_models_config.config_default = os.environ["PROBES_CONFIG"]
PAGES = probe_log.LOG.setdefault("pages", [])


def reload_ui() -> None:
    count = len(PAGES)
    shared.state.request_restart()
    until(lambda: len(PAGES) > count)
    time.sleep(2)  # for what the host does after its callbacks


def until(true, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the host did not get so far")
        time.sleep(0.1)


def ask_all() -> None:
    try:
        until(lambda: sd_models.model_data.sd_model is not None and hasattr(sd_models.model_data.sd_model, "cond_stage_model_empty_prompt"))
        time.sleep(2)
        sys.path[:0] = os.environ["PROBES_PATH"].split(os.pathsep)
        from webui_double import probes

        folder = Path(os.environ["PROBES_FOLDER"])
        w = probes.questioned(probe_log.LOG, folder / "scratch", reload_ui)
        probes.reset(w)
        wanted = [name for name in probes.in_order() if name in os.environ.get("PROBES_ONLY", name).split(",")]
        answers = {name: probes.ask(w, name) for name in wanted}
        (folder / "answers.json").write_text(json.dumps({"answers": answers, "versions": versions()}), encoding="utf-8")
    except Exception:
        import traceback

        Path(os.environ["PROBES_FOLDER"], "failed.txt").write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(0)


def versions() -> dict[str, str]:
    import platform

    import gradio
    import numpy
    import torch
    import transformers

    packages = {package.__name__: package.__version__.partition("+")[0] for package in (torch, transformers, gradio, numpy)}
    return {"python": platform.python_version(), **packages}


def started(demo, app) -> None:
    PAGES.append(1)
    if len(PAGES) == 1:
        threading.Thread(target=ask_all).start()


script_callbacks.on_app_started(started)
