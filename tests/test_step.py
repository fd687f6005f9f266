"""One update: what is summed, clipped, masked and skipped; and the plan of precision and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib_tuner.config import build
from lib_tuner.data.batches import Batches
from lib_tuner.hosts import plan
from lib_tuner.methods.lora import LoRA, LoRAConfig
from lib_tuner.optim import EMA, make_optimizer
from lib_tuner.sd.loss import generator_for
from lib_tuner.settings import TrainConfig
from lib_tuner.step import NotANumber, State, Step, has_bf16, schedule_for


def settings(data_folder: Path, **own) -> TrainConfig:
    values = {"data.folder": str(data_folder), "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8, "data.batch": 2, "optim.lr": "1e-2",
              "lora.rank": 2, "lora.blocks": "M00", "lora.alpha": 2}
    return build(TrainConfig, {**values, **{k.replace("__", "."): v for k, v in own.items()}}, LoRAConfig)


class Running:
    """A step with all that belongs to it; weights of the up matrices start away from zero, so that all gradients exist."""

    def __init__(self, sd, cfg: TrainConfig, **more):
        self.method = LoRA(cfg)
        groups = self.method.attach(sd)
        self.params = [p.requires_grad_() for g in groups for p in g["params"]]
        for i, p in enumerate(self.params):
            p.data.copy_(torch.randn(p.shape, generator=generator_for(1, i, "test")) * 0.1)
        self.state = State(self.method, make_optimizer(cfg.optim, groups), EMA(self.params, cfg.optim.ema) if cfg.optim.ema else None)
        self.step = Step(cfg, sd, self.state, Batches(cfg.data, sd, cfg.seed), **more)

    def grads(self, number: int = 0) -> torch.Tensor:
        self.step._backward(number)
        return torch.cat([p.grad.flatten() for p in self.params])

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.params])


@pytest.fixture
def make(sd, data_folder):
    made = []

    def run(**own) -> Running:
        for old in made:
            old.method.detach()
        made.append(Running(sd, settings(data_folder, **own)))
        return made[-1]

    yield run
    made[-1].method.detach()


def test_the_loss_is_the_written_formula(make, sd):
    running = make(loss__min_snr=5.0, data__latent="deterministic")
    batch = running.step.batches.at(0)
    x0 = batch.latents
    t = torch.stack([torch.rand((), generator=generator_for(0, i, "t")) for i in batch.indices]).mul(1000).long()
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator_for(0, i, "noise")) for i in batch.indices])
    a = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0)[t].float()[:, None, None, None]
    pred = sd.unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, sd.text(batch.captions))
    snr = (a / (1 - a)).flatten()
    wanted = ((pred - noise) ** 2).mean((1, 2, 3)) * snr.clamp(max=5) / snr
    assert torch.allclose(running.step.loss(batch), wanted.sum(), rtol=1e-4)


def test_accumulated_batches_are_one_larger_batch(make):
    running = make(data__batch=1, optim__accumulate=2)
    small = running.grads()
    halves = [running.step.batches.at(i) for i in range(2)]
    parts = [torch.autograd.grad(running.step.loss(half), running.params) for half in halves]
    assert torch.allclose(small, torch.cat([((a + b) / 2).flatten() for a, b in zip(*parts)]), rtol=1e-5, atol=1e-9)


def test_gradients_are_clipped_to_the_norm(make):
    running = make(optim__clip=1e-3, optim__weight_decay=0.0)
    running.step(0)
    norm = torch.cat([p.grad.flatten() for p in running.params]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    running = make(optim__clip=0.0)
    running.step(0)
    assert float(torch.cat([p.grad.flatten() for p in running.params]).norm()) > 2e-3


def test_a_picture_weight_scales_its_loss(make):
    running = make()
    batch = running.step.batches.at(0)
    one = running.step.loss(batch)
    assert torch.allclose(running.step.loss(replace(batch, weights=batch.weights * 3)), 3 * one, rtol=1e-5)


def test_a_mask_of_zeros_leaves_no_loss_and_one_of_ones_all(make):
    running = make()
    batch = running.step.batches.at(0)
    full = running.step.loss(batch)
    assert running.step.loss(replace(batch, mask=torch.zeros(2, 1, 8, 8))).item() == 0
    assert torch.equal(running.step.loss(replace(batch, mask=torch.ones(2, 1, 8, 8))), full)


def test_a_gradient_that_is_no_number_changes_no_weight(make):
    running = make()
    before = running.weights()
    running.params[0].register_hook(lambda g: g * float("nan"))
    with pytest.raises(NotANumber, match="step 1, learning rate 0.01"):
        running.step(0)
    assert torch.equal(running.weights(), before)


def test_where_looking_means_waiting_gradients_are_clipped_all_the_same(make):
    """On a GPU the flag is read every few updates alone."""
    moved = {}
    for every in (1, 10):
        running = make(optim__clip=1e-3, optim__name="adamw")
        running.step.look_every = every
        running.step(0), running.step(1)
        moved[every] = torch.cat([p.grad.flatten() for p in running.params]), running.weights()
    assert float(moved[10][0].norm()) <= 1.0001e-3 and all(map(torch.equal, moved[1], moved[10]))


def test_where_looking_means_waiting_a_bad_update_moves_nothing_and_is_said_at_the_next_look(make):
    running = make(optim__weight_decay=0.0, optim__betas="0.0, 0.0")
    running.step.look_every = 3
    running.step(0)
    before, fine = running.weights(), running.step.loss
    running.step.loss = lambda batch: fine(batch) * float("nan")
    running.step(1)
    assert torch.equal(running.weights(), before)
    running.step.loss = fine
    running.step(2)
    assert torch.isfinite(running.weights()).all()
    with pytest.raises(NotANumber, match="at step 3, "):
        running.step.look(2)
    with pytest.raises(NotANumber, match="at step 4, "):
        running.step(3)
    assert running.step.good[0] == 0  # nothing since was known to be good


def test_ema_averages_the_weights(make):
    running = make(optim__ema=0.5)
    first = running.weights()
    running.step(0)
    average = torch.cat([a.flatten() for a in running.state.ema.average])
    decay = min(0.5, 2 / 11)  # the warm-up of the first update
    assert torch.allclose(average, decay * first + (1 - decay) * running.weights(), atol=1e-6)


def test_text_is_encoded_once_where_the_text_encoder_is_frozen_and_each_time_where_it_is_not(make, sd):
    calls = []
    hook = sd.text.transformer.register_forward_hook(lambda *a: calls.append(1))
    frozen = make(data__batch=1)
    for i in range(12):
        frozen.step(i)
    assert len(calls) == 6  # six captions
    calls.clear()
    trained = make(data__batch=1, lora__text_encoder=True)
    for i in range(12):
        trained.step(i)
    hook.remove()
    assert len(calls) == 12


def test_settings_of_the_schedule(sd):
    cfg = settings(Path("x"), loss__prediction="v", loss__zero_terminal_snr=True).loss
    schedule = schedule_for(cfg, sd.schedule)
    assert schedule.prediction == "v" and float(schedule.alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-7)
    assert schedule_for(settings(Path("x")).loss, sd.schedule) is sd.schedule


RANKS = """
import sys, torch, torch.distributed as dist
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from contextlib import nullcontext
from conftest import random_parts
from lib_tuner.host import Components
from lib_tuner.sd.schedule import Schedule
from lib_tuner.sd.text import TextEncoder
from lib_tuner.sd.vae import Autoencoder
from lib_tuner.train import _reducer
from test_step import Running, settings
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{file}", rank=rank, world_size=2)
unet, text, vae = random_parts()
sd = Components(unet, TextEncoder(text), Autoencoder(vae), Schedule.sd15(), nullcontext, "x", "x", torch.device("cpu"), torch.float32)
running = Running(sd, settings(Path({data!r}), data__batch=4), rank=rank, world=2, reduce=_reducer(2))
losses = [float(running.step(i)) for i in range(3)]
if rank == 0:
    torch.save({{"losses": losses, "weights": running.weights()}}, {out!r})
