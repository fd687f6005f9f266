"""The noise schedule against diffusers and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lib_tuner.sd.schedule import Schedule


def hand(prediction="eps"):
    """Two levels: ā = 0.64 (a 0.8, s 0.6) and ā = 0.36 (a 0.6, s 0.8)."""
    return Schedule(torch.tensor([0.36, 0.4375]), torch.tensor([0.64, 0.36]), prediction)


def column(*values):
    return torch.tensor(values).reshape(-1, 1, 1, 1)


T = torch.tensor([0, 1])


def test_sd15_has_the_levels_of_diffusers_and_of_the_original_file():
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours = Schedule.sd15()
    assert len(ours) == 1000 and ours.alphas_cumprod.dtype == torch.float32
    torch.testing.assert_close(ours.betas, scheduler.betas, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=0)
    assert ours.alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, rel=1e-6)
    assert ours.alphas_cumprod[-1].item() == pytest.approx(0.0046600, rel=1e-4)


def test_noise_is_mixed_by_hand_computed_weights():
    xt = hand().add_noise(column(1.0, 1.0), column(2.0, -1.0), T)
    torch.testing.assert_close(xt, column(0.8 + 1.2, 0.6 - 0.8))


def test_target_is_the_noise_or_the_velocity():
    x0, noise = column(1.0, 1.0), column(2.0, -1.0)
    assert hand().target(x0, noise, T) is noise
    torch.testing.assert_close(hand("v").target(x0, noise, T), column(1.6 - 0.6, -0.6 - 0.8))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_noising_velocity_and_x0_agree_with_diffusers(prediction):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(4, 4, 2, 3, generator=g), torch.randn(4, 4, 2, 3, generator=g)
    t, ours = torch.tensor([0, 17, 500, 999]), Schedule.sd15(prediction)
    xt, target = ours.add_noise(x0, noise, t), ours.target(x0, noise, t)
    torch.testing.assert_close(xt, theirs.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target, theirs.get_velocity(x0, noise, t) if prediction == "v" else noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.x0(xt, target, t), x0, rtol=1e-4, atol=1e-4)


def test_snr_is_signal_over_noise():
    torch.testing.assert_close(hand().snr(T), torch.tensor([0.64 / 0.36, 0.36 / 0.64]))
    utils = pytest.importorskip("diffusers.training_utils")
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.tensor([0, 1, 250, 999])
    torch.testing.assert_close(Schedule.sd15().snr(t), utils.compute_snr(scheduler, t), rtol=2e-4, atol=0)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_its_start():
    before, after = Schedule.sd15("v"), Schedule.sd15("v").zero_terminal_snr()
    assert after.alphas_cumprod[-1] == 0 and after.betas[-1] == 1 and after.prediction == "v"
    torch.testing.assert_close(after.alphas_cumprod[0], before.alphas_cumprod[0])
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    torch.testing.assert_close(after.betas, ddim.rescale_zero_terminal_snr(before.betas), rtol=1e-3, atol=1e-6)
    assert torch.isfinite(after.x0(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2), torch.tensor([999]))).all()


def test_zero_terminal_snr_is_computed_where_a_device_has_no_fp64(monkeypatch):
    """Apple's; the meta device stands for it here: its tensors have a device, and no numbers that may be asked for there."""
    schedule = Schedule.sd15("v")
    double, cpu, expected = torch.Tensor.double, torch.Tensor.cpu, schedule.zero_terminal_snr().alphas_cumprod

    def refuse(tensor):
        if tensor.device.type != "cpu":
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "double", refuse)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: schedule.alphas_cumprod if tensor.device.type == "meta" else cpu(tensor))
    moved = schedule.to("meta").zero_terminal_snr()
    assert moved.betas.device.type == moved.alphas_cumprod.device.type == "meta"
    monkeypatch.undo()
    assert torch.equal(schedule.zero_terminal_snr().alphas_cumprod, expected)


def test_half_precision_latents_are_mixed_in_fp32():
    assert Schedule.sd15().add_noise(torch.ones(1, 4, 2, 2, dtype=torch.bfloat16), torch.ones(1, 4, 2, 2), torch.tensor([3])).dtype == torch.float32


def test_a_schedule_moves_between_devices_and_says_what_it_cannot_predict():
    moved = Schedule.sd15("v").to("meta")
    assert moved.betas.device.type == moved.alphas_cumprod.device.type == "meta" and moved.prediction == "v"
    with pytest.raises(ValueError, match="'x0' is not known"):
        Schedule.sd15("x0")
