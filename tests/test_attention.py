"""Attention as products: as near to the truth as torch's kernel, the same bits whether probabilities are kept or computed again, nothing but what is meant is touched."""

import threading
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lib_tuner.sd import attention
from lib_tuner.sd.attention import Attend, Spare, attention_as_products, kept_bytes
from lib_tuner.sd.layers import attend
from lib_tuner.sd.threads import side_by_side
from lib_tuner.sd.unet import Attention, UNet, UNetSizes

pytestmark = pytest.mark.webui_versions
HEADS = 2


@pytest.fixture(autouse=True)
def small_counts(monkeypatch):
    """Several pieces of several rows at a time, with some left over, of scores that would else be computed at once."""
    monkeypatch.setattr(attention, "MANY", 50 * 40)
    monkeypatch.setattr(attention, "CELLS", 7 * 60)
    monkeypatch.setattr(attention, "PIECES", 12)
    monkeypatch.setattr(attention, "LARGE", 0)


def inputs(n=50, m=60, width=40, batch=2, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(batch, rows, width, dtype=torch.bfloat16, requires_grad=True) for rows in (n, m, m)], torch.randn(batch, n, width, dtype=torch.bfloat16)


def truth(q, k, v):
    """softmax(q k' / sqrt d) v in double precision."""
    q, k, v = (x.double().unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return (torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v).transpose(1, 2).flatten(2)


def all_of(function, given, grad):
    """The result and the three gradients."""
    out = function(*given)
    return [out, *torch.autograd.grad(out, given, grad.to(out.dtype))]


def products(spare):
    return lambda q, k, v: Attend.apply(q, k, v, HEADS, spare, map)


def off(found, expected):
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("n, m, width", [(50, 60, 40), (16, 200, 160), (33, 77, 80), (1, 60, 6)])
@pytest.mark.parametrize("loudness", [1, 4])  # of the queries: scores far from and near to picking one key
def test_results_and_gradients_are_those_of_the_formula(n, m, width, loudness):
    given, grad = inputs(n, m, width)
    given[0] = (given[0].detach() * loudness).requires_grad_()
    for ours, theirs in zip(all_of(products(Spare()), given, grad), all_of(truth, given, grad)):
        assert ours.dtype is torch.bfloat16 and off(ours, theirs) < 0.015


@pytest.mark.parametrize("loudness", [1, 3])
def test_an_attention_layer_is_as_near_to_fp32_as_with_torchs_kernel(loudness):
    torch.manual_seed(1)
    layer, x, grad = Attention(64, 64, HEADS).requires_grad_(False), torch.randn(2, 200, 64), torch.randn(2, 200, 64)
    layer.to_q.weight *= loudness
    layer.to_k.weight *= loudness
    weights = [module.weight.requires_grad_() for module in (layer.to_q, layer.to_k, layer.to_v)]

    def results(module, dtype):
        out = module.to(dtype)(x.to(dtype), x.to(dtype))
        return [t.detach().float() for t in (out, *torch.autograd.grad(out, [m.weight for m in (module.to_q, module.to_k, module.to_v)], grad.to(dtype)))]

    exact = results(layer, torch.float32)
    usual = results(layer, torch.bfloat16)
    with attention_as_products(layer, keep=True):
        ours = results(layer, torch.bfloat16)
    assert len(weights) == 3 and not torch.equal(ours[0], usual[0])
    for a, b, c in zip(ours, usual, exact):
        assert off(a, c) < 1.1 * off(b, c) < 0.05


def test_kept_or_computed_again_the_bits_are_the_same_and_so_is_a_second_time():
    given, grad = inputs()
    spare = Spare()
    once, twice, again = (all_of(products(s), given, grad) for s in (spare, spare, None))
    with torch.no_grad():
        seen = products(spare)(*given)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(once, twice, again)) and torch.equal(seen, once[0])


@pytest.mark.parametrize("batch", [1, 12])  # a head in several pieces, and in one
def test_pieces_side_by_side_give_the_bits_of_one_after_the_other(batch, two_threads):
    given, grad = inputs(batch=batch)
    names = set()

    def beside(work, pieces):
        return run(lambda piece: (names.add(threading.current_thread().name), work(piece))[1], pieces)

    def after(work, pieces):
        return [tuple(run(work, [piece])) for piece in reversed(pieces)]

    with side_by_side() as run:
        expected, *found = (
            all_of(lambda q, k, v: Attend.apply(q, k, v, HEADS, spare, share), given, grad)
            for share, spare in ((after, None), (beside, None), (beside, Spare()), (beside, Spare()))
        )
    assert all(torch.equal(a, b) for some in found for a, b in zip(some, expected, strict=True))
    assert names and threading.main_thread().name not in names


