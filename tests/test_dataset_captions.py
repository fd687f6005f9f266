"""Captions by the host's own models: made once, kept, seen before they are written; and the WebUI's models, asked as the WebUI asks them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from PIL import Image

from lib_tuner.data.captioning import TURN, caption
from lib_tuner.data.tag_scores import ScoreStore
from lib_tuner.datasets import Datasets
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs

testclient = pytest.importorskip("fastapi.testclient")
from test_datasets import Client  # noqa: E402

from lib_tuner.web.routes import make_app  # noqa: E402

COLOURS = {"a": (200, 0, 0), "b": (0, 200, 0), "c": (0, 0, 200)}
SAID = "a room that is {} from top to bottom"


class Says:
    """A captioner that names the colour there is most of; `gate` holds its second answer."""

    def __init__(self, name: str = "says 1", gate: threading.Event | None = None):
        self.name, self.gate, self.calls, self.turns, self.there = name, gate, 0, 0, 0

    @contextmanager
    def at_work(self) -> Iterator[Callable[[], Callable[[Image.Image], str]]]:
        self.turns += 1
        self.there += 1
        try:
            yield lambda: self.say
        finally:
            self.there -= 1

    def say(self, picture: Image.Image) -> str:
        assert self.there == 1 and picture.mode == "RGB"
        self.calls += 1
        if self.gate and self.calls == 2:
            assert self.gate.wait(30)
        pixel = picture.getpixel((2, 2))
        return SAID.format(("red", "green", "blue")[pixel.index(max(pixel))]) + " \n"


@pytest.fixture
def colours(tmp_path) -> Path:
    """A red, a green and a blue picture, of which the first has a caption."""
    (tmp_path / "colours").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / "colours" / f"{name}.png")
    (tmp_path / "colours" / "a.txt").write_text("cat, hat")
    return tmp_path / "colours"


@pytest.fixture
def opened(tmp_path):
    """Opens a folder in a program of its own, again and again."""
    with closing(Jobs(tmp_path / "out", Standalone)) as jobs:
        programs = []

        def open_(folder: Path, **captioners) -> Client:
            for sets in programs:
                sets.close()
            programs.append(Datasets({}, captioners))
            return Client(testclient.TestClient(make_app(jobs, [], sets=programs[-1]), base_url="http://127.0.0.1"), folder)

        yield open_
        programs[-1].close()


def make(client: Client, captioner: str = "Says", **more) -> dict:
    client.ok(client.post("captions/make", captioner=captioner, **more))
    return until(lambda: (now := client.ok(client.get("job"))["job"])["state"] not in ("running", "stopping") and now)


def plan(client: Client, mode: str, captioner: str = "Says", **more) -> dict:
    return client.ok(client.post("captions/plan", captioner=captioner, mode=mode, **more))


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def test_pictures_are_described_seen_first_written_and_taken_back(opened, colours):
    client = opened(colours, Says=Says())
    done = make(client)
    assert (done["name"], done["state"], done["stage"], done["done"], done["total"], done["result"]) == ("caption", "done", "caption", 2, 2, {"pictures": 2, "told": []})
    assert captions(colours) == {"a": "cat, hat"}
    seen = plan(client, "skip")
    assert (seen["changes"], seen["total"], seen["unscored"], seen["told"]) == (2, 3, 0, [])
    assert seen["samples"][0] == {"name": "b.txt", "before": "", "after": SAID.format("green")}
    client.ok(client.post("apply", plan=seen["plan"]))
    assert captions(colours) == {"a": "cat, hat", "b": SAID.format("green"), "c": SAID.format("blue")}
    row = client.ok(client.post("details", rows=[1]))[0]
    assert row["is_text"]  # a line of sentences, which no edit sorts
    undone = client.ok(client.post("undo"))
    assert undone["redo"]["edit"] == "caption" and undone["redo"]["args"] == {"captioner": "Says", "mode": "skip"}
    assert captions(colours) == {"a": "cat, hat"}


@pytest.mark.parametrize(
    "mode, after", [("prepend", "{}, cat, hat"), ("append", "cat, hat, {}"), ("merge", "cat, hat, {}"), ("replace", "{}")],
)
def test_modes(opened, colours, mode, after):
    client = opened(colours, Says=Says())
    make(client, mode=mode, rows=[0])
    client.ok(client.post("apply", plan=plan(client, mode, rows=[0])["plan"]))
    assert captions(colours) == {"a": after.format(SAID.format("red"))}
    assert plan(client, mode, rows=[0])["changes"] == 0  # what is there is not written twice


def test_another_mode_and_another_program_ask_the_model_no_more(opened, colours):
    says = Says()
    client = opened(colours, Says=says)
    make(client, mode="replace")
    assert (says.calls, says.turns) == (3, 1)
    for mode in ("skip", "prepend", "replace"):
        plan(client, mode)
    make(client, mode="prepend")
    later = opened(colours, Says=says)
    make(later, mode="replace")
    assert plan(later, "replace")["changes"] == 3 and (says.calls, says.turns) == (3, 1)
    (colours / "b.png").write_bytes((colours / "c.png").read_bytes())  # it was described under another name
    make(later, mode="replace")
    assert says.calls == 3 and {one["after"] for one in plan(later, "replace", rows=[1, 2])["samples"]} == {SAID.format("blue")}
    Image.new("RGB", (8, 8), (9, 0, 0)).save(colours / "b.png")
    make(later, mode="replace")
    assert says.calls == 4
    assert [one["kept"] for one in later.ok(later.get("taggers"))["taggers"] if one["name"] == "Says"] == [True]
    other = opened(colours, Says=Says("says 2"))  # with other settings
    assert [one["kept"] for one in other.ok(other.get("taggers"))["taggers"] if one["name"] == "Says"] == [False]
    assert "let it describe them first" in other.post("captions/plan", captioner="Says").text


def test_what_was_made_before_it_was_stopped_is_there(opened, colours):
    gate = threading.Event()
    says = Says(gate=gate)
    client = opened(colours, Says=says)
    client.ok(client.post("captions/make", captioner="Says", mode="replace"))
    until(lambda: says.calls == 2)
    assert client.ok(client.get("job"))["job"]["done"] == 1
    client.ok(client.post("job/stop"))
    gate.set()
    assert until(lambda: (now := client.ok(client.get("job"))["job"])["state"] != "stopping" and now)["state"] == "stopped"
    assert says.there == 0
    seen = plan(client, "replace")
    assert (seen["changes"], seen["unscored"]) == (2, 1)
    make(client, mode="replace")
    assert says.calls == 3 and plan(client, "replace")["unscored"] == 0


def test_a_picture_that_cannot_be_read_is_told_and_the_rest_goes_on(opened, colours):
    (colours / "b.png").write_bytes(b"\x89PNG nothing")
    client = opened(colours, Says=Says())
    done = make(client, mode="replace")
    assert done["state"] == "done" and len(done["result"]["told"]) == 1 and "b.png" in done["result"]["told"][0]
    assert plan(client, "replace")["changes"] == 2


def test_a_model_that_says_nothing_changes_nothing(opened, colours, monkeypatch):
    monkeypatch.setattr(Says, "say", lambda self, picture: "")
    client = opened(colours, Says=Says())
    make(client, mode="replace")
    seen = plan(client, "replace")
    assert seen["changes"] == 0 and len(seen["told"]) == 3 and "got no words" in seen["told"][0]


def test_others_who_wait_for_the_host_have_their_turn(colours):
    says, now = Says(), iter([0.0, TURN / 2, TURN, TURN, 2 * TURN, 2 * TURN])
    with ScoreStore(colours) as store:
        reports = list(caption([colours / f"{name}.png" for name in "abc"], says, store, clock=lambda: next(now)))
    assert says.turns == 2 and [(report.done, report.waiting) for report in reports] == [(0, True), (1, False), (2, False), (2, True), (3, False)]


def test_what_there_is_not(opened, colours):
    client = opened(colours)
    assert not any(one.get("words") for one in client.ok(client.get("taggers"))["taggers"])  # outside the WebUI
    for path in ("captions/make", "captions/plan"):
        answer = client.post(path, captioner="BLIP")
        assert answer.status_code == 400 and "no model 'BLIP'" in answer.text


# ---- the WebUI's models ----------------------------------------------------------------------------------------------


class WebUIs:
    """The captioners of a running double, asked in its routes."""

    def __init__(self, double: Any, folder: Path):
        self.double, self.modules = double, double.modules
        from lib_tuner.hosts import a1111

        self.captioners = a1111.captioners()
        self.client = Client(testclient.TestClient(make_app(Jobs(folder.parent / "out", Standalone), [], sets=Datasets({}, self.captioners)), base_url="http://127.0.0.1"), folder)

    def install(self) -> None:
        """Model files, as a first use would have fetched them."""
        for place in ("BLIP/model_base_caption_capfilt_large.pth", "torch_deepdanbooru/model-resnet_custom_v3.pt"):
            path = Path(self.modules.paths.models_path) / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


@pytest.fixture
def webui(tmp_path, colours) -> Iterator[WebUIs]:
    from webui_double.start import started

    with started(tmp_path / "host") as double:
        yield WebUIs(double, colours)


def spied(monkeypatch: Any, thing: Any, *names: str) -> list[str]:
    """The names of these functions in the order in which they are called."""
    called: list[str] = []

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **more: (called.append(name), function(*args, **more))[1]

    for name in names:
        monkeypatch.setattr(thing, name, spy(name, getattr(thing, name)))
    return called


def test_blip_is_loaded_asked_and_put_away_in_the_queue(webui, monkeypatch):
    webui.install()
    shared, lock = webui.modules.shared, webui.modules.call_queue.queue_lock
    called = spied(monkeypatch, shared.interrogator, "load", "generate_caption", "unload")
    room = spied(monkeypatch, webui.modules.lowvram, "send_everything_to_cpu")
    settings, free = dict(shared.opts.data), []
    inside = shared.interrogator.generate_caption
    monkeypatch.setattr(shared.interrogator, "generate_caption", lambda picture: (free.append(lock.acquire(blocking=False)), inside(picture))[1])
    done = make(webui.client, "BLIP")
    assert done["state"] == "done", done
    assert called == ["load", "generate_caption", "generate_caption", "unload"] and room == ["send_everything_to_cpu"] and free == [False, False]
    assert lock.acquire(blocking=False) and shared.opts.data == settings and shared.state.job == "" and not webui.modules.progress.pending_tasks
    lock.release()
    seen = plan(webui.client, "skip", "BLIP")
    assert [one["after"] for one in seen["samples"]] == ["there is a picture of the colour green on a wall", "there is a picture of the colour blue on a wall"]


def test_it_waits_for_a_generation_and_can_be_stopped_meanwhile(webui, monkeypatch):
    webui.install()
    lock, loaded = webui.modules.call_queue.queue_lock, spied(monkeypatch, webui.modules.shared.interrogator, "load")
    lock.acquire()
    webui.client.ok(webui.client.post("captions/make", captioner="BLIP"))
    until(lambda: webui.client.ok(webui.client.get("job"))["job"]["stage"] == "turn")
    webui.client.ok(webui.client.post("job/stop"))
    assert until(lambda: (now := webui.client.ok(webui.client.get("job"))["job"])["state"] != "stopping" and now)["state"] == "stopped"
    assert not webui.modules.progress.pending_tasks
    lock.release()
    assert until(lambda: lock.acquire(blocking=False)) and not loaded


def test_danbooru_writes_tags_without_ranks_as_the_settings_say(webui, monkeypatch):
    webui.install()
    opts, booru = webui.modules.shared.opts, webui.modules.deepbooru.model
    called = spied(monkeypatch, booru, "start", "tag_multi", "stop")
    opts.data["interrogate_return_ranks"] = True
    assert make(webui.client, "DeepDanbooru", mode="replace")["state"] == "done"
    assert called == ["start", "tag_multi", "tag_multi", "tag_multi", "stop"]
    seen = plan(webui.client, "replace", "DeepDanbooru")
    assert [one["after"] for one in seen["samples"]] == [r"red \(colour\)", "green field", "blue sky"]
    opts.data["deepbooru_use_spaces"] = False  # then the words are others, and are to be asked for anew
    answer = webui.client.post("captions/plan", captioner="DeepDanbooru")
    assert answer.status_code == 400
    make(webui.client, "DeepDanbooru", mode="replace")
    assert plan(webui.client, "replace", "DeepDanbooru")["samples"][1]["after"] == "green_field"


@pytest.mark.parametrize("name", ["BLIP", "DeepDanbooru"])
def test_without_network_the_first_use_is_one_sentence(webui, name):
    done = make(webui.client, name)
    assert done["state"] == "failed"
    assert done["error"] == f"The WebUI cannot load {name} (its file could not be fetched); at its first use it is fetched from the internet: check the connection, then try again. The WebUI's log may say more."
    assert webui.modules.call_queue.queue_lock.acquire(blocking=False) and webui.modules.shared.state.job == ""


def test_clip_that_cannot_be_fetched_is_told_by_its_reason(webui, monkeypatch):
    webui.install()

    def offline() -> None:
        from urllib.error import URLError

        raise URLError("no route to host")

    monkeypatch.setattr(webui.modules.shared.interrogator, "load_clip_model", offline)
    called = spied(monkeypatch, webui.modules.shared.interrogator, "unload")
    assert "(<urlopen error no route to host>)" in make(webui.client, "BLIP")["error"] and called == ["unload"]


def test_interrupt_and_a_failing_model_keep_what_was_made(webui, monkeypatch):
    webui.install()
    models = webui.modules.shared.interrogator
    real, calls = models.generate_caption, []

    def second_fails(picture: Image.Image) -> str:
        calls.append(picture)
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(picture)

    monkeypatch.setattr(models, "generate_caption", second_fails)
    assert make(webui.client, "BLIP", mode="replace")["error"] == "BLIP fails in the WebUI (there is not enough memory); what was described so far is kept. Close other programs or see the WebUI's log, then go on."
    assert plan(webui.client, "replace", "BLIP")["unscored"] == 2
    monkeypatch.setattr(models, "generate_caption", lambda picture: (webui.double.interrupt(), real(picture))[1])
    assert make(webui.client, "BLIP", mode="replace")["error"].startswith("Interrupt was pressed in the WebUI")
    assert plan(webui.client, "replace", "BLIP")["unscored"] == 1 and not webui.modules.shared.state.interrupted


@pytest.mark.skipif("gradio" not in sys.modules and __import__("importlib.util").util.find_spec("gradio") is None, reason="the page is gradio's")
def test_inside_the_webui_they_are_in_the_list(tmp_path, colours):
    from test_webui_extension import OURS, client_of, starting

    with starting(tmp_path / "host") as double:
        client = client_of(double)
        opened = client.post("/tuner/api/data/open", json={"folder": str(colours)}, headers=OURS).json()
        found = client.get(f"/tuner/api/data/{opened['id']}/taggers", headers=OURS).json()["taggers"]
        assert [one["name"] for one in found if one.get("words")] == ["BLIP", "DeepDanbooru"]
        client.post(f"/tuner/api/data/{opened['id']}/close", headers=OURS)
