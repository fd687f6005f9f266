"""Crops as files: exact pixels and sizes, captions and masks along with them, and nothing that exists replaced."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from lib_tuner.config import build
from lib_tuner.data import crop_export, crop_names, mirrored
from lib_tuner.data.crop_export import Exported, Written, export
from lib_tuner.data.crop_names import ExportConfig, named
from lib_tuner.data.crop_plan import Piece
from lib_tuner.data.items import scan
from lib_tuner.settings import DataConfig


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures in two folders; one has two caption files and a mask."""
    root = tmp_path / "cat"
    (root / "10_zwx cat").mkdir(parents=True)
    Image.effect_noise((60, 40), 90).convert("RGB").save(root / "a.png")
    Image.effect_noise((40, 60), 90).convert("RGB").save(root / "10_zwx cat" / "b.png")
    (root / "a.txt").write_bytes(b"cat,lips , looking left\r\n\xff")
    (root / "a.caption").write_bytes(b"a cat")
    (root / "10_zwx cat" / "b.txt").write_text("a cat")
    mask = Image.new("L", (60, 40))
    mask.paste(255, (30, 0, 60, 40))
    mask.save(root / "a.mask.png")
    return root


def pieces(folder, box=None, size=(20, 20), count=1, **settings):
    items, _ = scan(DataConfig(folder=str(folder), masks=True, caption_from="file", **settings), folder)
    return [Piece(item, box or (0.0, 0.0, 40.0, 40.0), size, number, count) for item in items for number in range(1, count + 1)]


def run(folder, target, cfg=ExportConfig(), made=None):
    outputs, problems = named(made if made is not None else pieces(folder), folder, cfg)
    events = list(export(outputs, folder, target, cfg))
    return events[-1], events, problems


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- what is written


def test_pictures_captions_and_masks_are_written_and_the_originals_stay(folder, tmp_path):
    before = tree(folder)
    done, events, _ = run(folder, tmp_path / "out")
    assert done == Exported(tmp_path / "out", 2) and events[:-1] == [Written(1, 2, "10_zwx cat/b.png"), Written(2, 2, "a.png")]
    assert tree(folder) == before
    assert sorted(tree(tmp_path / "out")) == ["10_zwx cat/b.png", "10_zwx cat/b.txt", "a.caption", "a.mask.png", "a.png", "a.txt"]
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"cat,lips , looking left\r\n\xff" and (tmp_path / "out" / "a.caption").read_bytes() == b"a cat"
    assert Image.open(tmp_path / "out" / "a.png").size == (20, 20)


@pytest.mark.parametrize("target", ["out", "out.zip"])
def test_a_picture_whose_name_is_no_text_is_written_under_one_that_is(folder, tmp_path, unreadable_name, target):
    unreadable_name(folder / "a.png")
    run(folder, tmp_path / target)
    names = zipfile.ZipFile(tmp_path / target).namelist() if target.endswith(".zip") else tree(tmp_path / target)
    assert "0 caf_.png" in names


def test_a_crop_without_scaling_has_the_pixels_of_the_picture_and_its_mask(folder, tmp_path):
    run(folder, tmp_path / "out", made=[Piece(p.item, (20.0, 5.0, 40.0, 25.0), (20, 20)) for p in pieces(folder)])
    for name in ("a.png", "a.mask.png"):
        assert Image.open(tmp_path / "out" / name).tobytes() == Image.open(folder / name).crop((20, 5, 40, 25)).tobytes()


@pytest.mark.parametrize("name", crop_export.FILTERS)
def test_each_filter_is_pillows(folder, tmp_path, name):
    box = (3.25, 2.5, 40.75, 40.0)
    run(folder, tmp_path / "out", ExportConfig(filter=name), [Piece(p.item, box, (33, 33)) for p in pieces(folder)[1:]])
    wanted = Image.open(folder / "a.png").resize((33, 33), getattr(Image.Resampling, name.upper()), box=box)
    assert Image.open(tmp_path / "out" / "a.png").tobytes() == wanted.tobytes()


