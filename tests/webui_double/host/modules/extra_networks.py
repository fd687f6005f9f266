"""Networks that are named in prompts, as <kind:arguments>: which kinds there are, and reading them out of the text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import errors

extra_network_registry: dict[str, ExtraNetwork] = {}
extra_network_aliases: dict[str, ExtraNetwork] = {}
_NAMED = re.compile(r"<(?P<kind>\w+):(?P<arguments>[^<>]+)>")


@dataclass
class ExtraNetworkParams:
    """What stands behind the kind: all items, those without a name, those with one. Equal where the items are."""

    items: list[str] = field(default_factory=list)
    positional: list[str] = field(init=False, compare=False)
    named: dict[str, str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        pairs = [item.split("=", 1) for item in self.items]
        self.positional = [pair[0] for pair in pairs if len(pair) == 1]
        self.named = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


@dataclass(eq=False)
class ExtraNetwork:
    """A kind. `activate` is called before every picture, with [] where no prompt names the kind."""

    name: str

    def activate(self, p: Any, params_list: list[ExtraNetworkParams]) -> None:
        raise NotImplementedError


def initialize() -> None:
    for table in (extra_network_registry, extra_network_aliases):
        table.clear()


def register_extra_network(network: ExtraNetwork) -> None:
    register_extra_network_alias(network, network.name, extra_network_registry)


def register_extra_network_alias(network: ExtraNetwork, alias: str, table: dict[str, ExtraNetwork] = extra_network_aliases) -> None:
    table[alias] = network


def register_default_extra_networks() -> None:
    from . import extra_networks_hypernet as late

    register_extra_network(late.HypernetworksOfPrompts("hypernet"))


def parse_prompts(prompts: Iterable[str]) -> tuple[list[str], dict[str, list[ExtraNetworkParams]]]:
    """The prompts without their networks, and the networks of the first: the others of a batch cannot have any of their own."""
    prompts = list(prompts)
    data: dict[str, list[ExtraNetworkParams]] = {}
    for match in _NAMED.finditer(prompts[0] if prompts else ""):
        data.setdefault(match["kind"], []).append(ExtraNetworkParams(match["arguments"].split(":")))
    return [_NAMED.sub("", text) for text in prompts], data


def activate(p: Any, data: dict[str, list[ExtraNetworkParams]]) -> None:
    """Tells every kind what is wanted of it; one that fails is reported, and the picture drawn without."""
    wanted: dict[ExtraNetwork, list[ExtraNetworkParams]] = {network: [] for network in extra_network_registry.values()}
    for kind, params in data.items():
        network = extra_network_registry.get(kind) or extra_network_aliases.get(kind)
        if network is not None:
            wanted.setdefault(network, []).extend(params)
    for network, params in wanted.items():
        try:
            network.activate(p, params)
        except Exception as error:  # whatever an extension's kind raises
            errors.display(error, f"activating {network.name}")
