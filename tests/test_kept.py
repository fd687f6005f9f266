"""What is changed of a host's model is put back: each kind on a small module of its own. The whole is tried in a real WebUI (test_hosts.py)."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_tuner.hosts import ldm, previews
from lib_tuner.hosts.job import DECIDED, JOB, interrupted, job, refuse_decided
from lib_tuner.hosts.kept import attributes, checkpointing, frozen, random_state
from lib_tuner.hosts.networks import take_out, without_networks


class Block(nn.Module):
    """A block with a switch, as ldm's; the rest of its forward pass is `_forward`."""

    def __init__(self):
        super().__init__()
        self.checkpoint, self.calls = True, 0
        self.linear = nn.Linear(4, 4)
        self.register_buffer("alphas", torch.ones(3))

    def forward(self, x):
        return self._forward(x)

    def _forward(self, x):
        self.calls += 1
        return self.linear(x).relu()


def test_attributes_come_back_wherever_they_were():
    block, before = Block(), None
    before = block.alphas
    with pytest.raises(RuntimeError), attributes(block, checkpoint=False, alphas=torch.zeros(3), new=1, training=False):
        assert not block.checkpoint and block.new == 1 and not block.alphas.any()
        raise RuntimeError
    assert block.checkpoint and block.alphas is before and block.training and not hasattr(block, "new")
    assert "alphas" in block.state_dict() and "alphas" not in vars(block)  # a buffer is a buffer again


def test_parameters_and_modes_are_frozen_and_thawed_one_by_one():
    block = Block()
    block.linear.bias.requires_grad_(False)
    block.linear.weight.grad = torch.ones(4, 4)
    block.linear.eval()
    with pytest.raises(RuntimeError), frozen(block):
        assert not block.training and not any(p.requires_grad for p in block.parameters())
        block.linear.weight.grad = None
        raise RuntimeError
    assert block.training and not block.linear.training
    assert block.linear.weight.requires_grad and not block.linear.bias.requires_grad and block.linear.weight.grad.eq(1).all()


def test_random_numbers_go_on_where_they_were():
    before = torch.get_rng_state(), random.getstate()
    with random_state():
        torch.randn(3), random.random()
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


@pytest.mark.parametrize(("on", "calls"), [(False, 1), (True, 2)])
def test_torchs_checkpointing_takes_the_place_of_ldms(on, calls):
    """A hook's own parameter gets its gradient, and the block runs twice where activations are computed anew."""
    block, added = Block(), nn.Parameter(torch.zeros(4))
    block.requires_grad_(False)
    block.linear.register_forward_hook(lambda module, args, out: out + added)
    with checkpointing(block.modules(), on):
        assert not block.checkpoint
        block(torch.ones(2, 4)).sum().backward()
    assert added.grad is not None and block.calls == calls and block.checkpoint and "_forward" not in vars(block)


# ---- LoRAs in the weights ----------------------------------------------------------------------------------------------


class Extension:
    """Rewrites a layer's weight in place when its list has changed, from a copy that it keeps: the shape of the Lora extension."""

    def __init__(self):
        self.loaded_networks: list[SimpleNamespace] = []

    def load_networks(self, names):
        self.loaded_networks[:] = [net for net in self.loaded_networks if net.name in names]

    def network_apply_weights(self, layer):
        wanted = tuple(net.name for net in self.loaded_networks)
        if getattr(layer, "network_current_names", ()) == wanted:
            return
        if layer.network_weights_backup is None:
            layer.network_weights_backup = layer.weight.detach().clone()
        layer.weight.copy_(layer.network_weights_backup + sum(net.change for net in self.loaded_networks))
        layer.network_current_names = wanted

    def network_reset_cached_weight(self, layer):
        layer.network_current_names, layer.network_weights_backup, layer.network_bias_backup = (), None, None


@pytest.fixture
def baked():
    """An extension, and a model in whose weights a LoRA is."""
    layer, extension = nn.Linear(2, 2), Extension()
    model = SimpleNamespace(network_layer_mapping={"layer": layer, "around": nn.Sequential()})  # the table names modules without weights too
    extension.network_reset_cached_weight(layer)
    clean = layer.weight.detach().clone()
    extension.loaded_networks.append(SimpleNamespace(name="cat", change=torch.ones(2, 2)))
    with torch.no_grad():
        extension.network_apply_weights(layer)
    return extension, model, layer, clean


def test_a_lora_is_taken_out_and_put_back_and_no_copy_lies_about(baked):
    extension, model, layer, clean = baked
    changed = layer.weight.detach().clone()
    with pytest.raises(RuntimeError), without_networks(extension, lambda: model):
        assert torch.equal(layer.weight, clean) and layer.network_weights_backup is None and extension.loaded_networks == []
        assert layer.weight.is_leaf
        raise RuntimeError
    assert torch.equal(layer.weight, changed) and [net.name for net in extension.loaded_networks] == ["cat"] and layer.weight.is_leaf


def test_what_was_renewed_is_taken_out_so_that_it_is_read_again(baked):
    extension, model, layer, clean = baked
    take_out(extension, model, {"dog"})
    assert not torch.equal(layer.weight, clean)
    take_out(extension, model, {"cat"})
    assert torch.equal(layer.weight, clean) and extension.loaded_networks == []


def test_without_the_extension_nothing_is_done():
    with without_networks(None, SimpleNamespace):
        pass


# ---- the host's job ------------------------------------------------------------------------------------------------------


