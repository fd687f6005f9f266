"""The save that was best: it gets its name, its card and its picture, the others stay or go to the trash, and nothing is written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tool_files import lora

from lib_tuner import runs
from lib_tuner.config import to_toml
from lib_tuner.keeping import Best, keep, side_by_side
from lib_tuner.methods import settings
from lib_tuner.methods.metadata import write_card


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "cat-001"
    folder.mkdir()
    (folder / "settings.toml").write_text(to_toml(settings({"name": "cat", "trigger": "cat"})))
    for i, name in enumerate(("cat-000010", "cat-000020", "cat")):
        lora(folder / f"{name}.safetensors", seed=i)
        write_card(folder / f"{name}.safetensors", "cat", notes="of the run")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in ("settings.toml", runs.RECORD)}


def test_the_save_gets_name_card_and_picture_and_the_others_stay(run, tmp_path):
    before = contents(run)
    Image.new("RGB", (1024, 512), "red").save(tmp_path / "cell.png")
    assert keep(run, Best("cat-000010.safetensors", "tom", "tom the cat", 0.7, "the best of three", tmp_path / "cell.png")) == {"file": "tom.safetensors", "trashed": 0}
    after = contents(run)
    assert after["tom.safetensors"] == before["cat-000010.safetensors"] and "cat-000010.safetensors" not in after and "cat-000010.json" not in after
    card = json.loads(after["tom.json"])
    assert (card["activation text"], card["preferred weight"], card["notes"], card["sd version"]) == ("tom the cat", 0.7, "the best of three", "SD1")
    with Image.open(run / "tom.preview.png") as picture:
        assert picture.size == (512, 256)
    assert all(after[name] == before[name] for name in ("cat.safetensors", "cat.json", "cat-000020.safetensors"))
    assert [row["name"] for row in runs.saved_files(run)] == ["cat.safetensors", "cat-000020.safetensors", "tom.safetensors"]
    assert {row["name"]: row["step"] for row in runs.saved_files(run)}["tom.safetensors"] == 10


def test_the_others_go_to_the_trash_whole_and_the_final_name_is_free(run):
    before = contents(run)
    assert keep(run, Best("cat-000020.safetensors", "cat", others="trash")) == {"file": "cat.safetensors", "trashed": 4}
    after = contents(run)
    assert after["cat.safetensors"] == before["cat-000020.safetensors"]
    assert {name: after[f"trash/{name}"] for name in ("cat.safetensors", "cat.json", "cat-000010.safetensors", "cat-000010.json")} == {
        name: before[name] for name in ("cat.safetensors", "cat.json", "cat-000010.safetensors", "cat-000010.json")}
    assert [row["name"] for row in runs.saved_files(run)] == ["cat.safetensors"] and runs.saved_files(run)[0]["step"] == 20


def test_nothing_in_the_trash_is_written_over(run):
    (run / "trash").mkdir()
    (run / "trash" / "cat.safetensors").write_bytes(b"older")
    keep(run, Best("cat-000020.safetensors", "cat", others="trash"))
    assert (run / "trash" / "cat.safetensors").read_bytes() == b"older" and (run / "trash" / "cat-1.safetensors").is_file()


def test_the_final_file_is_kept_under_its_own_name(run):
    assert keep(run, Best("cat.safetensors", "cat", "a cat", others="leave"))["file"] == "cat.safetensors"
    assert json.loads((run / "cat.json").read_text())["activation text"] == "a cat"


@pytest.mark.parametrize(("best", "said"), [
    (Best("cat-000010.safetensors", "cat"), "cat.safetensors exists already"), (Best("nothing.safetensors", "x"), "nothing.safetensors is no saved file of cat-001"),
    (Best("../settings.toml", "x"), "is no saved file"), (Best("samples/a.png", "x", others="trash"), "is no saved file"), (Best("cat.safetensors", "a/b"), "name"), (Best("cat-000010.safetensors", "tom-20231101"), "ends as the saves of a run do"), (Best("cat.safetensors", "x", others="burn"), "neither leave nor trash"),
])  # fmt: skip
def test_what_cannot_be_is_a_sentence_and_nothing_has_changed(run, best, said):
    before = contents(run)
    with pytest.raises(ValueError, match=said):
        keep(run, best)
    assert contents(run) == before


def test_an_embedding_keeps_all_its_forms(tmp_path):
    folder = tmp_path / "word-001"
    folder.mkdir()
    (folder / "settings.toml").write_text(to_toml(settings({"name": "word", "method": "textual_inversion"})))
    for name in ("word-000010.safetensors", "word-000010.pt", "word.safetensors", "word.pt"):
        (folder / name).write_bytes(name.encode())
    keep(folder, Best("word-000010.safetensors", "best"))
    assert (folder / "best.pt").read_bytes() == b"word-000010.pt" and (folder / "best.safetensors").is_file() and not (folder / "best.json").exists()


def test_two_runs_beside_each_other():
    curves = {"points": [[1, 0.5, 1e-3]], "validations": [], "drifts": [], "seconds": 1, "steps": 2, "best": None, "method": "lora"}
    one = {**curves, "name": "a", "settings": {"name": "a", "steps": 10, "optim.lr": "1e-3", "lora.rank": 4}}
    two = {**curves, "name": "b", "settings": {"name": "b", "steps": 10, "optim.lr": "1e-4", "loha.rank": 8}}
    found = side_by_side(one, two)
    assert found["settings"] == [["optim.lr", "1e-3", "1e-4"], ["lora.rank", 4, None], ["loha.rank", None, 8]]
    assert [run["name"] for run in found["runs"]] == ["a", "b"] and found["runs"][0]["points"] == [[1, 0.5, 1e-3]]


def test_what_was_saved_with_it_stays_with_it(run):
    for name in ("word-000010.safetensors", "word-000020.safetensors"):
        (run / name).write_bytes(b"vectors")
    assert keep(run, Best("cat-000010.safetensors", "cat", others="trash"))["trashed"] == 5
    assert sorted(path.name for path in run.glob("*.safetensors")) == ["cat.safetensors", "word-000010.safetensors"]
