"""Words of sentences that people read."""

from __future__ import annotations


def number_of(n: int, what: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
