"""The tagger and the checks in a real browser, offline: tag drawings, move a threshold, apply, undo; check, filter by what was found, mend it."""

from __future__ import annotations

import re

import pytest
import torch
from browsing import Page, browser, expect, own_script, server  # noqa: F401
from conftest import until

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
    for typed, said in (("abc", "Resolution: abc is not a number"), (" ", "Resolution is empty")):
        panel.page.fill("#tuner-d-a-size", typed)
        panel.click("#tuner-d-a-go")
        panel.sees("#tuner-d-message", said)
    panel.page.fill("#tuner-d-a-size", "512")
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


@own_script
def test_a_tag_is_chosen_from_what_is_suggested_with_the_keyboard(panel, folder):
    panel.page.locator("[data-row='1']").dblclick()
    field, options = panel.page.locator("#tuner-d-add"), panel.page.locator(".tuner-d-adding [role=option]")
    expect(panel.page.locator("#tuner-d-next")).to_be_focused()
    field.press_sequentially("S")
    expect(options.first).to_contain_text("tagger's list")  # the folder has no such tag, the embedded tagger's list has
    assert panel.page.locator(".tuner-d-adding [data-tag=star]").count() == 1
    field.fill("z")
    expect(options).to_have_text(["zwx1"])
    field.press("ArrowDown")
    expect(options.first).to_have_attribute("aria-selected", "true")
    field.press("Enter")  # into the field; with another one it is added
    assert field.input_value() == "zwx" and (folder / "b.txt").read_text() == CAPTIONS["b"]
    expect(options).to_have_count(0)
    field.fill("sta")
    expect(options.first).to_contain_text("star")
    field.press("Escape")
    expect(options).to_have_count(0)
    assert panel.page.locator("#tuner-d-view").is_visible()  # the list alone is left
    field.press("Enter")
    panel.sees(".tuner-d-chips", "sta")
    panel.page.keyboard.press("Escape")
    panel.sees("#tuner-d-grid")


@own_script
def test_in_a_field_of_several_tags_the_one_in_which_one_types_is_completed(panel):
    field = panel.page.locator("#tuner-d-f-tags")
    field.fill("cat, sta")
    panel.page.locator("#tuner-d-edits [role=option]", has_text="star").click()
    assert field.input_value() == "cat, star" and panel.page.evaluate("document.activeElement.id") == "tuner-d-f-tags"
    panel.sees("#tuner-d-said", "4 of 4 change")  # a choice is as good as typing
    field.press("Home")
    field.press("z")
    expect(panel.page.locator("#tuner-d-edits [role=option]")).to_have_count(0)
    field.press("Delete")
    field.press("Delete")
    field.press("Delete")
    panel.page.locator("#tuner-d-edits [role=option]", has_text="zwx").click()
    assert field.input_value() == "zwx, star"


@own_script
def test_a_model_of_the_webui_describes_pictures_and_another_mode_asks_it_no_more(panel, folder):
    panel.click("#tuner-d-tagger > summary")
    panel.page.select_option("#tuner-d-t-model", "BLIP")
    assert panel.page.locator("#tuner-d-t-general").count() == 0 and panel.page.locator("#tuner-d-t-second").count() == 0
    panel.click("#tuner-d-t-go")
    panel.sees("#tuner-d-said", "2 of 4 change")
    panel.sees("#tuner-d-plan", "a picture whose middle is")
    assert not (folder / "c.txt").exists()
    panel.page.select_option("#tuner-d-t-mode", "prepend")
    expect(panel.page.locator("#tuner-d-t-moved")).to_contain_text("2 pictures were not described")
    panel.click("#tuner-d-t-go")
    panel.sees("#tuner-d-said", "4 of 4 change")
    panel.click("#tuner-d-tag-slot #tuner-d-apply")
    expect(panel.page.locator("#tuner-d-undo")).to_contain_text("Description by BLIP (4)")
    assert (folder / "a.txt").read_text().endswith("all over, mine") and (folder / "c.txt").read_text().endswith("all over")
    panel.click("#tuner-d-undo")
    expect(panel.page.locator("#tuner-d-redo")).to_contain_text("BLIP")
    assert (folder / "a.txt").read_text() == "mine" and not (folder / "c.txt").exists()


@own_script
def test_what_goes_by_scores_says_that_there_are_none(panel):
    panel.page.select_option("#tuner-d-edit", "sort")
    panel.page.select_option("#tuner-d-f-by", "confidence")
    panel.sees("#tuner-d-plan", "No tagger has seen these pictures; tag them first.")
    panel.page.select_option("#tuner-d-edit", "above")
    panel.page.fill("#tuner-d-f-least", "0.5")
    panel.sees("#tuner-d-plan", "No tagger has seen these pictures; tag them first.")
    panel.page.evaluate("tuner.data.begin('tags/score', {taggers: ['demo'], mode: 'merge', rows: [1]})")
    expect(panel.page.locator("#tuner-d-work")).to_be_hidden()
    panel.page.fill("#tuner-d-f-least", "0.6")
    panel.sees("#tuner-d-said", re.compile("of 4 change"))
    panel.sees("#tuner-d-plan", "a.png has no scores")


