"""Caption files keep the bytes that nobody edited. Numbers of bugs are those of the study of other programs (`dataset.md`, 4.4)."""

from __future__ import annotations

import codecs
import random

import pytest

from lib_tuner.data.captions import Caption, Line, parse, read, tags_of

ODD = ["a", "long hair", "b_c", ":3", ">_<", "^_^", r"x \(y\)", r"\(a, b\)", "(c, d:1.2)", "((e))", ":(", ";)",
       "日本", "é", "\u3000", "", " ", "\t", "(", ")", "\\", "🙂", "\x85", "\x0b"]


def changed(data: bytes, change) -> bytes:
    return parse(data).edited(change).to_bytes()


def without(name: str):
    return lambda tags: tuple(tag for tag in tags if tag != name)


@pytest.mark.parametrize(("text", "tags"), [
    ("a,b , c", ["a", "b", "c"]), ("a, b,", ["a", "b"]), (" a,,b", ["a", "b"]), ("", []), (" , ,", []), ("solo", ["solo"]),
    (":3, >_<, ^_^, :(, smile, ;), |_|", [":3", ">_<", "^_^", ":(", "smile", ";)", "|_|"]),
    (r"saber \(fate\), b", [r"saber \(fate\)", "b"]), (r"x \(a, b\), c", [r"x \(a, b\)", "c"]),
    ("(a, b:1.2), c", ["(a, b:1.2)", "c"]), ("((a, b), c:1.1), d", ["((a, b), c:1.1)", "d"]),
    ("(a, b", ["(a", "b"]), ("a), b (c", ["a)", "b (c"]), ("(o)_(o), x", ["(o)_(o)", "x"]), ("a\u2028b, c", ["a\u2028b", "c"]),
])  # fmt: skip
def test_tags_are_what_is_between_commas(text, tags):
    assert list(Line(text).tags) == tags


@pytest.mark.parametrize(("text", "is_text"), [
    ("1girl, solo, long hair", False), ("a photo of a cat", True), ("A woman in a red dress, standing by a tree", True), ("solo", False), ("", False),
    ("1girl, solo, the legend of zelda: breath of the wild", False), ("portrait of a woman, oil painting", False), ("She smiles. It rains.", True),
    ("smile, ..., !?, dr. stone", False), ("holding_an_umbrella_in_the_rain", False), ("a cat, e.g. black, sits on a mat.", True),
])  # fmt: skip
def test_sentences_are_told_from_tags(text, is_text):
    assert Line(text).is_text is is_text
    assert Line(text, "tags").is_text is False and Line(text, "text").is_text is True


@pytest.mark.parametrize(("before", "tags", "after"), [
    ("a,b , c", "a c", "a , c"), ("a,b , c", "b c", "b , c"), ("a,b,c", "a b c d", "a,b,c,d"), ("a, b,", "a b c", "a, b, c,"), ("a,b , c", "a x c", "a,x , c"),
    ("a,, b", "a b x", "a,, b, x"), ("a,, b,c", "b c", "b,c"), ("a,b,, c", "a c", "a,c"), (" a ,b\t", "x a b", " x ,a ,b\t"), (",,", "x", "x"),
    ("a", "a b", "a, b"),
    ("a, b", "", ""), ("a,b;,c", "a c b;", "a,c,b;"),
])  # fmt: skip
def test_neighbours_keep_their_separators(before, tags, after):
    assert Line(before).with_tags(tuple(tags.split())).text == after


@pytest.mark.parametrize("data", [
    b"", b"a, b", b"a,b\r\n", b"a\nb\r\nc\r", codecs.BOM_UTF8 + b"a, b\n", codecs.BOM_UTF16_LE + "a, é\r\n".encode("utf-16-le"),
    codecs.BOM_UTF16_BE + "a, 🙂".encode("utf-16-be"), codecs.BOM_UTF16_LE + b"odd", b"caf\xe9, \x81\x8d", "ひらがな, 猫".encode("shift-jis"), b"\0\xff,\x00",
    codecs.BOM_UTF16_LE + b"\x00\xd8a\x00", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF8 + b"\xff",
])  # fmt: skip
def test_bytes_come_back_as_they_were(data):
    assert parse(data).to_bytes() == data


