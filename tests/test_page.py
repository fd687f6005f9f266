"""The page in a real browser (Chromium), on the current gradio and on the WebUI's: what a person clicks, and what is seen then."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from tool_files import SHAPES, TEXT, lora, modules_of, plain

from lib_tuner import environment
from lib_tuner.demo.run import write_data
from lib_tuner.methods import METHODS
from lib_tuner.methods.lora_file import read_lora

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
expect.set_options(timeout=60_000)  # ms; five seconds, its own, are little where a first answer has to import torch beside another test

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
LONG = 120_000  # ms, for what a run has to compute; what is waited for is an event, this only ends a test that hangs
STEPS = 14
own_script = pytest.mark.own_script  # what gradio draws has no part in it: once, in the WebUI's
CLASS = 8  # ordinary pictures


def absent(what: str) -> Any:
    """Skips on a machine that lacks something, and fails in CI, where a green run must mean that the page was clicked through."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


class Server:
    """The page's program in a process of its own, with an output folder of its own."""

    def __init__(self, command: list[str], home: Path, gradio: str = "current"):
        self.home, self.gradio, self.lines = home, gradio, []
        few_pictures(home)
        environment_ = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment_, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = until(self._url, 180)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def _url(self) -> str | None:
        assert self.process.poll() is None, "".join(self.lines)
        return next((found[0] for line in self.lines if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))), None)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def few_pictures(home: Path) -> None:
    """What the form starts with, with few of the ordinary pictures: to encode them is most of a short run."""
    data = home / "demo-data" / "data"
    if not data.is_dir():
        write_data(data)
        for file in sorted((data / "class").iterdir())[2 * CLASS:]:
            file.unlink()


def command(gradio: str, home: Path) -> list[str]:
    if gradio == "current":
        return [sys.executable, "-m", "lib_tuner", "ui", "--no-venv", "--no-browser", "--port", "0", "--out", str(home)]
    python = environment.python_of(environment.old_gradio_folder())
    if python.exists():
        return [str(python), str(ROOT / "tests" / "old_gradio_page.py"), str(home)]
    try:
        environment.old_gradio_python()
    except environment.NoPython as lack:  # nothing that CI could do about it either
        pytest.skip(str(lack))
    return absent("The environment of the WebUI's gradio is missing: `python3 -m lib_tuner test` makes it.")


def started(gradio: str, folders: pytest.TempPathFactory) -> Server:
    home = folders.mktemp(gradio) / "out"
    return Server(command(gradio, home), home, gradio)


@pytest.fixture(scope="module", params=["current", "webui"])
def server(request, programs, tmp_path_factory) -> Server:
    """The page's program for all files of tests, which do not mind each other's runs: to start one takes longer than many a test."""
    if request.param not in programs:
        programs[request.param] = started(request.param, tmp_path_factory)
    return programs[request.param]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None) or absent("There is no Chromium: install it (Debian: `apt-get install chromium`).")
    with playwright.sync_playwright() as p:
        launched = p.chromium.launch(executable_path=path, args=FLAGS)
        yield Browser(launched)
        launched.close()


class Browser:
    """Gives contexts and their tabs out again that nothing was put into: to make a tab and to read gradio's scripts anew takes longer than many a test."""

    def __init__(self, launched: Any):
        self.launched, self.free = launched, defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.launched, name)

    def new_context(self, **options: Any) -> Any:
        free = self.free[repr(options)]
        return Lent(free.pop() if free else self.launched.new_context(**options), free)


class Lent:
    """A context with its tab, which another page may have when it is closed."""

    def __init__(self, context: Any, free: list[Any]):
        self.context, self.free, self.plain = context, free, True

    def __getattr__(self, name: str) -> Any:
        self.plain &= name not in ("add_init_script", "route", "grant_permissions")
        return getattr(self.context, name)

    def new_page(self) -> Any:
        tab = self.context.pages[0] if self.context.pages else self.context.new_page()
        tab.mouse.move(0, 0)
        for name in ("on", "route", "add_init_script", "set_viewport_size"):
            setattr(tab, name, self._noticed(name, getattr(type(tab), name).__get__(tab)))
        tab.as_new = True
        return tab

    def _noticed(self, name: str, call: Any) -> Any:
        def noticing(*args: Any, **more: Any) -> Any:
            if name != "on" or args[0] == "dialog":  # who only listens changes nothing
                self.context.pages[0].as_new = False
            return call(*args, **more)

        return noticing

    def close(self) -> None:
        if not self.plain:
            self.context.close()
            return
        for tab in self.context.pages:
            if tab == self.context.pages[0] and tab.as_new:
                tab.evaluate("sessionStorage.clear()")
                tab.goto("about:blank")
            else:
                tab.close()
        self.free.append(self.context)


