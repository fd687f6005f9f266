"""WD14 models: what goes in, what comes out, and what onnxruntime is asked for. With a stand-in for onnxruntime, and with the real one where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_double import runtime
from PIL import Image
from torch.nn import functional as F

from lib_tuner.data import pictures
from lib_tuner.data.item import Item
from lib_tuner.data.tag_rules import Thresholds
from lib_tuner.data.tagger import WD14, ModelFiles, digest_of, open_wd14, squared, wd14_input

CSV = b"tag_id,name,category,count\n0,general,9,1\n1,red_thing,0,1\n2,blue_thing,0,1\n"


# ---- what goes in


def test_a_wide_picture_with_alpha_by_hand(tmp_path):
    """5 x 2 px: one white row above, two below; alpha on white: (10 * 128 + 255 * 127) / 255 = 132; blue first."""
    image = Image.new("RGBA", (5, 2), (1, 2, 3, 255))
    image.putpixel((0, 0), (10, 20, 30, 128))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.putpixel((4, 1), (200, 100, 50, 255))
    image.save(tmp_path / "a.png")
    rgb, _ = pictures.load(Item(tmp_path / "a.png", ""), (tmp_path / "a.png").read_bytes())
    white, dark = [255.0] * 3, [3.0, 2.0, 1.0]
    expected = [[white] * 5, [[142.0, 137.0, 132.0], white, dark, dark, dark], [dark, dark, dark, dark, [50.0, 100.0, 200.0]], [white] * 5, [white] * 5]
    x = wd14_input(rgb, 5)
    assert x.dtype == torch.float32 and x.shape == (5, 5, 3) and x.tolist() == expected


def test_a_tall_picture_has_its_odd_column_right():
    x = wd14_input(Image.new("RGB", (2, 5), "black"), 5)
    assert [bool((x[:, column] == 255).all()) for column in range(5)] == [True, False, False, True, True]


@pytest.mark.parametrize(("size", "side"), [((40, 20), 16), ((9, 18), 32), ((17, 17), 11)])
def test_it_is_scaled_bicubically_as_torch_does_it(size, side):
    generator = torch.Generator().manual_seed(1)
    image = pictures.from_pixels(torch.rand(3, size[1], size[0], generator=generator) * 2 - 1)
    whole = torch.full((3, max(size), max(size)), 255.0)
    left, top = ((max(size) - s) // 2 for s in size)
    whole[:, top : top + size[1], left : left + size[0]] = (pictures.to_pixels(image) + 1) * 127.5
    expected = whole[None]
    for shape in ((max(size), side), (side, side)):  # Pillow rounds between its two passes
        expected = F.interpolate(expected, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255).round()
    assert (wd14_input(image, side) - expected[0].permute(1, 2, 0).flip(-1)).abs().max() <= 1.0
    assert squared(image, side).size == (side, side)


# ---- onnxruntime, stood in for


@pytest.fixture
def files(tmp_path) -> ModelFiles:
    (tmp_path / "model.onnx").write_bytes(b"\x08model")
    (tmp_path / "selected_tags.csv").write_bytes(CSV)
    return ModelFiles("some-tagger", tmp_path / "model.onnx", tmp_path / "selected_tags.csv", Thresholds(0.3, 0.4))


def opened(files: ModelFiles, fake: Any, monkeypatch, **more) -> WD14:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return open_wd14(files, **more)


def test_a_model_gives_each_picture_its_own_scores(files, monkeypatch):
    fake = runtime()
    tagger = opened(files, fake, monkeypatch)
    scores = tagger.scores(torch.stack([tagger.prepare(Image.new("RGB", (8, 4), colour)) for colour in ("blue", "red")]))
    assert torch.allclose(scores, torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.0, 1.0]])) and fake.ran == [(2, 8, 8, 3)]  # the white half is blue too
    assert tagger.tags.names == ("general", "red_thing", "blue_thing") and tagger.thresholds == Thresholds(0.3, 0.4) and tagger.device == "CPU" and tagger.batch > 1


def test_another_file_is_another_tagger(files, monkeypatch):
    first = opened(files, runtime(), monkeypatch).name
    assert first == f"some-tagger {digest_of(files.model)[:12]}" == files.tagger
    files.model.write_bytes(b"\x08other")
    assert opened(files, runtime(), monkeypatch).name != first


@pytest.mark.parametrize(("fixed", "given", "ran"), [(1, 1, 1), (4, 3, 4)])
def test_a_model_of_a_fixed_number_gets_that_number(files, monkeypatch, fixed, given, ran):
    fake = runtime(shape=(fixed, 8, 8, 3))
    tagger = opened(files, fake, monkeypatch)
    scores = tagger.scores(torch.stack([tagger.prepare(Image.new("RGB", (8, 8), "red"))] * given))
    assert tagger.batch == fixed and fake.ran == [(ran, 8, 8, 3)] and scores[:, 0].tolist() == [0.0] * given


ALL = ("CPUExecutionProvider", "TensorrtExecutionProvider", "DmlExecutionProvider", "CUDAExecutionProvider")


@pytest.mark.parametrize(("failing", "cpu", "asked", "device"), [
    ((), False, [ALL[:1:-1] + ALL[:1]], "CUDA"), (ALL[3:], False, [ALL[:1:-1] + ALL[:1], ALL[2:3] + ALL[:1]], "DirectML"), (ALL[2:], False, 3, "CPU"), ((), True, [ALL[:1]], "CPU"),
])  # fmt: skip
def test_the_fastest_provider_that_works_is_used_and_told(files, monkeypatch, failing, cpu, asked, device):
    fake = runtime(available=ALL, failing=failing)
    assert opened(files, fake, monkeypatch, cpu=cpu).device == device
    assert len(fake.asked) == asked if isinstance(asked, int) else [tuple(providers) for providers, _ in fake.asked] == asked
    assert (getattr(fake.asked[0][1], "enable_mem_pattern", True) is False) == (not cpu)  # DirectML asks for it


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 8, 9, 3), (None, "h", "w", 3), (8, 8, 3), (None, 8, 8, 4)])
def test_a_model_that_takes_something_else_is_refused(files, monkeypatch, shape):
    with pytest.raises(ValueError, match="model.onnx is no WD14 model: it takes in"):
        opened(files, runtime(shape=shape), monkeypatch)
    with pytest.raises(ValueError, match="no WD14 model"):
        opened(files, runtime(kind="tensor(float16)"), monkeypatch)


def test_what_fails_in_onnxruntime_is_one_sentence(files, monkeypatch):
    with pytest.raises(ValueError, match=r"model.onnx is no model that onnxruntime 0 can load \(no driver\)"):
        opened(files, runtime(failing=ALL), monkeypatch)
    tagger = opened(files, runtime(), monkeypatch)
    with pytest.raises(ValueError, match=r"failed on 2 pictures \(out of memory\)"):
        tagger.scores(torch.full((2, 8, 8, 3), 13.0))
    files.model.unlink()
    with pytest.raises(ValueError, match="model.onnx does not exist"):
        opened(files, runtime(), monkeypatch)


def test_without_onnxruntime_the_sentence_has_the_command(files, monkeypatch):
    with pytest.raises(ValueError) as error:
        opened(files, None, monkeypatch)
    assert f'run "{sys.executable}" -m pip install --no-deps onnxruntime (it adds this one package and changes no other' in str(error.value)
    assert "\n" not in str(error.value)


# ---- the real one


def onnx_model(path: Path, number: int | str, side: int = 8) -> torch.Tensor:
    """Writes sigmoid(mean over pixels @ weights) as an ONNX file and returns the weights (3, 3)."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = torch.tensor([[0.01, 0.0, 0.03], [0.0, -0.01, 0.0], [-0.02, 0.02, 0.0]])  # blue, green, red x tags
    nodes = [helper.make_node("ReduceMean", ["in"], ["mean"], axes=[1, 2], keepdims=0), helper.make_node("MatMul", ["mean", "w"], ["logits"]),
             helper.make_node("Sigmoid", ["logits"], ["out"])]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("in", [number, side, side, 3]), ("out", [number, 3]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weights.numpy(), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return weights


@pytest.mark.parametrize("number", [1, "N"])
def test_a_real_session_computes_what_the_model_says(files, number):
    pytest.importorskip("onnxruntime")
    weights = onnx_model(files.model, number)
    tagger = open_wd14(files)
    assert tagger.device == "CPU" and tagger.batch == (1 if number == 1 else 8) and tagger.side == 8
    for colours in [["red"]] if number == 1 else [["red"], ["lime", "blue", "white"]]:
        means = torch.tensor([{"red": [0, 0, 255.0], "lime": [0, 255.0, 0], "blue": [255.0, 0, 0], "white": [255.0] * 3}[c] for c in colours])
        scores = tagger.scores(torch.stack([tagger.prepare(Image.new("RGB", (20, 20), colour)) for colour in colours]))
        assert torch.allclose(scores, torch.sigmoid(means @ weights), atol=1e-6)


def test_a_real_session_refuses_what_is_no_model(files):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="is no model that onnxruntime"):
        open_wd14(files)


