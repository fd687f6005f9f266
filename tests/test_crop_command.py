"""`crop`: pictures of a folder from the command line."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from lib_tuner import cli
from lib_tuner.data.crop import Frame
from lib_tuner.data.crop_acts import KeptActs
from lib_tuner.data.crop_file import Crop, change_crops, read_crops


@pytest.fixture
def folder(tmp_path) -> Path:
    """A wide picture with its subject on the right, a tall one in a subfolder, a small one, and a file that is none."""
    root = tmp_path / "cat"
    (root / "deep").mkdir(parents=True)
    wide = Image.new("RGB", (128, 64), "gray")
    wide.paste(Image.effect_noise((50, 50), 120).convert("RGB"), (70, 7))
    wide.save(root / "wide.png")
    Image.effect_noise((64, 128), 90).save(root / "deep" / "tall.png")
    Image.effect_noise((40, 40), 90).save(root / "small.png")
    (root / "broken.png").write_bytes(b"none")
    (root / "wide.txt").write_bytes(b"cat\r\n")
    return root


def crop(*words: object) -> int:
    return cli.main(["crop", *map(str, words), "--no-venv"])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_would_be_made_is_shown_and_nothing_is_written(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    assert crop(folder, "--size", "64x64") == 0
    said = capsys.readouterr().out
    assert said.startswith("2 crops of 2 of 3 pictures.\nSizes: 2 of 64 x 64.\nFound by: detail 3.\n") and said.endswith("Nothing was written: --out DIR or --zip FILE writes it.\n")
    assert "small.png is 40 x 40 px and its crop would be enlarged 1.60 times to 64 x 64, so it is left out" in said and "broken.png is no picture that Pillow can read" in said
    assert "  tall.png: 64 x 64 px at 0," in said
    assert files(tmp_path) == before


def test_a_folder_that_is_not_there_is_named_as_the_command_line_has_it(tmp_path, capsys):
    assert crop(tmp_path / "nowhere") == 2
    said = capsys.readouterr().err
    assert f"FOLDER: {str(tmp_path / 'nowhere')!r} does not exist" in said and "data.folder" not in said


def test_crops_are_written_about_the_subject_with_their_captions(folder, tmp_path, capsys):
    before = files(folder)
    assert crop(folder, "--size", "64x64", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.endswith(f"Written: 2 pictures to {tmp_path / 'out'}.\n")
    made = files(tmp_path / "out")
    assert sorted(made) == ["deep/tall.png", "wide.png", "wide.txt"] and made["wide.txt"] == b"cat\r\n" and files(folder) == before
    wide, cut = Image.open(folder / "wide.png"), Image.open(tmp_path / "out" / "wide.png").tobytes()
    (left,) = [left for left in range(65) if wide.crop((left, 0, left + 64, 64)).tobytes() == cut]
    assert 56 <= left <= 64  # the subject is from 70 to 120
    assert crop(folder, "--size", "64x64", "--out", tmp_path / "out") == 2
    assert "exists already, so nothing was written" in capsys.readouterr().err


def test_a_folder_may_be_named_from_another_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder / "deep")
    assert crop("..", "--size", "64", "--out", "../../out", "--keep") == 0
    assert sorted(files(tmp_path / "out")) == ["deep/tall.png", "wide.png", "wide.txt"] and len(read_crops(folder)) == 3


def test_options_of_both_kinds_reach_the_crop(folder, tmp_path):
    assert crop(folder, "--size", "32", "--zip", tmp_path / "all", "--form", "jpg", "--flat", "true", "--split", "strips", "--split_below", "0.6", "--overlap", "0", "--mirror", "safe") == 0
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        names = [name for name in file.namelist() if name.endswith(".jpg")]
        assert sorted(names) == sorted(f"{name}{end}.jpg" for name in ("small", "tall_1", "tall_2", "wide_1", "wide_2") for end in ("", "_mirrored"))
        assert len(json.loads(file.read("manifest.json"))["pictures"]) == 10


def test_a_small_picture_is_enlarged_where_that_is_allowed(folder, tmp_path):
    assert crop(folder, "--size", "64", "--out", tmp_path / "out", "--enlarge", "2") == 0
    assert Image.open(tmp_path / "out" / "small.png").size == (64, 64)


def test_an_area_keeps_the_whole_picture(folder, tmp_path):
    assert crop(folder, "--size", "area:32", "--out", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out" / "wide.png").size == (45, 23)


def test_crops_are_kept_and_what_a_person_set_stays(folder, tmp_path, capsys):
    assert crop(folder, "--size", "64", "--keep") == 0
    assert capsys.readouterr().out.endswith("crops.json.\n")
    assert sorted(read_crops(folder)) == ["deep/tall.png", "small.png", "wide.png"] and read_crops(folder)["wide.png"].found == "detail"

    assert KeptActs(folder).last().before.keys() == {"deep/tall.png", "small.png", "wide.png"}, "the page can take it back"

    def adjust(book):
        record = book["wide.png"]
        return {**book, "wide.png": type(record)(record.size, record.digest, (Crop(Frame(0.25, 0.5), state="adjusted"),))}

    change_crops(folder, adjust)
    assert crop(folder, "--size", "64", "--keep", "--out", tmp_path / "out") == 0
    assert read_crops(folder)["wide.png"].crops[0].frame == Frame(0.25, 0.5)
    assert Image.open(tmp_path / "out" / "wide.png").tobytes() == Image.open(folder / "wide.png").crop((0, 0, 64, 64)).tobytes()

    Image.new("RGB", (128, 64), "red").save(folder / "wide.png")
    capsys.readouterr()
    assert crop(folder, "--size", "64", "--keep", "--out", tmp_path / "later") == 0
    assert "wide.png has changed since it was cropped; look at its crops again." in capsys.readouterr().out
    assert not (tmp_path / "later" / "wide.png").exists() and read_crops(folder)["wide.png"].crops[0].state == "adjusted"


@pytest.mark.parametrize(("words", "said"), [
    (["--size", "big"], "is no size of a crop"), (["--out", "a.zip"], "write --zip a.zip"), (["--form", "gif"], "form"), (["--out", "a", "--zip", "b"], "not allowed with"), (["--what"], "--what"),
    (["--face_model", "gone.onnx"], "is no file"), (["--out", "cat/new"], "is in the folder of the originals"), (["--name", "{date}"], "'date' is no value in braces"), (["--captions", "a/b"], "captions: 'a/b' is no ending"),
])  # fmt: skip
def test_wrong_options_are_one_sentence(folder, words, said, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    before = files(folder.parent)
    assert crop(folder, *words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error and "Traceback" not in error and files(folder.parent) == before


def test_faces_without_opencv_are_said(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert crop(folder, "--focus", "face") == 2 and "opencv-python-headless" in capsys.readouterr().err


def test_help_is_there_before_the_environment_is(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        crop("--help")
    said = capsys.readouterr().out
    assert "--size TEXT" in said and "--mirror TEXT" in said and "examples:" in said
    monkeypatch.setitem(sys.modules, "lib_tuner.crop", None)
    assert crop("--help") == 0 and "once the Tuner's environment is set up" in capsys.readouterr().out
