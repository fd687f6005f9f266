"""Randomness that is a function of its key, so that a resumed run, another batch size or another world size draws the same."""

from __future__ import annotations

import random


def rng(*key: object) -> random.Random:
    """The `random.Random` of a key such as (seed, "caption", sample index); equal keys give equal draws in every process."""
    return random.Random("/".join(map(str, key)))  # a str seed goes through SHA-512, not through the per-process hash()
