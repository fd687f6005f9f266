"""A network that lies in RAM while it is not used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

Place = Callable[[], AbstractContextManager]
stays: Place = nullcontext  # where the network is all the time


def in_ram(network: nn.Module, device: torch.device | str) -> Place:
    """Moves the network to RAM; what is returned brings it to `device` for as long as it is entered, however deep."""
    inside = [0]

    @contextmanager
    def here() -> Iterator[None]:
        if not inside[0]:
            network.to(device)
        inside[0] += 1
        try:
            yield
        finally:
            inside[0] -= 1
            if not inside[0]:
                network.to("cpu")

    network.to("cpu")
    return here
