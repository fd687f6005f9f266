"""Files of T2I-Adapters and ControlNets: the original names, which the WebUI's ControlNet extension reads, and diffusers' names, which are converted.

The extension takes a file by its names (its scripts/controlnet_model_guess.py) and leaves tensors that a file lacks at random values without a word,
so here every tensor is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..disk import expanded
from ..sd import controlnet, t2i_adapter
from ..sd.controlnet import ControlNet, sizes_beside
from ..sd.files import read_header, read_tensors, write_tensors
from ..sd.kinds import describe, kind_of
from ..sd.layers import Unfilled
from ..sd.t2i_adapter import AFTER, SHRINK, T2IAdapter

Shapes = Mapping[str, "tuple[int, ...]"]


@dataclass(frozen=True)
class Format:
    """How the files of one kind are named."""

    name: str  # in a sentence
    sign: str  # in sd.kinds
    prefix: str  # of every tensor in the file
    diffusers: Callable[[str], str]  # our name -> diffusers'


FORMATS = {
    "controlnet": Format("ControlNet", "controlnet", "control_model.", controlnet.diffusers_key),
    "t2i_adapter": Format("T2I-Adapter", "t2i-adapter", "", t2i_adapter.diffusers_key),
}


def read_control(path: str | Path, kind: str, shapes: Shapes) -> dict[str, Tensor]:
    """The tensors of a file under our names, all that `shapes` has.

    Raises ValueError or OSError, one sentence that says what the file is where it is none of this kind for this model.
    """
    path, form = Path(path), FORMATS[kind]
    tensors = _unprefixed(read_tensors(path)[0], form)
    found = kind_of({key: tuple(t.shape) for key, t in tensors.items()})
    if found != form.sign:
        raise ValueError(f"start: {path.name} is {describe(found)}, not a {form.name}; choose the file of a {form.name} for SD1.5, or leave it empty.")
    if "difference" in tensors:
        raise ValueError(f"start: {path.name} holds the difference to the model that it was made with, not the weights; choose the full {form.name}.")
    tensors = _originals(tensors, form, shapes)
    missing, extra = [key for key in shapes if key not in tensors], [key for key in tensors if key not in shapes]
    if missing or extra:
        shown = ", ".join([f"no {key}" for key in missing[:2]] + [f"unknown {key}" for key in extra[:2]])
        raise ValueError(f"start: {path.name} is another form of {form.name} than SD1.5's full one ({shown}).")
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != tuple(shape):
            sizes = " instead of ".join("x".join(map(str, size)) for size in (tensors[key].shape, shape))
            raise ValueError(f"start: {path.name} does not fit this model: its {key} is {sizes}; use a {form.name} for a model of this width.")
    return tensors


def _unprefixed(tensors: dict[str, Tensor], form: Format) -> dict[str, Tensor]:
    """Without the prefix; of a file that holds the whole model too, the ControlNet alone."""
    own = {key[len(form.prefix) :]: tensor for key, tensor in tensors.items() if form.prefix and key.startswith(form.prefix)}
    return own or tensors


def _originals(tensors: dict[str, Tensor], form: Format, shapes: Shapes) -> dict[str, Tensor]:
    table = {form.diffusers(key): key for key in shapes}
    if len(table.keys() & tensors.keys()) > len(shapes) // 2:
        tensors = {table.get(key, key): tensor for key, tensor in tensors.items()}
    else:
        tensors = {key.removeprefix("adapter."): tensor for key, tensor in tensors.items()}
    flat = ("proj_in.weight", "proj_out.weight")  # a 1x1 convolution as a Linear
    return {key: t[..., None, None] if key.endswith(flat) and t.ndim == 2 else t for key, t in tensors.items()}


def write_control(path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> Path:
    """Writes the file atomically. Raises ValueError where a value is none or too large for `dtype`, OSError."""
    form = FORMATS[kind]
    largest = torch.finfo(dtype).max
    broken = [key for key, t in tensors.items() if not bool((t.abs() <= largest).all())]  # false for NaN too
    if broken:
        raise ValueError(f"{path.name} was not saved: NaN or numbers too large for {str(dtype).partition('.')[2]} in {broken[0]}; use an earlier save.")
    return write_tensors(path, {form.prefix + key: t for key, t in tensors.items()}, metadata, dtype)


def reads_grey(path: str | Path) -> bool:
    """Whether an adapter's file is one that reads a single channel. Raises ValueError or OSError for what is no weights file."""
    tensors = read_tensors(expanded(path))[0]
    first = next((t for key, t in tensors.items() if key.removeprefix("adapter.") == "conv_in.weight"), None)
    return first is not None and first.ndim == 4 and first.shape[1] == SHRINK**2


def count_control(path: str | Path, kind: str, unet: nn.Module) -> tuple[int, int]:
    """(tensors that the ControlNet extension takes, all that it looks for or the file has), by its rules for a model of the UNet's widths."""
    form = FORMATS[kind]
    shapes = {key.removeprefix(form.prefix): tuple(shape) for key, shape in read_header(path)[0].items()}
    wanted = wanted_shapes(kind, unet, grey=shapes.get("conv_in.weight", (0, 0))[1] == SHRINK**2)
    return sum(shapes.get(key) == shape for key, shape in wanted.items()), len(wanted.keys() | shapes.keys())


def wanted_shapes(kind: str, unet: nn.Module, grey: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes of a network beside this UNet."""
    with Unfilled():
        net = ControlNet(sizes_beside(unet)) if kind == "controlnet" else T2IAdapter(level_widths(unet), grey)
    return {key: tuple(t.shape) for key, t in net.state_dict().items()}


def level_widths(unet: nn.Module) -> tuple[int, ...]:
    """The widths behind whose input blocks an adapter's features are added."""
    return tuple(unet.input_blocks[i][0].out_layers[3].weight.shape[0] for i in AFTER)
