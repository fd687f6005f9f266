"""The Tuner's tab in a running WebUI, in a real browser: train, use what was trained, pause, send, settings, XYZ plot, tools, captions. `test --webui DIR` starts it."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import until
from PIL import Image

URL, DATA = os.environ.get("TUNER_WEBUI_URL", ""), Path(os.environ.get("TUNER_WEBUI_DATA", "."))
pytestmark = pytest.mark.skipif(not URL, reason="needs a running WebUI: python3 -m lib_tuner test --webui DIR")
LONG = 180_000  # ms; ends a test that hangs
PROMPT = "a red star on a white background"

if URL:
    from browsing import browser  # noqa: F401


def ask(path: str, body: dict | None = None) -> Any:
    request = urllib.request.Request(f"{URL}/{path}", None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json", "X-Tuner": "test"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def picture(prompt: str, **more: Any) -> np.ndarray:
    body = {"prompt": prompt, "seed": 3, "steps": 4, "width": 64, "height": 64, "cfg_scale": 3, "sampler_name": "DDIM", **more}
    data = ask("sdapi/v1/txt2img", body)["images"][0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def now() -> dict[str, Any]:
    return ask("tuner/api/status")["now"] or {}


def ended(name: str, state: str = "done") -> dict[str, Any]:
    found = until(lambda: (n := now()).get("name") == name and n["state"] in ("done", "failed", "stopped", "paused", "nan") and n, LONG / 1000)
    assert found["state"] == state, found
    return found


def drawn(folder: Path, step: int) -> np.ndarray:
    """A run's picture at a step, as `picture` has it."""
    return np.asarray(Image.open(folder / "samples" / f"{step:06d}-0.png").convert("RGB")).astype(int)


def trained(name: str, data: Path, **more: Any) -> Path:
    """The folder of a run of two steps, started through the API, with a picture at its end."""
    wanted = {"name": name, "data": {"folder": str(data), "resolution": 64, "bucket_min": 64}, "steps": 2, "save_every": 0, "optim.lr": "2e-2",
              "sample": {"prompts": PROMPT, "every": 2, "steps": 4, "cfg": 3, "seed": 3}, "prior.drift": "off", **more}  # fmt: skip
    ask("tuner/api/runs", {"settings": wanted})
    return Path(ended(name)["folder"])


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """That checkpoint is the WebUI's, for a while."""
    before = ask("sdapi/v1/options")["sd_model_checkpoint"]
    ask("sdapi/v1/options", {"sd_model_checkpoint": next(model["title"] for model in ask("sdapi/v1/sd-models") if model["model_name"] == name)})
    try:
        yield
    finally:
        ask("sdapi/v1/options", {"sd_model_checkpoint": before})


