"""Hypernetworks as files of AUTOMATIC1111's WebUI: a torch pickle of {width: (for keys, for values)} and what it was made of.

A network of width d and structure s is a row of Linear(d s_i, d s_i+1), each followed by an activation, a LayerNorm and a Dropout where there are such;
weights are called `linear.<place in the row>.weight`, counting all members. Read off the WebUI 1.9.4 by loading files in it (modules/hypernetworks/hypernetwork.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..disk import atomic
from ..sd.files import read_tensors
from ..sd.kinds import describe, kind_of
from ..sd.pickles import read_pickle

# By the WebUI's names. Of torch's activations it also lists softmax, softmin, logsoftmax and softmax2d, which mix the pictures of a batch, and glu,
# threshold and multiheadattention, with which it fails.
ACTIVATIONS: dict[str, type[nn.Module] | None] = {
    "linear": None, "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.Hardswish, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "celu": nn.CELU, "gelu": nn.GELU, "hardshrink": nn.Hardshrink, "hardsigmoid": nn.Hardsigmoid, "hardtanh": nn.Hardtanh, "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish, "prelu": nn.PReLU, "relu6": nn.ReLU6, "rrelu": nn.RReLU, "selu": nn.SELU, "silu": nn.SiLU, "softplus": nn.Softplus,
    "softshrink": nn.Softshrink, "softsign": nn.Softsign, "tanhshrink": nn.Tanhshrink,
}  # fmt: skip
_SYNONYMS = {"hardswish": nn.Hardswish}  # in files only: the WebUI's page leaves it out beside swish
INITS = ("Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal")
_OLD = {"linear1.": "linear.0.", "linear2.": "linear.1."}  # names of the first hypernetworks, October 2022
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Structure:
    """What a hypernetwork's networks consist of. `layers`: widths as multiples of the context's; `dropout`: a probability for each of them."""

    layers: tuple[float, ...] = (1.0, 2.0, 1.0)
    activation: str = "linear"
    activate_output: bool = False
    layer_norm: bool = False
    dropout: tuple[float, ...] = (0.0, 0.0, 0.0)
    init: str = "Normal"

    def __post_init__(self) -> None:
        if len(self.layers) < 2 or self.layers[0] != 1 or self.layers[-1] != 1 or not all(0 < size <= 64 for size in self.layers):
            raise ValueError(f"structure: {_shown(self.layers)} is not a row of widths that begins and ends with 1, such as 1, 2, 1")
        if len(self.dropout) != len(self.layers) or self.dropout[0] or self.dropout[-1] or not all(0 <= p < 1 for p in self.dropout):
            raise ValueError(
                f"dropout: {_shown(self.dropout)} does not fit the structure {_shown(self.layers)}: one probability below 1 for each width, the first and the last 0"
            )
        if self.activation not in {**ACTIVATIONS, **_SYNONYMS}:
            raise ValueError(f"activation: {self.activation!r} cannot be trained; there are {', '.join(ACTIVATIONS)}")

    def members(self, width: int) -> Iterator[nn.Module]:
        """The row for contexts of a width."""
        sizes, last = [int(width * size) for size in self.layers], len(self.layers) - 2
        make = {**ACTIVATIONS, **_SYNONYMS}[self.activation]
        for i, (inner, outer) in enumerate(zip(sizes, sizes[1:])):
            yield nn.Linear(inner, outer)
            if make is not None and (i < last or self.activate_output):
                yield make()
            if self.layer_norm:
                yield nn.LayerNorm(outer)
            if self.dropout[i + 1]:
                yield nn.Dropout(self.dropout[i + 1])

    def shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, by their names in a file."""
        with torch.device("meta"):
            row = nn.Sequential(*self.members(width))
        return {f"linear.{name}": tuple(tensor.shape) for name, tensor in row.state_dict().items()}


@dataclass(frozen=True, eq=False)
class HypernetworkFile:
    """What a file holds. `pairs`: by width of the context the weights of the network for keys and of that for values, fp32."""

    structure: Structure
    pairs: dict[int, tuple[Weights, Weights]]
    name: str = ""
    step: int = 0
    model_hash: str = ""  # of the checkpoint it was trained on; files keep the first ten digits, which the WebUI shows
    model_name: str = ""
    info: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)  # keys that the WebUI passes over


