"""Checks of captions: what is found, that its edit mends it, and precision and recall for typing errors and contradictions."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from PIL import Image

from lib_tuner.data import tag_variants
from lib_tuner.data.caption_audit import CaptionRules, audit_captions, audit_names
from lib_tuner.data.captions import CaptionFile, parse, read
from lib_tuner.data.edits import Context, Edit, plan
from lib_tuner.data.finding import Finding, counted
from lib_tuner.data.tag_edits import key
from lib_tuner.data.tag_words import conflicts, kind_of
from lib_tuner.sd.tokenizer import Tokenizer


def files(*captions: bytes | str | None) -> list[CaptionFile]:
    data = [caption.encode() if isinstance(caption, str) else caption for caption in captions]
    return [CaptionFile(Path(f"{n}.txt"), bytes_, parse(bytes_ or b"")) for n, bytes_ in enumerate(data)]


def words(text: str) -> int:
    return len(text.replace(",", " ").split())


def found(*captions: bytes | str | None, **rules: object) -> list[Finding]:
    return list(audit_captions(files(*captions), CaptionRules(**rules)))


def mended(captions: list[CaptionFile], finding: Finding, which: int = 0) -> list[CaptionFile]:
    """The captions after a mend of those that the finding names."""
    planned = plan([file for file in captions if file.path in finding.paths], finding.mends[which])
    after = {change.path: change.after for change in planned.changes}
    return [CaptionFile(file.path, after[file.path], parse(after[file.path])) if file.path in after else file for file in captions]


GOOD = "zwx, cat, red hat, sitting"


@pytest.mark.parametrize(("captions", "rules", "kind", "paths"), [
    ((GOOD, None), {}, "no caption", "1"), ((GOOD, " ,\n"), {}, "no caption", "1"), ((GOOD, "cat"), {}, "one tag", "1"), ((GOOD, "cat, hat, Cat"), {}, "tag twice", "1"),
    ((GOOD, "cat, long_hair, long hair"), {}, "tag twice", "1"), (("a, b", "a, b c d, e"), {"tokens": words, "limit": 4}, "long caption", "1"),
    ((GOOD, "cat, zwx"), {"trigger": "zwx"}, "trigger not first", "1"), ((GOOD, "cat, dog"), {"trigger": "ZWX"}, "trigger missing", "1"),
    ((GOOD, "cat, Watermark"), {}, "written over", "1"), ((GOOD, "cat, artist name, hat"), {}, "written over", "1"),
    ((GOOD, GOOD, "A cat sits on the mat. It looks at the moon."), {}, "sentences and tags", "2"), (("A cat sits here.", "A dog runs by.", GOOD), {}, "sentences and tags", "2"),
    ((GOOD, "cat, dog\nA cat sits on the mat."), {}, "sentences and tags", "1"), ((GOOD, b"\xef\xbb\xbfcat, hat"), {}, "byte order mark", "1"),
    ((GOOD, b"caf\xe9, hat"), {}, "not UTF-8", "1"), ((GOOD, "cat, hat".encode("utf-16-le")), {}, "not UTF-8", "1"), ((GOOD, "c\u00e4t, hat".encode("utf-16")), {}, "not UTF-8", "1"), ((GOOD, b"cat, hat\r\ndog, hat"), {}, "Windows line breaks", "1"),
    (("long hair, a", "long hair, b", "Long_hair, c"), {}, "spelling", "2"), (("boot, a", "boots, a", "boots, a"), {}, "singular and plural", "0"),
    (("red berry, a", "red berry, b", "red berries, b"), {}, "singular and plural", "2"), (("1girl, 2girls", GOOD), {}, "contradiction", "0"),
    ((*["twintails, a"] * 4, "twintials, b"), {}, "typing error", "4"),
])  # fmt: skip
def test_what_is_wrong_is_found_in_its_file_and_mended(captions, rules, kind, paths):
    rules = CaptionRules(**rules)
    before = list(audit_captions(files(*captions), rules))
    (finding,) = [one for one in before if one.kind == kind]
    assert finding.paths == tuple(Path(f"{n}.txt") for n in paths) and finding.text.endswith(".")
    if kind in ("tag twice", "trigger missing", "trigger not first", "byte order mark", "not UTF-8", "spelling", "singular and plural", "contradiction", "typing error"):
        for which in range(len(finding.mends)):
            assert kind not in {one.kind for one in audit_captions(mended(files(*captions), finding, which), rules)}
        assert finding.mends and all(Edit.from_json(mend) == own for mend, own in zip(finding.to_json()["mends"], finding.mends))


def test_a_good_set_is_left_alone():
    captions = ["zwx, 1girl, solo, long hair, red hat, sitting, blue eyes, looking at viewer"] * 3 + ["zwx, 2girls, blonde hair, black hair, closed mouth, open mouth"] * 3
    assert found(*captions, trigger="zwx", tokens=words) == []
    assert found() == [] and counted(found(None, None, "a")) == {"no caption": 2, "one tag": 1}


def test_a_long_caption_is_cut_but_not_its_trigger():
    captions = files("a, b c d, e, zwx")
    (finding,) = [one for one in audit_captions(captions, CaptionRules("zwx", words, 4)) if one.kind == "long caption"]
    (change,) = plan(captions, finding.mends[0], Context(tokens=words)).changes
    assert finding.amount == 6 and change.after == b"a, zwx"


def test_mends_write_the_set_s_own_spelling():
    captions = files(*["Long_Hair, a"] * 4, "Long_Hiar, b", "a, x")
    (finding,) = [one for one in audit_captions(captions) if one.kind == "typing error"]
    assert mended(captions, finding)[4].data == b"Long_Hair, b"


def test_shared_captions_and_captions_without_a_picture(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("a.txt", "b.caption", "gone.txt", "README.txt", "note.md", ".hidden.txt", "sub/c.txt", "sub/b.txt"):
        (tmp_path / name).write_text("cat")
    pictures = [tmp_path / name for name in ("a.png", "a.jpg", "b.png", "sub/c.png")]
    assert [(one.kind, [path.name for path in one.paths]) for one in audit_names(pictures)] == [
        ("shared caption", ["a.png", "a.jpg"]), ("no picture", ["gone.txt"]), ("no picture", ["b.txt"]),
    ]  # fmt: skip


# ---- typing errors, labelled

TAGS = (
    "long hair, short hair, blonde hair, brown hair, blue eyes, green eyes, brown eyes, looking at viewer, open mouth, closed mouth, smile, blush, ponytail, twintails, hair ornament, "
    "white shirt, black skirt, red skirt, black shirt, pleated skirt, black shorts, thighhighs, pantyhose, jacket, hat, red bow, red box, boots, black gloves, black glove, necktie, "
    "standing, sitting, kneeling, full body, upper body, cowboy shot, outdoors, indoors, night, light, sky, simple background, white background, collared shirt, long sleeves, "
    "short sleeves, jewelry, earrings, necklace, choker, braid, holding sword, holding word, school uniform, serafuku, hand up, hands up, arm up, arms up"
).split(", ")
ERRORS = {  # as they are typed: exchanged, missing, doubled, wrong letters
    "lnog hair": "long hair", "long hiar": "long hair", "blond hair": "", "blnode hair": "blonde hair", "borwn hair": "brown hair", "bleu eyes": "blue eyes", "gren eyes": "green eyes",
    "looking at veiwer": "looking at viewer", "loking at viewer": "looking at viewer", "opne mouth": "open mouth", "closed moth": "", "smille": "smile", "blsh": "blush", "ponytial": "ponytail",
    "twintials": "twintails", "hair ornamnet": "hair ornament", "white shrit": "white shirt", "pleeted skirt": "pleated skirt", "thighighs": "thighhighs", "pantyhoes": "pantyhose",
    "jakcet": "jacket", "necktei": "necktie", "standnig": "standing", "siting": "sitting", "kneling": "kneeling", "full bdoy": "full body", "uper body": "upper body", "cowboy shto": "cowboy shot",
    "outdoros": "outdoors", "indors": "indoors", "simple backgrund": "simple background", "white backgroud": "white background", "colared shirt": "collared shirt", "long slevees": "long sleeves",
    "jewlery": "jewelry", "earings": "earrings", "neckalce": "necklace", "chokre": "choker", "briad": "braid", "holding swrod": "holding sword", "scool uniform": "school uniform",
    "simplebackground": "simple background", "serafuk": "serafuku",
}  # fmt: skip
RIGHT = (  # rare, one letter from a frequent tag or near it, and no errors
    "red shirt, black skort, red bowl, red boa, right, fight, hand cup, cat, bat, holding swords, standing split, black boots, brown bear, long hat, short pants, white shirts, black socks, "
    "skating, knitting, fitting, spitting, outdoor, night sky, white rabbit, 2boys, 3boys, braids, necklaces, blue dyes, green eye, red fox, long chair, blue eye, black choker, "
    "white skirt, smiles, grey shirt, hats, coat, jackets, lights"
).split(", ")  # fmt: skip


def test_typing_errors_are_told_from_rare_words():
    tokenizer = Tokenizer()
    counts = {**{tag: 5 for tag in TAGS}, **{tag: 1 for tag in (*ERRORS, *RIGHT)}}
    told = dict(tag_variants.typos(counts, lambda text: len(tokenizer.encode(text))))
    errors = {rare: meant for rare, meant in ERRORS.items() if meant}
    right = {rare for rare, meant in errors.items() if told.get(rare) == meant}
    precision, recall = len(right) / len(told), len(right) / len(errors)
    print(f"\n| typing errors | {len(errors)} | {len(RIGHT)} | {precision:.2f} | {recall:.2f} |")
    assert len(errors) + len(RIGHT) >= 75 and precision >= 0.9 and recall >= 0.9, (sorted(set(errors) - right), sorted(set(told) - right))


def distance(a: str, b: str) -> int:
    """Damerau's distance (optimal string alignment), by the textbook's table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i][j] = min(table[i][j], table[i - 2][j - 2] + 1)
    return table[-1][-1]


