"""Validation loss and drift against numbers worked out by hand on models that are a formula."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_tuner.metrics import TIMESTEPS, Questions, moved, prior_drift, validation_loss
from lib_tuner.sd.loss import generator_for
from lib_tuner.sd.schedule import Schedule

SD = Schedule.sd15()


class Linear(nn.Module):
    """pred = w xt + u mean(ctx): a UNet with two weights, which draws when it trains."""

    def __init__(self, w=0.5, u=0.0):
        super().__init__()
        self.w, self.u = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(u))
        self.dropout, self.calls = nn.Dropout(0.5), []

    def forward(self, x, t, ctx):
        self.calls.append(t.tolist())
        return self.dropout(self.w * x + self.u * ctx.mean((1, 2))[:, None, None, None])


def encode(captions):
    """States (B, 77, 3) that are the length of the caption."""
    return torch.stack([torch.full((77, 3), float(len(c))) for c in captions])


def batch(*indices, size=(4, 8, 8)):
    latents = torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in indices])
    return SimpleNamespace(latents=latents, captions=["x" * i for i in indices], indices=list(indices), extra=None)


def by_hand(indices, w, u, seed, timesteps=TIMESTEPS, prediction="eps"):
    """The same in numpy's double precision from the formulas: xt = √ā x0 + √(1-ā) ε; error against ε or √ā ε - √(1-ā) x0."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    ac, errors = (1 - betas).cumprod(0), []
    for i in indices:
        for t in timesteps:
            x0 = batch(i).latents[0].double()
            eps = torch.randn(x0.shape, generator=generator_for(seed, i, f"validation {t}")).double()
            xt = ac[t].sqrt() * x0 + (1 - ac[t]).sqrt() * eps
            target = eps if prediction == "eps" else ac[t].sqrt() * eps - (1 - ac[t]).sqrt() * x0
            errors.append((w * xt + u * i - target).square().mean().item())
    return sum(errors) / len(errors)


# ---- validation


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_is_the_mean_over_every_picture_at_every_timestep(prediction):
    unet = Linear(0.5, 0.25)
    got = validation_loss(unet, encode, [batch(1, 2), batch(5)], Schedule.sd15(prediction), seed=3)
    assert got == pytest.approx(by_hand([1, 2, 5], 0.5, 0.25, 3, prediction=prediction), rel=1e-6)
    assert sorted(unet.calls) == sorted([[t] * n for t in TIMESTEPS for n in (2, 1)])


def test_a_perfect_model_has_no_loss_and_a_silent_one_that_of_the_noise():
    assert validation_loss(lambda x, t, ctx: 0 * x, encode, [batch(1)], SD, 0) == pytest.approx(1, abs=0.1)
    x0 = batch(1).latents

    def knows(x, t, ctx):
        a = SD.alphas_cumprod[t][:, None, None, None]
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    assert validation_loss(knows, encode, [batch(1)], SD, 0) < 1e-9


def test_the_noise_depends_on_seed_picture_and_timestep_alone():
    unet, parts = Linear(), [batch(1, 2), batch(5)]
    value = validation_loss(unet, encode, parts, SD, 3)
    assert validation_loss(unet, encode, parts, SD, 3) == value
    assert validation_loss(unet, encode, [batch(5, 1), batch(2)], SD, 3) == pytest.approx(value, rel=1e-6)
    assert validation_loss(unet, encode, parts, SD, 4) != pytest.approx(value, rel=1e-4)
    single = [validation_loss(unet, encode, parts, SD, 3, timesteps=[t]) for t in TIMESTEPS]
    assert sum(single) / 4 == pytest.approx(value, rel=1e-6)
    other = batch(1)
    other.indices = [9]
    assert validation_loss(unet, encode, [other], SD, 3) != pytest.approx(validation_loss(unet, encode, [batch(1)], SD, 3), rel=1e-4)


def test_indices_may_be_a_tensor_and_pictures_of_several_sizes():
    b = batch(1, 2)
    b.indices = torch.tensor([1, 2])
    assert validation_loss(Linear(), encode, [b], SD, 0) == validation_loss(Linear(), encode, [batch(1, 2)], SD, 0)
    assert validation_loss(Linear(), encode, [batch(1, 2), batch(3, size=(4, 8, 12))], SD, 0) > 0


def test_a_process_that_gets_nothing_of_a_batch_passes_it_over():
    none = SimpleNamespace(latents=torch.empty(0, 4, 8, 8), captions=[], indices=())
    assert validation_loss(Linear(), encode, [batch(1), none], SD, 0) == validation_loss(Linear(), encode, [batch(1)], SD, 0)


def test_nothing_is_dropped_and_modes_are_put_back_also_after_an_error():
    unet = Linear()
    unet.eval()
    calm = validation_loss(unet, encode, [batch(1)], SD, 0)
    unet.train()
    unet.dropout.training, unet.training = True, False  # a mixture stays one
    assert validation_loss(unet, encode, [batch(1)], SD, 0) == calm
    assert unet.dropout.training and not unet.training

    def broken(captions):
        raise RuntimeError("no states")

    with pytest.raises(RuntimeError, match="no states"):
        validation_loss(unet, broken, [batch(1)], SD, 0)
    assert unet.dropout.training and not unet.training


def test_the_global_random_state_and_gradients_are_left_alone():
    def drawing(captions):
        torch.rand(5)
        return encode(captions)

    unet = Linear()
    torch.manual_seed(11)
    want = torch.rand(3)
    torch.manual_seed(11)
    validation_loss(unet, drawing, [batch(1), batch(2)], SD, 0)
    prior_drift(unet, lambda: torch.no_grad(), drawing, batch(1).latents, ["a"], SD, 0)
    assert torch.equal(torch.rand(3), want) and unet.w.grad is None and torch.is_grad_enabled()


