"""T2I-Adapter and ControlNet: diffusers' networks with the same weights give the same, the files are those that hosts read, and what is drawn follows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import UNET
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_tuner.events import Finished, Sampled, Saved
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.methods.control_file import count_control
from lib_tuner.methods.metadata import Made
from lib_tuner.sd import controlnet, t2i_adapter
from lib_tuner.sd.controlnet import ControlNet
from lib_tuner.sd.t2i_adapter import T2IAdapter
from lib_tuner.train import train

MADE = Made(step=1, epoch=0, started=0.0, finished=1.0)
KINDS = ("t2i_adapter", "controlnet")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def method_of(kind: str, **own):
    return METHODS[kind](settings({"data.folder": "x", "method": kind, **{f"{kind}.{key}": value for key, value in own.items()}}))


def randomized(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With no tensor at zero."""
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=g)
    return net.requires_grad_(False)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def peer(kind: str, grey: bool = False) -> torch.nn.Module:
    diffusers = pytest.importorskip("diffusers")
    if kind == "controlnet":
        return diffusers.ControlNetModel(block_out_channels=UNET.channels, cross_attention_dim=UNET.context, attention_head_dim=UNET.heads)
    return diffusers.T2IAdapter(in_channels=1 if grey else 3, channels=list(UNET.channels), num_res_blocks=2, adapter_type="full_adapter")


# ---- networks --------------------------------------------------------------------------------------------------------


def test_numbers_of_tensors_and_parameters_at_sd15s_widths():
    with torch.device("meta"):
        nets = {"controlnet": ControlNet(), "rgb": T2IAdapter(), "grey": T2IAdapter(grey=True)}
    counts = {name: (len(net.state_dict()), sum(p.numel() for p in net.parameters())) for name, net in nets.items()}
    assert counts == {"controlnet": (340, 361_279_120), "rgb": (38, 77_369_280), "grey": (38, 77_000_640)}
    assert [METHODS[kind].parameters for kind in KINDS] == [77_369_280, 361_279_120]
    shapes = {key: tuple(t.shape) for key, t in nets["rgb"].state_dict().items()}
    assert shapes["conv_in.weight"] == (320, 192, 3, 3) and shapes["body.4.in_conv.weight"] == (1280, 640, 1, 1) and "body.6.in_conv.weight" not in shapes
    assert shapes["body.2.block2.weight"] == (640, 640, 1, 1) and nets["grey"].conv_in.weight.shape == (320, 64, 3, 3)


def test_names_are_those_that_diffusers_converts_to_its_own():
    """Its own reader of original ControlNet files; diffusers' T2I-Adapters have no such reader."""
    reader = pytest.importorskip("diffusers.loaders.single_file_utils")
    net = ControlNet(UNET)
    config = {**peer("controlnet").config, "layers_per_block": 2}
    original = {f"control_model.{key}": t for key, t in net.state_dict().items()}
    converted = reader.convert_controlnet_checkpoint(dict(original), config=config)
    assert {key: t.data_ptr() for key, t in converted.items()} == {controlnet.diffusers_key(key): t.data_ptr() for key, t in net.state_dict().items()}


