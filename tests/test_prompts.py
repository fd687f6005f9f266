"""Captions: what a template, the trigger word and each tag option make of them."""

import pickle
from collections import Counter
from itertools import permutations
from pathlib import Path
from random import Random

import pytest

from lib_tuner.data.item import Item
from lib_tuner.data.prompts import Prompts, Triggers, shipped_templates, split_tags, template_lines
from lib_tuner.settings import DataConfig

TAGS = "one, two, three, four, five, six"


def caption(text=TAGS, trigger="", seed=0, step=0, is_class=False, **settings):
    return Prompts(DataConfig(**settings), trigger).caption(Item(Path("a.png"), text, is_class=is_class), Random(seed), step)


def captions(n=300, text=TAGS, **more):
    return [caption(text, seed=seed, **more) for seed in range(n)]


def test_without_options_the_caption_is_itself():
    assert caption("a cat ,  sitting. (red:1.2) [blue]") == "a cat ,  sitting. (red:1.2) [blue]"
    assert caption("a cat\nand a dog") == "a cat and a dog"


def test_escaped_parentheses_become_the_letters_that_a_prompt_would_give():
    assert caption(r"saber_\(fate\), \[x\], a\b") == r"saber_(fate), [x], a\b"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a cat", "zwx, a cat"),
        ("", "zwx"),
        ("a ZWX cat", "a ZWX cat"),
        ("zwx2, a cat", "zwx, zwx2, a cat"),
        ("a photo of [name]", "a photo of zwx"),
    ],
)
def test_the_trigger_word_comes_first_where_it_is_missing(text, expected):
    assert caption(text, trigger="zwx") == expected


@pytest.mark.parametrize("text, expected", [
    ("a photo of cat-a", "a photo of cat-a"), ("Red Hat beside CAT-A", "Red Hat beside CAT-A"), ("a photo of [name]", "a photo of cat-a red hat"),
    ("a photo of cat", "cat-a red hat, a photo of cat"), ("a hat", "cat-a red hat, a hat"), ("", "cat-a red hat"),
])  # fmt: skip
def test_of_several_words_a_caption_with_one_gets_no_other(text, expected):
    words = Triggers.of(["cat-a", "red hat"])
    for trigger in (words, pickle.loads(pickle.dumps(words))):
        assert caption(text, trigger=trigger) == expected
    assert Prompts(DataConfig(), words).tags(Item(Path("a.png"), "a cat-a, red")) == ["a cat-a", "red"]


@pytest.mark.parametrize(("text", "name"), [("a cat-a sitting", "cat-a"), ("a RED HAT on a cat-a", "cat-a red hat"), ("a cat", "cat-a red hat"), ("", "cat-a red hat")])
def test_of_several_words_the_templates_name_is_what_the_pictures_caption_has(tmp_path, text, name):
    words = Triggers.of(["cat-a", "red hat"])
    (tmp_path / "mine.txt").write_text("a photo of [name]")
    assert caption(text, trigger=words, template=str(tmp_path / "mine.txt")) == f"a photo of {name}"
    assert set(captions(20, text=text, trigger=words, tag_dropout=1.0)) == {name}


@pytest.mark.parametrize(("text", "name"), [("an anna-2 sitting", "anna-2"), ("an anna sitting", "anna"), ("anna beside Anna-2", "anna anna-2"), ("anna-2, anna-2", "anna-2"), ("a cat", "anna anna-2")])
def test_a_word_that_is_a_part_of_another_is_not_meant_where_that_one_stands(tmp_path, text, name):
    (tmp_path / "mine.txt").write_text("a photo of [name]")
    assert caption(text, trigger=Triggers.of(["anna", "anna-2"]), template=str(tmp_path / "mine.txt")) == f"a photo of {name}"


def test_of_several_lines_the_drawn_one_says_which_word_is_meant(tmp_path):
    (tmp_path / "mine.txt").write_text("[name]; [filewords]")
    drawn = set(captions(50, text="a cat-a\na red hat\na thing", trigger=Triggers.of(["cat-a", "red hat"]), template=str(tmp_path / "mine.txt"), wildcards=True))
    assert drawn == {"cat-a; a cat-a", "red hat; a red hat", "cat-a red hat; a thing"}


def test_the_trigger_word_survives_dropped_tags():
    assert set(captions(20, text="zwx, red", trigger="zwx", tag_dropout=1.0)) == {"zwx"}


def test_a_trigger_with_a_comma_is_not_shuffled_apart():
    drawn = captions(60, text="one, Sks, cat, two", trigger="sks, cat", shuffle_tags=True)
    assert {tuple(text.replace("Sks, cat", "T").split(", ")) for text in drawn} == set(permutations(("one", "T", "two")))
    assert set(captions(20, text="sks, cat, one", trigger="sks, cat", shuffle_tags=True, keep_tags=2)) == {"sks, cat, one"}
    drawn = captions(40, text="one, sks, cat, two, three", trigger="sks, cat", shuffle_tags=True, tag_dropout=0.5, keep_tags=2)  # which cuts through it
    assert {text[:13] for text in drawn} == {"one, sks, cat"} and len(set(drawn)) > 3
    assert set(captions(20, text="sks, cat, one", trigger="sks, cat", shuffle_tags=True, keep_tags=1)) == {"sks, cat, one"}
    assert set(captions(20, text="sks, cat", trigger="sks, cat", tag_dropout=0.5)) == {"sks, cat"}


