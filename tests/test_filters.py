"""The filter language: what a line names, and what it says where it is none."""

from __future__ import annotations

import random
import time

import pytest

from lib_tuner.data.filters import _pattern, parse
from lib_tuner.data.library import Library

CAPTIONS = {
    "10_cat/a1.png": "cat, long_hair, lips",
    "10_cat/a2.jpg": "Cat, long hair, hat",
    "10_cat/a10.png": "saber_(fate), red lips, hat",
    "b/c.webp": "",
    "b/d [x].png": "A cat sits on a mat. It sleeps.\ncat, mat",
    "b/OR.png": "OR, *_*, :3, what?",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for name, caption in CAPTIONS.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        if caption:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    with Library.open(folder) as opened:
        opened.scores = lambda picture: {"a1.png": {"lips": 0.9, "long hair": 0.4}, "a2.jpg": {"lips": 0.3}}.get(picture.name, {})
        opened.found = {0: ("blurred", "small"), 3: ("small",)}
        opened.crops = lambda picture: "approved" if picture.name == "a2.jpg" else "none"
        yield opened


ALL = "a1 a2 a10 c d OR"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("", ALL),
        ("   ", ALL),
        ("lips", "a1"),  # not `red lips`: a tag is a whole
        ("LONG_hair", "a1 a2"),
        ("long hair", "a1 a2"),  # words side by side are one tag
        ("*lips", "a1 a10"),
        ("?at", "a1 a2 a10 d"),
        ("long hair, NOT hat", "a1"),
        ("long hair AND NOT hat", "a1"),
        ("NOT lips NOT", None),
        ("lips OR hat", "a1 a2 a10"),
        ("cat AND lips OR saber_(fate)", "a1 a10"),  # AND binds before OR
        ("cat AND (lips OR hat)", "a1 a2"),
        ("NOT (lips OR hat)", "c d OR"),
        ("NOT NOT lips", "a1"),
        ("NOT(lips)", "a2 a10 c d OR"),
        ("lips,", "a1"),
        ("saber_(fate)", "a10"),
        ("saber_\\(fate\\)", "a10"),
        ('"saber (fate)"', "a10"),
        ('"OR"', "OR"),
        ('"what\\?"', "OR"),
        ('"\\*_\\*"', "OR"),
        ("****hair****", "a1 a2"),
        ("\\*_\\*", "OR"),
        ("what\\?", "OR"),
        (":3", "OR"),
        ("name:a1", "a1 a10"),
        ("name:a1.*", "a1"),
        ("name:*.PNG", "a1 a10 d OR"),
        ('name:"d [x]"', "d"),
        ("path:10_cat/", "a1 a2 a10"),
        ("path:b/* AND untagged", "c"),
        ('text:"cat sits"', "d"),
        ("text:LIPS", "a1 a10"),
        ("tag:untagged", ""),
        ('tag:"long hair"', "a1 a2"),
        ("untagged", "c"),
        ("NOT untagged AND tags:<4", "a1 a2 a10 d"),
        ("tags:3", "a1 a2 a10 d"),
        ("tags:>3", "OR"),
        ("tags:>=4", "OR"),
        ("tags:0..2", "c"),
        ("lines:2", "d"),
        ("chars:0", "c"),
        ("tokens:>6", "a1 a10 d OR"),
        ("score:lips>0.5", "a1"),
        ("score:lips<0.5", "a2"),  # what no tagger has seen has no score
        ('score:"long hair">=0.4', "a1"),
        ("score:hat<0.1", "a1 a2"),
        ("problem:blurred", "a1"),
        ("problem:*", "a1 c"),
        ("crop:approved", "a2"),
    ],
)
def test_names_rows(library, line, names):
    if names is None:
        with pytest.raises(ValueError):
            library.find(line)
    else:
        stems = [library.name(row).split(".")[0].split(" ")[0] for row in library.find(line)]
        assert stems == names.split()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("(lips", "( that is not closed"),
        ("lips)", "')' where AND or OR"),
        ("lips (fate)", "quotes"),
        ("AND lips", "'AND' where a tag"),
        ("lips AND", "its end where a tag"),
        ("lips AND AND hat", "'AND' where a tag"),
        ("NOT", "its end where a tag"),
        ('"lips', "not closed"),
        ("tags:many", "tags:>13"),
        ("tags:", "tags:>13"),
        ("name:", "name:*.png"),
        ("score:lips", "score:lips>0.5"),
        ("score:>0.5", "score:lips>0.5"),
        ("score:lips>", "no comparison"),
        ('score:"li\nps"', "no comparison"),
    ],
)
def test_says_what_is_wrong(library, line, said):
    with pytest.raises(ValueError) as error:
        library.find(line)
    assert said in str(error.value)


def test_any_expression_is_what_its_parts_are(library):
    """Random expressions against a slow evaluation that knows nothing of indexes."""
    tags = ["cat", "long hair", "lips", "hat", "mat", "red lips", "nothing"]
    have = {row: {tag.lower().replace("_", " ") for tag in library.tags(row)} for row in library.everything()}

    def expression(depth: int) -> tuple[str, set[int]]:
        kind = chance.choice(["tag", "not", "and", "or"]) if depth else "tag"
        if kind == "tag":
            tag = chance.choice(tags)
            return tag, {row for row, own in have.items() if tag in own}
        text, rows = expression(depth - 1)
        if kind == "not":
            return f"NOT ({text})", set(have) - rows
        other, more = expression(depth - 1)
        return f"({text}) {kind.upper()} ({other})", rows & more if kind == "and" else rows | more

    chance = random.Random(7)
    seen = set()
    for _ in range(300):
        text, rows = expression(4)
        assert set(library.find(text)) == rows, text
        seen.add(len(rows))
    assert len(seen) > 3  # the expressions differ


def test_no_letters_break_it(library):
    """Whatever is typed is rows or a sentence."""
    chance = random.Random(3)
    pieces = ['"', "(", ")", ",", "\\", "*", "?", "AND", "OR", "NOT", " ", "lips", "tags:", ">", "3", "\n", "score:", "name:", "é", "[", "-"]
    for _ in range(3000):
        line = "".join(chance.choices(pieces, k=chance.randint(1, 8)))
        try:
            library.find(line)
        except ValueError as error:
            assert str(error).endswith("."), (line, str(error))


def test_a_line_is_compiled_once(library):
    assert parse("lips OR hat") is parse("lips OR hat")


def test_tokens_are_those_of_the_whole_caption():
    """Counted word by word, as CLIP counts the line."""
    from lib_tuner.data.library import _tokens
    from lib_tuner.sd.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    for text in ("a cat, long hair, (red:1.2), saber_(fate), 1girl, don't, :3, >_<", "café, naïve façade", "a &amp; b, x", "", "猫, 长发", "it's\ta  b"):
        assert _tokens(text) == len(tokenizer.encode(text)), text


def test_stars_find_what_a_slow_search_finds():
    def slow(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(slow(pattern[1:], text[i:]) for i in range(len(text) + 1))
        return bool(text) and pattern[0] in ("?", text[0]) and slow(pattern[1:], text[1:])

    chance = random.Random(1)
    for _ in range(3000):
        pattern, text = ("".join(chance.choices(letters, k=chance.randint(0, 8))) for letters in ("ab**?", "ab"))
        assert bool(_pattern(pattern).fullmatch(text)) == slow(pattern, text), (pattern, text)


def test_many_stars_take_no_longer_than_a_few():
    began = time.perf_counter()
    assert not _pattern("*a" * 40 + "*!").fullmatch("a" * 4000)
    assert time.perf_counter() - began < 1
