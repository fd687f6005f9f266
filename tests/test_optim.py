"""Learning-rate syntax and schedules, optimizers by name, exact resume, averages of the weights."""

from __future__ import annotations

import copy
import importlib
import math
from types import SimpleNamespace

import pytest
import torch

from lib_tuner.optim import EMA, OPTIMIZERS, _has_fused, lr_at, lr_ended, make_optimizer, parse_betas, parse_lr, set_lr, weights_for_eval

PACKAGES = {"adamw8bit": "bitsandbytes", "lion": "lion_pytorch", "adafactor": "transformers", "prodigy": "prodigyopt", "adamw_schedulefree": "schedulefree"}
DEFAULTS = {"name": "adamw", "lr": "1e-2", "schedule": "constant", "warmup": 0, "cycles": 1, "power": 1.0, "floor": 0.0, "weight_decay": 0.01,
            "betas": "0.9, 0.999", "eps": 1e-8}


def cfg(**changes):
    return SimpleNamespace(**{**DEFAULTS, **changes})


def weights(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in ((64, 80), (5,))]  # the first is large enough for 8-bit states


def step(optimizer, params, i):
    """One step on gradients that are a function of i alone."""
    g = torch.Generator().manual_seed(100 + i)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)
    optimizer.step()


def made(name, params, **changes):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    return make_optimizer(cfg(name=name, **changes), [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}])


# the syntax


@pytest.mark.parametrize(("text", "entries"), [
    ("1e-4", [(1e-4, None)]),
    ("0.05:10, 0.02:20, 0.01:60, 0.005", [(0.05, 10), (0.02, 20), (0.01, 60), (0.005, None)]),
    ("0.05:10,0.02:20", [(0.05, 10), (0.02, 20)]),
    ("0.05:10, 0.005:-1", [(0.05, 10), (0.005, None)]),
    ("0:5, 1e-3", [(0.0, 5), (1e-3, None)]),
    ("0.005:200, 0.001:1000,", [(0.005, 200), (0.001, 1000)]),
    ("1e-4, ", [(1e-4, None)]),
])
def test_a1111s_step_syntax_is_read(text, entries):
    assert parse_lr(text) == entries


@pytest.mark.parametrize(("text", "message"), [
    ("fast", "'fast' in 'fast' is not a rate or rate:step"),
    (" , ", "'' in ' , ' is not a rate"),
    ("", "'' in '' is not a rate"),
    ("0.05:ten", "'0.05:ten' in"),
    ("-1", "-1 in '-1' is not a rate; it must be a number from 0 up"),
    ("nan", "nan in 'nan' is not a rate"),
    ("0.05:0", "step 0 in '0.05:0' must be 1 or more"),
    ("0.05:20, 0.02:10", "step 10 does not come after 20"),
    ("0.05, 0.02:10", "'0.02:10' is never reached"),
    ("0", "learns nothing"),
])
def test_a_wrong_rate_is_said(text, message):
    with pytest.raises(ValueError, match="^optim.lr: .*" + message):
        parse_lr(text)


def test_a_rate_holds_below_its_step_and_the_list_ends_the_run():
    c = cfg(lr="0.05:10, 0.02:20", schedule="cosine")
    assert [lr_at(c, s, 1000) for s in (0, 9, 10, 19, 20)] == [0.05, 0.05, 0.02, 0.02, 0.02]
    assert [lr_ended(c, s) for s in (0, 19, 20, 21)] == [False, False, True, True]
    assert not lr_ended(cfg(lr="0.05:10, 0.02"), 10**6) and not lr_ended(cfg(lr="0.05:10, 0.02:-1"), 10**6)
    assert lr_at(cfg(lr="0.05:10, 0.02", warmup=4), 1, 100) == pytest.approx(0.05 / 4)


# the schedules


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(("name", "theirs", "changes"), [
    ("constant", "constant_with_warmup", {}),
    ("linear", "linear", {}),
    ("cosine", "cosine", {}),
    ("restarts", "cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", "polynomial", {"power": 2.5}),
])
def test_schedules_are_diffusers(name, theirs, changes, warmup):
    optimization = pytest.importorskip("diffusers.optimization")
    optimizer = torch.optim.SGD(weights(), lr=0.3)
    scheduler = optimization.get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=50, **changes)
    c = cfg(lr="0.3", schedule=name, warmup=warmup, cycles=changes.get("num_cycles", 1), power=changes.get("power", 1.0))
    for s in range(51):
        assert lr_at(c, s, 50) == pytest.approx(scheduler.get_last_lr()[0], abs=2e-7)  # their polynomial ends at 1e-7
        optimizer.step()
        scheduler.step()