class Tab:
    """The page with the Tuner's tab open."""

    def __init__(self, page: Any):
        self.page = page
        self.said: list[str] = []
        page.on("pageerror", lambda error: self.said.append(str(error)) if "reading 'props'" not in str(error) else None)  # 1.9.4's own, at every picture
        page.set_default_timeout(LONG)
        self.enter()

    def enter(self) -> None:
        self.page.goto(URL)
        self.open("Tuner")
        self.page.wait_for_selector("#tuner-live [role=tablist]")

    def open(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def fill(self, key: str, value: Any) -> None:
        box = self.page.locator(f"#tuner-f-{key.replace('.', '-')}").locator("input, textarea").first
        box.fill(str(value))

    def train(self, name: str, data: Path, steps: int = 6, **more: Any) -> None:
        self.page.locator("[data-view=everything]").click()
        search = self.page.locator(".tuner-search")
        values = {"name": name, "data.folder": data, "steps": steps, "optim.lr": "2e-2", "data.resolution": 64, "data.batch": 2, "sample.prompts": PROMPT}
        rest = {"data.bucket_min": 64, "data.bucket_step": 8, "sample.every": 3, "sample.steps": 4, "sample.cfg": 3, "sample.seed": 3, "save_every": 3, **{k.replace("__", "."): v for k, v in more.items()}}
        for key, value in values.items():
            self.fill(key, value)
        for key, value in rest.items():
            search.fill(key.replace("_", " ").replace(".", " "))
            self.fill(key, value)
        search.fill("")
        self.page.locator("[data-view=essentials]").click()
        self.page.locator("#tuner-train-button").click()


@pytest.fixture
def tab(browser) -> Any:  # noqa: F811
    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    made = Tab(page)
    yield made
    page.close()
    assert made.said == []


def test_a_lora_is_trained_by_a_click_and_used_without_a_restart(tab, data_folder):
    before = picture(PROMPT)
    tab.train("clicked", data_folder)
    ended("clicked")
    row = tab.page.locator(".tuner-file-list li").first
    row.wait_for()
    words = row.inner_text().split()
    taken, total = (int(word) for word in words[words.index("of") - 1 : words.index("of") + 2 : 2])
    assert taken == total > 100 and "<lora:clicked:0.8>" in row.inner_text()
    assert np.array_equal(picture(PROMPT), before)
    folder = Path(now()["folder"])
    live = drawn(folder, 6)
    loaded = picture(f"{PROMPT} <lora:clicked:1>")
    assert np.abs(live - before).max() > 2 and np.abs(live - loaded).max() == 0
    row.get_by_role("button", name="Send to txt2img").click()
    assert tab.page.locator("#txt2img_prompt textarea").input_value() == "<lora:clicked:0.8>"
    assert tab.page.locator("#txt2img_prompt").is_visible()


def test_pictures_are_drawn_while_a_run_is_paused_and_it_goes_on(tab, data_folder):
    tab.train("resting", data_folder, steps=400, sample__every=0, save_every=0)
    until(lambda: now().get("name") == "resting" and now().get("step", 0) > 3, LONG / 1000)
    tab.page.locator("#tuner-pause").click()
    at = ended("resting", "paused")["step"]
    picture("a blue star")
    tab.page.locator("#tuner-resume").click()
    until(lambda: now()["state"] == "running" and now()["step"] > at, LONG / 1000)
    assert ask("sdapi/v1/progress?skip_current_image=true")["progress"] > 0
    ask("sdapi/v1/interrupt", {})  # the host's own button
    stopped = ended("resting", "stopped")
    assert stopped["step"] > at and any(file["step"] == stopped["step"] for file in stopped["files"])


def test_reload_ui_keeps_the_run(tab, data_folder):
    tab.train("enduring", data_folder, steps=600, sample__every=0, save_every=0)
    until(lambda: now().get("name") == "enduring" and now().get("step", 0) > 3, LONG / 1000)
    at = now()["step"]
    tab.page.route("**/internal/ping", lambda route: route.abort())  # the host's own page asks so often that it can kill it, too
    tab.open("Settings")
    tab.page.locator("#settings_restart_gradio").click()
    until(lambda: (DATA.parent / "webui.log").read_text(errors="replace").count("Startup time:") == 2, LONG / 1000)  # a request before that can kill the host
    until(lambda: now()["state"] == "running" and now()["step"] > at, LONG / 1000)
    tab.enter()
    tab.page.locator("#tuner-stop").click()
    assert ended("enduring", "stopped")["step"] > at


def test_a_picture_of_the_gallery_becomes_one_to_learn_from(tab, tmp_path):
    tab.fill("data.folder", tmp_path / "taken")
    tab.open("txt2img")
    tab.page.locator("#txt2img_prompt textarea").fill("a green moon")
    for name, value in (("width", 64), ("height", 64), ("steps", 2)):
        tab.page.locator(f"#txt2img_{name} input[type=number]").fill(str(value))
    tab.page.locator("#txt2img_generate").click()
    tab.page.locator("#txt2img_gallery img").first.wait_for()
    tab.page.locator("#tuner-take-txt2img").click()
    until(lambda: (tmp_path / "taken" / "taken-0001.txt").is_file(), 60)
    assert (tmp_path / "taken" / "taken-0001.txt").read_text() == "a green moon"
    assert Image.open(tmp_path / "taken" / "taken-0001.png").size == (64, 64)
    tab.open("Tuner")
    tab.page.locator("#tuner-from-txt2img").click()
    until(lambda: tab.page.locator("#tuner-f-sample-prompts textarea").input_value() == "a green moon", 60)
    assert tab.page.locator("#tuner-f-sample-width input").input_value() == "64"


def test_the_settings_tab_has_the_tuners_section(tab):
    options = ask("sdapi/v1/options")
    assert {"tuner_output", "tuner_memory_offload", "tuner_memory_pin", "tuner_save_optimizer", "tuner_settings_text", "tuner_csv_every", "tuner_preset"} <= options.keys()
    tab.open("Settings")
    tab.page.locator("#settings").get_by_role("button", name="Tuner", exact=True).click()
    assert tab.page.locator("#setting_tuner_memory_pin").is_visible()


def test_the_xyz_plot_goes_through_the_saves_of_a_run(tab, data_folder):
    tab.train("plotted", data_folder)
    ended("plotted")
    info = next(script for script in ask("sdapi/v1/script-info") if script["name"] == "x/y/z plot" and not script["is_img2img"])
    choices = info["args"][0]["choices"]
    ours = [name for name in choices if name.startswith("[Tuner]")]
    assert ours == ["[Tuner] Run step", "[Tuner] LoRA", "[Tuner] LoRA weight", "[Tuner] Embedding"]
    saves = [f"plotted-{number} {step}" for number in ("001",) for step in ("3", "end")]
    values = [choices.index("[Tuner] Run step"), "", saves, choices.index("[Tuner] LoRA weight"), "0, 1", [], 0, "", []]
    grid = ask("sdapi/v1/txt2img", {
        "prompt": PROMPT, "seed": 3, "steps": 4, "width": 64, "height": 64, "cfg_scale": 3, "sampler_name": "DDIM",
        "script_name": "x/y/z plot", "script_args": [*values, False, True, False, True, False, False, False, 0, False],
    })  # fmt: skip
    cells = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int) for data in grid["images"][1:]]
    plain = picture(PROMPT)
    assert len(cells) == 4 and all(cell.shape == (64, 64, 3) for cell in cells)
    assert np.array_equal(cells[0], plain) and np.array_equal(cells[1], plain)  # weight 0
    assert not np.array_equal(cells[2], plain) and not np.array_equal(cells[2], cells[3])  # two steps of one run
    assert np.array_equal(cells[3], picture(f"{PROMPT} <lora:plotted:1>"))


