"""Runs the contract of hosts inside a WebUI's own process, in a thread of its own as a job has it, and writes down what came of it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
_STARTED: list[str] = []
SECONDS: dict[str, float] = {}  # of the start
FILES = ("test_hosts.py", "test_webui_traps.py", "test_webui_switch.py", "test_webui_depth.py", "test_measured_in_hosts.py")


def register(result: str, arguments: list[str], paths: list[str]) -> None:
    """Called by the throw-away extension at the WebUI's start."""
    from modules import script_callbacks

    if _STARTED:  # Reload UI runs the extension's script again
        return
    _STARTED.append(result)
    _time(script_callbacks)
    script_callbacks.on_app_started(lambda demo, app: threading.Thread(target=_run, args=(Path(result), arguments, paths), daemon=True).start())


def _time(callbacks: Any) -> None:
    """Adds up what the Tuner's callbacks take at the start; the extension that calls this is loaded before it."""
    add = callbacks.add_callback

    def timed(function: Any, *args: Any, **more: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            SECONDS["callbacks"] = SECONDS.get("callbacks", 0.0) + time.perf_counter() - began

    def adding(table: Any, function: Any, **more: Any) -> Any:
        ours = getattr(function, "__module__", "").startswith("lib_tuner")
        return add(table, functools.partial(timed, function) if ours else function, **more)

    callbacks.add_callback = adding


def _start() -> dict[str, float]:
    from modules import timer

    return {"imports and registration": timer.startup_record["records"].get("load scripts/tuner.py", -1.0), **SECONDS}


def _run(result: Path, arguments: list[str], paths: list[str]) -> None:
    from modules import sd_models, shared, timer

    while sd_models.model_data.sd_model is None or shared.state.job or timer.startup_record is None:  # the model is loaded by another thread, before or after the page
        time.sleep(0.1)
    with sd_models.model_data.lock:  # the loader has said that it is ready, for which the suite's start waits: from here on the output is taken
        pass
    sys.path[:0] = paths  # the host puts its path back after each script
    text, code, start = io.StringIO(), 3, _start()
    try:
        import pytest

        files = [str(TESTS / name) for name in FILES if (TESTS / name).is_file()]
        with contextlib.redirect_stdout(text):
            code = int(pytest.main([*files, "-q", "-s", "-p", "no:cacheprovider", "-p", "no:faulthandler", "--rootdir", str(TESTS.parent), *arguments]))
    except BaseException as error:  # whatever it is, whoever waits has to hear of it
        text.write(repr(error))
        raise
    finally:
        answer = {"code": code, "text": text.getvalue(), "versions": _versions(), "start": start}
        partial = result.with_suffix(".part")
        partial.write_text(json.dumps(answer), encoding="utf-8")
        os.replace(partial, result)


def _versions() -> dict[str, str]:
    import gradio
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "gradio": gradio.__version__}
