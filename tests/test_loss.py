"""Losses, their weights, noise and timesteps, against numbers worked out by hand and against diffusers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lib_tuner.sd.loss import diffusion_loss, generator_for, huber_c, noise_for, snr_weight, timesteps_for
from lib_tuner.sd.schedule import Schedule

DEFAULTS = {
    "kind": "mse", "huber_c": 0.1, "huber_schedule": "snr", "min_snr": 0.0, "debiased": False, "noise_offset": 0.0, "adaptive_offset": 0.0,
    "pyramid": 0, "pyramid_discount": 0.3, "input_perturbation": 0.0, "zero_terminal_snr": False, "t_min": 0, "t_max": 1000,
    "t_distribution": "uniform",
}
T = torch.tensor([0, 1])


def cfg(**changes):
    return SimpleNamespace(**{**DEFAULTS, **changes})


def hand(prediction="eps"):
    """Two levels: ā = 0.8 (snr 4) and ā = 0.2 (snr 0.25)."""
    return Schedule(torch.tensor([0.2, 0.75]), torch.tensor([0.8, 0.2]), prediction)


def loss(d, prediction="eps", mask=None, **changes):
    """The two samples' losses where every element is wrong by `d`."""
    target = torch.ones(2, 4, 2, 2)
    return diffusion_loss(target + d, target, T, hand(prediction), cfg(**changes), mask).tolist()


def generators(*indices, stream="noise"):
    return [generator_for(7, i, stream) for i in indices]


# the distance


def test_mse_and_l1_are_the_mean_of_their_distance():
    assert loss(0.5) == pytest.approx([0.25, 0.25])
    assert loss(-0.5, kind="l1") == pytest.approx([0.5, 0.5])


def test_huber_and_smooth_l1_follow_their_formula():
    # c 0.75, d 1: sqrt(1 + 0.5625) = 1.25; huber 2 * 0.75 * 0.5, smooth 2 * 0.5
    assert loss(1.0, kind="huber", huber_c=0.75, huber_schedule="constant") == pytest.approx([0.75, 0.75])
    assert loss(1.0, kind="smooth_l1", huber_c=0.75, huber_schedule="constant") == pytest.approx([1.0, 1.0])


def test_hubers_c_depends_on_the_timestep_as_its_schedule_says():
    snr = huber_c(T, hand(), cfg(huber_schedule="snr"))
    assert snr.tolist() == pytest.approx([0.9 / 1.5**2 + 0.1, 0.9 / 3**2 + 0.1])  # sigma 0.5 and 2
    sd, t = Schedule.sd15(), torch.tensor([0, 500, 999])
    assert huber_c(t, sd, cfg(huber_schedule="exponential")).tolist() == pytest.approx([1, math.sqrt(0.1), 0.1**0.999])
    assert huber_c(t, sd, cfg(huber_schedule="constant")).tolist() == pytest.approx([0.1, 0.1, 0.1])
    assert huber_c(torch.tensor([999]), sd.zero_terminal_snr(), cfg()).item() == pytest.approx(0.1)
    assert loss(1.0, kind="huber", huber_schedule="snr")[0] == pytest.approx(2 * 0.5 * (math.sqrt(1.25) - 0.5))


def test_a_mask_multiplies_and_is_not_renormalised():
    mask = torch.tensor([[1.0, 0.1], [0.0, 0.5]]).expand(2, 1, 2, 2)
    assert loss(2.0, mask=mask) == pytest.approx([4 * 1.6 / 4] * 2)


def test_half_precision_predictions_are_compared_in_fp32():
    pred = torch.full((2, 4, 2, 2), 1 / 3, dtype=torch.bfloat16)
    result = diffusion_loss(pred, torch.zeros_like(pred), T, hand(), cfg())
    assert result.dtype == torch.float32 and result.tolist() == pytest.approx([pred[0, 0, 0, 0].item() ** 2] * 2)


# the weight of a timestep