class State(SimpleNamespace):
    def begin(self, job):
        self.job, self.interrupted = job, False

    def end(self):
        self.job = ""


def modules_of_a_host():
    import threading

    pending, log = {}, []
    progress = SimpleNamespace(pending_tasks=pending, add_task_to_queue=lambda id: pending.update({id: 1}), start_task=lambda id: pending.pop(id, None),
                               finish_task=lambda id: log.append(id))  # fmt: skip
    state = State(job="", interrupted=False, skipped=False, server_command=None)
    return SimpleNamespace(progress=progress, log=log, call_queue=SimpleNamespace(queue_lock=threading.Lock()), shared=SimpleNamespace(state=state, demo=None))


def test_a_job_gives_its_turn_back_however_it_ends():
    w = modules_of_a_host()
    with pytest.raises(RuntimeError), job(w):
        assert w.call_queue.queue_lock.locked() and w.shared.state.job.startswith(JOB)
        w.shared.state.interrupted = True
        raise RuntimeError
    assert not w.call_queue.queue_lock.locked() and w.shared.state.job == "" and not w.shared.state.interrupted
    assert len(w.log) == 1 and w.progress.pending_tasks == {}


@pytest.mark.parametrize(("change", "stops"), [({}, False), ({"interrupted": True}, True), ({"interrupted": True, "server_command": "restart"}, False)])
def test_interrupt_stops_and_reload_does_not(change, stops):
    shared = modules_of_a_host().shared
    vars(shared.state).update(change)
    assert interrupted(shared) is stops and shared.state.interrupted is stops


def test_a_page_that_is_closing_is_being_drawn_anew():
    shared = modules_of_a_host().shared
    shared.state.interrupted, shared.demo = True, SimpleNamespace(server=SimpleNamespace(should_exit=True))
    assert not interrupted(shared)


def test_settings_that_the_host_decides_are_named():
    plain = {"checkpoint": "", "memory.device": "auto", "memory.precision": "auto", "memory.channels_last": "auto"}
    refuse_decided(plain)
    for key in DECIDED:
        with pytest.raises(ValueError, match=f"{key}: inside the WebUI"):
            refuse_decided({**plain, key: "x"})


# ---- previews and refusals -------------------------------------------------------------------------------------------------


def test_an_option_that_nobody_had_set_is_not_set_after_a_preview():
    """The host itself puts back only what had been set before."""
    opts = SimpleNamespace(data={"sd_model_checkpoint": "a"})
    with previews._options(opts):
        opts.data.update({"CLIP_stop_at_last_layers": 2})
    assert opts.data == {"sd_model_checkpoint": "a"}


@pytest.mark.parametrize("before", [b"a cat\nSteps: 20", None])
def test_the_last_prompt_of_the_person_stays_the_last(tmp_path, before):
    path = tmp_path / "params.txt"
    if before is not None:
        path.write_bytes(before)
    with previews._prompt_file(SimpleNamespace(paths=SimpleNamespace(data_path=str(tmp_path)))):
        path.write_bytes(b"a sample")
    assert (path.read_bytes() if path.exists() else None) == before


def model_like(**change):
    network = nn.Linear(2, 2)
    plain = {"is_sdxl": False, "is_sd2": False, "is_sd1": True, "lowvram": False, "cond_stage_model": SimpleNamespace(wrapped=1),
             "model": reading(4, "crossattn"), "parameters": network.parameters}  # fmt: skip
    return SimpleNamespace(**{**plain, **change})


def reading(inputs: int, key: str):
    """The host's wrapper of a UNet with so many channels."""
    return SimpleNamespace(conditioning_key=key, diffusion_model=SimpleNamespace(input_blocks=[[nn.Conv2d(inputs, 2, 3)]]))


@pytest.mark.parametrize(("change", "words"), [
    ({"is_sdxl": True}, "SDXL"), ({"is_sd2": True}, "SD2"), ({"forge_objects": 1}, "Forge"), ({"lowvram": True}, "--medvram"), ({"is_sd1": False}, "SD1.5's kind"),
    ({"parameters": lambda: [torch.zeros(1).to(torch.float8_e4m3fn)]}, "fp8"),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_its_name(change, words):
    ldm.refuse(model_like())
    with pytest.raises(ValueError, match=words):
        ldm.refuse(model_like(**change))


@pytest.mark.parametrize(("inputs", "key", "fits"), [(4, "crossattn", True), (9, "hybrid", True), (8, "hybrid", False), (5, "hybrid", False), (9, "concat", False), (9, "crossattn", False)])
def test_of_models_that_read_more_than_a_latent_inpainting_ones_alone_can_be_trained(inputs, key, fits):
    model = model_like(model=reading(inputs, key))
    if fits:
        ldm.refuse(model)
    else:
        with pytest.raises(ValueError, match=f"its UNet reads {inputs} channels, {key}"):
            ldm.refuse(model)


def test_the_schedule_is_that_of_the_file_whatever_a_picture_made_of_it():
    from lib_tuner.sd.schedule import Schedule

    original = Schedule.sd15()
    model = SimpleNamespace(alphas_cumprod=original.alphas_cumprod * 0.9, alphas_cumprod_original=original.alphas_cumprod, parameterization="eps")
    made = ldm.schedule_of(model)
    assert torch.equal(made.alphas_cumprod, original.alphas_cumprod) and made.prediction == "eps"
    torch.testing.assert_close(made.betas, original.betas, atol=1e-6, rtol=1e-3)