def test_little_work_is_shared_out_by_torch_a_head_at_a_time(monkeypatch):
    monkeypatch.setattr(attention, "LARGE", 2 * HEADS * 50 * 60 + 1)  # one more than there is
    given, grad = inputs()
    out, *gradients = all_of(lambda q, k, v: Attend.apply(q, k, v, HEADS, None, None), given, grad)
    for ours, theirs in zip([out, *gradients], all_of(truth, given, grad)):
        assert off(ours, theirs) < 0.015
    assert len(attention._Rows(*given[:2], HEADS).pieces) == 2 * HEADS


def test_two_layers_keep_theirs_apart_in_every_update():
    given, grad = inputs(m=50)
    spare = Spare()

    def both(spare):
        return lambda q, k, v: products(spare)(products(spare)(q, k, v), k, v)

    expected, *found = (all_of(both(s), given, grad) for s in (None, spare, spare, spare))
    assert all(torch.equal(a, b) for some in found for a, b in zip(some, expected, strict=True))


def test_a_kept_tensor_is_used_again_and_one_that_is_too_small_makes_room():
    spare = Spare()
    first = spare.take(10)
    spare.give(first)
    assert spare.take(8) is first
    spare.give(first)
    second = spare.take(11)
    assert second.numel() == 11
    spare.give(second)
    assert spare.take(1) is second and spare.take(1) is not first


def test_probabilities_that_were_given_back_are_not_read_again():
    given, grad = inputs()
    spare = Spare()
    out = products(spare)(*given)
    torch.autograd.grad(out, given, grad, retain_graph=True)
    products(spare)(*inputs(seed=1)[0])  # in the same memory
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out, given, grad)


def test_only_attention_over_many_pixels_in_bf16_is_taken_and_all_is_put_back(monkeypatch):
    taken = []
    apply = Attend.apply
    monkeypatch.setattr(Attend, "apply", lambda *args: (taken.append(args[0].shape[1]), apply(*args))[1])
    layer = Attention(32, 32, HEADS).requires_grad_(False)
    many, few = torch.randn(1, 50, 32), torch.randn(1, 40, 32)
    with torch.no_grad(), attention_as_products(layer, keep=True):
        layer(many, many)
        layer.bfloat16()
        layer(few.bfloat16(), few.bfloat16())
        assert taken == []
        layer(many.bfloat16(), few.bfloat16())
        assert taken == [50]
        with attention_as_products(layer, keep=False):  # within itself it changes nothing
            layer(many.bfloat16(), few.bfloat16())
        layer(many.bfloat16(), few.bfloat16())
        assert taken == [50] * 3
    assert "attend" not in vars(layer) and layer.attend is attend
    layer(many.bfloat16(), few.bfloat16())
    assert taken == [50] * 3


def test_a_unet_learns_alike_with_and_without_checkpointing():
    torch.manual_seed(0)
    unet = UNet(UNetSizes((32,), (True,), context=16, heads=HEADS)).requires_grad_(False).bfloat16()
    x, t, ctx = torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.randn(1, 77, 16, dtype=torch.bfloat16)

    def gradients():
        words = ctx.clone().requires_grad_()
        return torch.autograd.grad(unet(x, t, words).float().square().sum(), words)[0]

    usual, found = gradients(), []
    for keep, unet.checkpointing in ((True, False), (True, True), (False, False), (False, True)):
        with attention_as_products(unet, keep):
            found.append(gradients())
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert not torch.equal(found[0], usual) and off(found[0], usual) < 0.05


def test_kept_bytes_are_those_of_the_layers(monkeypatch):
    monkeypatch.setattr(attention, "MANY", 2**18)
    assert kept_bytes(64 * 64, 3) == 3 * (5 * 8 * 2 * 4096**2 + 5 * 8 * 2 * 1024**2) and kept_bytes(16 * 16, 3) == 0


def test_the_plan_keeps_probabilities_where_there_is_room_and_counts_them(monkeypatch, tmp_path):
    from lib_tuner.config import build
    from lib_tuner.hosts import plan
    from lib_tuner.methods import METHODS
    from lib_tuner.settings import TrainConfig

    monkeypatch.setattr(attention, "MANY", 2**18)
    cfg = build(TrainConfig, {"data.resolution": 512, "memory.precision": "bf16", "memory.device": "cpu"}, METHODS["lora"].Config)

    def planned(free, slow=True, **memory):
        monkeypatch.setattr(plan, "slow_attention", lambda device: slow)
        monkeypatch.setattr(plan, "_free_bytes", lambda device: free)
        return plan.plan_for(replace(cfg, memory=replace(cfg.memory, **memory)), tmp_path / "not-there.safetensors")

    bare, roomy, full = planned(9e9, slow=False), planned(9e9), planned(4.5e9)
    assert [(p.products, p.keep, p.checkpointing) for p in (bare, roomy, full)] == [(False, False, False), (True, True, False), (True, False, False)]
    assert roomy.need == pytest.approx(bare.need + kept_bytes(4096, 1)) and full.need == bare.need
    assert not planned(9e9, precision="fp32").products and not planned(9e9, checkpointing="on").keep and planned(None).keep
