"""How the embedded VAE was made: a start that already carries colours through, training on the drawn world, whitened latents.

With 32 norm groups a small VAE that starts from default initialisation loses all object colours: a group holds two channels, and the norm
takes away the mean and the strength of both. So the start is a linear path: colours are carried as averages into three latents and back,
next to a border pattern of large, known strength, against which the norm's division keeps their own strength (`_border`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..sd.vae import VAE, ResnetBlock, AttnBlock, VAESizes
from .world import draw, random_scenes

SCALE = 0.18215  # SD1.5's latent scale; the whitening is folded into the file so that it holds here too
CONSTANT = 12  # channels 0..11 carry colours (+x, -x, -x, +x each), channel 12 the number one


def linear_start(vae: VAE) -> None:
    """Sets the weights so that decode(encode(x)) is about the 8 x 8 averages of x."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight), nn.init.zeros_(module.conv2.bias)
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight), nn.init.zeros_(module.proj_out.bias)
    with torch.no_grad():
        _take_colours(vae.encoder.conv_in)
        _take_colours(vae.decoder.conv_in)
        average = torch.zeros(3, 3)
        average[:2, :2] = 0.25
        centre = torch.zeros(3, 3)
        centre[1, 1] = 1
        downs = [level.downsample.conv for level in vae.encoder.down[:-1]]
        ups = [level.upsample.conv for level in reversed(vae.decoder.up[1:])]
        for convolution, kernel in [(c, average) for c in downs] + [(c, centre) for c in ups]:
            _carry(convolution, kernel)
        corner = torch.zeros(3, 3)
        corner[0, 0], corner[0, 2], corner[2, 0] = 1, -0.5, -0.5  # padded right and below only
        _border(downs[-1], corner * 8.5)
        _border(ups[-1], (9 * centre - 1) * 2.8)
        _give_colours(vae.encoder.conv_out)
        _give_colours(vae.decoder.conv_out)
        for convolution in (vae.quant_conv, vae.post_quant_conv):
            convolution.weight.copy_(torch.eye(len(convolution.bias))[:, :, None, None])
            convolution.bias.zero_()
        vae.quant_conv.bias[4:] = -5.0  # start with little noise in the latent


def _take_colours(convolution: nn.Conv2d) -> None:
    convolution.weight[: CONSTANT + 2] = 0
    convolution.bias[: CONSTANT + 2] = 0
    convolution.bias[CONSTANT] = 1
    for k in range(3):
        convolution.weight[4 * k : 4 * k + 4, k, 1, 1] = torch.tensor([1.0, -1.0, -1.0, 1.0])


def _carry(convolution: nn.Conv2d, kernel: Tensor) -> None:
    convolution.weight[: CONSTANT + 2] = 0
    convolution.bias[: CONSTANT + 2] = 0
    for c in range(CONSTANT + 1):
        convolution.weight[c, c] = kernel


def _border(convolution: nn.Conv2d, kernel: Tensor) -> None:
    """Adds a pattern p that is zero inside and strong at the border: groups become (x + p, -x + p) and (-x - p, x - p)."""
    for k in range(3):
        convolution.weight[4 * k : 4 * k + 2, CONSTANT] = kernel
        convolution.weight[4 * k + 2 : 4 * k + 4, CONSTANT] = -kernel


def _give_colours(convolution: nn.Conv2d) -> None:
    """After norm and silu: silu(a) - silu(-a) = a makes the path linear, and (x + p) - (-x + p) = 2x."""
    convolution.weight[:3] = 0
    convolution.bias[:3] = 0
    for k in range(3):
        convolution.weight[k, 4 * k : 4 * k + 4, 1, 1] = torch.tensor([1.0, -1.0, -1.0, 1.0]) * 1.05


