"""Edits of tags: tables of before and after, and what holds for all of them. Numbers of bugs are those of `dataset.md`, 4.4."""

from __future__ import annotations

import random

import pytest

from lib_tuner.data import tag_edits as edits
from lib_tuner.data.captions import tags_of

COUNTS = {"a": 1, "b": 9, "c": 5}
SCORES = {"long_hair": 0.9, "a": 0.2, "b": 0.5}


def words(text: str) -> int:
    return len(text.replace(",", " ,").split())


@pytest.mark.parametrize(("edit", "before", "after"), [
    (edits.add(["x"]), "a, b", "a, b, x"), (edits.add(["A"]), "a, b", "a, b"), (edits.add(["x, y", " x "]), "", "x, y"),
    (edits.add(["x"], "first"), "a, x, b", "x, a, b"), (edits.add(["x"], "first", pinned=["sks"]), "sks, a", "sks, x, a"),
    (edits.add(["sks"], "first", pinned=["sks"]), "a, sks", "sks, a"), (edits.add(["x"], "first", pinned=["sks"]), "a, sks", "x, a, sks"),
    (edits.add(["x"], "after", after="a"), "b, a, c, x", "b, a, x, c"), (edits.add(["x"], "after", after="q"), "a", "a, x"),
    (edits.remove(["lips"]), "lips, a, Lips", "a"), (edits.remove(["long hair", r"x (y)"]), r"long_hair, x_\(y\), b", "b"),
    (edits.remove(["long_hair"]), "long hair", ""), (edits.remove(["hair"]), "long hair", "long hair"), (edits.keep(["a", "c"]), "a, b, c", "a, c"),
    (edits.rename({"cat": "dog"}), "a, Cat, b", "a, dog, b"), (edits.rename({"cat": "a"}), "a, cat, b", "a, b"),
    (edits.rename({"cat": "b"}), "a, cat, b", "a, b"),
    (edits.rename({"cat": ""}), "cat, b", "b"), (edits.rename({"cat": "x, y"}), "cat, b", "x, y, b"), (edits.rename({"Cat": "cat"}), "Cat, b", "cat, b"),
    (edits.replace("hair", "fur"), "long hair, hairy", "long fur, fury"), (edits.replace("a", ""), "a, ab , a b", "b"),
    (edits.replace(" ", ","), "a b", "a, b"),
    (edits.regex(r"^(\w+) hair$", r"hair \1"), "long hair, hair bow", "hair long, hair bow"), (edits.regex("x+", ""), "xx, axa", "aa"),
    (edits.regex("b", "\n"), "abc", "a, c"), (edits.deduplicate(), "a, long hair, A, long_hair, b", "a, long hair, b"),
    (edits.sort("alphabet", {}, {}), "b, A, c", "A, b, c"), (edits.sort("alphabet", {}, {}, pinned=["sks"]), "b, a, sks", "sks, a, b"),
    (edits.sort("frequency", COUNTS, {}), "a, b, z, c", "b, c, a, z"), (edits.sort("confidence", {}, SCORES), "a, z, b, long hair", "long hair, b, a, z"),
    (edits.sort("length", {}, {}), "ccc, a, bb", "a, bb, ccc"), (edits.sort("length", {}, {}, reverse=True), "a, ccc", "ccc, a"),
    (edits.front(["c", "a"]), "a, b, c", "c, a, b"), (edits.above(0.3, SCORES), "a, b, z, long hair", "b, z, long hair"),
    (edits.above(0.3, SCORES, pinned=["a"]), "a, b", "a, b"), (edits.truncate(3, words), "a, b, c", "a, b"), (edits.truncate(9, words), "a, b", "a, b"),
    (edits.truncate(3, words, pinned=["sks"]), "a, b, sks", "a, sks"), (edits.truncate(1, words), "a b c", "a b c"), (edits.truncate(1, words), "", ""),
    (edits.choose("smile", ["frown", "smile", "grin"]), "a, frown, b, grin", "a, smile, b"), (edits.choose("smile", ["frown"]), "a", "a, smile"),
    (edits.choose("smile", ["frown"]), "a, smile", "a, smile"), (edits.paste(["a", "x"]), "a, b", "a, b, x"), (edits.paste(["x"], "first"), "a", "x, a"),
    (edits.paste(["x", "x"], "instead"), "a, b", "x"), (edits.lower(), "A, bC", "a, bc"),
    (edits.spaces(), "long_hair, >_<, ^_^, b__c, (o)_(o), _", "long hair, >_<, ^_^, b c, (o)_(o), _"),
    (edits.spaces(), r"\(o\)_\(o\), ;_;", r"\(o\)_\(o\), ;_;"),
    (edits.underscores(), "long  hair, :3, (a b:1.2)", "long_hair, :3, (a b:1.2)"), (edits.escape(), r"x (y), x \(z\), (a:1.2)", r"x \(y\), x \(z\), (a:1.2)"),
    (edits.unescape(), r"x \(y\)", "x (y)"),
])  # fmt: skip
def test_before_and_after(edit, before, after):
    assert edit(tags_of(before)) == tags_of(after)
    assert edit(tags_of(before)) == tags_of(after)  # what it keeps in mind changes nothing


