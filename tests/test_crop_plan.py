"""Crops as data: kept in the side folder, found, and what is wrong with them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lib_tuner.config import build
from lib_tuner.data.crop import Frame, Target, cuts, in_pixels
from lib_tuner.data.crop_file import Crop, CropsFile, PictureCrops, change_crops, crops_file, key_of, read_crops, row_of
from lib_tuner.data.crop_plan import CropConfig, pieces, problems_of, propose, with_target
from lib_tuner.data.crop_view import inside, shown
from lib_tuner.data.item import Item

RECORD = PictureCrops((800, 600), "d1", (Crop(Frame(0.25, 0.5, 1.5), "512x768", "adjusted"), Crop()), ((0.1, 0.2, 0.3, 0.4),), "face")


def item(size=(800, 600), digest="d1", name="a.png") -> Item:
    return Item(Path("cat") / name, "", size=size, digest=digest)


def proposed(size, cfg=CropConfig(), faces=()):
    return propose(item(size), Image.new("RGB", size), cfg, lambda image: [tuple(v * s for v, s in zip(face, image.size * 2)) for face in faces])


def kinds(problems):
    return [problem.kind for problem in problems]


# ---- the file


def test_what_is_kept_is_read_back_also_under_another_name_of_the_folder(tmp_path):
    (tmp_path / "old").mkdir()
    picture = tmp_path / "old" / "10_cat" / "ä b.png"
    change_crops(tmp_path / "old", lambda book: {**book, key_of(tmp_path / "old", picture): RECORD})
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_crops(tmp_path / "new") == {"10_cat/ä b.png": RECORD}
    assert [path.name for path in (tmp_path / "new" / ".tuner").iterdir() if path.suffix != ".lock"] == ["crops.json"]


def test_the_file_has_one_picture_a_line_and_a_change_touches_its_line_alone(tmp_path):
    change_crops(tmp_path, lambda book: {f"{name}.png": RECORD for name in "bca"})
    before = crops_file(tmp_path).read_text(encoding="utf-8").splitlines()
    change_crops(tmp_path, lambda book: {**book, "b.png": replace(RECORD, found="hand")})
    after = crops_file(tmp_path).read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in before[1:-1]] == ['"a.png"', '"b.png"', '"c.png"'] and [i for i, line in enumerate(before) if line != after[i]] == [2]


def test_a_file_as_it_was_written_earlier_is_read(tmp_path):
    crops_file(tmp_path).parent.mkdir()
    crops_file(tmp_path).write_text(json.dumps({"version": 1, "pictures": {"a.png": row_of(RECORD)}}, indent=1) + "\n")
    assert change_crops(tmp_path, lambda book: {**book, "b.png": RECORD}) == read_crops(tmp_path) == {"a.png": RECORD, "b.png": RECORD}


def test_the_file_is_read_again_only_where_it_is_another(tmp_path, monkeypatch):
    file = CropsFile(tmp_path)
    file.change(lambda book: {"a.png": RECORD})
    with monkeypatch.context() as patch:
        patch.setattr("lib_tuner.data.crop_file.json.loads", lambda data: pytest.fail("the file was read again"))
        file.change(lambda book: {**book, "b.png": RECORD})
        assert file.read() is file.read() and set(file.read()) == {"a.png", "b.png"}
    change_crops(tmp_path, lambda book: {**book, "a.png": replace(RECORD, found="hand")})
    assert file.read()["a.png"].found == "hand"
    assert set(file.change(lambda book: {**book, "c.png": RECORD})) == {"a.png", "b.png", "c.png"} and read_crops(tmp_path) == file.read()
    crops_file(tmp_path).unlink()
    assert file.read() == {}


def test_a_change_that_could_not_be_written_is_forgotten(tmp_path, monkeypatch):
    file = CropsFile(tmp_path)
    file.change(lambda book: {"a.png": RECORD})
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("lib_tuner.disk.os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        file.change(lambda book: {**book, "b.png": RECORD})
    assert file.read() == read_crops(tmp_path) == {"a.png": RECORD}


def test_a_folder_without_crops_has_none_and_asking_writes_nothing(tmp_path):
    assert read_crops(tmp_path) == {} and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "pictures": {"a": {}}}', '{"version": 1, "pictures": []}',
                                  json.dumps({"version": 1, "pictures": {"a": {"size": [1, 2], "digest": "", "found": "", "subjects": [], "crops": [{"x": 2, "y": 0, "zoom": 1, "target": "", "state": "auto"}]}}})])  # fmt: skip
def test_a_damaged_file_is_said_and_left_alone(tmp_path, text):
    path = crops_file(tmp_path)
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="is damaged and was left alone"):
        change_crops(tmp_path, lambda book: {})
    assert path.read_text() == text


def test_a_newer_file_is_refused(tmp_path):
    crops_file(tmp_path).parent.mkdir()
    crops_file(tmp_path).write_text('{"version": 2, "pictures": {}}')
    with pytest.raises(ValueError, match="is of version 2"):
        read_crops(tmp_path)


def test_a_change_that_fails_leaves_the_file_as_it_was(tmp_path):
    change_crops(tmp_path, lambda book: {"a": RECORD})
    before = crops_file(tmp_path).read_bytes()
    with pytest.raises(TypeError):
        change_crops(tmp_path, lambda book: {"a": replace(RECORD, digest=object())})
    assert crops_file(tmp_path).read_bytes() == before and len(list(crops_file(tmp_path).parent.iterdir())) == 2


def test_changes_at_the_same_time_are_all_kept(tmp_path):
    def add(name):
        for i in range(5):
            change_crops(tmp_path, lambda book: {**book, f"{name}{i}": RECORD})

    threads = [threading.Thread(target=add, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_crops(tmp_path)) == 15


@pytest.mark.parametrize(("state", "target"), [("seen", ""), ("auto", "big")])
def test_a_crop_that_cannot_be_is_refused(state, target):
    with pytest.raises(ValueError):
        Crop(Frame(), target, state)


# ---- finding


def test_the_largest_face_is_inside_with_room():
    record = proposed((1000, 500), faces=[(0.8, 0.1, 0.95, 0.4), (0.1, 0.5, 0.12, 0.55)])
    (piece,), problems = pieces(item((1000, 500)), record, CropConfig(enlarge=2))
    assert not cuts(piece.box, (755, 5, 995, 245)) and kinds(problems) == ["small", "apart"]  # 0.3 of 150 x 150 px more on each side
    assert "has 2 faces too far apart for one crop, which leaves out 1" in str(problems[1])


def test_a_face_is_inside_with_room_for_hair_and_chin():
    (piece,), problems = pieces(item((1000, 1000)), proposed((1000, 1000), CropConfig(size="512x256"), [(0.4, 0.4, 0.6, 0.7)]), CropConfig(size="512x256"))
    assert piece.box == pytest.approx((0, 290, 1000, 790)) and problems == []  # centred on the brow it would end at 750, the chin's room at 790


def test_a_crop_that_is_not_scaled_begins_at_a_whole_pixel():
    """Else each of its pixels would be a blur of two."""
    made, _ = pieces(item((1000, 512)), PictureCrops((1000, 512), "d1", (Crop(Frame(0.4567, 0.5)), Crop(Frame(1, 1)), Crop(Frame(0.4567, 0.5), "300x300"))), CropConfig())
    assert made[0].box == (201, 0, 713, 512) and made[1].box == (488, 0, 1000, 512)  # 456.7 - 256 = 200.7
    assert made[2].box[0] == pytest.approx(200.7)  # scaled: as it is


def test_faces_that_fit_are_all_inside():
    record = proposed((2000, 1000), faces=[(0.6, 0.1, 0.7, 0.3), (0.8, 0.1, 0.9, 0.3)])
    (piece,), problems = pieces(item((2000, 1000)), record, CropConfig())
    assert problems == [] and all(not cuts(piece.box, in_pixels(face, (2000, 1000))) for face in record.subjects)


def test_each_face_has_a_crop_of_its_own():
    cfg = CropConfig(faces="each", size="256x256")
    record = proposed((3000, 1000), cfg, [(0.0, 0.0, 0.1, 0.2), (0.9, 0.6, 0.98, 0.8)])
    made, problems = pieces(item((3000, 1000)), record, cfg)
    assert [piece.size for piece in made] == [(256, 256)] * 2 and problems == []
    assert made[0].box == pytest.approx((0, 0, 600, 600), abs=60) and not cuts(made[1].box, (2700, 600, 2940, 800)) and made[1].enlargement <= 1


def test_a_face_that_does_not_fit_is_said():
    record = proposed((1000, 1000), CropConfig(size="512x128"), [(0.3, 0.2, 0.7, 0.8)])
    assert kinds(pieces(item((1000, 1000)), record, CropConfig(size="512x128"))[1]) == ["cut"]


def test_a_large_picture_is_split():
    wide = CropConfig(split="strips", overlap=0.0)
    assert len(proposed((2048, 512), wide).crops) == 4 and len(proposed((1000, 512), wide).crops) == 1  # more than half of it is shown
    assert len(proposed((1024, 1024), CropConfig(split="pixels", overlap=0.0)).crops) == 4
    assert [p.enlargement for p in pieces(item((1024, 1024)), proposed((1024, 1024), CropConfig(split="pixels")), CropConfig())[0]] == pytest.approx([1] * 9)


def test_a_bucket_is_cropped_about_the_focus():
    """The WebUI's auto-sized crop knows the middle alone."""
    record = proposed((1000, 800), CropConfig(size="bucket:512"), [(0.0, 0.0, 0.2, 0.2)])
    (piece,), _ = pieces(item((1000, 800)), record, CropConfig(size="bucket:512"))
    assert piece.size == Target.parse("bucket:512").size_for((1000, 800)) and piece.box[:2] == (0, 0)


