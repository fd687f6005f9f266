"""How a picture is opened and fitted: orientation, colours, transparency, masks, and exact sizes."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from lib_tuner.data import pictures
from lib_tuner.data.item import Item
from lib_tuner.data.items import scan
from lib_tuner.data.look import look
from lib_tuner.data.pictures import View, cover, fit, load, placement, to_latent_mask, to_pixels
from lib_tuner.data.sources import Reader, digest
from lib_tuner.settings import DataConfig


def find(folder, **settings):
    items, problems = scan(DataConfig(folder=str(folder), **settings), folder)
    return {item.path.name: item for item in items}, problems


def one(folder, **settings):
    (item,) = find(folder, **settings)[0].values()
    return item


def kinds(problems):
    return sorted(problem.kind for problem in problems)


def opened(data, masks=False, mask_data=None):
    raw = data if isinstance(data, bytes) else encode(data)
    return load(Item(Path("a.png"), ""), raw, masks, mask_data)


def encode(image, form="PNG", **more):
    file = io.BytesIO()
    image.save(file, form, **more)
    return file.getvalue()


def noise(size):
    return Image.effect_noise(size, 90).convert("RGB")


# ---- opening


def corners(image):
    w, h = image.size
    return [image.getpixel(p) for p in ((0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1))]


@pytest.mark.parametrize("ending", ["png", "tif"])  # Pillow turns a TIFF by itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_size_and_pixels(tmp_path, orientation, ending):
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a cat.{ending}", exif=exif)
    item = one(tmp_path)
    # EXIF: the stored first row is the scene's top, top, bottom, bottom, left, right, right, left; the first column its left, right, right, left, top, ...
    white = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}[orientation]
    upright, _ = load(item, item.path.read_bytes())
    assert item.size == upright.size == ((40, 20) if orientation < 5 else (20, 40))
    for shown in (upright, pictures.small(item.path.read_bytes(), 40)):
        assert [c == (255, 255, 255) for c in corners(shown)] == [i == white for i in range(4)]
    assert pictures.mask_size(item.path.read_bytes()) == look(item.path.read_bytes()).size == item.size


@pytest.mark.parametrize(("kind", "count", "value"), [
    (3, 1, struct.pack("<HH", 9, 0)), (3, 1, bytes(4)), (2, 2, b"6\0\0\0"), (7, 1, b"\6\0\0\0"),
], ids=["9", "0", "text", "bytes"])  # fmt: skip
def test_an_orientation_that_is_none_turns_neither_size_nor_pixels(tmp_path, kind, count, value):
    entry = struct.pack("<HHI", 0x0112, kind, count) + value
    noise((40, 20)).save(tmp_path / "a cat.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4))
    item, data = one(tmp_path), (tmp_path / "a cat.jpg").read_bytes()
    assert item.size == load(item, data)[0].size == pictures.small(data, 40).size == pictures.mask_size(data) == look(data).size == (40, 20)
    assert look(data).orientation == 1 and look(data).trouble == ""


@pytest.mark.parametrize("mode, color, expected", [("L", 128, 128), ("1", 1, 255), ("I", 30000, 117), ("I;16", 30000, 117), ("CMYK", (0, 0, 0, 127), 128)])
def test_modes_become_rgb(mode, color, expected):
    form = "TIFF" if mode in ("CMYK", "I") else "PNG"
    image, mask = opened(encode(Image.new(mode, (20, 20), color), form))
    assert image.mode == "RGB" and mask is None
    assert all(abs(c - expected) <= 1 for c in image.getpixel((3, 3)))  # 30000 / 257 = 116.7


def test_sixteen_bit_copies_of_eight_bit_values_are_exact():
    image = Image.new("I;16", (256, 16))
    for v in range(256):
        image.paste(v * 257, (v, 0, v + 1, 16))
    assert [opened(image)[0].getpixel((v, 3))[0] for v in range(256)] == list(range(256))


def wide(mode, values):
    """A TIFF in which each value has 16 pixels of a column."""
    image = Image.new(mode, (len(values), 16))
    image.putdata(list(values) * 16)
    return encode(image, "TIFF")


def grey(data, count):
    image, _ = opened(data)
    return [image.getpixel((x, 3))[0] for x in range(count)]


BLACK = [0.0] * 60


@pytest.mark.parametrize("values, levels", [
    ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]), ([0.0, 0.5, 1.0, 1.5], [0, 128, 255, 255]), ([1.2, 1.5], [255, 255]), ([0.2, 0.6] * 9 + [4.0, 1000.0], [51, 153] * 9 + [255, 255]),
    ([0.0, 100.0, 255.0], [0, 100, 255]), ([-3.0, 100.4, 260.0], [0, 100, 255]), (BLACK + [100.0, 200.0], [0] * 60 + [100, 200]), (BLACK + [0.5, 40.0], [0] * 60 + [128, 255]),
    ([257.0, 30000.0, 65535.0], [1, 117, 255]), ([0.0, 5e5, 1e6], [0, 128, 255]), ([float("nan"), 0.5, 1.0], [0, 128, 255]), ([0.5, 0.25, float("inf")], [128, 64, 255]), (BLACK, [0] * 60),
], ids=["0-1", "0-1.5", "above 1", "HDR", "levels", "levels, sharpened", "levels on black", "HDR on black", "16 bits", "more", "nan", "inf", "black"])  # fmt: skip
def test_floats_have_white_at_1_or_255_or_65535(values, levels):
    assert grey(wide("F", values), len(levels)) == levels


@pytest.mark.parametrize("values, levels", [
    ([0, 100, 255], [0, 100, 255]), ([257, 30000, 65535], [1, 117, 255]), ([0, 20000, 80000], [0, 64, 255]), ([0, 1 << 30, (1 << 31) - 1], [0, 128, 255]), ([-70000, 20000, 80000], [0, 64, 255]),
], ids=["8 bits", "16 bits", "17 bits", "31 bits", "negative"])  # fmt: skip
def test_32_bit_integers_are_8_or_16_bits_or_have_white_at_their_largest(values, levels):
    assert grey(wide("I", values), 3) == levels


def test_32_bit_integers_without_a_sign_are_no_negative_ones():
    values = [0, 1 << 30, (1 << 31) - (1 << 32), -1]  # as Pillow has 2^31 and 2^32 - 1
    unsigned = wide("I", values).replace(struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    assert grey(unsigned, 4) == [0, 64, 128, 255]


def test_palette_and_gray_with_transparency_lie_on_white():
    rgba = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    rgba.paste((0, 0, 255, 0), (0, 0, 10, 20))
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0] + [0] * 762)
    palette.paste(0, (0, 0, 10, 20))
    for data in (encode(rgba), encode(palette, transparency=0)):
        image, mask = opened(data)
        assert image.getpixel((2, 2)) == (255, 255, 255) and image.getpixel((15, 2)) == (255, 0, 0) and mask is None
    assert opened(Image.new("LA", (20, 20), (0, 51)))[0].getpixel((3, 3)) == (204, 204, 204)  # 0 * 0.2 + 255 * 0.8


def wide_profile():
    """A profile whose red is sRGB's green: by its colours one sees that it was used."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    places = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 136 + 12 * i for i in range(count)}
    red, green = (bytes(profile[places[name] : places[name] + 8]) for name in (b"rXYZ", b"gXYZ"))
    profile[places[b"rXYZ"] : places[b"rXYZ"] + 8], profile[places[b"gXYZ"] : places[b"gXYZ"] + 8] = green, red
    at = struct.unpack(">I", profile[places[b"desc"] : places[b"desc"] + 4])[0]
    size = struct.unpack(">I", profile[places[b"desc"] + 4 : places[b"desc"] + 8])[0]
    text = profile[at : at + size].replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test")
    return bytes(profile[:at] + text + profile[at + size :])


