"""Other networks in the place of the model's UNet, as TensorRT's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import devices, script_callbacks, shared


class SdUnet(nn.Module):
    """forward(x, timesteps, context, ...); told when it is put in and taken out."""

    activate = deactivate = lambda self: None


class SdUnetOption:
    """A choice: for the checkpoint of `model_name` by itself, for any other by its `label`. `create_unet()` makes the network."""

    model_name = label = None


unet_options: list[SdUnetOption] = []
current_unet_option: SdUnetOption | None = None
current_unet: SdUnet | None = None


def list_unets() -> None:
    unet_options[:] = script_callbacks.list_unets_callback()


def get_unet_option(option: str | None = None) -> SdUnetOption | None:
    """None stands for the model's own, which an unknown label means too."""
    wanted = option or shared.opts.sd_unet
    if wanted == "None":
        return None
    field, value = ("model_name", shared.sd_model.sd_checkpoint_info.model_name) if wanted == "Automatic" else ("label", wanted)
    return next((each for each in unet_options if getattr(each, field) == value), None)


def apply_unet(option: str | None = None) -> None:
    """Puts the chosen one in; without an argument the one that the settings name."""
    global current_unet, current_unet_option
    chosen = get_unet_option(option)
    if chosen is current_unet_option:
        return
    before, current_unet_option, current_unet = current_unet, chosen, chosen and chosen.create_unet()
    shared.sd_model.model.diffusion_model.to(devices.device if chosen is None else devices.cpu)
    for unet, told in ((before, "deactivate"), (current_unet, "activate")):
        if unet is not None:
            getattr(unet, told)()


def create_unet_forward(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For the UNet's class: while another is set, the own one is not called."""

    def forward(unet: nn.Module, *given: Any, **named: Any) -> Tensor:
        return original(unet, *given, **named) if current_unet is None else current_unet(*given, **named)

    return forward