@pytest.mark.parametrize(("form", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_each_format_is_one_and_quality_counts(folder, tmp_path, form, kind):
    lengths = []
    for quality in (20, 95):
        run(folder, tmp_path / f"{quality}", ExportConfig(form=form, quality=quality))
        path = tmp_path / f"{quality}" / f"a.{form}"
        assert Image.open(path).format == kind and Image.open(path).size == (20, 20)
        lengths.append(path.stat().st_size)
    assert lengths[0] < lengths[1] or form == "png"


def test_a_lists_caption_goes_along_as_a_file(folder, tmp_path):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "ein Kätzchen"}))
    run(folder, tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_bytes() == "ein Kätzchen".encode() and not (tmp_path / "out" / "a.caption").exists()


def test_a_caption_ending_that_is_given_twice_is_written_once(folder, tmp_path):
    run(folder, tmp_path / "out", ExportConfig(captions="txt,.txt, caption"), pieces(folder, caption_extension="txt,.txt"))
    assert [name for name in tree(tmp_path / "out") if name.startswith("a.")] == ["a.caption", "a.mask.png", "a.png", "a.txt"]


def test_a_caption_ending_of_two_parts_stays_one(folder, tmp_path):
    (folder / "a.tags.txt").write_text("tags")
    run(folder, tmp_path / "out", ExportConfig(captions="txt,tags.txt"))
    assert (tmp_path / "out" / "a.tags.txt").read_text() == "tags" and (tmp_path / "out" / "a.txt").read_bytes() == (folder / "a.txt").read_bytes()


def test_a_caption_file_in_capitals_goes_along(folder, tmp_path):
    (folder / "10_zwx cat" / "b.txt").rename(folder / "10_zwx cat" / "B.TXT")
    run(folder, tmp_path / "out")
    assert (tmp_path / "out" / "10_zwx cat" / "b.txt").read_text() == "a cat"


# ---- colours


def only(folder, name, image, **more):
    for path in folder.rglob("*.*"):
        path.unlink()
    image.save(folder / name, **more)
    return Image.open(next(iter((folder.parent / "out").glob("*.*")))) if run(folder, folder.parent / "out", made=[Piece(p.item, (0.0, 0.0, *map(float, p.item.size)), p.item.size) for p in pieces(folder)]) else None


def test_exif_orientation_is_applied_once_and_dropped(folder):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    made = only(folder, "x.jpg", image, exif=exif, quality=100)
    assert made.size == (20, 40) and made.getpixel((10, 5))[0] > 250 and made.getpixel((10, 35))[0] < 5 and not made.getexif() and "exif" not in made.info


def test_a_profile_becomes_srgb_and_is_not_written_again(folder):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    made = only(folder, "x.png", Image.new("RGB", (20, 20), (10, 200, 30)), icc_profile=profile.tobytes())
    assert "icc_profile" not in made.info and made.mode == "RGB"


@pytest.mark.parametrize(("mode", "colour", "name", "wanted"), [
    ("I;16", 30000, "x.png", (117,) * 3), ("P", 3, "x.png", None), ("CMYK", (0, 0, 0, 127), "x.tif", (128,) * 3), ("L", 77, "x.png", (77,) * 3), ("1", 1, "x.png", (255,) * 3),
])  # fmt: skip
def test_every_mode_becomes_rgb(folder, mode, colour, name, wanted):
    image = Image.new(mode, (20, 20), colour)
    if mode == "P":
        image.putpalette([v for i in range(256) for v in (i, 0, 255 - i)])
    made = only(folder, name, image)
    assert made.mode == "RGB" and made.getpixel((9, 9)) == pytest.approx(wanted or (3, 0, 252), abs=1)


def glass(folder):
    for path in folder.rglob("*.*"):
        path.unlink()
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 20, 40))
    image.save(folder / "x.png")


@pytest.mark.parametrize(("cfg", "right"), [
    (ExportConfig(), (255, 0, 0, 0)), (ExportConfig(background="#00ff00"), (0, 255, 0)), (ExportConfig(form="jpg", quality=100), (255, 255, 255)),
    (ExportConfig(form="jpg", quality=100, background="lime"), (0, 255, 0)), (ExportConfig(form="webp", quality=100), (255, 0, 0, 0)),
])  # fmt: skip
def test_transparency_is_kept_or_put_on_a_colour(folder, tmp_path, cfg, right):
    glass(folder)
    run(folder, tmp_path / "out", cfg)
    made = Image.open(tmp_path / "out" / f"x.{cfg.form}")
    left = made.getpixel((3, 10))
    assert left[:3] == pytest.approx((0, 0, 255), abs=12)
    assert made.getpixel((17, 10))[-1] == 0 if len(right) == 4 else made.getpixel((17, 10)) == pytest.approx(right, abs=12)


