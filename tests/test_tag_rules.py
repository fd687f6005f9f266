"""From scores to tags, and what is kept of scores. Numbers of bugs are those of `dataset.md`, 4.4."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from lib_tuner.data.tag_edits import KAOMOJI
from lib_tuner.data.tag_list import CHARACTER, GENERAL, RATING, TagList, read_tags
from lib_tuner.data.tag_rules import Rules, Thresholds, tagging
from lib_tuner.data.tag_scores import LEAST, ScoreStore, ScoreTable, rows_of, stamp_of

NAMES = ("general", "sensitive", "long_hair", "1girl", "hat", "miku_(vocaloid)", ">_<", "a,b")
TAGS = TagList(NAMES, (RATING, RATING, GENERAL, GENERAL, GENERAL, CHARACTER, GENERAL, GENERAL))
HALF = 0.35009765625  # what float16 makes of 0.35


def table(*scores: float, tags: TagList = TAGS, digest: str = "p") -> ScoreTable:
    """The scores of one picture as they are kept and read again."""
    with TemporaryDirectory() as folder, ScoreStore(folder) as store:
        store.add("m", tags, {digest: rows_of(torch.tensor([scores]), tags)[0]})
        return store.table("m")


FULL = table(0.2, 0.7, 0.5, 0.9, 0.36, 0.8, 0.6, 0.4)


def tags(rules: Rules = Rules(), thresholds: Thresholds = Thresholds(), scores: ScoreTable = FULL) -> tuple[str, ...] | None:
    return tagging([(scores, thresholds)], rules)("p")


# ---- the list


def test_a_list_is_read_by_its_categories_with_quotes_commas_and_letters_of_any_language():
    data = '\ufefftag_id,name,category,count\r\n1,general,9,5\r\n2,"don\'t_say_""lazy""",0,3\r\n3,"a,b",4,1\r\n4,初音ミク,4,1\r\n'.encode()
    found = read_tags(data)
    assert found.names == ("general", 'don\'t_say_"lazy"', "a,b", "初音ミク") and found.categories == (9, 0, 4, 4) and found.ratings == (0,)


def test_a_list_without_ratings_or_with_another_order_of_columns_is_one_too():
    found = read_tags(b"name,category\nsolo,0\nmiku,4\n")
    assert found.names == ("solo", "miku") and found.ratings == () and len(found) == 2


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"name,category\n", b"name,category\nsolo,x\n", b"name,category\nsolo\n", b"name,category\n,0\n", b"\xff\xfe\x00"])
def test_what_is_no_list_is_one_sentence(data):
    with pytest.raises(ValueError, match="tags.csv is no list of tags") as error:
        read_tags(data, "tags.csv")
    assert "\n" not in str(error.value)


# ---- the rules


@pytest.mark.parametrize(("rules", "expected"), [
    (Rules(), "1girl, miku (vocaloid), >_<, long hair, a b, hat"),  # by confidence; 0.36 is enough; a comma would make two tags
    (Rules(most=2), "1girl, miku (vocaloid)"), (Rules(escape=True, most=2), r"1girl, miku \(vocaloid\)"),
    (Rules(spaces=False, most=4), "1girl, miku_(vocaloid), >_<, long_hair"), (Rules(rating="tag", most=1), "1girl, sensitive"),
    (Rules(exclude=("long hair, >_<",), most=3), "1girl, miku (vocaloid), a b"), (Rules(exclude=("LONG_HAIR",), most=4), "1girl, miku (vocaloid), >_<, a b"),
    (Rules(exclude=(r"miku \(vocaloid\)",), spaces=False, most=2), "1girl, >_<"), (Rules(exclude=("sensitive",), rating="tag", most=1), "1girl"),
    (Rules(always=("zwx, 1Girl",), most=2), "zwx, 1Girl, miku (vocaloid)"), (Rules(always=("sensitive",), rating="tag", most=1), "sensitive, 1girl"),
])  # fmt: skip
def test_before_and_after(rules, expected):
    assert tags(rules) == tuple(expected.split(", "))
    assert tags(rules) == tuple(expected.split(", "))  # bug 10: nothing of one picture is left in the next


@pytest.mark.parametrize(("general", "character", "expected"), [(0.85, 0.75, "1girl, miku (vocaloid)"), (0.85, 0.85, "1girl"), (0.95, 0.75, "miku (vocaloid)"), (1.0, 1.0, "")])
def test_characters_have_a_threshold_of_their_own(general, character, expected):
    assert tags(thresholds=Thresholds(general, character)) == tuple(filter(None, expected.split(", ")))


