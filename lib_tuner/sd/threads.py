"""Threads beside each other, each of which computes alone, for work that falls into pieces by itself.

torch shares out every single operation: where one thread is kept from its half, by a browser for one, the other waits at the end of each, and does so spinning.
Pieces are waited for once, and who is free takes the next one (measured: `benchmarks/README.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import torch

Run = Callable[[Callable[[Any], None], Iterable[Any]], Iterable[None]]  # as the built-in `map`, which is one


@contextmanager
def side_by_side() -> Iterator[Run]:
    """A `map` over as many threads as torch computes with, each with one of its own and without gradients. Where there is one it is the built-in."""
    count = torch.get_num_threads()
    if count == 1:
        yield map
        return
    with ThreadPoolExecutor(count, "side by side", _alone) as pool:
        # all start now, since torch gives the number that one thread asks for to those too that have not asked for theirs
        together = Barrier(count)
        list(pool.map(lambda _: together.wait(), range(count)))
        torch.set_num_threads(count)
        yield pool.map


def _alone() -> None:
    torch.get_num_threads()  # that is how torch counts as asked; else it puts everybody's number over this thread's at its first operation
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
