"""DreamBooth: the model is itself again afterwards, what is saved is what was trained, and what it has forgotten is measured."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from worlds import state_of_model

from lib_tuner.data import class_pictures
from lib_tuner.data.items import scan
from lib_tuner.events import Drifted, Finished, Preparing, Saved, Started, Stepped
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.methods.checkpoint_file import write_yaml
from lib_tuner.methods.difference import as_lora, low_rank
from lib_tuner.sd.loss import generator_for
from lib_tuner.sd.rounding import rounded_step, stochastic_bf16
from lib_tuner.sd.schedule import Schedule
from lib_tuner.step import Step
from lib_tuner.train import train


@pytest.fixture
def values(small_run) -> dict:
    own = {key: value for key, value in small_run.items() if not key.startswith("lora.")}
    return {**own, "method": "dreambooth", "steps": 4, "save_every": 0, "optim.lr": "1e-3", "dreambooth.save_dtype": "fp32", "prior.drift": "off"}


def run(values: dict, host: Standalone | None = None, stop_after: int = 0, each=lambda event: None) -> list:
    cfg, events = settings(values), []
    with closing(train(cfg, METHODS[cfg.method](cfg), host or Standalone(cfg), lambda: bool(stop_after) and any(isinstance(e, Stepped) and e.step == stop_after for e in events))) as going:
        for event in going:
            events.append(event)
            each(event)
    return events


def of(kind: type, events: list) -> list:
    return [event for event in events if isinstance(event, kind)]


def trained(events: list) -> dict[str, torch.Tensor]:
    return load_file(of(Finished, events)[0].files[0])


def snapshot(host: Standalone) -> dict:
    m = host.model
    return {f"{i}.{key}": value for i, root in enumerate((m.unet, m.text.transformer, m.vae.vae)) for key, value in state_of_model(root).items()}


# ---- the model afterwards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "ending"), [
    ("fp32", "error"), ("bf16 masters", "closed"), ("bf16 model", "error while disabled"), ("ema", "done"),
])  # fmt: skip
def test_the_model_is_itself_again_however_the_run_ends(values, how, ending, monkeypatch):
    more = {"bf16 masters": {"dreambooth.masters": "bf16"}, "bf16 model": {"memory.precision": "bf16"}, "ema": {"optim.ema": 0.9, "prior.weight": 1.0, "prior.prompt": "a dog"}}
    values = {**values, "dreambooth.text_encoder": True, "steps": 1, **more.get(how, {})}
    host = Standalone(settings(values))
    host.model.unet.out[2].weight.requires_grad_(True)  # a flag that is not the usual one
    before = snapshot(host)
    if ending == "done":
        assert of(Finished, run(values, host))[0].reason == "done"
    elif ending == "closed":
        cfg = settings(values)
        going = train(cfg, METHODS[cfg.method](cfg), host)
        next(event for event in going if isinstance(event, Stepped))
        assert snapshot(host) != before
        going.close()
    else:
        def fail(event):
            if isinstance(event, Stepped):
                raise RuntimeError("on purpose")

        if ending == "error while disabled":
            monkeypatch.setattr(Step, "_kept", lambda self, batch, xt, t, encode: self.state.method.disabled().__enter__() or fail(Stepped(1, xt, 0.0)))
            values = {**values, "prior.weight": 1.0, "prior.prompt": "a dog"}
        with pytest.raises(RuntimeError, match="on purpose"):
            run(values, host, each=fail)
    assert snapshot(host) == before


@pytest.mark.parametrize("more", [{"dreambooth.masters": "bf16"}, {"memory.precision": "bf16"}, {"optim.ema": 0.9, "dreambooth.text_until": 1, "optim.accumulate": 2}], ids=str)
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(values, more):
    values = {**values, "dreambooth.text_encoder": True, "steps": 2, "data.batch": 1, **more}
    whole = run({**values, "output": values["output"] + "-whole"})
    first = run(values, stop_after=1)
    rest = run({**values, "resume": str(of(Started, first)[0].folder)})
    assert of(Started, rest)[0].start == 1
    a, b = trained(whole), trained(rest)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["model.diffusion_model.out.2.weight"], load_file(values["checkpoint"])["model.diffusion_model.out.2.weight"])


def test_what_is_saved_may_change_at_a_resume(values):
    first = run({**values, "dreambooth.save": "checkpoint"}, stop_after=1)
    folder = of(Started, first)[0].folder
    files = of(Finished, run({**values, "steps": 2, "resume": str(folder), "dreambooth.save": "lora", "dreambooth.lora_rank": 4}))[0].files
    assert [path.name for path in files] == ["thing.safetensors"] and any("lora_down" in key for key in load_file(files[0]))
    with pytest.raises(ValueError, match="resume: dreambooth.text_encoder was False and is now True"):
        run({**values, "resume": str(folder), "dreambooth.text_encoder": True})


def test_the_text_encoder_learns_in_the_first_steps_alone(values):
    values = {**values, "dreambooth.text_encoder": True, "save_every": 1, "steps": 3, "dreambooth.text_until": 2}
    saves = [load_file(e.paths[0]) for e in of(Saved, run(values))]
    one, two, three = ({key: t for key, t in save.items() if key.startswith("cond_stage_model")} for save in saves)
    same = [all(torch.equal(a[key], b[key]) for key in a) for a, b in ((one, two), (two, three))]
    assert same == [False, True]
    assert not torch.equal(saves[1]["model.diffusion_model.out.2.weight"], saves[2]["model.diffusion_model.out.2.weight"])


def test_gradients_reach_fp32_masters_of_a_model_in_bf16(sd, values):
    """Updates of a tenth of a bf16 step each: the masters have them all, and the model follows them."""
    sd.unet.to(torch.bfloat16)
    cfg = settings(values)
    method = METHODS["dreambooth"](cfg)
    with method.attached(replace(sd, dtype=torch.bfloat16)) as groups:
        masters = groups[0]["params"]
        assert all(p.dtype == torch.float32 for p in masters)
        out = sd.unet(torch.randn(1, 4, 8, 8, generator=generator_for(0, 0, "x")), torch.tensor([400]), sd.text(["a cat"]))
        for _ in range(2):
            (out.float() ** 2).mean().backward(retain_graph=True)
        grads = [p.grad for p in masters]
        single = torch.autograd.grad((out.float() ** 2).mean(), [w.param for w in method.weights])
        assert all(w.param.grad is None for w in method.weights)
        assert all(torch.allclose(g, 2 * s.float(), rtol=1e-2, atol=1e-6) for g, s in zip(grads, single))
        w = method.weights[0]
        with torch.no_grad():
            for _ in range(10):
                w.master.add_(w.original.float() * 2**-11)
                method.follow()
        assert torch.allclose(w.param.float(), w.original.float() * (1 + 10 * 2**-11), rtol=2**-8) and not torch.equal(w.param, w.original)


# ---- bf16 ------------------------------------------------------------------------------------------------------------


def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour():
    x = torch.tensor([1.0, 1.0 + 2**-9, -3.0 - 2**-8, 1e-20, 0.0, -7.1e8, 1.0 + 2**-8 + 2**-12])
    g = torch.Generator().manual_seed(4)
    n = 40_000
    draws = stochastic_bf16(x.expand(n, -1), g).double()
    down = x.view(torch.int32).bitwise_and(-65536).view(torch.float32).double()
    step = (x.view(torch.int32).bitwise_and(-65536) + 65536).view(torch.float32).double() - down
    assert bool(((draws == down) | (draws == down + step)).all())
    assert bool(((draws.mean(0) - x.double()).abs() <= 4 * step.abs() * 0.5 / n**0.5).all())
    assert torch.equal(stochastic_bf16(x[:1], g), x[:1].bfloat16())


def test_small_updates_are_not_lost_in_bf16():
    """A thousand steps of a thousandth of a bf16 step each; by plain rounding nothing would move. Weights without a gradient stay."""
    p, still = (torch.nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [p]}, {"params": [still]}], lr=1.0)
    for i in range(1000):
        p.grad = torch.full_like(p, -(2**-7) / 1000)
        rounded_step(optimizer, torch.Generator().manual_seed(i))
    assert float(p.detach().double().mean()) == pytest.approx(1 + 2**-7, abs=2**-7 * 0.15)
    assert p.dtype == p.grad.dtype == torch.bfloat16 and torch.equal(still, torch.ones_like(still))


def test_parts_of_the_weights_are_stepped_as_all_of_them_would_be():
    torch.manual_seed(0)
    weights, grads = [torch.randn(n) for n in (5, 9, 3)], [torch.randn(n) for n in (5, 9, 3)]
    whole = [torch.nn.Parameter(w.bfloat16().float()) for w in weights]
    parts = [torch.nn.Parameter(w.bfloat16()) for w in weights]
    a, b = torch.optim.AdamW(whole, lr=0.1), torch.optim.AdamW(parts, lr=0.1)
    for p, q, g in zip(whole, parts, grads):
        p.grad, q.grad = g.bfloat16().float(), g.bfloat16()
    a.step()
    rounded_step(b, torch.Generator().manual_seed(1), at_once=8)
    assert all(torch.allclose(p, q.float(), rtol=2**-7, atol=1e-3) for p, q in zip(whole, parts))
    assert all(b.state[q]["exp_avg_sq"].dtype == torch.bfloat16 for q in parts) and b.param_groups[0]["params"] == parts


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, rank", [((12, 40), 5), ((40, 12), 5), ((16, 6, 3, 3), 4), ((6, 4), 10)])
def test_the_lora_is_numpys_svd(shape, rank):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    found = as_lora([(("unet", "x"), delta), (("unet", "y"), torch.zeros(shape))], rank)
    assert list(found) == [("unet", "x")]
    up, down = found["unet", "x"]["lora_up.weight"], found["unet", "x"]["lora_down.weight"]
    u, s, v = np.linalg.svd(delta.flatten(1).double().numpy(), full_matrices=False)
    kept = min(rank, len(s))
    wanted = (u[:, :kept] * s[:kept]) @ v[:kept]
    assert np.allclose((up.flatten(1) @ down.flatten(1)).double().numpy(), wanted, atol=1e-8)
    assert down.shape == (kept, *shape[1:]) and float(found["unet", "x"]["alpha"]) == kept
    assert torch.allclose(up.flatten(1).norm(dim=0), down.flatten(1).norm(dim=1), rtol=1e-4)


def test_a_difference_of_low_rank_is_kept_whole():
    a = torch.randn(30, 2) @ torch.randn(2, 20)
    up, down = low_rank(a, 4)
    assert torch.isfinite(up).all() and torch.isfinite(down).all() and torch.allclose(up @ down, a, atol=1e-4)


ROUNDED = 1  # levels of 255: on CPUs without AVX-512 the same sums are taken in another order where a tensor lies elsewhere in memory


def picture(checkpoint: Path, values: dict, prompt: str = "a red thing") -> np.ndarray:
    host = Standalone(settings({**values, "checkpoint": str(checkpoint)}))
    return np.asarray(host.generate([GenerateRequest(prompt, width=64, height=64, steps=3, cfg=3.0)])[0]).astype(int)


def test_the_saved_checkpoint_is_the_source_with_the_trained_weights_and_draws_like_the_live_model(values):
    source, live = Path(values["checkpoint"]), []
    host = Standalone(settings(values))

    def look(event):
        if isinstance(event, Finished):
            live.append(np.asarray(host.generate([GenerateRequest("a red thing", width=64, height=64, steps=3, cfg=3.0)])[0]).astype(int))

    events = run({**values, "optim.lr": "1e-2"}, host, each=look)
    file = of(Finished, events)[0].files[0]
    before, after = load_file(source), load_file(file)
    assert before.keys() == after.keys() and all(before[key].shape == after[key].shape for key in before)
    moved = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"model"}  # VAE, text encoder and position ids are the source's
    taken, total = (int(word) for word in of(Saved, events)[0].report.split() if word.isdigit())
    assert taken == total == len(before) - 1  # the position ids are no weights
    assert np.abs(picture(file, values) - live[0]).max() <= ROUNDED and np.abs(picture(source, values) - live[0]).max() > 8


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_checkpoint_of_half_precision_keeps_noise_schedules_and_leaves_ema_copies_out(values, tmp_path, dtype):
    from safetensors.torch import save_file

    source = tmp_path / "source.safetensors"
    with safe_open(values["checkpoint"], "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(values["checkpoint"]), "alphas_cumprod": torch.rand(4), "model_ema.x": torch.ones(3)}, str(source), metadata)
    after = trained(run({**values, "checkpoint": str(source), "dreambooth.save_dtype": dtype, "steps": 1}))
    kinds = {key: tensor.dtype for key, tensor in after.items()}
    assert kinds.pop("alphas_cumprod") == torch.float32 and "model_ema.x" not in kinds
    assert {kind for kind in kinds.values() if kind.is_floating_point} == {{"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]}


def test_the_saved_lora_draws_nearly_what_the_checkpoint_draws(values):
    """At full rank, but for norms and biases, which a LoRA does not have."""
    values = {**values, "optim.lr": "1e-2", "steps": 2, "dreambooth.text_encoder": True, "dreambooth.save": "both", "dreambooth.lora_rank": 96}
    checkpoint, lora = of(Finished, run(values))[0].files
    assert lora.name == "thing-lora.safetensors"
    merged = Path(values["output"]).parent / "merged.safetensors"
    merge(Path(values["checkpoint"]), lora, merged)
    whole, base = picture(checkpoint, values), picture(values["checkpoint"], values)
    assert np.abs(base - whole).mean() > 2 and np.abs(picture(merged, values) - whole).mean() < 0.35 * np.abs(base - whole).mean()


def merge(source: Path, lora: Path, target: Path) -> None:
    """The LoRA added to the checkpoint by the contract suite's independent formulas."""
    from test_methods import merge_by_formula

    from lib_tuner.sd.files import save_checkpoint
    from lib_tuner.sd.model import load_model

    model = load_model(source)
    merge_by_formula(model, load_file(lora))
    with safe_open(source, "pt") as file:
        save_checkpoint(target, model.unet.state_dict(), model.vae.vae.state_dict(), model.text.transformer.state_dict(), file.metadata())