@pytest.mark.parametrize(("prediction", "changes", "weights"), [
    ("eps", {}, [1, 1]),
    ("eps", {"min_snr": 1.0}, [1 / 4, 1]),
    ("v", {"min_snr": 1.0}, [1 / 5, 0.25 / 1.25]),
    ("eps", {"debiased": True}, [1 / 2, 2]),
    ("v", {"debiased": True}, [1 / 5, 1 / 1.25]),
    ("eps", {"min_snr": 1.0, "debiased": True}, [1 / 8, 2]),
])
def test_weights_are_as_computed_by_hand(prediction, changes, weights):
    assert snr_weight(T, hand(prediction), cfg(**changes)).tolist() == pytest.approx(weights)
    assert loss(3.0, prediction, **changes) == pytest.approx([9 * w for w in weights])


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_is_diffusers_formula(prediction):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.tensor([0, 100, 400, 999])
    snr = scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t])
    reference = snr.clamp(max=5) / (snr + (prediction == "v"))  # examples/text_to_image/train_text_to_image.py
    torch.testing.assert_close(snr_weight(t, Schedule.sd15(prediction), cfg(min_snr=5.0)), reference, rtol=2e-4, atol=0)


def test_debiased_caps_the_snr_at_1000():
    assert snr_weight(torch.tensor([0]), Schedule.sd15(), cfg(debiased=True)).item() == pytest.approx(1000**-0.5)
    assert snr_weight(torch.tensor([0]), Schedule.sd15("v"), cfg(debiased=True)).item() == pytest.approx(1 / 1001)


def test_zero_terminal_snr_gives_finite_weights_or_is_refused():
    t = torch.tensor([999])
    assert snr_weight(t, Schedule.sd15().zero_terminal_snr(), cfg(min_snr=5.0)).item() == 1
    assert snr_weight(t, Schedule.sd15("v").zero_terminal_snr(), cfg(debiased=True, zero_terminal_snr=True)).item() == 1
    with pytest.raises(ValueError, match="loss.debiased: with zero terminal SNR"):
        snr_weight(t, Schedule.sd15().zero_terminal_snr(), cfg(debiased=True, zero_terminal_snr=True))


# timesteps


def test_uniform_timesteps_fill_their_range_evenly():
    t = timesteps_for(torch.tensor([0.0, 0.25, 0.5, 0.9999]), cfg())
    assert t.tolist() == [0, 250, 500, 999] and t.dtype == torch.long
    assert timesteps_for(torch.tensor([0.0, 0.5, 1 - 2**-24]), cfg(t_min=200, t_max=300)).tolist() == [200, 250, 299]


@pytest.mark.parametrize(("name", "cdf"), [
    ("uniform", lambda w: w),
    ("cubic", lambda w: 1 - (1 - w) ** (1 / 3)),
    ("sigmoid", lambda w: 0.5 * (1 + math.erf(math.log(w / (1 - w)) / math.sqrt(2)))),
    ("early", lambda w: 1 - (1 - w) ** 2),
    ("late", lambda w: w**2),
])
def test_a_distribution_has_the_density_it_states(name, cdf):
    """The share of a fine grid of u that falls below a timestep is the integral of the stated density."""
    u = (torch.arange(20000) + 0.5) / 20000
    t = timesteps_for(u, cfg(t_distribution=name))
    for edge in (100, 370, 500, 900):
        assert (t < edge).float().mean().item() == pytest.approx(cdf(edge / 1000), abs=2e-4)
    ends = timesteps_for(torch.tensor([0.0, 1 - 2**-24]), cfg(t_distribution=name, t_min=3, t_max=900))
    assert ends.min() >= 3 and ends.max() < 900


def test_the_cubic_distribution_is_the_adapters_formula():
    assert timesteps_for(torch.tensor([0.0, 0.5]), cfg(t_distribution="cubic")).tolist() == [999, 875]


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="loss.t_min: 500 leaves no timestep below 400"):
        timesteps_for(torch.tensor([0.5]), cfg(t_min=500, t_max=400))


# noise


