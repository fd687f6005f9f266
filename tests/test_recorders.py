"""Rows of a run: what they say, when losses are read, and that an interrupted run's file becomes that of an unbroken one."""

from __future__ import annotations

import csv as comma
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_tuner import recorders
from lib_tuner.events import Drifted, Finished, Preparing, Sampled, Saved, Started, Stepped, Validated, Warned
from lib_tuner.recorders import csv, tensorboard


class Loss:
    """A loss that counts how often it is read."""

    def __init__(self, value, reads):
        self.value, self.reads = value, reads

    def __float__(self):
        self.reads.append(self.value)
        return self.value


def run(start, steps, validate=4, save=3, folder=Path("run")):
    """The events of a run: everything in them is a function of the step."""
    yield Preparing(1, 1, "latents")
    yield Started(start, steps, folder)
    for step in range(start + 1, steps + 1):
        yield Stepped(step, torch.tensor(1 / step), 1e-4 * step)
        if step % validate == 0:
            yield Validated(step, 0.1 + 1 / (3 * step))
        if step % save == 0:
            yield Drifted(step, step / 7)
            yield Saved(step, [], "")
    yield Finished(steps, "done", [])


def table(path):
    with open(path, newline="") as file:
        return list(comma.DictReader(file))


def timeless(path):
    """The lines without the seconds, and with a drift where there is one."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [",".join([*row[:4], *(cell for cell in row[5:] if cell)]) for row in rows]


def unbroken(tmp_path, steps=12):
    path = tmp_path / "unbroken.csv"
    for _ in csv(run(0, steps), path):
        pass
    return timeless(path)


# ---- CSV


def test_a_row_per_step_with_its_numbers(tmp_path):
    path = tmp_path / "run" / "losses.csv"
    events = list(csv(run(0, 5), path))
    assert [type(e).__name__ for e in events] == [type(e).__name__ for e in run(0, 5)]
    assert path.read_text().splitlines()[0] == "step,loss,lr,validation,seconds,drift"
    rows = table(path)
    assert [(r["step"], r["lr"]) for r in rows] == [("1", "0.0001"), ("2", "0.0002"), ("3", "0.0003"), ("4", "0.0004"), ("5", "0.0005")]
    assert [torch.tensor(float(r["loss"])) for r in rows] == [torch.tensor(1 / s) for s in (1, 2, 3, 4, 5)]  # every bit of fp32
    assert [r["validation"] for r in rows] == ["", "", "", "0.183333333", ""]
    assert [r["drift"] for r in rows] == ["", "", "0.428571429", "", ""]


def test_a_validation_before_the_first_step_has_a_row(tmp_path):
    path = tmp_path / "a.csv"
    list(csv([Started(0, 2, tmp_path), Validated(0, 0.5), Saved(0, [], ""), Stepped(1, torch.tensor(0.25), 0.1), Validated(1, 0.4)], path))
    assert timeless(path)[1:] == ["0,,,0.5", "1,0.25,0.1,0.4"]


def test_losses_that_are_not_numbers_are_written(tmp_path):
    path = tmp_path / "a.csv"
    list(csv([Started(0, 2, tmp_path), Stepped(1, torch.tensor(float("nan")), 0.1), Stepped(2, torch.tensor(float("inf")), 0.1)], path))
    assert [r["loss"] for r in table(path)] == ["nan", "inf"]


def test_losses_are_read_every_ten_steps_and_not_each(tmp_path):
    reads, path = [], tmp_path / "a.csv"
    events = csv([Started(0, 99, tmp_path), *(Stepped(i, Loss(float(i), reads), 0.1) for i in range(1, 26))], path)
    seen = [len(reads) for event in events if isinstance(event, Stepped)]
    assert sorted(set(seen)) == [0, 11, 21] and seen[:10] == [0] * 10
    assert len(table(path)) == 25 and sorted(set(reads)) == [float(i) for i in range(1, 26)]


@pytest.mark.parametrize("milestone", [Saved(3, [], ""), Sampled(3, [], []), Validated(3, 0.5), Finished(3, "stopped", [])])
def test_all_rows_are_in_the_file_when_a_milestone_is_passed_on(tmp_path, milestone):
    path = tmp_path / "a.csv"
    events = csv([Started(0, 9, tmp_path), *(Stepped(i, torch.tensor(0.5), 0.1) for i in (1, 2, 3)), milestone, Stepped(4, torch.tensor(0.5), 0.1)], path)
    for event in events:
        if event is milestone:
            assert [r["step"] for r in table(path)] == ["1", "2", "3"]
            break
    events.close()


def test_a_validation_after_the_rows_were_written_completes_the_last_one(tmp_path):
    path = tmp_path / "a.csv"
    list(csv([Started(0, 9, tmp_path), Stepped(1, torch.tensor(0.5), 0.1), Saved(1, [], ""), Validated(1, 0.125), Stepped(2, torch.tensor(0.25), 0.1)], path))
    assert timeless(path)[1:] == ["1,0.5,0.1,0.125", "2,0.25,0.1,"]


def test_a_validation_anew_after_a_resume_does_not_double_the_row(tmp_path):
    path = tmp_path / "a.csv"
    list(csv([Started(0, 9, tmp_path), *(Stepped(i, torch.tensor(0.5), 0.1) for i in (1, 2, 3))], path))
    list(csv([Started(2, 9, tmp_path), Validated(2, 0.125), Stepped(3, torch.tensor(0.25), 0.1)], path))
    assert timeless(path)[1:] == ["1,0.5,0.1,", "2,0.5,0.1,0.125", "3,0.25,0.1,"]


@pytest.mark.parametrize(("state", "last"), [(6, 6), (6, 8), (6, 11), (8, 8), (10, 10), (3, 12), (0, 7)])
def test_a_resumed_runs_file_equals_the_unbroken_ones(tmp_path, state, last):
    """The run stops behind step `last`; its newest state is of step `state`."""
    path = tmp_path / "a.csv"
    events = csv(run(0, 12), path)
    for event in events:
        if isinstance(event, Stepped) and event.step == last + 1:
            break
    events.close()
    list(csv(run(state, 12), path))
    assert timeless(path) == unbroken(tmp_path)


def test_a_kill_loses_no_row_up_to_the_save_before_it(tmp_path):
    """Copies the file as a kill would leave it, at every event, and resumes from the newest save."""
    path, want, state = tmp_path / "a.csv", unbroken(tmp_path), 0
    for i, event in enumerate(csv(run(0, 12), path)):
        if isinstance(event, Saved):
            state = event.step
        left = tmp_path / f"{i}.csv"
        if path.exists():
            left.write_bytes(path.read_bytes())
        list(csv(run(state, 12), left))
        assert timeless(left) == want


def test_a_line_cut_off_by_a_kill_and_one_that_is_none_are_dropped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,loss,lr,validation,seconds\n1,0.5,0.1,,1.00\n\nnonsense,,,\n2,0.25,0.1,0.75,2.00\n3,0.1")
    list(csv([Started(4, 9, tmp_path), Stepped(5, torch.tensor(0.125), 0.1)], path))
    assert timeless(path)[1:] == ["1,0.5,0.1,", "2,0.25,0.1,0.75", "5,0.125,0.1,"]


def test_seconds_go_on_and_a_pause_does_not_count(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(recorders.time, "monotonic", lambda: clock[0])

    def ticking(start, steps):
        yield Started(start, steps, tmp_path)
        for step in range(start + 1, steps + 1):
            clock[0] += 2.5
            yield Stepped(step, torch.tensor(0.5), 0.1)

    path = tmp_path / "a.csv"
    list(csv(ticking(0, 3), path))
    clock[0] += 3600
    list(csv(ticking(2, 4), path))
    assert [r["seconds"] for r in table(path)] == ["2.50", "5.00", "7.50", "10.00"]


def test_a_new_run_replaces_the_file_and_a_lost_one_starts_again(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,loss\n1,0.5\n")
    list(csv([Started(0, 1, tmp_path), Stepped(1, torch.tensor(0.25), 0.1)], path))
    assert timeless(path)[1:] == ["1,0.25,0.1,"]
    path.unlink()
    list(csv([Started(5, 6, tmp_path), Stepped(6, torch.tensor(0.25), 0.1)], path))
    assert timeless(path)[1:] == ["6,0.25,0.1,"]


def test_closing_writes_the_rows_and_closes_the_run(tmp_path):
    closed = []

    def endless():
        try:
            yield Started(0, 99, tmp_path)
            for step in range(1, 99):
                yield Stepped(step, torch.tensor(0.5), 0.1)
        finally:
            closed.append(True)

    path, source = tmp_path / "a.csv", endless()
    events = csv(source, path)
    for event in events:
        if isinstance(event, Stepped) and event.step == 4:
            break
    assert not closed
    events.close()
    assert closed and len(table(path)) == 4


def test_an_error_of_the_run_leaves_its_rows(tmp_path):
    def failing():
        yield Started(0, 9, tmp_path)
        yield Stepped(1, torch.tensor(0.5), 0.1)
        raise ValueError("the run's own")

    with pytest.raises(ValueError, match="the run's own"):
        list(csv(failing(), tmp_path / "a.csv"))
    assert len(table(tmp_path / "a.csv")) == 1


def test_a_run_that_ends_before_it_starts_leaves_no_file(tmp_path):
    assert list(csv([Preparing(0, 1, "latents"), Warned("x")], tmp_path / "a.csv")) and not (tmp_path / "a.csv").exists()


def test_a_file_that_cannot_be_written_is_said_and_the_run_is_closed(tmp_path):
    closed = []

    def source():
        try:
            yield from run(0, 5)
        finally:
            closed.append(True)

    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file.losses.csv cannot be written \(.*\); make room, or choose an output folder that can be written\.$"):
        list(csv(source(), tmp_path / "file" / "losses.csv"))
    assert closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_said(tmp_path):
    path = tmp_path / "a.csv"
    table_ = recorders._Table(path)
    table_.take(Started(0, 9, tmp_path))
    table_.file.close()
    table_.file = open("/dev/full", "rb+", buffering=0)
    table_.take(Stepped(1, torch.tensor(0.5), 0.1))
    with pytest.raises(OSError, match=r"a.csv cannot be written \(No space left on device\); make room"):
        table_.take(Saved(1, [], ""))
    table_.rows = []
    table_.close()
    assert path.read_text() == ",".join(recorders.COLUMNS) + "\n"


# ---- TensorBoard


class Writer:
    """Stands for SummaryWriter: keeps what it is told."""

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.scalars, self.images, self.texts, self.closed = folder, purge_step, [], [], [], False

    def add_scalar(self, tag, value, step, walltime=None):
        self.scalars.append((tag, value, step))

    def add_image(self, tag, array, step, dataformats):
        self.images.append((tag, array.shape, step, dataformats))

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    made = []

    def make(*args, **kwargs):
        made.append(Writer(*args, **kwargs))
        return made[-1]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=make))
    return made


def test_tensorboard_gets_scalars_pictures_and_warnings(tmp_path, writers):
    given = [Warned("early"), Started(0, 2, tmp_path), Stepped(1, torch.tensor(0.5), 0.1), Warned("hm"), Sampled(1, [Image.new("L", (6, 4))], []),
             Validated(1, 0.25), Stepped(2, torch.tensor(0.125), 0.2), Finished(2, "done", [])]
    assert list(tensorboard(given, tmp_path / "tb")) == given
    (writer,) = writers
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path / "tb"), None, True)
    assert sorted(writer.scalars) == [("learning rate", 0.1, 1), ("learning rate", 0.2, 2), ("loss", 0.125, 2), ("loss", 0.5, 1), ("validation", 0.25, 1)]
    assert writer.images == [("sample 1", (4, 6, 3), 1, "HWC")] and writer.texts == [("warning", "hm", 1)]


def test_tensorboard_hides_what_a_resumed_run_draws_anew_and_reads_losses_rarely(tmp_path, writers):
    reads = []
    events = tensorboard([Started(40, 99, tmp_path), *(Stepped(i, Loss(float(i), reads), 0.1) for i in range(41, 56))], tmp_path)
    seen = [len(reads) for event in events if isinstance(event, Stepped)]
    assert seen == [0] * 9 + [10] * 6 and reads == [float(i) for i in range(41, 56)]
    assert writers[0].purge_step == 41 and writers[0].closed


def test_tensorboard_says_before_the_run_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="TensorBoard's package does not import here .*; run `pip install tensorboard`"):
        tensorboard(iter(()), "tb")


def test_tensorboards_own_reader_finds_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    list(csv(tensorboard(run(0, 12), tmp_path / "tb"), tmp_path / "a.csv"))
    list(csv(tensorboard(run(6, 8), tmp_path / "tb"), tmp_path / "a.csv"))
    read = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(s.step, s.value) for s in read.Scalars("loss")] == [(i, pytest.approx(1 / i)) for i in range(1, 9)]
    assert [s.step for s in read.Scalars("validation")] == [4, 8]
