"""Where the subject of a picture is: by faces, by detail, and what neither may do."""

from __future__ import annotations

import importlib.util
import math
import random
import sys
import types
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from lib_tuner.data import focal
from lib_tuner.data.crop import Frame, box_of, cuts, framed, in_pixels
from lib_tuner.data.focal import Focus, find

# ---- pictures with a known subject


def background(draw: random.Random, size: tuple[int, int], kind: str) -> Image.Image:
    top, bottom = (tuple(draw.randint(30, 220) for _ in range(3)) for _ in range(2))
    if kind == "flat":
        return Image.new("RGB", size, top)
    if kind == "sky":
        return Image.merge("RGB", [Image.linear_gradient("L").resize(size).point(lambda v, a=a, b=b: a + (b - a) * v / 255) for a, b in zip(top, bottom)])
    torch.manual_seed(draw.randint(0, 999))
    grain = torch.randint(0, 30, (size[1], size[0]), dtype=torch.uint8).numpy()  # sand, leaves: an even texture
    return Image.merge("RGB", [Image.fromarray(grain).point(lambda v, a=a: v + a - 15) for a in top])


def subject(draw: random.Random, side: int) -> tuple[Image.Image, Image.Image]:
    """Something with detail in an oval, and its mask."""
    picture = Image.effect_noise((side, side), 120).filter(ImageFilter.GaussianBlur(side / 60)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y, r = draw.randint(0, side), draw.randint(0, side), draw.randint(side // 20, side // 6)
        pen.ellipse((x - r, y - r, x + r, y + r), outline=tuple(draw.randint(0, 255) for _ in range(3)), width=max(2, side // 60))
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    return picture, mask


def labelled(count: int):
    """(picture, box of the subject, background): wide and tall ones, the subject anywhere."""
    draw = random.Random(3)
    for i in range(count):
        size = draw.choice(((900, 500), (500, 900), (800, 400), (640, 480), (400, 800)))
        side, kind = draw.randint(120, 260), ("flat", "sky", "grain")[i % 3]
        x, y = draw.randint(0, size[0] - side), draw.randint(0, size[1] - side)
        picture = background(draw, size, kind)
        picture.paste(*[(drawn, (x, y), mask) for drawn, mask in [subject(draw, side)]][0])
        yield picture, (x, y, x + side, y + side), kind


def test_the_subject_is_in_the_crop(record_property):
    """The rate of squares that hold the whole subject, found by detail and in the middle."""
    held, middle, kinds = Counter(), Counter(), Counter()
    for picture, box, kind in labelled(60):
        square = (512, 512)
        kinds[kind] += 1
        held[kind] += not cuts(box_of(picture.size, square, framed(picture.size, square, find(picture, "detail").point)), box)
        middle[kind] += not cuts(box_of(picture.size, square, Frame()), box)
    rates = {kind: held[kind] / kinds[kind] for kind in kinds}
    record_property("rate", rates)
    assert held.total() / 60 >= 0.9 and min(rates.values()) >= 0.85, rates
    assert middle.total() / 60 < 0.6  # else the pictures would show nothing


def sample(package: str, name: str) -> Image.Image:
    """A picture that comes with a package, which itself is not imported: that takes seconds."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not here")
    return Image.open(Path(found.origin).parent / name)


@pytest.mark.parametrize(("package", "name", "box"), [
    ("sklearn", "datasets/images/flower.jpg", (0.3, 0.3, 0.68, 0.75)), ("skimage", "data/chelsea.png", (0.2, 0.1, 0.7, 0.8)), ("skimage", "data/coffee.png", (0.25, 0.15, 0.85, 0.85)),
])  # fmt: skip
def test_real_pictures_with_one_subject(package, name, box):
    """The point is in the box that was drawn by hand round the flower's heart, the cat's face, the cup."""
    x, y = find(sample(package, name)).point
    assert box[0] < x < box[2] and box[1] < y < box[3]


def test_a_strip_of_the_astronaut_holds_her_face():
    picture = sample("skimage", "data/astronaut.png")
    strip = box_of(picture.size, (256, 512), framed(picture.size, (256, 512), find(picture, "detail").point))
    assert not cuts(strip, in_pixels((0.35, 0.12, 0.53, 0.36), picture.size))


@pytest.mark.parametrize("size", [(600, 300), (300, 600), (400, 400)])  # the WebUI finds no such point in a square picture, and never tries the last position
@pytest.mark.parametrize("place", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_subject_in_a_corner(size, place):
    picture, drawn = Image.new("RGB", size, (120, 130, 140)), subject(random.Random(1), 100)
    at = tuple(int(p * (s - 100)) for p, s in zip(place, size))
    picture.paste(drawn[0], at, drawn[1])
    x, y = find(picture).point
    assert abs(x * size[0] - at[0] - 50) < 30 and abs(y * size[1] - at[1] - 50) < 30


def test_where_nothing_is_the_middle_is():
    assert find(Image.new("RGB", (400, 300), "white")) == Focus((0.5, 0.5), (), "detail") and find(Image.new("RGB", (9, 900)), "centre") == Focus()


def test_a_speck_on_a_wall_does_not_win_over_detail():
    """What the WebUI calls entropy is largest for an almost white wall: 13.3 for one black pixel of 10,000, 2.0 for half of them."""
    picture = Image.new("RGB", (800, 400), "white")
    picture.putpixel((100, 200), (0, 0, 0))
    picture.paste(Image.effect_noise((200, 200), 100).convert("RGB"), (560, 100))
    x, _ = find(picture).point
    assert 0.65 < x < 0.9


def checks(dark: int, bright: int) -> Image.Image:
    board = numpy.indices((120, 120)).sum(0) // 4 % 2
    return Image.fromarray((dark + (bright - dark) * board).astype("uint8")).convert("RGB")


def test_of_two_equal_entropies_the_stronger_edges_win():
    picture = Image.new("RGB", (256, 128), (105, 105, 105))  # no larger than the thumbnail, whose mixed levels would add entropy
    picture.paste(checks(100, 110).crop((0, 0, 64, 64)), (24, 32))
    picture.paste(checks(0, 255).crop((0, 0, 64, 64)), (168, 32))
    assert find(picture).point[0] == pytest.approx(200 / 256, abs=0.08)


@pytest.mark.parametrize(("size", "places", "wanted"), [((300, 600), ((88, 448), (88, 32)), (0.49, 0.15)), ((800, 300), ((0, 64), (344, 64)), (0.505, 0.41))])
def test_of_two_equal_subjects_the_upper_and_the_inner_one_wins(size, places, wanted):
    picture = Image.new("RGB", size, (105, 105, 105))
    for place in places:
        picture.paste(checks(0, 255), place)
    assert find(picture).point == pytest.approx(wanted, abs=0.04)


@pytest.mark.parametrize("size", [(20, 3000), (3000, 20), (16, 16), (1, 1), (2000, 1500)])
def test_any_shape_has_a_point_inside(size):
    point = find(Image.effect_noise(size, 80)).point
    assert all(0 <= value <= 1 for value in point)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "LA"])
def test_any_mode_is_looked_at(mode):
    assert find(Image.new("RGB", (64, 64)).convert(mode) if mode != "LA" else Image.new("LA", (64, 64))).point == (0.5, 0.5)


# ---- the formulas


def test_entropy_is_that_of_shannon():
    levels = torch.from_numpy(numpy.random.default_rng(0).integers(0, 256, (64, 96)).astype("uint8") // 3)
    levels[:, :48] = 7
    found = focal.entropy(levels)
    assert found.shape == (8, 12)
    for row, column in ((0, 0), (3, 2), (4, 8), (7, 11), (2, 6)):
        window = levels[max(0, row - 2) * 8 : (row + 3) * 8, max(0, column - 2) * 8 : (column + 3) * 8].flatten().tolist()
        wanted = -sum(n / len(window) * math.log2(n / len(window)) for n in Counter(window).values())
        assert float(found[row, column]) == pytest.approx(wanted, abs=1e-3)


def test_two_levels_have_one_bit_and_an_even_texture_no_interest():
    stripes = torch.arange(64).remainder(2).mul(200).to(torch.uint8).expand(64, 64).contiguous()
    assert torch.allclose(focal.entropy(stripes), torch.ones(8, 8), atol=1e-4)
    inner = focal.interest(Image.fromarray(numpy.tile(stripes.numpy(), (3, 3))).convert("RGB"))[1:-1, 1:-1]
    assert float(inner.max()) < 0.01


# ---- faces


def face(*boxes):
    return lambda image: [tuple(value * side for value, side in zip(box, image.size * 2)) for box in boxes]


def test_the_largest_face_decides_and_the_point_is_near_the_brow():
    found = find(Image.new("RGB", (1000, 500)), "auto", face((0.1, 0.1, 0.2, 0.3), (0.6, 0.2, 0.8, 0.8)))
    assert found.found == "face" and found.point == pytest.approx((0.7, 0.4)) and found.subjects[0] == pytest.approx((0.6, 0.2, 0.8, 0.8)) and len(found.subjects) == 2


def test_without_a_face_there_is_detail_or_the_middle():
    picture = Image.new("RGB", (300, 300))
    picture.paste(Image.effect_noise((80, 80), 90).convert("RGB"), (200, 200))
    assert find(picture, "auto", face()).found == "detail" and find(picture, "face", face()) == Focus() and find(picture, "detail", face((0, 0, 1, 1))).found == "detail"


def test_a_face_that_reaches_outside_is_cut_off_there():
    assert find(Image.new("RGB", (100, 100)), "face", face((-0.1, 0.5, 0.3, 1.2), (1.1, 0, 1.2, 0.1))).subjects == (pytest.approx((0, 0.5, 0.3, 1)),)


def test_faces_without_opencv_are_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert focal.face_detector() is None
    with pytest.raises(ValueError, match="opencv-python-headless"):
        find(Image.new("RGB", (9, 9)), "face", None)
    with pytest.raises(ValueError, match="is no file"):
        focal.face_detector(tmp_path / "gone.onnx")
    (tmp_path / "net.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match="opencv-python-headless"):
        focal.face_detector(tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="choose one of auto"):
        find(Image.new("RGB", (9, 9)), "nose")


class Net:
    """As much of OpenCV's YuNet as is called: one face for each blue pixel block it sees, if the colours come as blue, green, red."""

    def __init__(self, rows):
        self.rows, self.seen, self.size = rows, None, None

    def setInputSize(self, size):
        self.size = tuple(size)

    def detect(self, array):
        self.seen = array
        return 1, self.rows


def test_yunet_gets_blue_before_red_and_its_boxes_are_read(monkeypatch, tmp_path):
    net = Net(numpy.array([[10, 20, 30, 40, *[0] * 10, 0.95]], dtype="float32"))
    fake = types.SimpleNamespace(FaceDetectorYN=types.SimpleNamespace(create=lambda *_: net), error=RuntimeError, __version__="4.8")
    monkeypatch.setitem(sys.modules, "cv2", fake)
    (tmp_path / "net.onnx").write_bytes(b"x")
    found = focal.find(Image.new("RGBA", (100, 200), (255, 128, 0, 9)), "face", focal.face_detector(tmp_path / "net.onnx"))
    assert net.size == (100, 200) and net.seen.shape == (200, 100, 3) and net.seen[0, 0].tolist() == [0, 128, 255]
    assert found.subjects == (pytest.approx((0.1, 0.1, 0.4, 0.3)),)
    net.rows = None
    assert focal.find(Image.new("RGB", (100, 200)), "face", focal.face_detector(tmp_path / "net.onnx")).found == "centre"


def test_two_faces_of_a_cascade_are_two_faces(monkeypatch, tmp_path):
    """The WebUI asks for the truth of the array, which ends in an error where there are several."""
    for name in focal._CASCADES:
        (tmp_path / name).write_text("")
    cascade = types.SimpleNamespace(empty=lambda: False, detectMultiScale=lambda gray, **more: numpy.array([[0, 0, 50, 50], [50, 100, 50, 100]]))
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(CascadeClassifier=lambda path: cascade, data=types.SimpleNamespace(haarcascades=str(tmp_path))))
    assert find(Image.new("RGB", (100, 200)), "auto", focal.face_detector()).subjects == ((0.5, 0.5, 1.0, 1.0), (0.0, 0.0, 0.5, 0.25))
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace())  # OpenCV 5 has no cascades
    assert focal.face_detector() is None


def test_opencv_itself_finds_a_face():
    pytest.importorskip("cv2")
    found = find(sample("skimage", "data/astronaut.png"), "auto", focal.face_detector())
    assert found.found == "face" and not cuts((0.3, 0.05, 0.6, 0.42), found.subjects[0])