def test_hidden_colours_do_not_bleed_into_the_edge(folder, tmp_path):
    glass(folder)
    run(folder, tmp_path / "out", made=[Piece(p.item, (0.5, 0.0, 39.5, 40.0), (13, 13)) for p in pieces(folder)])
    made = Image.open(tmp_path / "out" / "x.png")
    half = [made.getpixel((x, 6)) for x in range(13) if 20 < made.getpixel((x, 6))[3] < 235]
    assert half and all(pixel[0] < 40 for pixel in half)  # the red that nobody sees


def test_a_picture_that_is_wholly_transparent_stays_so(folder, tmp_path):
    for path in folder.rglob("*.*"):
        path.unlink()
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(folder / "x.png")
    run(folder, tmp_path / "out")
    assert Image.open(tmp_path / "out" / "x.png").getchannel("A").getextrema() == (0, 0)


# ---- names


@pytest.mark.parametrize(("pattern", "flat", "wanted"), [
    ("{name}", False, ["10_zwx cat/b", "a"]), ("{name}", True, ["b", "a"]), ("x{index}", True, ["x1", "x2"]), ("{folder}-{name}_{width}x{height}", True, ["zwx cat-b_20x20", "cat-a_20x20"]), ("same", True, ["same", "same_2"]),
])  # fmt: skip
def test_names_by_pattern(folder, pattern, flat, wanted):
    assert [output.stem for output in named(pieces(folder), folder, ExportConfig(name=pattern, flat=flat))[0]] == wanted


def test_one_name_for_many_pictures_is_no_long_search():
    """Counted from 2 for each it took the square of their number: 8,000 names 9 s, now 0.2 s."""
    class Taken(dict):
        looks = 0

        def __contains__(self, stem):
            self.looks += 1
            return super().__contains__(stem)

    taken = Taken()
    names = [crop_names._free("cat", taken) for _ in range(1000)]
    assert names == ["cat", *(f"cat_{i}" for i in range(2, 1001))] and taken.looks < 3 * len(names)
    assert [crop_names._free(stem, taken) for stem in ("cat_2", "CAT", "cat_2", "cat_1001_2")] == ["cat_2_2", "CAT_1001", "cat_2_3", "cat_1001_2"]


def test_several_crops_have_numbers_and_captions_of_their_own(folder, tmp_path):
    run(folder, tmp_path / "out", ExportConfig(flat=True), pieces(folder, count=2))
    assert [name for name in tree(tmp_path / "out") if name.startswith("a")] == ["a_1.caption", "a_1.mask.png", "a_1.png", "a_1.txt", "a_2.caption", "a_2.mask.png", "a_2.png", "a_2.txt"]
    assert [output.stem for output in named(pieces(folder, count=2), folder, ExportConfig(name="{crop}-{name}", flat=True))[0]] == ["1-b", "2-b", "1-a", "2-a"]


def test_pictures_that_differ_in_their_ending_or_capitals_do_not_clash(folder, tmp_path):
    Image.open(folder / "a.png").save(folder / "a.jpg")
    Image.open(folder / "a.png").save(folder / "A.webp")
    stems = [output.stem for output in named(pieces(folder), folder, ExportConfig(flat=True))[0]]
    assert len({stem.casefold() for stem in stems}) == 4
    run(folder, tmp_path / "out", ExportConfig(flat=True))
    assert sum(".mask" not in path.name for path in (tmp_path / "out").glob("*.png")) == 4


@pytest.mark.parametrize("wrong", [{"name": "{date}"}, {"name": "a/b"}, {"name": ""}, {"name": "..{name}"}, {"name": "{name"}, {"form": "gif"}, {"quality": "0"}, {"background": "puce-ish"}, {"existing": "replace"}])
def test_settings_that_make_no_sense_are_said(wrong):
    with pytest.raises(ValueError):
        build(ExportConfig, wrong)


# ---- ZIP


