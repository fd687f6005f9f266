"""A plan drawn on a host: each cell is the picture that its settings give alone, files are changed as seldom as possible, and what fails is a sentence."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tool_files import lora, run

from lib_tuner.compare import draw as drawing
from lib_tuner.compare.applied import Use
from lib_tuner.compare.cells import Axis, Cell, Choice, Offer, plan_grid
from lib_tuner.compare.draw import draw, infotext, png_info
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import settings

REQUEST = GenerateRequest("a red thing", "grey", 64, 64, 3, 5.0, "ddim", 4)


def host_of(checkpoint) -> Standalone:
    return Standalone(settings({"checkpoint": str(checkpoint), "memory.precision": "fp32"}))


def pictures(plan, checkpoint, **more) -> list:
    found = {drawn.index: drawn for drawn in draw(plan, lambda name: host_of(name or checkpoint), **more)}
    return [found.get(index) for index in range(len(plan.cells))]


def same(a: Image.Image, b: Image.Image, levels: int = 0) -> bool:
    """Equal but for so many of 255 levels: a picture drawn beside others is computed in another order."""
    return max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes())) <= levels


def test_a_cell_with_a_lora_is_the_picture_of_the_merged_checkpoint(tmp_path, checkpoint_file):
    file = lora(tmp_path / "a.safetensors")
    assert run("merge-lora", checkpoint_file, f"{file}:0.5", "-o", tmp_path / "merged.safetensors") == 0
    plan = plan_grid(Cell(REQUEST, (Use(file),)), {"x": Axis("weight", "0, 0.5"), "y": Axis("seed", "4, 5")}, Offer())
    drawn = pictures(plan, checkpoint_file)
    plain, merged = host_of(checkpoint_file), host_of(tmp_path / "merged.safetensors")
    for y, seed in enumerate((4, 5)):
        alone = GenerateRequest(**{**vars(REQUEST), "seed": seed})
        assert same(drawn[plan.at(0, y)].picture, plain.generate([alone])[0], 1)
        assert same(drawn[plan.at(1, y)].picture, merged.generate([alone])[0], 1)
    assert not same(drawn[0].picture, drawn[1].picture, 20)


def test_models_and_files_are_changed_once_for_all_cells_that_share_them(tmp_path, checkpoint_file, monkeypatch):
    a, b = (lora(tmp_path / f"{name}.safetensors", seed=seed) for name, seed in (("a", 1), ("b", 2)))
    offer = Offer(files=(Choice(a), Choice(b), Choice(checkpoint_file, "checkpoint")))
    plan = plan_grid(Cell(REQUEST), {"x": Axis("file", "a, b, None"), "y": Axis("seed", "1-3")}, offer)
    applied, hosts = Counter(), []
    monkeypatch.setattr(drawing, "applied", lambda sd, uses, was=drawing.applied: (applied.update([uses]), was(sd, uses))[1])
    order = [drawn.index for drawn in draw(plan, lambda name: hosts.append(name) or host_of(checkpoint_file))]
    assert hosts == [""] and set(applied.values()) == {1} and len(applied) == 3
    assert order == [plan.at(x, y) for x in range(3) for y in range(3)]


def test_what_fails_is_said_in_its_cell_and_the_rest_is_drawn(tmp_path, checkpoint_file):
    good, gone = lora(tmp_path / "good.safetensors"), tmp_path / "gone.safetensors"
    offer = Offer(files=(Choice(good), Choice(gone), Choice(checkpoint_file, "lora"), Choice(tmp_path / "no.ckpt", "checkpoint"), Choice(checkpoint_file, "checkpoint")))
    plan = plan_grid(Cell(REQUEST), {"x": Axis("file", "good, gone, None"), "y": Axis("weight", "0.5")}, offer)
    drawn = pictures(plan, checkpoint_file)
    assert drawn[0].picture and "gone.safetensors is not there any more" in drawn[1].error and "No file is chosen" in drawn[2].error
    plan = plan_grid(Cell(REQUEST), {"x": Axis("checkpoint", f"no, {checkpoint_file.stem}")}, Offer(files=offer.files[3:]))
    drawn = pictures(plan, checkpoint_file)
    assert "does not exist" in drawn[0].error and drawn[1].picture


def test_some_cells_alone(checkpoint_file):
    plan = plan_grid(Cell(REQUEST), {"x": Axis("seed", "1-3"), "y": Axis("steps", "2, 3")}, Offer())
    drawn = pictures(plan, checkpoint_file, only=[plan.at(x, 1) for x in range(3)])
    assert [d is not None for d in drawn] == [False] * 3 + [True] * 3


def test_clip_skip_is_that_of_the_cell_and_nothing_stays(checkpoint_file):
    host = host_of(checkpoint_file)
    plan = plan_grid(Cell(REQUEST), {"x": Axis("clip_skip", "1, 2")}, Offer())
    one, two = [drawn.picture for drawn in draw(plan, lambda name: host)]
    assert not same(one, two) and host.model.text.clip_skip == 1
    other = Standalone(settings({"checkpoint": str(checkpoint_file), "memory.precision": "fp32", "clip_skip": 2}))
    assert same(two, other.generate([REQUEST])[0], 1)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")])
def test_memory_that_ends_is_a_sentence_of_the_cell(checkpoint_file, monkeypatch, error):
    def full(self, requests):
        if requests[0].width > 64:
            raise error
        return [Image.new("RGB", (64, 64))] * len(requests)

    monkeypatch.setattr(Standalone, "generate", full)
    plan = plan_grid(Cell(REQUEST), {"x": Axis("size", "64, 512")}, Offer())
    drawn = pictures(plan, checkpoint_file)
    assert drawn[0].picture and "choose a smaller size" in drawn[1].error


def test_a_drawing_that_is_closed_leaves_the_model_as_it_was(tmp_path, checkpoint_file):
    host = host_of(checkpoint_file)
    before = {name: tensor.clone() for name, tensor in host.model.unet.state_dict().items()}
    plan = plan_grid(Cell(REQUEST, (Use(lora(tmp_path / "a.safetensors")),)), {"x": Axis("size", "64, 128")}, Offer())
    going = draw(plan, lambda name: host)
    next(going)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in host.model.unet.state_dict().items())
    going.close()
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.model.unet.state_dict().items())


def test_the_settings_are_written_as_the_webui_writes_them(tmp_path):
    file = lora(tmp_path / "cat.safetensors")
    text = infotext(Cell(GenerateRequest("a cat,\nred", "grey", 512, 768, 20, 7.5, "ddim", 3, clip_skip=2), (Use(file, 0.8),)), "tiny")
    assert text.splitlines()[:3] == ["a cat,", "red", "Negative prompt: grey"]
    assert text.splitlines()[3].startswith("Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 3, Size: 512x768, Model: tiny, Clip skip: 2, Tuner files: \"cat (")
    assert "Sampler: DPM++ 2M, Schedule type: Karras, CFG" in infotext(Cell(replace(REQUEST, sampler="dpmpp_2m"))) and "Sampler: Euler, CFG" in infotext(Cell(replace(REQUEST, sampler="Euler")))
    kept = infotext(Cell(REQUEST, (Use(file, 0.8),)), of_host="a styled cat\nSteps: 20, Clip skip: 2")
    assert kept.startswith("a styled cat\nSteps: 20, Clip skip: 2, Tuner files: \"cat (")
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG", pnginfo=png_info(text))
    assert Image.open(out).text["parameters"] == text
