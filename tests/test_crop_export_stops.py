"""Where an export of crops cannot go on: names that exist, pictures that cannot be written, full disks, kills; nothing half written is left."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace

import pytest
from PIL import Image
from test_crop_export import folder, pieces, run, tree  # noqa: F401

from lib_tuner import disk
from lib_tuner.data.crop_export import Exported, export
from lib_tuner.data.crop_names import ExportConfig, named
from lib_tuner.data.crop_plan import Piece


# ---- what exists


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.txt", "a.mask.png", "a.jpg"])
def test_what_exists_is_refused_before_anything_is_written(folder, tmp_path, name):  # noqa: F811
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists already, so nothing was written"):
        run(folder, tmp_path / "out")
    assert list(tree(tmp_path / "out")) == [name]


def test_the_next_free_name_is_taken_where_that_is_wanted(folder, tmp_path):  # noqa: F811
    cfg = ExportConfig(existing="next")
    for _ in range(3):
        run(folder, tmp_path / "out", cfg)
    before = tree(tmp_path / "out")
    assert {"a.png", "a_2.png", "a_3.png", "a_3.txt", "a_3.mask.png", "10_zwx cat/b_3.txt"} <= before.keys() and len(before) == 18
    run(folder, tmp_path / "out", cfg, [Piece(p.item, p.box, (9, 9)) for p in pieces(folder)])
    assert before.items() <= tree(tmp_path / "out").items()


def test_a_file_that_appears_meanwhile_is_left_alone(folder, tmp_path):  # noqa: F811
    outputs, _ = named(pieces(folder), folder, ExportConfig())
    with closing(export(outputs, folder, tmp_path / "out", ExportConfig())) as events, pytest.raises(ValueError, match="made by another program"):
        next(events)
        (tmp_path / "out" / "a.png").write_bytes(b"mine")
        next(events)
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine" and not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.parametrize("place", [".", "10_zwx cat", "new/deep"])
def test_the_folder_of_the_originals_is_refused(folder, place):  # noqa: F811
    before = tree(folder)
    with pytest.raises(ValueError, match="is in the folder of the originals"):
        run(folder, folder / place, ExportConfig(existing="next"))
    assert tree(folder) == before


def test_a_target_that_is_a_file_is_refused(folder, tmp_path):  # noqa: F811
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        run(folder, tmp_path / "out")


# ---- stopping, failing


def test_a_picture_that_cannot_be_written_stops_no_other(folder, tmp_path):  # noqa: F811
    """A WebP has 16,383 px at most."""
    made = [Piece(p.item, p.box, (16400, 16) if p.item.path.name == "b.png" else p.size) for p in pieces(folder)]
    done, *_ = run(folder, tmp_path / "out", ExportConfig(form="webp"), made)
    assert done.pictures == 1 and [str(problem).partition(" (")[0] for problem in done.problems] == ["b.png gets no crop: 16400 x 16 px cannot be written as webp"]
    assert sorted(tree(tmp_path / "out")) == ["a.caption", "a.mask.png", "a.txt", "a.webp"]


def test_a_picture_of_another_size_than_was_expected_stops_no_other(folder, tmp_path):  # noqa: F811
    made = [Piece(replace(p.item, size=(40, 60)), p.box, p.size) if p.item.path.name == "a.png" else p for p in pieces(folder)]
    done, *_ = run(folder, tmp_path / "out", made=made[::-1])
    assert [str(problem) for problem in done.problems] == ["a.png has 60 x 40 px, not the 40 x 60 that were expected; read the folder anew."]
    assert sorted(tree(tmp_path / "out")) == ["10_zwx cat/b.png", "10_zwx cat/b.txt"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("ending", [".png", ".txt", ".mask.png"])
def test_an_export_that_stops_leaves_no_part_of_a_picture(folder, tmp_path, monkeypatch, ending, links):  # noqa: F811
    if not links:  # FAT
        monkeypatch.setattr("lib_tuner.disk.os.link", lambda source, target: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    outputs, _ = named(pieces(folder), folder, ExportConfig())
    with closing(export(outputs, folder, tmp_path / "out", ExportConfig())) as events, pytest.raises(ValueError, match="made by another program"):
        next(events)
        (tmp_path / "out" / f"a{ending}").write_bytes(b"mine")
        next(events)
    assert sorted(tree(tmp_path / "out")) == ["10_zwx cat/b.png", "10_zwx cat/b.txt", f"a{ending}"] and (tmp_path / "out" / f"a{ending}").read_bytes() == b"mine"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that dies is a fork")
def test_an_export_that_is_killed_leaves_no_empty_picture(folder, tmp_path, links):  # noqa: F811
    """Where the disk has no links, a name is taken by an empty file first: it is the last resort."""
    outputs, _ = named(pieces(folder), folder, ExportConfig())
    pid = os.fork()
    if pid == 0:
        try:
            disk.os = Dying(links)
            list(export(outputs, folder, tmp_path / "out", ExportConfig()))
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix != ".part"}
    assert sizes == ({} if links else {"b.txt": 0})


class Dying:
    """`os` of a process that ends where it would give a file its name."""

    def __init__(self, links: bool):
        self.links = links

    def __getattr__(self, name):
        return getattr(os, name)

    def link(self, source, target):
        if not self.links:
            raise OSError(1, "Operation not permitted")
        os._exit(1)

    def replace(self, source, target):
        os._exit(1)


def test_stopping_leaves_whole_files_only(folder, tmp_path):  # noqa: F811
    outputs, _ = named(pieces(folder, count=3), folder, ExportConfig())
    with closing(export(outputs, folder, tmp_path / "out", ExportConfig())) as events:
        assert [next(events).done for _ in range(2)] == [1, 2]
    assert sorted(tree(tmp_path / "out")) == ["10_zwx cat/b_1.png", "10_zwx cat/b_1.txt", "10_zwx cat/b_2.png", "10_zwx cat/b_2.txt"]
    for path in (tmp_path / "out").rglob("*.png"):
        Image.open(path).load()


def test_stopping_a_zip_leaves_none(folder, tmp_path):  # noqa: F811
    outputs, _ = named(pieces(folder), folder, ExportConfig())
    with closing(export(outputs, folder, tmp_path / "new" / "out.zip", ExportConfig())) as events:
        next(events)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("name", ["out", "deep/out.zip"])
def test_a_folder_that_cannot_be_made_is_said(folder, tmp_path, name):  # noqa: F811
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match="The folder .* cannot be made .Not a directory.; choose another place"):
        run(folder, tmp_path / "file" / name)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(folder, tmp_path, monkeypatch):  # noqa: F811
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib_tuner.disk.os.fsync", full)
    with pytest.raises(OSError, match="cannot be written .No space left on device., so the export has stopped"):
        run(folder, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_picture_that_changed_or_is_gone_is_left_out_and_said(folder, tmp_path):  # noqa: F811
    made = pieces(folder)
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    (folder / "10_zwx cat" / "b.png").unlink()
    done, events, _ = run(folder, tmp_path / "out", made=made)
    assert done.pictures == 0 and [str(event.problem) for event in events[:-1]] == [
        "b.png cannot be read (No such file or directory).", "a.png has changed since it was looked at; read the folder anew."]
    assert tree(tmp_path / "out") == {}


def test_names_as_long_as_the_disk_takes_are_written_and_longer_ones_are_a_problem_of_their_picture(folder, tmp_path):  # noqa: F811
    long, longer = "猫" * 83 + "ab", "猫" * 83 + "abc"  # 255 and 256 bytes with .png
    (folder / "a.png").rename(folder / f"{long}.png")
    (folder / "a.mask.png").unlink()
    done, *_ = run(folder, tmp_path / "out")
    assert done == Exported(tmp_path / "out", 2) and f"{long}.png" in tree(tmp_path / "out")
    made = pieces(folder)
    outputs = [replace(output, stem=longer if "/" not in output.stem else output.stem) for output in named(made, folder, ExportConfig())[0]]
    *_, done = export(outputs[::-1], folder, tmp_path / "more", ExportConfig())
    assert list(map(str, done.problems)) == [f"{long}.png gets no crop: the name {longer}.png is too long for the disk; choose shorter names."]
    assert done.pictures == 1 and list(tree(tmp_path / "more")) == ["10_zwx cat/b.png", "10_zwx cat/b.txt"]