SEEN = """([selector, text]) => {
    let element = null;
    try { element = document.querySelector(selector); } catch (error) { return "no CSS"; }
    const area = element && element.checkVisibility({ visibilityProperty: true }) && element.getBoundingClientRect();
    return area && area.width && area.height && element.textContent.replace(/\\s+/g, " ").includes(text) && "seen";
}"""


class Page:
    """A page that is open, with what its console said."""

    def __init__(self, browser: Any, server: Server, width: int = 1280, height: int = 720):
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        storage = self.context.new_cdp_session(self.page)
        storage.send("Storage.clearDataForOrigin", {"origin": server.url.rstrip("/"), "storageTypes": "all"})  # what the context's last page has kept
        storage.detach()
        self.page.set_default_timeout(LONG)  # where two processes share a slow machine, gradio alone takes half a minute to draw the form
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.said: list[str] = []  # what tells why a page does not come up
        self.page.on("console", lambda message: self.said.append(f"console: {message.text}"))
        self.page.on("requestfailed", lambda request: self.said.append(f"failed: {request.url} {request.failure}"))
        self.server = server
        self.open()

    def open(self) -> None:
        self.page.goto(self.server.url)
        try:
            self.page.wait_for_selector("#tuner-live [role=tablist]", state="attached")  # out of sight where another view was open before a reload
        except playwright.TimeoutError as error:
            raise AssertionError("\n".join(["the page did not come up:", *self.errors, *self.said, *self.server.lines[-40:], self.page.content()[-4000:]])) from error

    def field(self, key: str) -> Any:
        return self.page.locator(f"#tuner-f-{key.replace('.', '-')}").locator("input, textarea").first

    def fill(self, **values: Any) -> None:
        for key, value in values.items():
            self.field(key.replace("__", ".")).fill(str(value))
            self.field(key.replace("__", ".")).press("Tab")

    def fill_hidden(self, **values: Any) -> None:
        """As `fill`, for what the view leaves out."""
        for key, value in values.items():
            self.field(key.replace("__", ".")).evaluate("(input, value) => { input.value = value; for (const name of ['input', 'change', 'blur']) input.dispatchEvent(new Event(name, { bubbles: true })); }", str(value))

    def pick(self, field: str, position: int) -> str:
        """Picks a drop-down's option by its place, and returns what it is called."""
        self.page.click(f"{field} input")
        option = self.page.locator(f"{field} ul li, body > ul.options li, ul[role=listbox] li").nth(position)
        words = option.inner_text().replace("✓", "").strip()
        option.click()
        return words

    def unfold(self) -> None:
        self.click("[data-view=everything]")
        self.page.evaluate("document.querySelectorAll('.tuner-fold[aria-expanded=false]').forEach((fold) => fold.click())")

    def click(self, selector: str) -> None:
        self.page.click(selector)

    def sees(self, selector: str, text: str | re.Pattern = "", timeout: int = LONG) -> Any:
        """Waits until it is visible, with this text."""
        found = self.page.locator(selector).first
        if isinstance(text, str):  # asked for in the page, since `expect` soon asks once a second alone
            try:
                if self.holds(SEEN, [selector, text], timeout) == "seen":
                    return found
            except playwright.TimeoutError:
                timeout = 1000  # it says what is seen instead
        expect(found).to_be_visible(timeout=timeout)
        if text:
            expect(found).to_contain_text(text, timeout=timeout)
        return found

    def status(self) -> dict:
        return self.page.evaluate("fetch('tuner/api/status').then((r) => r.json())")

    def state(self, state: str) -> dict:
        self.sees("#tuner-panel-run .tuner-state[data-state]", {"done": "finished"}.get(state, state))
        return self.status()["now"]

    def holds(self, script: str, arg: Any = None, timeout: int = LONG) -> Any:
        """Waits until it is so in the page, and returns what is. Asked before every frame, as by default, the browser would draw frames for nothing, beside the run that is waited for."""
        return self.page.wait_for_function(script, arg=arg, polling=50, timeout=timeout).json_value()

    def at_step(self, step: int) -> None:
        self.holds(f"window.tuner.status && window.tuner.status.now && window.tuner.status.now.step >= {step}")


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    made = Page(browser, server)
    yield made
    clear(made)
    made.context.close()
    assert made.errors == []


