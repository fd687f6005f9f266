"""Inpainting models (9 channels): the masks of the examples, what the UNet is given beside the noisy latents, and that every method trains on one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from conftest import UNET, random_parts, widened
from PIL import Image
from safetensors.torch import load_file
from test_batches import MeanVAE
from test_train import losses, of, settings, tensors
from test_train import run as run_alone
from torch.nn import functional as F

from lib_tuner.data.batches import Batches, validation
from lib_tuner.data.holes import Holes, random_mask
from lib_tuner.events import Drifted, Finished, Sampled, Saved, Validated, Warned
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS
from lib_tuner.outlook import outlook
from lib_tuner.sd.files import read_checkpoint
from lib_tuner.sd.inpaint import all_hidden, joined
from lib_tuner.sd.loss import generator_for
from lib_tuner.sd.sample import guided, sample
from lib_tuner.sd.unet import UNet
from lib_tuner.sd.yaml import yaml_of
from lib_tuner.settings import DataConfig, InpaintConfig
from lib_tuner.step import Step

SMALL = dict(resolution=64, bucket_step=8, bucket_min=64)


@pytest.fixture
def values(small_run, data_folder, inpainting_file) -> dict:
    """A run on two pictures."""
    for i in range(2, 6):
        (data_folder / f"{i}.png").unlink()
    return {**small_run, "checkpoint": str(inpainting_file), "inpaint.variants": 1, "save_every": 0}


@pytest.fixture(scope="module")
def hosts() -> dict[str, Standalone]:
    """One host for each model: loading it is most of a short run."""
    return {}


@pytest.fixture
def host_of(hosts) -> Callable[[dict], Standalone]:
    def given(values: dict) -> Standalone:
        cfg = settings(values)
        host = hosts.setdefault(cfg.checkpoint, Standalone(cfg))
        host.cfg = cfg
        return host

    return given


@pytest.fixture
def run(host_of) -> Callable[..., list]:
    return lambda values, **how: run_alone(values, host=host_of(values), **how)


def batches(folder: Path, seed: int = 5, inpaint: dict | None = None, vae: MeanVAE | None = None, **data) -> Batches:
    cfg = DataConfig(folder=str(folder), **SMALL, **data)
    return Batches(cfg, SimpleNamespace(vae=vae or MeanVAE()), seed, holes=Holes(InpaintConfig(**(inpaint or {})), seed))


def masks(shape: str, count: int = 200, size: tuple[int, int] = (96, 64), **more) -> list[torch.Tensor]:
    return [random_mask(size, Random(i), InpaintConfig(shape=shape, **more)) for i in range(count)]


def sides(mask: torch.Tensor) -> tuple[int, int]:
    """(width, height) of the box around what is hidden."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return int(columns.max() - columns.min()) + 1, int(rows.max() - rows.min()) + 1


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_a_rectangle_hides_its_whole_box_an_ellipse_pi_quarters_of_it():
    for mask in masks("rectangles", 50):
        assert mask.shape == (64, 96) and int(mask.sum()) == math.prod(sides(mask))
    parts = [float(mask.sum()) / math.prod(sides(mask)) for mask in masks("ellipses", 50, smallest=0.6)]
    assert all(abs(part - math.pi / 4) < 0.03 for part in parts)


@pytest.mark.parametrize("shape", ["rectangles", "ellipses", "lines", "mixed"])
def test_masks_are_as_large_as_they_may_be_and_no_larger(shape):
    found = [sides(mask) for mask in masks(shape, smallest=0.25, largest=0.5) if mask.any()]
    assert len(found) > 190 and max(w for w, _ in found) <= 48 and max(h for _, h in found) <= 32
    if shape == "rectangles":
        assert min(w for w, _ in found) >= 24 and min(h for _, h in found) >= 16
    assert sides(masks("rectangles", 1, smallest=0.0, largest=0.0)[0]) == (8, 8)  # a latent pixel at least


