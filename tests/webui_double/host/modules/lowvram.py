"""Parts of the model that take turns in the GPU's memory; the double has one memory, so none is ever away."""

from __future__ import annotations

from typing import Any

module_in_gpu: Any = None


def send_everything_to_cpu() -> None:
    """Makes room for another model; what goes is fetched by itself when it is used next."""
    global module_in_gpu
    if module_in_gpu is not None:
        module_in_gpu.to("cpu")
    module_in_gpu = None