def clear(page: Page) -> None:
    """The queue as a new one: what goes is stopped, the rest removed."""
    post = "(([path, body]) => fetch('tuner/api/do/' + path, {method: 'POST', headers: {'X-Tuner': '1', 'Content-Type': 'application/json'}, body: JSON.stringify(body)}))"
    for entry in page.status()["queue"]:
        if entry["state"] == "waiting":
            page.page.evaluate(post, ["remove", {"id": entry["id"]}])
    if (now := page.status()["now"]) and now["state"] in ("running", "pausing", "stopping"):
        page.page.evaluate(post, ["stop", {}])
        until(lambda: page.status()["now"]["state"] not in ("running", "pausing", "stopping"), 120)
    for entry in page.status()["queue"]:
        page.page.evaluate(post, ["remove", {"id": entry["id"]}])
    page.page.evaluate(post, ["start", {}])


def train(page: Page, name: str, **values: Any) -> None:
    """Starts a run whose steps and samples take little time."""
    page.fill(name=name, **{"steps": STEPS, "data__batch": 2, **values})
    page.fill_hidden(sample__steps=3)
    page.click("#tuner-train-button")
    page.sees("#tuner-panel-run .tuner-run-name", name)


# ---- the whole way


@pytest.mark.current_gradio  # the page of its own starts with the demo; on the WebUI's gradio other tests here train
def test_one_click_trains_the_demo_to_its_end(page, server):
    page.sees(".tuner-empty", "Nothing has been trained yet")
    train(page, "robot-demo", sample__prompts="a green robot on a white background")
    page.sees("#tuner-plan", "The run is in the queue.")
    now = page.state("done")
    expect(page.page.locator("#tuner-plan")).to_have_text("")
    assert (now["step"], now["steps"], len(now["points"])) == (STEPS, STEPS, STEPS)
    assert (server.home / "robot-demo-001" / "robot-demo.safetensors").is_file()
    page.sees(".tuner-file-list code", "<lora:robot-demo:0.8> robot")
    page.sees(".tuner-file-list li", "277 of 277 parts are taken by the host")
    steps = page.page.locator("#tuner-panel-run .tuner-samples figcaption").all_inner_texts()
    assert steps == ["training", "step 0", f"step {STEPS}"]
    loaded = "[...document.querySelectorAll('#tuner-panel-run .tuner-samples img')].every((i) => i.complete && i.naturalWidth > 0)"
    page.page.locator("#tuner-panel-run .tuner-samples").scroll_into_view_if_needed()
    page.holds(loaded)
    expect(page.page.locator("#tuner-panel-run .tuner-chart")).to_have_attribute("aria-label", re.compile(rf"step {STEPS}: loss 0\.\d+"))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click(".tuner-file-list li:first-child .tuner-use button")
    page.sees(".tuner-message", "Copied: <lora:robot-demo:0.8> robot")
    assert page.page.evaluate("navigator.clipboard.readText()") == "<lora:robot-demo:0.8> robot"


@own_script
@pytest.mark.parametrize(("allowed", "said"), [(True, "copied"), (False, "The browser does not let this page copy")])
def test_text_is_copied_where_the_browser_has_no_clipboard_for_the_page(page, allowed, said):
    """It has none for http from another machine."""
    assert page.page.evaluate("""(allowed) => {
        Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true });
        if (!allowed) document.execCommand = () => false;
        return tuner.copied('words').then(() => 'copied', (error) => error.message);
    }""", allowed).startswith(said)


@own_script
def test_the_ranks_that_adalora_left_are_a_picture(page):
    assert page.pick("#tuner-f-method", list(METHODS).index("adalora")) == "AdaLoRA"
    page.sees("#tuner-f-adalora-rank")
    page.unfold()
    train(page, "robot-ranks", adalora__rank=1, adalora__first_rank=2, adalora__share_every=1, sample__every=0)
    ranks = page.state("done")["files"][0]["ranks"]
    page.sees(".tuner-ranks figcaption", "Ranks of each block")
    bars = page.page.locator("#tuner-panel-run .tuner-ranks .tuner-bars > div")
    assert {block: int(sum) for sum, block in (text.split() for text in bars.all_inner_texts())} == ranks
    heights = dict(zip(ranks, bars.locator("i").evaluate_all("(all) => all.map((bar) => bar.offsetHeight)")))
    order = sorted(ranks, key=ranks.get)  # higher ranks are higher bars
    assert [heights[block] for block in order] == sorted(heights.values()) and heights[order[0]] < heights[order[-1]]