def test_masks_lie_everywhere_and_every_shape_has_its_turn():
    place = torch.stack([mask.float() for mask in masks("rectangles", 400, largest=0.6)]).mean(0)
    assert (place > 0).float().mean() > 0.98 and (place - place.flip(0, 1)).abs().max() < 0.12 and place[32, 48] > 0.3 > place[4, 4]
    kinds = Counter()
    for i in range(300):
        drawn = random_mask((96, 64), Random(i), InpaintConfig(smallest=0.5))
        fills = float(drawn.sum()) / math.prod(sides(drawn))
        kinds["rectangles" if fills == 1 else "ellipses" if abs(fills - math.pi / 4) < 0.02 else "lines"] += 1
    assert all(70 < count < 130 for count in kinds.values()), kinds


def test_a_line_is_one_piece_of_the_same_thickness():
    """Its parts are within the box; grown and shrunk by half of the thinnest line, nothing of it is lost but at the box's sides."""
    for mask in masks("lines", 20, smallest=0.9):
        core = -F.max_pool2d(-F.pad(mask.float(), (2, 2, 2, 2), value=1)[None], 5, stride=1)  # eroded by two pixels
        grown = F.max_pool2d(core, 5, stride=1, padding=2)[0].bool()
        assert mask.any() and float((mask & ~grown).sum()) < 0.12 * float(mask.sum())


def test_smallest_above_largest_is_refused():
    with pytest.raises(ValueError, match="inpaint: smallest"):
        settings({"method": "lora", "data.folder": "x", "inpaint.smallest": 0.6, "inpaint.largest": 0.5})


# ---- examples --------------------------------------------------------------------------------------------------------


def test_an_example_gets_its_mask_and_a_latent_of_the_rest(data_folder):
    """Against diffusers' and the WebUI's way: pixels x (1 - mask), the mask by F.interpolate, mask before latent."""
    made = batches(data_folder, batch=3, latent="deterministic", inpaint={"whole": 0.0})
    for step in range(4):
        batch = made.at(step)
        for index, item, extra in zip(batch.indices, batch.items, batch.extra):
            hole = made.holes.of_sample(index, item.digest, (64, 64), cached=True)[None, None].float()
            pixels = torch.tensor(list(Image.open(item.path).convert("RGB").tobytes())).reshape(64, 64, 3).permute(2, 0, 1)[None] / 127.5 - 1
            torch.testing.assert_close(extra[1:], MeanVAE().encode(pixels * (1 - hole))[0][0])
            assert torch.equal(extra[0], F.interpolate(hole, size=(8, 8))[0, 0])


def test_masks_are_a_function_of_seed_and_sample_whatever_the_world_size(data_folder):
    one, other = batches(data_folder, batch=3, latent="random"), batches(data_folder, batch=3, latent="random")
    for step in (3, 0, 1):
        shared = {index: extra for rank in range(3) if len(b := other.at(step, rank, 3)) for index, extra in zip(b.indices, b.extra)}
        assert all(torch.equal(extra, shared[index]) for index, extra in zip(one.at(step).indices, one.at(step).extra))
    assert not torch.equal(one.at(0).extra[:, :1], batches(data_folder, seed=6, batch=3).at(0).extra[:, :1])


def test_with_a_cache_each_picture_has_a_few_masks_without_one_every_mask_is_new(data_folder):
    def seen(**more) -> Counter:
        made = batches(data_folder, inpaint={"variants": 3}, **more)
        found = [(b.items[0].name, bytes(b.extra[0, 0].flatten().byte().tolist())) for b in map(made.at, range(120))]
        return Counter(name for name, mask in set(found) if 0 in mask)  # but for the hidden pictures

    assert set(seen().values()) == {3}
    assert min(seen(cache="off").values()) > 6


