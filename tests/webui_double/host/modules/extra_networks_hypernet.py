"""<hypernet:name:multiplier> in prompts."""

from __future__ import annotations

from typing import Any

from .extra_networks import ExtraNetwork, ExtraNetworkParams
from .hypernetworks import hypernetwork


class HypernetworksOfPrompts(ExtraNetwork):
    """Without any in the prompt, those that were loaded are gone: what else put them there is not asked."""

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        given = [params.positional for params in params_list]
        hypernetwork.load_hypernetworks([words[0] for words in given], [float(words[1]) if len(words) > 1 else 1.0 for words in given])