@own_script
def test_pause_gives_the_model_back_and_resume_goes_on(page):
    train(page, "robot-paused", steps=STEPS + 6)
    page.at_step(3)
    page.click("#tuner-pause")
    paused = page.state("paused")
    assert 3 <= paused["step"] < STEPS + 6 and page.sees("#tuner-resume")
    page.click("#tuner-resume")
    now = page.state("done")
    assert [p[0] for p in now["points"]] == list(range(1, STEPS + 7))


@own_script
def test_stop_keeps_what_was_learned(page, server):
    train(page, "robot-c", steps=500)
    page.at_step(2)
    page.click("#tuner-stop")
    now = page.state("stopped")
    assert [f["name"] for f in now["files"]] == [f"robot-c-{now['step']:06d}.safetensors"]
    page.sees(".tuner-file-list code", f"<lora:robot-c-{now['step']:06d}:0.8>")


@own_script
def test_save_and_sample_now_and_other_prompts_while_it_runs(page):
    train(page, "robot-d", steps=500, sample__prompts="a red circle on a white background")
    page.at_step(1)
    page.click("#tuner-save")
    page.holds("window.tuner.status.now.saves.length === 1")
    page.page.fill("#tuner-panel-run .tuner-prompts textarea", "a blue star on a gray background\na pink moon on a white background")
    page.click("#tuner-sample-now")
    page.holds("window.tuner.status.now.samples.some((s) => s.step > 0 && s.pictures.length === 2)")
    page.holds("document.querySelectorAll('#tuner-panel-run .tuner-samples figure:last-child img').length === 2")
    assert page.status()["now"]["prompts"].startswith("a blue star")


# ---- what is wrong


def test_a_bad_value_is_marked_at_its_field_and_nothing_starts(page):
    page.fill(steps=-5, optim__lr="fast")
    error = page.sees("#tuner-f-steps .tuner-error", "-5 is outside [1, 10000000]")
    page.click("#tuner-train-button")
    page.sees("#tuner-plan", "Something has to be put right first")
    assert page.status()["queue"] == [] and page.field("steps").get_attribute("aria-invalid") == "true"
    page.fill(steps=STEPS)
    expect(error).to_have_count(0)
    page.sees("#tuner-f-optim-lr .tuner-error", "fast")
    page.click("#tuner-plan .tuner-link")
    expect(page.field("optim.lr")).to_be_focused()


