"""Hints that are made of a picture: each by another's code or its written formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib_tuner.data.conditions import GRAY, KINDS, Recipe, canny, colour_grid, gaussian, gray, line_art, make_hint, sobel, soft_edge, tile


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """(3, 96, 80): smooth colours with a disc, a bar and a little noise."""
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(1, 3, 6, 5, generator=g), size=(96, 80), mode="bicubic").clamp(0, 1)[0]
    yy, xx = torch.meshgrid(torch.arange(96.0), torch.arange(80.0), indexing="ij")
    x = torch.where((yy - 40) ** 2 + (xx - 30) ** 2 < 400, 1 - x, x)
    x[:, 70:74, 10:70] = torch.tensor([0.1, 0.2, 0.0])[:, None, None]
    return (x + 0.02 * torch.randn(x.shape, generator=g)).clamp(0, 1)


@pytest.mark.parametrize("recipe", [Recipe("canny"), Recipe("canny", 30, 60, 2.0), Recipe("canny", 50, 300, 0.7), Recipe("canny", 0, 40, 1.0)])
def test_canny_is_scikit_images(picture, recipe):
    feature = pytest.importorskip("skimage.feature")
    expected = feature.canny(gray(picture)[0].numpy().astype(np.float64), recipe.blur, recipe.low / 255, recipe.high / 255, mode="nearest")
    found = canny(picture, recipe)[0].numpy()
    assert set(np.unique(found)) == {0, 1} and found.shape == (96, 80)
    assert (found.astype(bool) != expected).mean() < 1e-3 and 0.005 < expected.mean() < 0.5  # fp32 beside fp64


def test_canny_joins_weak_edges_to_strong_ones_and_drops_the_others():
    step = torch.linspace(0.02, 0.5, 60)  # an edge that grows stronger along its way
    x = torch.zeros(60, 40)
    x[:, 20:] = step[:, None]
    weak = canny(x.expand(3, -1, -1), Recipe("canny", 40, 250, 1.0))[0]
    rows = weak.any(1).nonzero()[:, 0]
    strong = canny(x.expand(3, -1, -1), Recipe("canny", 250, 250, 1.0))[0].any(1).nonzero()[:, 0]
    assert len(rows) > len(strong) > 0 and rows.min() < strong.min() and rows.max() == strong.max()
    assert not canny(x.expand(3, -1, -1) * 0.5, Recipe("canny", 40, 250, 1.0)).any()  # none of it is strong
    assert not canny(torch.full((3, 20, 20), 0.4), Recipe("canny", 0, 0)).any()


def test_a_blur_and_sobel_are_scipys(picture):
    ndimage = pytest.importorskip("scipy.ndimage")
    np.testing.assert_allclose(gaussian(picture, 1.3)[1].numpy(), ndimage.gaussian_filter(picture[1].numpy(), 1.3, mode="nearest", radius=6), atol=1e-5)
    down, right = sobel(picture)
    np.testing.assert_allclose(down[2].numpy(), ndimage.sobel(picture[2].numpy(), axis=0, mode="nearest"), atol=1e-5)
    np.testing.assert_allclose(right[2].numpy(), ndimage.sobel(picture[2].numpy(), axis=1, mode="nearest"), atol=1e-5)


def test_soft_edges_are_the_longest_gradient_in_parts_of_the_99th_percentile(picture):
    blurred = gaussian(picture, 1.0)
    length = torch.stack([torch.hypot(*(d[0] for d in sobel(blurred[k : k + 1]))) for k in range(3)]).amax(0)
    expected = (length / length.flatten().sort().values[int(np.ceil(0.99 * length.numel())) - 1]).clamp(0, 1)
    torch.testing.assert_close(soft_edge(picture, Recipe("softedge"))[0], expected, rtol=1e-4, atol=1e-5)
    assert soft_edge(torch.full((3, 20, 20), 0.3) + 0.001 * torch.rand(3, 20, 20), Recipe("softedge")).max() < 0.2  # noise is no edge


def test_line_art_is_what_is_darker_than_around_it(picture):
    sigma = 6 * 80 / 512
    levels = (picture * 255).double()
    darker = (gaussian(levels.float(), sigma).double() - levels).amin(0).clamp(0, 255)
    expected = (darker / max(16, float(darker[darker > 8].median())) * 127).clamp(0, 255) / 255
    torch.testing.assert_close(line_art(picture, Recipe("lineart"))[0].double(), expected, rtol=1e-3, atol=1e-3)
    assert line_art(torch.ones(3, 32, 32), Recipe("lineart")).abs().max() < 1e-4


def test_a_colour_grid_has_each_cells_mean(picture):
    found = colour_grid(picture, Recipe("colour", cell=16))
    for y in range(0, 96, 16):
        for x in range(0, 80, 16):
            mean = picture[:, y : y + 16, x : x + 16].mean((1, 2))
            torch.testing.assert_close(found[:, y : y + 16, x : x + 16], mean[:, None, None].expand(3, 16, 16))
    assert len(colour_grid(picture, Recipe("colour")).flatten(1).unique(dim=1)[0]) == 1  # 64 px: one cell
    assert colour_grid(torch.rand(3, 40, 130), Recipe("colour", cell=50)).shape == (3, 40, 130)


def test_a_tile_has_the_pictures_colours_without_its_details(picture):
    found = tile(picture, Recipe("tile"))
    assert (found.mean((1, 2)) - picture.mean((1, 2))).abs().max() < 0.02
    assert sum(d.abs().mean() for d in sobel(found)) < 0.7 * sum(d.abs().mean() for d in sobel(picture))
    assert tile(picture, Recipe("tile", cell=1)).allclose(picture, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_hint_has_the_pictures_size_and_follows_it_when_mirrored(picture, kind):
    found = make_hint(picture, Recipe(kind))
    assert found.shape[1:] == (96, 80) and len(found) == (1 if kind in GRAY else 3) and 0 <= found.min() <= found.max() <= 1
    mirrored = make_hint(picture.flip(2), Recipe(kind)).flip(2)
    assert (mirrored - found).abs().mean() < 2e-3  # canny's ridges of two equal pixels have a side
