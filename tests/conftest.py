"""Shared fixtures: a small random model of SD1.5's structure, as a file and in memory, and a small data folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are small, and processes whose threads wait for each other by spinning stall each other

import pytest
import torch
from PIL import Image

from lib_tuner.host import Components
from lib_tuner.sd.clip import CLIPSizes, CLIPText
from lib_tuner.sd.files import save_checkpoint
from lib_tuner.sd.schedule import Schedule
from lib_tuner.sd.text import TextEncoder
from lib_tuner.sd.unet import UNet, UNetSizes
from lib_tuner.sd.vae import VAE, Autoencoder, VAESizes

UNET = UNetSizes(channels=(32, 64, 96, 96), context=48, heads=4)
TEXT = CLIPSizes(width=48, layers=2, heads=4, inner=96)
SMALL_VAE = VAESizes((32, 32, 32, 32))


def random_parts(seed: int = 0, inputs: int = 4) -> tuple[UNet, CLIPText, VAE]:
    """A UNet, text encoder and VAE with default random weights, frozen."""
    torch.manual_seed(seed)
    parts = UNet(replace(UNET, inputs=inputs)), CLIPText(TEXT), VAE(SMALL_VAE)
    return tuple(part.eval().requires_grad_(False) for part in parts)


@pytest.fixture
def sd(checkpoint_file: Path) -> Components:
    unet, text, vae = random_parts()
    return Components(unet, TextEncoder(text), Autoencoder(vae), Schedule.sd15(), nullcontext, "0123456789abcdef" * 4, "small", torch.device("cpu"), torch.float32, file=checkpoint_file)


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random model as a checkpoint."""
    return write_random(tmp_path_factory.mktemp("model") / "small.safetensors")


@pytest.fixture(scope="session")
def inpainting_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inpainting model (9 channels) of the same sizes."""
    return write_random(tmp_path_factory.mktemp("inpainting") / "nine.safetensors", inputs=9)


def write_random(path: Path, seed: int = 0, inputs: int = 4) -> Path:
    """The parts of `random_parts` as a checkpoint."""
    unet, text, vae = random_parts(seed, inputs)
    heads = {"tuner_unet_heads": str(UNET.heads), "tuner_text_heads": str(TEXT.heads)}
    return save_checkpoint(path, unet.state_dict(), vae.state_dict(), text.state_dict(), heads)


def widened(weight: torch.Tensor) -> torch.Tensor:
    """The first convolution (C, 4, 3, 3) of an ordinary model as that of an inpainting model which does not look at its five new channels yet."""
    return torch.cat([weight, weight.new_zeros(len(weight), 5, 3, 3)], 1)


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Six coloured 64 px pictures with captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        picture = Image.radial_gradient("L").resize((64, 64))
        Image.merge("RGB", [picture.point(lambda v, k=k: (v * (i + 1) * (k + 2)) % 256) for k in range(3)]).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a thing number {i}, red, round", encoding="utf-8")
    return folder


@pytest.fixture
def small_run(checkpoint_file: Path, data_folder: Path, tmp_path: Path) -> dict:
    """Settings of a LoRA run of six steps on the small random model, into `tmp_path / "out"`."""
    return {
        "name": "thing", "method": "lora", "checkpoint": str(checkpoint_file), "output": str(tmp_path / "out"), "data.folder": str(data_folder), "steps": 6,
        "save_every": 3, "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8, "data.batch": 2, "lora.rank": 2, "lora.alpha": 2, "optim.lr": "1e-2",
    }


LONG = ("test_world", "test_hosts", "test_page", "test_webui_page", "test_localization_page", "test_webui_extension", "test_webui_traps")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the double in half precision, which a CPU computes slowly, only the tests that are marked `half` run."""
    slow = [item for item in items if "double-half" in item.name and not item.get_closest_marker("half")]
    config.hook.pytest_deselected(items=slow)
    left = [item for item in items if item not in slow]
    items[:] = sorted(left, key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))  # two processes take turns at files: the longest may not come last


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Waits until something is so, and returns it; fails where it does not become so."""
    end = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return answer