def test_rex_follows_its_paper():
    c = cfg(lr="1", schedule="rex")
    assert [lr_at(c, s, 4) for s in range(5)] == pytest.approx([1, 0.75 / 0.875, 0.5 / 0.75, 0.25 / 0.625, 0])
    assert lr_at(cfg(lr="1", schedule="rex", warmup=2), 4, 6) == pytest.approx(0.5 / 0.75)


@pytest.mark.parametrize("name", ["linear", "cosine", "restarts", "polynomial", "rex"])
def test_the_floor_is_where_a_schedule_ends(name):
    c = cfg(lr="0.2", schedule=name, floor=0.1)
    assert lr_at(c, 0, 10) == pytest.approx(0.2) and lr_at(c, 10, 10) == pytest.approx(0.02) == lr_at(c, 99, 10)
    middle = lr_at(cfg(lr="0.2", schedule=name), 5, 10)
    assert lr_at(c, 5, 10) == pytest.approx(0.02 + 0.9 * middle)


def test_lr_scale_multiplies_and_a_tensor_rate_is_filled_in_place():
    params = weights()
    optimizer = make_optimizer(cfg(lr="0.5"), [{"params": params[:1]}, {"params": params[1:], "lr_scale": 0.1}])
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.05]
    optimizer.param_groups[0]["lr"] = rate = torch.tensor(0.0)
    set_lr(optimizer, 0.2)
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == pytest.approx(0.2)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.02)


# the optimizers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_moves_the_weights_and_no_rate_moves_nothing(name):
    params = weights()
    before = [p.detach().clone() for p in params]
    optimizer = made(name, params)
    set_lr(optimizer, 0.0)
    step(optimizer, params, 0)
    assert all(torch.equal(p, b) for p, b in zip(params, before))
    set_lr(optimizer, 0.01)
    for i in range(1, 4):
        step(optimizer, params, i)
    assert all(torch.isfinite(p).all() and not torch.equal(p, b) for p, b in zip(params, before))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_takes_the_same_steps_bit_for_bit(name):
    params = weights()
    optimizer = made(name, params)
    for i in range(3):
        step(optimizer, params, i)
    saved, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    for i in range(3, 6):
        step(optimizer, params, i)

    others = weights(seed=1)
    with torch.no_grad():
        for p, value in zip(others, values):
            p.copy_(value)
    resumed = made(name, others)
    resumed.load_state_dict(saved)
    for i in range(3, 6):
        step(resumed, others, i)
    assert all(torch.equal(p, q) for p, q in zip(params, others))


def test_adamw_is_the_formula_with_betas_and_decay_of_the_settings():
    params = weights()
    p0, (g,) = params[0].detach().clone(), [torch.full((64, 80), 2.0)]
    optimizer = make_optimizer(cfg(lr="0.1", weight_decay=0.5, betas="0.5, 0.75", eps=1.0), [{"params": params[:1]}])
    params[0].grad = g
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), p0 * (1 - 0.1 * 0.5) - 0.1 * 2 / (2 + 1))  # both averages are corrected to g
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_groups_own_weight_decay_wins(name):
    assert [g["weight_decay"] for g in made(name, weights(), weight_decay=0.3).param_groups] == [0.3, 0.0]


def test_adamw_is_fused_only_where_torch_can(monkeypatch):
    assert made("adamw", weights()).param_groups[0]["fused"] is (_has_fused([{"params": weights()}]) or None)
    for version, fused in (("2.1.2+cu121", False), ("2.3.1", False), ("2.4.0+cpu", True), ("2.13.0", True)):
        monkeypatch.setattr(torch, "__version__", version)
        assert _has_fused([{"params": weights()}]) is fused
    assert not _has_fused([{"params": [torch.zeros(1, dtype=torch.complex64)]}])


def test_lion_takes_the_sign_of_its_average():
    pytest.importorskip("lion_pytorch")
    params = weights()
    p0 = params[0].detach().clone()
    optimizer = made("lion", params, weight_decay=0.0)
    step(optimizer, params, 0)
    torch.testing.assert_close(params[0].detach(), p0 - 0.01 * params[0].grad.sign())