def test_an_area_cuts_nothing_off():
    (piece,), problems = pieces(item((1024, 512)), proposed((1024, 512), CropConfig(size="area:512")), CropConfig(size="area:512"))
    assert piece.box == (0, 0, 1024, 512) and piece.size == (724, 362) and problems == []


# ---- problems


def test_a_small_picture_is_left_out_or_enlarged_as_far_as_is_allowed():
    made, problems = pieces(item((300, 400)), proposed((300, 400)), CropConfig())
    assert made == [] and str(problems[0]) == "a.png is 300 x 400 px and its crop would be enlarged 1.71 times to 512 x 512, so it is left out; choose a smaller size or allow it."
    made, problems = pieces(item((300, 400)), proposed((300, 400)), CropConfig(enlarge=2))
    assert len(made) == 1 and str(problems[0]) == "a.png is 300 x 400 px and its crop is enlarged 1.71 times to 512 x 512."
    assert pieces(item((512, 512)), proposed((512, 512)), CropConfig())[1] == []


def test_a_zoom_that_enlarges_can_be_taken_back():
    record = PictureCrops((1024, 1024), "d1", (Crop(Frame(zoom=3)),))
    assert "zoom out or allow it" in str(pieces(item((1024, 1024)), record, CropConfig())[1][0])