dist.destroy_process_group()
"""


def test_two_processes_give_the_result_of_one(make, data_folder, tmp_path):
    """Also where the last batch of an epoch is smaller than the number of processes would like: six pictures in batches of four."""
    root, out = Path(__file__).parent.parent, tmp_path / "ranks.pt"
    script = RANKS.format(root=str(root), tests=str(root / "tests"), file=tmp_path / "meet", data=str(data_folder), out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen([sys.executable, "-c", script, str(rank)], env=environment) for rank in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    running = make(data__batch=4)
    losses, both = [float(running.step(i)) for i in range(3)], torch.load(out)
    assert both["losses"] == pytest.approx(losses, rel=1e-5)
    assert float((both["weights"] - running.weights()).norm() / running.weights().norm()) < 1e-3  # AdamW makes much of the last bits of tiny gradients


@pytest.mark.parametrize(("major", "hip", "own"), [(7, None, False), (8, None, True), (9, None, True), (0, "6.1", True)])
def test_bf16_that_a_card_only_emulates_does_not_count(monkeypatch, major, hip, own):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: {"cuda:1": SimpleNamespace(major=major)}[str(device)])
    monkeypatch.setattr(torch.version, "hip", hip)
    assert has_bf16(torch.device("cuda:1")) is own


def test_the_plan_takes_what_the_settings_say_and_refuses_what_the_machine_has_not(tmp_path, data_folder):
    cfg, small, large = settings(data_folder), tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x")
    with large.open("wb") as file:
        file.truncate(int(plan.SMALL))
    assert plan.plan_for(replace(cfg, memory=replace(cfg.memory, precision="bf16")), small).dtype is torch.bfloat16
    assert plan.plan_for(replace(cfg, memory=replace(cfg.memory, device="cpu")), large).channels_last is False
    assert plan.plan_for(replace(cfg, memory=replace(cfg.memory, channels_last="on")), small).channels_last is True
    assert plan.plan_for(replace(cfg, memory=replace(cfg.memory, checkpointing="on")), small).checkpointing is True
    with pytest.raises(ValueError, match="does not train in fp16"):
        plan.plan_for(replace(cfg, memory=replace(cfg.memory, precision="fp16", device="cpu")), small)


def test_checkpointing_is_chosen_where_memory_would_not_do(tmp_path, data_folder, monkeypatch):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(int(plan.SMALL))
    cfg = settings(data_folder, data__resolution=512, data__bucket_min=64, memory__precision="bf16")
    chosen = {}
    for gigabytes in (3, 5.5, 11):  # the free part of cards of 4, 6 and 12 GB
        monkeypatch.setattr(plan, "_free_bytes", lambda device, free=gigabytes * 1e9: free)
        chosen[gigabytes] = [batch for batch in (1, 2, 4, 8) if plan.plan_for(replace(cfg, data=replace(cfg.data, batch=batch)), large).checkpointing]
    assert chosen == {3: [1, 2, 4, 8], 5.5: [4, 8], 11: [8]}
