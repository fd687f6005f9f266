"""Work that waits for the WebUI, which is busy: it says so, can be stopped at once, leaves its place to others, and has its turn in the order of asking."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from worlds import doubled

from lib_tuner.comparisons import Comparisons, GridOrder
from lib_tuner.hosts.job import Turn, job
from lib_tuner.jobs import Jobs
from lib_tuner.toolbox import OwnFolders, Toolbox
from lib_tuner.work import Stopped


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Any:
    with doubled(tmp_path_factory.mktemp("double")) as made:
        yield made


@pytest.fixture
def busy(world) -> Any:
    """The host's lock, which somebody has; whether a test gives it back or not, it is free afterwards."""
    lock = world.w.call_queue.queue_lock
    lock.acquire()
    yield lock
    lock.acquire(blocking=False)
    lock.release()


@pytest.fixture
def jobs(world, tmp_path) -> Any:
    with closing(Jobs(tmp_path / "out", world.a1111.WebUI)) as made:
        yield made


def values(data_folder: Path, home: Path, **more: Any) -> dict[str, Any]:
    return {"name": "thing", "output": str(home), "data.folder": str(data_folder), "steps": 1, "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8, "data.batch": 1,
            "lora.rank": 2, "save_every": 0, **more}  # fmt: skip


def waits(jobs: Jobs) -> bool:
    now = jobs.status()["now"]
    return now is not None and now["text"] == "Waiting for the WebUI"


@pytest.mark.parametrize(("end", "state"), [("stop", "stopped"), ("pause", "paused")])
def test_a_run_that_waits_says_so_and_ends_when_it_is_asked_to(world, busy, jobs, data_folder, end, state):
    entry = jobs.add(values(data_folder, jobs.home))
    until(lambda: waits(jobs))
    getattr(jobs, end)()
    until(lambda: entry.state == state)
    assert not entry.error and not world.w.progress.pending_tasks and world.w.shared.state.job == ""
    jobs.check_free()
    busy.release()
    until(lambda: busy.acquire(blocking=False))  # nobody waits there any more


def test_a_run_that_waits_begins_when_its_turn_has_come(busy, jobs, data_folder):
    entry = jobs.add(values(data_folder, jobs.home))
    until(lambda: waits(jobs))
    busy.release()
    until(lambda: entry.state == "done", 60)


def test_the_program_ends_while_a_run_waits(busy, world, tmp_path, data_folder):
    jobs = Jobs(tmp_path / "out", world.a1111.WebUI)
    entry = jobs.add(values(data_folder, jobs.home))
    until(lambda: entry.state == "running")
    jobs.close(20)
    assert not jobs._thread.is_alive() and entry.state == "paused"


def test_a_comparison_that_waits_says_so_and_can_be_stopped(busy, jobs):
    with closing(Toolbox(OwnFolders(jobs.home), jobs.home, jobs.outputs)) as tools, closing(Comparisons(jobs, tools)) as comparisons:
        comparisons.start(GridOrder("a star", width=64, height=64, steps=1))
        until(lambda: comparisons.status()["work"]["stage"] == "turn")
        comparisons.stop()
        until(lambda: not comparisons.work.going)
        assert comparisons.work.state == "stopped" and comparisons.status()["grid"]["states"] == [""]
        busy.release()
        comparisons.again([0])
        until(lambda: not comparisons.work.going, 60)
        assert comparisons.work.state == "done" and comparisons.status()["grid"]["states"] == ["drawn"]


def test_turns_come_in_the_order_of_asking_and_one_that_was_left_is_passed_over(busy):
    first, left, last = Turn(busy), Turn(busy), Turn(busy)
    left.leave()
    assert not first.came(0.05) and not last.came(0)
    busy.release()
    assert first.came(10) and not last.came(0.05)
    first.leave()
    assert last.came(10)
    last.leave()
    assert busy.acquire(blocking=False)


def test_what_is_given_up_ends_although_the_lock_stays_taken(world, busy):
    ended: list[str] = []

    def waiting() -> None:
        def stop() -> None:
            raise Stopped

        try:
            with job(world.w, stop):
                ended.append("had its turn")
        except Stopped:
            ended.append("stopped")

    thread = threading.Thread(target=waiting)
    thread.start()
    thread.join(10)
    assert ended == ["stopped"]
