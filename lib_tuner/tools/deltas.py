"""What a LoRA file of any family does to a weight: the change itself, and as one pair of factors.

The formulas are the methods' own layers (`Adapter.delta_weight`); the forms with a core (Tucker) of LoHa and LoKr, which no method trains, are reduced
to what a layer knows by the WebUI's formula (extensions-builtin/Lora/lyco_helpers.py).
Axes: D channels out, C channels in, k kernel, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..methods.adapters import Adapter
from ..methods.base import Layer
from ..methods.factors import Parts, Shape, family, shape_of
from ..methods.loha import LoHaLayer
from ..methods.lokr import LoKrConfig, LoKrLayer
from ..methods.lora import LoRALayer
from ..methods.lora_file import Module
from ..methods.low_rank import svd

def delta(module: Module, parts: Parts, shape: Shape | None = None) -> Tensor:
    """ΔW of the module's shape, fp32, a DoRA's lengths left aside."""
    shape = shape or shape_of(module, parts)
    parts = _without_core(parts)
    if "diff" in parts:
        return parts["diff"].float().reshape(shape)
    if family(parts) == "LoRA" and "lora_mid.weight" not in parts:  # most files: a grid changes them often, and the layer around the product takes twice its time
        up, down = parts["lora_up.weight"].float().flatten(1), parts["lora_down.weight"].float().flatten(1)
        return (up @ down * (float(parts["alpha"]) / len(down) if "alpha" in parts else 1.0)).reshape(shape)
    with torch.no_grad():
        return layer(parts, shape).delta_weight().detach()


class _Linear(nn.Linear):
    """Of a shape alone: that no weights are drawn for it takes a fifth off a change of files."""

    def reset_parameters(self) -> None:
        """Nothing is drawn."""


class _Conv2d(nn.Conv2d):
    """The same with a kernel."""

    def reset_parameters(self) -> None:
        """Nothing is drawn."""


def layer(parts: Parts, shape: Shape) -> Adapter:
    """The method's layer with the factors of a file."""
    inner = {"bias": False, "device": "meta"}
    module = _Conv2d(shape[1], shape[0], shape[2:], **inner) if len(shape) == 4 else _Linear(shape[1], shape[0], **inner)
    made: Adapter
    if family(parts) == "LoRA":
        made = LoRALayer(module, 1, 1.0, torch.Generator())
    elif family(parts) == "LoHa":
        made = LoHaLayer(module, 1, 1.0, torch.Generator())
    else:
        made = LoKrLayer(module, 1, 1.0, torch.Generator(), LoKrConfig())
    made.fill({name: tensor for name, tensor in parts.items() if name != "dora_scale"})
    return made


def change(module: Module, parts: Parts, weight: Tensor) -> Tensor:
    """All that is added to a weight (fp32, its shape), lengths of a DoRA included: one per channel in (the WebUI's axis) or out (LyCORIS', the paper's).

    An inpainting checkpoint's first convolution has more channels in than the LoRA's; the rest of them stays as it is, as in the WebUI.
    """
    weight = weight.float()
    if module[1] == "input_blocks.0.0" and weight.shape[1] > (own := shape_of(module, parts))[1]:
        return nn.functional.pad(change(module, parts, weight[:, : own[1]]), (0, 0, 0, 0, 0, weight.shape[1] - own[1]))
    found = delta(module, parts, tuple(weight.shape))
    if "dora_scale" not in parts:
        return found
    lengths, whole = parts["dora_scale"].float(), weight + found
    if lengths.shape[0] == 1 and lengths.numel() == weight.shape[1]:
        return Decomposed(found, lengths.reshape(1, -1, *[1] * (weight.ndim - 2))).change(weight)
    if lengths.numel() != weight.shape[0]:
        raise ValueError(f"{module[1]}: its DoRA has {lengths.numel()} lengths for a layer of {'x'.join(map(str, weight.shape))}")
    own = torch.linalg.vector_norm(whole.flatten(1), dim=1).clamp(min=1e-12)  # (D,)
    return whole * (lengths.flatten() / own).reshape(-1, *[1] * (weight.ndim - 1)) - weight


