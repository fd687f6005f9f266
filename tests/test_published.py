"""Saved files in the host's folders: linked, named without collisions, nobody's file replaced, pruned saves taken back."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from lib_tuner.hosts import published
from lib_tuner.hosts.published import name_of, publish, published_as, sweep


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    return tmp_path / "models" / "Lora"


def saved(home: Path, name: str, content: str = "a") -> Path:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(("path", "name"), [
    ("cat-002/cat.safetensors", "cat"), ("cat-002/cat-000500.safetensors", "cat-002-000500"), ("run-001/word-000020.safetensors", "run-001-word-000020"),
    ("cat/cat-000500.safetensors", "cat-cat-000500"),
])  # fmt: skip
def test_a_save_in_between_is_called_after_its_run(path, name):
    assert name_of(Path(path)) == name


def test_a_file_is_linked_not_copied(home, loras):
    source = saved(home, "cat-001/cat.safetensors")
    target = publish(source, loras, home)
    assert target == loras / "cat.safetensors" and target.samefile(source)
    assert published_as(home) == {source: target}


def test_what_two_threads_publish_at_once_is_all_in_the_ledger(home, loras, monkeypatch):
    both, link = threading.Barrier(2), published._link

    def slow(source: Path, target: Path) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # the other one has read the ledger, too
        link(source, target)

    monkeypatch.setattr(published, "_link", slow)
    sources = [saved(home, f"{name}-001/{name}.safetensors") for name in ("cat", "dog")]
    threads = [threading.Thread(target=publish, args=(source, loras, home)) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert published_as(home) == {source: loras / source.name for source in sources}


def test_somebodys_file_is_never_replaced(home, loras):
    theirs = saved(loras, "cat.safetensors", "theirs")
    target = publish(saved(home, "cat-001/cat.safetensors"), loras, home)
    assert target.name == "cat-2.safetensors" and theirs.read_text() == "theirs"
    assert publish(home / "cat-001" / "cat.safetensors", loras, home) == target  # the same again


def test_a_later_run_takes_the_name_of_an_earlier_one_whose_file_stays(home, loras):
    first, second = saved(home, "cat-001/cat.safetensors", "1"), saved(home, "cat-002/cat.safetensors", "2")
    publish(first, loras, home)
    assert publish(second, loras, home).read_text() == "2" and first.read_text() == "1"
    first.unlink()
    second.unlink()  # the published file is the only one now
    third = publish(saved(home, "cat-003/cat.safetensors", "3"), loras, home)
    assert third.name == "cat-2.safetensors" and (loras / "cat.safetensors").read_text() == "2"


def test_a_resumed_run_renews_its_own_file(home, loras):
    source = saved(home, "cat-001/cat.safetensors", "1")
    target = publish(source, loras, home)
    new = source.with_name("new")
    new.write_text("2")
    os.replace(new, source)  # as a save does it: another file under the name
    assert publish(source, loras, home) == target and target.read_text() == "2"


def test_the_card_is_copied_once_and_then_belongs_to_its_user(home, loras):
    source = saved(home, "cat-001/cat.safetensors")
    source.with_suffix(".json").write_text("{}")
    card = publish(source, loras, home).with_suffix(".json")
    card.write_text('{"notes": "mine"}')
    publish(source, loras, home)
    assert card.read_text() == '{"notes": "mine"}' and source.with_suffix(".json").read_text() == "{}"


def test_pruned_saves_are_taken_back_and_final_files_stay(home, loras):
    step, final = saved(home, "cat-001/cat-000500.safetensors"), saved(home, "cat-001/cat.safetensors")
    targets = [publish(path, loras, home) for path in (step, final)]
    assert sweep(home) == []
    step.unlink()
    final.unlink()
    assert sweep(home) == [targets[0]] and targets[1].is_file() and published_as(home) == {}


def test_where_the_disk_makes_no_links_a_copy_is_published(home, loras, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no links here")))
    source = saved(home, "cat-001/cat.safetensors", "1")
    target = publish(source, loras, home)
    assert not target.samefile(source) and target.read_text() == "1"
    source.write_text("2")
    assert publish(source, loras, home) == target and target.read_text() == "2"


def test_a_damaged_ledger_loses_nothing(home, loras):
    target = publish(saved(home, "cat-001/cat.safetensors", "1"), loras, home)
    (home / published.LEDGER).write_text("{")
    assert publish(saved(home, "cat-002/cat.safetensors", "2"), loras, home).name == "cat-2.safetensors" and target.read_text() == "1"


def test_somebodys_yaml_is_never_replaced(home, loras):
    loras.mkdir(parents=True, exist_ok=True)
    (loras / "cat.ckpt").write_text("theirs")
    (loras / "cat.yaml").write_text("theirs")
    source = saved(home, "cat-001/cat.safetensors")
    source.with_suffix(".yaml").write_text("ours")
    target = publish(source, loras, home)
    assert (loras / "cat.yaml").read_text() == "theirs" and target.with_suffix(".yaml").read_text() == "ours" and target.stem == "cat-2"
    assert publish(source, loras, home) == target  # the same again
