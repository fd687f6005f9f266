"""Suggestions for a goal, repeats, steps, and tags that a crop puts in doubt."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_tuner import presets
from lib_tuner.data.advisor import RULES, advise, balance, framing, steps
from lib_tuner.data.captions import CaptionFile, parse
from lib_tuner.data.edits import plan


def files(*captions: str) -> list[CaptionFile]:
    return [CaptionFile(Path(f"{n}.txt"), text.encode(), parse(text.encode())) for n, text in enumerate(captions)]


def advice(goal: str, *captions: str, trigger: str = "zwx") -> dict[str, list[str]]:
    """{kind: tags}, from the evidence in front of each sentence."""
    found: dict[str, list[str]] = {}
    for one in advise(files(*captions), goal, trigger):
        found.setdefault(one.kind, []).append(one.text.split("'")[1])
    return found


def ten(**tags: int) -> list[str]:
    """Ten captions; each tag is in so many of them, from the first on (`_` for a blank)."""
    return [", ".join(["zwx", "thing", *(tag.replace("_", " ") for tag, count in tags.items() if n < count)]) for n in range(10)]


def test_every_goal_of_the_presets_has_a_rule():
    assert list(RULES) == list(presets.GOALS)
    with pytest.raises(ValueError, match="no goal 'cat'; choose one of character"):
        advise(files("a"), "cat")


def test_what_belongs_to_a_character_is_dropped_from_seven_tenths_on():
    told = advice("character", *ten(black_hair=10, red_eyes=7, cat_ears=6, scar=2, mole=1, smile=5, red_dress=8, indoors=9, photo=3))
    assert told == {"drop": ["black hair", "red eyes"], "uneven": ["cat ears", "scar"], "vary": ["indoors"], "keep": ["red dress", "smile"]}


def test_words_of_the_look_are_dropped_for_a_style_however_rare_and_what_is_in_most_is_to_vary():
    told = advice("style", *ten(watercolor=1, masterpiece=10, blue_eyes=6, forest=5, sitting=2))
    assert told["drop"] == ["masterpiece", "watercolor"] and told["vary"] == ["thing", "blue eyes"] and told["keep"] == ["forest", "sitting"]


@pytest.mark.parametrize(("goal", "drop", "vary"), [
    ("pose", ["sitting", "from above"], ["forest", "red dress"]), ("clothing", ["red dress"], ["forest"]), ("object", ["thing", "red dress"], ["from above", "forest"]),
])  # fmt: skip
def test_other_goals_drop_what_is_to_be_learned(goal, drop, vary):
    told = advice(goal, *ten(sitting=9, from_above=8, red_dress=7, forest=7))
    assert (told.get("drop"), sorted(told.get("vary", []))) == (drop, sorted(vary))


def test_a_suggestion_has_its_evidence_and_the_edit_that_would_do_it():
    captions = files(*ten(black_hair=8), "A girl with black hair sits here. She smiles.")
    (one,) = [told for told in advise(captions, "character", "zwx") if told.kind == "drop"]
    assert one.text.startswith("'black hair' is in 8 of 10 captions (80%)") and len(one.paths) == 8 and one.amount == 0.8
    planned = plan(captions, one.mends[0])
    assert len(planned.changes) == 8 and planned.changes[0].after == b"zwx, thing"
    assert advise([], "style") == []


def test_folders_are_balanced_by_their_pictures():
    pictures = [Path(folder, f"{n}.png") for folder, count in (("2_cat", 10), ("dog", 40), ("5_x y", 15)) for n in range(count)]
    shares = {share.folder.name: (share.pictures, share.repeats, share.balanced) for share in balance(pictures)}
    assert shares == {"2_cat": (10, 2, 4), "dog": (40, 1, 1), "5_x y": (15, 5, 3)} and balance([]) == []
    assert "call it 4_cat" in str(balance(pictures)[0]) and "call" not in str(balance(pictures)[2])


@pytest.mark.parametrize(("pictures", "method", "batch", "want"), [
    (30, "lora", 0, (1500, 2)), (20, "lora", 0, (1000, 2)), (20, "lora", 4, (500, 4)), (1, "lora", 0, (600, 2)), (5000, "lora", 0, (3000, 2)), (30, "textual_inversion", 0, (3000, 2)),
])  # fmt: skip
def test_steps_follow_the_paces(pictures, method, batch, want):
    assert steps(pictures, method, batch) == want


def test_steps_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        steps(0)
    with pytest.raises(ValueError, match="no pace for 'x'"):
        steps(5, "x")


WHOLE = (0, 0, 100, 200)


@pytest.mark.parametrize(("after", "gone"), [
    (WHOLE, set()), ((10, 0, 90, 200), set()), ((0, 0, 100, 190), {"full body"}), ((0, 0, 100, 180), {"full body", "boots"}), ((0, 0, 100, 150), {"full body", "boots", "cowboy shot"}),
    ((0, 30, 100, 200), {"full body", "cowboy shot", "red hat", "hat"} - {"red hat"}), ((25, 0, 90, 200), {"2girls", "full body"}), ((-50, 0, 150, 200), {"close-up"}),
])  # fmt: skip
def test_tags_of_the_frame_are_in_doubt_where_the_crop_cuts_their_part(after, gone):
    caption = files("full body, boots, cowboy shot, hat, 2girls, close-up, smile")[0]
    told = framing(caption, WHOLE, after)
    assert {one.text.split("'")[1] for one in told} == gone
    assert all(plan([caption], one.mends[0]).changes for one in told)


def test_a_box_without_area_is_refused():
    with pytest.raises(ValueError, match="is no box"):
        framing(files("feet")[0], WHOLE, (5, 5, 5, 9))
