"""The command line's flags, with what they are where nobody gave them."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from . import paths_internal as paths

OFF = (
    "api lowvram medvram no_half no_half_vae upcast_sampling no_hashing listen share nowebui "
    "enable_insecure_extension_access disable_extension_access no_prompt_history"
).split()
UNSET = "api_auth ckpt_dir gradio_auth gradio_auth_path ngrok server_name subpath".split()

cmd_opts = Namespace()


def parse(given: Mapping[str, Any]) -> None:
    """The flags of this start. Raises ValueError for one that the host does not have."""
    flags = {**dict.fromkeys(OFF, False), **dict.fromkeys(UNSET), "precision": "autocast", **_folders()}
    if strange := sorted(set(given) - set(flags)):
        raise ValueError(f"The host has no flag {', '.join(strange)}.")
    vars(cmd_opts).update(flags | dict(given))


def _folders() -> dict[str, str]:
    below = {"embeddings_dir": "embeddings", "hypernetwork_dir": "models/hypernetworks", "lora_dir": "models/Lora", "lyco_dir_backcompat": "models/LyCORIS"}
    return {flag: os.path.join(paths.data_path, *folder.split("/")) for flag, folder in below.items()}