@pytest.mark.parametrize("latent", ["once", "deterministic", "random"])
def test_what_a_mask_leaves_is_drawn_the_same_from_memory_and_disk(data_folder, tmp_path, latent):
    kept, disk = (batches(data_folder, latent=latent, cache=cache, cache_folder=str(tmp_path / "cache")) for cache in ("memory", "disk"))
    assert all(torch.equal(kept.at(step).extra, disk.at(step).extra) for step in range(12))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_what_masks_leave_is_encoded_beforehand_and_once(data_folder, tmp_path, cache):
    vae = MeanVAE()
    made = batches(data_folder, vae=vae, flip="all", cache=cache, cache_folder=str(tmp_path / "cache"), inpaint={"variants": 2})
    assert len(list(made.prepare())) == len(made.encoded) == vae.calls == 6 * 2 * 3  # pictures, mirrored or not, whole and with two masks
    wholes = sum(bool(made.at(step).extra[0, 0].all()) for step in range(60))
    assert vae.calls == 6 * 2 * 3 + 1 and 5 < wholes < 28  # one for all that is hidden as a whole; a quarter of 60 is


def test_what_is_seen_may_weigh_less_in_the_loss(data_folder):
    plain, half = (batches(data_folder, batch=3, inpaint={"whole": 0.0, "outside": outside}).at(0) for outside in (1.0, 0.5))
    assert plain.mask is None and torch.equal(half.mask, torch.where(half.extra[:, :1] > 0, 1.0, 0.5)) and set(half.mask.flatten().tolist()) == {0.5, 1.0}
    for path in data_folder.glob("*.png"):
        Image.linear_gradient("L").resize((64, 64)).save(path.with_suffix(".mask.png"))
    own, both = (batches(data_folder, batch=3, masks=True, inpaint={"whole": 0.0, "outside": outside}).at(0) for outside in (1.0, 0.5))
    assert torch.equal(both.mask, own.mask * half.mask)


def test_held_out_pictures_always_have_the_same_masks(data_folder):
    def held(seed: int) -> torch.Tensor:
        cfg = DataConfig(folder="x", validation_folder=str(data_folder), batch=6, **SMALL)
        return validation(cfg, SimpleNamespace(vae=MeanVAE()), holes=Holes(InpaintConfig(), seed))[0].extra

    assert held(1).shape == (6, 5, 8, 8) and torch.equal(held(1), held(2)) and len(set(held(1)[:, 0].flatten(1).sum(1).tolist())) > 2


# ---- the model -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_widened_model_predicts_exactly_what_the_ordinary_one_does():
    unet, text, _ = random_parts()
    state = unet.state_dict()
    wide = UNet.from_state({**state, "input_blocks.0.0.weight": widened(state["input_blocks.0.0.weight"])}, UNET.heads)
    x, t, ctx = torch.randn(4, 4, 8, 8), torch.tensor([1, 300, 600, 999]), torch.randn(4, 77, UNET.context)
    torch.testing.assert_close(joined(wide, torch.randn(2, 5, 8, 8))(x, t, ctx), unet(x, t, ctx), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_picture_is_drawn_with_all_of_it_hidden(values, host_of):
    """As the WebUI's txt2img: a mask of ones, and the latent of a grey picture, with and without the prompt."""
    host = host_of(values)
    m, request = host.model, GenerateRequest("a ball", "red", 64, 80, steps=3, cfg=3.0, seed=4)
    grey = m.vae.vae.encode(torch.full((1, 3, 80, 64), 0.5) * 2 - 1)[0] * 0.18215
    torch.testing.assert_close(all_hidden(m.vae, (64, 80)), torch.cat([torch.ones(1, 10, 8), grey[0]]))

    def by_hand(x, t, ctx):
        return m.unet(torch.cat([x, torch.ones(len(x), 1, 10, 8), grey.expand(len(x), -1, -1, -1)], 1), t, ctx)

    generator = generator_for(4, 0, "sample")
    noise = torch.randn(1, 4, 10, 8, generator=generator)
    latents = sample(guided(by_hand, m.text(["a ball"]), m.text(["red"]), 3.0), noise, m.schedule, 3, "ddim", [generator])
    drawn = torch.tensor(list(host.generate([request])[0].tobytes())).reshape(80, 64, 3).permute(2, 0, 1)
    assert (drawn - ((m.vae.decode(latents)[0].clamp(-1, 1) + 1) * 127.5)).abs().max() <= 1


def test_the_loss_is_of_the_prediction_under_the_mask(values, host_of):
    """The UNet is given noisy latent, mask and rest in this order; with an `outside` of 0 only what is hidden counts."""
    given, cfg = [], settings({**values, "inpaint.outside": 0.0, "inpaint.whole": 0.0})
    host, method = host_of({**values, "inpaint.outside": 0.0}), METHODS["lora"](cfg)
    with host.exclusive() as sd, method.attached(sd) as groups:
        made = Batches(cfg.data, sd, cfg.seed, holes=Holes(cfg.inpaint, cfg.seed))
        step = Step(cfg, sd, SimpleNamespace(method=method, optimizer=SimpleNamespace(param_groups=groups), scaler=None, ema=None), made)
        batch = made.at(0)
        with sd.unet.register_forward_hook(lambda unet, args, out: given.append((args[0], out))):
            loss = step.loss(batch)
    (x, pred), extra = given[0], batch.extra
    assert torch.equal(x[:, 4:], extra) and not torch.equal(x[:, :4], batch.latents)
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator_for(cfg.seed, i, "noise")) for i in batch.indices])
    assert loss.item() == pytest.approx(((pred - noise) ** 2 * extra[:, :1]).mean((1, 2, 3)).sum().item(), rel=1e-5)