def test_the_rating_is_the_likeliest_even_where_all_are_below_every_threshold():
    assert tags(Rules(rating="tag"), scores=table(0.01, 0.02, 0, 0, 0, 0, 0, 0)) == ("sensitive",)
    plain = TagList.of(["a"])
    assert tags(Rules(rating="tag"), scores=table(0.9, tags=plain)) == ("a",)


def test_faces_keep_their_underscores():
    faces = TagList.of(sorted(KAOMOJI))
    assert tags(scores=table(*[0.9] * len(faces), tags=faces)) == faces.names


def test_a_picture_that_was_not_scored_has_no_answer():
    assert tagging([(FULL, Thresholds())])("q") is None and tagging([(FULL, Thresholds()), (ScoreTable(TAGS, {}), Thresholds())])("p") is None


def test_two_taggers_together_by_hand():
    other = TagList.of(["hat", "Long hair", "cat"])
    both = [(FULL, Thresholds()), (table(0.95, 0.4, 0.5, tags=other), Thresholds(0.38, 0.38))]
    assert tagging(both, Rules(agreement="all"))("p") == ("hat", "long hair")
    assert tagging(both, Rules(agreement="any"))("p") == ("hat", "1girl", "miku (vocaloid)", ">_<", "long hair", "cat", "a b")
    assert tagging(both, Rules(agreement="all", most=1))("p") == ("hat",)


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Thresholds(0.01), r"0.01 of general tags is outside \[0.05, 1\]"), (lambda: Thresholds(0.3, 1.1), "1.1 of character tags"), (lambda: Thresholds(float("nan")), "nan"),
    (lambda: Rules(rating="first"), "'first' is none of none, tag"), (lambda: Rules(agreement="both"), "none of any, all"), (lambda: Rules(most=-1), "-1 is no number of tags"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# ---- what is kept


def test_scores_are_kept_as_half_floats_from_the_least_on_and_ratings_always(tmp_path):
    row = rows_of(torch.tensor([[0.01, 0.02, LEAST, 0.35, 0.049, 1.0, 0.0, 0.35]]), TAGS)
    assert len(row[0]) == 6 * 6
    with ScoreStore(tmp_path) as store:
        store.add("m", TAGS, {"p": row[0]})
    with ScoreStore(tmp_path) as store:
        found = store.table("m")
    assert found.tags == TAGS and found.rows["p"][0] == (5, 3, 7, 2, 1, 0)
    assert found.rows["p"][1] == pytest.approx((1.0, HALF, HALF, 0.05, 0.02, 0.01), rel=1e-3) and found.rows["p"][1][1] == HALF
    assert found.by_tag("p")["1girl"] == HALF and found.by_tag("q") == {}


def test_scores_of_other_taggers_are_apart(tmp_path):
    with ScoreStore(tmp_path) as store:
        store.add("m", TAGS, {"p": b""})
        assert store.known("m") == {"p"} and store.known("n") == set() and store.table("n") is None and store.taggers() == ["m"]


@pytest.mark.parametrize(("scores", "said"), [([[0.5] * 3], r"shape \(1, 3\) and its list has 8 tags"), ([[float("nan")] * 8], "no probabilities"), ([[1.5] * 8], "no probabilities")])
def test_what_is_no_probability_per_tag_is_refused(scores, said):
    with pytest.raises(ValueError, match=said):
        rows_of(torch.tensor(scores), TAGS)


def test_a_file_that_changed_has_another_content(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    with ScoreStore(tmp_path) as store:
        store.remember({path: (stamp_of(path.stat()), "d")})
        assert store.digests([path, tmp_path / "none.png"]) == {path: "d"}
        os.utime(path, ns=(0, 5))
        assert store.digests([path]) == {}
    assert sqlite3.connect(store.path).execute("select path from files").fetchall() == [("a.png",)]  # relative: the folder may be moved


def test_a_damaged_file_is_put_aside_and_nothing_else_is_lost(tmp_path):
    with ScoreStore(tmp_path) as store:
        path = store.path
    path.write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with ScoreStore(tmp_path) as store:
        assert store.moved == path.with_name("scores.sqlite.damaged") and store.moved.read_bytes().startswith(b"no database")
        store.add("m", TAGS, {"p": b""})
        assert store.known("m") == {"p"}


def test_a_place_that_takes_no_file_is_one_sentence(tmp_path):
    (tmp_path / ".tuner").write_text("a file")
    with pytest.raises(OSError):
        ScoreStore(tmp_path)
    (tmp_path / "b" / ".tuner" / "scores" / "scores.sqlite").mkdir(parents=True)
    with pytest.raises(OSError, match="scores.sqlite cannot be written"):
        ScoreStore(Path(tmp_path / "b"))
