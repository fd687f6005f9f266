"""Another VAE than the checkpoint's, as the setting `sd_vae` names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from . import paths_internal, shared

vae_path = os.path.join(paths_internal.models_path, "VAE")
vae_dict: dict[str, str] = {}
loaded_vae_file: str | None = None
_own: dict[str, Any] | None = None  # the checkpoint's, while another is there


def refresh_vae_list() -> None:
    vae_dict.clear()
    vae_dict.update({path.name: str(path) for path in sorted(Path(vae_path).rglob("*")) if path.suffix in (".safetensors", ".ckpt", ".pt")})


def resolve_vae(checkpoint_file: str) -> str | None:
    """None is the checkpoint's own: with "None", with a name that is not there, and with "Automatic" where none has the checkpoint's name."""
    wanted = shared.opts.sd_vae
    if wanted != "Automatic":
        return vae_dict.get(wanted)
    stem = os.path.splitext(checkpoint_file)[0]
    beside = (f"{stem}.vae.{kind}" for kind in ("safetensors", "ckpt", "pt"))
    of_its_name = (path for name, path in vae_dict.items() if name.partition(".")[0] == os.path.basename(stem))
    return next((path for path in (*beside, *of_its_name) if os.path.isfile(path)), None)


def forget() -> None:
    """A checkpoint's VAE has been loaded over whatever was there."""
    global loaded_vae_file, _own
    loaded_vae_file = _own = None


def reload_vae_weights(sd_model: Any = None) -> None:
    """Puts in what the setting names, if that is not there already."""
    global loaded_vae_file, _own
    from . import sd_models

    model = sd_model or shared.sd_model
    path = resolve_vae(model.sd_checkpoint_info.filename)
    if path == loaded_vae_file:
        return
    vae = model.first_stage_model
    if _own is None:
        _own = {key: value.clone() for key, value in vae.state_dict().items()}
    vae.load_state_dict(_own if path is None else sd_models.read_state_dict(path), strict=False)
    loaded_vae_file, _own = path, None if path is None else _own