def test_the_webuis_yaml_says_that_it_is_an_inpainting_model(checkpoint_file, inpainting_file):
    plain, nine = ({line.strip() for line in yaml_of(read_checkpoint(file)).splitlines()} for file in (checkpoint_file, inpainting_file))
    own = {"target: ldm.models.diffusion.ddpm.LatentInpaintDiffusion", "conditioning_key: hybrid", "finetune_keys: null", "in_channels: 9"}
    assert own <= nine and not own & plain and "conditioning_key: crossattn" in plain - nine


# ---- runs ------------------------------------------------------------------------------------------------------------

OWN = {
    "locon": {"locon.conv_rank": 2, "locon.outer": True}, "textual_inversion": {"textual_inversion.vectors": 2}, "hypernetwork": {"hypernetwork.structure": "1, 1"},
    "pivotal": {"pivotal.inversion_steps": 1, "pivotal.layers.rank": 2}, "dreambooth": {"dreambooth.save": "both", "dreambooth.lora_rank": 4, "dreambooth.save_dtype": "fp32"},
    "adalora": {"adalora.rank": 2, "adalora.first_rank": 3},
}  # fmt: skip


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_learns_on_an_inpainting_model_and_its_file_is_read_back_whole(values, run, kind, inpainting_file):
    own = {key: value for key, value in values.items() if not key.startswith("lora.") or kind == "lora"}
    events = run({**own, "method": kind, "steps": 2, "data.batch": 1, "prior.drift": "off", **OWN.get(kind, {})})
    found, saved = losses(events), of(Saved, events)[-1]
    assert of(Finished, events)[0].reason == "done" and all(map(math.isfinite, found)) and len(found) == 2
    for report in saved.report.split("; "):
        taken, total = re.search(r": (\d+) of (\d+) parts", report).groups()
        assert taken == total != "0", report
    assert changed(kind, saved.paths, inpainting_file)


def changed(kind: str, paths: list[Path], model: Path) -> bool:
    """Whether the saved file says something else than at its start, and has the channels that it should."""
    files = {path: torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path) for path in paths}
    first = next(iter(files.values()))
    if kind == "dreambooth":
        key, (whole, lora) = "model.diffusion_model.input_blocks.0.0.weight", files.values()
        down = lora["lora_unet_input_blocks_0_0.lora_down.weight"] if "lora_unet_input_blocks_0_0.lora_down.weight" in lora else lora["lora_unet_conv_in.lora_down.weight"]
        assert whole[key].shape[1] == 9 and down.shape[1] == 4 and read_checkpoint(paths[0]).inpainting
        before = load_file(model)[key]
        return all(not torch.equal(whole[key][:, i], before[:, i]) for i in range(9))  # all nine channels have learned
    if kind == "controlnet":
        assert first["control_model.input_blocks.0.0.weight"].shape[1] == 4
        return any(t.any() for name, t in first.items() if ".zero_convs." in name)
    if kind == "hypernetwork":
        return any(t.any() for pair in first.values() if isinstance(pair, tuple) for half in pair for t in half.values())
    if kind == "locon":
        assert any("time_embed" in name for name in first) and not any("conv_in" in name or "input_blocks_0_0" in name for name in first)
    ups = [t for name, t in first.items() if name.endswith(("lora_up.weight", "hada_w2_a", "lokr_w2", "lokr_w1"))]
    return any(t.any() for t in ups) if ups else any(t.any() for t in first.values())


