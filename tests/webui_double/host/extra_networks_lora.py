"""<lora:name:text encoder:unet:rank> in prompts; the three also by name: te=, unet=, dyn=."""

from __future__ import annotations

from typing import Any

import networks

from modules import extra_networks


class LorasOfPrompts(extra_networks.ExtraNetwork):
    """What no prompt names any more is no longer loaded; out of the weights it goes in the next forward."""

    def activate(self, p: Any, params_list: list[extra_networks.ExtraNetworkParams]) -> None:
        wishes = [_wish(params) for params in params_list]
        networks.load_networks(*([list(column) for column in zip(*wishes)] or [[], [], [], []]))


def _wish(params: extra_networks.ExtraNetworkParams) -> tuple[str, float, float, int | None]:
    name, *given = params.positional
    by_place = dict(zip(("te", "unet", "dyn"), given))
    values = {**by_place, **params.named}
    text = float(values.get("te", 1.0))
    return name, text, float(values.get("unet", text)), int(values["dyn"]) if "dyn" in values else None
