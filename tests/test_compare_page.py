"""The comparison in a real browser: a run's saves beside each other, a cell large, a row again, bad values, the grid as a file, the save that is kept; two runs."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from browsing import Page, browser, expect, own_script, server, train  # noqa: F401 (fixtures)
from conftest import until
from PIL import Image

GRID = "#tuner-c-grid td img"


@pytest.fixture(scope="module")
def trained(browser, server) -> list[str]:  # noqa: F811
    """Two short runs with saves in between."""
    page = Page(browser, server)
    for name, steps in (("robot-a", 4), ("robot-b", 2))[: 2 if server.gradio == "webui" else 1]:  # the tests that are for that gradio alone look at both
        page.fill_hidden(save_every=2)
        train(page, name, steps=steps, sample__prompts="a green robot on a white background")
        until(lambda: [e["state"] for e in page.status()["queue"]][-1:] == ["done"], 120)
    page.context.close()
    return ["robot-a-001", "robot-b-001"]


@pytest.fixture
def page(browser, server, trained):  # noqa: F811
    made = Page(browser, server)
    made.click("#tuner-view-compare")
    made.sees("#tuner-c-draw")
    yield made
    made.context.close()
    assert made.errors == []


def choose(page: Page, run: str) -> None:
    value = page.page.locator("#tuner-c-run option", has_text=run).get_attribute("value")
    page.page.select_option("#tuner-c-run", value)
    expect(page.page.locator("#tuner-c-axis-x-text")).to_have_value(f"None, {run} 2, {run} end" if run.startswith("robot-a") else f"None, {run} end")
    page.page.fill("#tuner-c-steps", "2")


def rows(page: Page, seeds: str, count: int, size: str) -> None:
    """Fills in the rows and draws them."""
    page.page.fill("#tuner-c-axis-y-text", seeds)
    page.sees("#tuner-c-plan", f"{count} pictures ({size})")
    drawn(page, count)


def drawn(page: Page, count: int) -> None:
    page.click("#tuner-c-draw")
    page.holds(f"document.querySelectorAll('{GRID}').length === {count} && [...document.querySelectorAll('{GRID}')].every((i) => i.complete && i.naturalWidth)")
    expect(page.page.locator("#tuner-c-stop")).to_have_count(0)


def test_the_saves_of_a_run_are_beside_each_other(page, server, trained):  # noqa: F811
    choose(page, "robot-a-001")
    expect(page.page.locator("#tuner-c-prompt")).to_have_value("a green robot on a white background")
    page.sees("#tuner-c-plan", "9 pictures (3 × 3)")
    drawn(page, 9)
    page.sees("#tuner-c-plan", "9 pictures (3 × 3), about")
    expect(page.page.locator("#tuner-c-axis-x-help code").first).to_have_text("my-cat-001 500")
    assert page.page.locator("#tuner-c-grid thead th").all_inner_texts() == ["without files", "robot-a-001 2", "robot-a-001 end"]
    assert page.page.locator("#tuner-c-grid tbody th span").all_inner_texts() == ["1", "2", "3"]
    sources = page.page.evaluate(f"[...document.querySelectorAll('{GRID}')].map((i) => i.src)")
    assert len({page.page.evaluate("(url) => fetch(url).then((r) => r.arrayBuffer()).then((b) => [...new Uint8Array(b)].join())", url) for url in sources}) == 9
    with page.page.expect_download() as download:
        page.click("#tuner-c-save")
    with Image.open(io.BytesIO(Path(download.value.path()).read_bytes())) as sheet:
        assert sheet.width > 3 * 64 and "X Type: Saved step" in sheet.text["parameters"]


@own_script
def test_a_cell_is_shown_large_and_a_row_is_drawn_again(page, trained):
    choose(page, "robot-a-001")
    rows(page, "5, 6,", 6, "3 × 2")
    page.page.locator(GRID).nth(1).click()
    page.sees(".tuner-c-large pre", "Seed: 5")
    page.sees(".tuner-c-large pre", "robot-a-000002 (")
    page.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as over plain http
    page.page.get_by_role("button", name="Copy the prompt").click()
    page.sees("#tuner-c-message", "The prompt is copied.")
    page.page.locator("#tuner-c-close").focus()
    page.page.keyboard.press("Escape")
    expect(page.page.locator(".tuner-c-large")).to_have_count(0)
    assert page.page.evaluate("document.activeElement.dataset.cell") == "1"
    before = page.page.locator(GRID).nth(3).get_attribute("src")
    page.page.get_by_role("button", name="Draw row 2 again").click()
    page.holds("(before) => { const now = document.querySelectorAll('#tuner-c-grid td img')[3]; return now && now.src !== before; }", arg=before)


@own_script
def test_what_is_wrong_is_said_before_anything_is_drawn(page, trained):
    choose(page, "robot-a-001")
    page.page.fill("#tuner-c-axis-y-text", "1, nose")
    page.sees("#tuner-c-problems", "'nose' is no number")
    page.sees("#tuner-c-plan", "3 pictures (3 × 1)")
    page.page.fill("#tuner-c-axis-y-text", " , ")
    page.sees("#tuner-c-plan", "Axis Y (Seed) has no value")
    expect(page.page.locator("#tuner-c-draw")).to_be_disabled()
    page.page.fill("#tuner-c-axis-y-text", "1-200")
    page.sees("#tuner-c-plan", "600 pictures")
    asked = []
    page.page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    with page.page.expect_event("dialog"):
        page.click("#tuner-c-draw")
    assert "600 pictures" in asked[0] and "Draw them all?" in asked[0]
    page.page.fill("#tuner-c-axis-y-text", "1")
    page.page.select_option("#tuner-c-axis-z", "seed")
    page.page.fill("#tuner-c-axis-z-text", "2")
    page.sees("#tuner-c-plan", "Two axes change the same thing (Seed)")


@own_script
def test_a_sampler_that_is_gone_since_the_browser_kept_it_is_not_asked_for(page, trained):
    page.page.evaluate("localStorage.setItem('tuner-compare', JSON.stringify({ prompt: 'a robot', sampler: 'gone' }))")
    page.open()
    page.click("#tuner-view-compare")
    page.page.fill("#tuner-c-steps", "2")
    page.sees("#tuner-c-plan", re.compile(r"^\d+ pictures? \("))
    expect(page.page.locator("#tuner-c-sampler")).to_have_value("ddim")


WRONG = (
    ({"steps": "0"}, "Sampling steps: 0 is not between 1 and 150."), ({"cfg": "99"}, "CFG scale: 99 is not between 1 and 30."), ({"width": "7"}, "Width: 7 is not between 64 and 4096."),
    ({"width": "513"}, "Width: 513 is not a multiple of 8."), ({"seed": "1.5"}, "Seed: 1.5 is not a whole number."),
    ({"height": "", "steps": "151"}, "Height is empty; write a number.\nSampling steps: 151 is not between 1 and 150."),
)  # fmt: skip


@own_script
def test_a_number_that_cannot_be_is_said_in_red_by_its_name(page, trained):
    choose(page, "robot-a-001")
    page.sees("#tuner-c-plan", "9 pictures")
    colour = "getComputedStyle(document.querySelector('#tuner-c-plan')).color"
    quiet = page.page.evaluate(colour)
    for values, said in WRONG:
        before = {key: page.page.input_value(f"#tuner-c-{key}") for key in values}
        for key, value in values.items():
            page.page.fill(f"#tuner-c-{key}", value)
        page.holds("(said) => document.querySelector('#tuner-c-plan').innerText === said", arg=said, timeout=5000)
        assert page.page.evaluate(colour) != quiet
        expect(page.page.locator("#tuner-c-draw")).to_be_disabled()
        for key, value in before.items():
            page.page.fill(f"#tuner-c-{key}", value)
        page.sees("#tuner-c-plan", "9 pictures")


@own_script
def test_an_earlier_grid_is_opened_after_a_reload_and_its_settings_taken(page, trained):
    choose(page, "robot-a-001")
    rows(page, "7", 3, "3 × 1")
    rows(page, "8, 9", 6, "3 × 2")
    page.page.reload()
    page.click("#tuner-view-compare")
    earlier = page.page.locator("#tuner-c-grids option", has_text="3 pictures · a green robot").first
    page.page.select_option("#tuner-c-grids", earlier.get_attribute("value"))
    page.holds(f"document.querySelectorAll('{GRID}').length === 3 && [...document.querySelectorAll('{GRID}')].every((i) => i.complete && i.naturalWidth)")
    assert page.page.locator("#tuner-c-grid tbody th span").all_inner_texts() == ["7"]
    page.click("#tuner-c-take")
    expect(page.page.locator("#tuner-c-axis-y-text")).to_have_value("7")
    page.sees("#tuner-c-plan", "3 pictures (3 × 1)")


@own_script
def test_a_drawing_is_stopped_and_what_was_drawn_stays(page, trained):
    choose(page, "robot-a-001")
    page.page.fill("#tuner-c-steps", "12")
    page.page.fill("#tuner-c-axis-y-text", "1-30")
    page.sees("#tuner-c-plan", "90 pictures")
    page.page.on("dialog", lambda dialog: dialog.accept())  # by what pictures of two steps took here it may be said to take long
    page.click("#tuner-c-draw")
    page.holds(f"document.querySelectorAll('#tuner-c-grid tbody tr').length === 30 && document.querySelector('{GRID}')")
    page.click("#tuner-c-stop")
    page.sees("#tuner-c-work", "Stopped; what is done stays.")
    assert 0 < page.page.locator(GRID).count() < 90


@own_script
def test_the_files_of_a_run_lead_to_its_comparison(page, trained):
    page.click("#tuner-view-train")
    page.click("#tuner-tab-history")
    page.page.get_by_role("button", name="robot-a", exact=True).click()
    page.click("#tuner-panel-history .tuner-compare-run")
    expect(page.page.locator("#tuner-c-axis-x-text")).to_have_value("None, robot-a-001 2, robot-a-001 end")
    expect(page.page.locator("#tuner-c-run option:checked")).to_have_text("robot-a-001 (lora)")


@own_script
def test_that_the_program_does_not_answer_is_said_as_long_as_it_is_so(page, trained):
    message = page.page.locator("#tuner-c-message")
    page.page.route("**/compare/status*", lambda route: route.abort())
    page.page.evaluate("tuner.compare.look()")
    expect(message).to_have_text("The program does not answer; trying again…")
    page.page.unroute("**/compare/status*")
    expect(message).to_be_hidden()
    page.errors.clear()  # the browser's own, of the requests that were cut off


def test_the_numbers_of_a_run_suggest_a_step_or_none(page, trained):
    page.click(".tuner-c-measure summary")
    value = page.page.locator("#tuner-c-n-run option", has_text="robot-a-001").get_attribute("value")
    page.page.select_option("#tuner-c-n-run", value)
    page.click("#tuner-c-n-go")
    page.sees("#tuner-c-numbers .tuner-c-suggested", "No save predicts the pictures clearly better")
    rows = page.page.locator("#tuner-c-numbers tbody tr")
    expect(rows).to_have_count(3)
    assert rows.nth(0).locator("th").inner_text() == "0" and rows.nth(1).locator("th").inner_text() == "2"
    expect(page.page.locator("#tuner-c-numbers tr[aria-current=true]")).to_have_count(0)  # none of them is the one to take
    learned = """(id) => {
        const row = (step, loss) => ({ step, files: step ? ["a"] : [], loss, gain: null, drift: 0, held_out: true, more: {} });
        tuner.compare.numbers({ id, rows: [row(0, 0.3), row(2, 0.1)], suggestion: { step: 2, why: "It has learned.", verdict: "", flags: {} } });
        return [document.querySelector("#tuner-c-numbers .tuner-c-suggested").innerText.trim(), document.querySelector("#tuner-c-numbers tr[aria-current=true]").innerText.split("\t")];
    }"""
    assert page.page.evaluate(learned, value) == ["Step 2: It has learned.", ["2", "0.1", "0", "suggested"]]
    broken = """(id) => {
        const pen = CanvasRenderingContext2D.prototype, { arc, fillText } = pen, dots = [], texts = [];
        Object.assign(pen, { arc: (x, y) => dots.push([x, y]), fillText: (text) => texts.push(text) });
        const row = (step, loss, drift) => ({ step, files: step ? ["a"] : [], loss, gain: null, drift, held_out: true, more: {} });
        tuner.compare.numbers({ id, rows: [row(0, 0.3, 0), row(2, 0.2, 0.01), row(4, null, null)], suggestion: null });
        Object.assign(pen, { arc, fillText });
        return [dots.length, texts];
    }"""
    dots, texts = page.page.evaluate(broken, value)
    assert dots == 4 and texts == ["0", "0.1", "0", "0.01", "0", "2", "4"]  # the save without numbers is a step, and the best of nothing


@own_script
def test_two_runs_beside_each_other(page, trained):
    page.click(".tuner-c-runs summary")
    page.page.select_option("#tuner-c-run-a", label="robot-a-001")
    page.page.select_option("#tuner-c-run-b", label="robot-b-001")
    page.sees("#tuner-c-two .tuner-c-legend", "robot-b: loss")
    row = page.page.locator("#tuner-c-two tbody tr", has=page.page.locator("th", has_text="steps").first)
    expect(row.first.locator("td")).to_have_text(["4", "2"])


@own_script
def test_the_best_one_is_kept_with_its_card_and_the_others_go_to_the_trash(page, trained):
    """The last of this file: it renames what the others look at."""
    choose(page, "robot-a-001")
    page.page.fill("#tuner-c-axis-y-text", "1")
    page.sees("#tuner-c-plan", "3 pictures (3 × 1)")
    drawn(page, 3)
    page.page.locator(GRID).nth(1).click()
    page.page.get_by_role("button", name="Keep this one (robot-a-000002.safetensors)").click()
    expect(page.page.locator("#tuner-c-k-name")).to_have_value("robot-a")
    expect(page.page.locator("#tuner-c-k-words")).to_have_value("robot")
    page.click("#tuner-c-k-go")
    page.sees("#tuner-c-message", "robot-a.safetensors exists already")
    page.page.check("#tuner-c-k-others")
    page.page.fill("#tuner-c-k-weight", "0.9")
    page.click("#tuner-c-k-go")
    page.sees("#tuner-c-message", "Kept as robot-a.safetensors; the other saves are in the folder trash of the run.")
    folder = next(Path(run["folder"]) for run in page.page.evaluate("fetch('tuner/api/runs').then((r) => r.json())") if run["name"] == "robot-a")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["robot-a.safetensors"] and (folder / "trash" / "robot-a.safetensors").is_file()
    assert '"preferred weight": 0.9' in (folder / "robot-a.json").read_text() and (folder / "robot-a.preview.png").is_file()
    page.click("#tuner-view-train")
    page.click("#tuner-tab-history")
    page.page.get_by_role("button", name="robot-a", exact=True).click()
    page.sees("#tuner-panel-history .tuner-file-list code", "<lora:robot-a:0.8> robot")
