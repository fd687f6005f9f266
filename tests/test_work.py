"""Long work beside the page."""

from __future__ import annotations

import threading

import pytest
from conftest import until

from lib_tuner.work import Work


def test_its_result_is_there_when_it_is_done():
    seen = []
    work = Work("count", lambda told: seen.append([told(i, 3) for i in range(4)]) or "all", unit="pictures").start()
    until(lambda: not work.going)
    status = work.status()
    assert (status["state"], status["result"], status["done"], status["total"], status["unit"], status["left"]) == ("done", "all", 3, 3, "pictures", None)


@pytest.mark.parametrize(("error", "said"), [(ValueError("That is wrong."), "That is wrong."), (OSError(28, "No space left on device", "/x/y"), "No space left"), (RuntimeError("no memory"), "no memory"), (KeyError("a mistake of ours"), "a mistake of ours")])
def test_what_goes_wrong_is_one_sentence(error, said):
    def fail(told):
        raise error

    work = Work("fail", fail).start()
    until(lambda: not work.going)
    assert work.state == "failed" and said in work.status()["error"]


def test_it_stops_where_it_is_asked_to():
    begun, after = threading.Event(), []

    def count(told):
        for i in range(10**9):
            told(i, 10**9)
            begun.set()
        after.append("never")

    work = Work("count", count).start()
    assert begun.wait(30)
    until(lambda: work.status()["left"] is not None)
    work.stop(wait=30)
    assert work.state == "stopped" and after == [] and work.status()["result"] is None
    work.stop()
    assert work.state == "stopped"  # once more changes nothing


def test_a_stop_at_the_moment_of_its_end_leaves_it_ended():
    class Late(Work):
        """Whoever asks for the state while stopping it is so slow that the work could end meanwhile."""

        @property
        def state(self):
            now = self.__dict__["state"]
            if threading.current_thread() is threading.main_thread() and now == "running" and not ends.is_set():
                ends.set()
                self._thread.join(0.2)
            return now

        @state.setter
        def state(self, value):
            self.__dict__["state"] = value

    ends = threading.Event()
    work = Late("late", lambda told: ends.wait(30)).start()
    work.stop(wait=30)
    assert work.state == "done" and not work.going
