"""Samplers against diffusers' schedulers, step for step, on a random linear model; guidance, batches, stopping."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib_tuner.host import GenerateRequest
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import settings
from lib_tuner.sd.sample import SAMPLERS, Stopped, ddim, guided, sample
from lib_tuner.sd.schedule import Schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 4, 6)


def linear_model(seed=0):
    """A model that is linear in x and depends on t: every error in a state or a timestep shows."""
    g = torch.Generator().manual_seed(seed)
    W, b = torch.randn(4, 4, generator=g) / 4, torch.randn(4, 1, 1, generator=g)
    return lambda x, t: torch.einsum("dc,bchw->bdhw", W, x) + b * (1 + torch.as_tensor(t) / 500).reshape(-1, 1, 1, 1)


def start(seed=1):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def generators(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


def kind(prediction):
    return {"eps": "epsilon", "v": "v_prediction"}[prediction]


def theirs(scheduler, model, xT, steps, **kwargs):
    """Every state of a diffusers scheduler's run, as a pipeline does it."""
    scheduler.set_timesteps(steps)
    x, states = xT * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x, **kwargs).prev_sample
        states.append(x)
    return states


def close(ours, reference):
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference):
        assert (a - b).norm() / b.norm() < 1e-4


def states(name, schedule, steps, noise=None):
    return list(SAMPLERS[name](linear_model(), start(), schedule, steps, noise))


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddim_is_diffusers_step_for_step(prediction, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**SD, steps_offset=1, set_alpha_to_one=False, clip_sample=False, timestep_spacing="leading",
                                        prediction_type=kind(prediction))
    close(states("ddim", Schedule.sd15(prediction), steps), theirs(scheduler, linear_model(), start(), steps))


def test_ddim_with_eta_is_diffusers_for_the_same_noise():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**SD, steps_offset=1, set_alpha_to_one=False, clip_sample=False, timestep_spacing="leading")
    noise = start(5)
    ours = list(ddim(linear_model(), start(), Schedule.sd15(), 9, lambda: noise, eta=0.7))
    close(ours, theirs(scheduler, linear_model(), start(), 9, eta=0.7, variance_noise=noise))


def test_ddim_starts_a_zero_terminal_snr_model_at_pure_noise():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**SD, set_alpha_to_one=False, clip_sample=False, timestep_spacing="trailing",
                                        prediction_type="v_prediction", rescale_betas_zero_snr=True)
    close(states("ddim", Schedule.sd15("v").zero_terminal_snr(), 7), theirs(scheduler, linear_model(), start(), 7))


