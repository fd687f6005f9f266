"""Shared fixtures: a small random model of SD1.5's structure, as a file and in memory, and a small data folder."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

gc.disable()  # nothing of what is imported and collected until the first test is garbage, and to look through it again and again takes seconds
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are small, and processes whose threads wait for each other by spinning stall each other

import pytest
import torch
from PIL import Image

from lib_tuner.data.pictures import from_pixels
from lib_tuner.demo.world import draw, random_scenes
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


class Untouched:
    """The parts of `random_parts`, made anew after a test that left anything in them: to build them takes longer than many a test."""

    def __init__(self) -> None:
        self._parts: tuple[Any, ...] = ()
        self._attributes: list[tuple[dict, dict]] = []  # of each module, and the parameters, hooks and the like among them: as they are, and as they were
        self._tensors: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._flags: list[Any] = []

    def parts(self) -> tuple[Any, ...]:
        if not self._as_made():
            self._parts = random_parts()
            own = [vars(module) for part in self._parts for module in part.modules()]
            self._attributes = [(now, dict(now)) for each in own for now in (each, *(value for value in each.values() if isinstance(value, dict)))]
            self._tensors = [tensor for part in self._parts for tensor in (*part.parameters(), *part.buffers())]
            self._values, self._flags = [tensor.clone() for tensor in self._tensors], self._now()
            self._random = torch.get_rng_state()
        torch.set_rng_state(self._random)  # so that no test sees what numbers the one before it drew
        return self._parts

    def _as_made(self) -> bool:
        try:
            same = bool(self._parts) and all(now == was for now, was in self._attributes)
        except RuntimeError:  # another tensor in the place of one: torch does not say whether they are equal
            return False
        return same and self._now() == self._flags and all(map(torch.equal, self._tensors, self._values))

    def _now(self) -> list[Any]:
        return [(p.dtype, p.shape, p.requires_grad, p.grad is None) for p in self._tensors]


@pytest.fixture(scope="session")
def untouched() -> Untouched:
    return Untouched()


@pytest.fixture(scope="session")
def programs() -> Iterator[dict[str, Any]]:
    """Programs that go on from one file of tests to the next, by name."""
    made: dict[str, Any] = {}
    yield made
    for each in made.values():
        each.end()


@pytest.fixture
def sd(checkpoint_file: Path, untouched: Untouched) -> Components:
    unet, text, vae = untouched.parts()
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
def stars(tmp_path: Path) -> Path:
    """Three drawings of a large red star on white to the left, as the embedded tagger knows them."""
    scenes = random_scenes(3, torch.Generator().manual_seed(3)).fixed(shape="star", colour="red", background="white", fill="solid", size="large", place="left")
    (tmp_path / "stars").mkdir()
    for name, pixels in zip("abc", draw(scenes, torch.Generator().manual_seed(4), 96)):
        from_pixels(pixels).save(tmp_path / "stars" / f"{name}.png")
    return tmp_path / "stars"


@pytest.fixture
def small_run(checkpoint_file: Path, data_folder: Path, tmp_path: Path) -> dict:
    """Settings of a LoRA run of six steps on the small random model, into `tmp_path / "out"`."""
    return {
        "name": "thing", "method": "lora", "checkpoint": str(checkpoint_file), "output": str(tmp_path / "out"), "data.folder": str(data_folder), "steps": 6,
        "save_every": 3, "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8, "data.batch": 2, "lora.rank": 2, "lora.alpha": 2, "optim.lr": "1e-2",
    }


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch shares operations out to two threads, whatever the machine or the run of tests has chosen."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unreadable_name() -> Callable[[Path], Path]:
    """Renames a file to one whose name is bytes that are no UTF-8, as an old ZIP or disk leaves them."""

    def rename(path: Path) -> Path:
        named = path.with_name(os.fsdecode(b"0 caf\xe9") + path.suffix)
        try:
            return path.rename(named)
        except OSError:
            pytest.skip("this file system takes names in UTF-8 alone")

    return rename


LONG = (  # in turns those that wait for a browser and those that compute
    "test_world", "test_page", "test_train", "test_localization_page", "test_hosts", "test_form_page", "test_methods", "test_dataset_page", "test_dreambooth", "test_compare_page", "test_webui_traps",
    "test_crop_page", "test_jobs", "test_webui_switch", "test_dataset_tag_page", "test_bench_compare", "test_webui_double", "test_comparisons", "test_runs", "test_control", "test_matrix",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the double in half precision, which a CPU computes slowly, only the tests that are marked `half` run; on the current gradio none that are marked
    `own_script`, since there our script and our routes do on both what is tested; on the WebUI's none that are marked `current_gradio`."""
    left_out = [item for item in items if "double-half" in item.name and not item.get_closest_marker("half") or left_to_other(item)]
    config.hook.pytest_deselected(items=left_out)
    left = [item for item in items if item not in left_out]
    items[:] = sorted(left, key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))  # two processes take turns at files: the longest may not come last


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.enable()
    keep()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a file of tests has imported, diffusers or gradio, is kept too."""
    if nextitem is None or nextitem.path != item.path:
        keep()


def keep() -> None:
    """What is there now (torch, pytest, thousands of tests) is not looked through at each of the collections with which runs end."""
    gc.collect()
    gc.freeze()


def left_to_other(item: pytest.Item) -> bool:
    """Whether a test of the page is for the other gradio alone."""
    gradios = getattr(item, "callspec", None) and item.callspec.params.values()
    return any(item.get_closest_marker(mark) and gradio in gradios for gradio, mark in (("current", "own_script"), ("webui", "current_gradio")) if gradios)


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Waits until something is so, and returns it; fails where it does not become so. Asks less often the longer it lasts: what is waited for needs the processor."""
    begun = time.monotonic()
    while not (answer := true()):
        waited = time.monotonic() - begun
        assert waited < seconds, "it did not happen"
        time.sleep(min(0.005 + waited / 20, 0.2))
    return answer