def test_colour_profiles_are_turned_into_srgb():
    image = Image.new("RGB", (20, 20), (255, 0, 0))
    with_profile, _ = opened(encode(image, icc_profile=wide_profile()))
    r, g, b = with_profile.getpixel((3, 3))
    assert g > 240 and r < 15 and b < 15
    assert opened(encode(image, icc_profile=b"broken"))[0].getpixel((3, 3)) == (255, 0, 0)
    alpha = Image.new("RGBA", (20, 20), (255, 0, 0, 128))
    kept, mask = opened(encode(alpha, icc_profile=wide_profile()), masks=True)
    assert kept.getpixel((3, 3))[1] > 240 and mask.getpixel((3, 3)) == 128


# ---- masks


def test_alpha_is_the_mask_where_masks_are_on():
    image = Image.new("RGBA", (40, 20), (10, 20, 30, 255))
    image.paste((40, 50, 60, 0), (0, 0, 10, 20))
    rgb, mask = opened(image, masks=True)
    assert rgb.getpixel((2, 2)) == (40, 50, 60)  # the colours below the mask stay
    assert mask.getpixel((2, 2)) == 0 and mask.getpixel((30, 2)) == 255
    assert opened(image)[1] is None


def test_opaque_alpha_counts_fully_and_transparent_alpha_is_no_mask(tmp_path):
    _, mask = opened(Image.new("RGBA", (40, 20), (1, 2, 3, 255)), masks=True)
    assert to_latent_mask(mask, 4).unique().tolist() == [1.0]
    Image.new("RGBA", (40, 20), (1, 2, 3, 0)).save(tmp_path / "a cat.png")
    items, problems = find(tmp_path, masks=True)
    assert kinds(problems) == ["mask"] and "fully transparent" in problems[0].text
    assert load(items["a cat.png"], (tmp_path / "a cat.png").read_bytes(), masks=True)[1] is None


