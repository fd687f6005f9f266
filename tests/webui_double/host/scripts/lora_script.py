"""Where the Lora extension enters the host. Run anew with the page, while its modules stay: what it has replaced is put back before."""

from __future__ import annotations

import extra_networks_lora
import lora_patches
import networks

from modules import extra_networks, script_callbacks, shared


def register() -> None:
    of_prompts = extra_networks_lora.LorasOfPrompts("lora")
    extra_networks.register_extra_network(of_prompts)
    extra_networks.register_extra_network_alias(of_prompts, "lyco")


replaced = networks.originals = lora_patches.Replaced()
networks.list_available_networks()
for event, callback in {"before_ui": register, "model_loaded": networks.name_layers, "script_unloaded": replaced.undo}.items():
    getattr(script_callbacks, f"on_{event}")(callback)
for key, default in {"lora_functional": False, "lora_in_memory_limit": 0, "lora_preferred_name": "Alias from file"}.items():
    shared.opts.add_option(key, shared.OptionInfo(default, key, section=("extra_networks", "Extra Networks")))