class Decomposed(Layer):
    """A known change under a DoRA's lengths."""

    def __init__(self, found: Tensor, lengths: Tensor):
        super().__init__()
        self.found, self.magnitude = found, nn.Parameter(lengths, False)

    def delta_weight(self) -> Tensor:
        return self.found


def flat_factors(module: Module, parts: Parts) -> tuple[Tensor, Tensor]:
    """up (D, r), down (r, C k k) with up @ down = ΔW: exact in every family, at the family's own largest rank."""
    parts = _without_core(parts)
    if "dora_scale" in parts:
        raise ValueError("is a DoRA, whose change depends on the checkpoint's own weights: merge it into the checkpoint, then extract")
    if "diff" in parts:
        u, values, vh = svd(parts["diff"].float().flatten(1))
        return u * values, vh
    with torch.no_grad():
        up, down = _pair(layer(parts, shape_of(module, parts)))
    return up.detach(), down.detach()


def _pair(made: Adapter) -> tuple[Tensor, Tensor]:
    if isinstance(made, LoRALayer):
        down = made.down if made.mid is None else torch.einsum("nmkl,mc->nckl", made.mid, made.down.flatten(1))
        return made.up.flatten(1) * made.scale, down.flatten(1)
    if isinstance(made, LoHaLayer):  # of a product of entries each pair of ranks is one rank
        up, down = made.w1_a[:, :, None] * made.w2_a[:, None], made.w1_b[:, None] * made.w2_b[None]
        return up.flatten(1) * made.scale, down.flatten(0, 1)
    return _kronecker(made)


def _kronecker(made: LoKrLayer) -> tuple[Tensor, Tensor]:
    """w1 ⊗ w2 = (P ⊗ S) (Q ⊗ T) for w1 = P Q and w2 = S T; the kernel goes with T."""
    w1, w2 = made.matrices()
    (a, c), (b, d, *k) = w1.shape, w2.shape
    p, q = (w1, torch.eye(c)) if c <= a else (torch.eye(a), w1)
    if made.w2 is None:
        s, t = made.w2_a, made.w2_b
    else:
        s, t = (w2.flatten(1), torch.eye(w2[0].numel())) if w2[0].numel() <= b else (torch.eye(b), w2.flatten(1))
    down = torch.einsum("xc,ydk->xycdk", q, t.reshape(len(t), d, -1))  # (rank of w1, rank of w2, c, d, k k)
    return torch.kron(p, s), down.flatten(2).flatten(0, 1)


def _without_core(parts: Parts) -> Parts:
    """LoKr with a core as one with a whole second matrix, LoHa with cores as its change."""
    if "lokr_t2" not in parts and "hada_t1" not in parts:
        return parts

    def made(a: str, b: str, core: str) -> Tensor:
        return torch.einsum("ijkl,ip,jr->prkl", parts[core].float(), parts[a].float(), parts[b].float())

    kept = {name: tensor for name, tensor in parts.items() if name == "dora_scale"}
    size = len(parts["hada_w1_b"] if "hada_t1" in parts else parts["lokr_w2_b"])
    scale = float(parts["alpha"]) / size if "alpha" in parts else 1.0
    if "hada_t1" in parts:
        return {**kept, "diff": made("hada_w1_a", "hada_w1_b", "hada_t1") * made("hada_w2_a", "hada_w2_b", "hada_t2") * scale}
    w1 = parts["lokr_w1"].float() if "lokr_w1" in parts else parts["lokr_w1_a"].float() @ parts["lokr_w1_b"].float()
    return {**kept, "lokr_w1": w1, "lokr_w2": made("lokr_w2_a", "lokr_w2_b", "lokr_t2") * scale}  # of two whole matrices nothing is scaled