def test_a_checkpoint_that_was_trained_is_in_the_list_and_draws_what_the_run_drew(data_folder):
    before = picture(PROMPT)
    folder = trained("whole", data_folder, method="dreambooth", **{"dreambooth.save_dtype": "fp32", "optim.lr": "1e-2"})
    assert np.array_equal(picture(PROMPT), before)
    with chosen("whole"):
        loaded = picture(PROMPT)
    live = drawn(folder, 2)
    assert np.abs(live - before).max() > 2 and np.array_equal(loaded, live)
    assert np.array_equal(picture(PROMPT), before)


def test_an_inpainting_model_is_trained_as_it_is_loaded_and_draws_what_its_run_drew(data_folder):
    plain = picture(PROMPT)
    with chosen("tiny-inpainting"):
        before = picture(PROMPT)
        live = drawn(trained("nine", data_folder), 2)
        assert np.array_equal(picture(PROMPT), before)
        loaded = picture(f"{PROMPT} <lora:nine:1>")
    assert np.abs(before - plain).max() <= 2  # its new channels have no weight yet
    assert np.abs(live - before).max() > 2 and np.array_equal(loaded, live)
    assert np.array_equal(picture(PROMPT), plain)


def test_loras_are_looked_into_and_joined_and_the_webui_has_the_file_at_once(tab, data_folder):
    live = [drawn(trained(name, data_folder, seed=i), 2) for i, name in enumerate(("left", "right"))]
    page = tab.page

    def pick(box: str, name: str) -> None:
        page.locator(box).fill(f"Lora/{name}.saf")
        page.locator(f"{box}-list li", has_text=f"{name}.safetensors").click()

    page.locator("#tuner-view-tools").click()
    page.locator("[data-tool=inspect]").click()
    pick("#tuner-t-file", "left")
    page.locator("#tuner-tool-start").click()
    page.locator(".tuner-report", has_text="a LoRA for Stable Diffusion 1.5").wait_for()
    page.locator("[data-tool=join-loras]").click()
    pick("#tuner-t-loras-0", "left")
    page.locator("#tuner-add-lora").click()
    pick("#tuner-t-loras-1", "right")
    page.locator("#tuner-tool-start").click()
    page.locator(".tuner-job .tuner-file-list", has_text="<lora:left-right:1>").wait_for()
    assert (DATA / "models" / "Lora" / "left-right.safetensors").is_file() and "left-right" in [lora["name"] for lora in ask("sdapi/v1/loras")]
    joined = picture(f"{PROMPT} <lora:left-right:1>")
    assert np.abs(joined - picture(f"{PROMPT} <lora:left:1> <lora:right:1>")).max() <= 2 < min(np.abs(joined - one).max() for one in live)


def test_a_folder_is_edited_and_goes_to_the_train_form(tab, data_folder):
    page = tab.page
    page.locator("#tuner-view-data").click()
    page.locator("#tuner-d-folder").fill(str(data_folder))
    page.locator("#tuner-d-open").click()
    page.locator("#tuner-d-count", has_text="6 pictures").wait_for()
    page.wait_for_function("document.querySelectorAll('.tuner-d-cell img').length === 6 && [...document.querySelectorAll('.tuner-d-cell img')].every((image) => image.naturalWidth)")
    page.locator("#tuner-d-like").fill("round")
    page.locator("#tuner-d-tags-head", has_text="Tags: 1").wait_for()
    page.locator("#tuner-d-tags .tuner-d-drop").click()
    page.locator("#tuner-d-said", has_text="6 of 6 change").wait_for()
    page.locator("#tuner-d-apply").click()
    page.locator("#tuner-d-undo", has_text="round").wait_for()
    assert (data_folder / "0.txt").read_text() == "a thing number 0, red"
    page.locator("#tuner-d-undo").click()
    page.locator("#tuner-d-redo", has_text="round").wait_for()
    assert (data_folder / "0.txt").read_text() == "a thing number 0, red, round"
    page.locator("#tuner-d-train").click()
    until(lambda: page.locator("#tuner-f-data-folder textarea, #tuner-f-data-folder input").first.input_value() == str(data_folder), 60)
    assert page.locator("#tuner-train-button").is_visible()