@own_script
def test_a_failed_run_says_why_with_details_and_the_page_lives_on(page, server, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    train(page, "robot-e", data__folder=tmp_path / "pictures")
    page.state("failed")
    page.sees(".tuner-failed", "holds no picture to train on")
    page.click(".tuner-failed summary")
    page.sees(".tuner-failed pre", "Traceback")
    train(page, "robot-f", steps=1, data__folder=server.home / "demo-data" / "data" / "robot")
    page.state("done")


def test_a_click_on_a_warnings_fix_mends_the_form(page):
    page.fill(optim__lr="0.9")
    page.click("#tuner-plan-button")
    page.sees("#tuner-plan", "24 pictures, 24 with a caption")
    page.page.locator("#tuner-plan .tuner-warnings li", has_text="learning rate of 0.9").get_by_role("button").click()
    expect(page.field("optim.lr")).to_have_value("0.02")
    expect(page.page.locator("#tuner-plan .tuner-warnings li", has_text="learning rate of 0.9")).to_have_count(0)  # the plan is made anew


# ---- more than one


@own_script
def test_a_reload_in_the_middle_finds_the_run_going(page):
    train(page, "robot-g", steps=500)
    page.at_step(3)
    page.open()
    page.state("running")
    page.at_step(4)
    assert page.page.evaluate("window.tuner.points.length") >= 3


def test_a_reload_keeps_the_form_and_the_view_of_this_browser_alone(page, browser, server):
    assert page.pick("#tuner-f-method", list(METHODS).index("loha")) == "LoHa"
    page.sees("#tuner-f-loha-rank")
    page.fill(name="robot-r", loha__rank=3)
    until(lambda: json.loads(page.page.evaluate("localStorage.getItem('tuner-form')") or "{}").get("loha.rank") == 3, 60)
    page.click("#tuner-view-tools")
    page.open()
    page.sees(".tuner-tool-list")
    page.click("#tuner-view-train")
    expect(page.field("loha.rank")).to_have_value("3")
    expect(page.field("name")).to_have_value("robot-r")
    other = Page(browser, server)
    expect(other.field("name")).not_to_have_value("robot-r")
    other.page.evaluate("localStorage.setItem('tuner-form', JSON.stringify({method: 'gone', 'loss.kind': 'no more', steps: 'many', 'loha.rank': [], nothing: 1, name: 'robot-s'}))")
    other.open()  # what an older version has kept
    expect(other.field("name")).to_have_value("robot-s")
    expect(other.field("method")).to_have_value("LoRA")
    other.context.close()
    assert other.errors == []


@own_script
def test_two_tabs_see_and_steer_the_same_run(page, browser, server):
    other = Page(browser, server)
    train(page, "robot-h", steps=500)
    other.sees("#tuner-panel-run .tuner-run-name", "robot-h")
    other.at_step(1)
    other.click("#tuner-pause")
    page.state("paused")
    page.click("#tuner-resume")
    other.state("running")
    other.context.close()
    assert other.errors == []


@own_script
def test_a_queue_of_two_goes_in_the_order_that_was_chosen(page):
    train(page, "robot-i", steps=500)
    page.at_step(1)  # one that is stopped while it prepares has no folder yet, and is no run of the history
    for name in ("robot-j", "robot-k"):
        page.fill(name=name, steps=1)
        page.click("#tuner-train-button")
        page.sees("#tuner-plan", "The run is in the queue")
        until(lambda name=name: name in [e["name"] for e in page.status()["queue"]])
    page.click("#tuner-tab-queue")
    expect(page.page.locator("#tuner-tab-queue")).to_have_text("Queue (2)")
    page.page.get_by_role("button", name="Earlier: robot-k").click()
    until(lambda: [e["name"] for e in page.status()["queue"]] == ["robot-i", "robot-k", "robot-j"])
    page.click("#tuner-tab-run")
    page.click("#tuner-stop")
    until(lambda: [e["state"] for e in page.status()["queue"]] == ["stopped", "done", "done"], 120)
    page.click("#tuner-tab-history")
    until(lambda: page.page.locator("#tuner-panel-history tbody th").all_inner_texts()[:3] == ["robot-j", "robot-k", "robot-i"])


def test_a_program_that_was_ended_finds_its_run_and_its_queue_again(browser, tmp_path):
    home = tmp_path / "out"
    first = Server(command("current", home), home)
    page = Page(browser, first)
    train(page, "robot-p", steps=500)
    page.fill(name="robot-q", steps=1)
    page.click("#tuner-train-button")
    page.at_step(2)
    page.context.close()
    first.end()
    second = Server(command("current", home), home)
    page = Page(browser, second)
    now = page.state("paused")
    assert now["step"] >= 2 and len(now["points"]) == now["step"] and page.errors == []
    page.sees(".tuner-hold", "runs that wait: 1")
    page.click("#tuner-resume")
    page.at_step(now["step"] + 1)
    page.click("#tuner-stop")
    until(lambda: [e["state"] for e in page.status()["queue"]] == ["stopped", "done"], 120)
    page.context.close()
    second.end()


def test_a_page_that_nobody_clicks_leaves_the_processor_alone(page, server):
    """Looked at every millisecond, an empty queue is 4% of a core, for as long as the program is open."""
    if not (status := Path(f"/proc/{server.process.pid}/status")).is_file():
        pytest.skip("how often a process was woken is read from Linux")

    def woken() -> int:
        return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.M)[1])

    before, begun = woken(), time.monotonic()
    page.page.wait_for_timeout(500)  # no event is waited for: this is how long is counted
    assert (woken() - before) / (time.monotonic() - begun) < 80


@pytest.mark.current_gradio
def test_the_page_comes_up_where_its_scripts_come_last(browser, server):
    """The current gradio asks for them when it is there itself: nothing in the page changes any more after them."""
    context = browser.new_context()
    page, held = context.new_page(), []
    page.set_default_timeout(LONG)
    page.route("**/tuner-all.js", lambda route: held.append(route))
    page.goto(server.url)
    page.wait_for_selector("#tuner-compare-root", state="attached")
    page.evaluate("new Promise((still) => { let timer = setTimeout(still, 500); new MutationObserver(() => { clearTimeout(timer); timer = setTimeout(still, 500); }).observe(document, { childList: true, subtree: true }); })")
    assert len(held) == 1 and not page.locator("#tuner-live [role=tablist]").count()
    held[0].continue_()
    page.wait_for_selector("#tuner-live [role=tablist]")
    context.close()


# ---- form and history


