"""Where a crop lies: always inside the picture, always of the exact aspect, always W x H when resized."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from PIL import Image

from lib_tuner.data import crop
from lib_tuner.data.buckets import bucket_sizes
from lib_tuner.data.crop import Frame, Target, box_of, cuts, enlargement, framed, moved, nudged, tiles, zoom_limit, zoomed
from lib_tuner.settings import DataConfig


def cases(count: int = 3000):
    """Random pictures, targets and frames, thin and tiny ones among them."""
    draw = random.Random(7)
    for _ in range(count):
        size = draw.randint(1, 40) if draw.random() < 0.1 else draw.randint(16, 6000), draw.randint(16, 6000)
        target = (draw.choice((512, 768, 1024)),) * 2 if draw.random() < 0.5 else (draw.randint(16, 2048), draw.randint(16, 2048))
        yield draw, size, target, Frame(draw.random(), draw.random(), draw.choice((1.0, 1.0, draw.uniform(1, 8))))


def is_inside(box, size):
    return 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]


def resized(image, box, target):
    return image.resize(target, Image.Resampling.BICUBIC, box=box)


# ---- the frame


def test_any_frame_is_inside_the_picture_and_has_the_exact_aspect():
    for _, size, target, frame in cases():
        box = box_of(size, target, frame)
        assert is_inside(box, size), (size, target, frame)
        assert (box[2] - box[0]) * target[1] == pytest.approx((box[3] - box[1]) * target[0], rel=1e-9), (size, target, frame)


def test_the_largest_frame_is_what_exact_fractions_say():
    for _, size, target, _ in cases():
        scale = max(Fraction(target[0], size[0]), Fraction(target[1], size[1]))
        assert crop.frame_size(size, target) == pytest.approx((float(target[0] / scale), float(target[1] / scale)), rel=1e-12)
        assert enlargement(size, target) == pytest.approx(float(scale), rel=1e-12)


def test_the_centre_is_kept_where_there_is_room():
    for _, size, target, frame in cases():
        box = box_of(size, target, frame)
        width, height = crop.frame_size(size, target, frame.zoom)
        for at, low, high, length, whole in ((frame.x * size[0], box[0], box[2], width, size[0]), (frame.y * size[1], box[1], box[3], height, size[1])):
            assert low - 1e-6 <= at <= high + 1e-6
            if length / 2 <= at <= whole - length / 2:
                assert (low + high) / 2 == pytest.approx(at, abs=1e-6)


def test_pillow_makes_exactly_the_target_of_every_box():
    for _, size, target, frame in list(cases(40)):
        size, target = (min(size[0], 900), min(size[1], 900)), (min(target[0], 300), min(target[1], 300))
        made = resized(Image.new("L", size, 255), box_of(size, target, frame), target)
        assert made.size == target and made.getextrema() == (255, 255)  # no black row, no black column


@pytest.mark.parametrize(("size", "target"), [
    ((206, 900), (512, 512)), ((900, 206), (512, 512)),  # int(206 * (512 / 206)) is 511
    ((800, 600), (1280, 720)), ((600, 800), (720, 1280)),  # 4:3 to 16:9: scaled by the height, the width was too short
    ((640, 640), (512, 768)), ((709, 400), (709, 400)),
])  # fmt: skip
def test_no_black_bar_where_the_webui_makes_one(size, target):
    made = resized(Image.new("RGB", size, "white"), box_of(size, target, Frame(1.0, 1.0)), target)
    assert made.size == target and made.getextrema() == ((255, 255),) * 3


def test_every_side_that_is_one_short_in_the_webui():
    short = [(h, H) for H in (512, 768, 1024) for h in range(200, 3000) if int(h * (H / h)) != H]
    assert len(short) == 709 and (206, 512) in short  # as the WebUI computes it
    for h, H in short:
        box = box_of((h + 40, h), (H, H), Frame())
        assert box[1] == 0 and box[3] == h and box[2] - box[0] == pytest.approx(h, abs=1e-9)


def test_a_crop_of_the_pictures_own_size_is_the_picture():
    image = Image.effect_noise((300, 200), 90)
    assert resized(image, box_of(image.size, image.size, Frame(0.1, 0.9)), image.size).tobytes() == image.tobytes()


def test_a_crop_without_scaling_is_the_pixels_themselves():
    image = Image.effect_noise((300, 200), 90)
    frame = Frame(150 / 300, 100 / 200, zoom_limit((300, 200), (64, 64)))
    assert box_of((300, 200), (64, 64), frame) == pytest.approx((118, 68, 182, 132))
    assert resized(image, (118.0, 68.0, 182.0, 132.0), (64, 64)).tobytes() == image.crop((118, 68, 182, 132)).tobytes()


@pytest.mark.parametrize("values", [(-0.1, 0.5, 1), (0.5, 1.1, 1), (0.5, 0.5, 0.9), (float("nan"), 0.5, 1), (0.5, 0.5, float("inf")), (0.5, 0.5, float("nan"))])
def test_a_frame_outside_the_picture_is_refused(values):
    with pytest.raises(ValueError, match="of a crop"):
        Frame(*values)


# ---- small pictures, zoom


def test_how_much_a_small_picture_is_enlarged():
    assert enlargement((256, 512), (512, 512)) == 2 and enlargement((1024, 512), (512, 512)) == 1 and enlargement((2048, 1024), (512, 512), zoom=2) == 1
    assert zoom_limit((2048, 1024), (512, 512)) == 2 and zoom_limit((256, 256), (512, 512)) == 1 and zoom_limit((1024, 1024), (512, 512), enlarge=1.5) == 3


def test_zooming_ends_at_the_largest_frame_and_at_the_limit():
    for draw, size, target, frame in cases(1000):
        near = zoomed(frame, size, target, 1e6)
        assert near.zoom == pytest.approx(zoom_limit(size, target)) and is_inside(box_of(size, target, near), size)
        assert near.zoom == 1 or enlargement(size, target, near.zoom) <= 1 + 1e-9
        assert zoomed(frame, size, target, 1e-6).zoom == 1


def test_the_point_below_the_pointer_stays_in_place():
    size, target = (2000, 1500), (500, 500)
    before, after = Frame(0.5, 0.5, 1.2), zoomed(Frame(0.5, 0.5, 1.2), size, target, 1.5, about=(0.55, 0.45))
    def place(frame):
        left, top, right, bottom = box_of(size, target, frame)
        return (0.55 * size[0] - left) / (right - left), (0.45 * size[1] - top) / (bottom - top)
    assert after.zoom == pytest.approx(1.8) and place(after) == pytest.approx(place(before))


# ---- dragging


def test_a_drag_moves_by_what_was_dragged_and_stops_at_the_edge():
    size, target = (1000, 500), (500, 500)
    assert moved(Frame(), size, target, 0.1).x == pytest.approx(0.6)
    assert moved(Frame(), size, target, 0.9, 0.9) == Frame(0.75, 0.5) and moved(Frame(), size, target, -5) == Frame(0.25, 0.5)
    assert moved(Frame(1.0, 0.5), size, target, -0.1).x == pytest.approx(0.65)  # no dead way: it starts at the edge, where the frame is seen
    assert box_of(size, target, nudged(Frame(), size, target, right=3)) == pytest.approx((253, 0, 753, 500))
    assert box_of(size, target, nudged(Frame(zoom=2), size, target, right=4, down=-2)) == pytest.approx((377, 124, 627, 374))  # each crop pixel is half a one here


def test_a_drag_and_back_is_nothing_where_no_edge_is_met():
    for draw, size, target, frame in cases(1000):
        frame = moved(frame, size, target)
        there = moved(frame, size, target, 0.01, -0.01)
        assert is_inside(box_of(size, target, there), size)
        if there.x == pytest.approx(frame.x + 0.01) and there.y == pytest.approx(frame.y - 0.01):
            back = moved(there, size, target, -0.01, 0.01)
            assert (back.x, back.y) == pytest.approx((frame.x, frame.y))


# ---- the subject


def test_a_subject_that_fits_is_inside_wherever_the_point_is():
    for draw, size, target, frame in cases():
        width, height = crop.frame_size(size, target, frame.zoom)
        w, h = draw.uniform(0, width), draw.uniform(0, height)
        left, top = draw.uniform(0, size[0] - w), draw.uniform(0, size[1] - h)
        subject = (left, top, left + w, top + h)
        box = box_of(size, target, framed(size, target, (frame.x, frame.y), subject, frame.zoom))
        assert is_inside(box, size) and not cuts(box, subject), (size, target, frame, subject)


def test_the_frame_is_moved_no_more_than_the_subject_needs():
    assert box_of((1000, 500), (500, 500), framed((1000, 500), (500, 500), (0.5, 0.5), (700, 0, 800, 100))) == pytest.approx((300, 0, 800, 500))
    assert framed((1000, 500), (500, 500), (0.5, 0.5), (400, 0, 500, 100)) == Frame()


def test_a_subject_that_is_too_large_fills_the_frame():
    box = box_of((1000, 500), (500, 500), framed((1000, 500), (500, 500), (0.0, 0.5), (200, 0, 900, 500)))
    assert box == pytest.approx((200, 0, 700, 500)) and cuts(box, (200, 0, 900, 500))


def test_several_subjects_are_taken_together_where_they_fit():
    near, small, far = (100, 100, 200, 200), (300, 100, 350, 150), (900, 100, 950, 150)
    assert crop.subject_of([near, small], (1000, 500), (512, 512)) == ((100, 100, 350, 200), True)
    assert crop.subject_of([far, near], (1000, 500), (512, 512)) == (near, False)  # not the gap between them
    assert crop.subject_of([near], (1000, 500), (512, 16)) == (near, True)


def test_a_margin_ends_at_the_picture():
    assert crop.with_margin((10, 20, 110, 70), 0.2, (200, 75)) == pytest.approx((0, 10, 130, 75))


# ---- tiles


def test_tiles_cover_the_picture_and_overlap():
    for draw, size, target, _ in cases(300):
        size = (max(size[0], 300), max(size[1], 300))
        overlap, zoom = draw.choice((0, 0.1, 0.2, 0.5)), min(zoom_limit(size, target), 3.0)
        boxes = [box_of(size, target, frame) for frame in tiles(size, target, overlap, zoom)]
        for axis in (0, 1):
            spans = sorted({(round(box[axis], 4), round(box[axis + 2], 4)) for box in boxes})
            assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(size[axis], abs=1e-3)
            for (_, end), (start, after) in zip(spans, spans[1:]):
                assert end - start >= overlap * (after - start) - 1e-2
        assert all(is_inside(box, size) for box in boxes)
        assert len(boxes) == len({round(b[0], 4) for b in boxes}) * len({round(b[1], 4) for b in boxes})


@pytest.mark.parametrize(("size", "overlap", "zoom", "count"), [
    ((512, 512), 0.2, 1, 1), ((1024, 512), 0, 1, 2), ((1024, 512), 0.2, 1, 3), ((513, 512), 0, 1, 2), ((1024, 1024), 0, 2, 4), ((1024, 1024), 0.1, 2, 9), ((512, 2048), 0, 1, 4),
])  # fmt: skip
def test_no_more_tiles_than_needed(size, overlap, zoom, count):
    assert len(tiles(size, (512, 512), overlap, zoom)) == count


# ---- targets


@pytest.mark.parametrize(("text", "size", "wanted"), [
    ("512x768", (3000, 2000), (512, 768)), ("640", (3000, 2000), (640, 640)), (" 512 × 768 ", (9, 9), (512, 768)), ("bucket:512", (3000, 2000), (640, 384)),
    ("bucket:512", (1000, 1000), (512, 512)), ("area:512", (1024, 1024), (512, 512)), ("area:512", (2000, 500), (1024, 256)), ("area:512", (300, 300), (300, 300)),
])  # fmt: skip
def test_what_a_size_is_for_a_picture(text, size, wanted):
    assert Target.parse(text).size_for(size) == wanted and Target.parse(str(Target.parse(text))) == Target.parse(text)


def test_a_bucket_is_one_that_training_has_and_the_nearest():
    for _, size, _, _ in cases(300):
        W, H = Target.parse("bucket:512").size_for(size)
        assert abs(W / H - size[0] / size[1]) == min(abs(w / h - size[0] / size[1]) for w, h in bucket_sizes(DataConfig(resolution=512)))


@pytest.mark.parametrize("text", ["", "512x", "x512", "big", "bucket:512x768", "area:", "face:512", "8x8", "512x99999", "-512x512", "5.5"])
def test_what_is_no_size_is_said(text):
    with pytest.raises(ValueError, match="is no size of a crop|sides are from"):
        Target.parse(text)


def test_an_area_keeps_the_shape():
    for _, size, _, _ in cases(500):
        W, H = crop.area_size(size, 512)
        scale = min(1, 512 / (size[0] * size[1]) ** 0.5)
        assert abs(W - size[0] * scale) <= 0.5 + 1e-9 or W == 1
        assert abs(H - size[1] * scale) <= 0.5 + 1e-9 or H == 1
    assert crop.area_size((100, 100), 512, enlarge=2) == (200, 200)
