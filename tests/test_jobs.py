"""The queue of runs: order, pause and resume, orders to a run that goes, what survives an error, a crash and the program itself."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from pathlib import Path

import pytest
from conftest import until
from safetensors.torch import load_file

from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs
from lib_tuner.progress import sentence
from lib_tuner.queue_file import QueueFile
from lib_tuner.runs import details, listing, settings_of


class Gate:
    """Lets a run make so many steps and no more, so that a test decides what happens between two of them.

    A run that waits here has asked already whether it should stop: a step that is let through is made before it asks again.
    """

    def __init__(self):
        self.turns = threading.Semaphore(0)
        self.open = False
        self.asked = self.let = 0  # how often a run has come to the gate, and how often it was or will be let through

    def hosts(self, cfg):
        gate = self

        class Gated(Standalone):
            def interrupted(self):
                gate.asked += 1
                if not gate.open:
                    assert gate.turns.acquire(timeout=60)
                return False

        return Gated(cfg)

    def step(self, n: int = 1):
        self.let += n
        self.turns.release(n)

    def at_step(self, jobs: Jobs, step: int):
        """Waits until a run has made so many steps and stands at the gate again: before that it would still see what it is told now."""
        until(lambda: self.asked > self.let and (now := jobs.status()["now"]) and now["step"] == step)

    def free(self):
        self.open = True
        self.turns.release(1000)


PICTURES = 6  # the gate is asked once for each while they are encoded


@pytest.fixture
def make(tmp_path):
    made = []

    def new(hosts=Standalone, home: Path | None = None) -> Jobs:
        made.append(Jobs(home or tmp_path / "out", hosts))
        return made[-1]

    yield new
    for jobs in made:
        jobs.close()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.free()


def ended(jobs: Jobs, entry, state: str):
    return until(lambda: jobs.status()["now"] if entry.state == state else None)


def started(jobs: Jobs, gate: Gate, values: dict, step: int):
    """A run that has made so many steps and waits at the gate."""
    entry = jobs.add(values)
    gate.step(PICTURES + step)
    gate.at_step(jobs, step)
    return entry


def pause(jobs: Jobs, gate: Gate, entry) -> None:
    """Pauses a run that waits at the gate; it makes one more step."""
    jobs.pause()
    gate.step()
    ended(jobs, entry, "paused")


def test_a_run_goes_to_its_end_and_is_told_in_full(make, small_run):
    jobs = make()
    entry = jobs.add({**small_run, "sample.every": 3, "sample.prompts": "a thing", "sample.steps": 2})
    now = ended(jobs, entry, "done")
    assert (now["step"], now["steps"], now["error"]) == (6, 6, "") and [p[0] for p in now["points"]] == [1, 2, 3, 4, 5, 6]
    assert [s["step"] for s in now["samples"]] == [0, 3, 6] and [s["step"] for s in now["saves"]] == [3, 6]
    assert [f["name"] for f in now["files"]] == ["thing.safetensors", "thing-000003.safetensors"] and now["files"][0]["use"] == "<lora:thing:0.8>"
    assert len(now["training"]) == 4 and now["memory"]["process"] > 1e7
    assert jobs.history()[0]["id"] == now["run"] and jobs.folder_of(now["run"]) == Path(now["folder"])


def test_only_new_points_are_told_to_who_has_the_others(make, small_run):
    jobs = make()
    entry = jobs.add(small_run)
    ended(jobs, entry, "done")
    now = jobs.status(jobs.live.part, 4)["now"]
    assert [p[0] for p in now["points"]] == [5, 6] and now["points_from"] == 4
    assert len(jobs.status("another", 4)["now"]["points"]) == 6


def test_runs_go_one_after_another_in_the_order_of_the_queue(make, small_run, gate):
    jobs = make(gate.hosts)
    first, second, third, fourth = (jobs.add({**small_run, "name": name, "steps": 2}) for name in "abcd")
    until(lambda: first.state == "running")
    jobs.move(fourth.id, -1)
    jobs.remove(second.id)
    jobs.move(fourth.id, -1)  # it is the first of those that wait: it stays
    jobs.move(fourth.id, -1)
    with pytest.raises(ValueError, match="running: stop it first"):
        jobs.remove(first.id)
    with pytest.raises(ValueError, match="does not wait"):
        jobs.move(first.id, 1)
    gate.free()
    until(lambda: third.state == "done")
    assert [json.loads((f / "record.tuner").read_text())["name"] for f in sorted((Path(small_run["output"])).glob("*-001"), key=lambda f: (f / "settings.toml").stat().st_mtime)] == ["a", "d", "c"]


def test_a_paused_run_gives_the_model_back_and_resumes_to_the_same_result(make, small_run, gate, tmp_path):
    free = make(home=tmp_path / "whole")
    whole = free.add({**small_run, "output": str(tmp_path / "whole")})
    ended(free, whole, "done")
    jobs = make(gate.hosts)
    entry, other = jobs.add(small_run), jobs.add({**small_run, "name": "other"})
    gate.step(PICTURES + 2)
    gate.at_step(jobs, 2)
    jobs.pause()
    assert entry.state == "pausing"
    gate.step()
    now = ended(jobs, entry, "paused")
    assert now["step"] == 3 and other.state == "waiting"  # what waits goes on waiting: the model is wanted elsewhere
    gate.free()
    jobs.resume(entry.id)
    until(lambda: other.state == "done")
    past = details(Path(entry.folder))
    assert past["state"] == "done" and [p[0] for p in past["points"]] == [1, 2, 3, 4, 5, 6]
    files = [load_file(Path(e.folder) / "thing.safetensors") for e in (whole, entry)]
    assert all(files[0][key].equal(files[1][key]) for key in files[0])


@pytest.mark.parametrize("ending", ["done", "failed"])
def test_no_model_stays_in_memory_when_a_run_has_ended(make, small_run, ending):
    models = []

    class Watched(Standalone):
        def exclusive(self):
            models.append(weakref.ref(self.model.unet))
            return super().exclusive()

    jobs = make(Watched)
    entry = jobs.add({**small_run, "steps": 1, **({"data.folder": small_run["output"]} if ending == "failed" else {})})
    ended(jobs, entry, ending)
    until(lambda: models[0]() is None)


def test_a_resumed_run_shows_its_whole_curve(make, small_run, gate):
    jobs = make(gate.hosts)
    entry = started(jobs, gate, small_run, 3)
    pause(jobs, gate, entry)
    jobs.resume(entry.id)
    gate.step(PICTURES + 1)
    until(lambda: [p[0] for p in jobs.status()["now"]["points"]] == [1, 2, 3, 4, 5])


def test_a_resume_whose_folder_is_gone_meanwhile_says_so(make, small_run):
    jobs = make()
    entry = jobs.add({**small_run, "resume": str(Path(small_run["output"]) / "thing-009")})
    assert "holds no saved state" in ended(jobs, entry, "failed")["error"]


def test_a_run_is_resumed_by_its_folder_as_a_person_writes_it(make, small_run, monkeypatch):
    jobs = make()
    first = jobs.add({**small_run, "steps": 2, "save_every": 0})
    ended(jobs, first, "done")
    monkeypatch.setenv("HOME", str(Path(first.folder).parent))
    second = jobs.add({**small_run, "steps": 3, "save_every": 0, "resume": f"~/{Path(first.folder).name}"})
    assert [p[0] for p in ended(jobs, second, "done")["points"]] == [1, 2, 3]


def one_waits(make, small_run, gate):
    """A queue with a run that has done its first step, and a short one behind it."""
    jobs = make(gate.hosts)
    entries = jobs.add(small_run), jobs.add({**small_run, "name": "other", "steps": 1})
    gate.step(PICTURES + 1)
    gate.at_step(jobs, 1)
    return jobs, *entries


def test_a_stopped_run_is_saved_and_the_next_one_starts(make, small_run, gate):
    jobs, entry, other = one_waits(make, small_run, gate)
    jobs.stop()
    gate.free()
    until(lambda: other.state == "done")
    assert entry.state == "stopped" and (Path(entry.folder) / "thing-000002.safetensors").is_file()


@pytest.mark.parametrize("held", [False, True])
def test_a_stop_after_a_pause_leaves_the_queue_as_it_was_before_both(make, small_run, gate, held):
    jobs, entry, other = one_waits(make, small_run, gate)
    if held:
        jobs.hold_queue()
    for order in (jobs.pause, jobs.pause, jobs.stop):
        order()
    assert jobs.status()["held"] is held
    gate.free()
    until(lambda: entry.state == "stopped")
    assert jobs.status()["held"] is held and until(lambda: other.state == ("waiting" if held else "done"))


def test_saves_samples_and_prompts_as_asked_while_it_runs(make, small_run, gate):
    jobs = make(gate.hosts)
    entry = jobs.add({**small_run, "save_every": 0, "sample.steps": 2})
    gate.step(PICTURES + 1)
    gate.at_step(jobs, 1)
    with pytest.raises(ValueError, match="no sample prompt"):
        jobs.order(sample=True)
    entry.values["sample.every"] = 100
    with pytest.raises(ValueError, match="at least one prompt"):  # or the run could not be resumed
        jobs.order(prompts=" ")
    entry.values["sample.every"] = 0
    jobs.order(save=True)
    jobs.order(sample=True, prompts="one\ntwo")
    gate.step()
    now = until(lambda: (n := jobs.status()["now"]) and n["saves"] and n)
    assert [(s["step"], len(s["pictures"])) for s in now["samples"]] == [(2, 2)] and now["saves"][0]["step"] == 2
    assert settings_of(Path(entry.folder)).sample.prompts == "one\ntwo"
    assert now["prompts"] == "one\ntwo" and until((Path(entry.folder) / "state" / "state-2.safetensors").is_file)
    gate.step()
    gate.at_step(jobs, 3)
    assert len(jobs.status()["now"]["saves"]) == 1  # asked once, done once
    gate.free()
    ended(jobs, entry, "done")
    with pytest.raises(ValueError, match="No run is going"):
        jobs.order(save=True)


def test_a_failed_run_says_why_and_does_not_stop_the_next(make, small_run, caplog):
    jobs = make()
    bad, good = jobs.add({**small_run, "data.folder": str(Path(small_run["output"]) / "nowhere")}), jobs.add({**small_run, "steps": 1})
    until(lambda: good.state == "done")
    assert bad.state == "failed" and "does not exist" in bad.error and "\n" not in bad.error and "Traceback" in bad.detail
    assert "failed" in caplog.text  # the console gets the traceback


def test_a_fault_inside_the_thread_ends_the_run_alone(make, small_run):
    def broken(cfg):
        if cfg.name == "bad":
            raise RuntimeError("nobody foresaw this")
        return Standalone(cfg)

    jobs = make(broken)
    bad, good = jobs.add({**small_run, "name": "bad"}), jobs.add({**small_run, "steps": 1})
    until(lambda: good.state == "done")
    assert bad.state == "failed" and "fault of the Tuner" in bad.error and "nobody foresaw this" in bad.detail


def test_settings_that_are_none_never_enter_the_queue(make, small_run):
    jobs = make()
    for change, sentence_ in (({"steps": -1}, "steps: -1"), ({"method": "magic"}, "method: 'magic'"), ({"lora.rank": "many"}, "lora.rank")):
        with pytest.raises(ValueError, match=sentence_):
            jobs.add({**small_run, **change})
    assert jobs.status()["queue"] == []


def test_a_loss_that_is_no_number_is_told(make, small_run):
    jobs = make()
    entry = jobs.add({**small_run, "optim.lr": "0.01:2, 1e30", "optim.clip": 0.0, "save_every": 0})
    now = ended(jobs, entry, "nan")
    assert "no longer a number" in now["error"] and now["files"]


def test_the_queue_survives_the_program(make, small_run, gate):
    jobs = make(gate.hosts)
    first, second = jobs.add(small_run), jobs.add({**small_run, "name": "other", "steps": 1})
    gate.step(PICTURES + 2)
    gate.at_step(jobs, 2)
    closing = threading.Thread(target=jobs.close)
    closing.start()
    gate.free()
    closing.join()
    again = make()
    told = again.status()
    assert (told["now"]["state"], told["now"]["step"], len(told["now"]["points"])) == ("paused", 3, 3)  # what can be resumed is what is shown
    assert [(e["name"], e["state"], e["step"]) for e in told["queue"]] == [("thing", "paused", 3), ("other", "waiting", 0)] and told["held"]
    again.resume(first.id)
    until(lambda: again.status()["queue"][1]["state"] == "done")
    assert [e["state"] for e in again.status()["queue"]] == ["done", "done"]


def test_a_killed_program_leaves_its_run_paused_and_the_queue_on_hold(make, small_run, tmp_path):
    home = tmp_path / "out"
    home.mkdir()
    entry = {"id": "1", "values": {**small_run}, "state": "running", "folder": "", "step": 0}
    waiting = {"id": "2", "values": {**small_run, "name": "other", "steps": 1}, "state": "waiting", "something": "of a newer version"}
    (home / "queue.json").write_text(json.dumps({"version": 1, "held": False, "outputs": [], "entries": [entry, waiting]}))
    jobs = make()
    assert jobs.status()["held"] and [e["state"] for e in jobs.status()["queue"]] == ["paused", "waiting"]
    jobs.start_queue()
    until(lambda: jobs.status()["queue"][1]["state"] == "done")
    assert jobs.status()["queue"][0]["state"] == "paused"


def test_a_full_disk_ends_neither_the_queue_nor_a_run(make, small_run, monkeypatch):
    jobs, save = make(), QueueFile.save
    monkeypatch.setattr(QueueFile, "save", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device", "queue.json")))
    bad, good = jobs.add({**small_run, "data.folder": "nowhere"}), jobs.add({**small_run, "steps": 1})
    until(lambda: good.state == "done")
    assert bad.state == "failed" and "No space left" in jobs.status()["trouble"]
    monkeypatch.setattr(QueueFile, "save", save)
    jobs.remove(bad.id)
    assert jobs.status()["trouble"] == ""


def test_two_programs_do_not_share_a_folder(make, small_run, tmp_path):
    make()
    with pytest.raises(ValueError, match="in use by another Tuner"):
        Jobs(tmp_path / "out", Standalone)


def test_a_killed_run_is_not_called_running_in_the_history(make, small_run, gate, tmp_path):
    jobs = make(gate.hosts)
    entry = started(jobs, gate, small_run, 1)
    assert jobs.history()[0]["state"] == "running" and not jobs.history()[0]["resumable"]
    copy = tmp_path / "elsewhere"
    shutil.copytree(entry.folder, copy / "thing-001")
    assert make(home=copy).history()[0]["state"] == "interrupted"


def test_a_stop_after_a_pause_lets_the_queue_go_on(make, small_run, gate):
    jobs, first, second = one_waits(make, small_run, gate)
    jobs.pause()
    jobs.stop()
    gate.free()
    until(lambda: second.state == "done")
    assert first.state == "stopped"


def test_a_run_whose_folder_is_gone_does_not_begin_again_in_silence(make, small_run, gate):
    jobs = make(gate.hosts)
    entry = started(jobs, gate, small_run, 2)
    jobs.stop()
    gate.free()
    ended(jobs, entry, "stopped")
    shutil.rmtree(entry.folder)
    with pytest.raises(ValueError, match="is gone"):
        jobs.resume(entry.id)


def test_a_damaged_queue_is_set_aside_and_not_overwritten(make, small_run, tmp_path):
    home = tmp_path / "out"
    home.mkdir()
    (home / "queue.json").write_text("{ half a file")
    jobs = make()
    entry = jobs.add({**small_run, "steps": 1})
    ended(jobs, entry, "done")
    assert (home / "queue.damaged.json").read_text() == "{ half a file"


def test_a_held_queue_lets_the_run_end_and_starts_no_other(make, small_run, gate):
    jobs = make(gate.hosts)
    first, second = jobs.add({**small_run, "steps": 1}), jobs.add({**small_run, "name": "other", "steps": 1})
    until(lambda: gate.asked)
    jobs.hold_queue()
    gate.free()
    until(lambda: first.state == "done")
    assert second.state == "waiting"
    jobs.start_queue()
    until(lambda: second.state == "done")


def test_a_run_of_the_history_resumes_even_where_the_queue_has_forgotten_it(make, small_run, gate):
    jobs = make(gate.hosts)
    entry = started(jobs, gate, small_run, 2)
    jobs.stop()
    gate.step()
    ended(jobs, entry, "stopped")
    jobs.remove(entry.id)
    assert jobs.status()["now"] is None
    gate.free()
    folder = Path(entry.folder)
    again = jobs.resume_run(folder)
    ended(jobs, again, "done")
    assert listing([folder.parent])[0]["state"] == "done" and len(listing([folder.parent])) == 1


def test_a_run_that_is_needed_is_not_deleted(make, small_run, gate):
    jobs = make(gate.hosts)
    entry = started(jobs, gate, small_run, 1)
    pause(jobs, gate, entry)
    with pytest.raises(ValueError, match="is paused"):
        jobs.delete_run(Path(entry.folder))
    jobs.remove(entry.id)
    jobs.delete_run(Path(entry.folder))
    assert not Path(entry.folder).exists() and jobs.history() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [(RuntimeError("CUDA out of memory. Tried to allocate"), "smaller batch"), (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left"), (ValueError("a: b"), "a: b"), (KeyError("k"), "KeyError")],
)
def test_every_error_is_a_sentence(error, words):
    assert words in sentence(error)
