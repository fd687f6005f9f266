"""What T2I-Adapter and ControlNet share: a network of their own that reads a hint, and adds to what goes through the frozen UNet by hooks.

Axes: B samples, C channels, h w latent pixels, H W = 8 h, 8 w pixels of the hint.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import opt
from ..disk import expanded
from ..data.conditions import Recipe
from ..data.depth import Depth, OnnxDepth
from ..data.hints import DEPTH, OWN, Hints
from ..host import Components
from .adapters import DTYPES
from .base import HookMethod, no_blocks
from .control_file import read_control, write_control
from .metadata import Made, control_metadata

PIXELS = 8  # to a latent pixel


@dataclass(frozen=True)
class HintConfig:
    """Where hints come from, and how the network is saved."""

    hint: str = opt("canny", "Hint", "What the network follows. All but own are made of each training picture, depth by a model; poses have to be pictures of your own.",
                    choices=("canny", "lineart", "softedge", "colour", "tile", DEPTH, OWN), essential=True)
    hints: str = opt("", "Hint pictures", "With own: folder of the hint pictures, each called like its training picture.", essential=True)
    sample_hints: str = opt("", "Hints of the samples", "Folder of hint pictures that samples are drawn under; empty: those of a few training pictures.", kept=False)
    canny_low: float = opt(100.0, "Canny low", "Edges weaker than this are left out.", min=0.0, max=1000.0)
    canny_high: float = opt(200.0, "Canny high", "Lines with an edge stronger than this are taken whole.", min=0.0, max=1000.0)
    blur: float = opt(1.0, "Blur before edges", "Deviation of the blur with which canny and softedge begin.", min=0.0, max=20.0, unit="px")
    cell: int = opt(0, "Cell", "Squares of the colour grid, or how many times smaller a tile is made; 0: 64 and 8.", min=0, max=512)
    depth_model: str = opt("", "Depth model", "With depth: an .onnx file of Depth Anything, MiDaS or DPT; empty: the WebUI's own MiDaS, which it fetches once (470 MB). "
                           "About a second a picture on a CPU.", essential=True)
    start: str = opt("", "Start from", "A file of this kind to go on from (.safetensors, .pth), in the original or in diffusers' names.")
    save_dtype: str = opt("fp16", "Saved precision", "Precision of the saved file.", choices=("fp16", "bf16", "fp32"), kept=False)

    def check(self) -> None:
        """Raises ValueError for a folder without its kind, or the other way round."""
        if self.hint == OWN and not self.hints.strip():
            raise ValueError("hints: is empty, but hint is own: name the folder of the hint pictures, or choose a hint that is made")
        if self.hints.strip() and self.hint != OWN:
            raise ValueError(f"hints: names a folder, but hint is {self.hint}, which is made of the training pictures: set hint to own, or leave hints empty")
        if self.depth_model.strip() and self.hint != DEPTH:
            raise ValueError(f"depth_model: names a model, but hint is {self.hint}, which needs none: set hint to depth, or leave depth_model empty")
        if self.canny_low > self.canny_high:
            raise ValueError(f"canny_low ({self.canny_low}) is above canny_high ({self.canny_high})")


class Hinted(HookMethod):
    """A network beside the UNet; without a hint the model is the frozen one."""

    Config = HintConfig
    in_prompt = False
    refuses = {
        "prior.weight": "without its hint the model is the frozen one, so such a prior would teach to ignore the hint; set it to 0.",
        **no_blocks("the network beside the UNet learns as a whole, since each of its blocks builds on those before; leave it out"),
    }
    settings: HintConfig

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        s = self.settings
        self.hints = Hints(Recipe(s.hint, s.canny_low, s.canny_high, s.blur, s.cell), s.hints, s.sample_hints, masks=cfg.data.masks)
        self.net: nn.Module | None = None
        self._sd: Components | None = None
        self._hint: Tensor | None = None
        self._added: list[Tensor] = []  # of the last forward pass; kept until the next, since checkpointing runs the hooks again in the backward pass

    def new_net(self, sd: Components) -> nn.Module:
        """The network at its start, in fp32 on the UNet's device."""
        raise NotImplementedError

    def compute(self, hint: Tensor, x: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        """What is added to the UNet's blocks under hint (B, 3, H, W)."""
        raise NotImplementedError

    def hook(self, unet: nn.Module) -> list[Any]:
        """Hooks that add `self.added(i)` where it belongs; returns their handles."""
        raise NotImplementedError

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        if self.settings.hint == DEPTH:
            self.hints.depth = self._depth(sd)
        self._sd, self.net = sd, self.new_net(sd)
        if self.settings.start:
            shapes = {key: tuple(t.shape) for key, t in self.net.state_dict().items()}
            tensors = read_control(expanded(self.settings.start), self.kind, shapes)
            self.net.load_state_dict({key: t.float() for key, t in tensors.items()})
        self.net.requires_grad_(True)
        self._handles = [sd.unet.register_forward_pre_hook(self._before, with_kwargs=True), *self.hook(sd.unet)]
        return [{"params": list(self.net.parameters())}]

    def _depth(self, sd: Components) -> Depth:
        if own := self.settings.depth_model.strip():
            return OnnxDepth(expanded(own))
        if sd.depth is None:
            raise ValueError("depth_model: is empty, and only inside the WebUI there is a depth model already: name an .onnx file of one, such as Depth Anything's.")
        return sd.depth

    def detach(self) -> None:
        super().detach()
        self._added, self.hints.depth = [], None
        self.net = self._sd = self._hint = None

    def begin(self, batch: Any) -> None:
        self._hint = None if batch.hint is None else batch.hint.to(self._sd.device, torch.float32)

    def _before(self, unet: nn.Module, args: tuple, named: dict[str, Any]) -> None:
        if not self._on:
            return
        self._added = []
        if self._hint is None:
            return
        x, timesteps, context = (args[i] if i < len(args) else named[name] for i, name in enumerate(("x", "timesteps", "context")))
        with self._precision():
            self._added = self.compute(_fitting(self._hint, x), x, timesteps, context)

    def _precision(self) -> AbstractContextManager:
        """The network computes in the model's precision; its weights stay in fp32."""
        device, dtype = self._sd.device.type, self._sd.dtype
        own = dtype == torch.bfloat16 and device in ("cpu", "cuda") or dtype == torch.float16 and device == "cuda"
        return torch.autocast(device, dtype) if own else nullcontext()

    def added(self, i: int, x: Tensor) -> Tensor | None:
        """The i-th of what is added, in the precision of `x`; None where nothing is."""
        return self._added[i].to(x.dtype) if self._on and self._added else None

    def state_dict(self) -> dict[str, Any]:
        return {"net": {key: t.detach().clone() for key, t in self.net.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self.net.state_dict()
        if {key: t.shape for key, t in own.items()} != {key: t.shape for key, t in state["net"].items()}:
            raise ValueError(f"The saved {self.label} has other tensors than these settings make; resume with the settings of the run that was saved.")
        self.net.load_state_dict(state["net"])

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        metadata = control_metadata(self.cfg, summary, made, self.kind)
        return [write_control(path.with_name(path.name + ".safetensors"), self.kind, self.net.state_dict(), metadata, DTYPES[self.settings.save_dtype])]


def _fitting(hint: Tensor, x: Tensor) -> Tensor:
    """The hint for all samples of x (B, 4, h, w): a picture's with and without its prompt are two of them; another size, as in a second pass, is scaled to.

    Raises ValueError where the samples are no multiple of the hints.
    """
    size = [side * PIXELS for side in x.shape[2:]]
    if len(x) % len(hint):
        raise ValueError(f"{len(x)} samples cannot be drawn under {len(hint)} hints.")
    hint = hint if list(hint.shape[2:]) == size else F.interpolate(hint, size=size, mode="bilinear", align_corners=False, antialias=True)
    return hint.repeat(len(x) // len(hint), 1, 1, 1)
