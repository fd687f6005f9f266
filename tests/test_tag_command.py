"""`tag`: captions of a folder from the command line, by the embedded tagger and by one's own ONNX file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image
from test_tagger import CSV, onnx_model, runtime

from lib_tuner import cli


@pytest.fixture
def folder(stars) -> Path:
    """The drawings, of which one has a caption, and a file that is no picture."""
    (stars / "a.txt").write_bytes(b"mine")
    (stars / "bad.png").write_bytes(b"nothing")
    return stars


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "wd").mkdir()
    (tmp_path / "wd" / "model.onnx").write_bytes(b"\x08model")
    (tmp_path / "wd" / "selected_tags.csv").write_bytes(CSV)
    return tmp_path / "wd"


def tag(*words: object) -> int:
    return cli.main(["tag", *map(str, words), "--no-venv"])


def captions(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


def test_what_would_be_written_is_shown_and_nothing_is_written(folder, capsys):
    assert tag(folder, "--model", "demo") == 0
    said = capsys.readouterr().out
    assert "threshold 0.5" in said and "\n2 of 4 change.\n" in said and "bad.png is no picture that Pillow can read" in said and said.count("bad.png") == 1
    assert said.endswith("No caption was written: --apply does it.\n") and captions(folder) == {"a.txt": "mine"}


def test_it_is_written_and_edit_takes_it_back(folder, capsys):
    assert tag(folder, "--model", "demo", "--exclude", "large, On_the_left", "--always", "zwx", "--apply") == 0
    after = captions(folder)
    assert {name: set(text.split(", ")) for name, text in after.items()} == {"a.txt": {"mine"}, **dict.fromkeys(["b.txt", "c.txt"], {"zwx", "star", "red", "white background", "solid"})}
    assert all(text.startswith("zwx, ") for name, text in after.items() if name != "a.txt")
    assert capsys.readouterr().out.endswith(f"Written; `python3 -m lib_tuner edit {folder} undo` takes it back.\n")
    assert cli.main(["edit", str(folder), "undo", "--no-venv"]) == 0 and captions(folder) == {"a.txt": "mine"}


def test_modes_and_numbers_of_tags(folder):
    assert tag(folder, "--model", "demo", "--mode", "prepend", "--most", "2", "--apply") == 0
    assert captions(folder)["a.txt"].count(",") == 2 and captions(folder)["a.txt"].endswith(", mine") and captions(folder)["b.txt"].count(",") == 1


def test_a_folder_whose_pictures_all_have_captions_loads_no_model(folder, model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (folder / "bad.png").unlink()
    for name in "bc":
        (folder / f"{name}.txt").write_text("mine")
    assert tag(folder, "--model", model, "--rating", "tag", "--apply") == 0 and "0 of 3 change." in capsys.readouterr().out


def test_another_threshold_loads_no_model(folder, model, capsys, monkeypatch):
    (folder / "bad.png").unlink()
    fake = runtime()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert tag(folder, "--model", model) == 0 and fake.ran == [(2, 8, 8, 3)]
    said = capsys.readouterr()
    assert "a file of your own" in said.out and "threshold 0.35 (none is published: the usual one)" in said.out and "on CPU" in said.err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert tag(folder, "--model", model, "--threshold", "0.999", "--apply") == 0
    assert captions(folder)["b.txt"] == "blue thing"  # the stand-in gives it 1, and red things the mean of blue
    assert tag(folder, "--model", model, "--mode", "merge") == 2  # a.png was left out before, so it has no scores
    assert "ONNX models need the package onnxruntime" in capsys.readouterr().err


def test_two_taggers_agree(folder, model, monkeypatch):
    (model / "selected_tags.csv").write_text("name,category\nStar,0\nsquare,0\nred,0\n")
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime())
    assert tag(folder, "--model", "demo", "--model", model, "--agreement", "all", "--apply") == 0
    assert set(captions(folder)["b.txt"].split(", ")) == {"star", "red"}


def test_a_real_model_tags_a_folder(folder, model):
    pytest.importorskip("onnxruntime")
    onnx_model(model / "model.onnx", "N")  # sigmoid of (0.01 blue - 0.02 red, 0.02 red - 0.01 green, 0.03 blue)
    (folder / "bad.png").unlink()
    Image.new("RGB", (30, 10), "red").save(folder / "b.png")  # white above and below: its mean is (255, 170, 170) as red, green, blue
    (model / "selected_tags.csv").write_text("name,category\nr,0\ng,0\nb,0\n")
    assert tag(folder, "--model", model, "--threshold", "0.9", "--apply") == 0
    assert captions(folder)["b.txt"] == "b, g"  # sigmoid(5.1), sigmoid(3.4); sigmoid(-3.4) is too little


@pytest.mark.parametrize(("words", "said"), [
    (("FOLDER",), "tag: the following arguments are required: --model"), (("FOLDER", "--model", "wd-vit-tager-v3"), "did you mean wd-vit-tagger-v3"),
    (("FOLDER/none", "--model", "demo"), "is no folder"), (("FOLDER", "--model", "demo", "--threshold", "0"), "is outside [0.05, 1]"),
    (("FOLDER", "--model", "demo", "--mode", "overwrite"), "--mode: invalid choice: 'overwrite'"), (("FOLDER", "--model", "demo", "--most", "-1"), "no number of tags"),
    (("FOLDER", "--model", "FOLDER/a.onnx"), "a.onnx does not exist"), (("FOLDER", "--model", "demo", "--treshold", "1"), "unrecognized arguments"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence(folder, capsys, words, said):
    assert tag(*(word.replace("FOLDER", str(folder)) for word in words)) == 2
    sentence = capsys.readouterr().err
    assert said in sentence and sentence.count("\n") == 1 and captions(folder) == {"a.txt": "mine"}


def test_help_lists_models_with_their_thresholds(capsys):
    with pytest.raises(SystemExit) as ended:
        tag("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "wd-eva02-large-tagger-v3      threshold 0.5296 (the model's author)" in said and "--agreement" in said


def test_without_its_packages_only_help_is_given(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lib_tuner.tag", None)
    assert tag("--help") == 0 and "tag FOLDER" in capsys.readouterr().out
    with pytest.raises(ModuleNotFoundError):
        tag(folder, "--model", "demo", "--apply")