def worked(folder: str, order: str, body: dict) -> dict[str, Any]:
    """Long work in a data folder, and what came of it."""
    ask(f"tuner/api/data/{folder}/{order}", body)
    return until(lambda: (job := ask(f"tuner/api/data/{folder}/job")["job"]) and job["state"] not in ("running", "stopping") and job, LONG / 1000)


def test_pictures_are_cropped_tagged_and_checked_and_a_model_without_its_weights_is_said(data_folder):
    folder = ask("tuner/api/data/open", {"folder": str(data_folder)})["id"]
    assert worked(folder, "crops/find", {"crop": {"size": "32x32"}})["state"] == "done"
    assert ask(f"tuner/api/data/{folder}/crops/summary", {"crop": {"size": "32x32"}})["states"] == {"auto": 6}
    written = worked(folder, "crops/export", {"crop": {"size": "32x32"}, "export": {}, "zip": True})
    assert written["state"] == "done", written
    with urllib.request.urlopen(f"{URL}/tuner/api/data/{folder}/crops/zip") as answer:
        assert answer.read(2) == b"PK"
    assert worked(folder, "tags/score", {"taggers": ["demo"], "mode": "merge"})["state"] == "done"
    assert ask(f"tuner/api/data/{folder}/tags/plan", {"taggers": [{"name": "demo"}], "mode": "merge"})["total"] == 6
    assert worked(folder, "audit", {"goal": "style", "size": 512})["state"] == "done"
    assert any(kind["kind"] == "too small" for kind in ask(f"tuner/api/data/{folder}/audit")["audit"]["kinds"])
    named = [one["name"] for one in ask(f"tuner/api/data/{folder}/taggers")["taggers"] if one.get("words")]
    assert named  # the WebUI's own BLIP
    described = worked(folder, "captions/make", {"captioner": named[0], "mode": "replace"})
    assert described["state"] == "failed" and described["error"].endswith("."), described  # no network here, so no weights
    assert picture(PROMPT).any()  # and the host draws on


def test_saves_are_compared_on_the_hosts_samplers_and_the_best_is_kept(tab, data_folder):
    folder = trained("compared", data_folder, save_every=1)
    page = tab.page
    page.locator("#tuner-view-compare").click()
    page.locator("#tuner-c-draw").wait_for()
    page.select_option("#tuner-c-run", label=f"{folder.name} (lora)")
    page.wait_for_function("document.getElementById('tuner-c-axis-x-text').value.includes('compared')")
    for key, value in (("prompt", PROMPT), ("steps", "4"), ("cfg", "3"), ("width", "64"), ("height", "64"), ("axis-x-text", f"None, {folder.name} 1, {folder.name} end")):
        page.fill(f"#tuner-c-{key}", value)
    page.select_option("#tuner-c-axis-y", "sampler")
    page.fill("#tuner-c-axis-y-text", "DDIM, Euler a")
    page.fill("#tuner-c-seed", "3")
    page.locator("#tuner-c-plan", has_text="6 pictures (3 × 2)").wait_for()
    page.click("#tuner-c-draw")
    page.wait_for_function("document.querySelectorAll('#tuner-c-grid td img').length === 6")
    for row, sampler in enumerate(("DDIM", "Euler a")):
        for column, prompt in ((0, PROMPT), (2, f"{PROMPT} <lora:compared:1>")):
            with urllib.request.urlopen(f"{URL}/tuner/api/compare/cells/{3 * row + column}") as answer:
                cell = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB")).astype(int)
            assert np.abs(cell - picture(prompt, sampler_name=sampler)).max() <= 2, (sampler, column)
    page.locator("#tuner-c-grid td img").nth(1).click()
    page.get_by_role("button", name="Keep this one").click()
    page.fill("#tuner-c-k-name", "the-best")
    page.click("#tuner-c-k-go")
    page.locator("#tuner-c-message", has_text="Kept as the-best.safetensors.").wait_for()
    assert "the-best" in [one["name"] for one in ask("sdapi/v1/loras")]
    assert np.abs(picture(f"{PROMPT} <lora:the-best:1>") - picture(PROMPT)).max() > 0


def test_the_routes_are_part_of_the_hosts_api_page():
    paths = ask("openapi.json")["paths"]
    assert {"/tuner/api/status", "/tuner/api/runs", "/tuner/api/do/{action}", "/tuner/api/runs/{run}/files/{name}"} <= paths.keys()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask("tuner/api/runs", {"settings": {"steps": -1}})
