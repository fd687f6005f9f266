"""The progress line: what it says, how often, and that events pass through untouched. Time is a fake clock."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lib_tuner.events import Finished, Preparing, Sampled, Saved, Started, Stepped, Validated, Warned
from lib_tuner.progress import Status, duration, progress, step_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that moves by `tick` seconds with every event that is drawn."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def events(self, events: list, tick: float):
        for event in events:
            self.now += tick
            yield event


def shown(events: list, stream: io.StringIO, tick: float = 1.0) -> tuple[list, str]:
    clock = Clock()
    passed = list(progress(clock.events(events, tick), stream, clock))
    return passed, stream.getvalue()


RUN = [Started(0, 4, Path("out")), *(Stepped(n, 1 / n, 1e-4) for n in range(1, 5)), Finished(4, "done", [])]


def test_events_pass_through_in_order_and_unchanged():
    passed, _ = shown(RUN, Terminal())
    assert all(a is b for a, b in zip(passed, RUN)) and len(passed) == len(RUN)


def test_the_line_has_step_loss_speed_and_time_left():
    _, text = shown(RUN, Terminal(), tick=2.0)
    assert "step 1/4  loss 1.0000  2 s/step  6 s left" in text
    assert "step 4/4  loss 0.2500  2 s/step  0 s left" in text


def test_the_bar_is_full_at_the_end_only():
    assert step_line(1, 4, 0.5, None) == "[=====>              ] step 1/4  loss 0.5000"
    assert step_line(4, 4, 0.5, None).startswith("[====================] ")
    assert ">" in step_line(9999, 10000, 0.5, None)


def test_a_resumed_run_counts_the_time_of_its_own_steps():
    _, text = shown([Started(90, 100, Path("out")), Stepped(91, 0.1, 0.0)], Terminal(), tick=3.0)
    assert "step 91/100  loss 0.1000  3 s/step  27 s left" in text


def test_a_loss_is_read_only_where_it_is_shown():
    class Loss:
        reads = 0

        def __float__(self) -> float:
            Loss.reads += 1
            return 0.5

    shown([Started(0, 1000, Path("out")), *(Stepped(n, Loss(), 0.0) for n in range(1, 101))], Terminal(), tick=0.01)
    assert 1 <= Loss.reads <= 6  # a second of steps, five lines a second


def test_a_log_gets_few_lines_and_no_carriage_return():
    _, text = shown([Started(0, 1000, Path("out")), *(Stepped(n, 0.5, 0.0) for n in range(1, 101))], io.StringIO(), tick=1.0)
    lines = [line for line in text.splitlines() if "loss" in line]
    assert "\r" not in text and 2 <= len(lines) <= 4  # 100 s, one line in 30 s


@pytest.mark.parametrize(
    "event, line",
    [
        (Saved(3, [Path("a.safetensors")], "2 of 2 parts are taken by the host"), "Step 3: saved a.safetensors (2 of 2 parts are taken by the host)"),
        (Sampled(3, [object()], [Path("0.png")]), "Step 3: samples 0.png"),
        (Validated(3, 0.25), "Step 3: validation loss 0.2500"),
        (Warned("one picture is unreadable"), "Warning: one picture is unreadable"),
        (Finished(3, "stopped", []), "Stopped and saved at step 3."),
        (Finished(0, "stopped", []), "Stopped before the first step; nothing was learned yet, so nothing is saved."),
        (Finished(3, "nan", []), "The loss is no longer a number: stopped, the last good weights are kept, at step 3."),
    ],
)
def test_what_matters_gets_a_line_that_stays(event, line):
    for stream in (Terminal(), io.StringIO()):
        assert line + "\n" in shown([*RUN[:2], event], stream)[1]


def test_preparing_is_shown_in_the_moving_line():
    assert "Encoding pictures 3/10" in shown([Preparing(3, 10, "Encoding pictures")], Terminal())[1]


def test_a_line_that_stays_first_takes_the_moving_one_away():
    stream = Terminal()
    status = Status(stream)
    status.show("moving")
    status.line("stays")
    assert stream.getvalue() == "\rmoving\r      \rstays\n"


def test_a_shorter_text_covers_a_longer_one():
    stream, clock = Terminal(), Clock()
    status = Status(stream, clock)
    status.show("long text")
    clock.now += 1
    status.show("short")
    assert stream.getvalue().endswith("\rshort    ")


def test_letters_that_the_stream_cannot_write_do_not_end_the_run():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Status(stream).line("saved é.png")
    stream.seek(0)
    assert stream.read() == "saved ?.png\n"


def test_closing_the_progress_closes_the_run():
    closed = []

    def run():
        try:
            yield RUN[0]
            yield RUN[1]
        finally:
            closed.append(True)

    events = run()  # held here, so that not its disappearance closes it
    watched = progress(events, Terminal())
    next(watched)
    watched.close()
    assert closed == [True]


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"), (90000, "25 h 00 min")])
def test_durations_are_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
