"""Words of sentences that people read."""

from __future__ import annotations


def number_of(n: int, what: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """What a library says in many lines, in one; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def lacks_memory(error: BaseException) -> bool:
    """Whether it says that memory was short; there is no one type for it in all of torch's versions and devices."""
    return "out of memory" in str(error).lower()
