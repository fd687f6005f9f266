"""Threads beside each other: each computes alone, whatever it computes, and nobody else's number of threads is another one for it."""

import threading

import pytest
import torch

from lib_tuner.sd.threads import side_by_side

pytestmark = pytest.mark.webui_versions


def numbers_of_a_new_thread():
    """How many threads one computes with that starts now."""
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found


def test_each_computes_alone_also_after_an_operation_that_torch_shares_out(two_threads):
    together = threading.Barrier(2)

    def work(x):
        together.wait()  # so that both take part
        before = torch.get_num_threads()
        x.mul_(2)
        seen.append((threading.current_thread().name, before, torch.get_num_threads(), torch.is_grad_enabled()))

    seen, some = [], [torch.ones(2**18) for _ in range(4)]
    with side_by_side() as run:
        tuple(run(work, some))
        inside = torch.get_num_threads(), *numbers_of_a_new_thread()
    assert {entry[1:] for entry in seen} == {(1, 1, False)} and len({name for name, *_ in seen}) == 2
    assert inside == (2, 2) and torch.get_num_threads() == 2 and torch.is_grad_enabled()
    assert all(float(x.sum()) == 2**19 for x in some)


def test_what_goes_wrong_in_one_is_raised_and_the_threads_end(two_threads):
    before = threading.active_count()

    def work(x):
        raise ValueError(f"piece {x}")

    with pytest.raises(ValueError, match="piece 0"), side_by_side() as run:
        tuple(run(work, range(3)))
    assert threading.active_count() == before


def test_one_thread_has_nobody_beside_it():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with side_by_side() as run:
            assert run is map
    finally:
        torch.set_num_threads(before)
