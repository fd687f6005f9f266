"""What is done on a machine with GPUs alone, as far as a CPU can show it: processes with a card each, gradients in fp16, layouts, what the WebUI does there."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_kept import model_like
from test_step import make, settings  # noqa: F401 (fixture)
from torch import nn

from lib_tuner.cli_train import _process_group
from lib_tuner.hosts import ldm
from lib_tuner.live import process_memory
from lib_tuner.step import LEAST_SCALE, NotANumber, State
from lib_tuner.words import lacks_memory


@pytest.fixture
def cards(monkeypatch):
    """A machine with two GPUs, and what is set up on it."""
    said = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda card: said.append(card))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda card: 100 + card)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **more: said.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: said.append("end"))
    return said


def test_each_process_has_a_card_of_its_own(cards, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with _process_group(2, "auto"):
        assert cards == [1, "cpu:gloo,cuda:nccl"]  # else both would train on the first card, which NCCL refuses
    assert cards.pop() == "end"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # another launcher has shown this process its own card alone
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with _process_group(2, "auto"):
        assert cards[2] == 0
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "torchrun's")
    with pytest.raises(ValueError, match="--nproc-per-node 1"), _process_group(2, "auto"):
        pass


def test_on_the_cpu_of_a_machine_with_cards_processes_meet_without_them(cards, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "5")
    with _process_group(6, "cpu"):
        assert cards == ["gloo"]


@pytest.mark.parametrize(("rank", "device", "words"), [("2", "auto", "more processes than this machine has GPUs \\(2\\): give it --nproc-per-node 2"), ("0", "cuda:1", "is one card for all processes")])
def test_processes_that_cannot_have_a_card_each_are_refused(cards, monkeypatch, rank, device, words):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(ValueError, match=words), _process_group(3, device):
        pass
    assert cards == []


def test_the_memory_that_is_told_is_that_of_the_card_in_use(cards):
    assert process_memory()["gpu"] == 101


# ---- gradients in fp16 -----------------------------------------------------------------------------------------------


def scaled(running):
    running.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    return running


def test_a_scaled_run_is_the_same_run(make):  # noqa: F811
    running = make()
    plain = [float(running.step(i)) for i in range(3)]
    running = scaled(make())
    assert [float(running.step(i)) for i in range(3)] == pytest.approx(plain, rel=1e-5)


def test_a_process_without_a_sample_in_its_first_batch_has_a_scale(make):  # noqa: F811
    running = scaled(make())
    running.step.batches = SimpleNamespace(at=lambda *args, **more: [])
    running.step.reduce = lambda tensors: [tensor.fill_(2.0) for tensor in tensors[:1]]  # another process has two
    running.step(0)
    assert running.state.scaler.get_scale() == 2.0**12


def test_gradients_that_are_never_numbers_end_the_run(make):  # noqa: F811
    """The scale goes down at each, the weights stay, and nothing would be learned to the end."""
    running = scaled(make())
    running.step.look(0)
    running.state.scaler.load_state_dict({**running.state.scaler.state_dict(), "scale": LEAST_SCALE / 2})
    with pytest.raises(NotANumber):
        running.step.look(1)


def test_a_run_that_was_saved_on_a_card_goes_on_with_the_kernels_of_this_machine():
    weight = nn.Parameter(torch.zeros(2))
    saved = torch.optim.AdamW([weight], fused=True).state_dict()
    state = State(SimpleNamespace(load_state_dict=lambda saved: None), torch.optim.AdamW([{"params": [weight], "lr_scale": 2.0}], foreach=True))
    state.load_state_dict({"method": {}, "optimizer": saved, "ema": None, "scaler": None})
    group = state.optimizer.param_groups[0]
    assert (group["fused"], group["foreach"], group["lr_scale"]) == (None, True, 2.0)


def test_a_run_that_was_saved_elsewhere_goes_on_with_the_kernels_of_a_card(monkeypatch):
    """By the groups that it loads torch decides where its counters of steps go, so they have to say it already."""
    weight, loaded = nn.Parameter(torch.zeros(2)), []
    optimizer = torch.optim.AdamW([weight], fused=True)
    monkeypatch.setattr(optimizer, "load_state_dict", lambda saved, load=optimizer.load_state_dict: (loaded.append(saved["param_groups"][0]["fused"]), load(saved)))
    State(SimpleNamespace(load_state_dict=lambda saved: None), optimizer).load_state_dict({"method": {}, "optimizer": torch.optim.AdamW([weight]).state_dict(), "ema": None, "scaler": None})
    assert loaded == [True]


def test_gradients_lie_as_their_weights(make):  # noqa: F811
    """cuDNN's gradient of a 1x1 convolution lies as a channels-last picture does, and the fused AdamW of torch 2.1 refuses that."""
    running, seen = make(), []
    p = running.params[0]
    for other in running.params:
        other.grad = torch.ones_like(other)
    inputs = p.shape[1]
    p.grad = torch.empty_strided(p.shape, (inputs, 1, inputs, inputs)).copy_(torch.arange(p.numel()).view(p.shape))
    assert p.shape[2:] == (1, 1) and p.grad.stride() != p.stride()
    wanted, running.step._move = p.grad.clone(), lambda number: seen.extend(q.grad.stride() == q.stride() for q in running.params)
    running.step.cfg = settings(running.step.cfg.data.folder, optim__clip=0.0)
    running.step._update(torch.tensor(1.0), 0)
    assert all(seen) and torch.equal(p.grad, wanted)


# ---- what the WebUI does there ---------------------------------------------------------------------------------------


@contextmanager
def manual_cast(dtype):
    yield


def test_a_model_that_the_webui_has_put_aside_or_casts_by_hand_is_refused():
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        ldm.refuse(model_like(), SimpleNamespace(device=torch.device("cpu"), autocast=lambda context=context: context))
    with pytest.raises(ValueError, match="unloaded to RAM: press Load SD checkpoint to VRAM"):
        ldm.refuse(model_like(), SimpleNamespace(device=torch.device("cuda"), autocast=nullcontext))
    with pytest.raises(ValueError, match="GTX 16xx.*--no-half"):
        ldm.refuse(model_like(), SimpleNamespace(device=torch.device("cpu"), autocast=lambda: manual_cast(torch.float16)))


@pytest.mark.parametrize("text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "GET was unable to find an engine to execute this computation", "FIND was unable to find an engine to execute this computation"])
def test_memory_that_ends_in_the_libraries_of_a_card_is_known_for_what_it_is(text):
    assert lacks_memory(RuntimeError(text))
