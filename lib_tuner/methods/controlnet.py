"""ControlNet (Zhang et al. 2302.05543): a trained copy of the UNet's way down reads the hint; what it says is added to skips and middle of the frozen UNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..host import Components
from ..sd.controlnet import ControlNet as Network
from ..sd.loss import generator_for
from .hinted import Hinted

RESERVED = ("shuffle", "instant_id")  # in a file's name: the ControlNet extension takes such a file for another kind (its controlnet_model_guess.py)


class ControlNet(Hinted):
    """The residuals are added where the output blocks get the skips, not to the way down itself, as in the original (cldm.py)."""

    kind, label = "controlnet", "ControlNet"
    parameters = 361_279_120

    def new_net(self, sd: Components) -> nn.Module:
        if found := [word for word in RESERVED if word in self.cfg.name.lower()]:
            raise ValueError(f"name: the WebUI's ControlNet extension takes a file with {found[0]!r} in its name for another kind; choose another name.")
        net = Network.copy_of(sd.unet)
        net.reset(generator_for(self.cfg.seed, 0, "controlnet"))
        return net

    def compute(self, hint: Tensor, x: Tensor, timesteps: Tensor, context: Tensor) -> list[Tensor]:
        self.net.checkpointing = self._sd.checkpointing or getattr(self._sd.unet, "checkpointing", False)
        return self.net(x, hint, timesteps, context)

    def hook(self, unet: nn.Module) -> list[Any]:
        def to_skip(i: int) -> Any:
            def add(block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
                residual = self.added(i, args[0])
                if residual is None:
                    return None
                before = args[0].shape[1] - residual.shape[1]  # the block's input is [from below, skip]
                return (torch.cat([args[0][:, :before], args[0][:, before:] + residual], 1), *args[1:])

            return add

        def to_middle(block: nn.Module, args: tuple, output: Tensor) -> Tensor:
            residual = self.added(-1, output)
            return output if residual is None else output + residual

        last = len(unet.output_blocks) - 1
        skips = [block.register_forward_pre_hook(to_skip(last - i)) for i, block in enumerate(unet.output_blocks)]
        return [*skips, unet.middle_block.register_forward_hook(to_middle)]