def test_essentials_everything_and_search(page):
    expect(page.field("loss.min_snr")).to_be_hidden()
    page.click("[data-view=everything]")
    page.click("[aria-controls=tuner-s-loss]")
    expect(page.field("loss.min_snr")).to_be_visible()
    page.click("[data-view=essentials]")
    page.page.fill(".tuner-search", "huber")
    expect(page.field("loss.huber_c")).to_be_visible()
    expect(page.field("steps")).to_be_hidden()
    boxes = "[...document.querySelectorAll('#tuner-form .form')].filter((box) => box.offsetParent && !box.querySelector('#tuner-goal, #tuner-pace') && ![...box.children].some((field) => field.offsetHeight)).length"
    for words, none in (("huber", False), ("zzzz", True)):
        page.page.fill(".tuner-search", words)
        expect(page.page.locator("#tuner-none")).to_be_visible(visible=none)
        assert page.page.evaluate(boxes) == 0  # no box without a field in it
    page.page.fill(".tuner-search", "")
    expect(page.page.locator("#tuner-none")).to_be_hidden()
    expect(page.field("steps")).to_be_visible()
    expect(page.field("loss.huber_c")).to_be_hidden()


def test_the_methods_own_fields_follow_the_method(page):
    expect(page.field("lora.rank")).to_be_visible()
    page.field("method").click()
    page.field("method").fill("Textual")  # narrows the choice, in both gradios
    page.field("method").press("Enter")
    expect(page.field("textual_inversion.vectors")).to_be_visible()
    expect(page.field("lora.rank")).to_be_hidden()


def test_settings_of_an_earlier_run_a_note_a_rename_and_a_delete(page, server):
    train(page, "robot-l", steps=2, optim__lr="3e-3")
    page.state("done")
    page.open()
    expect(page.field("optim.lr")).to_have_value("3e-3")  # as it was left
    page.sees("#tuner-kept", "The form is as you left it.")
    page.click("#tuner-kept button")
    expect(page.field("optim.lr")).to_have_value("4e-3")
    expect(page.page.locator("#tuner-kept")).to_be_hidden()
    page.sees("#tuner-plan", "The form is as it was at first.")
    page.click("#tuner-load")
    expect(page.field("optim.lr")).to_have_value("3e-3")
    page.click("#tuner-tab-history")
    row = page.page.locator("tr", has_text="robot-l")
    row.get_by_role("textbox").fill("keeps its colours")
    row.get_by_role("textbox").press("Tab")
    until(lambda: json.loads((server.home / "robot-l-001" / "record.tuner").read_text())["notes"] == "keeps its colours")
    row.get_by_role("button", name="robot-l").click()
    page.sees(".tuner-detail .tuner-file-list", "robot-l.safetensors")
    page.click(".tuner-detail .tuner-notes summary >> text=Settings of this run")
    page.sees(".tuner-detail .tuner-notes td", "robot-l")
    page.sees(".tuner-detail .tuner-notes th:has(small:text-is('optim.lr'))", "Learning rate optim.lr")
    page.page.once("dialog", lambda dialog: dialog.accept("robot-best"))
    page.page.locator(".tuner-detail .tuner-file-list").get_by_role("button", name="Rename").click()
    until((server.home / "robot-l-001" / "robot-best.safetensors").is_file)
    page.sees(".tuner-detail .tuner-file-list", "robot-best.safetensors")
    page.page.once("dialog", lambda dialog: dialog.accept())
    page.page.get_by_role("button", name="Delete this run").click()
    until(lambda: not (server.home / "robot-l-001").exists())
    expect(page.page.locator("tr", has_text="robot-l")).to_have_count(0)