def numbers(text: str) -> tuple[float, ...]:
    """`1, 2, 1` as numbers. Raises ValueError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not numbers separated by commas, such as 1, 2, 1") from None


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_hypernetwork(path: str | Path) -> HypernetworkFile:
    """Reads a hypernetwork of any version of the WebUI, without running what the pickle may contain.

    Raises UnsafePickle, ValueError or OSError, each one sentence.
    """
    path = Path(path)
    kind = kind_of({key: tuple(tensor.shape) for key, tensor in read_tensors(path)[0].items()})
    if kind != "hypernetwork":
        raise ValueError(f"{path.name} is {describe(kind)}, not a hypernetwork; choose a hypernetwork's .pt file.")
    content = read_pickle(path)
    try:
        structure = _structure(content)
        pairs = {width: _pair(structure, width, pair) for width, pair in content.items() if isinstance(width, int)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is a hypernetwork that cannot be read ({error}); get the original file.") from error
    text = {key: value if isinstance(value := content.get(key), str) else "" for key in ("name", "sd_checkpoint", "sd_checkpoint_name")}
    step, info = content.get("step"), content.get("optional_info")
    return HypernetworkFile(structure, pairs, text["name"] or path.stem, step if isinstance(step, int) else 0, text["sd_checkpoint"],
                            text["sd_checkpoint_name"], info if isinstance(info, str) else None)  # fmt: skip


def _structure(content: Mapping[Any, Any]) -> Structure:
    """With the WebUI's defaults for what early files do not say: an activated output, and dropout of 0.3 where it is merely on."""
    layers = tuple(map(float, content.get("layer_structure") or (1, 2, 1)))
    dropout = content.get("dropout_structure")
    if dropout is None:
        inner = [0.3 * bool(content.get("use_dropout"))] * (len(layers) - 2)
        if inner and not content.get("last_layer_dropout", False):
            inner[-1] = 0.0
        dropout = [0.0, *inner, 0.0]
    activate = bool(content.get("activate_output", True))
    init = content.get("weight_initialization")
    return Structure(layers, content.get("activation_func") or "linear", activate, bool(content.get("is_layer_norm", False)), tuple(map(float, dropout)),
                     init if init in INITS else "Normal")  # fmt: skip


def _pair(structure: Structure, width: int, pair: Any) -> tuple[Weights, Weights]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(weights, Mapping) for weights in pair):
        raise ValueError(f"width {width} has no pair of networks")
    found = tuple({_renamed(key): value.detach().to("cpu", torch.float32, copy=True) for key, value in weights.items()} for weights in pair)
    wanted = structure.shapes(width)
    for weights in found:
        if {key: tuple(value.shape) for key, value in weights.items()} != wanted:
            wrong = sorted(key for key in {**weights, **wanted} if key not in weights or tuple(weights[key].shape) != wanted.get(key))
            raise ValueError(f"at width {width} its weights do not fit the structure {_shown(structure.layers)} that it names: {wrong[0]}")
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("it holds NaN or infinite numbers, so its training failed")
    return found


def _renamed(key: str) -> str:
    return next((new + key[len(old) :] for old, new in _OLD.items() if key.startswith(old)), key)


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_hypernetwork(path: str | Path, file: HypernetworkFile) -> Path:
    """Writes a .pt that the WebUI v1.9.4 takes, key for key as it saves one itself, fp32, atomically. Raises OSError."""
    path, how = Path(path), file.structure
    weights = {width: tuple({key: value.detach().to("cpu", torch.float32).contiguous() for key, value in part.items()} for part in pair)
               for width, pair in file.pairs.items()}  # fmt: skip
    content = {
        **weights, "step": file.step, "name": file.name, "layer_structure": list(how.layers), "activation_func": how.activation,
        "is_layer_norm": how.layer_norm, "weight_initialization": how.init, "sd_checkpoint": file.model_hash[:10] or None,
        "sd_checkpoint_name": file.model_name or None, "activate_output": how.activate_output, "use_dropout": any(how.dropout),
        "dropout_structure": list(how.dropout), "last_layer_dropout": bool(how.dropout[-2]), "optional_info": file.info, **file.extra,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        # not torch's zip format: v1.9.4 refuses the entries that torch >= 2.1 adds to it (its modules/safe.py, issue 10179)
        torch.save(content, temporary, _use_new_zipfile_serialization=False)
    return path


def count_parts(path: Path, widths: set[int]) -> tuple[int, int]:
    """How many of a file's networks a model with these widths of contexts uses, and how many there are. Raises as `read_hypernetwork`."""
    pairs = read_hypernetwork(path).pairs
    return 2 * len(pairs.keys() & widths), 2 * len(pairs)
