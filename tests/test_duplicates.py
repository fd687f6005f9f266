"""Pictures that look alike: hashes, the index that finds near ones, groups and what is told of them."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path

import pytest
from labelled import drawing, jpeg, lit, noisy, on, photos
from PIL import Image, ImageOps

from lib_tuner.data.captions import CaptionFile, parse
from lib_tuner.data.duplicates import LIMIT, Twin, _Index, alike, fingerprint, groups, told_apart
from lib_tuner.data.edits import plan
from lib_tuner.data.look import Look, look


def seen(image: Image.Image) -> Look:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return look(buffer.getvalue())


def test_a_hash_says_where_squares_grow_brighter_to_the_right():
    ramp = Image.linear_gradient("L").transpose(Image.Transpose.ROTATE_90).convert("RGB")  # dark at the left
    assert fingerprint(ramp)[:2] == ((1 << 64) - 1, 0)
    half = Image.new("RGB", (90, 80))
    half.paste((200, 200, 200), (50, 0, 90, 80))  # of nine squares the last four are bright: one step up, the fifth of eight
    row = 0b00001000
    assert fingerprint(half)[0] == int.from_bytes(bytes([row] * 8), "big")
    assert fingerprint(half)[1] == 0 and fingerprint(ImageOps.mirror(half))[1] == fingerprint(half)[0]
    wide = Image.new("RGB", (96, 80))
    wide.paste((200, 200, 200), (54, 0, 96, 80))  # squares of 12 px, of which the fifth is bright by half
    assert bytes.fromhex(fingerprint(wide)[2])[::3] == bytes([0, 0, 0, 0, 100, 200, 200, 200] * 8)


@pytest.mark.parametrize("limit", [0, 3, 4, 6, 8, 11])
def test_the_index_finds_exactly_what_comparing_all_finds(limit):
    chance = random.Random(limit)
    hashes = [chance.getrandbits(64) for _ in range(60)]
    hashes += [value ^ sum(1 << bit for bit in chance.sample(range(64), chance.randrange(14))) for value in hashes for _ in range(4)]
    looks = {Path(str(number)): Look("", hash=value) for number, value in enumerate(hashes)}
    index = _Index(looks, limit)
    for value in hashes[:80]:
        want = {(path, bin(value ^ one.hash).count("1")) for path, one in looks.items() if bin(value ^ one.hash).count("1") <= limit}
        assert set(index.near(value)) == want


def test_ten_thousand_pictures_take_seconds_and_a_thousand_of_nothing_too():
    chance = random.Random(1)
    grey = "80" * 192
    looks = {Path(f"{number:05}"): Look("", (512, 512), hash=chance.getrandbits(64), mirrored=chance.getrandbits(64), thumb=grey) for number in range(9000)}
    looks |= {Path(f"black {number:04}"): Look("", (512, 512), thumb="00" * 192) for number in range(1000)}
    looks[Path("twin")] = Look("", (256, 256), hash=looks[Path("00077")].hash ^ 0b111, mirrored=1, thumb=grey)
    start = time.process_time()
    found = groups(looks)
    assert time.process_time() - start < 15
    assert [(g.keep.name, len(g.twins)) for g in found] == [("00077", 1), ("black 0000", 999)]


def test_copies_are_found_and_other_pictures_are_not():
    """Precision and recall over pairs: the copies of each scene, against all other scenes and the other copies."""
    looks, scene_of = {}, {}
    scenes = {**photos(), **{f"drawing {seed}": drawing(seed, (400, 400)) for seed in range(5)}}
    for name, image in scenes.items():
        image = image.resize((image.width * 5 // 9, image.height * 5 // 9), Image.Resampling.LANCZOS)
        w, h = image.size
        copies = {
            "": image, "small": image.resize((w // 3, h // 3), Image.Resampling.BICUBIC), "jpeg": jpeg(image, 20), "lit": lit(image, 1.15), "noise": noisy(image, 8),
            "mirror": ImageOps.mirror(image), "letterbox": on((0, 0, 0), image, 0, 40, 0, 40), "trimmed": image.crop((w // 100, h // 100, w - w // 100, h - h // 100)),
        }  # fmt: skip
        for way, copy in copies.items():
            looks[Path(name, way or "first")], scene_of[Path(name, way or "first")] = seen(copy), name
    pairs = [(group.keep, twin) for group in groups(looks) for twin in group.twins]
    right = [(keep, twin) for keep, twin in pairs if scene_of[keep] == scene_of[twin.path]]
    precision, recall = len(right) / len(pairs), len(right) / (len(looks) - len(scenes))
    print(f"\n| near duplicates | {len(looks)} | {len(pairs)} found | {precision:.2f} | {recall:.2f} |")
    assert len(looks) >= 100 and precision >= 0.98 and recall >= 0.9
    mirrored = {twin.path for _, twin in right if twin.mirrored}
    assert all((twin.path.name == "mirror") == twin.mirrored for keep, twin in right if keep.name != "mirror") and len(mirrored) >= 8


def test_the_largest_and_then_the_sharpest_is_kept_and_recoloured_pictures_are_others():
    image = photos()["astronaut"]
    red, blue, green = image.split()
    looks = {
        Path("a"): seen(image.resize((300, 300))), Path("b"): seen(image), Path("c"): seen(image.resize((100, 100)).resize(image.size)),
        Path("odd"): seen(Image.merge("RGB", (green, green, red)).point([255 - v for v in range(256)] * 3)), Path("bad"): Look("", trouble="is cut"),
    }  # fmt: skip
    (group,) = groups(looks)
    assert group.keep == Path("b") and {twin.path for twin in group.twins} == {Path("a"), Path("c")}
    (told,) = alike([group], looks)
    assert told.paths[0] == Path("b") and "a, c look like b" in told.text or "c, a look like b" in told.text
    assert groups(looks, 0, mirrors=False) == [] or all(twin.bits == 0 for g in groups(looks, 0) for twin in g.twins)
    with pytest.raises(ValueError, match="16 bits"):
        groups(looks, 16)


def test_no_chain_of_small_steps_makes_a_group():
    """Each is six bits from the next: what is twelve bits from the kept one is not its twin."""
    step = [0, 0b111111, 0b111111111111]
    looks = {Path(str(n)): Look("", (100 - n, 100), hash=value, mirrored=1 << 63, thumb="80" * 192) for n, value in enumerate(step)}
    assert [(g.keep, g.twins) for g in groups(looks, LIMIT)] == [(Path("0"), (Twin(Path("1"), 6, False),))]


def test_what_twins_captions_differ_in_can_be_added():
    looks = {Path(str(n)): Look("", (100 - n, 100), mirrored=1 << 63, thumb="80" * 192) for n in range(2)}
    files = [CaptionFile(Path(f"{n}.txt"), text, parse(text)) for n, text in enumerate((b"cat, red hat, Sitting", b"cat, sitting, grass"))]
    (told,) = told_apart(groups(looks), {Path(str(n)): file for n, file in enumerate(files)})
    assert "the first alone says grass, the second alone red hat" in told.text and told.paths == (Path("1.txt"),)
    (change,) = plan([files[1]], told.mends[0]).changes
    assert change.after == b"cat, sitting, grass, red hat"


def test_black_and_white_pictures_of_nothing_are_no_twins():
    looks = {Path(thumb): Look("", (100, 100), thumb=thumb * 192) for thumb in ("00", "08", "ff")}
    assert [(g.keep, [t.path for t in g.twins]) for g in groups(looks)] == [(Path("00"), [Path("08")])]
