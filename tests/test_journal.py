"""The journal against programs that die, disks that are full, and other editors. Numbers of bugs are those of `dataset.md`, 4.4."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import until
from dying import AFTER, BEFORE, Faulty, Program, act, changes, do

from lib_tuner.data import aside, folder_lock
from lib_tuner.data.journal import Journal, Limits, Partly
from lib_tuner.data.journal_file import Change
from lib_tuner.disk import take_lock

@pytest.fixture(scope="module")
def program():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    made = Program()
    yield made
    made.end()


def start(folder: Path) -> None:
    folder.mkdir()
    for name, data in BEFORE.items():
        (folder / name).write_bytes(data)
    (folder / "a.txt").chmod(0o640)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def clean(folder: Path) -> bool:
    return not [name for _, _, names in os.walk(folder) for name in names if name.endswith(".part")]


def prepared(folder: Path, what: str) -> tuple[dict, dict]:
    """A folder before an action; its content before and after it."""
    start(folder)
    if what in ("undo", "redo"):
        act(folder, "apply", os)
    if what == "redo":
        act(folder, "undo", os)
    return (AFTER, BEFORE) if what == "undo" else (BEFORE, {} if what == "delete" else AFTER)


@pytest.mark.parametrize("least", [0, 200])
@pytest.mark.parametrize("what", ["apply", "undo", "redo", "delete"])
def test_bugs_6_14_a_program_that_dies_between_any_two_calls_loses_nothing(tmp_path, what, least, monkeypatch, program):
    monkeypatch.setattr(aside, "LEAST", least)  # edits of many files keep second names of what they replace
    counted = Faulty()
    prepared(tmp_path / "count", what)
    act(tmp_path / "count", what, counted)
    assert counted.count > 8
    for at in range(counted.count):
        folder = tmp_path / str(at)
        before, after = prepared(folder, what)
        assert program.act(folder, what, at=at) == 9, at
        for name in before.keys() | after.keys():
            path = folder / name
            now = path.read_bytes() if path.exists() else None
            assert now in (before.get(name), after.get(name)), (at, counted.names[at], name)
        with Journal(folder) as journal:  # the next program
            assert content(folder) in (before, after) and clean(folder), (at, counted.names[at])
            assert all(entry.state in ("applied", "undone") for entry in journal.entries())
            while journal.undo():
                assert clean(folder)
            assert content(folder) == BEFORE
            if "a.txt" in content(folder):
                assert stat.S_IMODE((folder / "a.txt").stat().st_mode) == 0o640


def test_a_program_that_dies_while_it_ends_what_was_interrupted_loses_nothing(tmp_path, program):
    for at in range(4, 40, 3):
        folder = tmp_path / str(at)
        start(folder)
        program.act(folder, "apply", at=18)
        died = program.act(folder, "entries", at=at)
        with Journal(folder) as journal:
            assert content(folder) == AFTER and clean(folder) and len(journal.interrupted) == (1 if died == 9 else 0)
            journal.undo()
        assert content(folder) == BEFORE


@pytest.mark.parametrize(("what", "error"), [("apply", errno.ENOSPC), ("undo", errno.EROFS), ("redo", errno.EACCES), ("delete", errno.ENOSPC)])
def test_a_call_that_fails_leaves_all_as_it_was_and_is_one_sentence(tmp_path, what, error):
    counted, only = Faulty(only=("open", "write", "replace", "rename")), ("open", "write", "replace", "rename")
    prepared(tmp_path / "count", what)
    with Journal(tmp_path / "count") as journal:
        journal._system = counted
        do(journal, tmp_path / "count", what)
    for at in range(counted.count):
        folder = tmp_path / f"{at}"
        before, after = prepared(folder, what)
        with Journal(folder) as journal:
            states = [entry.state for entry in journal.entries()]
            journal._system = Faulty(at, error, only)
            try:
                do(journal, folder, what)
            except OSError as said:
                assert str(said).endswith(".") and "\n" not in str(said) and os.strerror(error) in str(said)
            assert content(folder) in (before, after) and clean(folder), at
            if content(folder) == before and before != after:
                assert [entry.state for entry in journal.entries()] == states, at


def test_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    folder = tmp_path / "d"
    start(folder)
    with Journal(folder) as journal:
        journal._system = Faulty(2, errno.ENOSPC, ("write",))
        with pytest.raises(OSError, match=r"b.txt cannot be written \(No space left on device\), so nothing was changed; make room on the disk\."):
            journal.commit("x", {}, changes(folder))
        assert content(folder) == BEFORE and clean(folder) and journal.entries() == []
        journal._system = Faulty(2, errno.ENOSPC, ("write",), lasting=True)  # nor can it be put back
        with pytest.raises(OSError, match="cannot be put back yet .*; make room on the disk, then open .* again"):
            journal.commit("x", {}, changes(folder))
    with Journal(folder) as journal:
        assert content(folder) == BEFORE and clean(folder) and journal.entries() == [] and "taken back" in str(journal.interrupted[0])
        journal.commit("x", {}, changes(folder))
        assert content(folder) == AFTER


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(OSError, match=r"\.tuner cannot be written \(Read-only file system\), so nothing could be undone; check that"):
        Journal(tmp_path, system=Faulty(0, errno.EROFS))
    with pytest.raises(ValueError, match="is no folder"):
        Journal(tmp_path / "none")
    with Journal(tmp_path) as journal, pytest.raises(OSError, match=r"File name too long.*give it a shorter name\."):
        journal.commit("x", {}, [Change(tmp_path / ("n" * 300), None, b"x")])


def test_a_file_that_another_program_changed_stops_all_by_name(tmp_path):
    folder = tmp_path / "d"
    start(folder)
    stamp = (folder / "b.txt").stat()
    with Journal(folder) as journal:
        for name, data in {"b.txt": b"caf\xe9, eyes", "new.txt": b"somebody's", "gone.png": None, "a.txt": b""}.items():
            old = (folder / name).read_bytes() if (folder / name).exists() else None
            (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
            if data:
                os.utime(folder / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time tell nothing
            seen = content(folder)
            with pytest.raises(ValueError, match=f"^{name} changed on the disk since .* nothing was changed"):
                journal.commit("x", {}, changes(folder))
            assert content(folder) == seen and journal.entries() == []
            (folder / name).unlink(missing_ok=True) if old is None else (folder / name).write_bytes(old)
        journal.commit("x", {}, changes(folder))
        (folder / "a.txt").write_bytes(b"typed later")


def words(folder: Path, journal: Journal) -> list[Path]:
    """Four captions that an edit gave a word each."""
    paths = [folder / f"{name}.txt" for name in "abcd"]
    for path in paths:
        path.write_bytes(b"cat")
    journal.commit("older", {}, [Change(path, b"cat", b"cat, hat") for path in paths])
    journal.commit("add", {}, [Change(path, b"cat, hat", b"cat, hat, x") for path in paths])
    return paths


def test_an_undo_leaves_what_was_changed_since_and_takes_back_the_rest(tmp_path):
    with Journal(tmp_path) as journal:
        a, b, c, d = words(tmp_path, journal)
        b.write_bytes(b"typed later")
        c.unlink()
        with pytest.raises(Partly, match=r"^Changed since, so left as they are now: b.txt, c.txt\. Take back the rest \(files: 2\)\?$"):
            journal.undo(partly=False)
        assert a.read_bytes() == b"cat, hat, x" and journal.entries()[-1].files == 4
        assert journal.undo().told == "Changed since, so left as they are now: b.txt, c.txt; files taken back: 2."
        assert a.read_bytes() == d.read_bytes() == b"cat, hat" and b.read_bytes() == b"typed later" and not c.exists()
        assert '"before": "cat, hat"' in journal.entries()[-1].path.read_text().splitlines()[2]  # a person finds there what b was
    b.write_bytes(b"cat, hat")  # as before the edit; yet it is out of it
    with Journal(tmp_path) as journal:
        d.write_bytes(b"typed later")
        assert journal.redo().told == "Changed since, so left as they are now: d.txt; files done again: 1."
        assert [path.read_bytes() for path in (a, b, d)] == [b"cat, hat, x", b"cat, hat", b"typed later"] and not c.exists()
        assert journal.undo().told == "" and a.read_bytes() == b"cat, hat"
        assert journal.undo().told == "Changed since, so left as they are now: c.txt, d.txt; files taken back: 2." and a.read_bytes() == b"cat"


def test_an_edit_all_of_whose_files_were_changed_since_stands_before_no_other(tmp_path):
    with Journal(tmp_path) as journal:
        paths = words(tmp_path, journal)
        for path in paths:
            path.write_bytes(b"cat, hat, y")
        seen = journal.undo(partly=False)
        assert seen.state == "overtaken" and seen.told.startswith("All files of this edit were changed since (a.txt, b.txt, c.txt and 1 more), so they stay")
        for path in paths[1:]:
            path.write_bytes(b"cat, hat")
        assert journal.redo() is None and journal.undo().told.startswith("Changed since, so left as they are now: a.txt; files taken back: 3.")
        assert [path.read_bytes() for path in paths] == [b"cat, hat, y", b"cat", b"cat", b"cat"]
        assert [entry.state for entry in journal.entries()] == ["undone", "overtaken"]


@pytest.mark.parametrize("failure", [0, errno.ENOSPC])
def test_an_undo_of_a_part_may_die_or_fail_anywhere(tmp_path, failure, program):
    at, code = 0, 9
    while code:
        folder = tmp_path / str(at)
        folder.mkdir()
        with Journal(folder) as journal:
            paths = words(folder, journal)
        paths[1].write_bytes(b"typed later")
        code = program.act(folder, "undo", at=at, error=failure)
        with Journal(folder) as journal:
            assert paths[1].read_bytes() == b"typed later" and {path.read_bytes() for path in (paths[0], *paths[2:])} in ({b"cat, hat"}, {b"cat, hat, x"}), at
            assert clean(folder) and [entry.state for entry in journal.entries()] in (["applied", "applied"], ["applied", "undone"]), at
            while journal.undo():
                pass
            assert [path.read_bytes() for path in paths] == [b"cat", b"typed later", b"cat", b"cat"], at
        at += 1
    assert at > 12


def test_an_editor_that_saves_while_files_are_replaced_keeps_its_words(tmp_path):
    folder = tmp_path / "d"
    start(folder)

    class Saving(Faulty):
        def __getattr__(self, name):
            if name == "replace" and (folder / "a.txt").read_bytes() == b"a" and (folder / "c.txt").read_bytes() == b"":
                (folder / "c.txt").write_bytes(b"typed meanwhile")
            return super().__getattr__(name)

    with Journal(folder, system=Saving()) as journal:
        with pytest.raises(ValueError, match="c.txt cannot be written .another program changed it., so nothing was changed"):
            journal.commit("x", {}, changes(folder))
        assert content(folder) == BEFORE | {"c.txt": b"typed meanwhile"} and clean(folder) and journal.entries() == []


def test_words_typed_after_an_interrupted_edit_stay_and_an_empty_file_is_filled(tmp_path, program):
    folder = tmp_path / "d"
    start(folder)
    names = Faulty()
    prepared(tmp_path / "count", "apply")
    act(tmp_path / "count", "apply", names)
    last = len(names.names) - 2  # the last caption takes its place
    assert names.names[last] == "replace" and program.act(folder, "apply", at=last) == 9
    (folder / "a.txt").write_bytes(b"typed after the crash")
    (folder / "new.txt").write_bytes(b"")  # what a loss of power may leave
    with Journal(folder) as journal:
        assert content(folder) == AFTER | {"a.txt": b"typed after the crash"}
        assert [problem.path.name for problem in journal.interrupted][1:] == ["a.txt"] and "stays as it is" in str(journal.interrupted[1])


def test_what_belongs_to_a_picture_does_not_come_back_to_a_stranger_after_a_crash(tmp_path, program):
    picture, words = tmp_path / "a.png", tmp_path / "a.txt"
    picture.write_bytes(b"mine")
    words.write_bytes(b"my words")
    with Journal(tmp_path) as journal:
        journal.delete([picture, words], {words: picture})
    assert program.act(tmp_path, "undo", at=0, only=["rename"]) == 9
    picture.write_bytes(b"a stranger")
    with Journal(tmp_path) as journal:
        assert picture.read_bytes() == b"a stranger" and not words.exists() and [problem.path.name for problem in journal.interrupted][1:] == ["a.png"]


def test_an_undo_that_fails_has_left_nothing_behind(tmp_path):
    names = ("a.txt", "b.txt")
    with Journal(tmp_path) as journal:
        for name in names:
            (tmp_path / name).write_bytes(b"x")
        journal.commit("add", {}, [Change(tmp_path / name, b"x", b"x, y") for name in names])
    (tmp_path / "a.txt").write_bytes(b"typed")
    full = Faulty(error=errno.ENOSPC, only=("open",))
    with Journal(tmp_path, system=full) as journal:
        full.count, full.at = 0, 2  # the journal has room for its mark, the caption has none
        with pytest.raises(OSError, match="b.txt cannot be written"):
            journal.undo()
        full.at = -1
        (tmp_path / "a.txt").write_bytes(b"x, y")
        assert journal.undo().told == "" and (tmp_path / "a.txt").read_bytes() == b"x"


def test_a_folder_that_was_renamed_is_not_made_again(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_bytes(b"x")
    with Journal(tmp_path / "one") as journal:
        (tmp_path / "one").rename(tmp_path / "two")
        with pytest.raises(ValueError, match="one is no folder any more; open it again where it is now"):
            journal.commit("x", {}, [Change(tmp_path / "one" / "a.txt", b"x", b"y")])
    assert not (tmp_path / "one").exists()


def test_a_trash_that_was_emptied_is_named_no_more(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with Journal(tmp_path) as journal:
        journal.delete([tmp_path / "a.png"])
        shutil.rmtree(journal.side / "trash")
        assert "trash" not in journal.undo().told


def test_a_second_program_is_told(tmp_path):
    code = f"from lib_tuner.data.journal import Journal\ntry:\n    Journal({str(tmp_path)!r})\nexcept ValueError as error:\n    print(error)"
    with Journal(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path} is being edited by another program; end it there, or wait until it is done.\n"
    journal = Journal(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="was closed"):
        journal.undo()


def test_a_side_folder_that_is_deleted_while_it_is_open_is_made_again(tmp_path):
    with Journal(tmp_path) as journal:
        journal.commit("x", {}, [Change(tmp_path / "a.txt", None, b"a")])
        shutil.rmtree(journal.side)
        assert journal.entries() == []
        journal.commit("y", {}, [Change(tmp_path / "a.txt", b"a", b"b")])
        assert [entry.name for entry in journal.entries()] == ["y"] and journal.undo() and (tmp_path / "a.txt").read_bytes() == b"a"
        with pytest.raises(ValueError, match="is being edited by another program"):
            Journal(tmp_path)
        shutil.rmtree(journal.side)
        with Journal(tmp_path), pytest.raises(ValueError, match="is being edited by another program"):  # which came in between
            journal.commit("z", {}, [Change(tmp_path / "a.txt", b"a", b"b")])
        assert journal.commit("z", {}, [Change(tmp_path / "a.txt", b"a", b"b")])


def test_a_lock_that_is_deleted_while_it_is_taken_is_none(tmp_path, monkeypatch):
    taken = []

    def take(descriptor):
        take_lock(descriptor)
        taken.append(descriptor)
        if len(taken) == 1:
            (tmp_path / "lock").unlink()

    monkeypatch.setattr(folder_lock, "take_lock", take)
    descriptor = folder_lock.locked(tmp_path, tmp_path)
    assert len(taken) == 2 and os.path.samestat(os.fstat(descriptor), os.stat(tmp_path / "lock"))
    os.close(descriptor)


@pytest.mark.parametrize(("error", "said"), [(errno.ENOLCK, "is on a disk that cannot lock files"), (errno.EAGAIN, "is being edited by another program"), (errno.EIO, "cannot be written")])
def test_only_a_lock_that_is_taken_is_another_program(tmp_path, monkeypatch, error, said):
    def take(descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(folder_lock, "take_lock", take)
    with pytest.raises((OSError, ValueError), match=said):
        Journal(tmp_path)


def test_deleted_files_lie_in_the_trash_and_come_back(tmp_path):
    folder = tmp_path / "d"
    start(folder)
    with Journal(folder) as journal:
        journal.delete([folder / "a.txt", folder / "gone.png"])
        assert sorted(content(folder)) == ["b.txt", "c.txt"] and len(list(folder.rglob("trash/*/gone.png"))) == 1
        (folder / "a.txt").write_bytes(b"another")
        seen = journal.undo()
        (kept,) = folder.rglob("trash/*/a.txt")
        assert seen.told == f"Changed since, so left as they are now: a.txt; files taken back: 1. What was deleted lies in {kept.parent}."
        assert content(folder) == BEFORE | {"a.txt": b"another"} and kept.read_bytes() == BEFORE["a.txt"]
        journal.redo()
        assert (folder / "a.txt").read_bytes() == b"another" and not (folder / "gone.png").exists()
        with pytest.raises(ValueError, match="only what is in the open folder can be deleted"):
            journal.delete([folder / ".." / "x"])


def test_a_link_stays_a_link_and_odd_names_are_kept(tmp_path):
    folder, other = tmp_path / "d", tmp_path / "other"
    start(folder)
    other.mkdir()
    (other / "real.txt").write_bytes(b"a")
    (folder / "link.txt").symlink_to(other / "real.txt")
    odd = folder / os.fsdecode("[set] 猫\n".encode() + b"\xff.txt")
    with Journal(folder, side=tmp_path / "side") as journal:
        journal.commit("x", {"tags": ["\ud800"]}, [Change(folder / "link.txt", b"a", b"b"), Change(odd, None, b"c")])
        assert (folder / "link.txt").is_symlink() and (other / "real.txt").read_bytes() == b"b" and odd.read_bytes() == b"c"
        assert not (folder / ".tuner").exists() and list(other.iterdir()) == [other / "real.txt"]
        journal.undo()
        assert (other / "real.txt").read_bytes() == b"a" and not odd.exists()


def test_a_link_that_led_nowhere_does_so_again_after_an_undo(tmp_path):
    (tmp_path / "words").mkdir()
    link, target = tmp_path / "a.txt", tmp_path / "words" / "a.txt"
    link.symlink_to(target)
    with Journal(tmp_path) as journal:
        journal.commit("x", {}, [Change(link, None, b"x")])
        assert target.read_bytes() == b"x"
        assert journal.undo().told == "" and link.is_symlink() and not target.exists()
        assert journal.redo().told == "" and link.is_symlink() and target.read_bytes() == b"x"


def test_old_edits_go_and_the_trash_stays(tmp_path):
    folder = tmp_path / "d"
    start(folder)
    with Journal(folder, limits=Limits(entries=3)) as journal:
        journal.delete([folder / "gone.png"])
        for number in range(5):
            journal.commit(f"edit {number}", {}, [Change(folder / "a.txt", (folder / "a.txt").read_bytes(), b"%d" % number)])
        assert [entry.name for entry in journal.entries()] == ["edit 2", "edit 3", "edit 4"] and list(folder.rglob("trash/*/gone.png"))
    with Journal(folder, limits=Limits(size=1)) as journal:
        assert [entry.name for entry in journal.entries()] == ["edit 4"]


def test_the_journal_is_synced_once_before_the_first_caption(tmp_path):
    folder = tmp_path / "d"
    start(folder)
    with Journal(folder) as journal:
        journal._system = system = Faulty()
        journal.commit("x", {}, changes(folder))
    assert system.names.index("fsync") < system.names.index("replace")
    assert [name for name in system.names if name == "fsync"] == ["fsync", "fsync"]  # the entry, and the folder that names it


def test_what_many_files_were_is_freed_after_the_edit(tmp_path, monkeypatch):
    monkeypatch.setattr(aside, "LEAST", 3)
    folder = tmp_path / "d"
    start(folder)
    with Journal(folder) as journal:
        journal._system = system = Faulty()
        journal.commit("x", {}, changes(folder))
        assert system.names.count("link") == 3 and content(folder) == AFTER  # files that were there
        journal._system = refused = Faulty(0, errno.EPERM, ("link",), lasting=True)  # a disk without second names
        journal.undo()
        assert content(folder) == BEFORE and refused.names.count("link") == 1
        until(lambda: not list((folder / ".tuner").glob("old*")))
    (folder / ".tuner" / "old").mkdir()
    (folder / ".tuner" / "old" / "0").write_bytes(b"left by a program that died")
    Journal(folder).close()
    until(lambda: not list((folder / ".tuner").glob("old*")))


def test_a_damaged_entry_is_named(tmp_path):
    with Journal(tmp_path) as journal:
        journal.commit("x", {}, [Change(tmp_path / "a.txt", None, b"a")])
        path = journal.entries()[0].path
        head = path.read_text().splitlines()[0]
        for damaged in ("{", "[]\n", "3\n", f"{head}\n[]\n", f"{head}\n{{}}\n", f'{head}\n{{"path": 3, "before": null, "after": null}}\n', f'{head}\n{{"path": "a.txt", "before": {{}}, "after": 3}}\n'):
            path.write_text(damaged)
            with pytest.raises(ValueError, match="000001.applied.jsonl is damaged; move it"):
                journal.undo()