@pytest.mark.parametrize("now", [item(digest="d2"), item(size=(600, 800))])
def test_a_picture_that_changed_is_stale_and_not_cropped(now):
    made, problems = pieces(now, RECORD, CropConfig())
    assert made == [] and kinds(problems) == kinds(problems_of(now, RECORD, CropConfig()))[:1] == ["stale"]


def test_what_nobody_has_reviewed_can_be_found():
    reviewed = replace(RECORD, subjects=(), crops=(Crop(state="approved"), Crop(state="adjusted")))
    assert kinds(problems_of(item(), reviewed, CropConfig())) == [] and reviewed.touched
    assert kinds(problems_of(item(), replace(reviewed, crops=(*reviewed.crops, Crop())), CropConfig())) == ["review"]
    assert not PictureCrops((1, 1), "").touched


def test_a_crop_may_have_a_size_of_its_own():
    record = with_target(PictureCrops((800, 600), "d1", (Crop(), Crop())), 2, "256x512")
    made, _ = pieces(item(), record, CropConfig())
    assert [piece.size for piece in made] == [(512, 512), (256, 512)] and [crop.state for crop in record.crops] == ["auto", "adjusted"]
    with pytest.raises(ValueError):
        with_target(record, 1, "huge")


def test_a_frame_is_a_pixel_wide_at_least():
    """A zoom of 1e17, as a script may have set it, left a box without pixels, by which nothing can be divided."""
    record = PictureCrops((600, 500), "d1", (Crop(Frame(0.5, 0.5, 1e17)), Crop(Frame(1, 1, 1e300), "16x8192")))
    made, problems = pieces(item((600, 500)), record, CropConfig(enlarge=16))
    assert made == [] and [problem.text.split(" and ")[1].split(",")[0] for problem in problems] == ["its crop would be enlarged 512.00 times to 512 x 512", "its crop would be enlarged 16.38 times to 16 x 8192"]
    assert inside(record, record.crops[0], CropConfig()).frame == Frame(0.5, 0.5, 500) and shown(record, record.crops[1], CropConfig())["zoom"] == 1


def test_settings_that_make_no_sense_are_said():
    assert build(CropConfig, {"size": "bucket:512", "enlarge": "1.5"}) == CropConfig(size="bucket:512", enlarge=1.5)
    for wrong in ({"size": "big"}, {"size": "bucket:63"}, {"enlarge": "0.5"}, {"split": "some"}, {"focus": "nose"}):
        with pytest.raises(ValueError):
            build(CropConfig, wrong)
