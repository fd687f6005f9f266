"""The data-set panel in a real browser: open, filter, edit, undo, write a caption, the trash; what is seen, and what is on the disk."""

from __future__ import annotations

import re

import pytest
from browsing import Page, browser, expect, own_script, server  # noqa: F401
from conftest import until
from PIL import Image

CAPTIONS = {"a.png": "cat, lips", "b.png": "cat, lips, hat", "c.png": None, "d.png": "A cat sits on a mat. It sleeps."}


@pytest.fixture
def folder(tmp_path):
    below = tmp_path / "10_cat"
    below.mkdir()
    for i, (name, caption) in enumerate(CAPTIONS.items()):
        Image.new("RGB", (300, 200 + 50 * i), (60 * i, 90, 200 - 40 * i)).save(below / name)
        if caption is not None:
            (below / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return below


@pytest.fixture
def other(tmp_path):
    """Another folder, with one picture."""
    (tmp_path / "other").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "other" / "z.png")
    return tmp_path / "other"


@pytest.fixture
def panel(browser, server, folder):  # noqa: F811
    made = Panel(browser, server)
    made.show(folder)
    yield made
    odd = made.odd()
    made.page.evaluate("tuner.data.folder && tuner.data.send('close')")
    made.context.close()
    assert made.errors == [] and odd == []


