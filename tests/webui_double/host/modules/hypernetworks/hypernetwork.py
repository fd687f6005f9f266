"""Hypernetworks: two small networks for each width of a context, before the keys and the values of attention."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules import devices, errors, shared

ACTIVATIONS = {
    **{name.lower(): getattr(nn, name) for name in "CELU ELU GELU Hardsigmoid Hardtanh LeakyReLU Mish ReLU SELU SiLU Sigmoid Softplus Softsign Tanh".split()},
    "swish": nn.Hardswish, "linear": None,
}  # fmt: skip
INITS: dict[str, Callable[[Tensor], Any]] = {
    **{f"{who}{how}": getattr(nn.init, f"{who}_{how}_".lower()) for who in ("Xavier", "Kaiming") for how in ("Uniform", "Normal")},
    "Normal": lambda weight: weight.data.normal_(std=0.01),
}


class HypernetworkModule(nn.Module):
    """x plus what a row of linear layers makes of it. The multiplier counts in eval mode only."""

    multiplier = 1.0

    def __init__(self, width: int, how: Hypernetwork):
        super().__init__()
        pairs = list(pairwise(int(width * size) for size in how.layer_structure or (1, 2, 1)))
        self.linear = nn.Sequential(*(part for i, pair in enumerate(pairs) for part in self._parts(pair, i == len(pairs) - 1, how)))
        for part in self.linear:
            if isinstance(part, nn.Linear):
                INITS[how.weight_init or "Normal"](part.weight)
                nn.init.zeros_(part.bias)
        self.to(devices.device)

    @staticmethod
    def _parts(widths: tuple[int, int], last: bool, how: Hypernetwork) -> Iterable[nn.Module]:
        yield nn.Linear(*widths)
        activation = ACTIVATIONS[how.activation_func or "linear"]
        if activation and (how.activate_output or not last):
            yield activation()
        if how.add_layer_norm:
            yield nn.LayerNorm(widths[1])
        if how.use_dropout and (how.last_layer_dropout or not last):
            yield nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.linear(x), alpha=1.0 if self.training else self.multiplier)


_FIELDS = {  # of a file, by the attribute
    "name": "name", "layer_structure": "layer_structure", "activation_func": "activation_func", "add_layer_norm": "is_layer_norm", "use_dropout": "use_dropout",
    "weight_init": "weight_initialization", "activate_output": "activate_output", "last_layer_dropout": "last_layer_dropout", "step": "step",
    "dropout_structure": "dropout_structure", "optional_info": "optional_info", "sd_checkpoint": "sd_checkpoint", "sd_checkpoint_name": "sd_checkpoint_name",
}  # fmt: skip


@dataclass(eq=False)
class Hypernetwork:
    """`layers`: (for keys, for values) by width. Made in eval mode, with weights that want no gradient until `train`."""

    name: str | None = None
    enable_sizes: Sequence[int] | None = None
    layer_structure: Sequence[float] | None = None
    activation_func: str | None = None
    weight_init: str | None = None
    add_layer_norm: bool = False
    use_dropout: bool = False
    activate_output: bool = False
    last_layer_dropout: bool = True
    dropout_structure: Sequence[float] | None = None
    step: int = 0
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    optional_info: str | None = None
    filename: str | None = None
    layers: dict[int, tuple[HypernetworkModule, HypernetworkModule]] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = {width: (HypernetworkModule(width, self), HypernetworkModule(width, self)) for width in self.enable_sizes or ()}
        self.eval()

    def _modules(self) -> list[HypernetworkModule]:
        return [module for pair in self.layers.values() for module in pair]

    def weights(self) -> list[nn.Parameter]:
        return [weight for module in self._modules() for weight in module.parameters()]

    def train(self, mode: bool = True) -> None:
        for module in self._modules():
            module.train(mode).requires_grad_(mode)

    def eval(self) -> None:
        self.train(False)

    def set_multiplier(self, multiplier: float) -> Hypernetwork:
        for module in self._modules():
            module.multiplier = multiplier
        return self

    def save(self, filename: str) -> None:
        weights: dict[Any, Any] = {width: tuple(module.state_dict() for module in pair) for width, pair in self.layers.items()}
        torch.save(weights | {key: getattr(self, attribute) for attribute, key in _FIELDS.items()}, filename)


def _read(path: str) -> Hypernetwork:
    """Its name is what the file's content says. Raises TypeError for a file that torch.load refuses."""
    content = torch.load(path, map_location="cpu")
    if content is None:
        raise TypeError(f"{path} cannot be read.")
    weights = {width: states for width, states in content.items() if isinstance(width, int)}
    given = {attribute: content[key] for attribute, key in _FIELDS.items() if key in content}
    network = Hypernetwork(**{"name": Path(path).stem, **given}, enable_sizes=list(weights), filename=path)
    for width, states in weights.items():
        for module, state in zip(network.layers[width], states):
            module.load_state_dict(state)
    return network


# ---- those there are, and those that take part -----------------------------------------------------------------------


def list_hypernetworks(path: str) -> dict[str, str]:
    """Names and files."""
    return {file.stem: os.path.abspath(file) for file in sorted(Path(path).rglob("*.pt"))}


def load_hypernetwork(name: str) -> Hypernetwork | None:
    """None for one that is not there or cannot be read, which is reported."""
    try:
        return _read(shared.hypernetworks[name]) if name in shared.hypernetworks else None
    except Exception as error:  # whatever is wrong with the file
        errors.display(error, f"reading the hypernetwork {name}")
        return None


def load_hypernetworks(names: Sequence[str], multipliers: Sequence[float] | None = None) -> None:
    """Makes these the ones that take part."""
    found = zip(map(load_hypernetwork, names), multipliers or [1.0] * len(names))
    shared.loaded_hypernetworks[:] = [network.set_multiplier(multiplier) for network, multiplier in found if network is not None]


def attend(attention: Any, x: Tensor, context: Tensor | None, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Attention of x over the context, with hypernetworks. They are left in the attention's modules afterwards, as the host leaves them."""
    for_keys = for_values = x if context is None else context
    for network in shared.loaded_hypernetworks:
        pair = network.layers.get(for_keys.shape[-1])
        if pair is not None:
            attention.hyper_k, attention.hyper_v = pair
            for_keys, for_values = attention.hyper_k(for_keys), attention.hyper_v(for_values)
    projected = attention.to_q(x), attention.to_k(for_keys), attention.to_v(for_values)
    mixed = product(*(part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in projected))
    return attention.to_out(mixed.transpose(1, 2).flatten(2))


def _scores_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.mT).mul(q.shape[-1] ** -0.5)
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)


def attention_CrossAttention_forward(attention: Any, x: Tensor, context: Tensor | None = None, **more: Any) -> Tensor:
    """What is there without any optimisation."""
    return attend(attention, x, context, _scores_first)
