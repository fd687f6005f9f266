"""What an axis does to a prompt: tables of before and after."""

from __future__ import annotations

import pytest

from lib_tuner.compare.axes import NONE, Save, in_order, parse_label, with_lora, with_save, with_weight, with_word

CAT = [Save("cat", "cat-002", None, "lora"), Save("cat-002-000500", "cat-002", 500, "lora"), Save("cat-002-001000", "cat-002", 1000, "lora")]
DOG = [Save("dog-001-000500", "dog-001", 500, "lora")]
MOON = [Save("moon", "moon-001", None, "textual_inversion"), Save("moon-001-000020", "moon-001", 20, "textual_inversion")]


@pytest.mark.parametrize(("prompt", "after"), [
    ("a cat", "a cat <lora:cat-002-000500:1>"),
    ("a cat <lora:cat:0.7>", "a cat <lora:cat-002-000500:0.7>"),
    ("a cat <lora:cat-002-001000:0.7> <lora:style:1>", "a cat <lora:cat-002-000500:0.7> <lora:style:1>"),
    ("a cat <lora:cat>", "a cat <lora:cat-002-000500:1>"),
    ("a <lora:cats:1> house", "a <lora:cats:1> house <lora:cat-002-000500:1>"),
])  # fmt: skip
def test_a_save_takes_the_place_of_the_runs_other_saves(prompt, after):
    assert with_save(prompt, CAT[1], CAT + DOG) == after


@pytest.mark.parametrize(("prompt", "after"), [
    ("a moon on a hill", "a moon-001-000020 on a hill"),
    ("moonlight", "moon-001-000020, moonlight"),
    ("a moon-001-000020, a moon", "a moon-001-000020, a moon-001-000020"),
    ("(moon:1.2)", "(moon-001-000020:1.2)"),
])  # fmt: skip
def test_an_embeddings_save_takes_the_place_of_its_word(prompt, after):
    assert with_save(prompt, MOON[1], MOON) == after


@pytest.mark.parametrize(("prompt", "after"), [
    ("a cat <lora:style:1>", "a cat <lora:style:1> <hypernet:style-001-000020:1>"),
    ("a cat <hypernet:style:0.7> <hypernet:other:1>", "a cat <hypernet:style-001-000020:0.7> <hypernet:other:1>"),
])  # fmt: skip
def test_a_hypernetworks_save_takes_the_place_of_its_own_tag(prompt, after):
    saves = [Save("style", "style-001", None, "hypernetwork"), Save("style-001-000020", "style-001", 20, "hypernetwork")]
    assert with_save(prompt, saves[1], saves) == after


def test_a_lora_is_taken_out_by_none():
    assert with_lora("a cat <lora:cat:1>, nice <lora:style:1>", NONE, ["cat"]) == "a cat , nice <lora:style:1>"
    assert with_word("a cat, moon, nice", NONE, ["moon"]) == "a cat, nice"
    assert with_word("a cat", NONE, ["moon"]) == "a cat"


def test_weights():
    assert with_weight("x <lora:cat:1> <lora:style:0.5>", 0.25, ["cat"]) == "x <lora:cat:0.25> <lora:style:0.5>"
    assert with_weight("x <lora:other:1>", 2, ["cat"]) == "x <lora:other:2>"  # none of ours: all
    with pytest.raises(ValueError, match="names no LoRA"):
        with_weight("x", 1, ["cat"])


def test_saves_are_chosen_by_label_name_or_step():
    saves = in_order([*reversed(CAT), *DOG])
    assert [save.label for save in saves] == ["cat-002 500", "cat-002 1000", "cat-002 end", "dog-001 500"]
    assert parse_label("cat-002 end", saves) is CAT[0] and parse_label(" 1000 ", saves) is CAT[2] and parse_label("dog-001-000500", saves) is DOG[0]
    with pytest.raises(ValueError, match="Several runs have a save of step 500"):
        parse_label("500", saves)
    with pytest.raises(ValueError, match="is no save"):
        parse_label("cat-002 7", saves)
    with pytest.raises(ValueError, match="No run has saved"):
        parse_label("1", [])