def test_any_bytes_come_back_and_any_edit_leaves_trimmed_tags():
    rng = random.Random(6)
    for _ in range(1500):
        data = bytes(rng.choice(b"a,b \n\r\\()\xc3\xa9\xff\xfe\x00:_") for _ in range(rng.randrange(30)))
        data = rng.choice([b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE]) + data
        assert parse(data).to_bytes() == data
        parts = [rng.choice(ODD) for _ in range(rng.randrange(8))]
        text = "".join(part + rng.choice([",", ", ", " , ", "\n", ",,"]) for part in parts)
        caption = parse(text.encode("utf-8", "surrogatepass"))
        assert caption.text == text and caption.edited(lambda tags: tags) is caption
        for line in caption.lines:
            assert all(tag and tag == tag.strip() for tag in line.tags)
            kept = tuple(tag for tag in line.tags if rng.random() < 0.5)
            if not any("(" in tag or ")" in tag for tag in line.tags):
                assert line.with_tags(kept).tags == kept and line.with_tags((*line.tags, "new")).tags == (*line.tags, "new")
                shuffled = tuple(rng.sample(line.tags, len(line.tags)))
                assert line.with_tags(shuffled).tags == shuffled


@pytest.mark.parametrize("data", [b"cat\n\n\n", b"cat", b"cat\r\n\r\n", b"\n\n", b"a\r\nb\n\rc", b""])
def test_a_text_that_is_as_it_was_gives_the_same_bytes(data):
    caption = parse(data)
    assert caption.with_text(caption.text).to_bytes() == caption.with_text(caption.text.replace("\r\n", "\n").rstrip("\n")).to_bytes() == data


def test_bugs_3_13_16_bytes_that_are_no_utf8_survive_an_edit():
    """Others read with the locale's codec or `errors=ignore`, and write back U+FFFD, or less."""
    data = "日本, lips, café".encode("shift-jis", "ignore") + b", \x81\xa0"
    assert changed(data, without("lips")) == data.replace(b" lips,", b"")
    assert parse(data).problem and not parse("日本".encode()).problem
    assert changed(codecs.BOM_UTF16_LE + "é, lips".encode("utf-16-le"), without("lips")) == codecs.BOM_UTF16_LE + "é".encode("utf-16-le")


def test_bug_8_one_bad_file_stops_nothing_and_a_mark_is_no_part_of_a_tag(tmp_path):
    for name, data in {"a.txt": codecs.BOM_UTF8 + b"solo, b", "b.txt": b"\xff\xe9", "d.txt": b"x"}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "c.txt").mkdir()
    files, problems = read(tmp_path / f"{stem}.txt" for stem in "abcde")
    assert [file.path.name for file in files] == ["a.txt", "b.txt", "d.txt", "e.txt"] and files[0].caption.tags == ("solo", "b")
    assert files[3].data is None and files[3].caption.tags == ()
    assert [(p.path.name, p.kind) for p in problems] == [("b.txt", "encoding"), ("c.txt", "unreadable")]
    assert changed(codecs.BOM_UTF8 + b"solo, b", without("b")) == codecs.BOM_UTF8 + b"solo"


def test_bug_12_every_line_is_a_variant_and_stays_one():
    assert changed(b"a, lips\r\na cat sits.\r\n\r\nlips\r\nc,lips", without("lips")) == b"a\r\na cat sits.\r\n\r\nc"
    assert changed(b"a\nlips", without("lips")) == b"a" and changed(b"lips\n", without("lips")) == b""
    assert parse(b"a\r\nb\r\n").with_text("x\ny\nz").to_bytes() == b"x\r\ny\r\nz\r\n"
    caption = parse(b"a\r\nb")
    assert caption.with_text("a\nb") is caption and parse(b"a").with_text("b\r\n").to_bytes() == b"b"


def test_bug_15_tags_are_parted_whatever_the_separator_and_keep_it():
    assert changed(b"a,b,c", without("b")) == b"a,c"
    assert changed(b"a,b,c\nd", lambda tags: (*tags, "e")) == b"a,b,c,e\nd,e"


def test_sentences_are_left_alone_where_an_edit_would_break_them():
    caption = parse(b"b, a\nA woman sits on a chair, smiling.")
    assert caption.edited(lambda tags: tuple(sorted(tags)), sentences=False).text == "a, b\nA woman sits on a chair, smiling."


def test_a_letter_that_the_encoding_cannot_hold_is_said():
    with pytest.raises(ValueError, match="cannot hold '猫' in its encoding Windows-1252; save it as UTF-8 first"):
        changed(b"\xe9", lambda tags: (*tags, "猫"))
    with pytest.raises(ValueError, match="UTF-8"):
        Caption().edited(lambda tags: ("\ud800",)).to_bytes()


def test_what_somebody_typed_becomes_trimmed_tags():
    assert tags_of(" a, b\nc ,, (d, e:1.1)") == ("a", "b", "c", "(d, e:1.1)")