@pytest.mark.parametrize("steps", [500, 1000])
def test_an_eps_model_with_zero_terminal_snr_is_sampled_where_ddim_meets_pure_noise(steps):
    """t = 999, where ā is 0 and x0 would be a division by it."""
    schedule, x0 = Schedule.sd15("eps").zero_terminal_snr(), start(9)
    ac = schedule.alphas_cumprod.double().clamp(min=2**-24)
    result = sample(lambda xt, t: ((xt - ac[t[0]].sqrt() * x0) / (1 - ac[t[0]]).sqrt()).float(), start(), schedule, steps, "ddim", generators(1, 2))
    assert (result - x0).abs().max() < 0.15


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_euler_a_is_diffusers_step_for_step_for_the_same_noise(prediction, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD, timestep_spacing="linspace" if steps > 1 else "trailing",
                                                          prediction_type=kind(prediction))
    g = torch.Generator().manual_seed(3)
    ours = states("euler_a", Schedule.sd15(prediction), steps, lambda: torch.randn(SHAPE, generator=g))
    close(ours, theirs(scheduler, linear_model(), start(), steps, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpmpp_2m_karras_is_diffusers_step_for_step(prediction, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True, algorithm_type="dpmsolver++", solver_order=2,
                                                      prediction_type=kind(prediction))
    close(states("dpmpp_2m", Schedule.sd15(prediction), steps), theirs(scheduler, linear_model(), start(), steps))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_every_sampler_finds_the_image_of_a_perfect_model(name, prediction):
    """A model that knows x0: one step per level, and the result is x0 (DDIM stops at ā_0, a little noise from it)."""
    schedule, x0 = Schedule.sd15(prediction), start(9)

    def perfect(xt, t):
        lo = schedule.alphas_cumprod[t.floor().long() if t.is_floating_point() else t]
        hi = schedule.alphas_cumprod[t.ceil().long() if t.is_floating_point() else t]
        sigma = torch.lerp(((1 - lo) / lo).sqrt(), ((1 - hi) / hi).sqrt(), (t - t.floor()) if t.is_floating_point() else torch.zeros(len(t)))
        a = (1 / (1 + sigma**2).sqrt()).reshape(-1, 1, 1, 1)
        s = (1 - a**2).sqrt()
        eps = (xt - a * x0) / s
        return eps if prediction == "eps" else a * eps - s * x0

    result = sample(perfect, start(), schedule, 25, name, generators(1, 2))
    assert (result - x0).abs().max() < 0.15


def test_an_image_does_not_depend_on_its_batch():
    both = sample(linear_model(), start(), Schedule.sd15(), 5, "euler_a", generators(1, 2))
    alone = sample(linear_model(), start()[1:], Schedule.sd15(), 5, "euler_a", generators(2))
    torch.testing.assert_close(both[1:], alone)


def test_a_picture_does_not_depend_on_the_prompts_beside_it_and_brackets_are_read_as_the_webui_does(checkpoint_file):
    host = Standalone(settings({"name": "x", "checkpoint": str(checkpoint_file)}))
    short, long = (GenerateRequest(prompt, "a dog", 64, 64, 2, 3.0, "ddim", 1) for prompt in (r"a cat \(red\)", "a cat " * 60))
    alone, beside = host.generate([short])[0], host.generate([short, long])
    assert alone.tobytes() == beside[0].tobytes() != beside[1].tobytes()
    assert host.generate([replace(short, prompt="a cat (red)")])[0].tobytes() == alone.tobytes() != host.generate([replace(short, prompt="a cat red")])[0].tobytes()


def test_guidance_is_one_call_for_both_and_follows_the_formula():
    calls = []

    def unet(x, t, ctx):
        calls.append(len(x))
        return x * ctx.mean((1, 2)).reshape(-1, 1, 1, 1)

    x, t = start(), torch.tensor([5, 5])
    ctx, uncond = torch.full((2, 3, 8), 2.0), torch.full((1, 3, 8), 0.5)
    torch.testing.assert_close(guided(unet, ctx, uncond, 7.0)(x, t), x * (0.5 + 7 * 1.5))
    torch.testing.assert_close(guided(unet, ctx, uncond, 1.0)(x, t), x * 2)
    torch.testing.assert_close(guided(unet, ctx, torch.full((1, 6, 8), 0.5), 7.0)(x, t), x * (0.5 + 7 * 1.5))
    assert calls == [4, 2, 2, 2]


def test_progress_is_reported_and_can_stop_the_sampler():
    seen = []
    sample(linear_model(), start(), Schedule.sd15(), 3, "dpmpp_2m", [], lambda i, n: seen.append((i, n)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(Stopped):
        sample(linear_model(), start(), Schedule.sd15(), 3, "ddim", [], lambda i, n: i == 2)


def test_nothing_is_recorded_for_gradients_and_half_precision_noise_gives_fp32():
    w, given = torch.nn.Parameter(torch.ones(())), []

    def denoise(x, t):
        given.append(x.dtype)
        return (w * x).bfloat16()

    result = sample(denoise, start().bfloat16(), Schedule.sd15(), 2, "ddim", [])
    assert result.dtype == torch.float32 and given == [torch.float32] * 2 and not result.requires_grad


@pytest.mark.parametrize(("steps", "name", "seeds", "message"), [
    (5, "plms", (1, 2), "'plms' is not known; use one of ddim, euler_a, dpmpp_2m"),
    (0, "ddim", (1, 2), "0 is outside 1 to 1000"),
    (5, "euler_a", (1,), "2 images need 2 generators, not 1"),
])
def test_what_cannot_be_sampled_is_said(steps, name, seeds, message):
    with pytest.raises(ValueError, match=message):
        sample(linear_model(), start(), Schedule.sd15(), steps, name, generators(*seeds))
