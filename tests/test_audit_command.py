"""`audit`: a folder checked from the command line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from labelled import drawing
from PIL import ImageFilter, ImageOps

from lib_tuner import cli
from lib_tuner.data.edits import Edit


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five pictures, of which one is a mirrored, blurred copy and one is cut; captions with faults."""
    root = tmp_path / "10_cat"
    root.mkdir()
    for n in range(3):
        drawing(n, (300, 300)).save(root / f"{n}.png")
    ImageOps.mirror(drawing(0, (300, 300)).resize((200, 200))).filter(ImageFilter.GaussianBlur(4)).save(root / "copy.jpg")
    (root / "cut.png").write_bytes((root / "1.png").read_bytes()[:400])
    for name, text in {"0": "zwx, black hair, smile", "1": "black hair, zwx, smile, smile", "2": "zwx, black hair, 1girl, 2girls", "copy": "zwx, black_hair, sitting"}.items():
        (root / f"{name}.txt").write_text(text)
    return tmp_path


def audit(*words: object) -> int:
    return cli.main(["audit", *map(str, words), "--no-venv"])


def test_counts_come_first_then_findings_then_advice_and_nothing_is_written(folder, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert audit(folder, "--goal", "character", "--trigger", "zwx", "--size", "300") == 0
    said = capsys.readouterr().out
    assert said.startswith("5 pictures; ") and said.index("  blurred  ") < said.index("blurred:\n  copy.jpg is blurred")
    for text in ("copy.jpg (mirrored) looks like 0.png", "cut.png is no picture", "1.txt has 'smile' more than once.", "'1girl' and '2girls'", "Captions in which the trigger word 'zwx' is not the first tag, so that shuffling moves it: 1 of 5.",
                 "'black hair' is also written 'black_hair'", "'black hair' is in 4 of 4 captions (100%): leave it out", "5 pictures a LoRA is usually trained"):  # fmt: skip
        assert text in said, text
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_name_that_is_no_text_can_be_written_to_a_console_of_utf8(folder, monkeypatch, unreadable_name, more):
    unreadable_name(folder / "10_cat" / "1.txt")
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))
    assert audit(folder, "--no-pictures", *more) == 0
    sys.stdout.flush()
    assert b"caf?.txt" in written.getvalue()


def test_rows_are_json_whose_mends_are_edits(folder, capsys):
    assert audit(folder, "--json", "--size", "300", "--goal", "character") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = {row["kind"] for row in rows}
    assert {"blurred", "near duplicate", "unreadable", "tag twice", "contradiction", "spelling", "drop"} <= kinds and "too small" in kinds  # copy.jpg is 200 px
    assert all(row["paths"] and row["text"] for row in rows)
    (twice,) = [row for row in rows if row["kind"] == "tag twice"]
    assert [Edit.from_json(mend).name for mend in twice["mends"]] == ["deduplicate"] and Path(twice["paths"][0]).name == "1.txt"


def test_a_caption_file_in_capitals_is_its_pictures(folder, capsys):
    (folder / "10_cat" / "copy.txt").rename(folder / "10_cat" / "copy.TXT")
    assert audit(folder, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row["kind"] == "twin captions"]


def test_captions_alone_are_checked_without_a_look_at_pictures(folder, capsys, monkeypatch):
    monkeypatch.setattr("lib_tuner.audit.look_at", None)
    assert audit(folder, "--no-pictures", "--all") == 0
    assert "tag twice" in (said := capsys.readouterr().out) and "blurred" not in said


@pytest.mark.parametrize(("words", "text"), [
    (("--bits", "20"), "--bits 20 is outside 0 to 15"), (("--goal", "cat"), "invalid choice"), (("--size", "x"), "invalid int value"), (("--size", "8"), "resolution"),
])  # fmt: skip
def test_wrong_options_are_one_sentence(folder, capsys, words, text):
    assert audit(folder, *words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert text in said


def test_a_size_that_cannot_be_is_said_before_any_picture_is_looked_at(folder, capsys, monkeypatch):
    monkeypatch.setattr("lib_tuner.audit.look_at", None)
    assert audit(folder, "--size", "8") == 2 and "resolution" in capsys.readouterr().err


def test_no_folder_and_help(tmp_path, capsys):
    assert audit(tmp_path / "none") == 2 and "is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        audit("--help")
    assert ended.value.code == 0 and "--trigger" in capsys.readouterr().out