@own_script
def test_a_file_is_looked_into_and_loras_are_joined(page, server):
    for i, name in enumerate(("cat", "dog")):
        (server.home / "tools").mkdir(exist_ok=True)
        lora(server.home / "tools" / f"{name}.safetensors", seed=10 * i)
    page.click("#tuner-view-tools")
    expect(page.page.locator("#tuner-train-button")).to_be_hidden()
    page.click("[data-tool=inspect]")
    page.click("#tuner-t-file")
    page.page.locator("#tuner-t-file-list li", has_text="cat.safetensors").click()
    page.click("#tuner-tool-start")
    page.sees(".tuner-report", "a LoRA for Stable Diffusion 1.5 (LoCon)")
    bars = page.page.locator(".tuner-norms [role=listitem]")
    norms = dict(zip(*[iter(bars.locator("span").all_inner_texts())] * 2))
    widths = dict(zip(norms, bars.locator("b").evaluate_all("(all) => all.map((bar) => bar.offsetWidth)")))
    assert len(norms) == 26 and max(widths, key=widths.get) == max(norms, key=lambda block: float(norms[block])) and widths["IN00"] == 0 < widths["BASE"]
    page.click("[data-tool=join-loras]")
    page.click("#tuner-tool-start")
    page.sees("[data-key=loras] .tuner-error", "no LoRA is given")
    page.page.fill("#tuner-t-loras-0", "cat.safetensors")
    page.click("#tuner-add-lora")
    page.page.fill("#tuner-t-loras-1", "dog.safetensors")
    page.page.locator(".tuner-row-lora").nth(1).locator("[data-part=unet] input").fill("0.5")
    expect(page.page.locator(".tuner-row-lora").nth(1).locator("[data-part=text_encoder] input")).to_have_value("0.5")
    expect(page.page.locator("#tuner-t-out")).to_have_value("cat-dog.safetensors")
    page.click("#tuner-tool-start")
    page.sees(".tuner-job .tuner-file-list", str(server.home / "tools" / "cat-dog.safetensors"))
    made = read_lora(server.home / "tools" / "cat-dog.safetensors")
    expected = plain(modules_of(seed=0)[TEXT], SHAPES[TEXT]) + 0.5 * plain(modules_of(seed=10)[TEXT], SHAPES[TEXT])
    assert float((plain(made.modules[TEXT], SHAPES[TEXT]) - expected).abs().max()) < 1e-2 * float(expected.abs().max())  # in fp16
    expect(page.page.locator("#tuner-t-out")).to_have_value("cat-dog-2.safetensors")  # what is there is not proposed again
    page.open()  # and a page that is opened anew finds it
    page.click("#tuner-view-tools")
    page.sees(".tuner-job .tuner-file-list", "cat-dog.safetensors")
    page.click("#tuner-view-train")
    page.sees("#tuner-train-button")
    (server.home / "tools" / "cat-dog.safetensors").unlink()


def test_a_tools_choices_are_not_cut_off_and_its_boxes_are_dark_where_the_page_is(page):
    page.click("#tuner-view-tools")
    page.click("[data-tool=convert]")
    page.sees("#tuner-t-names")
    cut = page.page.evaluate("""[...document.querySelectorAll('#tuner-toolbox select')].filter((select) => {
        const whole = select.cloneNode(true), shown = select.offsetWidth;
        whole.style.cssText = 'position: absolute; width: max-content; max-width: none';
        select.after(whole);
        const wanted = whole.offsetWidth;
        whole.remove();
        return !shown || wanted > shown;
    }).map((select) => select.id)""")
    assert cut == []
    look = "(dark) => { document.body.classList.toggle('dark', dark); return getComputedStyle(document.querySelector('#tuner-toolbox input[type=checkbox]')).colorScheme; }"
    assert page.page.evaluate(look, True) == "dark" and page.page.evaluate(look, False) != "dark"


@own_script
def test_the_tools_do_not_ask_a_webui_that_starts(page):
    """A request while the WebUI starts can kill it; Reload UI puts nothing but a heading in the page's place, and the tools were asked for as before."""
    page.click("#tuner-view-tools")
    page.sees(".tuner-tool-list")
    pause, asked = page.page.evaluate("""async () => {
        const { fetch, setTimeout } = window, waits = [], asked = [];
        window.setTimeout = (f, ms) => { waits.push(ms); return 0; };
        window.fetch = (url) => { asked.push(url); return Promise.reject(new TypeError('gone')); };
        tuner.tools.job = { id: 'x', state: 'running' };
        await tuner.tools.look();
        asked.length = 0;
        document.body.innerHTML = '<h1>Reloading...</h1>';
        await tuner.tools.look();
        Object.assign(window, { fetch, setTimeout });
        return [Math.min(...waits), asked];
    }""")
    assert pause >= 5000 and asked == []
    page.open()


INK = """(dark) => {
    document.body.classList.toggle('dark', dark);
    const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
    const over = (colours) => { for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); } return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3); };
    const light = (rgb) => { const [r, g, b] = rgb.map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = (element) => (element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : [dark ? 'black' : 'white']);
    return [...document.querySelectorAll('#tuner-form .tuner-field *, #tuner-goal *')].filter((e) => e.offsetParent && !e.children.length && getComputedStyle(e).fontSize === '12px' && e.textContent.trim()).map((e) => {
        const paper = behind(e), [a, b] = [light(over(paper)), light(over([...paper, getComputedStyle(e).color]))].sort((x, y) => y - x);
        return [e.textContent, (a + 0.05) / (b + 0.05)];
    });
}"""


