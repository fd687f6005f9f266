"""Convolutions in tiles: torch's own results and gradients, nothing but what is meant is touched, and the plan counts what they take."""

from dataclasses import replace

import pytest
import torch
from test_products import check_against_torch, conv
from torch import nn
from torch.nn import functional as F

from lib_tuner.config import build
from lib_tuner.hosts import plan
from lib_tuner.methods import METHODS
from lib_tuner.sd import products
from lib_tuner.sd.products import WIDE, convolutions_as_products, fits, tiles_bytes
from lib_tuner.sd.unet import UNet
from lib_tuner.sd.winograd import Convolve3InTiles, transformed
from lib_tuner.settings import TrainConfig

pytestmark = pytest.mark.webui_versions


@pytest.fixture
def taken(monkeypatch):
    """Shapes of what is convolved in tiles, from 8 x 8 pixels and 6 x 10 channels on."""
    monkeypatch.setattr(products, "WIDE", 6 * 10)
    monkeypatch.setattr(products, "MANY_PIXELS", 64)
    shapes, apply = [], Convolve3InTiles.apply
    monkeypatch.setattr(Convolve3InTiles, "apply", lambda *args: (shapes.append(tuple(args[0].shape)), apply(*args))[1])
    return shapes


@pytest.mark.parametrize("batch, h, w", [(1, 4, 4), (2, 8, 4), (3, 12, 20)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_and_gradients_are_torchs(batch, h, w, bias, layout):
    check_against_torch(lambda x, module: Convolve3InTiles.apply(x, transformed(module.weight), module.bias), conv(bias=bias), batch, h, w, layout)


def test_fp32_is_near_enough_to_the_truth():
    module, x = conv(128, 96), torch.randn(1, 128, 32, 32).requires_grad_()
    g = torch.randn(1, 96, 32, 32)
    y = Convolve3InTiles.apply(x, transformed(module.weight), module.bias)
    found = y.detach(), torch.autograd.grad(y, x, g)[0]
    truth = F.conv2d(x.double(), module.weight.double(), module.bias.double(), padding=1)
    truth = truth.detach(), torch.autograd.grad(F.conv2d(x.double(), module.weight.double(), padding=1), x, g.double())[0]
    for ours, exact in zip(found, truth):
        assert float((ours - exact).norm() / exact.norm()) < 5e-6


def test_only_frozen_fp32_over_many_pixels_in_whole_tiles_is_taken_and_all_is_put_back(taken):
    net, many = nn.Sequential(conv(), conv(10, 6)), torch.randn(1, 6, 8, 8)
    with convolutions_as_products(net, True):
        net(many)
        assert taken == [(1, 6, 8, 8), (1, 10, 8, 8)]
        for other in (torch.randn(1, 6, 4, 12), torch.randn(1, 6, 9, 8), torch.randn(1, 6, 8, 10)):  # too few pixels, no whole tiles
            net(other)
        net[0].weight.requires_grad_()
        net(many).sum().backward()
        assert len(taken) == 3 and net[0].weight.grad.abs().sum() > 0
        net.requires_grad_(False).bfloat16()(many.bfloat16())
        assert len(taken) == 3
    assert not any("forward" in vars(module) for module in net)
    with convolutions_as_products(net.float(), False):
        net(many)
    assert len(taken) == 3


def test_a_weight_that_changed_is_transformed_anew(taken):
    module, x = conv(), torch.randn(1, 6, 8, 8)
    with convolutions_as_products(module, True):
        for change in (lambda: None, lambda: module.weight.mul_(2), lambda: setattr(module.weight, "data", torch.randn(10, 6, 3, 3))):
            change()
            torch.testing.assert_close(module(x), F.conv2d(x, module.weight, module.bias, padding=1), rtol=1e-4, atol=1e-5)
    assert len(taken) == 3


def test_autocast_does_not_round_between_the_transforms(taken):
    module, x = conv(), torch.randn(1, 6, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), convolutions_as_products(module, True):
        ours = module(x)
    torch.testing.assert_close(ours.float(), F.conv2d(x, module.weight, module.bias, padding=1), rtol=1e-4, atol=1e-5)
    assert taken


@pytest.mark.parametrize("side", [32, 64, 128])
def test_the_memory_is_that_of_the_convolutions_of_an_sd15_unet(side):
    with torch.device("meta"):
        unet, given = UNet(), (torch.zeros(1, 4, side, side), torch.zeros(1), torch.zeros(1, 77, 768))
    found = []
    for module in unet.modules():
        if fits(module, WIDE):
            module.register_forward_hook(lambda module, args, y: found.append(4 * transformed(module.weight).numel()) if y[0, 0].numel() >= 1024 else None)
    unet(*given)
    assert sum(found) == tiles_bytes(side**2) > 0


def test_the_plan_takes_them_where_the_machine_has_memory_for_it(monkeypatch, tmp_path):
    def planned(has, method="lora", **memory):
        cfg = build(TrainConfig, {"method": method, "data.resolution": 512, "memory.precision": "fp32", "memory.device": "cpu"}, METHODS[method].Config)
        monkeypatch.setattr(plan, "_all_bytes", lambda: has)
        monkeypatch.setattr(plan, "_free_bytes", lambda device: 1e12)
        return plan.plan_for(replace(cfg, memory=replace(cfg.memory, **memory)), tmp_path / "not-there.safetensors")

    without, with_them = planned(8e9), planned(64e9)
    assert not without.tiles and with_them.tiles and planned(None).tiles and not planned(64e9, precision="bf16").tiles
    assert not planned(640e9, "dreambooth").tiles and planned(640e9, "controlnet").tiles
    assert with_them.need - without.need == tiles_bytes(64**2)
