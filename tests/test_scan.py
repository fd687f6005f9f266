"""Which files of a folder a scan takes for pictures to train on, and what it says of the others."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image

from lib_tuner.data.batches import find_items
from lib_tuner.data.file_names import Names
from lib_tuner.data.items import masks_of, pictures_below, scan
from lib_tuner.data.problems import Problem, told
from lib_tuner.settings import DataConfig


def paint(path, number: int = 0, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, 99)).save(path)
    return path


def names_in(folder, **settings) -> tuple[dict[str, int], list[str]]:
    """The repeats of each picture by its path, and what is wrong."""
    items, problems = scan(DataConfig(folder=str(folder), **settings), folder)
    return {item.path.relative_to(folder).as_posix(): item.repeats for item in items}, [str(problem) for problem in problems if problem.kind != "no caption"]


@pytest.mark.parametrize("own", ["state/state-5.safetensors", "losses.csv", "record.tuner"])
def test_samples_of_a_run_below_the_data_are_not_trained_on(tmp_path, own):
    paint(tmp_path / "a.png"), paint(tmp_path / "out/runs/cat/samples/5-0.png", 1), paint(tmp_path / "other/b.png", 2)
    (tmp_path / "other/settings.toml").write_text("")  # some other program's
    for name in ("settings.toml", own):
        (file := tmp_path / "out/runs/cat" / name).parent.mkdir(exist_ok=True)
        file.write_text("")
    found, problems = names_in(tmp_path)
    assert list(found) == ["a.png", "other/b.png"]
    assert problems == ["cat is the folder of a run, whose samples are no pictures to train on, and is left out."]
    assert list(names_in(tmp_path / "out/runs/cat/samples")[0]) == ["5-0.png"] and len(pictures_below(tmp_path / "out/runs/cat")[0]) == 1  # whoever names it means it


def test_a_date_before_a_folders_name_is_told_and_of_the_scanned_folder_no_number_of_repeats(tmp_path):
    for i, name in enumerate(["2023_holiday/a.png", "2023_holiday/b.png", "499_cat/c.png", "500_dog/d.png"]):
        paint(tmp_path / name, i)
    found, problems = names_in(tmp_path)
    assert found == {"2023_holiday/a.png": 2023, "2023_holiday/b.png": 2023, "499_cat/c.png": 499, "500_dog/d.png": 500}
    assert problems == [f"{name} stands for {n} repeats of each picture; rename it if that number is something else." for name, n in (("500_dog", 500), ("2023_holiday", 2023))]
    assert names_in(tmp_path / "2023_holiday") == ({"a.png": 1, "b.png": 1}, ["2023_holiday begins with 2023, which is taken for a year, so each picture occurs once; set data.repeats for more."]) and names_in(tmp_path / "500_dog")[0] == {"d.png": 500}
    assert {p.kind for p in scan(DataConfig(validation_folder=str(tmp_path)), tmp_path)[1]} <= {"no caption"}  # whose pictures are looked at once


@pytest.mark.parametrize("name", ["a.mask.jpg", "mask/a.webp", "masks/a.jpg", "a-masklabel.bmp"])
def test_a_mask_may_be_any_kind_of_picture(tmp_path, name):
    paint(tmp_path / "a.png"), paint(tmp_path / name, 1)
    ((item,), _) = scan(DataConfig(folder=str(tmp_path), masks=True), tmp_path)
    assert item.mask == tmp_path / name
    (better := tmp_path / name).with_suffix(".png").write_bytes(better.read_bytes())
    assert scan(DataConfig(masks=True), tmp_path)[0][0].mask == better.with_suffix(".png")


def test_masks_for_some_pictures_alone_are_told(tmp_path):
    for i in range(3):
        paint(tmp_path / f"data/{i}.png", i), paint(tmp_path / f"class/{i}.png", i + 3)
    for i, told in enumerate((["data has masks for 1 of 3 pictures; the others are learned whole."], ["data has masks for 2 of 3 pictures; the others are learned whole."], [])):
        paint(tmp_path / f"data/mask/{i}.png", i)
        for more in ({}, {"class_folder": str(tmp_path / "class")}):
            problems = find_items(DataConfig(folder=str(tmp_path / "data"), masks=True, **more))[1]
            assert [str(problem) for problem in problems if problem.kind == "masks"] == told


def test_what_concerns_the_whole_folder_is_told_before_what_each_picture_lacks(tmp_path):
    for i in range(12):
        paint(tmp_path / f"data/500_cat/{i}.png", i)
    paint(tmp_path / "data/500_cat/mask/7.png")
    (tmp_path / "held").mkdir()
    for i in range(5):
        shutil.copy(tmp_path / f"data/500_cat/{i}.png", tmp_path / f"held/{i}.png")
    problems = find_items(DataConfig(folder=str(tmp_path / "data"), validation_folder=str(tmp_path / "held"), masks=True, caption_from="file"))[1]
    lines = told(problems)
    assert lines[0].startswith("500_cat stands for 500 repeats") and lines[1].startswith("data has masks for 1 of 7 pictures")
    assert [line.partition(" ")[0] for line in lines[2:5]] == ["0.png", "1.png", "2.png"] and lines[5] == "2 more pictures are held out for validation."
    assert all(line.endswith(" has no caption.") for line in lines[6:9]) and lines[9:] == ["14 more pictures have no caption."]
    few = [Problem(tmp_path / "a", "has no caption", "no caption"), Problem(tmp_path / "b", "is a folder", "folder")]
    assert told(few) == ["b is a folder.", "a has no caption."]
    assert len(told(few * 5)) == 8 and len(told([few[0]] * 4 + [few[1]] * 5)) == 8  # one more takes as much room as to say so


def test_where_only_a_runs_folder_lies_it_is_said_why_there_is_no_picture(tmp_path):
    for name in ("settings.toml", "losses.csv"):
        (file := tmp_path / "out/cat-001" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    paint(tmp_path / "out/cat-001/samples/5-0.png"), (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="out' holds no picture: cat-001 is the folder of a run, whose samples are no pictures to train on, and is left out.$"):
        pictures_below(tmp_path / "out")
    with pytest.raises(ValueError, match="empty' holds no picture; put .png, .jpg or .webp files into it.$"):
        pictures_below(tmp_path / "empty")


def test_a_number_in_a_folders_name_is_no_reason_why_it_has_no_picture(tmp_path):
    for name in ("2023_cat", "all/600_dog"):
        (folder := tmp_path / name).mkdir(parents=True)
        (folder / "a.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="holds no picture to train on: a.png is no picture that Pillow can read"):
            names_in(folder.parent if folder.parent.name == "all" else folder)


@pytest.mark.parametrize("name", ["a.mask.PNG", "a.Mask.png", "a-MaskLabel.png", "Mask/a.png", "MASKS/A.JPG", "mask/A.png", "A-maskLabel.png"])
def test_a_masks_name_and_its_folders_may_have_other_capitals(tmp_path, name):
    paint(tmp_path / "a.png"), paint(tmp_path / name, 1)
    ((item,), _) = scan(DataConfig(folder=str(tmp_path), masks=True), tmp_path)
    assert item.mask == tmp_path / name


def test_a_mask_in_other_capitals_that_is_another_pictures_is_left_to_it(tmp_path):
    for i, name in enumerate(("a.png", "A.png", "A.mask.png", "b.c.png", "B.C.mask.png")):
        paint(tmp_path / name, i)
    items = scan(DataConfig(folder=str(tmp_path), masks=True), tmp_path)[0]
    assert {item.name: item.mask and item.mask.name for item in items} == {"a.png": None, "A.png": "A.mask.png", "b.c.png": "B.C.mask.png"}


def test_a_mask_belongs_to_the_picture_that_is_spelled_like_it_of_two_that_differ_in_their_endings_too(tmp_path):
    paint(tmp_path / "a.png"), paint(tmp_path / "A.JPG", 1), paint(tmp_path / "A.PNG", 2), paint(tmp_path / "A.mask.png", 3)
    items = scan(DataConfig(folder=str(tmp_path), masks=True), tmp_path)[0]
    assert {item.name: item.mask is not None for item in items} == {"a.png": False, "A.JPG": True, "A.PNG": True}


def test_a_disk_that_answers_to_other_capitals_keeps_its_masks(tmp_path, monkeypatch):
    """As those of Windows and macOS do."""
    paint(tmp_path / "a.png"), paint(tmp_path / "A.mask.png", 1)
    monkeypatch.setattr(os.path, "exists", lambda path: any(str(path).lower() == str(found).lower() for found in [tmp_path, *tmp_path.iterdir()]))
    assert [path.name for path in masks_of(tmp_path / "a.png", Names())] == ["A.mask.png"]
