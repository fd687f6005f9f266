"""Tags to go on with while somebody types one: the folder's own first, then those of the taggers' lists."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image
from test_tagger import CSV

from lib_tuner.data.suggest import fitting, named, of_files
from lib_tuner.dataset_tags import FolderTagging
from lib_tuner.datasets import Datasets
from lib_tuner.demo.tagger import DemoTagger
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs
from lib_tuner.web.routes import make_app

HEAD = "tag_id,name,category,count\n"


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """Where fetched models lie, of which there is none yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lib_tuner" / "taggers"


def fetched(models: Path, name: str, lines: str) -> Path:
    place = models / name / "main"
    place.mkdir(parents=True)
    (place / "model.onnx").touch()
    (place / "selected_tags.csv").write_text(HEAD + lines, encoding="utf-8")
    return place / "selected_tags.csv"


@pytest.fixture
def opened(tmp_path, models):
    captions = {"a": "long sleeves, cat", "b": "hair ribbon, long_hair", "c": "hair ribbon, Long Coat"}
    (tmp_path / "data").mkdir()
    for name, text in captions.items():
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / f"{name}.png")
        (tmp_path / "data" / f"{name}.txt").write_text(text)
    with closing(Datasets({"demo": DemoTagger})) as sets:
        yield FolderTagging.of(sets.open(str(tmp_path / "data")), sets.taggers)


def test_own_tags_come_first_with_counts_then_the_list_and_beginnings_before_middles(opened, models):
    fetched(models, "wd-vit-tagger-v3", "1,general,9,9\n2,longcat,0,9\n3,hair_ornament,0,8\n4,long_hair,0,7\n5,very_long_hair,0,6\n6,saber_(long),4,5\n7,explicit_long,9,1\n")
    assert opened.suggest("hair", 12) == [("hair ribbon", 2), ("long_hair", 1), ("hair ornament", None), ("very long hair", None)]
    assert opened.suggest("LONG", 12) == [("Long Coat", 1), ("long sleeves", 1), ("long_hair", 1), ("longcat", None), ("very long hair", None), ("saber (long)", None)]
    assert opened.suggest("long", 4) == [("Long Coat", 1), ("long sleeves", 1), ("long_hair", 1), ("longcat", None)]
    assert opened.suggest("long", 2) == [("Long Coat", 1), ("long sleeves", 1)]


def test_underscores_and_blanks_are_alike_and_the_list_is_spelled_as_it_was_begun(opened, models):
    fetched(models, "wd-vit-tagger-v3", "1,hair_ornament,0,8\n2,^_^,0,3\n")
    assert opened.suggest("hair_o", 9) == [("hair_ornament", None)] and opened.suggest(" hair o", 9) == [("hair ornament", None)]
    assert opened.suggest("long h", 9) == opened.suggest("long_h", 9) == [("long_hair", 1)]
    assert opened.suggest("^", 9) == [("^_^", None)]  # a face is no word with a blank
    assert opened.suggest(" ", 9) == [] and opened.suggest("nobody", 9) == []


def test_without_a_model_on_this_machine_the_embedded_tagger_s_list_serves(opened, models):
    assert opened.suggest("sta", 9) == [("star", None)]
    fetched(models, "wd-vit-tagger-v3", "1,stairs,0,8\n")
    assert opened.suggest("sta", 9) == [("stairs", None)]
    fetched(models, "wd-swinv2-tagger-v3", "1,stage,0,8\n2,stairs,0,9\n")
    assert opened.suggest("sta", 9) == [("stairs", None), ("stage", None)]


def test_a_list_that_is_written_anew_is_read_anew_and_a_damaged_one_is_none(opened, models):
    file = fetched(models, "wd-vit-tagger-v3", "1,stairs,0,8\n")
    assert opened.suggest("stairs", 9) == [("stairs", None)]
    file.write_bytes(CSV)
    assert opened.suggest("stairs", 9) == []
    file.write_bytes(b"<html>")
    assert opened.suggest("star", 9) == [("star", None)]


def test_the_route(tmp_path, opened):
    testclient = pytest.importorskip("fastapi.testclient")
    with closing(Jobs(tmp_path / "out", Standalone)) as jobs, closing(Datasets({"demo": DemoTagger})) as sets:
        web = testclient.TestClient(make_app(jobs, [], sets=sets), base_url="http://127.0.0.1")
        folder = web.post("/tuner/api/data/open", json={"folder": str(tmp_path / "data")}, headers={"X-Tuner": "test"}).json()["id"]
        assert web.get(f"/tuner/api/data/{folder}/suggest", params={"like": "hair"}).json() == {"tags": [["hair ribbon", 2], ["long_hair", 1]]}
        assert web.get(f"/tuner/api/data/{folder}/suggest", params={"like": "hair", "limit": 0}).status_code == 422


def test_ten_thousand_own_tags_and_as_many_of_a_list_take_no_time(opened, models):
    fetched(models, "wd-vit-tagger-v3", "".join(f"{i},tag_number_{i},0,{i}\n" for i in range(10_000)))
    index = opened._opened.library.index
    for i in range(10_000):
        index.put(1000 + i, (), (f"own number {i}",))
    opened.suggest("numb", 12)
    times = []
    for text in ("numb", "number 99", "own", "nothing at all", "tag_n"):
        start = time.perf_counter()
        opened.suggest(text, 12)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.03, times  # the least: other programs may have had the processor


def test_a_tag_stands_in_a_list_once():
    assert named(["long_hair", "Long hair", "a, b"]) == (("long hair", "long_hair"), ("a b", "a b"))
    assert fitting(named(["very long", "long", "lo"]), "Lo") == [("long", "long"), ("lo", "lo"), ("very long", "very long")]
    assert of_files([Path("nowhere.csv")]) == ()