def test_class_pictures_get_neither_trigger_word_nor_template():
    assert caption("a man", trigger="zwx", is_class=True) == "a man"
    assert caption("a man", trigger="zwx", is_class=True, template="subject_filewords") == "a man"
    assert caption("a [name] man, [name]", trigger="zwx", is_class=True) == "a man"


def test_a_template_file_gives_each_of_its_lines(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffa photo of [name], [filewords]\n\n  [filewords] by [name]  \n", encoding="utf-8")
    assert set(captions(50, text="red", trigger="zwx", template=str(file))) == {"a photo of zwx, red", "red by zwx"}


@pytest.mark.parametrize("name", ["style", "style_filewords", "subject", "subject_filewords", "hypernetwork", "none", "name_filewords"])
def test_shipped_templates_have_the_placeholders_of_their_names(name):
    lines = template_lines(name)
    assert lines == template_lines(name + ".txt") and len(lines) == len(set(lines))
    has_name = name not in ("hypernetwork", "none")
    has_words = "filewords" in name or name == "hypernetwork"
    assert all(("[name]" in line) == has_name and ("[filewords]" in line) == has_words for line in lines)


def test_shipped_templates_are_all_listed_and_name_filewords_is_the_plain_one():
    assert shipped_templates() == ["hypernetwork", "name_filewords", "none", "style", "style_filewords", "subject", "subject_filewords"]
    assert caption("red, round", trigger="zwx", template="name_filewords") == "zwx, red, round"
    assert caption("", trigger="zwx", template="name_filewords") == "zwx"


def test_bad_templates_say_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no file 'stile'; name a file, or one of hypernetwork, "):
        caption(template="stile", trigger="zwx")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="has no line"):
        caption(template=str(tmp_path / "empty.txt"))
    with pytest.raises(ValueError, match=r"has \[name\], but there is no trigger word"):
        caption(template="style")


def test_shuffle_gives_every_order_and_loses_nothing():
    orders = captions(text="a, b, c", shuffle_tags=True, n=600)
    count = Counter(orders)
    assert len(count) == 6 and all(60 < n < 140 for n in count.values())  # 100 expected
    assert {frozenset(split_tags(text)) for text in orders} == {frozenset("abc")}


def test_kept_tags_stay_first_through_shuffle_and_dropout():
    for text in captions(50, shuffle_tags=True, tag_dropout=0.5, keep_tags=2):
        assert text.startswith("one, two")
    assert len({tuple(split_tags(text)[2:]) for text in captions(50, shuffle_tags=True, keep_tags=2)}) > 10
    assert set(captions(20, tag_dropout=1.0, keep_tags=1)) == {"one"}


def test_tag_dropout_leaves_out_the_part_it_says():
    kept = sum(len(split_tags(text)) for text in captions(1000, tag_dropout=0.25))
    assert 0.72 < kept / 6000 < 0.78
    assert split_tags(caption(tag_dropout=0.25)) == [tag for tag in split_tags(TAGS) if tag in caption(tag_dropout=0.25)]  # order stays


def test_caption_dropout_leaves_out_everything():
    empty = sum(text == "" for text in captions(1000, trigger="zwx", caption_dropout=0.1))
    assert 70 < empty < 130
    assert caption(caption_dropout=1.0, trigger="zwx", template="style") == ""


def test_token_warm_up_follows_the_formula_of_kohya():
    # floor(step * (tags - min) / warm-up) + min, of the tags that are not kept
    for step, expected in [(0, 1), (1, 1), (19, 1), (20, 2), (50, 3), (99, 5), (100, 6), (500, 6)]:
        assert len(split_tags(caption(step=step, token_warmup=100))) == expected, step
    assert caption(step=0, token_warmup=100, token_warmup_min=3) == "one, two, three"
    assert caption(step=0, token_warmup=100, token_warmup_min=1, keep_tags=2) == "one, two, three"
    assert caption(step=0, token_warmup=100, token_warmup_min=9) == TAGS


def test_wildcards_choose_one_alternative_and_one_line():
    assert set(captions(text="a {red|blue} ball\n\na cat", wildcards=True)) == {"a red ball", "a blue ball", "a cat"}
    assert set(captions(text="{{a|b}} c", wildcards=True)) == {"{a|b} c"}
    assert caption("a {red|blue} ball\na cat") == "a {red|blue} ball a cat"


def test_wildcards_come_before_the_tag_options():
    assert {len(split_tags(text)) for text in captions(30, text="{a, b|c, d}", wildcards=True, shuffle_tags=True)} == {2}


def test_the_same_numbers_give_the_same_caption():
    settings = dict(shuffle_tags=True, tag_dropout=0.3, wildcards=True, template="style_filewords", trigger="zwx")
    assert captions(30, **settings) == captions(30, **settings)
    assert len(set(captions(30, **settings))) > 10


def test_tags_for_the_metadata_are_all_tags_with_the_trigger_word():
    prompts = Prompts(DataConfig(tag_dropout=1.0, shuffle_tags=True), "zwx")
    assert prompts.tags(Item(Path("a.png"), r"red ball,blue,, x_\(y\)")) == ["zwx", "red ball", "blue", "x_(y)"]
    assert prompts.tags(Item(Path("a.png"), "a man", is_class=True)) == ["a man"]
