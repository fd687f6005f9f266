"""Files of networks, and the change that each kind of parts makes to a layer's weight.

W (out, in) or (out, in, h, w); U, D: up and down of a low rank; ∘ elementwise, ⊗ Kronecker's product.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from modules import shared

SdVersion = enum.Enum("SdVersion", {"Unknown": 1, "SD1": 2, "SD2": 3, "SDXL": 4})
Parts = Mapping[str, Tensor]


@dataclass(eq=False)
class NetworkOnDisk:
    """A file that can be named in prompts, by its stem or by the name that its metadata give."""

    name: str
    filename: str

    @cached_property
    def metadata(self) -> dict[str, str]:
        if not self.filename.endswith(".safetensors"):
            return {}
        with safe_open(self.filename, "pt") as file:
            return file.metadata() or {}

    @property
    def alias(self) -> str:
        return self.metadata.get("ss_output_name") or self.name

    @property
    def sd_version(self) -> SdVersion:
        """Any metadata that say nothing else mean SD1."""
        said = self.metadata
        signs = {"SDXL": said.get("ss_base_model_version", "")[:5] == "sdxl_", "SD2": said.get("ss_v2") == "True", "SD1": bool(said), "Unknown": True}
        return SdVersion[next(version for version, there in signs.items() if there)]

    def get_alias(self) -> str:
        """What to write in a prompt: the file's name where the alias is another file's too."""
        import networks

        ambiguous = self.alias.lower() in networks.forbidden_network_aliases
        return self.name if ambiguous or shared.opts.lora_preferred_name == "Filename" else self.alias


@dataclass(eq=False)
class Network:
    """A file that was read: its layers' parts, and how much of it is wanted in text encoder and UNet; `dyn_dim` cuts the rank."""

    name: str
    network_on_disk: NetworkOnDisk
    mtime: float = 0.0
    te_multiplier: float = 1.0
    unet_multiplier: float = 1.0
    dyn_dim: Any = None
    modules: dict[str, NetworkModule] = field(default_factory=dict)
    bundle_embeddings: dict[str, Any] = field(default_factory=dict)

    @property
    def wish(self) -> tuple[Any, ...]:
        """By this alone the extension tells whether a layer has to be written anew, and not by what the file holds."""
        return self.name, self.te_multiplier, self.unet_multiplier, self.dyn_dim


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _flat(up: Tensor, down: Tensor, core: Tensor | None = None) -> Tensor:
    """U D as a matrix; with a core (r, r, h, w) of a convolution in between."""
    if core is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("or,rshw,si->oihw", up.flatten(1), core, down.flatten(1)).flatten(1)


def _lora(parts: Parts, weight: Tensor, dim: Any) -> Tensor:
    up, down, core = parts["lora_up.weight"], parts["lora_down.weight"], parts.get("lora_mid.weight")
    if dim is not None:
        up, down = up[:, :dim], down[:dim]
        core = None if core is None else core[:dim, :dim]
    return _flat(up, down, core)


def _loha(parts: Parts, weight: Tensor, dim: Any) -> Tensor:
    """(A1 B1) ∘ (A2 B2); with cores, A is (r, out)."""
    first, second = ((parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"], parts.get(f"hada_t{i}")) for i in (1, 2))
    return torch.mul(*(_flat(a if core is None else a.T, b, core) for a, b, core in (first, second)))


def _lokr(parts: Parts, weight: Tensor, dim: Any) -> Tensor:
    """W1 ⊗ W2, each full or of low rank."""
    first, second = (_lokr_half(parts, f"lokr_w{i}", parts.get("lokr_t2") if i == 2 else None) for i in (1, 2))
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


def _lokr_half(parts: Parts, name: str, core: Tensor | None) -> Tensor:
    if name in parts:
        return parts[name]
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    return a @ b if core is None else torch.einsum("ro,rshw,si->oihw", a, core, b)


def _ia3(parts: Parts, weight: Tensor, dim: Any) -> Tensor:
    sides = (1, -1) if parts["on_input"].item() else (-1, 1)
    return weight * parts["weight"].reshape(*sides, *[1] * (weight.ndim - 2))


@dataclass(frozen=True)
class Kind:
    """Parts that are all there where a layer is of this kind; the scale is alpha divided by the size of `rank_of`'s first axis."""

    needed: tuple[str, ...]
    change: Callable[[Parts, Tensor, Any], Tensor]
    rank_of: tuple[str, ...] = ()
    bias: str = ""


_KINDS = (
    Kind(("lora_up.weight", "lora_down.weight"), _lora, ("lora_down.weight",)),
    Kind(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _loha, ("hada_w1_b",)),
    *(Kind((*first, *second), _lokr, ("lokr_w2_b", "lokr_w1_b"))  # two full matrices have no rank, and alpha is not asked
      for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")) for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
    Kind(("weight", "on_input"), _ia3),
    Kind(("diff",), lambda parts, weight, dim: parts["diff"], bias="diff_b"),
    Kind(("w_norm", "b_norm"), lambda parts, weight, dim: parts["w_norm"], bias="b_norm"),
)  # fmt: skip


class NetworkModule:
    """The parts of one layer. Raises AssertionError where they are of no kind, by which the whole file is refused."""

    def __init__(self, network: Network, layer_name: str, parts: dict[str, Tensor]):
        self.network, self.parts, self.of_text = network, parts, layer_name.startswith("transformer_")
        self.kind = next((kind for kind in _KINDS if all(part in parts for part in kind.needed)), None)
        assert self.kind is not None, f"{layer_name}: {', '.join(parts)} are parts of no kind of network that is known."

    @cached_property
    def scale(self) -> float:
        rank = next((self.parts[part].shape[0] for part in self.kind.rank_of if part in self.parts), None)
        return float(self.parts["alpha"]) / rank if rank and "alpha" in self.parts else 1.0

    def change(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is to be added to the layer's weight and to its bias, in fp32."""
        factor = self.scale * (self.network.te_multiplier if self.of_text else self.network.unet_multiplier)
        parts = {name: part.to(weight.device, torch.float32) if part.is_floating_point() else part for name, part in self.parts.items()}
        made = self.kind.change(parts, weight.detach().float(), self.network.dyn_dim)
        if weight.ndim == 4 and weight.shape[1] == 9:  # of an inpainting model: the host takes any change for one of four channels
            made = F.pad(made.reshape(len(weight), -1, *weight.shape[2:]), (0, 0, 0, 0, 0, 5))
        bias = parts.get(self.kind.bias)
        return factor * made.reshape(weight.shape), None if bias is None else factor * bias
