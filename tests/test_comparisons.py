"""Grids as the page and scripts see them: offered, planned, drawn one picture after the other, stopped, drawn again, saved; the queue waits meanwhile."""

from __future__ import annotations

import json
import os
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import until, write_random
from PIL import Image
from tool_files import lora

from lib_tuner.compare.cells import Axis
from lib_tuner.comparisons import Comparisons, GridOrder, as_json, order_of
from lib_tuner import runs
from lib_tuner.config import flat_values, to_toml
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs
from lib_tuner.keeping import Best
from lib_tuner.methods import settings
from lib_tuner.methods.embedding_file import Embedding, write_embedding
from lib_tuner.toolbox import OwnFolders, Toolbox
from lib_tuner.tools.shelves import Shelf


class Folders(OwnFolders):
    def shelves(self):
        return [Shelf(self.home.parent / "models", "lora")]


class Gated(Standalone):
    """Draws a picture for each turn that a test gives."""

    turns: threading.Semaphore | None = None

    def generate(self, requests):
        if self.turns is not None:
            assert self.turns.acquire(timeout=60)
        return super().generate(requests)


@pytest.fixture
def run(tmp_path, checkpoint_file) -> Path:
    """A finished run with three saves, as files alone."""
    folder = tmp_path / "out" / "cat-001"
    folder.mkdir(parents=True)
    values = {"name": "cat", "trigger": "cat", "checkpoint": str(checkpoint_file), "memory.precision": "fp32", "data.resolution": 64, "sample.prompts": "a [name] outside\nmore", "sample.steps": 2}
    (folder / "settings.toml").write_text(to_toml(settings(values)))
    for i, name in enumerate(("cat-000010", "cat-000020", "cat")):
        lora(folder / f"{name}.safetensors", seed=i)
    return folder


@pytest.fixture
def made(tmp_path, run, monkeypatch):
    (tmp_path / "models").mkdir()
    lora(tmp_path / "models" / "other.safetensors", seed=7)
    monkeypatch.setattr(Gated, "turns", None)
    with closing(Jobs(tmp_path / "out", Gated)) as jobs, closing(Toolbox(Folders(tmp_path / "out"), tmp_path / "out", jobs.outputs)) as tools:
        with closing(Comparisons(jobs, tools)) as comparisons:
            yield comparisons


