"""Runs on the disk: the record a run keeps, the table of all, one in full, and what a person changes of them."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest

from lib_tuner import runs
from lib_tuner.config import to_toml
from lib_tuner.events import Stepped
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.outlook import refuse
from lib_tuner.recorders import csv
from lib_tuner.train import train


def run(values: dict, stop_after: int | None = None, fail_after: int | None = None) -> Path:
    """Trains with the records that a job keeps; the run's folder."""
    cfg, stopping = settings(values), []
    with closing(runs.record(csv(train(cfg, METHODS[cfg.method](cfg), Standalone(cfg), lambda: bool(stopping))), cfg, "cpu")) as events:
        for event in events:
            if isinstance(event, Stepped) and event.step == stop_after:
                stopping.append(True)
            if isinstance(event, Stepped) and event.step == fail_after:
                events.throw(RuntimeError("the power went"))
    return max(Path(values["output"]).iterdir(), key=lambda f: f.name)


def test_a_finished_run_is_a_row_of_the_table(small_run, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    for name in ("0.png", "0.txt"):
        (Path(small_run["data.folder"]) / name).rename(held / name)
    folder = run({**small_run, "trigger": "zwx", "validate_every": 3, "data.validation_folder": str(held)})
    row = runs.listing([folder.parent])[0]
    expected = {"name": "thing", "method": "lora", "data": "pictures", "model": "small", "state": "done", "step": 6, "steps": 6, "resumable": False}
    assert {key: row[key] for key in expected} == expected
    rows = [line.split(",") for line in (folder / "losses.csv").read_text().splitlines()[1:]]
    measured = [float(r[3]) for r in rows if r[3]]
    assert row["validation"] == pytest.approx(measured[-1]) and row["best"] == pytest.approx(min(measured)) and row["seconds"] > 0
    assert row["loss"] == pytest.approx(sum(float(r[1]) for r in rows if r[1]) / 6)


def test_a_run_in_full_has_points_samples_files_and_settings(small_run):
    folder = run({**small_run, "trigger": "zwx cat", "sample.every": 6, "sample.prompts": "a\nb", "sample.steps": 1})
    full = runs.details(folder)
    assert [p[0] for p in full["points"]] == [1, 2, 3, 4, 5, 6] and full["settings"]["lora.rank"] == 2 and full["prompts"] == "a\nb"
    assert full["samples"] == [{"step": s, "pictures": [f"samples/{s:06d}-0.png", f"samples/{s:06d}-1.png"]} for s in (0, 6)]
    assert [(f["name"], f["step"], f["use"]) for f in full["files"]] == [
        ("thing.safetensors", None, "<lora:thing:0.8> zwx cat"), ("thing-000003.safetensors", 3, "<lora:thing-000003:0.8> zwx cat"),
    ]  # fmt: skip
    assert "parts are taken by the host" in full["files"][0]["report"] and full["files"][0]["bytes"] == (folder / "thing.safetensors").stat().st_size
    assert len(runs.read_record(folder).pictures) == 4


def test_an_embedding_is_used_by_its_name(small_run):
    values = {k: v for k, v in small_run.items() if not k.startswith("lora")}
    folder = run({**values, "method": "textual_inversion", "steps": 1, "save_every": 0})
    assert [f["use"] for f in runs.saved_files(folder)] == ["thing"]


def test_a_stopped_run_says_so_and_its_parts_add_up(small_run):
    folder = run(small_run, stop_after=2)
    first = runs.read_record(folder)
    assert (first.state, first.step) == ("stopped", 2) and runs.row(folder)["resumable"]
    runs.note(folder, "the good one")
    run({**small_run, "resume": str(folder)})
    second = runs.read_record(folder)
    assert (second.state, second.step, second.notes, second.started) == ("done", 6, "the good one", first.started) and second.seconds > first.seconds


def test_a_picture_whose_name_is_no_text_is_in_the_record_as_it_is_called(small_run, tmp_path, unreadable_name):
    picture = unreadable_name(tmp_path / "pictures" / "0.png")
    record = runs.read_record(run({**small_run, "steps": 1, "save_every": 0}))
    assert record.state == "done" and str(picture) in record.pictures


def test_a_run_that_fails_says_why(small_run):
    with pytest.raises(RuntimeError):
        run(small_run, fail_after=2)
    folder = next(Path(small_run["output"]).iterdir())
    assert runs.read_record(folder).state == "failed" and "the power went" in runs.read_record(folder).error


def test_a_run_without_a_record_is_known_by_its_files(small_run):
    folder = run(small_run, stop_after=4)
    (folder / "record.tuner").unlink()
    row = runs.listing([folder.parent])[0]
    assert (row["name"], row["method"], row["step"], row["state"]) == ("thing", "lora", 4, "unknown") and row["seconds"] > 0
    (folder / "record.tuner").write_text("[1, 2")
    assert runs.listing([folder.parent])[0]["name"] == "thing"
    (folder / "settings.toml").write_text("name = ")
    assert runs.listing([folder.parent])[0]["name"] == "thing-001" and runs.details(folder)["settings"] == {}


def test_a_run_whose_settings_are_refused_today_hides_no_other(small_run):
    """Its settings can be read, but what they were taken for then is no run now: an older version's pivotal run that leaves its adapter no step."""
    folder = run({**small_run, "steps": 1, "save_every": 0})
    values = {key: value for key, value in small_run.items() if not key.startswith("lora.")} | {"method": "pivotal", "pivotal.inversion_steps": 6}
    (refused := folder.parent / "old-001").mkdir()
    (refused / "settings.toml").write_text(to_toml(settings(values)), encoding="utf-8")
    assert {row["name"] for row in runs.listing([folder.parent])} == {"thing", "old-001"}


def test_what_is_no_run_is_not_listed(small_run, tmp_path):
    folder = run({**small_run, "steps": 1, "save_every": 0})
    (folder.parent / "presets").mkdir()
    (folder.parent / "queue.json").write_text("{}")
    assert [row["name"] for row in runs.listing([folder.parent, tmp_path / "nowhere", folder.parent])] == ["thing"]


def test_a_renamed_file_takes_its_card_along_and_none_is_overwritten(small_run):
    folder = run({**small_run, "trigger": "zwx"})
    runs.rename_file(folder, "thing-000003.safetensors", "the best")
    assert (folder / "the best.safetensors").is_file() and (folder / "the best.json").is_file() and not (folder / "thing-000003.json").exists()
    assert {f["name"] for f in runs.saved_files(folder) if f["report"]} == {"thing.safetensors", "the best.safetensors"}
    assert runs.read_record(folder).state == "done"
    for new, words in (("thing", "exists already"), ("../away", "cannot be a file's name"), ("", "cannot be a file's name")):
        with pytest.raises(ValueError, match=words):
            runs.rename_file(folder, "the best.safetensors", new)
    for file, new in (("thing", "thing-20231101"), ("the best", "moon-000500")):  # a final file that is taken for a save may be swept away; nor has a save another's step
        with pytest.raises(ValueError, match="ends as the saves of a run do"):
            runs.rename_file(folder, f"{file}.safetensors", new)
    runs.rename_file(folder, "the best.safetensors", "moon-000003")  # but a name with its own, though its file has lost it
    runs.rename_file(folder, "moon-000003.safetensors", "the best")
    runs.delete_file(folder, "the best.safetensors")
    assert [f["name"] for f in runs.saved_files(folder)] == ["thing.safetensors"] and not (folder / "the best.json").exists()


def test_a_run_that_was_named_before_names_had_this_rule_is_read_and_resumed(small_run):
    folder = run({**small_run, "name": "thing"})
    file = folder / "settings.toml"
    file.write_text(file.read_text().replace('"thing"', '"thing-20231101"', 1))
    assert runs.settings_of(folder).name == "thing-20231101"
    refuse(settings({**small_run, "name": "thing-20231101", "resume": str(folder)}))
    with pytest.raises(ValueError, match="ends as the saves of a run do"):
        refuse(settings({**small_run, "name": "thing-20231101"}))


def test_only_a_saved_file_is_deleted_or_renamed(small_run):
    folder = run({**small_run, "trigger": "zwx", "sample.every": 6, "sample.prompts": "a", "sample.steps": 1})
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    for name in ("settings.toml", "losses.csv", "thing.json", "samples/000006-0.png", next(path.relative_to(folder).as_posix() for path in before if path.parent.name == "state" or "state" in path.parts)):
        for change in (lambda: runs.delete_file(folder, name), lambda: runs.rename_file(folder, name, "other")):
            with pytest.raises(ValueError, match=f"{name} is no saved file of thing-001; choose one of its files."):
                change()
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before


def test_a_folder_that_cannot_be_looked_into_hides_no_run(small_run, monkeypatch):
    folder = run({**small_run, "steps": 1, "save_every": 0})
    (folder.parent / "lost+found").mkdir()
    real = Path.is_file

    def is_file(path: Path) -> bool:  # what up to Python 3.13 it does, and never for root, as whom tests may run
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert [row["name"] for row in runs.listing([folder.parent])] == ["thing"]


def test_a_file_says_the_ranks_of_its_blocks_also_after_it_was_written_anew(small_run):
    folder = run({**small_run, "steps": 1, "save_every": 0, "lora.block_ranks": "M00=1"})
    before = runs.saved_files(folder)[0]["ranks"]
    assert before["M00"] == 12 and before["IN01"] == 24  # twelve layers of a transformer, at ranks 1 and 2
    run({**small_run, "steps": 1, "save_every": 0, "name": "other"})
    (folder.parent / "other-001" / "other.safetensors").replace(folder / "thing.safetensors")
    assert runs.saved_files(folder)[0]["ranks"] == {}


def test_no_name_leads_out_of_a_run(small_run, tmp_path):
    folder = run({**small_run, "steps": 1, "save_every": 0})
    (tmp_path / "secret.txt").write_text("x")
    for name in ("../../secret.txt", str(tmp_path / "secret.txt"), "nothing.png", ""):
        with pytest.raises(ValueError, match="has no file"):
            runs.inside(folder, name)
    with pytest.raises(ValueError, match="not the folder of a run"):
        runs.delete_run(tmp_path)
    runs.delete_run(folder)
    assert not folder.exists() and (tmp_path / "secret.txt").exists()


def test_how_long_a_step_takes_is_known_from_a_run_of_the_same_kind(small_run):
    folder = run({**small_run, "save_every": 0, "steps": 25, "sample.every": 25, "sample.prompts": "a", "sample.steps": 20})
    cfg, rows = settings(small_run), runs.read_rows(folder / "losses.csv")
    seconds = [r.seconds for r in rows if r.loss is not None]
    assert runs.seconds_per_step([folder.parent], cfg, "cpu") == pytest.approx((seconds[-1] - seconds[0]) / 24, rel=0.1)  # without the samples' time
    assert runs.seconds_per_step([folder.parent], cfg, "cuda") is None
    assert runs.seconds_per_step([folder.parent], settings({**small_run, "data.batch": 3}), "cpu") is None


def test_a_short_run_says_nothing_about_the_speed(small_run):
    folder = run({**small_run, "save_every": 0})
    assert runs.seconds_per_step([folder.parent], settings(small_run), "cpu") is None


def test_a_note_and_a_new_name_given_while_a_run_goes_stay(small_run):
    cfg = settings(small_run)
    with closing(runs.record(csv(train(cfg, METHODS["lora"](cfg), Standalone(cfg))), cfg)) as events:
        for event in events:
            if isinstance(event, Stepped) and event.step == 4:
                folder = next(Path(small_run["output"]).iterdir())
                runs.note(folder, "precious")
                runs.rename_file(folder, "thing-000003.safetensors", "early")
    record = runs.read_record(folder)
    assert (record.notes, record.state, set(record.reports)) == ("precious", "done", {"early.safetensors", "thing.safetensors"})


def test_notes_written_at_the_moment_of_a_save_hurt_nobody(small_run):
    folder = run({**small_run, "steps": 1, "save_every": 0})

    def write(text):
        for i in range(150):
            runs.note(folder, f"{text}{i}")

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs.read_record(folder).notes in ("a149", "b149") and not list(folder.glob(".*.part"))


def test_a_run_that_is_closed_before_its_end_says_so(small_run):
    cfg = settings(small_run)
    with closing(runs.record(csv(train(cfg, METHODS["lora"](cfg), Standalone(cfg))), cfg)) as events:
        next(event for event in events if isinstance(event, Stepped))
    assert runs.read_record(next(Path(small_run["output"]).iterdir())).state == "interrupted"


def test_numbers_that_are_none_do_not_spoil_the_table(small_run):
    folder = run(small_run)
    rows = (folder / "losses.csv").read_text().splitlines()
    (folder / "losses.csv").write_text("\n".join([*rows[:4], "4,nan,0.01,nan,1.0", "5,inf,0.01,inf,1.0"]) + "\n")
    row, full = runs.row(folder), runs.details(folder)
    assert row["loss"] > 0 and row["validation"] is None and [p[1] for p in full["points"]][3:] == [None, None]
    json.dumps([row, full], allow_nan=False)


def test_a_run_that_is_called_run_keeps_its_record(small_run):
    folder = run({**small_run, "name": "run", "trigger": "zwx"})
    runs.note(folder, "mine")
    runs.delete_file(folder, "run.safetensors")
    runs.rename_file(folder, "run-000003.safetensors", "record")
    assert runs.read_record(folder).notes == "mine"
