"""`edit`: captions of a folder from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_tuner import cli
from lib_tuner.data import sources
from lib_tuner.data.library import open_captions
from lib_tuner.data.tag_list import TagList
from lib_tuner.data.tag_scores import ScoreStore, rows_of, stamp_of


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures in a folder, one of which has no caption, and one in a list's folder."""
    for name in ("a", "b", "deep/c", "listed/d"):
        path = tmp_path / "cat" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "cat" / "a.txt").write_bytes(b"cat,lips , red\r\n")
    (tmp_path / "cat" / "deep" / "c.caption").write_bytes(b"lips, cat")
    (tmp_path / "cat" / "listed" / "metadata.jsonl").write_text(json.dumps({"file_name": "d.png", "text": "lips"}) + "\n")
    return tmp_path / "cat"


def edit(*words: object) -> int:
    return cli.main(["edit", *map(str, words), "--no-venv"])


def captions(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".txt", ".caption", ".jsonl") and ".tuner" not in path.parts}


def test_what_an_edit_changes_is_shown_and_nothing_is_written(folder, capsys):
    before = captions(folder)
    assert edit(folder, "remove", "--tags", "Lips, mouth") == 0
    said = capsys.readouterr().out
    assert said.startswith("2 of 3 change.\n") and "    - cat,lips , red\n    + cat , red\n" in said and said.endswith("Nothing was written: --apply carries it out.\n")
    assert captions(folder) == before and not (folder / ".tuner").exists()


def test_it_is_written_taken_back_and_done_again(folder, capsys):
    before = captions(folder)
    assert edit(folder, "remove", "--tags", "lips", "--apply") == 0
    after = captions(folder)
    assert after == {**before, "a.txt": b"cat , red\r\n", "c.caption": b"cat"}
    assert edit(folder, "undo") == 0 and captions(folder) == before
    assert edit(folder, "redo") == 0 and captions(folder) == after
    capsys.readouterr()
    assert edit(folder, "history") == 0
    assert "applied  remove {'tags': ['lips']} (2 files)" in capsys.readouterr().out
    assert edit(folder, "undo") == edit(folder, "undo") == 0
    assert capsys.readouterr().out.endswith("There is nothing to take back.\n") and captions(folder) == before


def test_an_undo_says_what_it_leaves(folder, capsys):
    assert edit(folder, "remove", "--tags", "lips", "--apply") == 0
    (folder / "a.txt").write_bytes(b"typed later")
    capsys.readouterr()
    assert edit(folder, "undo") == 0
    assert capsys.readouterr().out == "Changed since, so left as they are now: a.txt; files taken back: 1.\n" and captions(folder)["a.txt"] == b"typed later"


def test_a_picture_without_a_caption_gets_one(folder):
    assert edit(folder, "add", "--tags", "zwx, {folder}", "--where", "first", "--apply") == 0
    assert captions(folder)["b.txt"] == b"zwx, cat" and captions(folder)["c.caption"] == b"zwx, deep, lips, cat"
    assert edit(folder, "undo") == 0 and "b.txt" not in captions(folder)


def test_old_and_new_names_and_flags(folder):
    assert edit(folder, "rename", "--names", "cat=grey cat", "--names", "lips=", "--apply") == 0
    assert captions(folder)["c.caption"] == b"grey cat"
    assert edit(folder, "sort", "--by", "length", "--reverse", "--apply") == 0
    assert captions(folder)["a.txt"] == b"grey cat , red\r\n"


def test_tokens_are_counted_by_the_models_own_tokenizer(folder):
    (folder / "a.txt").write_text("cat, a thing that goes on, red")
    assert edit(folder, "truncate", "--limit", "3", "--apply") == 0
    assert captions(folder)["a.txt"] == b"cat"


def test_captions_of_a_list_are_left_alone_and_said(folder, capsys):
    files, problems = open_captions(folder)
    assert [file.path.name for file in files] == ["a.txt", "b.txt", "c.caption"] and [problem.kind for problem in problems] == ["list"]
    edit(folder, "remove", "--tags", "lips")
    assert "metadata.jsonl has captions of its own, which are not edited here" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (("CAT", "remov"), "There is no edit 'remov'; choose one of add, remove"), (("CAT", "remove"), "edit: the following arguments are required: --tags"),
    (("CAT", "rename", "--names", "cat"), "--names cat: write OLD=NEW"), (("CAT", "add", "--tags", "a", "--where", "middle"), "where"),
    (("CAT", "truncate", "--limit", "x"), "--limit: invalid int value"), (("CAT", "regex", "--pattern", "(", "--text", "a"), "("),
    (("CAT", "above", "--least", "0.3"), "there are no scores of a tagger"), (("CAT", "sort", "--by", "confidence"), "there are no scores of a tagger"),
    (("CAT/none", "remove", "--tags", "a"), "is no folder"), (("CAT/none", "undo"), "is no folder"), (("EMPTY", "remove", "--tags", "a"), "holds no picture"),
    (("CAT", "undo", "--tags", "a"), "unrecognized arguments"), (("CAT",), "required: NAME"),
])  # fmt: skip
def test_what_is_wrong_is_one_sentence(folder, tmp_path, capsys, words, said):
    (tmp_path / "empty").mkdir()
    before = captions(folder)
    assert edit(*(word.replace("CAT", str(folder)).replace("EMPTY", str(tmp_path / "empty")) for word in words)) == 2
    sentence = capsys.readouterr().err
    assert said in sentence and sentence.count("\n") == 1 and captions(folder) == before


def test_help_lists_every_edit(capsys):
    from lib_tuner.data.edits import OPERATIONS

    for words in (("--help",), ("x", "add", "--help")):
        with pytest.raises(SystemExit) as ended:
            edit(*words)
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert all(f"  {name}" in said for name in OPERATIONS) if words == ("--help",) else "--where" in said


def test_without_its_packages_only_help_is_given(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lib_tuner.edit", None)
    assert edit("--help") == 0 and "edit FOLDER" in capsys.readouterr().out
    with pytest.raises(ModuleNotFoundError):
        edit(folder, "remove", "--tags", "lips", "--apply")


def test_scores_that_tagging_kept_are_read(folder, capsys, monkeypatch):
    assert edit(folder, "above", "--least", "0.5") == 2 and "there are no scores of a tagger; tag the pictures first." in capsys.readouterr().err
    assert not (folder / ".tuner").exists()
    digest = sources.digest((folder / "a.png").read_bytes())
    tags = TagList.of(["lips", "red", "cat"])
    with ScoreStore(folder) as store:
        store.add("one 1", tags, {digest: rows_of(torch.tensor([[0.25, 0.75, 0.01]]), tags)[0]})
        store.remember({path: (stamp_of(path.stat()), sources.digest(path.read_bytes())) for path in folder.rglob("*.png")})
    monkeypatch.chdir(folder.parent)  # relative paths name the same pictures
    assert edit(folder.name, "sort", "--by", "confidence", "--apply") == 0 and captions(folder)["a.txt"].split() == [b"red,lips", b",", b"cat"]
    assert edit(folder.name, "above", "--least", "0.5", "--apply") == 0 and captions(folder)["a.txt"] == b"red\r\n"
    assert captions(folder)["c.caption"] == b""  # the same picture: both tags are below, cat by what is not even kept