def test_a_generator_depends_on_seed_index_and_stream_and_is_the_same_everywhere():
    def first(*key):
        return torch.rand((), generator=generator_for(*key)).item()

    assert first(0, 0, "t") == first(0, 0, "t")
    assert len({first(0, 0, "t"), first(1, 0, "t"), first(0, 1, "t"), first(0, 0, "noise"), first(0, 10, "t"), first(0, 0, "t2")}) == 6
    assert generator_for(0, 0, "t").initial_seed() == 15299651132990480650  # another number would change every user's run


def test_plain_noise_is_the_generators_and_serves_input_and_target():
    x0 = torch.zeros(2, 4, 3, 5)
    noise, given = noise_for(x0, cfg(), generators(0, 1))
    assert given is noise
    torch.testing.assert_close(noise[1], torch.randn(4, 3, 5, generator=generator_for(7, 1, "noise")), rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"noise_offset": 0.1}, {"adaptive_offset": 0.1}, {"pyramid": 6}, {"input_perturbation": 0.1}])
def test_a_samples_noise_does_not_depend_on_its_batch(changes):
    x0 = torch.randn(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    together, alone = noise_for(x0, cfg(**changes), generators(0, 1, 2)), noise_for(x0[2:], cfg(**changes), generators(2))
    for a, b in zip(together, alone):
        torch.testing.assert_close(a[2:], b, rtol=0, atol=0)


def test_noise_offset_adds_one_constant_per_channel():
    x0 = torch.zeros(1, 4, 3, 5)
    g = generator_for(7, 0, "noise")
    base, constant = torch.randn(4, 3, 5, generator=g), torch.randn(4, 1, 1, generator=g)
    torch.testing.assert_close(noise_for(x0, cfg(noise_offset=0.2), generators(0))[0][0], base + 0.2 * constant)


def test_the_adaptive_offset_follows_the_mean_of_each_channel():
    x0 = torch.tensor([1.0, -2.0, 0.0, 3.0]).reshape(1, 4, 1, 1).expand(1, 4, 3, 5)
    g = generator_for(7, 0, "noise")
    base, constant = torch.randn(4, 3, 5, generator=g), torch.randn(4, 1, 1, generator=g)
    offset = torch.tensor([0.3, 0.5, 0.1, 0.7]).reshape(4, 1, 1)  # 0.1 + 0.2 |mean|
    result = noise_for(x0, cfg(noise_offset=0.1, adaptive_offset=0.2), generators(0))[0][0]
    torch.testing.assert_close(result, base + offset * constant)


def test_pyramid_noise_adds_coarser_noise_and_has_unit_deviation():
    g = generator_for(7, 0, "noise")
    expected = torch.randn(4, 8, 12, generator=g)
    for i in range(6):
        r = 2 + 2 * torch.rand((), generator=g).item()
        coarse = torch.randn(1, 4, max(1, int(8 / r**i)), max(1, int(12 / r**i)), generator=g)
        expected += 0.5**i * F.interpolate(coarse, size=(8, 12), mode="bilinear")[0]
        if 1 in coarse.shape[2:]:
            break
    result = noise_for(torch.zeros(1, 4, 8, 12), cfg(pyramid=6, pyramid_discount=0.5), generators(0))[0][0]
    torch.testing.assert_close(result, expected / expected.std())
    assert result.std().item() == pytest.approx(1, abs=1e-5)


def test_input_perturbation_is_in_the_input_alone():
    x0 = torch.zeros(1, 4, 3, 5)
    target, given = noise_for(x0, cfg(input_perturbation=0.1), generators(0))
    g = generator_for(7, 0, "noise")
    torch.testing.assert_close(target[0], torch.randn(4, 3, 5, generator=g))
    torch.testing.assert_close(given - target, 0.1 * torch.randn(1, 4, 3, 5, generator=g))


def test_every_sample_needs_its_generator():
    with pytest.raises(ValueError, match="2 samples need 2 generators, not 1"):
        noise_for(torch.zeros(2, 4, 3, 5), cfg(), generators(0))
