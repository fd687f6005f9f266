"""The picture of a grid: every cell where it belongs, whatever the sizes, and labels beside, never on, the pictures."""

from __future__ import annotations

import pytest
from PIL import Image

from lib_tuner.compare.cells import Axis, Cell, Offer, plan_grid
from lib_tuner.compare.sheet import compose, layout
from lib_tuner.host import GenerateRequest

BASE = Cell(GenerateRequest("a cat, wavy hair"))


def plan(x: str = "", y: str = "", z: str = ""):
    axes = {"x": Axis("seed", x), "y": Axis("cfg", y), "z": Axis("steps", z)}
    return plan_grid(BASE, {name: axis for name, axis in axes.items() if axis.text}, Offer())


def coloured(count: int, sizes=((64, 64),)) -> list[Image.Image]:
    return [Image.new("RGB", sizes[i % len(sizes)], (10 + i * 9, 200 - i * 7, (i * 53) % 256)) for i in range(count)]


def overlap(a, b) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


@pytest.mark.parametrize("axes", [("1-3", "", ""), ("", "5, 7", ""), ("1-3", "5, 7", ""), ("1-2", "5, 7, 9", "10, 20"), ("", "", "10, 20"), ("", "", "")])
@pytest.mark.parametrize("sizes", [((64, 64),), ((64, 96), (128, 32), (8, 200))])
def test_places_do_not_overlap_and_fill_the_picture(axes, sizes):
    made = plan(*axes)
    pictures = coloured(len(made.cells), sizes)
    where = layout(made, [picture.size for picture in pictures])
    boxes = [*where.cells, *where.labels.values()]
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(left >= 0 and top >= 0 and left + width <= where.size[0] and top + height <= where.size[1] for left, top, width, height in boxes)
    columns, rows, planes = made.shape
    named = [("x", columns), ("y", rows), ("z", planes)]
    assert {name for name, _, _ in where.labels} == {name for (name, _), text in zip(named, axes) if text}
    for z in range(planes):
        for y in range(rows):
            for x in range(columns):
                left, top, width, height = where.cells[made.at(x, y, z)]
                assert width >= pictures[made.at(x, y, z)].width and height >= pictures[made.at(x, y, z)].height
                if axes[0]:
                    assert where.labels["x", x, z][0] == left and where.labels["x", x, z][1] < top
                if axes[1]:
                    assert where.labels["y", y, z][1] == top and where.labels["y", y, z][0] < left


def test_every_picture_is_in_its_place_pixel_for_pixel():
    made = plan("1-3", "5, 7", "10, 20")
    pictures = coloured(12, ((64, 48), (32, 64)))
    sheet, where = compose(made, pictures), layout(made, [picture.size for picture in pictures])
    assert sheet.size == where.size
    for picture, (left, top, width, height) in zip(pictures, where.cells):
        at = (left + (width - picture.width) // 2, top + (height - picture.height) // 2)
        assert sheet.crop((*at, at[0] + picture.width, at[1] + picture.height)).tobytes() == picture.tobytes()


def written(sheet, box) -> int:
    left, top, width, height = box
    return sum(value < 128 for value in sheet.crop((left, top, left + width, top + height)).convert("L").tobytes())


def test_labels_are_written_and_a_cell_without_a_picture_says_why():
    made = plan("1-3", "5, 7")
    pictures: list = coloured(6, ((200, 200),))
    pictures[4] = None
    sheet, where = compose(made, pictures, {4: "This LoRA does not fit the model."}), layout(made, [p and p.size for p in pictures])
    assert all(written(sheet, box) > 10 for box in where.labels.values())
    left, top, width, height = where.cells[4]
    cell = sheet.crop((left, top, left + width, top + height)).convert("L")
    assert min(cell.tobytes()) < 200 and cell.getpixel((0, 0)) == 255
    assert written(compose(made, pictures), where.cells[4]) == 0


@pytest.mark.parametrize("label", ["a very long label that has to be broken into several lines, " * 3, "一个很长的标签需要分成好几行才能放进这一列里面去而不超出" * 2, "x" * 300])
def test_long_labels_are_broken_not_cut_at_the_side(label):
    made = plan_grid(Cell(GenerateRequest(label)), {"x": Axis("prompt", f'"{label}", b'), "y": Axis("seed", "1, 2")}, Offer())
    pictures = coloured(4, ((160, 160),))
    sheet, where = compose(made, pictures), layout(made, [p.size for p in pictures])
    box = where.labels["x", 0, 0]
    assert box[3] > 3 * where.letters and written(sheet, box) > 100
    for side in (box[0] - 1, box[0] + box[2]):  # nothing is written past the column
        assert sheet.crop((side, box[1], side + 1, box[1] + box[3])).convert("L").getextrema()[0] > 128
