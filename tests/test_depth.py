"""Hints of depth: what a model is given, what is made of what it gives, and where it comes from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx_double import runtime
from test_control import last, run, values_of
from test_hints import batches, config

from lib_tuner.data.conditions import Recipe
from lib_tuner.data.depth import OnnxDepth, Preparation, fitted, stretched
from lib_tuner.data.hints import Hints
from lib_tuner.data.pictures import from_pixels
from lib_tuner.events import Finished, Sampled
from lib_tuner.methods import METHODS, settings

SHAPE = ("batch", 3, "height", "width")


def red(x: np.ndarray) -> np.ndarray:
    return x[:, 0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hub" / "onnx" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x08model")
    return path


def opened(monkeypatch, file: Path, model: Any = red, shape: tuple = SHAPE, **more: Any) -> tuple[OnnxDepth, SimpleNamespace]:
    fake = runtime(shape=shape, model=model, **more)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return OnnxDepth(file), fake


# ---- what a model is given


@pytest.mark.parametrize("asks", [Preparation(), Preparation(size=(384, 384), multiple=32), Preparation(size=(256, 320), multiple=1), Preparation(size=(384, 384), multiple=1, keeps_shape=False)])
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (1024, 1024), (512, 768), (64, 640), (300, 301)])
def test_the_size_is_the_one_that_transformers_takes(size, asks):
    theirs = pytest.importorskip("transformers.models.dpt.image_processing_pil_dpt").get_resize_output_image_size
    expected = theirs(np.zeros((3, *size)), asks.size, asks.keeps_shape, asks.multiple)
    assert fitted(size, asks) == (expected.height, expected.width)


def test_it_is_normalised_as_imagenet_is_unless_the_models_repository_says_otherwise(file, monkeypatch):
    seen = []
    picture = torch.rand(3, 14, 28, generator=torch.Generator().manual_seed(1))

    def keep(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return x[:, 0]

    opened(monkeypatch, file, keep, (1, 3, 14, 28))[0](picture)
    expected = (picture - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert seen[0].dtype == np.float32 and np.allclose(seen[0][0], expected, atol=1e-5)
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 384, "width": 384}, "ensure_multiple_of": 32, "keep_aspect_ratio": True}
    (file.parent.parent / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    model, fake = opened(monkeypatch, file, keep)
    model(torch.full((3, 14, 28), 0.75))
    assert fake.ran == [(1, 3, 192, 384)] and np.allclose(seen[1], 0.5, atol=1e-5)
    (file.parent.parent / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 96}, "do_normalize": False}), encoding="utf-8")
    model, fake = opened(monkeypatch, file, keep)
    model(torch.full((3, 14, 28), 0.75))
    assert fake.ran == [(1, 3, 64, 96)] and np.allclose(seen[2], 0.75, atol=1e-5)
    (file.parent / "preprocessor_config.json").write_text('{"image_mean": [1]}', encoding="utf-8")
    with pytest.raises(ValueError, match="preprocessor_config.json says nothing that a depth model could be given"):
        opened(monkeypatch, file)


@pytest.mark.parametrize(("shape", "kind"), [((1, 8, 8, 3), "tensor(float)"), ((4, 3, 8, 8), "tensor(float)"), ((1, 3, 8), "tensor(float)"), (SHAPE, "tensor(float16)")])
def test_a_file_that_takes_something_else_is_refused(file, monkeypatch, shape, kind):
    with pytest.raises(ValueError, match="model.onnx is no depth model: it takes in"):
        opened(monkeypatch, file, shape=shape, kind=kind)


def test_without_onnxruntime_or_a_file_it_says_so(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="ONNX models need the package onnxruntime, which is not installed: run "):
        OnnxDepth(file)
    with pytest.raises(ValueError, match="gone.onnx does not exist"):
        opened(monkeypatch, file.with_name("gone.onnx"))


# ---- what is made of what it gives


@pytest.mark.parametrize("axes", [0, 1])
def test_the_nearest_point_is_white_and_the_farthest_black_whatever_the_scale(file, monkeypatch, axes):
    """A ramp from left to right, with a batch axis alone or one of channels too."""
    ramp = torch.linspace(0, 1, 28).expand(3, 14, 28)
    for scale, shift in ((1000.0, 50.0), (0.01, -3.0)):
        model, _ = opened(monkeypatch, file, lambda x: (x[:, :1] if axes else x[:, 0]) * scale + shift)
        found = model(ramp)
        assert found.shape == (1, 14, 28) and found.min() == 0 and found.max() == 1
        assert (found[0] - ramp[0]).abs().max() < 0.03


def test_a_flat_map_is_black_and_a_broken_one_is_refused(file, monkeypatch):
    assert stretched(torch.full((4, 4), 7.0), (8, 8)).eq(0).all()
    with pytest.raises(ValueError, match="no finite numbers"):
        stretched(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), (8, 8))
    model, _ = opened(monkeypatch, file, lambda x: x)
    with pytest.raises(ValueError, match=r"model.onnx is no depth model: for a picture it gives \(3, "):
        model(torch.rand(3, 14, 14))


def test_a_real_session_sees_the_depth_that_the_model_computes(file):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info("in", TensorProto.FLOAT, list(SHAPE)), helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "height", "width"])]
    graph = helper.make_graph([helper.make_node("ReduceSum", ["in", "axes"], ["out"], keepdims=0)], "g", ends[:1], ends[1:], [helper.make_tensor("axes", TensorProto.INT64, [1], [1])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(file))
    ramp = torch.linspace(0, 1, 56).expand(3, 28, 56)
    assert (OnnxDepth(file)(ramp)[0] - ramp[0]).abs().max() < 0.03


# ---- hints


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    for i, (w, h) in enumerate([(96, 64), (64, 96)]):
        from_pixels(torch.rand(3, h, w, generator=torch.Generator().manual_seed(i)) * 2 - 1).save(made / f"{i}.png")
    return made


def test_a_hint_is_the_depth_of_the_very_pixels_and_made_once(folder):
    asked = []

    def depth(picture: torch.Tensor) -> torch.Tensor:
        asked.append(picture)
        return picture[:1]

    hints = Hints(Recipe("depth"))
    hints.depth = depth
    data = batches(config(folder), hints)
    for step in (0, 1, 2, 3):
        batch = data.at(step)
        assert batch.hint.shape[1] == 3 and torch.equal(batch.hint[:, 0], batch.hint[:, 2])
        means = torch.nn.functional.avg_pool2d(batch.hint[:, :1] * 2 - 1, 8)
        assert (means - batch.latents[:, :1]).abs().max() <= 1.01 / 255
    assert len(asked) == 2


# ---- runs


def depth_run(small_run: dict, **more: Any) -> dict:
    kept = {key: value for key, value in values_of(small_run, "t2i_adapter").items() if key != "lora.rank"}
    return {**kept, "t2i_adapter.hint": "depth", "steps": 2, "save_every": 0, "sample.every": 2, **more}


def test_a_run_follows_the_depth_of_an_onnx_file(small_run, file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime(shape=SHAPE, model=red))
    events = run(depth_run(small_run, **{"t2i_adapter.depth_model": str(file)}))
    hint = np.asarray(last(events, Sampled).images[0])[:, :64].astype(int)
    assert last(events, Finished).reason == "done" and (hint[..., 0] == hint[..., 2]).all() and (hint.min(), hint.max()) == (0, 255)


def test_without_a_model_the_standalone_program_says_what_to_name(small_run):
    with pytest.raises(ValueError, match="depth_model: is empty, and only inside the WebUI there is a depth model already: name an .onnx file"):
        run(depth_run(small_run))
    with pytest.raises(ValueError, match="depth_model: names a model, but hint is canny"):
        METHODS["controlnet"](settings({"data.folder": "x", "method": "controlnet", "controlnet.depth_model": "x.onnx"}))
