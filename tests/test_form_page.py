"""The page's form, history and tools in a real browser: what is shown of them, at every width and by keyboard, and what is taken over from an earlier run."""

from __future__ import annotations

import json

import pytest
from browsing import Page, browser, clear, expect, own_script, page, server, train  # noqa: F401 (fixtures)
from conftest import until
from tool_files import SHAPES, TEXT, lora, modules_of, plain

from lib_tuner.methods.lora_file import read_lora

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