def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(values, run, tmp_path):
    values = {**values, "data.latent": "random", "inpaint.outside": 0.3, "lora.dropout": 0.1, "data.batch": 1, "steps": 4, "inpaint.variants": 2}
    whole = run(values)
    run({**values, "output": str(tmp_path / "two")}, stop_after=2)
    second = run({**values, "output": str(tmp_path / "two"), "resume": str(tmp_path / "two" / "thing-001")})
    assert losses(second) == losses(whole)[2:]
    assert {key: t.tolist() for key, t in tensors(second).items()} == {key: t.tolist() for key, t in tensors(whole).items()}


def test_class_pictures_frozen_prior_drift_validation_and_samples_go_with_it(values, run, tmp_path):
    own = {"prior.prompt": "a ball", "prior.weight": 1.0, "prior.pictures": 2, "prior.steps": 2, "prior.drift": "on", "data.class_folder": str(tmp_path / "class"), "data.validation_folder": str(tmp_path / "held"),
           "validate_every": 2, "sample.prompts": "a ball", "sample.every": 2, "sample.steps": 1, "steps": 2, "data.batch": 1}  # fmt: skip
    (tmp_path / "held").mkdir()
    Image.new("RGB", (64, 64), (90, 30, 200)).save(tmp_path / "held" / "0.png")
    events = run({**values, **own})
    assert len(list((tmp_path / "class").glob("*.png"))) == 2 and len(of(Sampled, events)) == 2
    checks, drifts = [event.loss for event in of(Validated, events)], [event.drift for event in of(Drifted, events)]
    assert len(checks) == 2 and all(map(math.isfinite, checks)) and drifts[0] == 0 and drifts[-1] > 0


def test_samples_of_a_resolution_between_the_latents_pixels_are_the_next_smaller(values, run):
    (sampled, *_) = of(Sampled, run({**values, "data.resolution": 69, "sample.prompts": "a ball", "sample.every": 1, "sample.steps": 1, "steps": 1}))
    assert sampled.images[0].size == (64, 64)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_an_ordinary_models_run_says_that_masks_are_not_used(values, run, checkpoint_file):
    ordinary = {**values, "checkpoint": str(checkpoint_file), "steps": 1}
    words = "settings for inpainting models are not used"
    assert any(words in event.text for event in of(Warned, run(ordinary)))
    cfg = settings(ordinary)
    told = [w for w in outlook(cfg, Standalone(cfg).forecast()).warnings if words in w.text]
    assert len(told) == 1 and replace(cfg, inpaint=InpaintConfig(**{key.partition(".")[2]: value for key, value in told[0].fix.values.items()})).inpaint == InpaintConfig()


def test_the_plan_says_what_masks_cost(values):
    def line(**more) -> str:
        cfg = settings({**values, **more})
        return next(line for line in outlook(cfg, Standalone(cfg).forecast()).lines if line.startswith("An inpainting model: "))

    assert line().endswith("each view of a picture is encoded 2 times, whole and without what a random mask hides: 4 latents, 0.0 MB in the cache.")
    assert "encoded 65 times" in line(**{"inpaint.variants": 64}) and "130 latents, 0.1 MB" in line(**{"inpaint.variants": 64})
    assert "a new random mask for every example" in line(**{"data.cache": "off"})