def test_the_yaml_says_what_the_webui_has_to_know(checkpoint_file, tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(checkpoint_file.read_bytes())
    assert write_yaml(target, source, "eps") is None and not target.with_suffix(".yaml").exists()
    assert 'parameterization: "v"' in write_yaml(target, source, "v").read_text()
    source.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n    mine: 1\n")
    assert write_yaml(target, source, "v").read_text() == source.with_suffix(".yaml").read_text()
    assert 'parameterization: "eps"' in write_yaml(target, source, "eps").read_text()


def test_pruning_takes_checkpoints_with_their_yaml_and_no_class_picture(values, tmp_path):
    folder = tmp_path / "class"
    Path(values["checkpoint"]).with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: eps\n")
    try:
        values = {**values, "save_every": 1, "steps": 2, "keep_last": 1, "data.class_folder": str(folder), "prior.pictures": 2, "prior.prompt": "a thing", "prior.steps": 1}
        made = of(Started, run(values))[0].folder
    finally:
        Path(values["checkpoint"]).with_suffix(".yaml").unlink()
    assert sorted(p.name for p in made.glob("thing*")) == ["thing.safetensors", "thing.yaml"]
    assert len(list(folder.glob("*.png"))) == 2


@pytest.mark.parametrize(("more", "sentence"), [
    ({"dreambooth.masters": "bf16", "optim.name": "prodigy"}, "optim.name: prodigy does not work with"),
    ({"dreambooth.text_encoder": True, "dreambooth.text_until": 1, "steps": 2, "dreambooth.blocks": "M00", "dreambooth.block_rates": "M00=0"}, "dreambooth.text_until: no block of the UNet"),
    ({"prior.weight": 1.0}, "prior: weight is 1, but there is no class prompt"),
    ({"prior.pictures": 3, "prior.prompt": "a cat"}, "data.class_folder is empty"),
])  # fmt: skip
def test_what_cannot_be_is_said(values, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        run({**values, **more})


def test_bf16_masters_are_refused_for_a_model_in_fp16(sd, values):
    method = METHODS["dreambooth"](settings({**values, "dreambooth.masters": "bf16"}))
    with pytest.raises(ValueError, match="computes in fp16; choose fp32"), method.attached(replace(sd, dtype=torch.float16)):
        pass


def test_numbers_that_are_none_bring_the_last_snapshot_back(values, monkeypatch):
    monkeypatch.setattr(METHODS["dreambooth"], "good_every", 2)
    good = trained(run({**values, "steps": 2, "output": values["output"] + "-good"}))
    before = Step.loss
    monkeypatch.setattr(Step, "loss", lambda self, batch: before(self, batch) * (float("nan") if batch.indices[0] >= 6 else 1))
    events = run(values)
    assert (of(Finished, events)[0].reason, of(Finished, events)[0].step) == ("nan", 2)
    after = trained(events)
    assert all(torch.equal(good[key], after[key]) for key in good)


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dreambooth", "lora"])
def test_the_prior_is_the_distance_to_the_frozen_models_prediction_for_the_class_prompt(values, sd, method):
    values = {**{k: v for k, v in values.items() if method == "dreambooth" or not k.startswith("dreambooth.")}, "method": method}
    values |= {"prior.weight": 0.5, "prior.prompt": "a dog", "data.latent": "deterministic", "optim.lr": "1e-2", f"{method}.text_encoder": True}
    losses, batches = {}, {}
    for weight in (0.5, 0.0):
        cfg = settings({**values, "prior.weight": weight})
        made = METHODS[method](cfg)
        with made.attached(sd) as groups:
            for i, p in enumerate(p for group in groups for p in group["params"]):
                p.requires_grad_(True).data.add_(torch.randn(p.shape, generator=generator_for(1, i, "test")) * 0.02)
            step = stepped(cfg, sd, made, groups)
            batch = batches[weight] = step.batches.at(0)
            losses[weight] = step.loss(batch)
            if weight:
                assert any(g.any() for g in torch.autograd.grad(losses[weight], [p for group in groups for p in group["params"]], allow_unused=True) if g is not None)
                moved = predictions(sd, batch, "a dog")
    kept = predictions(sd, batches[0.5], "a dog")  # detached: the frozen model
    wanted = losses[0.0] + 0.5 * ((moved - kept) ** 2).mean((1, 2, 3)).sum()
    assert torch.allclose(losses[0.5], wanted, rtol=1e-4) and losses[0.5].item() > losses[0.0].item()


def stepped(cfg, sd, method, groups) -> Step:
    from lib_tuner.data.batches import Batches
    from lib_tuner.optim import make_optimizer
    from lib_tuner.step import State

    return Step(cfg, sd, State(method, make_optimizer(cfg.optim, groups)), Batches(cfg.data, sd, cfg.seed))


@torch.no_grad()
def predictions(sd, batch, prompt: str) -> torch.Tensor:
    t = torch.stack([torch.rand((), generator=generator_for(0, i, "t")) for i in batch.indices]).mul(1000).long()
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator_for(0, i, "noise")) for i in batch.indices])
    a = Schedule.sd15().alphas_cumprod[t][:, None, None, None]
    return sd.unet(a.sqrt() * batch.latents + (1 - a).sqrt() * noise, t, sd.text([prompt] * len(t)))


