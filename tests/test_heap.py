"""What is freed in an update is there for the next one, and is the system's again when the run is over. Each in a process of its own: what an allocator does depends on all before."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

try:
    GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
except (OSError, TypeError):
    GLIBC = False
glibc = pytest.mark.skipif(not GLIBC, reason="another C library")
PIECE = 48 * 2**20

BEGIN = f"""
import contextlib, resource
import torch
from lib_tuner.hosts.heap import heap_kept

def update():
    for _ in range(4):
        pieces = [torch.ones({PIECE}, dtype=torch.uint8) for _ in range(3)]
        del pieces

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        update()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
"""


def said(program: str) -> list[int]:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", BEGIN + program], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@glibc
def test_pages_are_asked_for_once_and_given_back_at_the_end():
    usual, first, later, between, inside, left = said("""
resident()
usual = faults(2)
before = resident()
with heap_kept():
    first, later = faults(1), faults(2)
    held = resident()
print(usual, first, later, before, held, resident())
""")
    pages = PIECE // os.sysconf("SC_PAGESIZE")
    assert usual > 10 * pages < 40 * first  # three pieces or more, each anew
    assert later < usual / 2  # mostly none; where the kernel places the heap otherwise, a few pieces are asked for anew
    assert inside > between + 2 * PIECE and left < between + PIECE


@glibc
def test_it_is_given_back_after_an_error_too():
    before, after = said("""
update()
before = resident()
with contextlib.suppress(RuntimeError), heap_kept():
    update()
    raise RuntimeError
print(before, resident())
""")
    assert after < before + PIECE


@glibc
def test_in_a_thread_as_a_job_has_it():
    (later,) = said("""
import threading
def job():
    global later
    with heap_kept():
        update()
        later = faults(2)
thread = threading.Thread(target=job)
thread.start()
thread.join()
print(later)
""")
    assert later < 24 * PIECE // os.sysconf("SC_PAGESIZE") / 2  # of two updates of twelve pieces


def test_an_older_glibc_that_refuses_so_much_gets_its_usual_limit(monkeypatch):
    from lib_tuner.hosts import heap

    class Old:
        asked: list[tuple[int, int]] = []

        def mallopt(self, option: int, value: int) -> int:
            self.asked.append((option, value))
            return int(option != heap.MMAP or value <= 2**25)

        def malloc_trim(self, pad: int) -> int:
            return 1

    monkeypatch.setattr(heap, "_glibc", lambda: Old())
    with heap.heap_kept():
        assert Old.asked == [(heap.MMAP, heap.NEVER), (heap.MMAP, 2**25), (heap.TRIM, heap.NEVER)]


def test_with_another_library_nothing_happens(monkeypatch):
    from lib_tuner.hosts import heap

    for library in (lambda name: object(), lambda name: (_ for _ in ()).throw(TypeError)):
        monkeypatch.setattr(heap.ctypes, "CDLL", library)
        with heap.heap_kept():
            pass