def test_no_face_loses_its_underscore():
    faces = tuple(edits.KAOMOJI)
    assert len(faces) == 19 and edits.spaces()(faces) == faces and edits.spaces()(edits.escape()(faces)) == edits.escape()(faces)


def test_bug_17_no_edit_leaves_empty_or_untrimmed_tags_or_raises():
    rng = random.Random(17)
    made = [
        edits.add([" x ", ""]), edits.add(["y"], "first", pinned=["b"]), edits.remove(["", "a"]), edits.rename({"a": " , "}), edits.replace("a", " "),
        edits.replace("b", ", ,"), edits.regex("[ab]", r" \g<0> "), edits.regex("", ","), edits.deduplicate(), edits.sort("alphabet", {}, {}),
        edits.front(["b"]),
        edits.truncate(3, words), edits.spaces(), edits.underscores(), edits.escape(), edits.unescape(), edits.choose("a", ["b"]),
        edits.paste([" q "], "first"),
        edits.above(0.5, SCORES), edits.keep(["a"]), edits.lower(),
    ]  # fmt: skip
    for _ in range(400):
        tags = tags_of("".join(rng.choice("aAb ,_()\\:\u3000é🙂\x85İ\n") for _ in range(rng.randrange(25))))
        for edit in made:
            after = edit(tags)
            assert isinstance(after, tuple) and all(tag and tag == tag.strip() and "\n" not in tag for tag in after), (tags, after)


@pytest.mark.parametrize("make", [lambda: edits.replace("abc", ""), lambda: edits.regex("abc", "")])
def test_the_other_half_of_a_letter_is_no_blank_where_an_edit_brings_it_to_the_edge(make):
    """GBK's 0x81A0, read as Windows-1252, ends in what looks like a no-break space."""
    assert make()(("\x81\xa0abc",)) == ("\x81\xa0",) and make()(("abc x",)) == ("x",)


def test_bug_22_erasing_one_of_several_common_tags_shifts_none():
    """There, a blank in a list of new names moved the following names to the wrong tags."""
    assert edits.rename({"A": "A", "B": "", "D": "D"})(("A", "B", "C", "D")) == ("A", "C", "D")


@pytest.mark.parametrize(("make", "said"), [
    (lambda: edits.regex("(", ""), r"'\(' with '' is no regular expression"), (lambda: edits.regex("a", r"\2"), "invalid group reference"),
    (lambda: edits.regex("a", r"\g<q>"), "unknown group name"), (lambda: edits.regex("a{99999999999999999999}", ""), "no regular expression"),
    (lambda: edits.add(["a"], "under"), "'under' is none of last, first, after"), (lambda: edits.add(["a"], "after"), "`after` is empty"),
    (lambda: edits.sort("size", {}, {}), "'size' is none of alphabet"), (lambda: edits.truncate(0, words), "0 is no number of tokens"),
    (lambda: edits.replace("", "a"), "nothing to find"), (lambda: edits.choose("a, b", []), "is not one tag"), (lambda: edits.paste([], "x"), "none of last"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(make, said):
    with pytest.raises(ValueError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
