"""Words of sentences that people read."""

from __future__ import annotations

from typing import TextIO


def number_of(n: int, what: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def gigabytes(n: float) -> str:
    """`4.6 GB`, of 1e9 bytes each."""
    return f"{n / 1e9:.1f} GB"


def first_line(error: BaseException) -> str:
    """What a library says in many lines, in one; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# also of cuBLAS and cuDNN, which say in their own way that they found no room to compute in
_NO_MEMORY = (
    "out of memory", "not enough memory", "allocate memory", "status_alloc_failed", "cublas_status_not_initialized", "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute",
)  # fmt: skip


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out: of a GPU, or of the computer, of which torch and Python speak in words of their own on each system."""
    text = "" if isinstance(error, ValueError) else str(error).lower()  # a ValueError is a sentence of our own, which says more
    return isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)


def writable(text: str, stream: TextIO) -> str:
    """The text with a question mark where the stream has no letter: a Windows console lacks some of a path, and a name on the disk may be bytes that are no text."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