class Panel(Page):
    """The page with a folder open in the panel."""

    def show(self, folder):
        self.click("#tuner-view-data")
        self.page.fill("#tuner-d-folder", str(folder))
        self.click("#tuner-d-open")
        self.there()

    def there(self):
        """Waits for the folder, which a reload opens again."""
        self.sees("#tuner-d-count", "4 pictures")
        self.shown("a.png b.png c.png d.png")

    def shown(self, names):
        """Waits until these pictures are in the grid, and no others."""
        until(lambda: sorted(self.page.locator(".tuner-d-name").all_inner_texts()) == names.split(), 60)

    def keys(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def odd(self):
        """What a page says where a script has a mistake."""
        return re.findall(r"\b(?:null|undefined|NaN)\b|\[object \w+\]", self.page.locator("#tuner-data-root").inner_text())

    def drop(self, tag):
        """Asks what it would change to remove a tag that two pictures have."""
        self.page.fill("#tuner-d-like", tag)
        self.sees("#tuner-d-tags-head", "Tags: 1")
        self.click("#tuner-d-tags .tuner-d-drop")
        self.sees("#tuner-d-said", "2 of 4 change")

    def has_back(self, words, file):
        """Waits until words that were not saved are in the field of the third picture again; going on saves them."""
        self.sees("#tuner-d-message", "your words are in the field again")
        assert self.page.input_value("#tuner-d-text") == words
        self.keys("Alt+ArrowLeft")
        self.sees("#tuner-d-view strong", "b.png")
        assert file.read_text() == words

    def undo(self, what):
        """Waits until this can be undone."""
        expect(self.page.locator("#tuner-d-undo")).to_contain_text(what)


@own_script
def test_a_tag_is_removed_everywhere_with_one_field_and_two_clicks_and_undo_brings_it_back(panel, folder):
    panel.drop("lips")
    assert panel.page.locator(".tuner-d-sample del").all_inner_texts() == ["lips", "lips"]
    assert (folder / "a.txt").read_text() == "cat, lips"
    panel.click("#tuner-d-apply")
    panel.undo("lips")
    assert [(folder / f"{name}.txt").read_text() for name in "abd"] == ["cat", "cat, hat", CAPTIONS["d.png"]]
    panel.keys("u")  # the grid has the focus again
    expect(panel.page.locator("#tuner-d-redo")).to_contain_text("lips")
    assert [(folder / f"{name}.txt").read_text() for name in "ab"] == ["cat, lips", "cat, lips, hat"]
    panel.click("#tuner-d-redo")
    panel.undo("lips")
    assert (folder / "a.txt").read_text() == "cat"


@own_script
def test_an_undo_asks_before_it_leaves_what_was_changed_since(panel, folder):
    panel.drop("lips")
    panel.click("#tuner-d-apply")
    panel.undo("lips")
    (folder / "a.txt").write_text("typed elsewhere")
    asked = []
    panel.page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    with panel.page.expect_event("dialog"):
        panel.click("#tuner-d-undo")
    assert asked == ["Changed since, so left as they are now: a.txt. Take back the rest (files: 1)?"] and (folder / "b.txt").read_text() == "cat, hat"
    panel.page.once("dialog", lambda dialog: dialog.accept())
    panel.click("#tuner-d-undo")
    panel.sees("#tuner-d-message", "left as they are now: a.txt; files taken back: 1.")
    assert (folder / "b.txt").read_text() == "cat, lips, hat" and (folder / "a.txt").read_text() == "typed elsewhere"


def test_pictures_are_filtered_and_a_wrong_filter_is_said(panel):
    panel.page.fill("#tuner-d-filter", "lips, NOT hat")
    panel.shown("a.png")
    panel.sees("#tuner-d-found", "1")
    panel.page.fill("#tuner-d-filter", "(lips")
    panel.sees("#tuner-d-wrong", "( that is not closed")
    panel.shown("a.png")  # what was there stays
    panel.page.fill("#tuner-d-filter", "untagged OR tags:>2")
    panel.shown("b.png c.png")
    expect(panel.page.locator("#tuner-d-wrong")).to_have_text("")
    panel.page.fill("#tuner-d-filter", "nothing")
    panel.sees(".tuner-d-none", "No picture fits the filter.")
    panel.page.fill("#tuner-d-filter", "foo:bar")
    panel.sees("#tuner-d-hint", "There is no condition 'foo'")
    panel.page.fill("#tuner-d-filter", "")
    panel.click("[data-tag=hat] .tuner-d-tag")
    panel.shown("b.png")
    assert panel.page.input_value("#tuner-d-filter") == "hat"
    loaded = "[...document.querySelectorAll('.tuner-d-cell img')].every((image) => image.complete && image.naturalWidth > 0)"
    panel.holds(loaded)


@own_script
def test_a_caption_is_typed_and_saved_by_itself(panel, folder):
    panel.page.locator("[data-row='2']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    panel.page.fill("#tuner-d-text", "a third cat")
    expect(panel.page.locator("#tuner-d-state")).to_contain_text("not saved yet")
    panel.keys("Alt+ArrowRight")  # on to the next picture: what was typed is saved first
    panel.sees("#tuner-d-view strong", "d.png")
    assert (folder / "c.txt").read_text() == "a third cat"
    panel.click("#tuner-d-prev")
    panel.sees("#tuner-d-view strong", "c.png")
    assert panel.page.input_value("#tuner-d-text") == "a third cat"
    panel.page.locator("#tuner-d-text").type(" here")
    panel.sees("#tuner-d-state", re.compile("· saved"))  # while the field still has the focus
    assert (folder / "c.txt").read_text() == "a third cat here" and panel.page.evaluate("document.activeElement.id") == "tuner-d-text"
    panel.keys("Escape")
    panel.sees("#tuner-d-grid")
    panel.undo("Edit of a caption")


@own_script
def test_what_cannot_be_saved_stays_in_its_field_and_is_said(panel, folder):
    panel.page.locator("[data-row='0']").dblclick()
    panel.sees("#tuner-d-text")
    (folder / "a.txt").write_text("another program's words")
    panel.page.fill("#tuner-d-text", "my words")
    panel.keys("Escape")
    panel.sees("#tuner-d-message", "a.txt changed on the disk")
    assert panel.page.input_value("#tuner-d-text") == "my words" and (folder / "a.txt").read_text() == "another program's words"
    panel.click("#tuner-d-read")
    panel.sees("#tuner-d-message", "The file says: another program's words")
    assert panel.page.input_value("#tuner-d-text") == "my words" and (folder / "a.txt").read_text() == "another program's words"
    panel.keys("Alt+ArrowRight")
    panel.sees("#tuner-d-view strong", "b.png")
    assert (folder / "a.txt").read_text() == "my words"
    panel.click("#tuner-d-undo")
    until(lambda: (folder / "a.txt").read_text() == "another program's words")


@own_script
def test_a_picture_that_cannot_be_read_is_said_in_large(panel, folder):
    (folder / "b.png").write_bytes(b"no picture")
    panel.click("#tuner-d-read")
    panel.sees("[data-row='1'] .tuner-d-broken")  # the grid was drawn anew
    panel.page.locator("[data-row='1'] .tuner-d-name").dblclick()
    panel.sees("#tuner-d-large", "This picture cannot be shown.")
    assert panel.page.locator("#tuner-d-large img").count() == 0
    panel.click("#tuner-d-next")
    panel.sees("#tuner-d-large img")


@own_script
def test_two_pages_do_not_take_each_others_words(panel, folder):
    panel.page.locator("[data-row='0']").dblclick()
    panel.sees("#tuner-d-text")
    panel.page.evaluate("tuner.data.send('edit', {name: 'add', args: {tags: 'from elsewhere'}, rows: [0]})")  # as another page does
    until(lambda: "from elsewhere" in (folder / "a.txt").read_text())
    panel.page.fill("#tuner-d-text", "cat, lips, mine")
    panel.keys("Escape")
    panel.sees("#tuner-d-message", "changed elsewhere meanwhile")
    assert (folder / "a.txt").read_text() == "cat, lips, from elsewhere"
    panel.click("#tuner-d-give-up")
    until(lambda: panel.page.input_value("#tuner-d-text") == "cat, lips, from elsewhere")
    panel.keys("Escape")
    panel.sees("#tuner-d-grid")


@own_script
def test_a_double_click_opens_a_picture_once(panel):
    """Opened a second time, it would take the focus from the field in which one types already."""
    panel.page.evaluate("""() => {
        const { view } = tuner.data, { open } = view;
        window.opened = [];
        view.open = (row) => { window.opened.push(row); return open(row); };
    }""")
    panel.page.locator("[data-row='1']").dblclick()
    expect(panel.page.locator("#tuner-d-next")).to_be_focused()
    panel.page.keyboard.press("Escape")
    panel.sees("#tuner-d-grid")
    panel.page.locator("[data-row='1']").click()  # one is enough on the picture that one comes from
    expect(panel.page.locator("#tuner-d-next")).to_be_focused()
    assert panel.page.evaluate("window.opened") == [1, 1]


@own_script
def test_on_from_a_picture_that_left_the_filter(panel):
    panel.page.fill("#tuner-d-filter", "lips OR untagged")
    panel.shown("a.png b.png c.png")
    panel.page.locator("[data-row='1']").dblclick()
    panel.sees("#tuner-d-view strong", "b.png")
    panel.click(".tuner-d-chip >> nth=1 >> button")
    panel.sees("#tuner-d-view small", "does not fit the filter any more")
    panel.click("#tuner-d-next")
    panel.sees("#tuner-d-view strong", "c.png")


@own_script
def test_tags_are_added_and_removed_as_chips(panel, folder):
    panel.page.locator("[data-row='0']").click()
    panel.keys("t")
    expect(panel.page.locator("#tuner-d-add")).to_be_focused()
    panel.page.locator("#tuner-d-add").type("red hair, smile")
    panel.keys("Enter")
    panel.sees(".tuner-d-chips", "smile")
    assert (folder / "a.txt").read_text() == "cat, lips, red hair, smile"
    panel.click(".tuner-d-chip >> nth=1 >> button")
    panel.undo("lips")
    assert (folder / "a.txt").read_text() == "cat, red hair, smile"


@own_script
def test_many_captions_are_edited_with_a_form(panel, folder):
    panel.page.fill("#tuner-d-filter", "cat")
    panel.shown("a.png b.png")
    panel.page.fill("#tuner-d-f-tags", "zwx {folder}")
    panel.page.select_option("#tuner-d-f-where", "first")
    panel.sees("#tuner-d-said", "2 of 2 change")
    panel.click("#tuner-d-scope-all")
    panel.sees("#tuner-d-said", "4 of 4 change")
    panel.click("#tuner-d-apply")
    panel.undo("zwx")
    assert [(folder / f"{name}.txt").read_text() for name in "abc"] == ["zwx cat, cat, lips", "zwx cat, cat, lips, hat", "zwx cat"]
    panel.page.select_option("#tuner-d-edit", "rename")
    panel.page.fill("#tuner-d-f-old", "cat")
    panel.sees("#tuner-d-plan", "New name is to be filled in yet.")
    panel.page.fill("#tuner-d-f-new", "dog")
    panel.sees("#tuner-d-said", "2 of")
    panel.page.select_option("#tuner-d-edit", "truncate")
    panel.page.fill("#tuner-d-f-limit", "abc")
    panel.sees("#tuner-d-plan .tuner-bad-text", "Tokens is to be a whole number.")
    panel.page.select_option("#tuner-d-edit", "regex")
    panel.page.fill("#tuner-d-f-pattern", "(")
    panel.page.fill("#tuner-d-f-text", "x")
    panel.holds("(document.querySelector('#tuner-d-plan .tuner-bad-text') || { innerText: '' }).innerText.startsWith(\"'(' with 'x' is no regular\")")  # not `regex: ...`
    panel.sees("#tuner-d-plan [role=alert]")
    panel.page.fill("#tuner-d-f-pattern", "l(i)ps")
    panel.page.fill("#tuner-d-f-text", r"\1\1")
    panel.sees("#tuner-d-said", "2 of")
    panel.click("#tuner-d-apply")
    panel.undo("l(i)ps")
    assert (folder / "a.txt").read_text() == "zwx cat, cat, ii"


@own_script
def test_the_keyboard_is_enough(panel, folder):
    panel.page.focus("#tuner-d-grid")
    panel.keys("ArrowRight", "ArrowRight", "Space", "j", "Space")
    panel.sees("#tuner-d-selection", "2 selected")
    panel.keys("Delete")
    panel.sees("#tuner-d-said", "2 pictures and their captions")
    assert (folder / "b.png").exists()
    panel.keys("Enter")  # the button has the focus
    panel.sees("#tuner-d-count", "2 pictures")
    panel.shown("a.png d.png")
    assert not (folder / "b.png").exists() and not (folder / "b.txt").exists()
    panel.keys("Control+z")
    panel.shown("a.png b.png c.png d.png")
    panel.keys("Control+a")
    panel.sees("#tuner-d-selection", "4 selected")
    panel.keys("Escape", "Home", "c", "j", "j", "v")
    panel.undo("Paste tags")
    assert (folder / "c.txt").read_text() == "cat, lips"
    panel.keys("/")
    expect(panel.page.locator("#tuner-d-filter")).to_be_focused()


@own_script
def test_ten_thousand_pictures_are_a_few_cells(panel, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(10_000):
        (many / f"{i:05}.png").touch()
    panel.page.fill("#tuner-d-folder", str(many))
    panel.click("#tuner-d-open")
    panel.sees("#tuner-d-count", "10,000 pictures")
    until(lambda: 0 < panel.page.locator(".tuner-d-cell").count() < 80, 60)
    panel.page.focus("#tuner-d-grid")
    panel.keys("End")
    panel.sees("#tuner-d-grid .tuner-d-current .tuner-d-name", "09999.png")
    assert panel.page.locator(".tuner-d-cell").count() < 80


def test_train_on_this_fills_the_form(panel, folder):
    panel.click("#tuner-d-audit > summary")
    panel.page.fill("#tuner-d-a-trigger", "zwx cat")
    panel.click("#tuner-d-train")
    until(lambda: panel.field("data.folder").input_value() == str(folder), 30)
    assert panel.page.locator("#tuner-train").is_visible() and not panel.page.locator("#tuner-dataset").is_visible()
    prompts = panel.field("sample.prompts").input_value()
    assert prompts.startswith("zwx cat\n") and "robot" in prompts and panel.field("data.keep_tags").input_value() == "1"
    panel.sees("#tuner-live .tuner-message", "zwx cat is a sample prompt")


@own_script
def test_nothing_sticks_out(panel, browser, server):  # noqa: F811
    for width in (1280, 800, 390):
        panel.page.set_viewport_size({"width": width, "height": 800})
        assert panel.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, width
        wide = "[...document.querySelectorAll('#tuner-dataset *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.tuner-d-grid')).map((e) => e.outerHTML.slice(0, 90))"
        assert panel.page.evaluate(wide) == [], width


@own_script
def test_one_is_not_several(panel, folder, tmp_path):
    one = tmp_path / "10_dog"
    one.mkdir()
    Image.new("RGB", (300, 200), "red").save(one / "a.png")
    (one / "a.txt").write_text("dog")
    panel.page.fill("#tuner-d-folder", str(one))
    panel.click("#tuner-d-open")
    panel.shown("a.png")
    expect(panel.page.locator("#tuner-d-count")).to_have_text("1 picture")
    expect(panel.page.locator("[data-row='0'] small")).to_have_text("1 tag")
    panel.click("#tuner-d-tags .tuner-d-drop")
    expect(panel.page.locator("#tuner-d-said")).to_have_text("1 of 1 changes")
    panel.sees("#tuner-d-plan", "1 caption loses all its words.")
    panel.click("#tuner-d-audit > summary")
    panel.click("#tuner-d-a-go")
    panel.sees("#tuner-d-a-said", "1 picture checked.")
    panel.click("[data-row='0'] .tuner-d-shown")
    panel.keys("Delete")
    panel.sees("#tuner-d-said", "1 picture and its caption go into the trash")
    panel.page.evaluate("tuner.data.send('close')")
    panel.page.fill("#tuner-d-folder", str(folder))
    panel.click("#tuner-d-open")
    expect(panel.page.locator("#tuner-d-count")).to_have_text("4 pictures")


def held(page, path):
    """The first request to this path, which waits until somebody lets it go on."""
    routes = []
    page.route(path, lambda route: routes.append(route), times=1)  # playwright takes no method of a list
    return routes


@own_script
def test_words_that_are_typed_while_the_folder_is_read_stay_in_their_field(panel, folder):
    panel.page.locator("[data-row='2']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    reads = held(panel.page, "**/read")
    with panel.page.expect_request("**/read"):
        panel.click("#tuner-d-read")
    panel.page.fill("#tuner-d-text", "typed meanwhile")
    reads.pop().continue_()
    panel.has_back("typed meanwhile", folder / "c.txt")


@own_script
def test_an_answer_from_before_an_edit_is_not_shown_after_it(panel, folder):
    panel.page.locator("[data-row='0']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    chips, holding, early = panel.page.locator("#tuner-d-view .tuner-d-chips[aria-label=Tags] li span"), [True], []
    panel.page.route("**/details", lambda route: early.append((route, route.fetch())) if holding else route.continue_())
    panel.page.locator("#tuner-d-add").press_sequentially("dog\n")
    until(lambda: panel.page.evaluate("true") and early)
    holding.clear()
    panel.page.locator("#tuner-d-add").press_sequentially("hat\n")
    expect(chips).to_have_text(["cat", "lips", "dog", "hat"])
    for route, answer in early:
        with panel.page.expect_response("**/details"):
            route.fulfill(response=answer)
    panel.page.evaluate("new Promise((done) => setTimeout(done))")
    expect(chips).to_have_text(["cat", "lips", "dog", "hat"])
    assert panel.page.evaluate("tuner.data.details.get(0).text") == (folder / "a.txt").read_text() == "cat, lips, dog, hat"


@own_script
def test_tags_that_are_typed_quickly_are_all_added(panel, folder):
    panel.page.locator("[data-row='0']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    edits = held(panel.page, "**/edit")
    with panel.page.expect_request("**/edit"):
        panel.page.locator("#tuner-d-add").press_sequentially("dog\n")
    panel.page.locator("#tuner-d-add").press_sequentially("hat\nbir")
    edits.pop().continue_()
    expect(panel.page.locator("#tuner-d-view .tuner-d-chips[aria-label=Tags] li")).to_have_text([re.compile(tag) for tag in ("cat", "lips", "dog", "hat")])
    assert (folder / "a.txt").read_text() == "cat, lips, dog, hat"
    assert panel.page.input_value("#tuner-d-add") == "bir" and panel.page.evaluate("document.activeElement.id") == "tuner-d-add"
    (folder / "a.txt").unlink()
    (folder / "a.txt").mkdir()  # cannot be written
    panel.page.locator("#tuner-d-add").press_sequentially("d\n")
    expect(panel.page.locator("#tuner-d-message")).to_be_visible()
    assert panel.page.input_value("#tuner-d-add") == "bird"


@own_script
def test_an_answer_for_a_folder_that_is_not_shown_any_more_is_left_out(panel, folder, other):
    panel.drop("lips")
    applies = held(panel.page, "**/apply")
    button = panel.page.locator("#tuner-d-apply").element_handle()
    with panel.page.expect_request("**/apply"):
        panel.click("#tuner-d-apply")
    panel.page.fill("#tuner-d-folder", str(other))
    panel.click("#tuner-d-open")
    panel.sees("#tuner-d-count", "1 picture")
    panel.shown("z.png")
    applies.pop().continue_()
    panel.holds("(button) => button.getAttribute('aria-busy') === null", arg=button)
    assert (folder / "a.txt").read_text() == "cat"
    expect(panel.page.locator("#tuner-d-undo")).to_be_disabled()
    expect(panel.page.locator("#tuner-d-count")).to_have_text("1 picture")


@own_script
def test_words_for_a_folder_that_the_program_has_forgotten_go_along_when_it_is_opened_again(panel, folder):
    panel.page.locator("[data-row='2']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    panel.page.evaluate("tuner.data.send('close')")  # as a program that was started anew knows no folder
    panel.page.fill("#tuner-d-text", "typed before")
    panel.click("#tuner-d-open")
    panel.has_back("typed before", folder / "c.txt")


@own_script
def test_an_answer_to_what_the_fields_said_before_is_no_plan(panel, folder):
    panel.page.select_option("#tuner-d-edit", "replace")
    panel.page.fill("#tuner-d-f-text", "x")
    plans = held(panel.page, "**/plan")
    with panel.page.expect_request("**/plan"):
        panel.page.fill("#tuner-d-f-find", "lips")
    panel.page.evaluate("setTimeout = () => 0")  # the next check waits
    panel.page.fill("#tuner-d-f-text", "mouth")
    with panel.page.expect_response("**/plan"):
        plans.pop().continue_()
    panel.page.evaluate("tuner.data.get('history')")
    expect(panel.page.locator("#tuner-d-apply")).to_have_count(0)


@own_script
def test_words_for_a_picture_that_is_gone_are_said(panel, folder):
    panel.page.locator("[data-row='3']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    panel.page.evaluate("tuner.data.send('close')")
    panel.page.fill("#tuner-d-text", "typed in vain")
    for name in ("d.png", "d.txt"):
        (folder / name).unlink()
    panel.click("#tuner-d-open")
    panel.sees("#tuner-d-message", "d.png: typed in vain")


@own_script
def test_tags_that_wait_are_for_the_folder_in_which_they_were_typed(panel, folder, other):
    panel.page.locator("[data-row='0']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    edits = held(panel.page, "**/edit")
    with panel.page.expect_request("**/edit"):
        panel.page.locator("#tuner-d-add").press_sequentially("dog\nhat\n")
    panel.page.fill("#tuner-d-folder", str(other))
    panel.click("#tuner-d-open")
    edits.pop().continue_()
    panel.sees("#tuner-d-count", "1 picture")
    assert (folder / "a.txt").read_text() == "cat, lips, dog, hat" and not (other / "z.txt").exists()


@own_script
def test_a_caption_that_cannot_be_read_again_after_an_edit_is_told(panel):
    panel.page.locator("[data-row='0']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    panel.page.route("**/details", lambda route: route.fulfill(status=500, json={"error": "It is gone."}))
    panel.page.locator("#tuner-d-add").press_sequentially("dog\n")
    panel.sees("#tuner-d-message", "It is gone.")


@own_script
def test_what_is_asked_about_a_picture_is_not_asked_about_the_next_folders(panel, other):
    panel.page.locator("[data-row='2']").dblclick()
    panel.sees("#tuner-d-state", "saved")
    details, asked = held(panel.page, "**/details"), []
    with panel.page.expect_request("**/details"):
        panel.page.locator("#tuner-d-add").press_sequentially("dog\n")
    panel.page.fill("#tuner-d-folder", str(other))
    panel.click("#tuner-d-open")
    panel.sees("#tuner-d-count", "1 picture")
    panel.shown("z.png")
    panel.page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/details") else None)
    with panel.page.expect_response("**/details"):
        details.pop().continue_()
    panel.status()  # what the answer leads to is under way by then
    assert asked == []


@own_script
def test_tags_are_no_words_of_the_page_in_any_language(panel, folder):
    (folder / "a.txt").write_text("running, safe")
    panel.click("#tuner-d-read")
    panel.page.locator("[data-tag=running]").wait_for()
    panel.click("[data-language=zh_CN]")
    panel.sees("#tuner-d-count", "4 张图片")
    assert panel.page.locator("[data-tag=running] .tuner-d-tag span, [data-tag=safe] .tuner-d-tag span").all_inner_texts() == ["running", "safe"]
