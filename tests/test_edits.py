"""Edits by name over many captions: planned, applied, taken back. Numbers of bugs are those of the study of other programs (`dataset.md`, 4.4)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib_tuner.data import tag_edits
from lib_tuner.data.captions import read
from lib_tuner.data.edits import OPERATIONS, Context, Edit, apply, plan
from lib_tuner.data.journal import Journal
from lib_tuner.data.journal_file import Change


def folder_of(tmp_path: Path, **captions: str) -> Path:
    for name, text in captions.items():
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    return tmp_path


def planned(folder: Path, name: str, context: Context = Context(), **args):
    return plan(read(sorted(folder.glob("*.txt")))[0], Edit(name, args), context)


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_bytes().decode() for path in sorted(folder.glob("*.txt"))}


@pytest.mark.parametrize(("name", "args", "before", "after"), [
    ("add", {"tags": "sks", "where": "first"}, "a cat sits on a mat.", "sks, a cat sits on a mat."), ("remove", {"tags": ["b"]}, "a,b , c\r\n", "a , c\r\n"),
    ("sort", {"by": "alphabet"}, "b,a\nA cat, sitting on a mat.\n", "a,b\nA cat, sitting on a mat.\n"), ("spaces", {}, "a_b, ^_^", "a b, ^_^"),
    ("regex_line", {"pattern": r"\s*,\s*", "text": ", "}, "a,b ,c", "a, b, c"), ("regex_line", {"pattern": "b", "text": ""}, "a, b, c", "a, c"),
    ("regex_line", {"pattern": "on a", "text": "on the"}, "A cat sits on a mat, asleep.", "A cat sits on the mat, asleep."),
    ("regex_line", {"pattern": ".*", "text": ""}, "a, b", ""), ("write", {"text": "x\ny"}, "a\r\nb\r\n", "x\r\ny\r\n"),
    ("tidy", {}, " a ,, b  c,\n", "a, b c\n"),
    ("utf8", {}, "\ufeffa, b", "a, b"), ("add", {"tags": ["{folder}"], "where": "first"}, "b", "red cat, b"), ("add", {"tags": "{name}"}, "b", "b, f"),
    ("add", {"tags": "x"}, "", "x"), ("rename", {"names": {"a": "c"}}, "a;,b,a", "a;,b,c"), ("truncate", {"limit": 2}, "a, b, c", "a, b"),
    ("above", {"least": 0.5}, "a, b", "b"), ("paste", {"tags": "q, b"}, "b", "b, q"), ("choose", {"tag": "b", "group": "a, b"}, "a,c", "b,c"),
])  # fmt: skip
def test_before_and_after(tmp_path, name, args, before, after):
    folder = tmp_path / "10_red cat"
    folder.mkdir()
    folder_of(folder, f=before)
    context = Context(tokens=lambda text: len(text.split()), scores=lambda path: {"a": 0.1, "b": 0.9})
    changes = planned(folder, name, context, **args).changes
    assert [(change.before, change.after) for change in changes] == [(before.encode(), after.encode())]


def test_a_plan_says_what_it_changes_and_writes_nothing(tmp_path):
    folder = folder_of(tmp_path, a="lips", b="a, lips", c="a", d="")
    seen = planned(folder, "remove", tags="Lips")
    assert str(seen) == "2 of 4 change, 1 of them lose all their words" and texts(folder)["a"] == "lips"
    assert seen.samples() == [(folder / "a.txt", "lips", ""), (folder / "b.txt", "a, lips", "a")]
    assert str(planned(folder, "remove", tags="q")) == "0 of 4 change"


@pytest.mark.parametrize(("value", "said"), [
    ({"name": "explode"}, "There is no edit 'explode'; choose one of add,"), ({"name": "remove"}, "remove: tags must be given"),
    ({"name": "remove", "args": {"tag": "a"}}, "remove: there is no argument 'tag'; it takes tags"), ({"name": "spaces", "args": {"x": 1}}, "it takes none"),
    ({"name": "remove", "args": {"tags": 3}}, "tags is to be tags: a list"), ({"name": "truncate", "args": {"limit": "3"}}, "limit is to be a whole number"),
    ({"name": "truncate", "args": {"limit": True}}, "limit is to be a whole number"),
    ({"name": "rename", "args": {"names": {"a": 1}}}, "an object of old and new"),
    ({"name": "sort", "args": {"by": "alphabet", "reverse": 1}}, "reverse is to be true or false"), ([], "An edit is"), ({"name": 3}, "An edit is"),
    ({"name": "tidy", "args": {}, "more": 1}, "An edit is"), ({"name": "truncate", "args": {"limit": 1.5}}, "whole number"),
    ({"name": "sort", "args": {"by": "alphabet", "counts": {}}}, "no argument 'counts'"), ({"name": "above", "args": {"least": float("nan")}}, "a number"),
])  # fmt: skip
def test_what_is_no_edit_is_one_sentence(value, said):
    with pytest.raises(ValueError, match=said) as error:
        Edit.from_json(value)
    assert "\n" not in str(error.value)


def test_every_operation_can_be_sent_as_json():
    for name, operation in OPERATIONS.items():
        some = {"tags": ["a"], "names": {"a": "b"}, "tag": "a", "group": ["b"], "find": "a", "text": "b", "pattern": "a"}
        some |= {"by": "alphabet", "limit": 3, "least": 0.5}
        args = {key: value for key, value in some.items() if key in operation.arguments()}
        edit = Edit.from_json(json.loads(json.dumps({"name": name, "args": args})))
        assert plan([], edit, Context(tokens=len, scores=lambda path: {})).changes == () and edit.args == args
    with pytest.raises(ValueError, match="there is no tokenizer"):
        plan([], Edit("truncate", {"limit": 3}))
    with pytest.raises(ValueError, match="no scores of a tagger"):
        plan([], Edit("above", {"least": 0.5}))
    with pytest.raises(ValueError, match="no regular expression"):
        plan([], Edit("regex", {"pattern": "(", "text": ""}))


@pytest.mark.parametrize("edit", ["regex", "regex_line"])
def test_a_regular_expression_that_would_never_end_is_stopped(tmp_path, edit, monkeypatch):
    monkeypatch.setattr(tag_edits.Expression.__init__, "__defaults__", (0.2,))
    folder_of(tmp_path, a="a" * 80 + "!")
    with pytest.raises(ValueError, match=r"regex: '\(a\|aa\)\+\$' takes too long"):
        planned(tmp_path, edit, pattern="(a|aa)+$", text="b")


def test_an_edit_is_applied_undone_and_done_again_also_by_a_later_program(tmp_path):
    folder = folder_of(tmp_path, a="a,lips", b="\ufefflips, b\r\n", c="c")
    before = texts(folder)
    with Journal(folder) as journal:
        entry = apply(planned(folder, "remove", tags="lips"), journal)
        assert entry.state == "applied" and entry.files == 2 and texts(folder) == {"a": "a", "b": "\ufeffb\r\n", "c": "c"}
    with Journal(folder) as journal:
        assert journal.undo().name == "remove" and texts(folder) == before and journal.undo() is None
    with Journal(folder) as journal:
        assert [entry.state for entry in journal.entries()] == ["undone"]
        journal.redo()
        assert texts(folder)["a"] == "a" and journal.redo() is None
        journal.undo()
        apply(planned(folder, "add", tags="x"), journal)  # what was undone before a new edit is gone
        assert journal.redo() is None and [entry.name for entry in journal.entries()] == ["add"]
    rows = [json.loads(line) for line in journal.entries()[0].path.read_text().splitlines()]
    assert rows[0]["edit"] == "add" and rows[1] == {"path": "a.txt", "before": "a,lips", "after": "a,lips,x"}


def test_bug_7_only_what_changes_is_written_and_no_caption_is_made_up(tmp_path):
    folder = folder_of(tmp_path, a="a, b", b="b")
    stamp = (folder / "b.txt").stat().st_mtime_ns
    files, _ = read([folder / "a.txt", folder / "b.txt", folder / "none.txt"])
    with Journal(folder) as journal:
        apply(plan(files, Edit("remove", {"tags": ["a"]})), journal)
    assert (folder / "b.txt").stat().st_mtime_ns == stamp and sorted(p.name for p in folder.iterdir()) == [".tuner", "a.txt", "b.txt"]


def test_bug_13_a_picture_without_a_caption_gets_one_and_undo_removes_it(tmp_path):
    path = tmp_path / "none.txt"
    with Journal(tmp_path) as journal:
        apply(plan(read([path])[0], Edit("add", {"tags": ["x"]})), journal)
        assert path.read_bytes() == b"x"
        journal.undo()
        assert not path.exists()
        journal.redo()
        assert path.read_bytes() == b"x"


def test_bug_9_a_caption_of_two_pictures_is_changed_once_and_said(tmp_path):
    folder = folder_of(tmp_path, a="a")
    seen = plan(read([folder / "a.txt", folder / "a.txt"])[0], Edit("add", {"tags": ["x"]}))
    assert len(seen.changes) == 1 and seen.total == 1 and [p.kind for p in seen.problems] == ["clash"]


def test_a_caption_that_cannot_hold_the_new_letters_stays(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    seen = planned(tmp_path, "add", tags="猫")
    assert not seen.changes and [str(p) for p in seen.problems] == ["a.txt cannot hold '猫' in its encoding Windows-1252; save it as UTF-8 first."]
    assert planned(tmp_path, "utf8", encoding="cp1252").changes == (Change(tmp_path / "a.txt", b"caf\xe9", "café".encode()),)


JAPANESE = "cat, あ_あ, アダ, long_hair, ア, ヂ, AB, いあ,\u3000あ (ソ), x  y, cat".encode("shift_jis")  # in it are halves of letters that look like A, _, \\ and a blank


@pytest.mark.parametrize(("name", "args", "after"), [
    ("spaces", {}, [(b"long_hair", b"long hair")]), ("underscores", {}, [(b"x  y", b"x_y")]), ("lower", {}, [(b"AB", b"ab")]), ("escape", {}, []), ("unescape", {}, []),
    ("deduplicate", {}, [(b", cat", b"")]), ("tidy", {}, [(b",\x81", b", \x81"), (b"x  y", b"x y")]), ("replace", {"find": "x", "text": "z"}, [(b"x", b"z")]),
])  # fmt: skip
def test_letters_of_an_unknown_encoding_stay_whole(tmp_path, name, args, after):
    (tmp_path / "a.txt").write_bytes(JAPANESE)
    wanted = JAPANESE
    for old, new in after:
        at = wanted.rindex(old)
        wanted = wanted[:at] + new + wanted[at + len(old) :]
    assert [change.after for change in planned(tmp_path, name, **args).changes] == ([wanted] if after else [])


def test_a_blank_of_an_unknown_encoding_may_be_half_a_letter(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"cat, x\xb0\xa0")  # \xb0\xa0 is one letter of GBK
    assert planned(tmp_path, "replace", find="x", text="z").changes[0].after == b"cat, z\xb0\xa0"
    assert planned(tmp_path, "tidy").changes == () and planned(tmp_path, "lower").changes == ()


def test_an_unknown_encoding_is_converted_only_where_it_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(JAPANESE)
    (tmp_path / "b.txt").write_bytes("caf\u00e9".encode("utf-16"))
    seen = planned(tmp_path, "utf8")
    assert [change.path.name for change in seen.changes] == ["b.txt"] and "name it, such as cp1252 or shift_jis" in str(seen.problems[0])
    assert planned(tmp_path, "utf8", encoding="shift_jis").changes[0].after == JAPANESE.decode("shift_jis").encode()
    assert "cannot be read in the encoding ascii" in str(planned(tmp_path, "utf8", encoding="ascii").problems[0])
    with pytest.raises(ValueError, match="utf8: 'klingon' is no encoding"):
        planned(tmp_path, "utf8", encoding="klingon")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_does_not_get_letters_of_another_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("cat, dog".encode(encoding))
    assert "NUL characters" in str(read([tmp_path / "a.txt"])[1][0])
    for name, args in (("add", {"tags": "x"}), ("remove", {"tags": "dog"}), ("utf8", {}), ("tidy", {}), ("utf8", {"encoding": "cp1252"})):
        seen = planned(tmp_path, name, **args)
        assert not seen.changes and len(seen.problems) <= 1, name
    assert str(planned(tmp_path, "add", tags="x").problems[0]) == "a.txt holds NUL characters, as UTF-16 without a byte order mark does; it is left alone; save it as UTF-8."
    assert planned(tmp_path, "utf8", encoding=encoding).changes[0].after == b"cat, dog"


def test_bug_23_the_same_text_for_all_comes_back(tmp_path):
    folder = folder_of(tmp_path, a="a, b", b="c\n\nd", c="")
    before = texts(folder)
    with Journal(folder) as journal:
        apply(planned(folder, "write", text="oops"), journal)
        assert texts(folder) == {"a": "oops", "b": "oops", "c": "oops"}
        journal.undo()
    assert texts(folder) == before


def test_the_core_loads_neither_torch_nor_numpy():
    code = "import sys, lib_tuner.data.edits; print([m for m in ('torch', 'numpy', 'gradio', 'fastapi', 'safetensors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
