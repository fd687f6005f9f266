"""An inpainting model in the WebUI (on the double): trained as it is loaded, drawn by the host's own txt2img, and left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_random
from test_hosts import difference, last, run
from worlds import doubled

from lib_tuner.events import Finished, Sampled, Saved, Stepped
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import settings
from lib_tuner.sd.model import load_model
from lib_tuner.sd.text import TextEncoder


@pytest.fixture(scope="module")
def world(inpainting_file, tmp_path_factory) -> Any:
    """Two checkpoints: the inpainting one is loaded, as the first by name."""
    folder = tmp_path_factory.mktemp("webui")
    with doubled(folder, checkpoints={"nine": inpainting_file, "plain": write_random(folder / "plain.safetensors", 3)}) as made:
        yield made


@pytest.fixture
def values(small_run, data_folder) -> dict[str, Any]:
    for i in range(2, 6):
        (data_folder / f"{i}.png").unlink()
    return {**small_run, "checkpoint": "", "steps": 2, "save_every": 0, "lora.save_dtype": "fp32", "inpaint.variants": 1, "optim.lr": "5e-2",
            "sample.prompts": "a red star on a white background", "sample.every": 2, "sample.steps": 2, "sample.cfg": 3.0, "sample.seed": 3}  # fmt: skip


def test_the_host_knows_it_by_its_channels_and_needs_them(world):
    m = world.model
    assert (type(m).__name__, m.model.conditioning_key, m.is_sd1, m.used_config.endswith("v1-inpainting-inference.yaml")) == ("LatentInpaintDiffusion", "hybrid", True, True)
    x, t, ctx = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 48)
    with pytest.raises(TypeError):
        m.apply_model(x, t, ctx)
    beside = torch.randn(1, 5, 8, 8)
    with torch.no_grad():
        ours = m.model.diffusion_model(torch.cat([x, beside], 1), t, ctx)
        assert torch.equal(m.apply_model(x, t, {"c_concat": [beside], "c_crossattn": [ctx]}), ours)


def test_its_pictures_are_those_of_the_standalone_host(world, inpainting_file, values, monkeypatch):
    """txt2img of both, where the host's draw from the grey picture's latent is its mean; the text encoders' states are the same."""
    distribution = type(world.model.first_stage_model.encode(torch.zeros(1, 3, 64, 64)))
    monkeypatch.setattr(distribution, "sample", distribution.mode)
    host = Standalone(settings({**values, "checkpoint": str(inpainting_file)}))
    request = GenerateRequest("a red star on a white background", width=64, height=64, steps=4, cfg=3.0, seed=3)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))  # the host's for that seed
    monkeypatch.setattr("lib_tuner.hosts.standalone.torch.randn", lambda *shape, generator: noise[0])
    ours = np.asarray(host.generate([request])[0]).astype(int)
    assert np.abs(ours - world.picture(steps=4)).max() <= 2 and ours.std() > 1


def test_a_run_learns_and_leaves_the_host_as_it_was_and_the_saved_file_draws_what_was_learned(world, values):
    picture, before = world.picture(steps=2), world.snapshot()
    events = run(world, values)
    assert last(events, Finished).reason == "done" and all(torch.isfinite(event.loss) for event in events if isinstance(event, Stepped))
    assert difference(before, world.snapshot()) == {} and np.array_equal(world.picture(steps=2), picture)
    name = last(events, Saved).names[last(events, Saved).paths[0].name]
    sampled = np.asarray(last(events, Sampled).images[0].convert("RGB")).astype(int)
    drawn = world.picture(f"a red star on a white background<lora:{name}:1>", steps=2)
    assert np.array_equal(drawn, sampled) and not np.array_equal(drawn, picture)


def test_a_lora_of_the_difference_is_taken_whole_with_its_first_convolution(world, values):
    """Of a DreamBooth: the host takes four channels of that layer's change and fills up; nine would be left out without a word."""
    own = {key: value for key, value in values.items() if not key.startswith("lora.")}
    events = run(world, {**own, "method": "dreambooth", "dreambooth.save": "lora", "dreambooth.lora_rank": 2, "prior.drift": "off", "sample.every": 0, "optim.lr": "1e-3"})
    saved, layer = last(events, Saved), world.model.model.diffusion_model.input_blocks[0][0]
    before = layer.weight.clone()
    world.picture(f"x<lora:{saved.names[saved.paths[0].name]}:1>", steps=1)
    changed = (layer.weight != before).flatten(2).any(2).any(0).tolist()
    world.picture("x", steps=1)
    assert changed == [True] * 4 + [False] * 5 and torch.equal(layer.weight, before)


def test_a_second_pass_on_latents_is_refused_since_the_host_cannot(world, values):
    with pytest.raises(ValueError, match="webui.hires_upscaler: .*'Latent'"):
        run(world, {**values, "webui.hires_scale": 2.0})
    with pytest.raises(RuntimeError, match="Sizes of tensors"):  # what would have come of it
        world.double.txt2img("x", steps=2, enable_hr=True, hr_upscaler="Latent")
    assert world.double.txt2img("x", steps=2, enable_hr=True, hr_upscaler="Lanczos").size == (128, 128)
    assert last(run(world, {**values, "steps": 1, "webui.hires_scale": 2.0, "webui.hires_upscaler": "Lanczos"}), Sampled).images[0].size == (128, 128)


def test_a_saved_checkpoint_is_an_inpainting_one_and_another_model_takes_its_place(world, values):
    own = {key: value for key, value in values.items() if not key.startswith("lora.")}
    saved = last(run(world, {**own, "method": "dreambooth", "prior.drift": "off", "sample.every": 0, "steps": 1}), Saved)
    assert load_model(saved.paths[0]).inpainting and isinstance(load_model(saved.paths[0]).text, TextEncoder)
    first, d = world.model, world.double
    d.select_checkpoint("plain")
    d.txt2img("x", steps=1)
    assert world.model is not first and world.model.model.conditioning_key == "crossattn"
    d.select_checkpoint("thing")
    d.txt2img("x", steps=1)
    assert world.model.model.conditioning_key == "hybrid" and world.model.sd_checkpoint_info.name_for_extra == "thing"
