"""Noise of pictures: each has a stream of its own, and making it seeds everybody's random numbers as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import devices


class ImageRNG:
    """Noise for pictures of `shape`, one stream for each seed: first() to start from, next() for what a sampler adds."""

    def __init__(self, shape: Sequence[int], seeds: Sequence[int]):
        self.shape, self._streams = tuple(shape), []
        for seed in seeds:
            torch.manual_seed(int(seed))  # the host's awkward habit: the last seed is what everybody's random numbers go on from
            self._streams.append(torch.Generator().manual_seed(int(seed)))

    def next(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=stream) for stream in self._streams]).to(devices.device)

    first = next
