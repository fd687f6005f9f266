"""The tagger's routes: models, scoring as a job, previews from kept scores, and what else the scores are good for."""

from __future__ import annotations

import sys
import threading
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from conftest import until
from PIL import Image
from test_tag_models import NAME, hub  # noqa: F401
from test_tagger import CSV, runtime

from lib_tuner.data.tag_list import TagList
from lib_tuner.data.tag_models import MODELS
from lib_tuner.data.tag_rules import Thresholds
from lib_tuner.datasets import Datasets
from lib_tuner.demo.tagger import DemoTagger
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs
from lib_tuner.work import Work

testclient = pytest.importorskip("fastapi.testclient")
from test_datasets import Client  # noqa: E402

from lib_tuner.web.routes import make_app  # noqa: E402

STAR = {"star", "red", "white background", "solid", "large", "on the left"}


class Blues:
    """A tagger whose scores are a pixel's: very_blue by its blue, dark by one minus it. `wait` holds its second batch."""

    name, batch, device = "blues 1", 1, "CPU"
    tags, thresholds = TagList.of(["very_blue", "dark"]), Thresholds(0.5, 0.5)

    def __init__(self, wait: threading.Event | None = None):
        self.wait, self.calls = wait, 0

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        return torch.tensor(picture.convert("RGB").getpixel((1, 1))[2] / 255)

    def scores(self, prepared: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.wait and self.calls == 2:
            assert self.wait.wait(30)
        return torch.stack([prepared, 1 - prepared], 1)


@lru_cache(maxsize=1)
def demo() -> DemoTagger:
    return DemoTagger()


@pytest.fixture
def folder(stars) -> Path:
    """The drawings, of which one has a caption."""
    (stars / "a.txt").write_bytes(b"mine, Solid")
    return stars


@pytest.fixture
def shades(tmp_path) -> Path:
    """Pictures of blue 0, 51, 102, 204."""
    (tmp_path / "shades").mkdir()
    for name, blue in zip("abcd", (0, 51, 102, 204)):
        Image.new("RGB", (8, 8), (0, 0, blue)).save(tmp_path / "shades" / f"{name}.png")
    return tmp_path / "shades"


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a folder in a program of its own, again and again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with closing(Jobs(tmp_path / "out", Standalone)) as jobs:
        programs = []

        def open_(folder: Path, **taggers) -> Client:
            for sets in programs:
                sets.close()  # as a program that ends
            programs.append(Datasets(taggers or {"demo": demo}))
            return Client(testclient.TestClient(make_app(jobs, [], sets=programs[-1]), base_url="http://127.0.0.1"), folder)

        yield open_
        programs[-1].close()


def job(client: Client) -> dict:
    return until(lambda: (now := client.ok(client.get("job"))["job"])["state"] not in ("running", "stopping") and now)


def tag(client: Client, *names: str, **more) -> dict:
    client.ok(client.post("tags/score", taggers=list(names), **more))
    return job(client)


def plan(client: Client, *taggers, **more):
    return client.ok(client.post("tags/plan", taggers=[one if isinstance(one, dict) else {"name": one} for one in taggers], **more))


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def test_the_embedded_tagger_is_listed_first_and_then_models_with_their_thresholds(opened, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    place = tmp_path / "cache" / "lib_tuner" / "taggers" / "wd-vit-tagger-v3" / "main"
    place.mkdir(parents=True)
    for name in ("model.onnx", "selected_tags.csv"):
        (place / name).touch()
    client = opened(folder)
    told = client.ok(client.get("taggers"))
    assert [one["name"] for one in told["taggers"]] == ["demo", *MODELS] and "pip install --no-deps onnxruntime" in told["error"]
    assert {one["name"]: one["general"] for one in told["taggers"]} == {"demo": 0.5, **{name: t.general for name, t in MODELS.items()}}
    assert [one["name"] for one in told["taggers"] if one["here"]] == ["demo", "wd-vit-tagger-v3"] and not any(one["kept"] for one in told["taggers"])
    assert tag(client, "demo")["state"] == "done"
    assert [one["name"] for one in client.ok(client.get("taggers"))["taggers"] if one["kept"]] == ["demo"]


def test_a_folder_is_tagged_seen_first_and_taken_back(opened, folder):
    client = opened(folder)
    done = tag(client, "demo")
    assert (done["state"], done["stage"], done["done"], done["total"], done["result"]) == ("done", "tag", 2, 2, {"pictures": 2, "told": []})  # the mode skip
    assert captions(folder) == {"a": "mine, Solid"}
    seen = plan(client, "demo", always="zwx", exclude="On_the_left")
    assert (seen["changes"], seen["total"], seen["unscored"], seen["told"]) == (2, 3, 0, [])
    client.ok(client.post("apply", plan=seen["plan"]))
    after = captions(folder)
    assert {name: set(text.split(", ")) for name, text in after.items()} == {"a": {"mine", "Solid"}, **dict.fromkeys("bc", STAR - {"on the left"} | {"zwx"})}
    assert all(after[name].startswith("zwx, ") for name in "bc")
    assert client.ok(client.post("undo"))["redo"]["edit"] == "tag" and captions(folder) == {"a": "mine, Solid"}


def test_another_mode_tells_what_has_no_scores_yet(opened, folder):
    client = opened(folder)
    tag(client, "demo")
    seen = plan(client, "demo", mode="merge")
    assert (seen["unscored"], seen["changes"], seen["told"]) == (1, 2, [])
    tag(client, "demo", mode="merge")
    seen = plan(client, "demo", mode="merge", rows=[0])
    assert (seen["unscored"], seen["changes"], seen["total"]) == (0, 1, 1)
    before, after = seen["samples"][0]["before"], seen["samples"][0]["after"]
    assert before == "mine, Solid" and after.startswith("mine, Solid, ") and set(after.split(", ")) == STAR - {"solid"} | {"mine", "Solid"}


def test_a_threshold_is_tried_without_the_model_and_tells_what_comes_and_goes(opened, shades):
    tagger = Blues()
    client = opened(shades, blues=lambda: tagger)
    tag(client, "blues")
    assert tagger.calls == 4
    assert plan(client, {"name": "blues", "general": 0.5})["samples"][0]["after"] == "dark"  # blue: 0, 0.2, 0.4, 0.8; dark: 1, 0.8, 0.6, 0.2
    seen = plan(client, {"name": "blues", "general": 0.3})
    assert (seen["came"], seen["went"]) == ([["very blue", 1]], [])
    seen = plan(client, {"name": "blues", "general": 0.7})
    assert (seen["changes"], seen["came"], seen["went"]) == (3, [], [["dark", 1], ["very blue", 1]])
    assert len(seen["told"]) == 1 and "c.png has no tag that reaches the threshold" in seen["told"][0]
    assert tagger.calls == 4
    seen = plan(client, {"name": "blues", "general": 0.7}, rows=[0])
    assert (seen["came"], seen["went"]) == ([], [])  # other pictures: nothing to compare with


def test_scores_answer_the_filter_and_edits_also_after_a_restart(opened, shades):
    tag(opened(shades, blues=Blues), "blues")
    (shades / "a.txt").write_text("very_blue, mine, dark")
    (shades / "d.txt").write_text("dark, mine, Very Blue")
    client = opened(shades, blues=Blues)
    assert client.names('score:"very blue">0.3') == ["c.png", "d.png"] and client.names("score:very_blue>0.3, score:dark>=0.5") == ["c.png"]
    client.ok(client.post("edit", name="above", args={"least": 0.5}))
    assert captions(shades) == {"a": "mine, dark", "d": "mine, Very Blue"}
    client.ok(client.post("undo"))
    client.ok(client.post("edit", name="sort", args={"by": "confidence"}))
    assert captions(shades) == {"a": "dark, very_blue, mine", "d": "Very Blue, dark, mine"}
    assert plan(client, "blues", rows=[1])["samples"][0]["after"] == "dark"  # the tagger is known by what it left


def test_a_picture_that_is_painted_over_has_no_scores_any_more(opened, shades):
    client = opened(shades, blues=Blues)
    tag(client, "blues")
    Image.new("RGB", (9, 9), (0, 0, 255)).save(shades / "a.png")
    client.ok(client.post("read"))
    assert client.names("score:dark<2") == ["b.png", "c.png", "d.png"] and plan(client, "blues")["unscored"] == 1


def test_two_taggers_agree_or_one_is_enough(opened, shades):
    class Strict(Blues):
        name = "strict 1"
        tags = TagList.of(["bright", "dark"])

    client = opened(shades, blues=Blues, strict=Strict)
    done = tag(client, "blues", "strict")
    assert (done["done"], done["total"]) == (8, 8)
    both = [{"name": "blues", "general": 0.5}, {"name": "strict", "general": 0.7}]
    texts = {agreement: [sample["after"] for sample in plan(client, *both, agreement=agreement)["samples"]] for agreement in ("any", "all")}
    assert texts["all"] == ["dark", "dark"]  # a and b: dark 1 and 0.8
    assert texts["any"][:3] == ["dark", "dark", "dark"] and set(texts["any"][3].split(", ")) == {"very blue", "bright"}


def test_a_stopped_job_keeps_what_it_scored(opened, shades):
    wait = threading.Event()
    client = opened(shades, blues=lambda tagger=Blues(wait): tagger)
    client.ok(client.post("tags/score", taggers=["blues"]))
    until(lambda: client.ok(client.get("job"))["job"]["done"] == 1)
    refused = client.post("tags/score", taggers=["blues"])
    assert refused.status_code == 400 and "Something else is going" in refused.json()["error"]
    assert client.ok(client.post("job/stop"))["job"]["state"] == "stopping"
    wait.set()
    assert job(client)["state"] == "stopped"
    left = plan(client, "blues")["unscored"]
    assert 1 <= left <= 3 and len(client.names("score:dark<2")) == 4 - left


def test_what_the_caption_lacks_is_told_with_scores(opened, shades):
    client = opened(shades, blues=Blues)
    order = {"taggers": [{"name": "blues", "general": 0.3}], "always": "zwx", "most": 1}
    tag(client, "blues")
    assert client.ok(client.post("tags/lacking", row=2, **order))["tags"] == [["dark", 0.6], ["very blue", 0.4]]
    client.ok(client.post("edit", name="write", args={"text": "Very_Blue"}, rows=[2]))
    assert client.ok(client.post("tags/lacking", row=2, **order))["tags"] == [["dark", 0.6]]


@pytest.mark.parametrize(("path", "body", "said"), [
    ("tags/score", {"taggers": [" "]}, "Choose a tagger."), ("tags/score", {"taggers": ["demo"], "mode": "explode"}, "mode: 'explode' is none of"),
    ("tags/plan", {"taggers": []}, "Choose a tagger."), ("tags/plan", {"taggers": [{"name": "demo"}]}, "demo has not seen these pictures; let it tag them first."),
    ("tags/plan", {"taggers": [{"name": "demo"}], "most": -1}, "most: -1 is no number of tags"), ("tags/lacking", {"taggers": [{"name": "demo"}], "row": 99}, "That picture is not in the folder any more"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(opened, folder, path, body, said):
    answer = opened(folder).post(path, **body)
    assert answer.status_code == 400 and answer.json()["error"].startswith(said)


def test_a_threshold_beyond_what_is_kept_is_one_sentence(opened, shades):
    client = opened(shades, blues=Blues)
    tag(client, "blues")
    answer = client.post("tags/plan", taggers=[{"name": "blues", "general": 0.01}])
    assert answer.status_code == 400 and "lower scores are not kept" in answer.json()["error"]


def test_a_model_is_fetched_with_its_progress_and_scores(opened, shades, hub, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime())
    hub.has("selected_tags.csv", CSV)
    client = opened(shades)
    stages, told = [], Work.told
    monkeypatch.setattr(Work, "told", lambda self, *what: (stages.append(what), told(self, *what)))
    done = tag(client, NAME)
    assert (done["state"], done["result"]["pictures"]) == ("done", 4), done
    fetched = [(now, total) for now, total, stage in stages if stage == "fetch"]
    assert len(hub.asked) == 2 and fetched[0] == (len(CSV), len(CSV)) and fetched[-1][0] == fetched[-1][1] > 700_000
    assert [what for what in stages if what[2] == "tag"][-1] == (4, 4, "tag")
    assert [one["here"] for one in client.ok(client.get("taggers"))["taggers"] if one["name"] == NAME] == [True]
    assert plan(client, {"name": NAME, "general": 0.3})["changes"] > 0
    client = opened(shades)
    assert plan(client, {"name": NAME, "general": 0.3})["unscored"] == 0  # after a restart, without the model


def test_without_onnxruntime_nothing_is_fetched_and_the_sentence_has_the_command(opened, shades, hub, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = tag(opened(shades), NAME)
    assert done["state"] == "failed" and "-m pip install --no-deps onnxruntime" in done["error"] and hub.asked == []


def test_a_name_that_is_none_is_one_sentence(opened, shades, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime())
    done = tag(opened(shades), "wd-vit-taggr-v3")
    assert done["state"] == "failed" and "There is no model 'wd-vit-taggr-v3'" in done["error"]


def test_a_model_of_ones_own_is_a_path(opened, shades, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.onnx").write_bytes(b"\x08model")
    (tmp_path / "own" / "mine.csv").write_bytes(CSV)
    client, path = opened(shades), str(tmp_path / "own" / "mine.onnx")
    assert tag(client, path)["state"] == "done" and plan(client, path)["unscored"] == 0
    assert plan(opened(shades), path)["unscored"] == 0