@own_script
def test_many_files_that_are_written_say_how_far_they_are_and_few_say_nothing(panel, folder):
    """The server's word of how far it is stands in for ten thousand captions."""
    held, asked, shown = [], [], "document.querySelector('#tuner-d-work').hidden"
    panel.page.route("**/apply", lambda route: held.append(route))
    panel.page.route("**/job", lambda route: (asked.append(1), route.fulfill(json={"job": {"name": "write", "state": "running", "stage": "apply", "done": 2500, "total": 10000, "left": 4.2, "error": "", "result": None, "stoppable": False}}))[1] if held else route.continue_())
    panel.page.fill("#tuner-d-f-tags", "new")
    panel.sees("#tuner-d-said", "4 of 4 change")
    panel.click("#tuner-d-apply")
    panel.sees("#tuner-d-work", "Writing captions 2500/10000")
    assert not panel.page.locator("#tuner-d-stop").is_visible()  # all or nothing
    panel.page.locator("[data-row='0']").click()  # the page itself does not wait
    expect(panel.page.locator("[data-row='0']")).to_have_class(re.compile("tuner-d-current"))
    route = held.pop()
    route.continue_()
    expect(panel.page.locator("#tuner-d-undo")).to_contain_text("new, last (4)")
    expect(panel.page.locator("#tuner-d-work")).to_be_hidden()
    panel.page.unroute("**/apply")
    before = len(asked)
    panel.page.evaluate(f"window.seen = []; new MutationObserver(() => seen.push({shown})).observe(document.querySelector('#tuner-d-work'), {{ attributes: true }})")
    panel.click("#tuner-d-undo")
    expect(panel.page.locator("#tuner-d-redo")).to_contain_text("new, last (4)")
    assert panel.page.evaluate("seen") == [] and len(asked) == before and (folder / "a.txt").read_text() == "mine"


@own_script
def test_advice_to_keep_a_tag_shows_its_pictures_and_is_marked_as_done(panel, folder):
    for name, text in {"a": "standing, cat", "b": "standing, cat", "c": "standing, grass (soft)", "d": "outdoors, standing, cat"}.items():
        (folder / f"{name}.txt").write_text(text)
    panel.click("#tuner-d-read")
    panel.sees("#tuner-d-tags", "standing")  # the folder is read, and all is drawn anew
    panel.click("#tuner-d-audit > summary")
    panel.page.select_option("#tuner-d-a-goal", "clothing")
    panel.click("#tuner-d-a-go")
    panel.sees("#tuner-d-audit h5", "Advice")
    kind = panel.page.locator("[data-kind=keep]")
    kind.locator("summary").click()
    outdoors = kind.locator("li", has_text="'outdoors'")
    before = kind.locator("li").count()
    outdoors.locator("button", has_text="Show pictures with it").click()
    cells(panel, "d.png")
    assert panel.page.input_value("#tuner-d-filter") == "outdoors"
    panel.sees("#tuner-d-a-scope", "all (4)")  # a check is of all, though advice was looked at
    outdoors.locator("button", has_text="Done").click()
    expect(kind.locator("li")).to_have_count(before - 1)
    panel.sees("#tuner-d-a-done", "1 marked as done")
    panel.click("#tuner-d-a-go")  # what is done is done for another check too, and after the page was loaded anew
    panel.sees("#tuner-d-a-done", "1 marked as done")
    expect(kind.locator("li")).to_have_count(before - 1)
    panel.click("#tuner-d-a-done button")
    expect(kind.locator("li")).to_have_count(before)
    assert panel.page.locator("#tuner-d-a-done").count() == 0


@own_script
def test_advice_to_vary_shows_what_has_a_tag_and_what_lacks_it(panel, folder):
    for name, text in {"a": "outdoors, cat", "b": "outdoors, cat", "c": "outdoors", "d": "indoors"}.items():
        (folder / f"{name}.txt").write_text(text)
    panel.click("#tuner-d-read")
    panel.sees("#tuner-d-tags", "indoors")  # the folder is read, and all is drawn anew
    panel.click("#tuner-d-audit > summary")
    panel.page.select_option("#tuner-d-a-goal", "clothing")
    panel.click("#tuner-d-a-go")
    kind = panel.page.locator("[data-kind=vary]")
    kind.locator("summary").click()
    kind.locator("li button", has_text="Show pictures without it").click()
    cells(panel, "d.png")
    kind.locator("li button", has_text="Show pictures with it").click()
    cells(panel, "a.png b.png c.png")
