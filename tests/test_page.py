"""The page in a real browser, on the current gradio and on the WebUI's: runs that a person starts, steers and finds again, and what is seen of them."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest
from browsing import LONG, STEPS, Page, Server, browser, clear, command, expect, own_script, page, server, train  # noqa: F401 (fixtures)
from conftest import until

from lib_tuner import environment
from lib_tuner.methods import METHODS

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


@pytest.mark.current_gradio  # the WebUI's has another stream of answers
def test_the_form_comes_back_though_its_answer_was_left_in_a_closed_stream(page):
    """As happens now and then where an answer comes while the page asks for the next thing."""
    page.page.evaluate("localStorage.setItem('tuner-form', JSON.stringify({ name: 'robot-t' }))")
    joined, closed = [], []  # what was asked; for every stream that ended at once, whether the form was asked for by then

    def stream(route):
        if any(closed):
            return route.continue_()
        closed.append(any("robot-t" in body for body in joined))
        return route.fulfill(content_type="text/event-stream", body='data: {"msg": "close_stream"}\n\n')

    page.page.on("request", lambda request: joined.append(request.post_data or "") if "/queue/join" in request.url else None)
    page.page.route("**/queue/data*", stream)
    page.open()
    expect(page.field("name")).to_have_value("robot-t")
    assert any(closed)


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
