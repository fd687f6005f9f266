"""What the weights of a prompt's tokens do to the text encoder's states, by the setting `emphasis`. z (B, L, C), weights (B, L)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def _original(z: Tensor, weights: Tensor) -> Tensor:
    """The mean stays; where it is 0 nothing is left that is a number."""
    weighted = z * weights[..., None]
    return weighted if bool((weights == 1).all()) else weighted * (z.mean() / weighted.mean())


EMPHASIS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Original": _original,
    "No norm": lambda z, weights: z * weights[..., None],
    "Ignore": lambda z, weights: z,
    "None": lambda z, weights: z,  # and brackets are letters
}