def test_one_edit_is_a_distance_of_one():
    chance = random.Random(3)
    texts = ["".join(chance.choice("ab") for _ in range(chance.randrange(6))) for _ in range(150)]
    pairs = [(a, b) for a in texts for b in texts]
    assert [(a, b) for a, b in pairs if tag_variants.one_edit(a, b) != (distance(a, b) == 1)] == []


def test_ten_thousand_tags_take_a_second():
    chance = random.Random(5)
    names = {"".join(chance.choice("abcdefghijklmnop") for _ in range(9)) + " hair" for _ in range(10000)}
    frequent = sorted(names)[:200]
    counts = {**dict.fromkeys(sorted(names), 1), **dict.fromkeys(frequent[:100], 9), frequent[0][:4] + frequent[0][5:]: 1}
    start = time.process_time()
    assert (frequent[0][:4] + frequent[0][5:], frequent[0]) in tag_variants.typos(counts)
    assert time.process_time() - start < 10


# ---- contradictions, labelled

WRONG = """1girl, 2girls|1girl, solo, 2girls|1boy, 2boys, outdoors|solo, multiple girls|no humans, 1girl|no humans, solo, cat|1girl, solo, red hair, blue hair|solo, Blonde_Hair, black hair
1girl, brown eyes, blue eyes|1boy, green eyes, red eyes, smile|1girl, short hair, long hair|solo, medium hair, long hair|indoors, outdoors, 1girl|outdoors, day, night|sunset, night, sky
1girl, open mouth, closed mouth|solo, looking at viewer, looking away|full body, upper body, 1girl|cowboy shot, close-up, solo|from above, from below, solo|1girl, sitting, standing
solo, kneeling, standing|running, sitting, 1boy|1girl, barefoot, boots|solo, shoes, boots|white background, black background|simple background, blue background, red background
solo, from behind, from front|3girls, 2girls|1boy, 1girl, indoors, outdoors|2girls, day, night|2boys, white background, grey background"""
FINE = """1girl, solo, long hair, blue eyes|1girl, 1boy, black hair, blonde hair|2girls, red hair, blue hair|1girl, multicolored hair, red hair, blue hair|solo, heterochromia, red eyes, blue eyes
solo, gradient hair, pink hair, blue hair|1girl, very long hair, long hair|indoors, window, outdoors, day|multiple views, 1girl, sitting, standing|comic, open mouth, closed mouth, solo
1girl, sitting, smile, looking at viewer|1boy, 1girl, sitting, standing|2girls, open mouth, closed mouth|no humans, cat, outdoors|scenery, night, sky, no humans|multiple girls, 2girls
1girl, single shoe, shoes, barefoot|1girl, white background, simple background|two-tone background, red background, blue background|reference sheet, full body, upper body, 1girl
solo, red shirt, black skirt, red hair|1girl, brown hair, brown eyes|2boys, multiple boys|1girl, blue hair, blue eyes, blue background|solo, from above, looking at viewer
1girl, from behind, looking back|1boy, portrait, upper body|cat, hat|solo, full body, standing, boots|1girl, 2boys, short hair, long hair|group, sitting, standing|couple, red eyes, blue eyes"""