def order(of: Path, **more) -> GridOrder:
    axes = {"x": Axis("step", "all"), "y": Axis("seed", "1, 2")}
    return GridOrder(**{"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "run": runs.run_id(of), "axes": axes, **more})


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def done(comparisons: Comparisons, state: str = "done") -> dict:
    until(lambda: not comparisons.work.going)
    assert comparisons.work.state == state, comparisons.work.error
    return comparisons.status()["grid"]


def test_saves_of_runs_and_the_hosts_files_are_offered(made, run, tmp_path):
    os.link(run / "cat.safetensors", tmp_path / "models" / "cat.safetensors")  # as the WebUI finds it
    about = made.about()
    assert [(f["name"], f["kind"], bool(f["run"])) for f in about["files"]] == [
        ("cat-001 10", "lora", True), ("cat-001 20", "lora", True), ("cat-001 end", "lora", True), ("other", "lora", False)]
    assert about["runs"] == [{"id": runs.run_id(run), "name": "cat-001", "method": "lora", "words": "cat"}]
    assert next(a for a in about["axes"] if a["name"] == "step")["offered"] == ["all", "None", "cat-001 10", "cat-001 20", "cat-001 end"]
    first = made.suggested(runs.run_id(run))
    assert (first["prompt"], first["width"], first["axes"]["x"]["text"]) == ("a cat outside", 64, "None, cat-001 10, cat-001 20, cat-001 end")


def test_a_pictures_text_says_the_clip_skip_that_its_run_brings(made, run):
    values = flat_values(runs.settings_of(run)) | {"clip_skip": 2}
    (run / "settings.toml").write_text(to_toml(settings(values)))
    made.start(order(run, axes={}))
    done(made)
    with Image.open(made.cell(0)) as picture:
        assert "Clip skip: 2" in picture.text["parameters"]


def test_a_grid_is_drawn_and_lies_on_the_disk_with_its_settings(made, run):
    plan = made.plan(order(run))
    assert (plan["count"], plan["shape"], plan["labels"]["x"], plan["seconds"], plan["much"]) == (6, [3, 2, 1], ["cat-001 10", "cat-001 20", "cat-001 end"], None, False)
    made.start(order(run))
    grid = done(made)
    assert grid["states"] == ["drawn"] * 6 and grid["kinds"] == {"x": "Saved step", "y": "Seed"}
    folder = Path(grid["folder"])
    assert json.loads((folder / "grid.json").read_text())["axes"]["x"] == {"kind": "step", "text": "all"}
    with Image.open(made.cell(4)) as picture:
        assert "Seed: 2" in picture.text["parameters"] and "cat-000020 (" in picture.text["parameters"]
    pictures = [Image.open(made.cell(i)).tobytes() for i in range(6)]
    assert len(set(pictures)) == 6
    with Image.open(made.sheet()) as sheet:
        assert sheet.width > 3 * 64 and sheet.height > 2 * 64 and "X Type: Saved step" in sheet.text["parameters"]
    details = made.cell_details(1)
    assert details["prompt"] == "a cat" and details["files"] == [{"name": "cat-000020.safetensors", "weight": 1.0, "run": runs.run_id(run)}]
    assert made.plan(order(run))["seconds"] > 0  # now it is known how long a picture takes


def test_cells_appear_as_they_are_made_and_a_stop_keeps_them(made, run, monkeypatch):
    monkeypatch.setattr(Gated, "turns", threading.Semaphore(0))
    monkeypatch.setattr("lib_tuner.compare.draw.TOGETHER", 1)  # one picture at a time, as at SD1.5's size
    made.start(order(run))
    seen = made.status()["grid"]["version"]
    Gated.turns.release()
    until(lambda: made.status()["grid"]["version"] > seen)
    status = made.status(seen)
    assert status["grid"]["states"].count("drawn") == 1 and status["work"]["state"] == "running" and "states" not in made.status(status["grid"]["version"])["grid"]
    made.stop()
    Gated.turns.release()
    grid = done(made, "stopped")
    assert grid["states"].count("drawn") == 2 and (Path(grid["folder"]) / "grid.png").is_file()


def test_a_row_is_drawn_again(made, run):
    made.start(order(run))
    done(made)
    was = [made.cell(i).stat().st_mtime_ns for i in range(6)]
    made.again([3, 4, 5])
    done(made)
    now = [made.cell(i).stat().st_mtime_ns for i in range(6)]
    assert [a == b for a, b in zip(was, now)] == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="not in this grid"):
        made.again([6])


def test_a_page_that_shows_another_grid_is_told_so_and_changes_nothing(made, run):
    made.start(order(run))
    first = done(made)["name"]
    made.start(order(run, axes={"x": Axis("seed", "1")}))
    second, version = (grid := done(made))["name"], grid["version"]
    words = f"The grid {second} is shown now; open {first} again to go on with it."
    for asked in (lambda: made.cell(0, first), lambda: made.cell_details(0, first), lambda: made.again([0], first), lambda: made.sheet(first)):
        with pytest.raises(ValueError, match=words):
            asked()
    assert made.status()["grid"]["version"] == version and made.cell(0, second) == made.cell(0)


def test_a_sampler_that_the_host_has_not_is_refused_before_anything_is_drawn(made, run):
    for ask in (made.plan, made.start):
        with pytest.raises(ValueError, match="There is no sampler 'nonsense'; choose one of the list."):
            ask(order(run, sampler="nonsense"))
    assert made.plan(order(run, sampler="nonsense", axes={"x": Axis("sampler", "ddim")}))["count"] == 1  # which is used in no cell then
    assert made.status()["grid"] is None


def test_a_save_that_is_gone_is_said_and_the_rest_is_drawn(made, run):
    made.start(order(run, axes={"x": Axis("step", "cat-001 10, cat-001 20")}))
    done(made)
    (run / "cat-000020.safetensors").unlink()
    made.again([0, 1])
    grid = done(made)
    assert grid["states"] == ["drawn", "failed"] and "is not there any more" in grid["errors"][1]


def test_much_is_asked_first(made, run):
    many = order(run, axes={"x": Axis("seed", "1-200")})
    assert made.plan(many)["much"]
    with pytest.raises(ValueError, match="This grid has 200 pictures; say that you are sure"):
        made.start(many)
    assert made.grid is None and not made.home.exists()


def test_a_whole_grid_on_another_checkpoint(made, run, tmp_path):
    other = write_random(tmp_path / "models" / "second.safetensors", 5)
    axes = {"x": Axis("seed", "3")}
    made.start(order(run, axes=axes, checkpoint="second.safetensors"))
    done(made)
    values = flat_values(runs.settings_of(run)) | {"checkpoint": str(other), "resume": ""}
    expected = Standalone(settings(values)).generate([GenerateRequest("a cat", width=64, height=64, steps=2, seed=3)])[0]
    assert np.abs(pixels(made.cell(0)) - np.asarray(expected).astype(int)).max() <= 2
    seen = pixels(made.cell(0))
    made.start(order(run, axes=axes))
    done(made)
    assert np.abs(pixels(made.cell(0)) - seen).max() > 20
    made.start(order(run, axes=axes, checkpoint="no-such.safetensors"))
    grid = done(made)
    assert grid["states"] == ["failed"] and "no-such.safetensors does not exist" in grid["errors"][0]


def test_a_run_and_a_grid_take_turns(made, run, small_run, monkeypatch):
    monkeypatch.setattr(Gated, "turns", threading.Semaphore(0))
    made.start(order(run))
    with pytest.raises(ValueError, match="A comparison is at work already"):
        made.start(order(run))
    with pytest.raises(ValueError, match="A comparison is at work already"):
        made.again([0])
    until(lambda: made.jobs._lent)
    added = made.jobs.add(small_run | {"output": str(made.jobs.home)})
    Gated.turns.release(100)
    done(made)
    until(lambda: added.state == "done", 120)


def test_while_a_run_goes_the_grid_says_so(made, run, small_run):
    added = made.jobs.add(small_run | {"output": str(made.jobs.home), "steps": 5000, "save_every": 0})
    until(lambda: added.state == "running")
    with pytest.raises(ValueError, match="is being trained; wait"):
        made.start(order(run))
    assert made.grid is None
    made.jobs.stop()
    until(lambda: added.state == "stopped", 60)
    made.start(order(run))
    done(made)
    added = made.jobs.add(small_run | {"output": str(made.jobs.home), "steps": 5000, "save_every": 0})
    until(lambda: added.state == "running")
    with pytest.raises(ValueError, match="is being trained; wait"):
        made.again([0])
    assert made.status()["grid"]["states"] == ["drawn"] * 6  # nothing that is there is taken for lost
    made.jobs.stop()
    until(lambda: added.state == "stopped", 60)


@pytest.mark.parametrize(("more", "said"), [
    ({"files": (("nothing", 1.0, ""),)}, "nothing is no LoRA, embedding or hypernetwork here"), ({"axes": {"w": Axis("seed", "1")}}, "w is no axis"),
    ({"run": "0" * 12}, "That run's folder is gone"), ({"axes": {"x": Axis("seed", ",")}}, "has no value"),
    ({"width": 513}, "513 px is no multiple of 8"), ({"height": 100}, "100 px is no multiple of 8"),
])  # fmt: skip
def test_an_order_that_cannot_be_is_a_sentence(made, run, more, said):
    with pytest.raises(ValueError, match=said):
        made.start(order(run, **more))
    assert made.grid is None


def test_files_with_weights_are_on_every_cell(made, run):
    one = order(run, files=(("other", 0.5, "M00=0"), ("cat-001 20", 1.0, "")), axes={"x": Axis("step", "cat-001 10, None")})
    made.start(one)
    done(made)
    assert [[(f["name"], f["weight"]) for f in made.cell_details(i)["files"]] for i in range(2)] == [[("other.safetensors", 0.5), ("cat-000010.safetensors", 1.0)], [("other.safetensors", 0.5)]]
    assert as_json(one)["files"][0] == {"name": "other", "weight": 0.5, "blocks": "M00=0"}


def test_the_numbers_of_a_runs_saves_are_measured_and_one_or_none_is_suggested(made, run, data_folder):
    settings_file = run / "settings.toml"
    values = {"data.folder": str(data_folder), "data.bucket_min": 64, "data.bucket_step": 8}
    settings_file.write_text(to_toml(settings({**flat_values(runs.settings_of(run)), **values})))
    made.measure(runs.run_id(run))
    done(made)
    result = made.work.result
    assert [row["step"] for row in result["rows"]] == [0, 10, 20, 1000] and result["rows"][0]["drift"] == 0 and result["rows"][1]["drift"] > 0
    assert result["suggestion"]["step"] in (None, 10, 20, 1000) and result["suggestion"]["why"].endswith(".") and result["run"] == "cat-001"
    for file in run.glob("*.safetensors"):
        file.unlink()
    made.measure(runs.run_id(run))
    done_with_error(made, "has no saved file yet")


def done_with_error(comparisons: Comparisons, said: str) -> None:
    until(lambda: not comparisons.work.going)
    assert comparisons.work.state == "failed" and said in comparisons.work.error


def test_a_new_grid_is_never_taken_for_the_one_before(made, run):
    made.start(order(run, axes={"x": Axis("seed", "1-6")}))
    first = done(made)
    made.start(order(run, axes={"x": Axis("seed", "7-12")}))
    second = done(made)
    assert second["version"] > first["version"] + 6 and "states" in made.status(first["version"])["grid"]


def test_a_file_that_is_another_one_now_is_neither_drawn_nor_kept_for_the_old_one(made, run):
    made.start(order(run, axes={"x": Axis("step", "cat-001 10, cat-001 end")}))
    done(made)
    made.keep(runs.run_id(run), Best("cat-000010.safetensors", "cat", others="trash"))
    assert [f["run"] for f in made.cell_details(1)["files"]] == [""] and "Seed: 1" in made.cell_details(1)["text"]
    with pytest.raises(ValueError, match="cat.safetensors is another file since this grid was begun"):
        made.again([1])
    assert [(c.label, c.path.name) for c in made.offer().saves] == [("cat-001 10", "cat.safetensors")]


def test_the_steps_of_a_word_draw_different_pictures(made, tmp_path, run, checkpoint_file):
    """They are files `word-000010.pt`, and the word in the prompt is `word`."""
    folder = tmp_path / "out" / "word-001"
    folder.mkdir()
    values = {"name": "word", "method": "textual_inversion", "checkpoint": str(checkpoint_file), "memory.precision": "fp32", "data.resolution": 64, "sample.prompts": "a [name] outside", "sample.steps": 2}
    (folder / "settings.toml").write_text(to_toml(settings(values)))
    for i, name in enumerate(("word-000010", "word-000020", "word")):
        write_embedding(folder / f"{name}.pt", Embedding("word", torch.randn(1, 48, generator=torch.Generator().manual_seed(i))))
    suggested = made.suggested(runs.run_id(folder))
    assert (suggested["prompt"], suggested["axes"]["x"]["text"]) == ("a word outside", "None, word-001 10, word-001 20, word-001 end")
    made.start(order_of({**suggested, "steps": 2, "axes": {"x": suggested["axes"]["x"]}}))
    assert done(made)["states"] == ["drawn"] * 4
    assert len({Image.open(made.cell(i)).tobytes() for i in range(4)}) == 4


def test_a_lora_and_its_words_are_one_save(made, tmp_path, run):
    folder = tmp_path / "out" / "pair-001"
    folder.mkdir()
    (folder / "settings.toml").write_text(to_toml(settings({"name": "pair", "method": "pivotal"})))
    for name in ("pair-000010", "pair"):
        lora(folder / f"{name}.safetensors")
        write_embedding(folder / f"{name}.pt", Embedding("pair", torch.ones(1, 48)))
    saves = [choice for choice in made.offer().saves if choice.run == "pair-001"]
    assert [(c.label, c.path.name, [(use.path.name, use.word) for use in c.beside]) for c in saves] == [
        ("pair-001 10", "pair-000010.safetensors", [("pair-000010.pt", "pair")]), ("pair-001 end", "pair.safetensors", [("pair.pt", "pair")])]


def test_the_hosts_own_interrupt_ends_the_grid_and_a_page_that_is_drawn_anew_does_not(made, run, monkeypatch):
    answers = iter([False, True])
    monkeypatch.setattr("lib_tuner.compare.draw.TOGETHER", 1)
    monkeypatch.setattr(Gated, "interrupted", lambda self: next(answers))
    lost = iter([False, True, False, True, *[False] * 99])  # the second picture once, the third for good
    monkeypatch.setattr(Gated, "generate", lambda self, requests, was=Gated.generate: [] if next(lost) else was(self, requests))
    made.start(order(run))
    states = done(made, "stopped")["states"]
    assert states.count("drawn") == 2 and states.count("") == 4


# ---- grids of before -------------------------------------------------------------------------------------------------


def test_an_earlier_grid_is_opened_again_in_another_program_as_it_was(made, run):
    assert made.earlier() == []
    made.start(order(run))
    done(made)
    (run / "cat-000020.safetensors").unlink()
    made.again([1])
    first = done(made)
    details, sheet = made.cell_details(3), made.sheet().read_bytes()
    made.start(order(run, axes={"x": Axis("step", "all")}))
    second = done(made)
    assert [(row["name"], row["kinds"], row["pictures"]) for row in made.earlier()] == [(second["name"], ["Saved step"], 2), (first["name"], ["Saved step", "Seed"], 6)]
    with closing(Comparisons(made.jobs, made.tools)) as other:
        assert other.status()["grid"] is None
        other.open(first["name"])
        shown = other.status()["grid"]
        assert {**shown, "version": 0} == {**first, "version": 0} and shown["states"] == ["drawn", "failed", *["drawn"] * 4] and shown["version"] != first["version"]
        assert other.cell_details(3) == details and other.sheet().read_bytes() == sheet
        before = pixels(other.cell(3))
        other.again([3])
        assert done(other)["states"] == first["states"] and np.abs(pixels(other.cell(3)) - before).max() <= 2  # alone instead of among others
        assert other.start(order(run)) and done(other)["version"] > shown["version"]


def test_saves_that_changed_since_an_earlier_grid_are_not_taken_for_the_same(made, run):
    made.start(order(run))
    name = done(made)["name"]
    lora(run / "cat-000020.safetensors", seed=9)
    with closing(Comparisons(made.jobs, made.tools)) as other:
        other.open(name)
        assert [file["run"] for index in (0, 1) for file in other.cell_details(index)["files"]] == [runs.run_id(run), ""]
        with pytest.raises(ValueError, match="cat-000020.safetensors is another file since this grid was begun"):
            other.again([1])


def test_a_row_of_an_earlier_grid_is_not_drawn_on_another_model(made, run, tmp_path):
    """As inside the WebUI, where the model is the one that is loaded."""
    axes = {"x": Axis("seed", "1, 2")}
    made.start(order(run, axes=axes))
    name = done(made)["name"]
    text = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text(to_toml(settings(flat_values(runs.settings_of(run)) | {"checkpoint": str(write_random(tmp_path / "other.safetensors", 6))})))
    with closing(Comparisons(made.jobs, made.tools)) as other:
        other.open(name)
        other.again([1])
        grid = done(other)
        assert grid["states"] == ["drawn", "failed"] and "choose that one again, or draw a new grid" in grid["errors"][1]
        (run / "settings.toml").write_text(text)
        other.again([1])
        assert done(other)["states"] == ["drawn", "drawn"]


def test_a_checkpoint_that_was_written_anew_is_another_one(made, run, tmp_path):
    second = write_random(tmp_path / "models" / "second.safetensors", 5)
    made.start(order(run, axes={"x": Axis("seed", "1")}, checkpoint="second.safetensors"))
    name = done(made)["name"]
    write_random(second, 6)
    with closing(Comparisons(made.jobs, made.tools)) as other:
        other.open(name)
        with pytest.raises(ValueError, match="second.safetensors is another file since this grid was begun"):
            other.again([0])


def test_a_grid_of_a_release_that_says_more_is_opened(made, run):
    made.start(order(run))
    name = done(made)["name"]
    file = made.home / name / "cells.json"
    values = json.loads(file.read_text())
    for cell in values["cells"]:
        cell["request"]["hires"] = True
        cell["uses"][0]["from"] = 0.5
    file.write_text(json.dumps(values))
    with closing(Comparisons(made.jobs, made.tools)) as other:
        assert other.open(name)["states"] == ["drawn"] * 6


def test_a_grid_that_is_not_one_is_refused_and_the_shown_one_stays(made, run, monkeypatch):
    made.start(order(run))
    name = done(made)["name"]
    for text in ("", "{}", "[]", '{"axes": {}}'):
        broken = made.home / "broken"
        broken.mkdir(exist_ok=True)
        (broken / "grid.json").write_text((made.home / name / "grid.json").read_text())
        (broken / "cells.json").write_text(text)
        with pytest.raises(ValueError, match="broken holds no grid that can be opened; its pictures are still there"):
            made.open("broken")
    for wrong in ("no-such", "..", "../out", ""):
        with pytest.raises(ValueError, match="There is no grid"):
            made.open(wrong)
    assert made.status()["grid"]["name"] == name
    monkeypatch.setattr(Gated, "turns", threading.Semaphore(0))
    made.start(order(run))
    with pytest.raises(ValueError, match="at work already"):
        made.open(name)
    Gated.turns.release(100)
    done(made)
