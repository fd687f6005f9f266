"""An update where the model is not in the CPU's memory: whatever the data, the noise and the method bring along goes to the model's device.

No GPU is needed: torch's meta device computes shapes alone, and refuses as a GPU does to add what lies elsewhere.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import random_parts
from test_matrix import folders, values_of  # noqa: F401 (fixture)

from lib_tuner.data.batches import Batches
from lib_tuner.data.holes import Holes
from lib_tuner.host import Components
from lib_tuner.hosts.plan import gpu_free
from lib_tuner.methods import METHODS, settings
from lib_tuner.optim import EMA, make_optimizer
from lib_tuner.sd.sample import SAMPLERS, guided, sample
from lib_tuner.sd.schedule import Schedule
from lib_tuner.sd.text import TextEncoder
from lib_tuner.sd.vae import Autoencoder
from lib_tuner.settings import InpaintConfig
from lib_tuner.step import State, Step

META = torch.device("meta")
LOSS = {"loss__min_snr": 5.0, "loss__noise_offset": 0.1, "loss__input_perturbation": 0.1, "loss__pyramid": 3}
PRIOR = {"prior__weight": 1.0, "prior__prompt": "a cat"}
OWN: dict[str, dict[str, Any]] = {
    "textual_inversion": {}, "t2i_adapter": {"data__class_folder": "class"}, "controlnet": {"data__class_folder": "class"},
}  # fmt: skip


def elsewhere(inputs: int) -> Components:
    """The small model on the meta device, but for the VAE, whose latents come from the CPU's memory."""
    unet, text, vae = random_parts(0, inputs)
    return Components(unet.to(META), TextEncoder(text.to(META)), Autoencoder(vae), Schedule.sd15().to(META), nullcontext, "0123456789abcdef" * 4, "small", META, torch.float32)


INPAINTING = ("lora", "dreambooth", "controlnet")  # what is hidden comes with the batch, whatever learns: hooks, the weights themselves, a copy of them


@pytest.mark.parametrize(("kind", "inputs"), [*((kind, 4) for kind in METHODS), *((kind, 9) for kind in INPAINTING)])
def test_an_update_mixes_no_devices(kind, inputs, folders, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it knows no meta device
    sd, own = elsewhere(inputs), OWN.get(kind, {"data__class_folder": "class", **PRIOR})
    cfg = settings(values_of(kind, folders, data__cache="memory", data__masks=True, optim__clip=1.0, optim__ema=0.9, **{**LOSS, **own}))
    method = METHODS[kind](cfg)
    with method.attached(sd) as groups:
        params = [p.requires_grad_() for group in groups for p in group["params"]]
        state = State(method, make_optimizer(cfg.optim, groups), EMA(params, cfg.optim.ema))
        batches = Batches(cfg.data, sd, 0, method.triggers(), hints=method.hints, holes=Holes(InpaintConfig(outside=0.5), 0) if inputs == 9 else None)
        step = Step(cfg, sd, state, batches)
        step.good = (0, {"taken": True})  # what is on the meta device cannot be copied away from it
        losses = [step(number) for number in range(1, 3 if (kind, inputs) == ("lora", 4) else 2)]
        assert {loss.device for loss in losses} == {p.device for p in params} == {META} and step.look_every > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_drawing_mixes_no_devices(sampler):
    sd, generators = elsewhere(4), [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    denoise = guided(sd.unet, sd.text(["a cat", "a dog"]), sd.text([""]), 3.0)
    assert sample(denoise, torch.zeros(2, 4, 8, 8, device=META), Schedule.sd15(), 3, sampler, generators).device == META


def test_the_check_itself_sees_what_lies_elsewhere():
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=META) + torch.zeros(2)


@pytest.mark.webui_versions
@pytest.mark.parametrize(("name", "card"), [("cuda", 1), ("cuda:0", 0)])
def test_the_free_memory_is_that_of_the_card_in_use_where_a_device_has_no_number(name, card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaMemGetInfo=lambda number: (10 + number, 99)))
    assert gpu_free(torch.device(name)) == 10 + card  # torch 2.1's own function refuses "cuda", which is the WebUI's device
