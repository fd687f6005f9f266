"""The start, and what Reload UI does of it again."""

from __future__ import annotations

import os

from . import call_queue, extensions, extra_networks, interrogate, scripts, sd_hijack, sd_models, sd_unet, sd_vae, shared


def initialize() -> None:
    """Once per process. Choosing a checkpoint or VAE changes the setting at once, and the model in its turn."""
    if os.path.exists(shared.config_filename):
        shared.opts.load(shared.config_filename)
    shared.interrogator = interrogate.InterrogateModels("interrogate")
    follow = {"sd_model_checkpoint": lambda: sd_models.reload_model_weights(), "sd_vae": lambda: sd_vae.reload_vae_weights()}
    for key, change in follow.items():
        shared.opts.onchange(key, call_queue.wrap_queued_call(change), call=False)
    shared.opts.onchange("cross_attention_optimization", lambda: sd_hijack.apply_optimizations(), call=False)
    initialize_rest()


def initialize_rest() -> None:
    """Lists of files, and all scripts."""
    extensions.list_extensions()
    shared.refresh_checkpoints()
    sd_vae.refresh_vae_list()
    scripts.load_scripts()
    sd_hijack.list_optimizers()
    sd_unet.list_unets()
    shared.reload_hypernetworks()
    extra_networks.initialize()
    extra_networks.register_default_extra_networks()
