"""An open data folder: its rows, its index, and what is done to it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lib_tuner.data import library as library_
from lib_tuner.data.caption_audit import audit_names
from lib_tuner.data.edits import Edit
from lib_tuner.data.journal import Journal, Partly, Stale
from lib_tuner.data.library import Library, listing

CAPTIONS = {"a1.png": "cat, lips", "a2.png": "cat, long_hair", "a10.png": None, "sub/b.jpg": "dog, lips, Lips"}


@pytest.fixture
def folder(tmp_path):
    for name, caption in CAPTIONS.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return tmp_path / "set"


@pytest.fixture
def library(folder):
    with Library.open(folder) as opened:
        yield opened


def counted(library: Library) -> dict[str, int]:
    """What the index is to say, counted anew from the disk."""
    return dict(Counter(tag for path in library.pictures.values() if path.with_suffix(".txt").is_file()
                        for tag in {part.strip() for part in path.with_suffix(".txt").read_text(encoding="utf-8").split(",")} - {""}))  # fmt: skip


def test_rows_are_in_natural_order(library):
    assert [library.place(row) for row in library.pictures] == ["a1.png", "a2.png", "a10.png", "sub/b.jpg"]
    assert [library.name(row) for row in library.find("lips")] == ["a1.png", "b.jpg"]


def test_an_edit_of_what_is_filtered_changes_nothing_else(library, folder):
    planned = library.plan(Edit("remove", {"tags": ["lips"]}), library.find("cat"))
    assert str(planned) == "1 of 2 change"
    library.apply(planned)
    assert (folder / "a1.txt").read_text() == "cat" and (folder / "sub/b.txt").read_text() == "dog, lips, Lips"
    assert [library.name(row) for row in library.find("lips")] == ["b.jpg"]


def test_undo_and_redo_reach_the_index(library, folder):
    library.apply(library.plan(Edit("remove", {"tags": ["lips"]})))
    assert library.find("lips") == [] and library.index.counts() == counted(library)
    assert library.undo().name == "remove" and len(library.find("lips")) == 2 and library.index.counts() == counted(library)
    assert library.redo().name == "remove" and library.find("lips") == []
    assert library.redo() is None
    library.undo()
    assert library.undo() is None


def test_the_index_is_as_if_built_anew_after_any_edits(library, folder):
    chance = random.Random(5)
    choices = [
        lambda: Edit("add", {"tags": [f"t{chance.randrange(4)}"], "where": chance.choice(["first", "last"])}),
        lambda: Edit("remove", {"tags": [f"t{chance.randrange(4)}", "cat"]}),
        lambda: Edit("rename", {"names": {f"t{chance.randrange(4)}": f"t{chance.randrange(4)}"}}),
        lambda: Edit("write", {"text": chance.choice(["", "cat, lips", "x"])}),
        lambda: Edit("deduplicate"),
    ]
    changed = 0
    for _ in range(80):
        if chance.random() < 0.3:
            changed += bool(chance.choice([library.undo, library.redo])())
        else:
            changed += bool(library.apply(library.plan(chance.choice(choices)(), chance.sample(sorted(library.pictures), chance.randint(1, 4)))))
        assert library.index.counts() == counted(library)
        assert library.index.tagged() == {row for row in library.pictures if library.tags(row)}
    assert changed > 30


def test_what_another_program_does_is_seen_when_read_anew_and_rows_stay(library, folder):
    rows = {library.place(row): row for row in library.pictures}
    (folder / "a0.png").touch()
    (folder / "a0.txt").write_text("new")
    (folder / "a2.png").unlink()
    (folder / "a1.txt").write_text("cat, changed")
    with pytest.raises(Stale, match="a1.txt changed on the disk"):
        library.apply(library.plan(Edit("remove", {"tags": ["lips"]})))
    assert (folder / "a1.txt").read_text() == "cat, changed" and (folder / "sub/b.txt").read_text() == CAPTIONS["sub/b.jpg"]
    library.read()
    assert [library.place(row) for row in library.pictures] == ["a0.png", "a1.png", "a10.png", "sub/b.jpg"]
    assert all(rows[library.place(row)] == row for row in library.pictures if library.place(row) in rows)
    assert not {library.pictures and row for row in library.find("new")} & set(rows.values())
    assert library.index.counts() == counted(library)
    with pytest.raises(ValueError, match="not in the folder any more"):
        library.picture(rows["a2.png"])


def test_what_is_deleted_lies_in_the_trash_and_comes_back(library, folder):
    library.delete(library.find("name:a1.png"))
    assert not (folder / "a1.png").exists() and not (folder / "a1.txt").exists()
    assert [library.name(row) for row in library.find("lips")] == ["b.jpg"]
    assert library.undo().name == "delete"
    assert (folder / "a1.txt").read_text() == "cat, lips" and len(library.find("lips")) == 2
    library.delete(list(library.pictures))
    assert library.find("") == [] and library.index.counts() == {}
    library.undo()
    assert len(library.find("")) == 4 and library.index.counts() == counted(library)


def test_a_caption_of_two_pictures_is_one_caption(folder):
    (folder / "a1.jpg").touch()
    with Library.open(folder) as library:
        assert [str(problem) for problem in library.problems if problem.kind == "clash"] == ["a1.png shares its caption file with a1.jpg; rename one of them."]
        assert len(library.find("cat, lips")) == 2
        library.apply(library.plan(Edit("remove", {"tags": ["lips"]}), library.find("name:a1.png")))
        assert library.find("cat, lips") == [] and library.index.counts() == {"cat": 3, "long_hair": 1, "dog": 1, "lips": 1, "Lips": 1}
        library.delete(library.find("name:a1.png"))
        assert (folder / "a1.txt").exists()  # the other picture has it still
        library.delete(library.find("name:a1.jpg"))
        assert not (folder / "a1.txt").exists()


def test_with_a_picture_go_its_captions_of_all_endings_and_its_masks(library, folder):
    files = [folder / name for name in ("a1.caption", "a1.mask.png", "masks/a1.png", "a1-masklabel.png")]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (folder / "a10.mask.png").touch()
    library.read()
    row = library.find("name:a1.png")
    library.delete(row)
    assert not any(path.exists() for path in files) and (folder / "a10.mask.png").exists()
    (folder / "a1.png").touch()  # another one, which has neither words nor mask
    library.read()
    assert library.text(library.find("name:a1.png")[0]) == ""
    library.delete(library.find("name:a10.png"))
    assert library.undo().told == "" and library.redo().told == "" and library.undo().told == ""
    (folder / "a1.png").rename(folder / "other.png")
    assert library.undo().told == "" and all(path.exists() for path in files) and (folder / "a1.txt").read_text() == "cat, lips"


def test_a_mask_in_other_capitals_goes_with_its_picture(library, folder):
    (folder / "Masks").mkdir()
    (mask := folder / "Masks" / "A1.PNG").write_bytes(b"x")
    library.delete(library.find("name:a1.png"))
    assert not mask.exists() and library.undo().told == "" and mask.exists()


def test_no_words_and_no_mask_come_back_to_another_picture(library, folder):
    (folder / "a1.mask.png").write_bytes(b"x")
    library.delete([*library.find("name:a1.png"), *library.find("name:a2.png")])
    (folder / "a1.png").touch()
    with pytest.raises(Partly):
        library.undo(partly=False)
    assert library.undo().told.startswith("Changed since, so left as they are now: a1.png, a1.mask.png, a1.txt; files taken back: 2. What was deleted lies in ")
    assert (folder / "a2.txt").exists() and not (folder / "a1.txt").exists() and not (folder / "a1.mask.png").exists() and len(list(folder.rglob("trash/*/a1.*"))) == 3


@pytest.mark.parametrize("link", ["a0", "z"])
def test_what_two_pictures_have_stays_with_the_one_that_is_left(folder, link):
    for name in ("a1.jpg", "a1.mask.png", f"{link}.png"):
        (folder / name).touch()
    (folder / f"{link}.txt").symlink_to(folder / "a2.txt")
    with Library.open(folder) as library:
        library.delete([library.find(f"name:{name}")[0] for name in ("a1.png", "a2.png")])
        assert (folder / "a1.txt").exists() and (folder / "a1.mask.png").exists() and (folder / f"{link}.txt").read_text() == "cat, long_hair"
        library.undo()
        library.delete(library.find(f"name:{link}.png"))
        assert not (folder / f"{link}.txt").is_symlink() and (folder / "a2.txt").exists()
        library.undo()
        assert (folder / f"{link}.txt").is_symlink() and (folder / f"{link}.txt").read_text() == "cat, long_hair"


@pytest.mark.parametrize("link", ["a0", "z"])
def test_two_captions_that_are_one_file_are_one_caption(folder, link):
    (folder / f"{link}.png").touch()
    (folder / f"{link}.txt").symlink_to("a1.txt")
    with Library.open(folder) as library:
        assert [problem.kind for problem in library.problems] == ["clash"]
        planned = library.plan(Edit("add", {"tags": ["x"]}), library.find("cat, lips"))
        assert len(library.find("cat, lips")) == 2 and str(planned) == "1 of 1 change"
        library.apply(planned)
        assert (folder / "a1.txt").read_text() == "cat, lips, x" and (folder / f"{link}.txt").is_symlink() and len(library.find("x")) == 2
        library.undo()
        assert library.find("x") == [] and (folder / "a1.txt").read_text() == "cat, lips"


def test_on_a_disk_that_knows_no_capitals_captions_of_one_name_are_one(folder, monkeypatch):
    for name in ("Cat.png", "cat.jpg"):
        (folder / name).touch()
    assert len(set(listing(folder).captions.values())) == 6
    monkeypatch.setattr(library_, "_is_one", lambda caption, other, picture: True)
    found = listing(folder)
    assert len(set(found.captions.values())) == 5 and [problem.kind for problem in found.problems] == ["clash"]


def test_captions_that_are_two_files_are_two_however_alike_their_names_are(folder):
    """To fold capitals makes more names the same than a disk does."""
    for name in ("straße", "strasse"):
        (folder / f"{name}.png").touch()
        (folder / f"{name}.txt").write_text(name)
    found = listing(folder).captions
    assert {path.stem: file.name for path, file in found.items() if "str" in path.name} == {"straße": "straße.txt", "strasse": "strasse.txt"}


def test_a_picture_whose_name_just_fits_the_disk_hides_no_folder(folder):
    (folder / f"{'a' * 250}.png").touch()
    with Library.open(folder) as library:
        assert len(library.pictures) > 1


def test_a_caption_in_other_capitals_is_the_one_that_is_edited(folder):
    (folder / "a10.TXT").write_text("dog")
    with Library.open(folder) as library:
        library.apply(library.plan(Edit("add", {"tags": ["x"]}), library.find("name:a10.png")))
        assert (folder / "a10.TXT").read_text() == "dog, x" and not (folder / "a10.txt").exists()
    assert not list(audit_names(library.pictures.values()))


def test_scores_of_the_tagger_reach_edits(library):
    library.scores = lambda picture, tags=(): {"cat": 0.9, "lips": 0.2} if picture.name == "a1.png" else {}
    library.apply(library.plan(Edit("above", {"least": 0.5}), library.find("name:a1.png")))
    assert library.text(library.find("name:a1.png")[0]) == "cat"


def test_a_folder_that_another_program_holds_can_be_looked_at(folder):
    with Journal(folder), Library.open(folder) as library:
        assert len(library.find("lips")) == 2
        with pytest.raises(ValueError, match="^Nothing can be edited here: .* is being edited by another program"):
            library.apply(library.plan(Edit("remove", {"tags": ["lips"]})))
    with Library.open(folder) as library:  # it is free again
        assert library.apply(library.plan(Edit("remove", {"tags": ["lips"]})))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0 and not os.path.exists("/usr/bin/setpriv"), reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_can_be_looked_at(folder):
    code = f"""
