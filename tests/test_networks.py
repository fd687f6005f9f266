"""The UNet and the VAE compute what diffusers' do with the same random weights."""

import copy

import pytest
import torch
from torch import nn

from lib_tuner.sd import names
from lib_tuner.sd.layers import Unfilled
from lib_tuner.sd.unet import UNet, UNetSizes
from lib_tuner.sd.vae import VAE, Autoencoder, VAESizes

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.webui_versions
WIDTHS = (32, 64, 96, 96)


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative error."""
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def shaken(module: nn.Module) -> nn.Module:
    """Random values everywhere: norms and biases too, which are ones and zeros at first and would hide an exchange."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1 * (p.std() if p.ndim > 1 else 1))
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unets():
    """A small UNet, and diffusers' with its weights."""
    torch.manual_seed(0)
    ours = shaken(UNet(UNetSizes(WIDTHS, context=48, heads=4)))
    theirs = diffusers.UNet2DConditionModel(block_out_channels=WIDTHS, cross_attention_dim=48, attention_head_dim=4)
    theirs.load_state_dict(names.unet_to_diffusers(ours.state_dict()))
    return ours, theirs.eval()


@pytest.mark.parametrize("h, w", [(8, 8), (16, 8), (7, 9), (1, 3)], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_unet_is_diffusers_at_any_size(unets, h, w, checkpointing):
    """In fp32 the gradients where the lowest level is a single pixel are not compared: diffusers' own are 3e-4 from those in double precision there."""
    ours, theirs = (copy.deepcopy(unet) for unet in unets)
    torch.manual_seed(0)
    x, t, ctx = torch.randn(2, 4, h, w), torch.tensor([3, 981]), torch.randn(2, 77, 48)
    g = torch.randn_like(x)
    ours.checkpointing = checkpointing
    for dtype, limit in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        words = ctx.to(dtype, copy=True).requires_grad_()
        mine, expected = ours.to(dtype)(x.to(dtype), t, words), theirs.to(dtype)(x.to(dtype), t, words).sample
        assert off(mine, expected) < limit
        if h > 1 or dtype is torch.float64:
            assert off(*(torch.autograd.grad(y, words, g.to(dtype))[0] for y in (mine, expected))) < limit


@pytest.fixture(scope="module")
def vaes():
    """A small VAE, and diffusers' with its weights."""
    torch.manual_seed(0)
    ours = shaken(VAE(VAESizes((32, 64, 64))))
    theirs = diffusers.AutoencoderKL(block_out_channels=(32, 64, 64), layers_per_block=2, latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 3,
                                     up_block_types=["UpDecoderBlock2D"] * 3)  # fmt: skip
    theirs.load_state_dict(names.vae_to_diffusers(ours.state_dict()))
    return ours, theirs.eval()


@torch.no_grad()
@pytest.mark.parametrize("h, w", [(32, 32), (24, 40)], ids=str)
def test_the_vae_encodes_and_decodes_as_diffusers(vaes, h, w):
    ours, theirs = vaes
    x, z = torch.rand(2, 3, h, w) * 2 - 1, torch.randn(2, 4, h // 4, w // 4)
    mean, std = ours.encode(x)
    expected = theirs.encode(x).latent_dist
    assert off(mean, expected.mean) < 1e-4 and off(std, expected.std) < 1e-4
    assert off(ours.decode(z), theirs.decode(z).sample) < 1e-4
    scaled = Autoencoder(ours)
    assert off(scaled.encode(x)[0], expected.mean * 0.18215) < 1e-4
    assert off(scaled.decode(z * 0.18215), theirs.decode(z).sample) < 1e-4


def test_what_a_file_fills_is_made_without_memory_and_random_numbers():
    sizes, before = UNetSizes(channels=(32, 32, 64, 64), context=48, heads=2), torch.get_rng_state()
    with Unfilled():
        made = UNet(sizes)
    assert all(p.is_meta for p in made.parameters()) and torch.equal(torch.get_rng_state(), before)
    as_usual = UNet(sizes)
    assert {key: tuple(value.shape) for key, value in made.state_dict().items()} == {key: tuple(value.shape) for key, value in as_usual.state_dict().items()}
    state = as_usual.state_dict()
    assert all(map(torch.equal, UNet.from_state(state, 2).state_dict().values(), state.values()))
    assert UNet(sizes).out[2].weight.std() > 0.01, "a start afterwards is none"