def test_a_prior_makes_the_drift_smaller_and_both_are_reported(values):
    drifts = {}
    for weight in (0.0, 3.0):
        events = run({**values, "steps": 4, "prior.drift": "auto", "optim.lr": "5e-3", "prior.weight": weight, "prior.prompt": "a dog\na house", "output": f"{values['output']}-{weight}"})
        drifts[weight] = [(e.step, e.drift) for e in of(Drifted, events)]
    assert [step for step, _ in drifts[0.0]] == [0, 4] and drifts[0.0][0][1] < 1e-9
    assert 0 < drifts[3.0][1][1] < 0.7 * drifts[0.0][1][1]


def test_drift_is_measured_for_other_methods_where_it_is_asked_for(small_run):
    assert of(Drifted, run({**small_run, "steps": 2})) == []
    assert [e.step for e in of(Drifted, run({**small_run, "steps": 2, "prior.drift": "on"}))] == [0, 2]


# ---- class pictures --------------------------------------------------------------------------------------------------


@pytest.fixture
def drawing(small_run, tmp_path) -> dict:
    """A LoRA, since class pictures are for every method."""
    return {**small_run, "steps": 1, "data.class_folder": str(tmp_path / "class"), "prior.pictures": 5, "prior.batch": 2, "prior.steps": 1, "prior.prompt": "a cat\na dog"}


