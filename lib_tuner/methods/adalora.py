"""AdaLoRA (Zhang et al. 2303.10512): layers P diag(λ) Q whose ranks are shared out during the run, to where they matter.

ΔW = P diag(λ) Q * alpha / first rank. Axes: r rank, C channels in (times the kernel), D channels out, n layers of one shape.
Source of the formulas: the paper's sections 3.1 to 3.3 and its code (QingruZhang/AdaLoRA, loralib/adalora.py); betas as in peft.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..config import opt
from .adapters import Adapter, AdapterConfig, Adapters
from .low_rank import svd_of_product


@dataclass(frozen=True)
class AdaLoRAConfig(AdapterConfig):
    """What gets a layer, and how ranks are shared out."""

    rank: int = opt(8, "Rank", "The mean rank that is left at the end.", min=1, max=1024, essential=True)
    alpha: float = opt(12.0, "Alpha", "The adapter's effect is alpha / first rank.", min=0.001, max=4096.0)
    first_rank: int = opt(12, "First rank", "The rank of every layer at the start; what matters least is taken away.", min=1, max=1024)
    share_from: float = opt(0.1, "Shared out from", "Part of the run before the first rank is taken away.", min=0.0, max=1.0)
    share_until: float = opt(0.7, "Shared out until", "Part of the run after which ranks stay as they are.", min=0.0, max=1.0)
    share_every: int = opt(10, "Shared out every", "Steps from one sharing out to the next.", min=1, max=10000)
    smoothing: float = opt(0.85, "Smoothing", "How slowly the importance of a rank, and its uncertainty, change.", min=0.0, max=0.9999)
    orthogonal: float = opt(0.1, "Orthogonality", "Weight of the term that keeps the directions of a layer orthogonal.", min=0.0, max=10.0)

    def check(self) -> None:
        """Raises ValueError for block names there are not, and for what does not go together."""
        super().check()
        if self.dora:
            raise ValueError("dora: ranks that come and go leave no lengths to learn; turn it off, or take method = lora")
        if self.first_rank < self.rank:
            raise ValueError("first_rank: it is smaller than the rank that is to be left; make it larger, such as 1.5 times the rank")
        if self.share_until < self.share_from:
            raise ValueError("share_until: ranks cannot be settled before the first is taken away; make it larger than share_from")


class AdaLoRALayer(Adapter):
    """p (D, r), lam (r,), q (r, C) or (r, C, k, k); `alive` (r,) says which ranks are left."""

    def __init__(self, module: nn.Module, rank: int, alpha: float, generator: Generator):
        super().__init__(module, alpha)
        self.q = nn.Parameter(torch.randn(rank, *self.shape[1:], generator=generator) * 0.02)
        self.p = nn.Parameter(torch.randn(self.shape[0], rank, generator=generator) * 0.02)
        self.lam = nn.Parameter(torch.zeros(rank))
        self.register_buffer("alive", torch.ones(rank, dtype=torch.bool))

    @property
    def rank(self) -> int:
        return len(self.lam)

    def forward(self, x: Tensor) -> Tensor:
        p, q, lam = (factor.to(x.dtype) for factor in (self.p, self.q, self._left() * self.scale))
        h = self.apply_weight(x, q)
        if self.conv:
            return F.conv2d(self.whole(h * lam[:, None, None]), p[..., None, None])
        return F.linear(self.whole(h * lam), p)

    def delta_weight(self) -> Tensor:
        return ((self.p * self._left()) @ self.q.flatten(1) * self.scale).reshape(self.shape)

    def _left(self) -> Tensor:
        """λ (r,): while it learns all, so that a rank may come back; else those that a file has. An average remembers ranks that are gone."""
        return self.lam if self.training else self.lam * self.alive

    def tensors(self) -> dict[str, Tensor]:
        """An ordinary LoRA of the ranks that are left, the largest first, since the WebUI can use the first ranks of a file alone."""
        order = torch.where(self.alive, self.lam.detach().abs(), -1.0).argsort(descending=True)[: int(self.alive.sum())]
        up = (self.p * self.lam).detach()[:, order]
        up = up[..., None, None] if self.conv else up
        return {"lora_down.weight": self.q.detach()[order], "lora_up.weight": up, "alpha": torch.tensor(len(order) * self.scale)}

    def as_saved(self, dtype: torch.dtype) -> AdaLoRALayer:
        parts, made = self.tensors(), copy.copy(self)
        factors = {"q": parts["lora_down.weight"], "p": parts["lora_up.weight"].flatten(1)}
        made._parameters = {name: nn.Parameter(factor.to(dtype).to(factor.dtype), False) for name, factor in factors.items()}
        made._parameters |= {"lam": nn.Parameter(torch.ones_like(self.lam[: len(factors["q"])]), False), "magnitude": None}
        made._buffers = {"alive": torch.ones_like(made.lam, dtype=torch.bool)}
        made.alpha = float(parts["alpha"]) or 1.0
        return made

    @property
    def scale(self) -> float:
        return self.alpha / max(1, self.rank)

    def fill(self, known: Mapping[str, Tensor]) -> None:
        """The singular values and vectors of a LoRA's change; ranks beyond the file's begin as new ones."""
        up, down = (known[f"lora_{name}.weight"].float().flatten(1) for name in ("up", "down"))
        u, values, vh = svd_of_product(up, down)
        n = min(len(values), self.rank)
        factor = float(known.get("alpha", len(down))) / len(down) / self.scale
        with torch.no_grad():
            self.p[:, :n] = u[:, :n]
            self.q[:n] = vh[:n].reshape(n, *self.shape[1:])
            self.lam[:n] = values[:n] * factor


class Importance:
    """What each number of the layers is worth: its product with its gradient, smoothed, times how uncertain that is (equations 8 to 10)."""

    def __init__(self, layers: list[AdaLoRALayer], smoothing: float):
        self.layers, self.rest = layers, 1 - smoothing
        self.params = [p for layer in layers for p in (layer.lam, layer.q, layer.p)]
        self.mean, self.uncertain = ([torch.zeros_like(p) for p in self.params] for _ in range(2))

    @torch.no_grad()
    def look(self) -> None:
        """Takes the gradients of this step in."""
        now = torch._foreach_mul(self.params, [torch.zeros_like(p) if p.grad is None else p.grad.to(p.dtype) for p in self.params])
        torch._foreach_abs_(now)
        for tensor in now:  # an update that the loss scaler leaves out has gradients without end
            tensor.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_lerp_(self.mean, now, self.rest)
        torch._foreach_sub_(now, self.mean)
        torch._foreach_abs_(now)
        torch._foreach_lerp_(self.uncertain, now, self.rest)

    def scores(self) -> list[Tensor]:
        """(r,) of each layer: the λ's own, and the means over its two vectors (the code's reading of equation 7)."""
        each = torch._foreach_mul(self.mean, self.uncertain)
        return [lam + q.flatten(1).mean(1) + p.mean(0) for lam, q, p in zip(each[::3], each[1::3], each[2::3])]


def budget(step: int, steps: int, first: int, last: int, start: int, end: int) -> int:
    """How many ranks are left at a step: `first` up to `start`, `last` from `end` on, a cubic between (equation 12)."""
    if step <= start and step < end:
        return first
    if step >= end:
        return last
    return int(last + (first - last) * (1 - (step - start) / (end - start)) ** 3)


class AdaLoRA(Adapters):
    """Layers with singular values beside the chosen modules."""

    Config, kind, label, needs_grads = AdaLoRAConfig, "adalora", "AdaLoRA", True
    settings: AdaLoRAConfig

    def make(self, module: nn.Module, rank: int, alpha: float, generator: Generator) -> AdaLoRALayer:
        s = self.settings
        layer = AdaLoRALayer(module, max(1, round(rank * s.first_rank / s.rank)), alpha, generator)
        layer.left = rank
        return layer

    def of_family(self, factors: set[str]) -> bool:
        return factors == {"lora_down.weight", "lora_up.weight"}

    def attach(self, sd: Any) -> list[dict[str, Any]]:
        groups = super().attach(sd)
        layers = [layer for layer in self.layers.values() if layer.lam.requires_grad]  # not those of blocks that stay as the file has them
        self.importance = Importance(layers, self.settings.smoothing)
        self._alike: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)  # vectors in rows, or in columns, by their shape
        for layer in layers:
            self._alike[(0, *layer.q.flatten(1).shape)].append(layer.q)
            self._alike[(1, *layer.p.shape)].append(layer.p)
        return groups

    def extra_loss(self) -> Tensor | float:
        """The mean of ‖Q Qᵀ - I‖ and ‖Pᵀ P - I‖ over all layers (equation 4, as the code takes its root), layers of one shape at a time."""
        weight = self.settings.orthogonal
        if not weight:
            return 0.0
        total, count = 0.0, 0
        for (columns, *_), factors in self._alike.items():
            rows = torch.stack([factor.t() if columns else factor.flatten(1) for factor in factors])  # (n, r, C) or (n, r, D)
            total = total + torch.linalg.matrix_norm(rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device)).sum()
            count += len(factors)
        return weight * total / count

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        s, steps = self.settings, self.cfg.steps
        start, end = int(s.share_from * steps), max(1, int(s.share_until * steps))  # there is no step 0 after which the last could be taken away
        layers = self.importance.layers
        if step <= end:
            self.importance.look()
        if step == end or step < end and step % s.share_every == 0:
            self._share(budget(step, steps, sum(layer.rank for layer in layers), sum(layer.left for layer in layers), start, end))
        if step >= end or step % s.share_every == 0:
            for layer in layers:
                layer.lam *= layer.alive

    def _share(self, left: int) -> None:
        """Leaves the ranks that matter most, over all layers."""
        scores = torch.cat(self.importance.scores())
        alive = torch.zeros_like(scores, dtype=torch.bool)
        alive[scores.topk(min(left, len(scores))).indices] = True
        for layer, mine in zip(self.importance.layers, alive.split([layer.rank for layer in self.importance.layers])):
            layer.alive.copy_(mine)

    def ranks(self) -> dict[tuple[str, str], int]:
        """How many ranks each layer has left."""
        return {target: int(layer.alive.sum()) for target, layer in self.layers.items()}

    def saved_modules(self) -> dict[tuple[str, str], dict[str, Tensor]]:
        return {target: layer.tensors() for target, layer in self.layers.items() if layer.alive.any()}

    def state_dict(self) -> dict[str, Any]:
        kept = {"mean": self.importance.mean, "uncertain": self.importance.uncertain}
        return {**super().state_dict(), "importance": {f"{name}.{i}": t.clone() for name, tensors in kept.items() for i, t in enumerate(tensors)}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict({key: value for key, value in state.items() if key != "importance"})
        for name, tensors in (("mean", self.importance.mean), ("uncertain", self.importance.uncertain)):
            for i, tensor in enumerate(tensors):
                tensor.copy_(state["importance"][f"{name}.{i}"])