@pytest.mark.parametrize("size", [(64, 96), (72, 40)])
def test_a_controlnet_is_diffusers(size):
    net, theirs = randomized(ControlNet(UNET)), peer("controlnet").requires_grad_(False)
    theirs.load_state_dict({controlnet.diffusers_key(key): t for key, t in net.state_dict().items()})
    g = torch.Generator().manual_seed(1)
    x, hint, ctx = torch.randn(2, 4, size[0] // 8, size[1] // 8, generator=g), torch.rand(2, 3, *size, generator=g), torch.randn(2, 7, UNET.context, generator=g)
    down, middle = theirs(x, torch.tensor([3, 800]), ctx, hint, return_dict=False)
    found = net(x, hint, torch.tensor([3, 800]), ctx)
    assert len(found) == 13 and max(map(relative, found, [*down, middle])) < 1e-4


@pytest.mark.parametrize("size", [(64, 96), (72, 40)])
@pytest.mark.parametrize("grey", [False, True])
def test_a_t2i_adapter_is_diffusers(size, grey):
    net, theirs = randomized(T2IAdapter(UNET.channels, grey)), peer("t2i_adapter", grey).requires_grad_(False)
    theirs.load_state_dict({t2i_adapter.diffusers_key(key): t for key, t in net.state_dict().items()})
    hint = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    assert max(map(relative, net(hint), theirs(hint[:, :1] if grey else hint))) < 1e-4


# ---- methods ---------------------------------------------------------------------------------------------------------


def inputs(seed: int = 0, many: int = 2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(many, 4, 8, 8, generator=g), torch.rand(many, 3, 64, 64, generator=g)


def under(sd, method, hint, x):
    method.begin(SimpleNamespace(hint=hint, indices=()))
    return sd.unet(x, torch.full((len(x),), 400), sd.text(["a"] * len(x)))


def test_a_controlnet_starts_as_the_unets_copy_without_an_effect(sd):
    x, hint = inputs()
    before = sd.unet(x, torch.full((2,), 400), sd.text(["a", "a"]))
    with (method := method_of("controlnet")).attached(sd):
        assert torch.equal(under(sd, method, hint, x), before)
        unet, net = sd.unet.state_dict(), method.net.state_dict()
        shared = [key for key in net if key in unet]
        assert len(shared) == 340 - 2 * (8 + 12 + 1) and all(torch.equal(net[key], unet[key]) and net[key].data_ptr() != unet[key].data_ptr() for key in shared)
        zero = [key for key in net if key not in unet and not net[key].any()]
        assert len(zero) == 2 * (1 + 12 + 1)  # the hint's last, those that join, the middle's
        randomized(method.net)
        assert relative(under(sd, method, hint, x), before) > 0.01


def test_a_small_start_makes_small_features_and_keeps_the_form(sd):
    features, shapes = {}, {}
    _, hint = inputs()
    for small in (False, True):
        with (method := method_of("t2i_adapter", small_start=small)).attached(sd):
            features[small] = [f.detach() for f in method.net(hint)]
            shapes[small] = {key: t.shape for key, t in method.net.state_dict().items()}
            grads = torch.autograd.grad(sum(f.square().sum() for f in method.net(hint)), list(method.net.parameters()))
            assert all(g.abs().sum() > 0 for g in grads)
    assert shapes[False] == shapes[True]
    assert all(s.norm() < 0.02 * f.norm() for s, f in zip(features[True], features[False]))


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_follows_its_own_hint_with_and_without_guidance(sd, kind):
    """Samples of a picture with and without its prompt lie one block after the other; alone each gives what it gives together."""
    x, hint = inputs()
    with torch.no_grad(), (method := method_of(kind)).attached(sd):
        randomized(method.net)
        together = under(sd, method, hint, x)
        alone = torch.cat([under(sd, method, hint[i : i + 1], x[i : i + 1]) for i in range(2)])
        swapped = under(sd, method, hint.flip(0), x)
        guided = under(sd, method, hint, torch.cat([x, x]))
        assert relative(together, alone) < 1e-5 and relative(swapped, together) > 1e-4
        assert relative(guided, torch.cat([together, together])) < 1e-5
        with pytest.raises(ValueError, match="3 samples cannot be drawn under 2 hints"):
            under(sd, method, hint, torch.cat([x, x[:1]]))
        assert under(sd, method, hint, torch.randn(2, 4, 16, 12)).shape == (2, 4, 16, 12)  # a second pass in another size


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_hint_the_model_is_the_frozen_one(sd, kind):
    x, hint = inputs()
    before = sd.unet(x, torch.full((2,), 400), sd.text(["a", "a"]))
    with (method := method_of(kind)).attached(sd):
        randomized(method.net)
        assert not torch.equal(under(sd, method, hint, x), before)
        assert torch.equal(under(sd, method, None, x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_frozen_models_own_prediction_between_does_not_disturb_the_gradients(sd, kind):
    """As a prior's target is computed between the forward pass and the backward pass, with checkpointing, whose hooks run twice."""
    x, hint = inputs()
    with (method := method_of(kind)).attached(sd):
        randomized(method.net)
        method.net.requires_grad_(True)
        params = list(method.net.parameters())
        plain = torch.autograd.grad(under(sd, method, hint, x).square().mean(), params)
        sd.unet.checkpointing = True
        loss = under(sd, method, hint, x).square().mean()
        with torch.no_grad(), method.disabled():
            sd.unet(x, torch.full((2,), 1), sd.text(["b", "b"]))
        again = torch.autograd.grad(loss, params)
        sd.unet.checkpointing = False
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(plain, again))


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_the_extensions_names_and_says_what_it_is(sd, kind, dtype, tmp_path):
    with (method := method_of(kind, save_dtype=dtype)).attached(sd):
        (path,) = method.export(tmp_path / "mine", {}, MADE)
        tensors = load_file(path)
        prefix = "control_model." if kind == "controlnet" else ""
        assert set(tensors) == {prefix + key for key in method.net.state_dict()}
        assert {t.dtype for t in tensors.values()} == {{"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]}
        assert count_control(path, kind, sd.unet) == (len(tensors),) * 2 == ((340,) * 2 if kind == "controlnet" else (38,) * 2)
    with safe_open(str(path), "pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == f"stable-diffusion-v1/{kind.replace('_', '-')}" and f'"{kind}.hint": "canny"' in said["tuner_settings"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_lacks_is_counted(sd, kind, tmp_path):
    with (method := method_of(kind)).attached(sd):
        (path,) = method.export(tmp_path / "mine", {}, MADE)
    tensors = load_file(path)
    wrong, other = sorted(tensors)[:2]
    tensors["strange"], tensors[other] = tensors.pop(wrong), torch.zeros(3)
    save_file(tensors, tmp_path / "broken.safetensors")
    assert count_control(tmp_path / "broken.safetensors", kind, sd.unet) == (len(tensors) - 2, len(tensors) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_none_are_not_saved(sd, kind, tmp_path):
    with (method := method_of(kind)).attached(sd):
        next(method.net.parameters()).data.view(-1)[0] = 1e6  # too large for fp16
        with pytest.raises(ValueError, match="too large for float16"):
            method.export(tmp_path / "mine", {}, MADE)
    assert list(tmp_path.iterdir()) == []


def written(kind: str, form: str, net: torch.nn.Module, folder: Path) -> Path:
    """A file of a network as others write it."""
    state = {key: t.detach().clone() for key, t in net.state_dict().items()}
    if form == "diffusers":
        rename = (controlnet if kind == "controlnet" else t2i_adapter).diffusers_key
        save_file({rename(key): t for key, t in state.items()}, folder / "theirs.safetensors")
    elif form == "pth of the whole model":
        whole = {f"control_model.{key}": t for key, t in state.items()} | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
        torch.save({"state_dict": whole}, folder / "theirs.pth")
        return folder / "theirs.pth"
    elif form == "pth":
        torch.save(state, folder / "theirs.pth")
        return folder / "theirs.pth"
    else:
        flat = {key: t[..., 0, 0] if key.endswith(("proj_in.weight", "proj_out.weight")) else t for key, t in state.items()}
        save_file({("adapter." if kind == "t2i_adapter" else "") + key: t.half() for key, t in flat.items()}, folder / "theirs.safetensors")
    return folder / "theirs.safetensors"


@pytest.mark.parametrize(("kind", "form"), [
    ("t2i_adapter", "diffusers"), ("t2i_adapter", "pth"), ("t2i_adapter", "half"),
    ("controlnet", "diffusers"), ("controlnet", "pth of the whole model"), ("controlnet", "half"),
])  # fmt: skip
def test_a_run_goes_on_from_others_files(sd, kind, form, tmp_path):
    net = randomized(ControlNet(UNET) if kind == "controlnet" else T2IAdapter(UNET.channels, grey=True), 3)
    path = written(kind, form, net, tmp_path)
    with (method := method_of(kind, start=str(path), hint="tile")).attached(sd):
        found = method.net.state_dict()
        assert all(torch.allclose(found[key], t, rtol=1e-3, atol=1e-3 if form == "half" else 0) for key, t in net.state_dict().items())
        assert kind == "controlnet" or method.net.grey  # as the file is, whatever the hint


def test_files_that_are_something_else_are_refused_by_name(sd, tmp_path):
    def refused(kind: str, tensors: dict, words: str) -> None:
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=words):
            with method_of(kind, start=str(tmp_path / "other.safetensors")).attached(sd):
                pass

    adapter, control = T2IAdapter(UNET.channels).state_dict(), ControlNet(UNET).state_dict()
    refused("controlnet", adapter, "start: other.safetensors is a T2I-Adapter, not a ControlNet")
    refused("t2i_adapter", control, "start: other.safetensors is a ControlNet, not a T2I-Adapter")
    refused("controlnet", {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "is a LoRA, not a ControlNet")
    refused("controlnet", {**control, "difference": torch.zeros(1)}, "holds the difference to the model")
    refused("t2i_adapter", {"body.0.in_conv.weight": torch.zeros(1), "body.0.body.0.block1.weight": torch.zeros(1)}, "another form of T2I-Adapter .*no conv_in")
    refused("t2i_adapter", T2IAdapter((64, 96, 128, 128)).state_dict(), "does not fit this model: its conv_in.weight is 64x192x3x3 instead of 32x192x3x3")
    with pytest.raises(FileNotFoundError, match="gone.pth does not exist"), method_of("controlnet", start="gone.pth").attached(sd):
        pass


def test_names_that_the_extension_reads_as_another_kind_are_refused(sd):
    with pytest.raises(ValueError, match="'shuffle' in its name"):
        with METHODS["controlnet"](settings({"data.folder": "x", "method": "controlnet", "name": "my Shuffle"})).attached(sd):
            pass


@pytest.mark.parametrize(("own", "words"), [
    ({"hint": "own"}, "hints: is empty, but hint is own"), ({"hints": "there"}, "hint is canny, which is made"), ({"canny_low": 300}, "is above canny_high"),
])  # fmt: skip
def test_settings_that_contradict_each_other(own, words):
    with pytest.raises(ValueError, match=words):
        method_of("controlnet", **own)


# ---- runs ------------------------------------------------------------------------------------------------------------


def values_of(small_run: dict, kind: str, **more) -> dict:
    kept = {key: value for key, value in small_run.items() if not key.startswith("lora.")}
    sampled = {"sample.prompts": "a thing\nanother", "sample.every": 3, "sample.steps": 1, "sample.height": 32}
    return {**kept, "method": kind, "steps": 3, "save_every": 2, "data.batch": 1, "optim.lr": "1e-3", "data.flip": "all", "data.crop_jitter": 4, **sampled, **more}


def run(values: dict, stop=lambda: False):
    cfg = settings(values)
    with closing(train(cfg, METHODS[cfg.method](cfg), Standalone(cfg), stop)) as going:
        return list(going)


def last(events: list, kind: type):
    return [event for event in events if isinstance(event, kind)][-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_saves_resumes_and_shows_its_hints(small_run, kind):
    values = values_of(small_run, kind)
    whole = run(values)
    saved, sampled = last(whole, Saved), last(whole, Sampled)
    count = 340 if kind == "controlnet" else 38
    assert saved.report == f"thing.safetensors: {count} of {count} parts are taken by the host" and last(whole, Finished).reason == "done"
    assert [image.size for image in sampled.images] == [(128, 32)] * 2  # the hint, and the picture drawn under it
    hint = np.asarray(sampled.images[0])[:, :64].astype(int)
    assert (hint[..., 0] == hint[..., 2]).all() and hint.max() == 255  # canny: white lines, the colours of the picture are not in it
    first = [event for event in whole if isinstance(event, Sampled)][0]
    assert np.array_equal(np.asarray(first.images[1])[:, :64], np.asarray(sampled.images[1])[:, :64]) and not np.array_equal(first.images[1], sampled.images[1])
    half = run({**values, "name": "half", "sample.every": 0}, stop=lambda: any(Path(small_run["output"]).glob("half-001/half-000002*")))
    rest = run({**values, "name": "half", "sample.every": 0, "resume": str(last(half, Saved).paths[0].parent)})
    assert last(rest, Finished).reason == "done" and last(half, Finished).step == 2
    a, b = load_file(saved.paths[0]), load_file(last(rest, Saved).paths[0])
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_held_out_pictures_are_measured_under_their_hints(small_run):
    from lib_tuner.events import Validated

    values = values_of(small_run, "t2i_adapter", **{"validate_every": 1, "steps": 2, "sample.every": 0, "save_every": 0, "t2i_adapter.hint": "tile", "optim.lr": "1e-2"})
    held = Path(small_run["data.folder"]).with_name("held")
    held.mkdir()
    with Image.open(Path(small_run["data.folder"]) / "0.png") as image:
        image.rotate(90).save(held / "h.png")
    found = [event.loss for event in run({**values, "data.validation_folder": str(held)}) if isinstance(event, Validated)]
    assert len(found) == 3 and len(set(found)) == 3  # at steps 0, 1 and 2: what is trained takes part


def test_drift_is_measured_under_the_hint_of_its_one_picture(small_run):
    from lib_tuner.events import Drifted

    values = values_of(small_run, "controlnet", **{"prior.drift": "on", "data.batch": 3, "steps": 1, "sample.every": 0, "save_every": 0, "optim.lr": "1e-2"})
    found = [event.drift for event in run(values) if isinstance(event, Drifted)]
    assert len(found) == 2 and found[0] == 0 < found[1]


def test_a_prior_that_would_teach_to_ignore_the_hint_is_refused(small_run):
    with pytest.raises(ValueError, match="prior.weight: without its hint the model is the frozen one"):
        run(values_of(small_run, "controlnet", **{"prior.weight": 1.0, "prior.prompt": "a dog"}))


def test_memory_is_foreseen_with_what_is_trained(small_run):
    def need(method: str, **more) -> float:
        values = {"data.folder": "x", "method": method, "checkpoint": "not-there-yet.safetensors", "memory.precision": "bf16", "memory.checkpointing": "off", **more}
        return Standalone(settings(values)).forecast().need

    lora = need("lora")
    assert 7.5e9 < need("controlnet") - lora < 9e9 and 1.6e9 < need("t2i_adapter") - lora < 1.9e9
    assert need("controlnet", **{"optim.name": "adamw8bit"}) < need("controlnet") - 2e9 and need("controlnet", **{"optim.ema": 0.99}) > need("controlnet") + 1.4e9