@pytest.mark.parametrize("name", ["a.mask.png", "mask/a.png", "a-masklabel.png"])
def test_mask_files_win_over_alpha(tmp_path, name):
    Image.new("RGBA", (40, 20), (0, 0, 0, 128)).save(tmp_path / "a.png")
    half = Image.new("L", (40, 20), 255)
    half.paste(0, (0, 0, 20, 20))
    (tmp_path / "mask").mkdir()
    half.save(tmp_path / name)
    item = one(tmp_path, masks=True)
    assert item.mask == tmp_path / name and item.mask_digest == digest(item.mask.read_bytes())
    assert one(tmp_path).mask is None
    reader = Reader()
    rgb, mask = load(item, reader.picture(item), True, reader.mask(item))
    assert rgb.getpixel((3, 3)) == (127, 127, 127) and mask.getpixel((5, 5)) == 0 and mask.getpixel((35, 5)) == 255


def test_masks_of_another_shape_are_stretched_and_reported(tmp_path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a cat.png")
    Image.new("L", (20, 20), 255).save(tmp_path / "a cat.mask.png")
    (tmp_path / "b cat.mask.png").write_bytes(b"x")
    Image.new("RGB", (40, 20), "blue").save(tmp_path / "b cat.png")
    items, problems = find(tmp_path, masks=True)
    assert kinds(problems) == ["mask", "mask"] and items["b cat.png"].mask is None
    reader = Reader()
    assert load(items["a cat.png"], reader.picture(items["a cat.png"]), True, reader.mask(items["a cat.png"]))[1].size == (40, 20)


def test_latent_masks_of_oblong_pictures_are_means_over_their_pixels():
    mask = Image.new("L", (16, 8), 0)
    mask.paste(255, (8, 0, 10, 8))  # a quarter of the third 4 x 4 block's columns: half of it
    assert to_latent_mask(mask, 4).tolist() == [[[0, 0, 0.5, 0], [0, 0, 0.5, 0]]]


# ---- geometry


@pytest.mark.parametrize("w", [16, 17, 206, 513, 1000, 4001])
@pytest.mark.parametrize("h", [16, 33, 709, 1024])
@pytest.mark.parametrize("bucket", [(512, 512), (64, 128), (832, 256)])
def test_placement_is_exact_and_inside(w, h, bucket):
    for view in (View(bucket), View(bucket, (999, -999), 8), View(bucket, (3, -5), 16, upscale=False)):
        (sw, sh), (left, top, right, bottom) = placement((w, h), view)
        assert (right - left, bottom - top) == bucket
        assert 0 <= left and 0 <= top and right <= sw and bottom <= sh
    sw, sh = cover((w, h), bucket)
    assert sw == bucket[0] or sh == bucket[1]
    assert abs(sw / w - sh / h) <= 0.5001 / min(w, h)  # the shape is kept but for rounding


def test_fit_crops_the_middle_and_follows_the_shift():
    image = Image.new("RGB", (96, 32), "black")
    for x in range(96):
        image.paste((x, x, x), (x, 0, x + 1, 32))
    assert fit(image, None, View((32, 32)))[0].getpixel((0, 5))[0] == 32
    assert fit(image, None, View((32, 32), (5, 0)))[0].getpixel((0, 5))[0] == 37
    assert fit(image, None, View((32, 32), (-99, 0)))[0].getpixel((0, 5))[0] == 0
    assert fit(image, None, View((32, 32), flip=True))[0].getpixel((0, 5))[0] == 63


def test_room_lets_a_square_crop_move_by_that_much():
    for shift in (-8, 0, 8):
        size, box = placement((64, 64), View((64, 64), (shift, 0), room=8))
        assert size == (80, 80) and box == (8 + shift, 8, 72 + shift, 72)
    assert placement((64, 64), View((64, 64), (8, 8), room=8, upscale=False))[0] == (64, 64)
    assert placement((70, 70), View((64, 64), (8, 8), room=8, upscale=False)) == ((70, 70), (6, 6, 70, 70))


def test_mask_and_picture_are_fitted_alike():
    image = noise((90, 50)).convert("L").point(lambda v: 255 if v > 128 else 0)
    big = image.resize((360, 200), Image.Resampling.NEAREST)
    fitted, mask = fit(big.convert("RGB"), big, View((64, 40), (3, 0), 4, flip=True))
    difference = (to_pixels(fitted).mean(0) + 1) / 2 - to_pixels(mask)[0]
    assert difference.abs().mean() < 0.1  # Lanczos against bilinear; unrelated noise differs by 0.5


def test_pixels_are_in_minus_one_to_one():
    image = Image.new("RGB", (3, 2))
    image.putdata([(0, 0, 0), (255, 255, 255), (255, 0, 51), (0, 0, 0), (0, 0, 0), (0, 255, 0)])
    x = to_pixels(image)
    assert x.shape == (3, 2, 3) and x[:, 0, 0].tolist() == [-1] * 3 and x[:, 0, 1].tolist() == [1] * 3
    assert x[:, 0, 2].tolist() == pytest.approx([1, -1, -0.6]) and x[:, 1, 2].tolist() == [-1, 1, -1]


def test_a_broken_exif_block_does_not_refuse_the_picture():
    data = encode(Image.new("RGB", (20, 20), "red"), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12")
    assert pictures.inspect(data).size == (20, 20) and opened(data)[0].size == (20, 20)