def test_the_method_is_handed_each_batch_before_its_captions_are_read():
    happened, batches = [], [batch(1, 2), batch(3)]
    validation_loss(Linear(), lambda c: (happened.append(c), encode(c))[1], batches, SD, 0, begin=happened.append)
    assert happened == [batches[0], batches[0].captions, batches[1], batches[1].captions]


def test_half_precision_latents_are_compared_in_fp32():
    half = batch(1, 2)
    half.latents = half.latents.bfloat16()
    got = validation_loss(lambda x, t, ctx: (0.5 * x).bfloat16(), encode, [half], SD, 0)
    assert got == pytest.approx(validation_loss(Linear(0.5), encode, [batch(1, 2)], SD, 0), rel=1e-2)


def test_no_pictures_and_a_timestep_that_there_is_not_are_said():
    with pytest.raises(ValueError, match="data.validation_folder: there is no picture in it to validate on; add some, or set validate_every to 0"):
        validation_loss(Linear(), encode, [], SD, 0)
    short = Schedule(SD.betas[:500], SD.alphas_cumprod[:500])
    with pytest.raises(ValueError, match="Timestep 800 is not one of the model's 500"):
        validation_loss(Linear(), encode, [batch(1)], short, 0)


# ---- drift


def drift(w, u=0.0, frozen=(0.5, 1.0), prompts=("a", "bb"), seed=0):
    """The drift of a model whose weights are `frozen` while it is disabled."""
    unet = Linear(w, u)

    @contextmanager
    def disabled():
        unet.w.data.fill_(frozen[0]), unet.u.data.fill_(frozen[1])
        try:
            yield
        finally:
            unet.w.data.fill_(w), unet.u.data.fill_(u)

    return prior_drift(unet, disabled, encode, batch(*range(len(prompts))).latents, list(prompts), SD, seed)


def test_an_unchanged_model_has_not_moved():
    assert drift(0.5, 1.0) == 0


def test_drift_is_the_squared_change_over_the_squared_prediction():
    assert drift(0.75, 1.5) == pytest.approx(0.25, rel=1e-6)  # everything 1.5 times: 0.5²
    assert drift(0.0, 0.0) == pytest.approx(1, rel=1e-6)
    assert drift(-1.0, 0.0, frozen=(1.0, 0.0)) == pytest.approx(4, rel=1e-6)


def test_what_the_text_encoder_learned_counts_as_drift():
    on = [True]

    @contextmanager
    def disabled():
        on[0] = False
        yield
        on[0] = True

    got = prior_drift(Linear(0.0, 1.0), disabled, lambda c: encode(c) * (1.25 if on[0] else 1), batch(1, 2).latents, ["a", "bb"], SD, 0)
    assert got == pytest.approx(0.0625, rel=1e-6) and on == [True]


def test_drift_sums_before_it_divides_and_is_the_same_each_time():
    # u alone: predictions are u * length; frozen (1, 3), adapted the same but for one more in the text part
    got = drift(0.0, 2.0, frozen=(0.0, 1.0), prompts=("a", "bbb"))
    assert got == pytest.approx(1, rel=1e-6)
    assert drift(0.6, 1.0) == drift(0.6, 1.0) != drift(0.6, 1.0, seed=1)


def test_drift_wants_a_latent_per_prompt():
    with pytest.raises(ValueError, match="1 prompts need 1 latents, not 2"):
        prior_drift(Linear(), lambda: torch.no_grad(), encode, batch(1, 2).latents, ["a"], SD, 0)


# ---- one set of questions for many saves


def asked(indices=(1, 2, 5), captions=None, stream="validation", schedule=SD):
    b = batch(*indices)
    return Questions.of(b.latents, captions or b.captions, b.indices, schedule, 3, stream)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_errors_of_answers_are_the_validation_loss(prediction):
    questions = asked(schedule=Schedule.sd15(prediction))
    errors = questions.errors(questions.answers(Linear(0.5, 0.25), encode))
    assert errors.shape == (12,) and errors.mean().item() == pytest.approx(by_hand([1, 2, 5], 0.5, 0.25, 3, prediction=prediction), rel=1e-6)


def test_other_captions_are_asked_at_the_same_noise_and_each_is_encoded_once():
    read, questions = [], asked(captions=["x", "xx", "x"])
    other = questions.asked(["yyy", "yyy", "y"])
    assert torch.equal(other.xt, questions.xt) and other.captions == ["yyy", "yyy", "y"] * 4
    got = other.answers(Linear(0.0, 1.0), lambda captions: (read.append(captions), encode(captions))[1])
    assert read == [["yyy", "y"]] and got.mean((1, 2, 3)).tolist() == [3.0, 3.0, 1.0] * 4


def test_answers_have_moved_as_far_as_prior_drift_says():
    latents = batch(0, 1).latents
    questions = Questions.of(latents, ["a", "bb"], range(2), SD, 0, "drift")
    assert moved(questions.answers(Linear(0.7, 1.3), encode), questions.answers(Linear(0.5, 1.0), encode)) == pytest.approx(drift(0.7, 1.3), rel=1e-5)
    assert moved(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])) == pytest.approx(1.0)  # (4 + 1) / (1 + 4)


def test_small_pictures_go_together_and_large_ones_in_parts():
    unet, large = Linear(), Questions.of(torch.zeros(3, 4, 64, 64), ["a"] * 3, range(3), SD, 0)
    asked().answers(unet, encode)
    assert [len(call) for call in unet.calls] == [12]
    unet.calls.clear()
    large.answers(unet, encode)
    assert [len(call) for call in unet.calls] == [4, 4, 4]