from lib_tuner.data.library import Library
with Library.open({str(folder)!r}) as library:
    print(len(library.find("lips")), library.reason)
"""
    folder.chmod(0o555)
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        for path in (folder, *folder.parents):
            if path != Path("/tmp") and path.owner() == "root" and "pytest" in str(path):
                path.chmod(path.stat().st_mode | 0o555)
        command = ["/usr/bin/setpriv", "--reuid=65534", "--clear-groups", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    finally:
        folder.chmod(0o755)
    if "Permission denied" in done.stderr and "lib_tuner" not in done.stderr:
        pytest.skip("nobody may not start this Python")
    assert done.stdout.startswith("2 ") and "cannot be written" in done.stdout, done.stderr


def test_no_journal_is_made_in_a_folder_without_pictures(tmp_path):
    with pytest.raises(ValueError, match="holds no picture"):
        Library.open(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        Library.open(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_home_is_read_as_any_other(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    (folder / "a10.txt").symlink_to("a2.txt")
    found = listing("~/set")
    assert len(found.captions) == 4 and [problem.kind for problem in found.problems] == ["clash"]  # the link leads to a file in the folder


def test_it_loads_no_torch(folder):
    code = f"import sys; from lib_tuner.data.library import Library; Library.open({str(folder)!r}).close(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True).stdout == "False\n"
