"""T2I-Adapter (Mou et al. 2302.08453): a small network makes features of a hint, which are added to the UNet's way down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import opt
from ..data.conditions import GRAY
from ..host import Components
from ..sd.layers import Unfilled, start_as_usual
from ..sd.loss import generator_for
from ..sd.t2i_adapter import AFTER, T2IAdapter
from .control_file import level_widths, reads_grey
from .hinted import HintConfig, Hinted

SMALL_START = 0.01


@dataclass(frozen=True)
class T2IAdapterConfig(HintConfig):
    """Hints, and the adapter's form and start."""

    channels: str = opt("auto", "Hint channels", "Whether the adapter reads colours; auto: grey for canny, lineart and softedge, and as the file to start from.", choices=("auto", "rgb", "grey"))
    small_start: bool = opt(False, "Small start", "Starts with features a hundredth as large, which leave the first pictures whole; the file's form stays.")


class T2I(Hinted):
    """Features of the hint after input blocks 2, 5, 8 and 11, before they are kept as skips."""

    Config, kind, label = T2IAdapterConfig, "t2i_adapter", "T2I-Adapter"
    identity_at_start = False  # torch's usual start, as TencentARC's
    parameters = 77_369_280
    settings: T2IAdapterConfig

    def new_net(self, sd: Components) -> nn.Module:
        with Unfilled():  # a start of torch's own would draw from everybody's random numbers
            net = T2IAdapter(level_widths(sd.unet), self._grey())
        net.to_empty(device="cpu")
        generator = generator_for(self.cfg.seed, 0, "adapter")
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                start_as_usual(module, generator)
        if self.settings.small_start:
            net.shrink(SMALL_START)
        return net.to(sd.device)

    def _grey(self) -> bool:
        s = self.settings
        if s.channels == "auto" and s.start:
            return reads_grey(s.start)
        return s.channels == "grey" or s.channels == "auto" and s.hint in GRAY

    def compute(self, hint: Tensor, x: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        return self.net(hint)

    def hook(self, unet: nn.Module) -> list[Any]:
        def adds(i: int) -> Any:
            def add(block: nn.Module, args: tuple, output: Tensor) -> Tensor:
                feature = self.added(i, output)
                return output if feature is None else output + feature

            return add

        return [unet.input_blocks[number].register_forward_hook(adds(i)) for i, number in enumerate(AFTER)]
