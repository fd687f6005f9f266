"""What a page is told of a run that goes."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_tuner import live as module
from lib_tuner.events import Finished, Preparing, Sampled, Saved, Started, Stepped, Validated, Warned
from lib_tuner.live import Live


class Loss:
    """A loss that counts how often it is read: on a GPU each time means waiting."""

    reads = 0

    def __float__(self):
        Loss.reads += 1
        return 0.5


def test_what_is_waited_for_is_always_said():
    live = Live()
    said = [live.snapshot()["text"]]
    for event in (Preparing(0, 0, "Loading the model"), Preparing(3, 8, "Encoding a.png"), Warned("w"), Started(0, 10, Path("x")), Stepped(1, torch.tensor(0.5), 0.1), Preparing(0, 0, "Saving")):
        live.take(event)
        said.append(live.snapshot()["text"])
    assert said == ["Starting", "Loading the model", "Encoding a.png", "Encoding a.png", "", "", "Saving"]
    assert (live.done, live.total) == (0, 0) and live.snapshot()["warnings"] == ["w"]


def test_losses_are_read_twice_a_second_and_at_milestones(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    live, Loss.reads = Live(), 0
    live.take(Started(0, 100, Path("x")))
    live.take(Stepped(1, Loss(), 0.1))
    assert Loss.reads == 1  # the first one at once
    for step in range(2, 9):
        now[0] += 0.05
        live.take(Stepped(step, Loss(), 0.1))
    assert Loss.reads == 1 and len(live.snapshot()["points"]) == 1
    now[0] += 0.6
    assert len(live.snapshot()["points"]) == 8  # also where no further step comes
    live.take(Stepped(9, Loss(), 0.1))
    live.take(Saved(9, [Path("a.safetensors")], "fine"))
    assert Loss.reads == 9 and live.snapshot()["saves"] == [{"step": 9, "files": ["a.safetensors"], "report": "fine"}]


def test_time_left_follows_the_last_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    live = Live()
    assert live.snapshot()["left"] is None
    live.take(Started(0, 200, Path("x")))
    for step in range(1, 101):
        now[0] += 1.0 if step <= 50 else 2.0
        live.take(Stepped(step, torch.tensor(0.1), 0.1))
    told = live.snapshot()
    assert (told["step"], told["seconds_per_step"], told["left"]) == (100, 2.0, 200.0)


def test_a_resumed_run_forgets_what_lay_behind_its_state():
    live = Live()
    points, samples = [[1, 0.5, 0.1], [2, 0.4, 0.1], [3, 0.3, 0.1]], [{"step": 0, "pictures": ["a"]}, {"step": 3, "pictures": ["b"]}]
    live.known({"points": points, "validations": [[2, 0.2], [3, 0.1]], "samples": samples, "drifts": [[0, 0.0], [3, 0.1]], "step": 3, "steps": 10, "training": [0]})
    assert (live.snapshot()["step"], live.snapshot()["text"]) == (3, "") and live.snapshot()["points"] == points
    live.take(Started(2, 10, Path("x"), (Path("p.png"),)))
    told = live.snapshot()
    assert [p[0] for p in told["points"]] == [1, 2] and told["validations"] == [[2, 0.2]] and [s["step"] for s in told["samples"]] == [0]
    assert told["drifts"] == [[0, 0.0]]
    assert (told["start"], told["step"], told["training"]) == (2, 2, [0])


def test_samples_drawn_again_take_the_place_of_the_first():
    live = Live()
    live.take(Started(0, 10, Path("x")))
    for paths in ([Path("r/000000-0.png")], [Path("r/000000-0.png"), Path("r/000000-1.png")]):
        live.take(Sampled(0, [], paths))
    live.take(Validated(0, 0.25))
    live.take(Finished(0, "stopped", []))
    assert live.snapshot()["samples"] == [{"step": 0, "pictures": ["samples/000000-0.png", "samples/000000-1.png"]}] and live.snapshot()["validations"] == [[0, 0.25]]


def test_only_points_that_are_asked_for_are_told():
    live = Live()
    live.take(Started(0, 10, Path("x")))
    for step in range(1, 6):
        live.take(Stepped(step, torch.tensor(0.5), 0.1))
    live.take(Finished(5, "done", []))
    assert [p[0] for p in live.snapshot(live.part, 3)["points"]] == [4, 5] and live.snapshot(live.part, 3)["points_from"] == 3
    assert live.snapshot(live.part, 99)["points"] == [] and live.snapshot(live.part, 99)["points_from"] == 5


def test_a_page_that_stayed_open_has_the_points_of_a_resumed_run():
    """Its first part ended behind the save that it goes on from, and its CSV file has fewer points than the page."""
    points: list[list[float | None]] = []

    def look(live: Live) -> None:
        told = live.snapshot(seen[0], len(points))
        points[told["points_from"] :] = told["points"]
        seen[0] = told["part"]

    seen = [""]
    first, second = Live(), Live()
    first.take(Started(0, 100, Path("x")))
    for step in range(1, 46):
        first.take(Stepped(step, torch.tensor(1.0), 0.1))
    first.take(Finished(45, "nan", []))
    look(first)
    second.known({"points": [[step, 1.0, 0.1] for step in range(10, 50, 10)], "validations": [], "samples": [], "drifts": [], "training": [], "step": 45, "steps": 100})
    look(second)
    assert [p[0] for p in points] == [10, 20, 30, 40]
    second.take(Started(30, 100, Path("x")))
    second.take(Stepped(31, torch.tensor(2.0), 0.1))
    second.take(Stepped(32, torch.tensor(2.0), 0.1))
    second.take(Finished(32, "stopped", []))
    look(second)
    assert [p[0] for p in points] == [10, 20, 30, 31, 32]


def test_a_loss_that_is_no_number_is_told_as_none():
    """JSON has no NaN, and one point must not silence the whole page."""
    live = Live()
    live.take(Started(0, 10, Path("x")))
    live.take(Stepped(1, torch.tensor(float("nan")), 0.1))
    live.take(Validated(1, float("inf")))
    assert live.snapshot()["points"] == [[1, None, 0.1]] and live.snapshot()["validations"] == [[1, None]]


def test_the_memory_of_the_process_is_measured():
    assert module.process_memory()["process"] is None or module.process_memory()["process"] > 1e7