def pictures(count: int, generator: torch.Generator) -> Tensor:
    """Training pictures of the VAE (B, 3, 64, 64): the world with its held-out parts, and an eighth generic pictures, as SD's VAE has seen everything."""
    scenes = random_scenes(count, generator, held_out=True)
    pixels = draw(scenes, generator)
    generic = torch.rand(count, generator=generator) < 0.125
    if generic.any():
        n = int(generic.sum())
        coarse = torch.rand(n, 3, 9, 9, generator=generator) * 2.6 - 1.3
        pixels[generic] = F.interpolate(coarse, size=64, mode="bicubic", align_corners=True).clamp(-1, 1)
    return pixels


def vae_loss(vae: VAE, steps: int) -> Callable[[int, torch.Generator], tuple[Tensor, float]]:
    """The loss of one step and its PSNR in dB: MSE + 0.1 L1 + 1e-5 KL, and in the second half the difference of neighbouring pixels."""

    def loss_at(step: int, generator: torch.Generator) -> tuple[Tensor, float]:
        x = pictures(8, generator)
        with torch.autocast("cpu", torch.bfloat16):  # halves the time here, unlike in the UNet
            mean, std = vae.encode(x)
            y = vae.decode(mean + std * torch.randn(mean.shape, generator=generator))
        y, mean, std = y.float(), mean.float(), std.float()
        mse = F.mse_loss(y, x)
        loss = mse + 0.1 * F.l1_loss(y, x) + 0.5e-5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
        if step > steps // 2:
            loss = loss + 0.1 * (F.l1_loss(y.diff(dim=2), x.diff(dim=2)) + F.l1_loss(y.diff(dim=3), x.diff(dim=3)))
        return loss, float(10 * torch.log10(4 / mse.detach()))

    return loss_at


def decoder_loss(vae: VAE) -> Callable[[int, torch.Generator], tuple[Tensor, float]]:
    """The loss of the decoder's second training, on the latents as they will stay: MSE + 0.1 L1 + the difference of neighbouring pixels."""

    def loss_at(step: int, generator: torch.Generator) -> tuple[Tensor, float]:
        x = pictures(8, generator)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                z, std = vae.encode(x)
                z = z + std * torch.randn(z.shape, generator=generator)
            y = vae.decode(z).float()
        mse = F.mse_loss(y, x)
        edges = F.l1_loss(y.diff(dim=2), x.diff(dim=2)) + F.l1_loss(y.diff(dim=3), x.diff(dim=3))
        return mse + 0.1 * F.l1_loss(y, x) + 0.1 * edges, float(10 * torch.log10(4 / mse.detach()))

    return loss_at


@torch.no_grad()
def whiten(vae: VAE, pixels: Tensor) -> None:
    """Folds a 4 x 4 whitening and the scale 0.18215 into quant_conv and post_quant_conv: scaled latents get mean 0, covariance 1."""
    means, stds = zip(*(vae.encode(x) for x in pixels.split(64)))
    z = torch.cat(means).movedim(1, -1).flatten(0, 2)  # (n, 4)
    variance = (torch.cat(stds) ** 2).mean((0, 2, 3))  # (4,)
    mu, cov = z.mean(0), torch.cov(z.T)
    values, vectors = torch.linalg.eigh(cov)
    forward = vectors @ torch.diag(values.rsqrt()) @ vectors.T / SCALE  # symmetric: latents stay close to what they were
    back = torch.linalg.inv(forward)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] = torch.einsum("ij,jcxy->icxy", forward, quant.weight[:4])
    quant.bias[:4] = forward @ (quant.bias[:4] - mu)
    quant.weight[4:], quant.bias[4:] = 0, (forward**2 @ variance).log()  # the noise is small: one variance per latent will do
    post.bias += torch.einsum("icxy,c->i", post.weight, mu)
    post.weight.copy_(torch.einsum("icxy,cj->ijxy", post.weight, back))


def new_vae(seed: int) -> VAE:
    """An untrained VAE of four levels of 64 channels, on the linear path."""
    torch.manual_seed(seed)
    vae = VAE(VAESizes((64, 64, 64, 64)))
    linear_start(vae)
    return vae
