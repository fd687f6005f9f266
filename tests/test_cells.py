"""Axes as people type them, and the cells that come of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_tuner.compare import values
from lib_tuner.compare.applied import Use
from lib_tuner.compare.cells import KINDS, Axis, Cell, Choice, Offer, plan_grid
from lib_tuner.host import GenerateRequest

RUN, OTHER = Path("/out/cat-001"), Path("/out/dog-001")
SAVES = (
    Choice(RUN / "cat-000100.safetensors", run="cat-001", step=100), Choice(RUN / "cat-000020.safetensors", run="cat-001", step=20), Choice(RUN / "cat.safetensors", run="cat-001"),
    Choice(OTHER / "dog-000100.safetensors", run="dog-001", step=100), Choice(OTHER / "dog-000050.safetensors", run="dog-001", step=50),
)  # fmt: skip
OFFER = Offer(SAVES, (Choice(Path("/lora/old.safetensors")), Choice(Path("/emb/word.pt"), "embedding"), Choice(Path("/models/m.ckpt"), "checkpoint")))
BASE = Cell(GenerateRequest("a cat, wavy hair", "blurry"))


@pytest.mark.parametrize(("line", "expected"), [
    ("a, b", (["a", "b"], 0)), ("a, b, ", (["a", "b"], 0)), ("a,\n b,\n\n", (["a", "b"], 0)), ('"a, b", c', (["a, b", "c"], 0)), ("a,,b", (["a", "b"], 1)), ("", ([], 0)), (" , ,", ([], 0)),
    ('say ""hi"", x', (['say ""hi""', "x"], 0)),
])  # fmt: skip
def test_texts_between_commas(line, expected):
    assert values.texts(line) == expected


@pytest.mark.parametrize(("text", "whole", "expected"), [
    ("5", True, [5]), ("1-5", True, [1, 2, 3, 4, 5]), ("1-5 (+2)", True, [1, 3, 5]), ("10-5 (-3)", True, [10, 7]), ("1-10 [4]", True, [1, 4, 7, 10]), ("1-10 [5]", True, [1, 3, 6, 8, 10]),
    ("0-1 [5]", False, [0, 0.25, 0.5, 0.75, 1]), ("0.1-0.5 (+0.1)", False, [0.1, 0.2, 0.3, 0.4, 0.5]), ("-1", True, [-1]), ("-2--1 [2]", False, [-2, -1]), ("5-3", True, [5, 4, 3]),
    ("1e-1", False, [0.1]), ("3-3", True, [3]), ("1-9 [1]", True, [1]), ("1-9 [0]", True, []),
])  # fmt: skip
def test_numbers_and_ranges_as_the_webui_writes_them(text, whole, expected):
    assert values.numbers(text, whole) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "said"), [("a", "no number"), ("nan", "no number"), ("1-5 (-1)", "other sign"), ("5-1 (+1)", "other sign"), ("1-9 (+0)", "other sign"), ("1-99999", "at most 1000")])
def test_no_numbers(text, said):
    with pytest.raises(ValueError, match=said):
        values.numbers(text, True)


def only(kind: str, text: str, base: Cell = BASE) -> list:
    plan = plan_grid(base, {"x": Axis(kind, text)}, OFFER)
    assert not plan.problems
    return list(plan.cells)


def test_each_kind_changes_what_it_says():
    request = BASE.request
    assert [c.request.seed for c in only("seed", "7, 1-2")] == [7, 1, 2]
    assert [c.request.cfg for c in only("cfg", "5, 7.5")] == [5, 7.5]
    assert [c.request.steps for c in only("steps", "10-30 (+10)")] == [10, 20, 30]
    assert [c.request.sampler for c in only("sampler", "DDIM, euler_a")] == ["ddim", "euler_a"]
    assert [(c.request.width, c.request.height) for c in only("size", "512, 512x768, 64×128")] == [(512, 512), (512, 768), (64, 128)]
    assert [c.request.clip_skip for c in only("clip_skip", "1, 2")] == [1, 2]
    assert [c.request.prompt for c in only("prompt", "wavy hair, straight hair, bald,")] == ["a cat, wavy hair", "a cat, straight hair", "a cat, bald"]
    assert [c.checkpoint for c in only("checkpoint", "m")] == ["/models/m.ckpt"]
    with_file = Cell(request, (Use(SAVES[0].path), Use(Path("/lora/old.safetensors"), 0.5)))
    assert [[use.weight for use in c.uses] for c in only("weight", "0-1 [3]", with_file)] == [[0, 0], [0.5, 0.5], [1, 1]]
    assert [c.uses[0].blocks for c in only("blocks", "OUTALL\nM00=0.5, IN01=0", with_file)] == ["1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1", "M00=0.5, IN01=0"]
    for kind, text in (("seed", "5"), ("cfg", "5"), ("steps", "5"), ("sampler", "euler_a"), ("size", "64"), ("clip_skip", "2")):
        changed = only(kind, text)[0]
        assert changed.uses == () and changed != BASE and (changed.request.prompt, changed.request.negative) == (request.prompt, request.negative)


def test_saves_are_named_by_run_and_step():
    plan = plan_grid(BASE, {"y": Axis("step", "all, None")}, OFFER)
    assert plan.labels("y") == ["cat-001 20", "cat-001 100", "cat-001 end", "dog-001 50", "dog-001 100", "None"]
    assert [c.uses[0].path.name if c.uses else "" for c in plan.cells] == ["cat-000020.safetensors", "cat-000100.safetensors", "cat.safetensors", "dog-000050.safetensors", "dog-000100.safetensors", ""]
    assert [c.uses[0].path.name for c in only("step", "20, cat-001 100, dog-000100")] == ["cat-000020.safetensors", "cat-000100.safetensors", "dog-000100.safetensors"]


def test_a_save_takes_the_place_of_its_runs_other_saves_and_keeps_the_weight():
    base = Cell(BASE.request, (Use(Path("/lora/old.safetensors")), Use(SAVES[0].path, 0.7)))
    assert only("step", "20", base)[0].uses == (Use(Path("/lora/old.safetensors")), Use(SAVES[1].path, 0.7))
    assert only("step", "dog-001 50", base)[0].uses == (*base.uses, Use(SAVES[4].path))
    assert only("file", "old", Cell(BASE.request, (Use(SAVES[0].path, 0.7),)))[0].uses == (Use(Path("/lora/old.safetensors"), 0.7),)
    assert only("step", "None", base)[0].uses == base.uses[:1] and only("file", "None", base)[0].uses == ()


def test_three_axes_are_planes_of_rows_of_columns_and_a_weight_acts_on_the_files_of_another_axis():
    plan = plan_grid(BASE, {"x": Axis("weight", "0.5, 1"), "y": Axis("seed", "1-3"), "z": Axis("step", "cat-001 20, cat-001 100")}, OFFER)
    assert plan.shape == (2, 3, 2) and len(plan.cells) == 12
    for x, weight in enumerate((0.5, 1.0)):
        for y in range(3):
            for z, name in enumerate(("cat-000020", "cat-000100")):
                cell = plan.cells[plan.at(x, y, z)]
                assert (cell.request.seed, cell.uses) == (y + 1, (Use(RUN / f"{name}.safetensors", weight),))


@pytest.mark.parametrize(("kind", "text", "left", "said"), [
    ("seed", "1,,2", 2, "nothing is written in 1 of its places"), ("step", "20, 777", 1, "'777' is no save of a run that is known here; there is"), ("step", "20, 100", 1, "cat-001 100 or dog-001 100"),
    ("cfg", "7, 99", 1, "99 is no number from 1 to 30"), ("seed", "1, 1.5", 1, "1.5 is no whole number"), ("size", "512, 100", 1, "multiples of 8"), ("sampler", "ddim, foo", 1, "'foo' is no sampler"),
    ("steps", "5, 1-3 (-1)", 1, "other sign"), ("clip_skip", "1, x", 1, "no number"),
])  # fmt: skip
def test_what_cannot_be_read_is_said_and_the_rest_is_made(kind, text, left, said):
    plan = plan_grid(BASE, {"x": Axis(kind, text)}, OFFER)
    assert len(plan.cells) == left and len(plan.problems) == 1 and said in plan.problems[0] and plan.problems[0].endswith("left out.")


@pytest.mark.parametrize(("axes", "said"), [
    ({"x": Axis("seed", " , ")}, "Axis X (Seed) has no value"), ({"x": Axis("seed", "x")}, r"^Axis X: 'x' is no number.*; it is left out\.\nAxis X (Seed) has no value"), ({"x": Axis("nose", "1")}, "There is no axis 'nose'"),
    ({"x": Axis("seed", "1"), "z": Axis("seed", "2")}, "Two axes change the same thing (Seed)"), ({"x": Axis("seed", "1" * 200_000)}, "have 200,000 letters"), ({"x": Axis("seed", "1-" + "9" * 400)}, "is too long for a number"), ({"y": Axis("prompt", "hat, cap")}, "'hat' is not in the prompt"),
    ({"x": Axis("seed", "1-1000"), "y": Axis("cfg", "1-11 [11]")}, "would have 11,000 pictures"),
])  # fmt: skip
def test_a_grid_that_cannot_be_is_one_sentence(axes, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        plan_grid(BASE, axes, OFFER)


def test_a_cell_that_cannot_be_is_a_sentence_among_the_others():
    plan = plan_grid(BASE, {"x": Axis("weight", "0.5, 1"), "y": Axis("step", "None, cat-001 20")}, OFFER)
    assert [isinstance(cell, str) for cell in plan.cells] == [True, True, False, False] and "No file is chosen" in plan.cells[0]


def test_every_value_that_is_offered_can_be_read():
    for name, kind in KINDS.items():
        for text in kind.offered(OFFER):
            assert kind.read(text, OFFER), (name, text)