def counting(values: dict) -> tuple[Standalone, list[GenerateRequest]]:
    host, asked = Standalone(settings(values)), []
    draw, host.generate = host.generate, lambda requests: (asked.extend(requests), draw(requests))[1]
    return host, asked


def test_class_pictures_are_drawn_once_and_trained_on(drawing, tmp_path):
    host, asked = counting(drawing)
    events = run(drawing, host)
    names = [f"class-{i:05d}" for i in range(5)]
    assert sorted(p.stem for p in (tmp_path / "class").glob("*.png")) == names
    assert [(tmp_path / "class" / f"{name}.txt").read_text() for name in names] == ["a cat", "a dog", "a cat", "a dog", "a cat"]
    assert [(r.prompt, r.seed, r.width, r.plain) for r in asked] == [(("a cat", "a dog")[i % 2], 1000 + i, 64, True) for i in range(5)]
    assert [(e.done, e.total) for e in of(Preparing, events) if "class" in e.text and "Drawing" in e.text] == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert sum("class-" in e.text for e in of(Preparing, events) if e.text.startswith("Encoding")) == 5
    host, asked = counting(drawing)
    run(drawing, host)
    assert asked == []


def test_class_pictures_of_the_users_own_keep_their_captions_and_drawn_ones_their_prompts(drawing, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    for n in range(2):
        Image.new("RGB", (64, 64), "red").save(folder / f"class-0000{n}.jpg")
        (folder / f"class-0000{n}.txt").write_text("my own words")
    run({**drawing, "data.caption_from": "filename"})
    assert [(folder / f"class-0000{n}.txt").read_text() for n in range(5)] == ["my own words"] * 2 + ["a cat", "a dog", "a cat"]
    items, _ = scan(settings({**drawing, "data.caption_from": "none"}).data, folder, is_class=True)
    assert [item.caption for item in items] == ["my own words"] * 2 + ["a cat", "a dog", "a cat"]


def test_a_second_run_draws_only_what_is_missing_and_the_same_pictures(drawing, tmp_path):
    def stop(event):
        stopped.append(isinstance(event, Preparing) and event.done == 2 and "class" in event.text)

    stopped: list[bool] = []
    cfg = settings(drawing)
    with closing(train(cfg, METHODS["lora"](cfg), Standalone(cfg), lambda: any(stopped))) as going:
        for event in going:
            stop(event)
    assert (event.reason, event.step) == ("stopped", 0) and len(list((tmp_path / "class").glob("*.png"))) == 2 and not (tmp_path / "out").exists()
    first = (tmp_path / "class" / "class-00001.png").read_bytes()
    (tmp_path / "class" / "class-00000.png").unlink()
    (tmp_path / "class" / "mine.png").write_bytes(first)
    host, asked = counting(drawing)
    run(drawing, host)
    assert [r.seed for r in asked] == [1000, 1002, 1003]  # two were there: one of them somebody's own
    assert (tmp_path / "class" / "class-00001.png").read_bytes() == first


def test_nothing_is_drawn_where_there_is_nothing_to_train_on(drawing):
    host, asked = counting(drawing)
    with pytest.raises(ValueError, match="data.folder"):
        run({**drawing, "data.folder": drawing["data.folder"] + "-nowhere"}, host)
    assert asked == [] and class_pictures.missing(settings(drawing)) == [0, 1, 2, 3, 4]


def test_class_pictures_are_the_untouched_models(drawing, tmp_path):
    """Also where the method starts from something that changes the model."""
    run(drawing)
    request = GenerateRequest("a cat", width=64, height=64, steps=1, cfg=7.0, seed=1000)
    from PIL import Image

    again, kept = (np.asarray(shown).astype(int) for shown in (Standalone(settings(drawing)).generate([request])[0], Image.open(tmp_path / "class" / "class-00000.png")))
    assert np.abs(again - kept).max() <= ROUNDED
