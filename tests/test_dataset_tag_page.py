"""The tagger and the checks in a real browser, offline: tag drawings, move a threshold, apply, undo; check, filter by what was found, mend it."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import until
from test_page import Page, browser, expect, own_script, server  # noqa: F401

from lib_tuner.data.pictures import from_pixels
from lib_tuner.demo.world import draw, random_scenes

CAPTIONS = {"a": "mine", "b": "cat, cat, zwx", "c": None, "d": None}


@pytest.fixture
def folder(tmp_path):
    below = tmp_path / "10_star"
    below.mkdir()
    scenes = random_scenes(3, torch.Generator().manual_seed(3)).fixed(shape="star", colour="red", background="white", fill="solid", size="large", place="left")
    pictures = [from_pixels(pixels) for pixels in draw(scenes, torch.Generator().manual_seed(4), 96)]
    for name, picture in zip(CAPTIONS, [*pictures, pictures[0].resize((90, 90))]):
        picture.save(below / f"{name}.png")
        if CAPTIONS[name] is not None:
            (below / f"{name}.txt").write_text(CAPTIONS[name])
    return below


@pytest.fixture
def panel(browser, server, folder):  # noqa: F811
    made = Page(browser, server)
    made.click("#tuner-view-data")
    made.page.fill("#tuner-d-folder", str(folder))
    made.click("#tuner-d-open")
    made.sees("#tuner-d-count", "4 pictures")
    yield made
    made.page.evaluate("tuner.data.folder && tuner.data.send('close')")
    made.context.close()
    assert made.errors == []


def slide(panel, value):
    panel.page.locator("#tuner-d-t-general").fill(str(value))


def cells(panel, names):
    until(lambda: sorted(panel.page.locator(".tuner-d-name").all_inner_texts()) == names.split(), 60)


@own_script
def test_drawings_are_tagged_thresholds_tried_applied_and_taken_back(panel, folder):
    panel.click("#tuner-d-tagger > summary")
    panel.page.select_option("#tuner-d-t-model", "demo")
    panel.click("#tuner-d-t-go")
    panel.sees("#tuner-d-said", "2 of 4 change")
    assert not (folder / "c.txt").exists()
    slide(panel, 1)
    panel.sees("#tuner-d-said", "0 of 4 change")
    expect(panel.page.locator("#tuner-d-t-moved")).to_contain_text(re.compile(r"− .*star \(2\)"))
    slide(panel, 0.5)
    panel.sees("#tuner-d-said", "2 of 4 change")
    panel.page.select_option("#tuner-d-t-mode", "merge")
    expect(panel.page.locator("#tuner-d-t-moved")).to_contain_text("2 pictures have no scores")
    panel.click("#tuner-d-t-go")
    panel.sees("#tuner-d-said", "4 of 4 change")
    panel.click("#tuner-d-tag-slot #tuner-d-apply")
    expect(panel.page.locator("#tuner-d-undo")).to_contain_text(re.compile(r"Tagger demo \w+ \(4\)"))
    assert (folder / "a.txt").read_text().startswith("mine, ") and "red" in (folder / "c.txt").read_text().split(", ")
    panel.click("#tuner-d-undo")
    expect(panel.page.locator("#tuner-d-redo")).to_contain_text("Tagger")
    assert (folder / "a.txt").read_text() == "mine" and not (folder / "c.txt").exists()
    panel.page.fill("#tuner-d-filter", "score:star>0.5, NOT untagged")
    cells(panel, "a.png b.png")


@own_script
def test_a_tag_that_the_tagger_sees_is_added_with_a_click(panel, folder):
    panel.page.evaluate("tuner.data.begin('tags/score', {taggers: ['demo'], mode: 'merge'})")
    panel.page.locator("[data-row='0']").dblclick()
    panel.sees(".tuner-d-lacking", "star")
    chip = panel.page.locator(".tuner-d-more", has_text="star")
    chip.click()
    panel.sees(".tuner-d-chip >> nth=1", "star")
    assert (folder / "a.txt").read_text() == "mine, star"
    expect(chip).to_have_count(0)
    panel.sees(".tuner-d-lacking", "red")


@own_script
def test_a_check_is_made_its_pictures_shown_and_a_finding_mended(panel, folder):
    panel.click("#tuner-d-audit > summary")
    panel.page.fill("#tuner-d-a-trigger", "zwx")
    panel.page.select_option("#tuner-d-a-goal", "object")
    panel.click("#tuner-d-a-go")
    panel.sees("#tuner-d-a-said", "4 pictures checked")
    panel.sees("#tuner-d-audit h5", "Advice")
    panel.click("[data-kind='no caption'] > summary")
    panel.click("[data-kind='no caption'] .tuner-d-a-show")
    cells(panel, "c.png d.png")
    assert panel.page.input_value("#tuner-d-filter") == 'problem:"no caption"'
    panel.click("[data-kind='tag twice'] > summary")
    panel.click("[data-kind='tag twice'] .tuner-d-a-mend")
    panel.sees("[data-kind='tag twice'] #tuner-d-said", "1 of 1 change")
    panel.click("#tuner-d-apply")
    expect(panel.page.locator("#tuner-d-undo")).to_contain_text("twice")
    assert (folder / "b.txt").read_text() == "cat, zwx"
    panel.sees("#tuner-d-a-aged", "check again")
    panel.sees("#tuner-d-a-scope", "all (4)")  # though a finding is filtered by
    panel.click("#tuner-d-a-go")
    expect(panel.page.locator("[data-kind='tag twice']")).to_have_count(0)
    panel.sees("#tuner-d-a-said", "4 pictures checked")
    assert panel.page.locator("#tuner-d-a-aged").is_hidden()


@own_script
def test_of_pictures_that_look_alike_the_others_go_into_the_trash(panel, folder):
    panel.click("#tuner-d-audit > summary")
    panel.click("#tuner-d-a-go")
    panel.click("[data-kind='near duplicate'] > summary")
    panel.click("[data-kind='near duplicate'] li .tuner-button")
    panel.sees("[data-kind='near duplicate'] #tuner-d-said", "go into the trash")
    panel.click("#tuner-d-apply")
    until(lambda: not (folder / "d.png").exists(), 30)  # the smaller copy; the drawings look alike too, and one of them is the best
    assert 1 <= len(list(folder.glob("[abc].png"))) <= 3
    expect(panel.page.locator("#tuner-d-undo")).to_contain_text("trash")
    panel.click("#tuner-d-undo")
    panel.sees("#tuner-d-count", "4 pictures")
    assert (folder / "d.png").exists()


@own_script
def test_nothing_sticks_out(panel):
    panel.click("#tuner-d-tagger > summary")
    panel.sees("#tuner-d-t-go")
    panel.click("#tuner-d-audit > summary")
    panel.click("#tuner-d-a-go")
    panel.sees("#tuner-d-a-said")
    for width in (1280, 800, 390):
        panel.page.set_viewport_size({"width": width, "height": 800})
        wide = "[...document.querySelectorAll('#tuner-dataset *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.tuner-d-grid')).map((e) => e.outerHTML.slice(0, 90))"
        assert panel.page.evaluate(wide) == [] and panel.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, width
