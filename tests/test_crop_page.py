"""Crops in a real browser: found, dragged in the grid, resized and nudged in the large view, approved, saved; what is seen, and what the files hold."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path

import pytest
from browsing import browser, expect, own_script, server  # noqa: F401
from conftest import until
from PIL import Image
from test_dataset_page import Panel

from lib_tuner.config import options
from lib_tuner.data.crop_file import read_crops
from lib_tuner.data.crop_names import ExportConfig
from lib_tuner.data.crop_plan import CropConfig

SIZES = {"a.png": (400, 200), "b.png": (200, 300), "c.png": (360, 200), "d.png": (90, 60)}
W = H = 100


@pytest.fixture
def folder(tmp_path):
    """Pictures in which red tells how far from the left a pixel is, green how far from the top."""
    below = tmp_path / "10_cat"
    below.mkdir()
    for name, (w, h) in SIZES.items():
        across, down = Image.linear_gradient("L").rotate(90).resize((w, h)), Image.linear_gradient("L").resize((w, h))
        Image.merge("RGB", (across, down, Image.new("L", (w, h), 128))).save(below / name)
        (below / name).with_suffix(".txt").write_text("cat", encoding="utf-8")
    return below


@pytest.fixture
def panel(browser, server, folder):  # noqa: F811
    before = digests(folder)
    made = CropPanel(browser, server, folder)
    yield made
    odd = made.odd()
    made.page.evaluate("tuner.data.folder && tuner.data.send('close')")
    made.context.close()
    assert odd == []
    assert made.errors == [] and digests(folder) == before, "a picture or caption was changed"


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


class CropPanel(Panel):
    """The page with a folder open and its crops found."""

    def __init__(self, browser, server, folder):  # noqa: F811
        super().__init__(browser, server)
        self.folder = folder
        self.show(folder)
        self.click("#tuner-d-cropping > summary")
        self.page.fill("#tuner-d-crop-size", f"{W}x{H}")
        self.click("#tuner-d-crop-find")
        self.sees("#tuner-d-crop-count", "4 with crops, 4 to look at")
        self.sees("#tuner-d-message", "Crops found: 4.")  # it moves what is below it
        self.page.locator("#tuner-d-grid").scroll_into_view_if_needed()
        self.holds("document.querySelectorAll('.tuner-d-cell .tuner-d-frame').length === 4 && [...document.querySelectorAll('.tuner-d-cell img')].every((image) => image.complete)")

    def crops(self, name):
        return read_crops(self.folder)[name].crops

    def seen(self, selector):
        """Where a frame lies on its picture as it is seen, in fractions."""
        return self.page.locator(selector).evaluate("""(frame) => {
            const image = frame.closest('.tuner-d-shown, .tuner-d-large').querySelector('img').getBoundingClientRect(), f = frame.getBoundingClientRect();
            return [(f.left - image.left) / image.width, (f.top - image.top) / image.height, (f.right - image.left) / image.width, (f.bottom - image.top) / image.height];
        }""")

    def drag(self, selector, dx, dy, at=(0.5, 0.5)):
        box = self.page.locator(selector).bounding_box()
        x, y = box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"]
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + dx / 2, y + dy / 2)
        self.page.mouse.move(x + dx, y + dy)
        self.page.mouse.up()

    def large(self, row):
        self.page.locator(f"[data-row='{row}'] .tuner-d-name").dblclick()
        self.sees("#tuner-d-frame-0")
        self.holds("() => { const image = document.querySelector('#tuner-d-frame-0').closest('.tuner-d-shown, .tuner-d-large').querySelector('img'); return image.complete && image.naturalWidth; }")  # a frame lies on what is there
        self.page.focus("#tuner-d-frame-0")


def shows(picture, box):
    """Whether a picture shows this part of a drawn one (fractions), by the colours near its corners."""
    for x, y in ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9)):
        red, green, blue = picture.getpixel((round(x * picture.width), round(y * picture.height)))
        wanted = (box[0] + x * (box[2] - box[0])) * 255, (box[1] + y * (box[3] - box[1])) * 255
        assert abs(red - wanted[0]) < 5 and abs(green - wanted[1]) < 5 and blue == 128, (red, green, wanted)


def test_frames_are_dragged_in_the_grid_and_the_zip_shows_what_they_showed(panel, folder):
    for row, name, dx, dy in ((0, "a.png", -200, 3), (1, "b.png", 0, 300), (2, "c.png", 12, 0)):
        before = panel.crops(name)[0].frame
        panel.drag(f"[data-row='{row}'] .tuner-d-frame", dx, dy)
        until(lambda name=name: panel.crops(name)[0].state == "adjusted", 30)
        assert panel.crops(name)[0].frame != before
    frames = {name: panel.seen(f"[data-row='{row}'] .tuner-d-frame") for row, name in enumerate(SIZES)}
    assert abs(frames["a.png"][0]) < 0.02 and abs(frames["b.png"][3] - 1) < 0.02, "to the edge, and not beyond it"
    assert panel.page.locator(".tuner-d-view").is_hidden() and panel.page.locator("#tuner-d-selection").is_hidden(), "a drag is no click"
    expect(panel.page.locator("[data-row='0'] .tuner-d-mark")).to_have_attribute("data-state", "adjusted")
    panel.sees("#tuner-d-crop-count", "4 with crops, 1 to look at")
    panel.click("#tuner-d-crop-write > summary")
    panel.click("#tuner-d-crop-zip")
    panel.sees("#tuner-d-crop-written", re.compile(r"Pictures saved: 3, in .*10_cat-crops\.zip.*d\.png is 90 x 60 px", re.DOTALL))
    with zipfile.ZipFile(folder.parent / "10_cat-crops.zip") as archive:
        assert set(archive.namelist()) == {"a.png", "a.txt", "b.png", "b.txt", "c.png", "c.txt", "manifest.json"}
        for name in ("a.png", "b.png", "c.png"):
            picture = Image.open(io.BytesIO(archive.read(name)))
            assert picture.size == (W, H)
            shows(picture, frames[name])
    panel.click("[data-filter='crop:auto']")
    panel.shown("d.png")


@own_script
def test_a_frame_is_resized_nudged_approved_and_taken_back(panel):
    panel.large(0)
    start = panel.crops("a.png")[0].frame
    left, top, right, bottom = panel.seen("#tuner-d-frame-0")
    panel.drag("#tuner-d-frame-0 [data-corner=se]", -40, -40)
    until(lambda: panel.crops("a.png")[0].frame.zoom > 1.05, 30)
    now = panel.seen("#tuner-d-frame-0")
    assert abs(now[0] - left) < 0.01 and abs(now[1] - top) < 0.01 and now[2] < right and now[3] < bottom, "the corner across from it stays"
    assert abs((now[2] - now[0]) * 400 - (now[3] - now[1]) * 200) < 3, "the aspect stays"
    panel.drag("#tuner-d-frame-0 [data-corner=se]", -400, -400)
    panel.sees("#tuner-d-frame-times", "100 x 100 · not enlarged")  # 100 px of the picture, no less
    until(lambda: panel.crops("a.png")[0].frame.zoom == pytest.approx(2), 30)
    before = panel.crops("a.png")[0].frame
    panel.keys("ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown")  # 1 + 10 px of the crop, which are px of the picture here
    until(lambda: panel.crops("a.png")[0].frame.y == pytest.approx(before.y + 10 / 200), 30)
    assert panel.crops("a.png")[0].frame.x == pytest.approx(before.x + 11 / 400)
    panel.sees("#tuner-d-view strong", "a.png")  # the arrows were the frame's
    panel.keys("Control+z", "Control+z", "Control+z")
    until(lambda: panel.crops("a.png")[0].frame == start and panel.crops("a.png")[0].state == "auto", 30)
    panel.keys("-", "+", "+")
    until(lambda: panel.crops("a.png")[0].frame.zoom == pytest.approx(1.05**2), 30)
    panel.keys("Enter")
    panel.sees("#tuner-d-view strong", "b.png")
    assert panel.crops("a.png")[0].state == "approved"
    expect(panel.page.locator("#tuner-d-frame-0")).to_be_focused()
    panel.keys("Enter")
    panel.sees("#tuner-d-view strong", "c.png")
    expect(panel.page.locator("#tuner-d-frame-0")).to_be_focused()
    panel.keys("Escape")
    panel.sees("#tuner-d-grid")
    expect(panel.page.locator("[data-row='1'] .tuner-d-mark")).to_have_attribute("data-state", "approved")


@own_script
def test_a_picture_has_several_crops(panel):
    panel.large(1)
    panel.click("#tuner-d-frame-add")
    until(lambda: len(panel.crops("b.png")) == 2, 30)
    expect(panel.page.locator("#tuner-d-frame-1")).to_be_focused()
    panel.keys("Shift+Tab")
    expect(panel.page.locator("#tuner-d-frame-0")).to_be_focused()
    panel.sees("#tuner-d-frame-state", "Crop 1 of 2: to look at")
    panel.keys("Tab", "Delete")
    until(lambda: len(panel.crops("b.png")) == 1, 30)
    panel.keys("Delete")
    panel.sees("#tuner-d-frame-state", "No crop yet")
    until(lambda: "b.png" not in read_crops(panel.folder), 30)
    panel.click("#tuner-d-frame-find")
    panel.sees("#tuner-d-frame-0")
    panel.click("#tuner-d-frame-undo")
    panel.sees("#tuner-d-frame-state", "No crop yet")
    panel.click("#tuner-d-frame-add")
    until(lambda: "b.png" in read_crops(panel.folder) and panel.crops("b.png")[0].state == "adjusted", 30)


@own_script
def test_a_finger_moves_a_frame(panel):
    panel.large(2)
    touch = panel.context.new_cdp_session(panel.page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    box, before = panel.page.locator("#tuner-d-frame-0").bounding_box(), panel.crops("c.png")[0].frame
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, points in (("touchStart", [(x, y)]), ("touchMove", [(x - 30, y)]), ("touchMove", [(x - 60, y)]), ("touchEnd", [])):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})
    until(lambda: panel.crops("c.png")[0].state == "adjusted", 30)
    assert panel.crops("c.png")[0].frame.x < before.x


@own_script
def test_another_size_draws_other_frames_and_a_wrong_one_is_said(panel):
    panel.page.fill("#tuner-d-crop-size", "200x50")
    panel.holds("(([frame]) => frame && Math.abs(frame.offsetWidth / frame.offsetHeight - 4) < 0.2)([...document.querySelectorAll(\"[data-row='0'] .tuner-d-frame\")])")
    panel.page.fill("#tuner-d-crop-size", "wide")
    panel.sees("#tuner-d-crop-wrong", "'wide' is no size of a crop")
    panel.page.fill("#tuner-d-crop-size", f"{W}x{H}")
    expect(panel.page.locator("#tuner-d-crop-wrong")).to_be_hidden()
    panel.page.fill("#tuner-d-crop-enlarge", "2")
    panel.click("#tuner-d-crop-approve")
    panel.sees("#tuner-d-crop-count", "4 with crops, 0 to look at")
    panel.click("#tuner-d-crop-write > summary")
    panel.page.fill("#tuner-d-crop-name", "{foo}")
    panel.sees("#tuner-d-crop-wrong", "Names: 'foo' is no value in braces")
    panel.page.fill("#tuner-d-crop-name", "{name}")
    expect(panel.page.locator("#tuner-d-crop-wrong")).to_be_hidden()
    for width in (1280, 390):
        panel.page.set_viewport_size({"width": width, "height": 800})
        wide = "[...document.querySelectorAll('#tuner-dataset *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.tuner-d-grid')).map((e) => e.outerHTML.slice(0, 90))"
        assert panel.page.evaluate(wide) == [], width


# ---- what is seldom set


@own_script
def test_seldom_settings_are_behind_a_fold_with_the_help_of_the_command_line_and_are_kept(panel, folder):
    panel.click("#tuner-d-crop-more-crop > summary")
    page, helps = panel.page, {o.key: o.help for kind in (CropConfig, ExportConfig) for o in options(kind)}
    expect(page.locator("#tuner-d-crop-overlap")).to_be_hidden()  # nothing is split
    assert page.locator("#tuner-d-crop-split").get_attribute("title") == helps["split"]
    page.select_option("#tuner-d-crop-split", "strips")
    panel.sees("label[for=tuner-d-crop-overlap] ~ small", helps["overlap"])
    page.fill("#tuner-d-crop-split_below", "0.9")
    page.fill("#tuner-d-crop-overlap", "2")
    panel.sees("#tuner-d-crop-wrong", "Overlap of tiles: 2.0 is outside")
    page.fill("#tuner-d-crop-overlap", "0.5")
    expect(page.locator("#tuner-d-crop-wrong")).to_be_hidden()
    panel.click("#tuner-d-crop-find")
    until(lambda: len(panel.crops("a.png")) > 1, 30)  # tiles
    panel.sees("#tuner-d-message", "Crops found: 4.")
    panel.click("#tuner-d-crop-write > summary")
    panel.click("#tuner-d-crop-more-export > summary")
    panel.sees("#tuner-d-crop-background")
    assert {field.get_attribute("id") for field in page.locator("#tuner-d-crop-more-export :is(input, select)").all()} == {f"tuner-d-crop-{key}" for key in ("filter", "background", "existing", "captions", "masks")}
    page.fill("#tuner-d-crop-captions", "caption")
    page.uncheck("#tuner-d-crop-masks")
    page.fill("#tuner-d-crop-background", "no colour")
    page.select_option("#tuner-d-crop-form", "jpg")
    panel.click("#tuner-d-crop-more-export > summary")
    page.fill("#tuner-d-crop-out", "made")
    panel.click("#tuner-d-crop-save")
    panel.sees("#tuner-d-message", "Background: 'no colour' is no colour")
    panel.sees("#tuner-d-crop-background")  # the fold is open again
    page.fill("#tuner-d-crop-background", "white")
    panel.click("#tuner-d-crop-save")
    panel.sees("#tuner-d-crop-written", "Pictures saved: ")
    assert {path.suffix for path in (folder.parent / "made").iterdir()} == {".jpg"}, "no .txt: captions are .caption here"
    panel.click("#tuner-d-crop-save")
    panel.sees("#tuner-d-message", "exists already, so nothing was written")
    page.reload()
    panel.there()
    panel.click("#tuner-d-cropping > summary")
    panel.click("#tuner-d-crop-more-crop > summary")
    kept = {"split": "strips", "split_below": "0.9", "overlap": "0.5", "captions": "caption", "background": "white", "form": "jpg", "size": f"{W}x{H}"}
    expect(page.locator("#tuner-d-crop-overlap")).to_be_visible()
    assert {key: page.input_value(f"#tuner-d-crop-{key}") for key in kept} == kept and not page.is_checked("#tuner-d-crop-masks")


# ---- what is taken back, and what another page has done


def undone(panel, states, then):
    """Takes the last act back; what the crops are then, and what would be taken back next."""
    panel.click("#tuner-d-crop-undo")
    until(lambda: {name: record.crops[0].state for name, record in read_crops(panel.folder).items()} == states, 30)
    expect(panel.page.locator("#tuner-d-crop-undo")).to_have_text(f"Undo crop: {then}")


@own_script
def test_approving_and_finding_many_are_taken_back_in_the_order_in_which_they_were_done(panel):
    found = dict.fromkeys(SIZES, "auto")
    start = panel.crops("a.png")
    panel.drag("[data-row='0'] .tuner-d-frame", -200, 3)
    expect(panel.page.locator("#tuner-d-crop-undo")).to_have_text("Undo crop: changed (1)")
    moved = panel.crops("a.png")
    panel.click("#tuner-d-crop-approve")
    panel.sees("#tuner-d-crop-count", "4 with crops, 0 to look at")
    expect(panel.page.locator("[data-row='2'] .tuner-d-frame")).to_have_attribute("data-state", "approved")
    panel.drag("[data-row='2'] .tuner-d-frame", 12, 0)
    expect(panel.page.locator("#tuner-d-crop-undo")).to_have_text("Undo crop: changed (1)")
    undone(panel, dict.fromkeys(SIZES, "approved"), "approved (4)")
    undone(panel, {**found, "a.png": "adjusted"}, "changed (1)")
    assert panel.crops("a.png") == moved
    expect(panel.page.locator("[data-row='0'] .tuner-d-frame")).to_have_attribute("data-state", "adjusted")
    panel.large(0)
    panel.click("#tuner-d-view #tuner-d-frame-approve")
    panel.sees("#tuner-d-view strong", "b.png")
    panel.click("#tuner-d-frame-undo")  # the picture that was approved comes back
    panel.sees("#tuner-d-view strong", "a.png")
    panel.sees("#tuner-d-frame-state", "Crop: moved")
    panel.keys("Escape")
    undone(panel, found, "found (4)")
    assert panel.crops("a.png") == start
    panel.click("#tuner-d-crop-undo")
    until(lambda: read_crops(panel.folder) == {}, 30)
    expect(panel.page.locator("#tuner-d-crop-undo")).to_have_count(0)  # there is nothing left
    expect(panel.page.locator("#tuner-d-crop-count")).to_have_count(0)
    expect(panel.page.locator(".tuner-d-cell .tuner-d-frame")).to_have_count(0)


OTHER = """async ([path, body]) => { const { tuner } = window; await tuner.data.send(`crops/${path}`, tuner.data.crops.order(body)); }"""


def other_page(panel, path, **body):
    """What another page of the same program does, of which this one knows nothing."""
    panel.page.evaluate(OTHER, [path, body])


@own_script
def test_what_another_page_has_set_is_not_written_over_and_is_shown(panel):
    other_page(panel, "change", row=0, crops=[{"x": 0.25, "y": 0.5, "state": "approved"}])
    panel.drag("[data-row='0'] .tuner-d-frame", 30, 0)
    panel.sees("#tuner-d-message", "The crops of this picture were changed elsewhere meanwhile, so nothing was changed")
    expect(panel.page.locator("[data-row='0'] .tuner-d-frame")).to_have_attribute("data-state", "approved")
    assert panel.crops("a.png")[0].frame.x == 0.25 and abs(panel.seen("[data-row='0'] .tuner-d-frame")[0]) < 0.02
    panel.drag("[data-row='0'] .tuner-d-frame", 30, 0)  # what is seen now is changed
    until(lambda: panel.crops("a.png")[0].state == "adjusted", 30)
    panel.large(1)
    before = panel.crops("b.png")
    other_page(panel, "change", row=1, crops=[{"x": 0.5, "y": 0.2}, {"x": 0.5, "y": 0.8}])
    panel.keys("Enter")
    panel.sees("#tuner-d-message", "were changed elsewhere meanwhile")
    panel.sees("#tuner-d-frame-state", "Crop 1 of 2: moved")
    other_page(panel, "approve")
    panel.keys("u")
    panel.sees("#tuner-d-message", "Something else was done meanwhile")
    panel.sees("#tuner-d-frame-state", "Crop 1 of 2: approved")
    assert len(panel.crops("b.png")) == 2 and panel.crops("b.png") != before


def test_the_zip_is_downloaded(panel, folder):
    panel.click("#tuner-d-crop-write > summary")
    panel.page.fill("#tuner-d-crop-out", "图 片.zip")
    panel.click("#tuner-d-crop-zip")
    panel.sees("#tuner-d-crop-download", "Download 图 片.zip")
    with panel.page.expect_download() as download:
        panel.click("#tuner-d-crop-download")
    assert download.value.suggested_filename == "图 片.zip" and Path(download.value.path()).read_bytes() == (folder.parent / "图 片.zip").read_bytes()
    panel.page.reload()
    panel.there()
    panel.click("#tuner-d-cropping > summary")
    panel.click("#tuner-d-crop-write > summary")
    panel.sees("#tuner-d-crop-download", "Download 图 片.zip")
    panel.page.fill("#tuner-d-crop-out", "a folder")
    panel.click("#tuner-d-crop-save")
    panel.sees("#tuner-d-crop-written", "Pictures saved: 3")
    expect(panel.page.locator("#tuner-d-crop-download")).to_have_count(0)


@own_script
def test_crops_of_more_pictures_than_one_answer_holds_are_asked_for_in_parts(panel):
    """Else those that were scrolled to last lose their frames when all are asked for anew."""
    asked = panel.page.evaluate("""async () => {
        const { crops, send } = tuner.data, parts = [];
        tuner.data.send = async (path, { rows }) => { parts.push(rows.length); return { crops: rows.map((row) => ({ row, mark: "", crops: [], told: [], troubles: [] })) }; };
        await crops.load([...Array(900).keys()].map((row) => row + 1000));
        tuner.data.send = send;
        return [parts, crops.known.has(1899)];
    }""")
    assert asked == [[500, 400], True]