def test_contradictions_are_told_from_what_goes_together():
    def told(text: str) -> bool:
        return bool(conflicts({key(tag): tag for tag in text.split(", ")}))

    wrong, fine = WRONG.replace("\n", "|").split("|"), FINE.replace("\n", "|").split("|")
    missed, false = [text for text in wrong if not told(text)], [text for text in fine if told(text)]
    right = len(wrong) - len(missed)
    print(f"\n| contradictions | {len(wrong)} | {len(fine)} | {right / (right + len(false)):.2f} | {right / len(wrong):.2f} |")
    assert len(wrong) >= 30 and len(fine) >= 30 and right / (right + len(false)) >= 0.95 and right / len(wrong) >= 0.95, (missed, false)


@pytest.mark.parametrize(("tag", "kind"), {
    "Blue_Eyes": "trait", "cat ears": "trait", "red scarf": "clothing", "white pleated skirt": "clothing", "sitting": "pose", "smile": "expression", ":d": "expression", "cowboy shot": "framing",
    "simple background": "background", "watercolor \\(medium\\)": "medium", "best quality": "quality", "signature": "overlay", "1girl": "count", "cat": "", "sunlight": "light",
}.items())  # fmt: skip
def test_the_kind_of_a_tag(tag, kind):
    assert kind_of(tag) == kind


@pytest.mark.parametrize(("data", "mend"), [
    ("cat, lips".encode("utf-16-le"), "utf-16-le"), ("cat, lips".encode("utf-16-be"), "utf-16-be"), (b"cat, dogs\0", ""), (b"cat, dog\0", ""), (b"c\0a\0t\0,\0\0x", ""),
])  # fmt: skip
def test_captions_with_nuls_are_mended_only_where_their_order_is_seen(tmp_path, data, mend):
    (tmp_path / "a.txt").write_bytes(data)
    (found,) = [one for one in audit_captions(read([tmp_path / "a.txt"])[0]) if one.kind == "not UTF-8"]
    assert [edit.args["encoding"] for edit in found.mends] == ([mend] if mend else [])
    if mend:
        other = {"utf-16-le": "utf-16-be", "utf-16-be": "utf-16-le"}[mend]
        refused = plan(read([tmp_path / "a.txt"])[0], Edit("utf8", {"encoding": other}))
        assert not refused.changes and mend in str(refused.problems[0])
