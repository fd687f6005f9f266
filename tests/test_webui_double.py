"""The double of the WebUI answers as the real one did, and leaves no trace in the process."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_tuner.sd.model import load_model
from webui_double import probes
from webui_double.core.clean import NAMES
from webui_double.core.weights import write_small
from webui_double.start import started

HERE = Path(__file__).resolve().parent / "webui_double"
RECORDED = json.loads((HERE / "recorded-1.9.4.json").read_text(encoding="utf-8"))["answers"]
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)


@pytest.fixture(scope="class")  # it ends with the class: there is one double at a time
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("host")
    with started(folder, extensions={"probes": HERE / "probe_extension"}, page=HAS_GRADIO) as double:
        double.add_checkpoint("third", seed=3)
        host = probes.questioned(sys.modules["probe_log"].LOG, folder / "scratch", double.reload_ui)
        probes.reset(host)
        yield host
    del sys.modules["probe_log"]


class TestAnswers:
    """Every question that was put to the real WebUI (webui_double/record.py)."""

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # what the host does with everything frozen
    @pytest.mark.parametrize("name", probes.in_order())
    def test_as_recorded(self, name: str, host: Any):
        if name == "fields_of_the_page" and not HAS_GRADIO:
            pytest.skip("the page's fields are gradio's")
        assert probes.ask(host, name) == RECORDED[name]

    def test_nothing_recorded_is_left_out(self):
        assert sorted(RECORDED) == probes.in_order()
        assert not [name for name, answer in RECORDED.items() if isinstance(answer, dict) and "raised" in answer]


# ---- start and end ---------------------------------------------------------------------------------------------------


def _replaceable() -> dict[str, Any]:
    """What the double replaces while it is there."""
    functions = {f"{kind.__name__}.{name}": getattr(kind, name) for kind in LAYERS for name in ("forward", "_load_from_state_dict")}
    return {**functions, "load": torch.load, "layer_norm": F.layer_norm, "group_norm": F.group_norm, "conv2d": F.conv2d, "path": list(sys.path), "seed": torch.initial_seed()}


def _imported() -> list[str]:
    return sorted(name for name in sys.modules if name.partition(".")[0] in NAMES or name == "lib_tuner.hosts.a1111")


@pytest.mark.parametrize("half", [False, True])
def test_the_end_puts_everything_back(tmp_path: Path, half: bool):
    before = _replaceable()
    with started(tmp_path, half=half) as double:
        from lib_tuner.hosts import a1111

        assert a1111.shared is double.modules.shared
        assert torch.load is not before["load"] and nn.Linear.forward is not before["Linear.forward"]
        double.txt2img("a ball", steps=1)
    assert _replaceable() == before
    assert _imported() == []
    assert "a1111" not in vars(sys.modules["lib_tuner.hosts"])


def test_an_error_inside_is_no_reason_to_leave_anything(tmp_path: Path):
    before = _replaceable()
    with pytest.raises(ZeroDivisionError), started(tmp_path):
        1 / 0
    assert _replaceable() == before and _imported() == []


def test_a_start_that_fails_leaves_nothing(tmp_path: Path):
    before = _replaceable()
    with pytest.raises(ValueError, match="no_such_flag"), started(tmp_path, flags={"no_such_flag": True}):
        pass
    assert _replaceable() == before and _imported() == []


def test_one_at_a_time(tmp_path: Path):
    with started(tmp_path / "a"), pytest.raises(RuntimeError, match="twice"), started(tmp_path / "b"):
        pass
    assert _imported() == []


def test_every_start_is_fresh(tmp_path: Path):
    with started(tmp_path / "a", flags={"api_auth": "a:b"}) as first:
        first.modules.script_callbacks.on_ui_tabs(lambda: [])
        first.modules.shared.opts.data["emphasis"] = "None"
        first.interrupt()
    with started(tmp_path / "b") as second:
        shared = second.modules.shared
        assert shared.opts.emphasis == "Original" and not shared.state.interrupted and shared.cmd_opts.api_auth is None
        assert second.modules.script_callbacks.callback_map["callbacks_ui_tabs"] == []
        assert second.errors == []


# ---- the model -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_its_networks_compute_what_ours_compute(tmp_path: Path):
    """Written independently, from the same weights."""
    path = write_small(tmp_path / "small.safetensors", 5)
    ours = load_model(path)
    with started(tmp_path / "host", checkpoints={"small": path}) as double:
        x, t, pixels = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.rand(1, 3, 64, 64)
        states = double.model.cond_stage_model(["a ball", "two balls, " * 30])
        assert torch.allclose(states, ours.text(["a ball", "two balls, " * 30]), atol=1e-5)
        assert torch.allclose(double.model.apply_model(x, t, states), ours.unet(x, t, states), atol=1e-4)
        mean, std = ours.vae.encode(pixels)
        posterior = double.model.encode_first_stage(pixels)
        assert torch.allclose(posterior.mean * double.model.scale_factor, mean, atol=1e-5)
        assert torch.allclose(posterior.std * double.model.scale_factor, std, atol=1e-5)


def test_half_precision_is_a_gpu_s(tmp_path: Path):
    with started(tmp_path, half=True) as double:
        model, devices = double.model, double.modules.devices
        dtypes = [next(part.parameters()).dtype for part in (model.model, model.cond_stage_model, model.first_stage_model)]
        assert dtypes == [devices.HALF] * 3 and devices.dtype == devices.dtype_unet == devices.HALF
        assert model.alphas_cumprod.dtype == torch.float32 and model.sqrt_alphas_cumprod.dtype == devices.HALF
        with pytest.raises(RuntimeError):  # as on a GPU: outside of autocast the precisions do not fit
            model.apply_model(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 48))
        for module in model.model.modules():
            for flag in ("checkpoint", "use_checkpoint"):
                if flag in vars(module):
                    setattr(module, flag, False)
        model.requires_grad_(False)
        extra = nn.Parameter(torch.zeros(32))
        hook = model.model.diffusion_model.input_blocks[1][0].register_forward_hook(lambda m, args, out: out + extra[:, None, None])
        with devices.autocast():
            model.forward(torch.randn(2, 4, 8, 8), model.cond_stage_model(["a", "b"]))[0].backward()
        hook.remove()
        assert extra.grad.dtype == torch.float32 and bool(extra.grad.isfinite().all()) and bool(extra.grad.abs().sum() > 0)
        assert double.txt2img("a (red:1.2) ball").size == (64, 64)


def test_half_precision_with_the_vae_in_full(tmp_path: Path):
    with started(tmp_path, half=True, flags={"no_half_vae": True}) as double:
        assert next(double.model.first_stage_model.parameters()).dtype == double.modules.devices.dtype_vae == torch.float32
        assert next(double.model.model.parameters()).dtype == double.modules.devices.HALF
        assert double.txt2img("a ball", steps=1).size == (64, 64)


def test_checkpoints_of_ones_own_come_with_their_yaml(tmp_path: Path):
    one, two = write_small(tmp_path / "one.safetensors", 7), write_small(tmp_path / "two.safetensors", 8)
    two.with_suffix(".yaml").write_text("# its own\n")
    with started(tmp_path / "host", checkpoints={"a": one, "b": two}) as double:
        old = double.model
        assert old.sd_checkpoint_info.name == "a.safetensors"
        double.select_checkpoint("b")
        assert double.model is not old and next(old.parameters()).is_meta
        with pytest.raises(ValueError, match="no checkpoint 'none such'"):
            double.select_checkpoint("none such")


# ---- what a person does ----------------------------------------------------------------------------------------------


def test_a_picture_waits_for_its_turn(tmp_path: Path):
    with started(tmp_path) as double:
        pictures: list[Any] = []
        thread = threading.Thread(target=lambda: pictures.append(double.txt2img("a ball", steps=1)))
        with double.modules.call_queue.queue_lock:
            thread.start()
            time.sleep(0.2)
            assert not pictures and len(double.modules.progress.pending_tasks) == 1
        thread.join(30)
        assert len(pictures) == 1 and double.modules.progress.current_task is None


def test_pictures_by_other_samplers_and_in_two_passes(tmp_path: Path):
    with started(tmp_path) as double:
        assert double.txt2img("a ball", sampler_name="Euler a").tobytes() == double.txt2img("a ball", sampler_name="Euler a").tobytes()
        assert double.txt2img("a ball", enable_hr=True, hr_upscaler="Lanczos", hr_scale=2.0, steps=2).size == (128, 128)
        assert len(double.process("a ball", n_iter=2, steps=1).images) == 2


def test_the_page_is_drawn_anew(tmp_path: Path):
    with started(tmp_path) as double:
        model, demo, axes = double.model, double.modules.shared.demo, double.modules.scripts.scripts_data
        forward = nn.Linear.forward
        double.reload_ui()
        assert double.model is model and double.modules.shared.demo is not demo and demo.server.should_exit
        assert nn.Linear.forward is not forward and len(axes) == 1  # the Lora extension takes its functions out and puts new ones in
        assert double.modules.shared.state.interrupted and double.modules.shared.state.server_command is None
        assert double.txt2img("a ball", steps=1).size == (64, 64) and double.errors == []
