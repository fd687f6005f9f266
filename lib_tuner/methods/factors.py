"""The factors of a module in a LoRA file: of which family they are, whether they fit each other, and the shape of the weight that they change.

Names and shapes: the WebUI's extensions-builtin/Lora (network_lora.py, network_hada.py, network_lokr.py, network_full.py) and LyCORIS.
Axes: D channels out, C channels in, k kernel, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
Shape = tuple[int, ...]
FAMILIES = ("LoRA", "LoHa", "LoKr", "full")
_OTHERS = ("alpha", "dora_scale")  # parts beside the factors
_KERNEL3 = (".in_layers.2", ".out_layers.3", ".op", ".conv")


class UnknownFamily(ValueError):
    """Parts of an adapter of which only the names are known here."""


def family(parts: Parts) -> str:
    """One of FAMILIES. Raises UnknownFamily, naming the parts, for what is none of them."""
    names = parts.keys() - set(_OTHERS)
    low = {"lora_up.weight", "lora_down.weight"}
    hada = {f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    if low <= names <= low | {"lora_mid.weight"}:
        return "LoRA"
    if names in (hada, hada | {"hada_t1", "hada_t2"}):
        return "LoHa"
    first, second = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    if any(names == a | b for a in first for b in second):
        return "LoKr"
    if names == {"diff"}:
        return "full"
    raise UnknownFamily(f"is a family of adapters that the tools do not know ({', '.join(sorted(names)[:4])})")


def kernel(module: tuple[str, str]) -> Shape:
    """The kernel of a module (part, path) of SD1.5: (), (1, 1) or (3, 3)."""
    part, path = module
    if part == "text":
        return ()
    if path in ("input_blocks.0.0", "out.2") or path.endswith(_KERNEL3):
        return (3, 3)
    return (1, 1) if path.endswith(("proj_in", "proj_out", "skip_connection")) else ()


def shape_of(module: tuple[str, str], parts: Parts) -> Shape:
    """The shape of the weight that the parts change, (D, C) or (D, C, k, k).

    Raises UnknownFamily as `family`, and ValueError, with their shapes, for factors that no weight can be made of.
    """
    made = {"LoRA": _of_lora, "LoHa": _of_loha, "LoKr": _of_lokr, "full": _of_diff}[family(parts)]
    sound = all(tensor.numel() for tensor in parts.values()) and parts.get("alpha", _ONE).numel() == 1 and parts.get("dora_scale", _ONE).ndim
    if sound and (shape := made(parts, kernel(module))):
        return shape
    raise ValueError(f"has factors that do not fit each other ({', '.join(f'{name} ' + 'x'.join(map(str, tensor.shape)) for name, tensor in sorted(parts.items()))})")


_ONE = torch.ones(1)  # in the place of what a module need not have


def _of_lora(parts: Parts, k: Shape) -> Shape | None:
    up, down, mid = parts["lora_up.weight"], parts["lora_down.weight"], parts.get("lora_mid.weight")
    if min(up.ndim, down.ndim) < 2 or up.shape[2:].numel() != 1:
        return None
    if mid is not None:
        return (len(up), down.shape[1], *mid.shape[2:]) if mid.ndim == 4 and tuple(mid.shape[:2]) == (up.shape[1], len(down)) else None
    if up.shape[1] != len(down):
        return None
    return (len(up), *down.shape[1:]) if down.ndim > 2 else _unflattened(len(up), down.shape[1], k)


def _of_loha(parts: Parts, k: Shape) -> Shape | None:
    first, second = (_product(parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"], parts.get(f"hada_t{i}"), k) for i in (1, 2))
    return first if first == second else None


def _of_lokr(parts: Parts, k: Shape) -> Shape | None:
    first, second = _matrix(parts, "lokr_w1", None, ()), _matrix(parts, "lokr_w2", parts.get("lokr_t2"), k)
    return (first[0] * second[0], first[1] * second[1], *second[2:]) if first and second and len(first) == 2 else None


def _matrix(parts: Parts, name: str, core: Tensor | None, k: Shape) -> Shape | None:
    """Of a LoKr's matrix, whole or in factors."""
    if name not in parts:
        return _product(parts[f"{name}_a"], parts[f"{name}_b"], core, k)
    whole = tuple(parts[name].shape)
    return whole if len(whole) == 4 else _unflattened(*whole, k) if len(whole) == 2 else None


def _product(a: Tensor, b: Tensor, core: Tensor | None, k: Shape) -> Shape | None:
    """Of a @ b, a (D, r) and b (r, C k k); around a core (r, r, k, k), a (r, D) and b (r, C)."""
    if a.ndim != 2 or b.ndim != 2:
        return None
    if core is not None:
        return (a.shape[1], b.shape[1], *core.shape[2:]) if core.ndim == 4 and tuple(core.shape[:2]) == (len(a), len(b)) else None
    return _unflattened(len(a), b.shape[1], k) if a.shape[1] == len(b) else None


def _of_diff(parts: Parts, k: Shape) -> Shape | None:
    return tuple(parts["diff"].shape) if parts["diff"].ndim > 1 else None


def _unflattened(out: int, inner: int, k: Shape) -> Shape | None:
    """(D, C, k, k) of a matrix (D, C k k)."""
    return (out, inner // math.prod(k), *k) if inner % math.prod(k) == 0 else None
