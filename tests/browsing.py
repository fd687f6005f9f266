"""What tests of the page share: its program, a real browser (Chromium), and a page that is open in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until

from lib_tuner import environment
from lib_tuner.demo.run import write_data

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
