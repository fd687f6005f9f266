"""What a scan finds in a folder: captions, names, repeats, lists, and everything that can be wrong with a file."""

import io
import json
import os
import struct
import sys
import zlib

import pytest
from PIL import Image

from lib_tuner.data.file_names import Names
from lib_tuner.data.items import caption_files, from_rows, item_of, items_digest, natural, scan, to_rows
from lib_tuner.data.pictures import load
from lib_tuner.data.sources import Reader, digest
from lib_tuner.settings import DataConfig


def paint(path, size=(40, 30), color="red", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **more)
    return path


def colors(n):
    return [(i * 37 % 256, i * 91 % 256, i * 53 % 256) for i in range(n)]


def find(folder, **settings):
    items, problems = scan(DataConfig(folder=str(folder), **settings), folder)
    return {item.path.relative_to(folder).as_posix() if item.row < 0 else item.row: item for item in items}, problems


def one(folder, **settings):
    (item,) = find(folder, **settings)[0].values()
    return item


def kinds(problems):
    return sorted(problem.kind for problem in problems)


def encode(image, form="PNG", **more):
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


# ---- captions


def test_the_folder_is_listed_once_for_all_pictures_without_a_caption(tmp_path, monkeypatch):
    for i in range(4):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{i}.png")
    listed, names = [], Names()
    monkeypatch.setattr(os, "listdir", lambda path, listdir=os.listdir: (listed.append(path), listdir(path))[1])
    for i in range(4):
        assert item_of(tmp_path / f"{i}.png", DataConfig(folder=str(tmp_path)), names)[0]
    assert listed == [str(tmp_path)]


def test_caption_beside_the_picture_in_order_of_endings(tmp_path):
    picture = paint(tmp_path / "a.png")
    picture.with_suffix(".caption").write_text(" from caption \n")
    assert (one(tmp_path).caption, one(tmp_path).caption_source) == ("from caption", "file")
    picture.with_suffix(".txt").write_text("from txt")
    assert one(tmp_path).caption == "from txt"
    assert one(tmp_path, caption_extension="caption,txt").caption == "from caption"
    assert one(tmp_path, caption_extension=".caption").caption == "from caption"


@pytest.mark.parametrize("ending", ["a/b", "a\\b", ".", "\0"])
def test_endings_that_no_file_has_are_one_sentence_with_the_setting(tmp_path, ending):
    paint(tmp_path / "a.png")
    with pytest.raises(ValueError) as refused:
        find(tmp_path, caption_extension=f"txt, {ending}")
    assert str(refused.value) == f"data.caption_extension: {ending!r} is no ending of a file's name; write endings between commas, such as txt,caption."
    with pytest.raises(ValueError, match="^captions: "):
        caption_files(tmp_path / "a.png", ending)
    assert [path.name for path in caption_files(tmp_path / "a.png", " .txt,, tar.gz")] == ["a.txt", "a.tar.gz"]


@pytest.mark.parametrize(
    "data, problems",
    [
        ("größe, 猫".encode(), []),
        ("größe, 猫".encode("utf-8-sig"), []),
        ("größe, 猫".encode("utf-16"), []),
        ("größe".encode("cp1252"), ["encoding"]),
    ],
)
def test_caption_encodings(tmp_path, data, problems):
    paint(tmp_path / "a.png").with_suffix(".txt").write_bytes(data)
    items, found = find(tmp_path)
    assert items["a.png"].caption.startswith("größe") and not items["a.png"].caption.startswith("\ufeff") and kinds(found) == problems


@pytest.mark.parametrize("text", ["cat", "größe"])
def test_a_caption_with_nul_characters_is_told(tmp_path, text):
    paint(tmp_path / "a.png").with_suffix(".txt").write_bytes(text.encode("utf-16-le"))
    assert [str(problem) for problem in find(tmp_path)[1]] == ["a.txt holds NUL characters, as UTF-16 without a byte order mark does; save it as UTF-8."]


def test_lines_of_a_caption_stay_lines(tmp_path):
    paint(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"one\r\ntwo\rthree\n")
    assert one(tmp_path).caption == "one\ntwo\nthree"