def test_a_zip_holds_the_same_files_and_a_manifest(folder, tmp_path):
    made = pieces(folder, box=(0.0, 1.5, 40.0, 40.0), size=(40, 39))
    run(folder, tmp_path / "out", made=made)
    done, _, _ = run(folder, tmp_path / "crops.zip", made=made)
    assert done == Exported(tmp_path / "crops.zip", 2)
    with zipfile.ZipFile(tmp_path / "crops.zip") as file:
        assert file.testzip() is None
        inside = {name: hashlib.sha256(file.read(name)).hexdigest() for name in file.namelist()}
        rows = json.loads(file.read(inside.keys() - tree(tmp_path / "out").keys() and "manifest.json"))["pictures"]
        assert Image.open(io.BytesIO(file.read("a.png"))).size == (40, 39)
    assert inside.pop("manifest.json") and inside == tree(tmp_path / "out")
    assert rows[1] == {"file": "a.png", "source": "a.png", "source_digest": made[1].item.digest, "source_size": [60, 40], "box": [0.0, 1.5, 40.0, 40.0], "size": [40, 39], "mirrored": False}
    assert rows[0]["source"] == "10_zwx cat/b.png"


def test_a_zip_that_exists_is_refused_or_another_is_made(folder, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists already"):
        run(folder, tmp_path / "a.zip")
    assert run(folder, tmp_path / "a.zip", ExportConfig(existing="next"))[0].path == tmp_path / "a_2.zip"
    assert (tmp_path / "a.zip").read_bytes() == b"mine"


# ---- mirrored copies


def test_mirrored_copies_have_swapped_captions_and_mirrored_masks(folder, tmp_path):
    run(folder, tmp_path / "out", ExportConfig(mirror="swap", flat=True))
    out = tmp_path / "out"
    for name in ("a{}.png", "a{}.mask.png"):
        assert Image.open(out / name.format("_mirrored")).tobytes() == Image.open(out / name.format("")).transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    assert (out / "a_mirrored.txt").read_bytes() == b"cat,lips , looking right\r\n\xff" and (out / "b_mirrored.txt").read_bytes() == b"a cat"
    assert (out / "a.txt").read_bytes() == b"cat,lips , looking left\r\n\xff"


def test_a_side_in_the_caption_makes_no_copy_where_that_is_safer(folder):
    outputs, problems = named(pieces(folder), folder, ExportConfig(mirror="safe", flat=True))
    assert [output.stem for output in outputs] == ["b", "b_mirrored", "a"] and [str(problem) for problem in problems] == ["a.png has no mirrored copy: its caption names left or right."]


@pytest.mark.parametrize("way", ["safe", "swap"])
def test_any_caption_file_may_refuse_a_mirrored_copy(folder, way):
    (folder / "a.txt").write_text("a cat")
    (folder / "a.caption").write_text("a sign with text, looking left")
    outputs, problems = named(pieces(folder), folder, ExportConfig(mirror=way, flat=True))
    assert [output.stem for output in outputs] == ["b", "b_mirrored", "a"] and [str(problem) for problem in problems] == ["a.png has no mirrored copy: its caption names text, which would be mirrored too."]


@pytest.mark.parametrize(("before", "after"), [
    ("looking_left", "looking_right"), ("Left hand, RIGHT foot, upright, bright, lefty", "Right hand, LEFT foot, upright, bright, lefty"), ("right-handed", "left-handed"), ("cleft", "cleft"),
])  # fmt: skip
def test_sides_are_exchanged(before, after):
    assert mirrored.swapped(before) == after and mirrored.swapped(after) == before
    for encoding in ("utf-8-sig", "utf-16"):
        assert mirrored.swapped_bytes(f"{before}\r\nü".encode(encoding)) == f"{after}\r\nü".encode(encoding)


@pytest.mark.parametrize(("caption", "stays"), [
    ("looking left", False), ("English_text", False), ("upright, bright", True), ("the Right one", False), ("", True), ("pretext, a texture, context", True),
])  # fmt: skip
def test_training_flips_what_gets_a_mirrored_copy(caption, stays):
    """One rule for both: `data.flip = safe` and `--mirror safe`."""
    assert (mirrored.refusal(caption, "safe") == "") == stays == (not mirrored.NAMED.search(caption))
    assert mirrored.refusal("English_text", "swap")