def test_the_help_of_a_field_is_dark_enough_to_be_read(page):
    page.unfold()
    for dark in (False, True):
        contrast = dict(page.page.evaluate(INK, dark))
        assert len(contrast) > 80 and {text: ratio for text, ratio in contrast.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("width", [390, 360])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser, server, width):
    phone = Page(browser, server, width, 844)
    if width == 390:
        train(phone, "robot-m", steps=2)
        phone.state("done")
    under = """[...document.querySelectorAll('#tuner-form .dropdown-arrow')].filter((arrow) => arrow.closest('.icon-wrap') && arrow.getBoundingClientRect().width).filter((arrow) => {
        const input = arrow.closest('.wrap, .secondary-wrap').querySelector('input'), box = input.getBoundingClientRect();
        return box.right - parseFloat(getComputedStyle(input).paddingRight) > arrow.getBoundingClientRect().left;
    }).length"""
    for view in ("everything", "essentials"):
        phone.click(f"[data-view={view}]")
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= width
        assert phone.page.evaluate(under) == 0  # a choice is not written under its arrow
    for view in ("data", "compare", "tools"):
        assert phone.page.locator(f"#tuner-view-{view}").bounding_box()["x"] + phone.page.locator(f"#tuner-view-{view}").bounding_box()["width"] <= width
        phone.click(f"#tuner-view-{view}")
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= width
    phone.sees(".tuner-tool-list")
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= width
    clear(phone)
    phone.context.close()


def test_all_of_it_is_reached_by_keyboard_and_named(page):
    train(page, "robot-n", steps=2)
    page.state("done")
    nameless = page.page.evaluate("""[...document.querySelectorAll('#tuner-live button, #tuner-live input, #tuner-live textarea, #tuner-live canvas, #tuner-live img, #tuner-form .tuner-field input:not([type=file]), #tuner-form .tuner-field textarea')]
        .filter((e) => !(e.getAttribute('aria-label') || e.alt || e.textContent.trim() || (e.labels && e.labels.length) || e.closest('label'))).map((e) => e.outerHTML.slice(0, 200))""")
    assert nameless == []
    page.page.focus("#tuner-tab-run")
    page.page.keyboard.press("ArrowRight")
    expect(page.page.locator("#tuner-panel-queue")).to_be_visible()
    page.page.focus("#tuner-train-button")
    page.page.keyboard.press("Enter")
    page.sees("#tuner-plan", "The run is in the queue")


@own_script
def test_a_validation_loss_that_is_no_number_is_no_dot_at_zero(page):
    train(page, "robot-v", steps=1)
    page.state("done")
    dots, scale = page.page.evaluate("""() => {
        const canvas = document.querySelector('#tuner-panel-run .tuner-chart'), chart = new window.tuner.Chart(canvas, () => {}), dots = [];
        Object.assign(chart, { points: [[1, 0.5, 1e-4], [2, null, null], [3, 0.4, 1e-4]], validations: [[1, 0.45], [2, null]], steps: 3 });
        const { arc } = CanvasRenderingContext2D.prototype, { frame } = chart;
        let scale = null;
        CanvasRenderingContext2D.prototype.arc = (x, y) => dots.push(y);
        chart.frame = function (pen, losses, rates) { scale = losses; frame.call(this, pen, losses, rates); };
        chart.draw();
        CanvasRenderingContext2D.prototype.arc = arc;
        return [dots.length, scale];
    }""")
    assert dots == 1 and scale[0] > 0.35


# ---- figures that must not grow


@own_script
def test_ten_thousand_points_are_redrawn_in_under_100_ms(page):
    train(page, "robot-o", steps=1)
    page.state("done")
    took = page.page.evaluate("""() => {
        const canvas = document.querySelector('#tuner-panel-run .tuner-chart'), chart = new window.tuner.Chart(canvas, () => {}), times = [];
        chart.points = Array.from({length: 10000}, (_, i) => [i + 1, 0.1 + 0.05 * Math.sin(i / 50) + 0.03 * ((i * 7919) % 101) / 101, 1e-4]);
        chart.steps = 10000;
        for (let i = 0; i < 9; i++) { const began = performance.now(); chart.draw(); times.push(performance.now() - began); }
        return times.sort((a, b) => a - b)[4];
    }""")
    assert took < 100, took


# ---- a machine that lacks something


def test_the_webuis_gradio_is_left_out_in_ci_too_where_no_python_can_have_it(tmp_path, monkeypatch):
    def lack() -> str:
        raise environment.NoPython("There is none.")

    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("TUNER_VENV", str(tmp_path / "none"))
    monkeypatch.setattr(environment, "old_gradio_python", lack)
    with pytest.raises(pytest.skip.Exception, match="There is none"):
        command("webui", tmp_path)
    monkeypatch.setattr(environment, "old_gradio_python", lambda: sys.executable)
    with pytest.raises(pytest.fail.Exception, match="is missing"):
        command("webui", tmp_path)
