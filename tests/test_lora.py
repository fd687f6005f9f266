"""LoRA's own settings: each changes the run as its formula says."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lib_tuner.config import METADATA_KEY, build
from lib_tuner.data.batches import Batches
from lib_tuner.events import Started, Stepped
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import settings
from lib_tuner.methods.adapters import OUTER
from lib_tuner.methods.lora import LoRA, LoRAConfig
from lib_tuner.methods.lora_file import read_lora
from lib_tuner.methods.metadata import Made
from lib_tuner.optim import EMA, make_optimizer
from lib_tuner.sd.names import block_name
from lib_tuner.settings import TrainConfig
from lib_tuner.step import State, Step
from lib_tuner.train import train

MADE = Made(step=1, epoch=0, started=0.0, finished=1.0)


def lora(**own) -> LoRA:
    top = {k.replace("__", "."): v for k, v in own.items() if "__" in k}
    return LoRA(build(TrainConfig, {**{f"lora.{k}": v for k, v in own.items() if "__" not in k}, **top}, LoRAConfig))


def targets(sd, **own) -> set[tuple[str, str]]:
    method = lora(rank=2, **own)
    with method.attached(sd):
        return set(method.layers)


def test_the_default_targets_are_kohyas_192_modules_of_the_unet(sd):
    assert len(targets(sd)) == 192 and {part for part, _ in targets(sd)} == {"unet"}


def test_each_kind_of_module_can_be_left_out(sd):
    assert {p.split(".")[-1] for _, p in targets(sd, feed_forward=False, projections=False)} == {"to_q", "to_k", "to_v", "0"}
    assert all(".ff." in p for _, p in targets(sd, attention=False, projections=False))
    assert {p.split(".")[-1] for _, p in targets(sd, attention=False, feed_forward=False)} == {"proj_in", "proj_out"}


def test_convolutions_and_text_encoder_come_with_their_settings(sd):
    with_conv = targets(sd, conv_rank=2) - targets(sd)
    assert len(with_conv) == 86 and ("unet", "input_blocks.3.0.op") in with_conv and ("unet", "input_blocks.0.0") not in with_conv
    assert len(targets(sd, text_encoder=True) - targets(sd)) == 6 * 2


def test_convolutions_have_their_own_rank_and_alpha(sd):
    method = lora(rank=2, alpha=4, conv_rank=3, conv_alpha=6)
    with method.attached(sd):
        sizes = {path: (layer.rank, layer.alpha) for (_, path), layer in method.layers.items()}
        layer = method.layers["unet", "input_blocks.1.0.in_layers.2"]
        torch.nn.init.normal_(layer.up)
        x = torch.randn(1, layer.down.shape[1], 4, 4)
        change = torch.nn.functional.conv2d(x, torch.einsum("or,rikl->oikl", layer.up[..., 0, 0], layer.down) * 6 / 3, padding=1)
        torch.testing.assert_close(layer(x), change, rtol=1e-4, atol=1e-5)
    assert sizes["input_blocks.1.1.proj_in"] == (2, 4) and sizes["input_blocks.1.0.in_layers.2"] == (3, 6)
    assert sizes["input_blocks.1.0.emb_layers.1"] == (3, 6)


def test_blocks_choose_and_ranks_of_blocks_differ(sd):
    assert {block_name(p) for _, p in targets(sd, blocks="IN04, m00")} == {"IN04", "M00"}
    method = lora(rank=2, block_ranks="M00=5, BASE=3", text_encoder=True)
    with method.attached(sd):
        ranks = {(part, block_name(path) == "M00"): layer.rank for (part, path), layer in method.layers.items()}
    assert ranks == {("unet", False): 2, ("unet", True): 5, ("text", False): 3}


@pytest.mark.parametrize(("key", "value", "sentence"), [("blocks", "IN99", "IN99"), ("block_ranks", "M00=x", "M00=x"), ("rank", 0, "outside")])
def test_wrong_blocks_and_ranks_are_named(key, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        lora(**{key: value})


def test_alpha_over_rank_scales_the_change(sd):
    changes = []
    for alpha in (4, 1):
        method = lora(rank=4, alpha=alpha)
        with method.attached(sd):
            layer = method.layers["unet", "middle_block.1.proj_in"]
            layer.up.data.fill_(0.5)
            changes.append(layer.delta_weight())
            assert torch.allclose(changes[-1].flatten(1), layer.up.detach().flatten(1) @ layer.down.detach().flatten(1) * alpha / 4)
    assert torch.allclose(changes[0], 4 * changes[1])


def test_learning_rates_of_text_encoder_and_up_matrices(sd):
    method = lora(rank=2, text_encoder=True, up_lr_ratio=16, optim__lr="2e-4", optim__text_lr=1e-4)
    with method.attached(sd) as groups:
        assert [group["lr_scale"] for group in groups] == [1.0, 16.0, 0.5, 8.0]
        assert {p.ndim for p in groups[0]["params"]} == {2, 4} and len(groups[2]["params"]) == 12


def batch(*indices: int) -> SimpleNamespace:
    return SimpleNamespace(indices=indices)


def dropped(sd, **own):
    """A layer whose adapter gives ones where nothing is dropped: down takes the first input, up adds it to each output."""
    method = lora(rank=4, alpha=4, **own)
    context = method.attached(sd)
    context.__enter__()
    layer = method.layers["unet", "middle_block.1.transformer_blocks.0.attn2.to_k"]
    layer.down.data.zero_()[:, 0] = 1
    layer.up.data.fill_(0.25)
    return method, layer, context


@pytest.mark.parametrize("kind", ["dropout", "rank_dropout", "module_dropout"])
def test_dropouts_work_in_training_alone_and_keep_the_mean(sd, kind):
    method, layer, context = dropped(sd, **{kind: 0.5})
    x = torch.ones(200, 3, 48)
    method.begin(batch(*range(200)))
    out = layer(x)[:, :, 0]
    values = {round(v, 3) for v in out.flatten().tolist()}
    method.train(False)
    assert torch.equal(layer(x), torch.ones_like(layer(x)))
    if kind == "module_dropout":  # kohya's does not scale up what stays
        assert values == {0.0, 1.0} and abs(float(out.mean()) - 0.5) < 0.1 and torch.equal(out[:, 0], out[:, 1])
    else:
        assert values == {0.0, 0.5, 1.0, 1.5, 2.0} and abs(float(out.mean()) - 1) < 0.15
        assert torch.equal(out[:, 0], out[:, 1]) == (kind == "rank_dropout")
    context.__exit__(None, None, None)


def test_a_samples_dropout_does_not_depend_on_its_batch(sd):
    method, layer, context = dropped(sd, dropout=0.5, rank_dropout=0.3)
    x = torch.ones(1, 3, 48)
    method.begin(batch(7))
    alone = layer(x)
    method.begin(batch(3, 7, 9))
    assert torch.equal(layer(x.expand(3, -1, -1))[1:2], alone)
    context.__exit__(None, None, None)


def test_max_norm_shortens_a_change_to_the_limit(sd):
    method = lora(rank=2, max_norm=0.5)
    with method.attached(sd):
        for layer in method.layers.values():
            layer.up.data.normal_()
        small = method.layers["unet", "middle_block.1.proj_in"]
        small.up.data.mul_(1e-3)
        before = small.delta_weight()
        method.after_step(1)
        norms = [float(layer.delta_weight().norm()) for layer in method.layers.values()]
        assert max(norms) == pytest.approx(0.5, rel=1e-4) and torch.equal(small.delta_weight(), before)


def test_an_average_is_held_to_the_limit_of_norms_and_the_weights_come_back(sd):
    method = lora(rank=2, max_norm=0.5, blocks="M00")
    with method.attached(sd) as groups:
        params = [p for group in groups for p in group["params"]]
        ema, before = EMA(params, 0.9), [p.detach().clone() for p in params]
        for average in ema.average:
            average.add_(1.0)
        with ema.swapped():
            method.follow()
            assert {round(layer.delta_weight().norm().item(), 4) for layer in method.layers.values()} == {0.5}
        assert all(map(torch.equal, params, before))
        for p in params:
            p.data.add_(1.0)
        before = [p.detach().clone() for p in params]
        method.follow()
        assert all(map(torch.equal, params, before))  # which are no averages: their turn is after a step


@pytest.mark.parametrize("average", [{}, {"optim.ema": 0.9}, {"optim.name": "adamw_schedulefree"}], ids=["plain", "ema", "schedule-free"])
def test_what_is_saved_holds_the_limit_of_norms_and_training_goes_on_as_if_nothing_was_saved(small_run, average):
    """The limit holds for the weights as they are trained; a mean of factors may make a longer change."""
    if average.get("optim.name"):
        pytest.importorskip("schedulefree")
    values = {**small_run, "lora.max_norm": 0.01, "lora.save_dtype": "fp32", "lora.blocks": "M00", "optim.lr": "0.1", "steps": 16, **average}

    def run(stop_after: int = 0, **more) -> tuple[Path, dict[str, torch.Tensor]]:
        cfg, done = settings({**values, **more}), []
        with closing(train(cfg, LoRA(cfg), Standalone(cfg), stop=lambda: len(done) == stop_after > 0)) as events:
            for event in events:
                done += [event] * isinstance(event, Stepped)
                if isinstance(event, Started):
                    folder = event.folder
        modules = read_lora(event.files[0]).modules
        norms = [(t["lora_up.weight"].flatten(1) @ t["lora_down.weight"].flatten(1) * t["alpha"] / len(t["lora_down.weight"])).norm() for t in modules.values()]
        assert max(norms) < 0.010001
        return folder, {f"{target} {name}": tensor for target, parts in modules.items() for name, tensor in parts.items()}

    whole, unseen = run(save_every=4)[1], run(save_every=0)[1]
    again = run(resume=str(run(stop_after=7)[0]))[1]
    assert all(torch.equal(whole[key], unseen[key]) and torch.equal(whole[key], again[key]) for key in whole)


def test_a_run_can_start_from_a_saved_lora_with_its_ranks(sd, tmp_path):
    method = lora(rank=3, alpha=6, blocks="M00")
    with method.attached(sd):
        for layer in method.layers.values():
            layer.up.data.normal_()
        file = method.export(tmp_path / "first", {}, MADE)[0]
        deltas = {target: layer.delta_weight().detach() for target, layer in method.layers.items()}
    again = lora(rank=16, start=str(file))
    with again.attached(sd):
        assert again.layers.keys() == deltas.keys()
        assert all(torch.allclose(layer.delta_weight(), deltas[t], rtol=5e-3, atol=1e-3) and layer.rank == 3 for t, layer in again.layers.items())
        said = read_lora(again.export(tmp_path / "second", {}, MADE)[0]).metadata
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("3", "6.0") and '"lora.rank": 16' in said[METADATA_KEY]  # the file's own, and what the settings were


def test_a_dora_does_not_start_from_a_file_that_is_none(sd, tmp_path):
    with pytest.raises(ValueError, match="start.safetensors in start is no DoRA") as caught:
        lora(start=made(tmp_path), dora=True).attached(sd).__enter__()
    assert "\n" not in str(caught.value)


def test_a_start_in_the_home_folder_is_found(sd, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made(tmp_path)
    with lora(start="~/start.safetensors").attached(sd):
        pass


def test_a_lora_for_another_width_is_refused_by_name(sd, tmp_path):
    from lib_tuner.methods.lora_file import write_lora

    parts = {"lora_down.weight": torch.zeros(2, 999, 1, 1), "lora_up.weight": torch.zeros(999, 2, 1, 1), "alpha": torch.tensor(2.0)}
    file = write_lora(tmp_path / "wide.safetensors", {("unet", "middle_block.1.proj_in"): parts}, {})
    with pytest.raises(ValueError, match="999") as caught, lora(start=str(file)).attached(sd):
        pass
    assert "\n" not in str(caught.value) and not any(m._forward_hooks for m in sd.unet.modules())


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_saved_precision_is_the_one_asked_for(sd, tmp_path, name, dtype):
    method = lora(rank=2, blocks="M00", save_dtype=name)
    with method.attached(sd):
        file = read_lora(method.export(tmp_path / "x", {}, MADE)[0])
    assert {t.dtype for parts in file.modules.values() for k, t in parts.items() if k != "alpha"} == {dtype}


def made(folder, change=lambda tensors: tensors, text=False, seed=0):
    """A LoRA file to start from, of one module of the small model or two."""
    parts = {"lora_unet_mid_block_attentions_0_proj_in": 96, **({"lora_te_text_model_encoder_layers_0_self_attn_q_proj": 48} if text else {})}
    tensors, random = {}, torch.Generator().manual_seed(seed)
    for name, width in parts.items():
        tail = (1, 1) if "proj_in" in name else ()
        tensors |= {f"{name}.lora_down.weight": torch.randn(3, width, *tail, generator=random), f"{name}.lora_up.weight": torch.randn(width, 3, *tail, generator=random)}
    path = folder / "start.safetensors"
    save_file(change(tensors), path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {k.replace("lora_down.weight", f"hada_w{i}_b").replace("lora_up.weight", f"hada_w{i}_a"): v.flatten(1).clone() for k, v in t.items() for i in (1, 2)}, "is no LoRA"),
        (lambda t: t | {next(iter(t)).split(".")[0] + ".dora_scale": torch.ones(96, 1)}, "length per output channel"),
        (lambda t: {k: v[:2].contiguous() if "down" in k else v for k, v in t.items()}, "is damaged: middle_block.1.proj_in has factors that do not fit each other"),
        (lambda t: {k: v.flatten() for k, v in t.items()}, "is damaged"),
    ],
    ids=["LoHa", "DoRA", "other ranks", "flat"],
)
def test_a_start_that_is_no_plain_lora_is_one_sentence(sd, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        lora(start=made(tmp_path, change)).attached(sd).__enter__()


def test_the_text_encoder_of_a_start_is_trained_where_the_settings_say_so_and_kept_either_way(sd, tmp_path):
    for text in (False, True):
        method = lora(start=made(tmp_path, text=True), text_encoder=text)
        with method.attached(sd) as groups:
            layer = next(layer for (part, _), layer in method.layers.items() if part == "text")
            assert method.trains_text is text and any(p is layer.up for group in groups for p in group["params"]) is text
            assert layer.up.requires_grad is text and layer.up.any() and len(method.layers) == 2
            file = read_lora(method.export(tmp_path / "again", {}, MADE)[0])
        assert len(file.modules) == 2 and file.metadata["ss_text_encoder_lr"] == ("1e-4" if text else "None")
    with pytest.raises(ValueError, match="no layer of the text encoder"):
        lora(start=made(tmp_path), text_encoder=True).attached(sd).__enter__()


def test_kinds_that_are_switched_off_stay_as_the_start_has_them(sd, tmp_path):
    with (first := lora(rank=2, blocks="M00", outer=True, conv_rank=2)).attached(sd):
        for layer in first.layers.values():
            layer.up.data.normal_()
        file, all_of_them = str(first.export(tmp_path / "first", {}, MADE)[0]), first.layers.keys()

    def learns(**own) -> set[tuple[str, str]]:
        method = lora(start=file, **own)
        with method.attached(sd) as groups:
            assert method.layers.keys() == all_of_them
            trained = {id(p) for group in groups for p in group["params"]}
            return {target for target, layer in method.layers.items() if {id(p) for p in layer.parameters()} <= trained}

    whole = learns(outer=True)
    assert whole == all_of_them and whole - learns() == {("unet", path) for path in OUTER}
    for switch, kind in (("attention", ".attn"), ("feed_forward", ".ff."), ("projections", ".proj_")):
        assert whole - learns(outer=True, **{switch: False}) == {target for target in whole if kind in target[1]} != set(), switch


@pytest.mark.parametrize("more", [{}, {"module_dropout": 0.2, "dropout": 0.5}, {"prior__weight": 1.0, "prior__prompt": "a thing"}], ids=["plain", "dropouts", "prior"])
def test_text_states_under_layers_that_stay_are_what_they_were_uncached(sd, tmp_path, data_folder, more):
    """The cache has them with the file's layers, the frozen prior without."""
    small = {"data__folder": str(data_folder), "data__resolution": 64, "data__bucket_min": 64, "data__bucket_step": 8, "data__batch": 2}

    def gradients(cached: bool) -> list[torch.Tensor]:
        method = lora(start=made(tmp_path, text=True, seed=1), **small, **more)
        with method.attached(sd) as groups:
            assert not method.trains_text
            method.trains_text = method.trains_text if cached else True
            step = Step(method.cfg, sd, State(method, make_optimizer(method.cfg.optim, groups)), Batches(method.cfg.data, sd, 0))
            method.train()
            for number in range(3):
                step._backward(number)
            return [p.grad.clone() for p in step.params]

    plain = gradients(True)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(plain, gradients(False), strict=True)) and all(g.any() for g in plain)