def test_adafactor_uses_the_rate_as_it_is():
    pytest.importorskip("transformers")
    params = [torch.nn.Parameter(torch.zeros(8, 6))]
    optimizer = make_optimizer(cfg(name="adafactor", lr="0.01"), [{"params": params}])
    step(optimizer, params, 0)
    assert 0.005 < params[0].detach().square().mean().sqrt() <= 0.0101  # zero weights move by the rate: no relative step, no scale


@pytest.mark.parametrize(("name", "package"), [("lion", "lion-pytorch"), ("prodigy", "prodigyopt"), ("adamw8bit", "bitsandbytes"),
                                               ("adamw_schedulefree", "schedulefree"), ("adafactor", "transformers")])
def test_a_missing_package_is_named_with_its_install_command(name, package, monkeypatch):
    def missing(module):
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=f"^optim.name: {name} needs a package .*run `pip install {package}`"):
        make_optimizer(cfg(name=name), [{"params": weights()}])


def test_prodigy_refuses_different_rates_because_it_would_fail_at_the_first_step():
    params = weights()
    with pytest.raises(ValueError, match="prodigy finds one learning rate"):
        make_optimizer(cfg(name="prodigy"), [{"params": params[:1]}, {"params": params[1:], "lr_scale": 0.5}])


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "sgd"}, "optim.name: 'sgd' is not known; use one of adamw, adamw8bit"),
    ({"betas": "0.9"}, "optim.betas: '0.9' is not two numbers"),
    ({"betas": "0.9, 1.5"}, "must lie in"),
])
def test_wrong_settings_are_said(changes, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(cfg(**changes), [{"params": weights()}])


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer(cfg(), [{"params": []}])


def test_betas_are_read():
    assert parse_betas("0.9,0.99") == (0.9, 0.99)


# averages


def test_ema_follows_its_formula_with_warm_up():
    p = torch.nn.Parameter(torch.tensor([0.0]))
    ema = EMA([p], 0.25)
    p.data.fill_(1.0)
    ema.update()  # decay 2/11
    p.data.fill_(3.0)
    ema.update()  # decay min(0.25, 3/12)
    expected = 0.25 * (1 - 2 / 11) + 0.75 * 3
    with ema.swapped():
        assert p.item() == pytest.approx(expected)
    assert p.item() == 3.0


def test_ema_is_swapped_in_place_and_exactly_back_also_after_an_error():
    p = torch.nn.Parameter(torch.tensor([1 / 3], dtype=torch.bfloat16))
    before, address = p.detach().clone(), p.data_ptr()
    ema = EMA([p], 0.9)
    with pytest.raises(RuntimeError), ema.swapped():
        p.data.fill_(math.nan)
        raise RuntimeError
    assert torch.equal(p, before) and p.data_ptr() == address


def test_ema_goes_on_where_it_was_saved():
    p = torch.nn.Parameter(torch.tensor([0.0]))
    ema = EMA([p], 0.99)
    p.data.fill_(1.0)
    ema.update()
    saved = ema.state_dict()
    resumed = EMA([p], 0.99)
    resumed.load_state_dict(saved)
    p.data.fill_(2.0)
    ema.update()
    resumed.update()
    assert torch.equal(ema.average[0], resumed.average[0]) and not torch.equal(saved["average"][0], ema.average[0])
    with pytest.raises(ValueError, match="The saved EMA belongs to other weights"):
        EMA([torch.zeros(2)], 0.99).load_state_dict(saved)


def test_schedulefree_is_sampled_at_its_average_and_trains_on_exactly_where_it_was():
    params = weights()
    optimizer = made("adamw_schedulefree", params)
    for i in range(5):
        step(optimizer, params, i)
    before = [p.detach().clone() for p in params]
    z, beta1 = optimizer.state[params[0]]["z"], 0.9
    with weights_for_eval(optimizer):
        torch.testing.assert_close(params[0].detach(), (before[0] - (1 - beta1) * z) / beta1)  # y = (1-β) z + β x
        assert not torch.equal(params[0], before[0])
    assert all(torch.equal(p, b) for p, b in zip(params, before))
    step(optimizer, params, 5)  # refused by schedulefree if it were not in train mode


def test_other_optimizers_are_sampled_as_they_are_or_at_their_ema():
    params = weights()
    optimizer = made("adamw", params)
    ema = EMA(params, 0.5)
    start = params[0].detach().clone()
    step(optimizer, params, 0)
    trained = params[0].detach().clone()
    with weights_for_eval(optimizer):
        assert torch.equal(params[0], trained)
    with weights_for_eval(optimizer, ema):
        assert torch.equal(params[0], start)
    assert torch.equal(params[0], trained)
