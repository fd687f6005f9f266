"""What everybody in the host shares. `sd_model` is the model of now."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

from .devices import device
from .options import OptionInfo, Options, options_section
from .paths_internal import data_path
from .shared_cmd_options import cmd_opts
from .shared_items import WithModel, refresh_checkpoints, reload_hypernetworks
from .shared_options import options_templates
from .shared_state import State
from .styles import StyleDatabase

__all__ = ["OptionInfo", "cmd_opts", "device", "options_section", "options_templates", "refresh_checkpoints", "reload_hypernetworks"]

config_filename = os.path.join(data_path, "config.json")
hide_dirs = {"visible": True}
opts = Options(options_templates)
state = State()
prompt_styles = StyleDatabase()
demo: Any = None
interrogator: Any = None  # from the start on
hypernetworks: dict[str, str] = {}
loaded_hypernetworks: list[Any] = []
sd_upscalers = [SimpleNamespace(name=name) for name in ("None", "Lanczos", "Nearest")]
latent_upscale_modes = {
    f"Latent ({words})" if words else "Latent": {"mode": mode, "antialias": words.endswith("antialiased")}
    for words, mode in {
        "": "bilinear", "antialiased": "bilinear", "bicubic": "bicubic", "bicubic antialiased": "bicubic",
        "nearest": "nearest", "nearest-exact": "nearest-exact",
    }.items()
}  # fmt: skip

sys.modules[__name__].__class__ = WithModel