@pytest.mark.parametrize("name, caption", [("00013-1234-a red cat", "a red cat"), ("a red cat", "a red cat"), ("2 cats", "cats")])
def test_file_names_are_captions_without_leading_numbers(tmp_path, name, caption):
    paint(tmp_path / f"{name}.png")
    assert (one(tmp_path).caption, one(tmp_path).caption_source) == (caption, "filename")


@pytest.mark.parametrize("name", ["IMG_1234", "00012", "DSC0001", "image (2)", "3f2b8c1d9e", "Screenshot 2024-01-02"])
def test_names_given_by_machines_are_no_captions(tmp_path, name):
    paint(tmp_path / f"{name}.png")
    items, problems = find(tmp_path)
    assert items[f"{name}.png"].caption == "" and kinds(problems) == ["no caption"]


def test_each_way_to_read_a_caption(tmp_path):
    paint(tmp_path / "10_dog" / "a cat.png").with_suffix(".txt").write_text("from file")
    got = {way: one(tmp_path, caption_from=way).caption for way in ("auto", "file", "filename", "folder", "none")}
    assert got == {"auto": "from file", "file": "from file", "filename": "a cat", "folder": "dog", "none": ""}
    (tmp_path / "10_dog" / "a cat.txt").unlink()
    assert one(tmp_path, caption_from="auto").caption == "dog"  # as in kohya
    items, problems = find(tmp_path, caption_from="file")
    assert kinds(problems) == ["no caption"] and not find(tmp_path, caption_from="none")[1]


def test_an_empty_caption_file_is_reported(tmp_path):
    paint(tmp_path / "a cat.png").with_suffix(".txt").write_text("\n")
    items, problems = find(tmp_path)
    assert items["a cat.png"].caption == "" and "empty caption" in problems[0].text


def test_kohya_folders_repeat(tmp_path):
    for i, name in enumerate(["3_cat/a.png", "3_cat/more/b.png", "plain/c.png", "d.png"]):
        paint(tmp_path / name, color=colors(9)[i])
    assert {name: item.repeats for name, item in find(tmp_path)[0].items()} == {"3_cat/a.png": 3, "3_cat/more/b.png": 3, "plain/c.png": 1, "d.png": 1}
    assert find(tmp_path, repeats=5)[0]["3_cat/a.png"].repeats == 15
    assert scan(DataConfig(), tmp_path / "3_cat")[0][0].repeats == 3


def test_a_kohya_folder_of_no_repeats_is_left_out_and_one_of_too_many_is_cut(tmp_path):
    for i, name in enumerate(["0_cat/a.png", "0_cat/more/b.png", "00_fox/a.png", "99999_dog/c.png", "99999_dog/d.png", "2_cow/0/e.png"]):
        paint(tmp_path / name, color=colors(9)[i])
    items, problems = find(tmp_path, caption_from="folder")
    assert {name: item.repeats for name, item in items.items()} == {"2_cow/0/e.png": 2, "99999_dog/c.png": 10000, "99999_dog/d.png": 10000}
    assert [(p.path.name, p.kind) for p in problems] == [("0_cat", "folder"), ("00_fox", "folder"), ("99999_dog", "repeats")]  # each once
    assert str(problems[0]).startswith("0_cat stands for 0 repeats, so its pictures are left out") and "of which 10000 are made" in str(problems[2])


def test_folders_of_no_repeats_alone_say_so_and_can_still_be_held_out(tmp_path):
    paint(tmp_path / "0_cat" / "a.png")
    with pytest.raises(ValueError, match="holds no picture to train on: 0_cat stands for 0 repeats"):
        find(tmp_path)
    assert len(scan(DataConfig(validation_folder=str(tmp_path)), tmp_path)[0]) == 1


def test_class_pictures_carry_their_weight(tmp_path):
    paint(tmp_path / "a.png")
    item = scan(DataConfig(class_weight=0.25), tmp_path, is_class=True)[0][0]
    assert item.is_class and item.weight == 0.25
    assert one(tmp_path, class_weight=0.25).weight == 1.0


