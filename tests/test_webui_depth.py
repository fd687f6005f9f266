"""The WebUI's own MiDaS as the model of depth hints: asked once, left nowhere. In a real WebUI with weights that were drawn at random, since none are downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_hosts import difference
from worlds import REAL, WORLDS, world_of

from lib_tuner.methods import settings


@pytest.fixture(scope="module", params=[name for name in WORLDS if name not in ("standalone", "double-half")])
def world(request, tmp_path_factory) -> Any:
    with world_of(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture
def picture() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.linspace(0, 1, 96).expand(64, 96), *torch.rand(2, 64, 96, generator=generator)])


@pytest.fixture
def api(world) -> Any:
    return world.w.sd_models.midas.api


@pytest.fixture
def weights(world, api) -> Iterator[Path]:
    """A file as the host would have fetched it; the double has its own network."""
    path = Path(api.ISL_PATHS["dpt_hybrid"])
    if path.is_file():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if REAL:
        torch.manual_seed(0)
        torch.save(api.DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True).state_dict(), path, _use_new_zipfile_serialization=False)  # the host refuses the newer form
    else:
        path.touch()
    yield path
    path.unlink()


def host() -> Any:
    from lib_tuner.hosts.a1111 import WebUI

    return WebUI(settings({"method": "controlnet", "data.folder": "x", "controlnet.hint": "depth"}))


def test_it_is_loaded_when_it_is_asked_and_nothing_of_it_stays(world, api, weights, picture, monkeypatch):
    asked = []
    monkeypatch.setattr(api, "load_model", lambda kind, inner=api.load_model: (asked.append(kind), inner(kind))[1])
    before = world.snapshot()
    with host().exclusive() as sd:
        assert asked == []
        first, second = sd.depth(picture), sd.depth(picture)
        assert asked == ["dpt_hybrid"] and torch.equal(first, second)
        assert first.shape == (1, 64, 96) and first.dtype == torch.float32 and first.min() == 0 and first.max() == 1
        if not REAL:
            assert (first[0] - picture[0]).abs().max() < 0.03  # the double's network gives the red
    assert difference(before, world.snapshot()) == {}


def test_a_file_that_was_cut_off_is_one_sentence_that_names_it(world, api, weights, picture):
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2]) if whole else weights.unlink()
    try:
        with host().exclusive() as sd, pytest.raises(ValueError, match="depth_model: the WebUI cannot load MiDaS .*delete that file if it is there") as error:
            sd.depth(picture)
        assert str(weights) in str(error.value) and "\n" not in str(error.value)
    finally:
        weights.write_bytes(whole)
