"""Convolutions as products: torch's own results and gradients, and nothing but the convolutions meant is touched."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_tuner.sd import products
from lib_tuner.sd.products import Convolve3, convolutions_as_products, fits, folded, unfolded

pytestmark = pytest.mark.webui_versions


@pytest.fixture(autouse=True)
def small_counts(monkeypatch):
    """Sizes at which the real ones would take a gigabyte."""
    monkeypatch.setattr(products, "MANY_WEIGHTS", 6 * 10)
    monkeypatch.setattr(products, "FEW_PIXELS", 2 * 5 * 4)


def conv(c=6, d=10, **kwargs):
    torch.manual_seed(0)
    return nn.Conv2d(c, d, 3, **{"padding": 1, **kwargs}).requires_grad_(False)


def check_against_torch(convolve, module, batch, h, w, layout):
    """Result and gradient in double precision."""
    module = module.double()
    x = torch.randn(batch, 6, h, w, dtype=torch.double).to(memory_format=layout).requires_grad_()
    y = convolve(x, module)
    expected = F.conv2d(x, module.weight, module.bias, padding=1)
    torch.testing.assert_close(y, expected)
    g = torch.randn_like(expected).to(memory_format=layout)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], torch.autograd.grad(expected, x, g)[0])


@pytest.mark.parametrize("batch, h, w", [(1, 4, 4), (2, 5, 4), (3, 1, 2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_and_gradients_are_torchs(batch, h, w, bias, layout):
    check_against_torch(lambda x, module: Convolve3.apply(x, module.weight, module.bias), conv(bias=bias), batch, h, w, layout)


def test_bf16_is_as_near_to_the_truth_as_torchs(monkeypatch):
    monkeypatch.setattr(products, "MANY_WEIGHTS", 1)
    module = conv(64, 64)
    x = torch.randn(1, 64, 4, 4)
    truth = module(x)
    module, x = module.bfloat16(), x.bfloat16()
    error = [float((y.float() - truth).norm()) for y in (Convolve3.apply(x, module.weight, module.bias), module(x))]
    assert error[0] < 1.5 * error[1] < 0.02 * float(truth.norm())


@pytest.mark.parametrize("batch, h, w", [(1, 4, 4), (2, 5, 3), (3, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_columns_are_torchs_and_their_sum_is_rounded_once(batch, h, w, layout):
    torch.manual_seed(0)
    x = torch.randn(batch, 6, h, w, dtype=torch.bfloat16).to(memory_format=layout)
    columns = F.unfold(x, 3, padding=1).transpose(0, 1)  # (9 C, B, h w)
    assert torch.equal(unfolded(x), columns.flatten(1))
    back = folded(columns.flatten(1), x.shape)
    truth = F.fold(columns.transpose(0, 1).double(), (h, w), 3, padding=1)
    torch.testing.assert_close(back.double(), truth, rtol=2**-8, atol=0)
    assert back.dtype is torch.bfloat16 and back.is_contiguous()


@pytest.mark.parametrize("change", [{"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect"}])
def test_other_convolutions_do_not_fit(change):
    assert fits(conv(), 60)
    assert not any(fits(module, 60) for module in (conv(**change), conv(5, 10), nn.Linear(60, 60), nn.Conv2d(60, 60, 1)))


def test_only_frozen_convolutions_over_few_pixels_are_taken_and_all_are_put_back(monkeypatch):
    taken = []
    apply = Convolve3.apply
    monkeypatch.setattr(Convolve3, "apply", lambda *args: (taken.append(args[0].shape), apply(*args))[1])
    net = nn.Sequential(conv(), conv(10, 6))
    few, many = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 5, 5)
    before = net(few), net(many)
    with pytest.raises(RuntimeError, match="stop"), convolutions_as_products(net, False):
        assert len(taken) == 0
        torch.testing.assert_close(net(few), before[0])
        assert len(taken) == 2
        assert torch.equal(net(many), before[1]) and len(taken) == 2
        net[1].weight.requires_grad_()
        net(few).sum().backward()
        assert len(taken) == 3 and net[1].weight.grad.abs().sum() > 0
        with convolutions_as_products(net, False):  # within itself it changes nothing twice
            net(few)
        assert len(taken) == 4  # and the second, whose weight is trained now, is torch's own
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in net)
    assert torch.equal(net(many), before[1])


def test_autocast_gives_what_it_gives_a_convolution():
    module, x = conv(), torch.randn(1, 6, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        usual, ours = module(x), Convolve3.apply(x, module.weight, module.bias)
    assert ours.dtype == usual.dtype == torch.bfloat16
    torch.testing.assert_close(ours, usual)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(usual.sum(), x)[0], rtol=0.02, atol=0.02)


def test_hooks_still_see_a_convolution(monkeypatch):
    net = nn.Sequential(conv())
    x = torch.randn(1, 6, 4, 4)
    with convolutions_as_products(net, False):
        plain = net(x)
        net[0].register_forward_hook(lambda module, args, output: output + 1)
        torch.testing.assert_close(net(x), plain + 1)