@pytest.mark.parametrize("column", ["text", "caption"])
def test_imagefolder_lists(tmp_path, column):
    for i, name in enumerate(["train/a.png", "train/sub/b.png"]):
        paint(tmp_path / name, color=colors(2)[i])
    rows = [{"file_name": "a.png", column: 'x, "y"'}, {"file_name": "sub/b.png", column: "b"}, {"file_name": "c.png", column: "c"}]
    (tmp_path / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nnot json\n")
    items, problems = find(tmp_path)
    found = {name: (item.caption, item.caption_source) for name, item in items.items()}
    assert found == {"train/a.png": ('x, "y"', "list"), "train/sub/b.png": ("b", "list")}
    assert [p.text for p in problems] == ["line 3 names 'c.png', which is not there", "line 4 is no JSON (Expecting value); it was left out"]
    (tmp_path / "train/metadata.jsonl").unlink()
    (tmp_path / "train/metadata.csv").write_text(f'file_name,{column}\na.png,"x, ""y"""\nsub/b.png,b\n', encoding="utf-8-sig")
    items, problems = find(tmp_path)
    assert [item.caption for item in items.values()] == ['x, "y"', "b"] and not problems


SEVERAL = [["", " a cat ", "a red cat"], [None, "a dog"], [], 7, ["a fox", 7]]


@pytest.mark.parametrize(("wildcards", "captions"), [(False, ["a cat", "a dog", "", "", "a fox"]), (True, ["a cat\na red cat", "a dog", "", "", "a fox"])])
def test_of_several_listed_captions_the_first_counts_or_with_wildcards_each_is_a_line(tmp_path, wildcards, captions):
    for i in range(len(SEVERAL)):
        paint(tmp_path / f"{i}.png", color=colors(9)[i])
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{i}.png", "text": value}) for i, value in enumerate(SEVERAL)))
    items, problems = find(tmp_path, wildcards=wildcards)
    assert [item.caption for item in items.values()] == captions and [item.caption_source for item in items.values()] == ["list"] * 3 + ["none", "list"]
    assert [p.text for p in problems if p.kind == "list"] == ["line 4 has a caption that is no text; it was left out", "line 5 has a caption that is no text"]


@pytest.mark.parametrize(("wildcards", "caption"), [(False, "a cat"), (True, "a cat\na red cat")])
def test_rows_of_one_picture_are_its_captions(tmp_path, wildcards, caption):
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\na.png,a red cat\n")
    items, problems = find(tmp_path, wildcards=wildcards)
    assert [item.caption for item in items.values()] == [caption] and not problems


@pytest.mark.parametrize(("cells", "captions", "told"), [
    ([["", "a cat", "a red cat"], None, []], ["a cat", "", ""], []),
    ([7, 8, None], ["", "", ""], ["row 0 has a caption that is no text; such captions are left out"]),
    ([{"en": "a cat"}, None, None], ["", "", ""], ["row 0 has a caption that is no text; such captions are left out"]),
])  # fmt: skip
def test_captions_of_parquet_are_text_or_lists_of_it(tmp_path, cells, captions, told):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [encode(Image.new("RGB", (40, 30), color)) for color in colors(len(cells))]
    parquet.write_table(pyarrow.table({"image": data, "captions": cells}), tmp_path / "train.parquet")
    items, problems = find(tmp_path)
    assert [item.caption for item in items.values()] == captions and [p.text for p in problems if p.kind == "list"] == told


def test_a_quote_that_is_never_closed_is_a_problem_and_the_lines_before_count(tmp_path):
    paint(tmp_path / "a.png", color="red"), paint(tmp_path / "b.png", color="blue")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,one\nb.png,"' + "x" * 200_000)
    found, problems = find(tmp_path)
    assert found["a.png"].caption == "one" and "b.png" in found
    assert any("quote that is never closed" in str(problem) for problem in problems)


def test_parquet_of_an_image_text_data_set(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [encode(Image.new("RGB", (40, 30 + i), color)) for i, color in enumerate(colors(5))]
    rows = {"image": [{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)], "text": ["zero", "one", None, "three", "four"]}
    rows["image"][3] = {"bytes": b"broken", "path": "3.png"}
    parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet", row_group_size=2)
    items, problems = find(tmp_path)
    found = {row: (item.caption, item.size) for row, item in items.items()}
    assert found == {0: ("zero", (40, 30)), 1: ("one", (40, 31)), 2: ("", (40, 32)), 4: ("four", (40, 34))}
    assert sorted(p.kind for p in problems) == ["no caption", "unreadable"] and "row 3" in str(problems)
    reader = Reader()
    assert [reader.picture(items[row]) for row in (4, 0, 1, 2)] == [data[row] for row in (4, 0, 1, 2)]


def test_parquet_without_pyarrow_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="train.parquet needs the package pyarrow to be read; install it with: pip install pyarrow"):
        find(tmp_path)


# ---- which files


def test_order_is_natural_and_hidden_files_masks_and_previews_are_left_out(tmp_path):
    names = ["a10.png", "a2.PNG", "B1.jpg", "sub/a1.webp"]
    for i, name in enumerate(names + ["a2.preview.png", "a2.mask.png", "mask/a2.png", ".hidden.png", ".latents/x.png", "__MACOSX/a2.png"]):
        paint(tmp_path / name, color=colors(20)[i])
    (tmp_path / "notes.md").write_text("x")
    assert list(find(tmp_path)[0]) == ["a2.PNG", "a10.png", "B1.jpg", "sub/a1.webp"]
    assert sorted(["a10", "a2", "A3", "b", "a"], key=natural) == ["a", "a2", "A3", "a10", "b"]


def test_folders_named_for_other_purposes_are_not_scanned(tmp_path):
    for i, name in enumerate(["a.png", "class/b.png", "held/c.png"]):
        paint(tmp_path / name, color=colors(3)[i])
    assert len(find(tmp_path)[0]) == 3
    assert list(find(tmp_path, class_folder=str(tmp_path / "class"), validation_folder=str(tmp_path / "held"))[0]) == ["a.png"]


def test_folder_names_with_brackets_and_links_to_above_are_harmless(tmp_path):
    paint(tmp_path / "a [1] (x)" / "a.png")
    (tmp_path / "a [1] (x)" / "loop").symlink_to(tmp_path)
    items, problems = find(tmp_path)
    assert len(items) == 1 and [(p.path.name, p.kind) for p in problems if p.kind != "no caption"] == [("loop", "folder")]


@pytest.mark.parametrize("backwards", [False, True])
def test_of_a_folder_and_a_link_to_it_the_first_by_name_counts_on_every_disk(tmp_path, monkeypatch, backwards):
    paint(tmp_path / "10_cat" / "a.png")
    (tmp_path / "2_cat").symlink_to(tmp_path / "10_cat")
    walk = os.walk

    def listed(*where, **how):
        for folder, names, files in walk(*where, **how):
            names.sort(reverse=backwards)
            yield folder, names, files

    monkeypatch.setattr(os, "walk", listed)
    items, problems = find(tmp_path)
    assert {name: item.repeats for name, item in items.items()} == {"2_cat/a.png": 2}
    assert [str(p) for p in problems] == [f"10_cat is the folder '{tmp_path.name}/2_cat' once more, by a link, and is left out."]


def bomb():
    """A PNG header that promises 20000 x 20000 px."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I", 99) + b"IDAT" + bytes(99)


def noise(size):
    return Image.effect_noise(size, 90).convert("RGB")


@pytest.mark.parametrize(
    "name, data, text",
    [
        ("a.png", b"", "a.png is an empty file"),
        ("a.png", b"no picture", "a.png is no picture that Pillow can read"),
        ("a.png", encode(noise((64, 64)))[:3000], "a.png is no picture"),
        ("a.jpg", encode(noise((64, 64)), "JPEG")[:1500], "a.jpg is no picture"),
        ("a.png", encode(Image.new("RGB", (1, 1))), "a.png is 1 x 1 px; both sides need at least 16"),
        ("a.png", bomb(), "a.png has more than 178 megapixels"),
    ],
)
def test_a_folder_of_nothing_usable_says_why(tmp_path, name, data, text):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=text) as error:
        find(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and "BytesIO" not in str(error.value)


def test_one_bad_picture_does_not_stop_the_others(tmp_path):
    paint(tmp_path / "good cat.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    items, problems = find(tmp_path)
    assert list(items) == ["good cat.png"] and [(p.path.name, p.kind) for p in problems] == [("bad.png", "unreadable")]


def test_what_lies_beside_a_picture_and_cannot_be_read_is_a_problem(tmp_path):
    paint(tmp_path / "a cat.png")
    (tmp_path / "a cat.txt").mkdir(), (tmp_path / "a cat.mask.png").mkdir()
    items, problems = find(tmp_path, masks=True)
    assert (items["a cat.png"].caption, items["a cat.png"].mask) == ("", None)
    assert [(p.path.name, p.kind) for p in problems] == [("a cat.txt", "unreadable"), ("a cat.png", "no caption"), ("a cat.mask.png", "mask")]
    assert str(problems[2]).startswith("a cat.mask.png cannot be read (") and str(problems[2]).endswith("); a cat.png is trained without it.")


@pytest.mark.parametrize("name", ["a cat.txt", "metadata.jsonl", "a cat.mask.png", "class-00000.txt", "train.parquet"])
def test_files_that_may_not_be_read_or_vanish_end_no_scan(tmp_path, monkeypatch, name):
    paint(tmp_path / "a cat.png"), paint(tmp_path / "class-00000.png", color="blue")
    (tmp_path / name).write_bytes(b"x")
    read = type(tmp_path).read_bytes

    def refused(path):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(type(tmp_path), "read_bytes", refused)
    monkeypatch.setattr("lib_tuner.data.sources._open_parquet", lambda path: refused(path))
    items, problems = scan(DataConfig(folder=str(tmp_path), masks=True), tmp_path, is_class=True)
    assert len(items) == 2 and any(p.path.name == name and "Permission denied" in p.text for p in problems)


@pytest.mark.parametrize("make", [lambda p: p / "gone", lambda p: p, lambda p: ""])
def test_missing_and_empty_folders_are_one_sentence(tmp_path, make):
    with pytest.raises(ValueError, match=r"^data.folder.*(does not exist|holds no picture|is empty)"):
        scan(DataConfig(), make(tmp_path))


def test_animations_give_their_first_frame_and_a_problem(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a cat.gif", save_all=True, append_images=[Image.new("RGB", (32, 32), "blue")])
    items, problems = find(tmp_path)
    assert kinds(problems) == ["animated"]
    assert load(items["a cat.gif"], (tmp_path / "a cat.gif").read_bytes())[0].getpixel((5, 5)) == (255, 0, 0)


def test_equal_pictures_and_shared_caption_files_are_reported(tmp_path):
    paint(tmp_path / "a cat.png").with_suffix(".txt").write_text("x")
    (tmp_path / "b cat.png").write_bytes((tmp_path / "a cat.png").read_bytes())
    paint(tmp_path / "a cat.jpg", color="blue")
    items, problems = find(tmp_path)
    assert len(items) == 3 and kinds(problems) == ["clash", "duplicate"]


def test_items_survive_json_and_their_digest_sees_every_change(tmp_path):
    paint(tmp_path / "3_x" / "a.png").with_suffix(".txt").write_text("a")
    items, _ = scan(DataConfig(), tmp_path)
    assert from_rows(json.loads(json.dumps(to_rows(items)))) == items
    before = items_digest(items)
    assert items[0].digest == digest((tmp_path / "3_x/a.png").read_bytes()) and before == items_digest(scan(DataConfig(), tmp_path)[0])
    (tmp_path / "3_x").rename(tmp_path / "4_x")
    assert items_digest(scan(DataConfig(), tmp_path)[0]) != before  # repeats
    (tmp_path / "4_x").rename(tmp_path / "3_x")
    (tmp_path / "3_x/a.txt").write_text("b")
    assert items_digest(scan(DataConfig(), tmp_path)[0]) != before
    (tmp_path / "3_x/a.txt").write_text("a")
    paint(tmp_path / "3_x/a.png", color="blue")
    assert items_digest(scan(DataConfig(), tmp_path)[0]) != before


def test_a_picture_that_changed_after_the_scan_is_refused(tmp_path):
    paint(tmp_path / "a.png")
    item = one(tmp_path)
    paint(tmp_path / "a.png", color="blue")
    with pytest.raises(ValueError, match="a.png: the file changed after the run had begun"):
        Reader().picture(item)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="a.png: the picture is gone"):
        Reader().picture(item)
