"""Every example has the hint of its own pixels: cropped, mirrored and scaled with them, made or of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from lib_tuner.data.batches import Batches, validation
from lib_tuner.data.conditions import Recipe, make_hint
from lib_tuner.data.hints import Hints
from lib_tuner.data.items import from_rows, items_digest, scan, to_rows
from lib_tuner.data.pictures import fit, from_pixels, to_pixels
from lib_tuner.methods import METHODS, settings
from lib_tuner.settings import DataConfig

SIZES = [(96, 64), (64, 96), (80, 80), (200, 96)]


class Pixels:
    """A VAE whose latents are the means of 8 x 8 pixels: what it saw can be read off them."""

    cache_key, factor = "pixels", 8

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        small = torch.nn.functional.avg_pool2d(x, 8)
        return torch.cat([small, small[:, :1]], 1), torch.zeros(len(x), 4, *small.shape[2:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data" / "pictures"
    made.mkdir(parents=True)
    g = torch.Generator().manual_seed(1)
    for i, (w, h) in enumerate(SIZES):
        x = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=g), size=(h, w), mode="bicubic")[0].clamp(0, 1)
        from_pixels(x * 2 - 1).save(made / f"p{i}.png")
        (made / f"p{i}.txt").write_text(f"thing {i}", encoding="utf-8")
    return made


def config(folder: Path, **more) -> DataConfig:
    given = {"folder": str(folder), "resolution": 64, "bucket_min": 32, "bucket_max": 128, "bucket_step": 8, "batch": 3, "latent": "deterministic", **more}
    return DataConfig(**given)


def batches(cfg: DataConfig, hints: Hints, items=None) -> Batches:
    return Batches(cfg, SimpleNamespace(vae=Pixels()), 5, items=items, hints=hints)


def own(folder: Path, **more) -> Hints:
    return Hints(Recipe("own"), str(folder), **more)


AUGMENTED = {"flip": "all", "crop_jitter": 12, "crop_variants": 3}


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_a_hint_is_of_the_very_pixels_that_the_latent_is_of(folder, cache):
    """The grid of 8 px cells is the mean of 8 x 8 pixels, which is what this VAE gives."""
    run, flips, shifts = batches(config(folder, cache=cache, **AUGMENTED), Hints(Recipe("colour", cell=8))), set(), set()
    for step in range(12):
        batch = run.at(step)
        assert batch.hint.shape == (len(batch), 3, 8 * batch.latents.shape[2], 8 * batch.latents.shape[3])
        means = torch.nn.functional.avg_pool2d(batch.hint * 2 - 1, 8)
        assert (means - batch.latents[:, :3]).abs().max() <= 1.01 / 255  # rounded to steps of 1 / 255
        flips |= {view.flip for view in batch.views}
        shifts |= {view.shift for view in batch.views}
    assert flips == {True, False} and len(shifts) > 3


@pytest.mark.parametrize("masks", [True, False])
def test_a_hint_of_a_cut_out_has_the_background_that_its_latent_has(folder, masks):
    """With masks the colours under a transparent background stay as they were painted, without they become white: in the latent and in the hint."""
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            alpha = Image.linear_gradient("L").resize(image.size).point(lambda v: 255 * (v > 100))
            image.putalpha(alpha)
            image.save(path)
    batch = batches(config(folder, masks=masks), Hints(Recipe("colour", cell=8), masks=masks)).at(0)
    means = torch.nn.functional.avg_pool2d(batch.hint * 2 - 1, 8)
    assert (means - batch.latents[:, :3]).abs().max() <= 1.01 / 255
    assert METHODS["controlnet"](settings({"data.folder": "x", "method": "controlnet", "data.masks": masks})).hints.masks == masks


def test_ones_own_hint_is_cropped_and_mirrored_with_the_picture(folder, tmp_path):
    """The hints are the pictures themselves, half as large: under the same geometry they show what the latent is of."""
    hints = tmp_path / "hints"
    hints.mkdir()
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC).save(hints / f"{path.stem}.webp", lossless=True)
    run = batches(config(folder, **AUGMENTED), own(hints))
    assert len(run.items) == 4 and run.problems == []
    for step in range(10):
        batch = run.at(step)
        means = torch.nn.functional.avg_pool2d(batch.hint * 2 - 1, 8)
        assert (means - batch.latents[:, :3]).abs().mean() < 0.02 and (means.flip(3) - batch.latents[:, :3]).abs().mean() > 0.05


def test_a_hint_that_is_made_is_the_formulas(folder):
    items, _ = scan(config(folder), folder)
    run = batches(config(folder, **AUGMENTED), Hints(Recipe("canny", 20, 60)))
    batch = run.at(1)
    for hint, item, view in zip(batch.hint, batch.items, batch.views):
        with Image.open(item.path) as image:
            pixels = (to_pixels(fit(image.convert("RGB"), None, view)[0]) + 1) / 2
        assert torch.equal(hint, make_hint(pixels, Recipe("canny", 20, 60)).expand(3, -1, -1)) and hint.any()
    assert {item.hint for item in items} == {None}


def test_without_a_method_that_asks_there_are_none(folder):
    assert batches(config(folder), None).at(0).hint is None


def test_processes_share_hints_and_held_out_pictures_have_theirs(folder):
    hints = Hints(Recipe("softedge"))
    run = batches(config(folder, batch=2, buckets=False), hints)
    whole, parts = run.at(0), [run.at(0, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([part.hint for part in parts]), whole.hint)
    held = validation(config(folder, validation_folder=str(folder)), SimpleNamespace(vae=Pixels()), hints=hints)
    assert all(batch.hint.shape[:2] == (len(batch), 3) and batch.hint.shape[2] == 8 * batch.latents.shape[2] for batch in held) and held


def test_memory_is_bounded_and_what_is_forgotten_is_made_the_same(folder):
    cfg = config(folder, **AUGMENTED)
    plenty, tight = Hints(Recipe("lineart")), Hints(Recipe("lineart"), limit=10_000)
    for step in list(range(8)) * 2:
        assert torch.equal(batches(cfg, plenty).at(step).hint, batches(cfg, tight).at(step).hint)
        assert tight.bytes <= 10_000 and tight.bytes == sum(t.numel() for t in tight._held.values())
    assert plenty.bytes > 20_000


# ---- pairs -----------------------------------------------------------------------------------------------------------


def put(path: Path, size=(64, 64), shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 200, 30)).save(path)
    return path


def test_pairs_are_found_by_name_and_folder(tmp_path):
    data, hints = tmp_path / "data", tmp_path / "hints"
    for name in ("a/1.png", "b/1.png", "a/2.png", "b/3.png", "c/4.png"):
        put(data / name, shade=len(name) + ord(name[2]) + ord(name[0]))
    wanted = {"a/1.png": put(hints / "a" / "1.png"), "b/1.png": put(hints / "1.jpg"), "a/2.png": put(hints / "2.png"), "b/3.png": put(hints / "b" / "3.bmp")}
    put(hints / "d" / "4.png")  # of a picture in a folder d
    items, problems = own(hints).paired(scan(config(data), data)[0])
    assert {item.path.relative_to(data).as_posix(): item.hint for item in items} == {name: path.resolve() for name, path in wanted.items()}
    assert [str(p) for p in problems] == ["4.png has no hint in the folder of hints, so it is left out."]


def test_hints_among_the_pictures_are_not_trained_on_and_what_is_wrong_is_said(tmp_path):
    data = tmp_path / "data"
    for i, size in enumerate([(64, 64), (64, 64), (64, 32), (64, 64)]):
        put(data / f"{i}.png", size, i)
    put(data / "again" / "0.png", shade=9)
    for i in range(3):
        put(data / "hints" / f"{i}.png", shade=50 + i)
    (data / "hints" / "3.png").write_bytes(b"no picture")
    run = batches(config(data), own(data / "hints"))
    assert sorted(item.path.relative_to(data).as_posix() for item in run.items) == ["0.png", "1.png", "2.png", "again/0.png"]
    said = " ".join(str(p) for p in run.problems if p.kind == "hint")
    assert "shares its hint with 0.png" in said and "2.png is 64 x 64 px, another shape than 2.png (64 x 32 px)" in said
    assert "3.png is no picture that Pillow can read" in said and "so 3.png is left out" in said
    assert not [p for p in run.problems if p.path.parent.name == "hints" and p.kind != "hint"]


@pytest.mark.parametrize(("name", "words"), [("nowhere", "hints: .* is no folder"), ("empty", "has no hint for any"), ("data", "the training pictures themselves")])
def test_folders_that_cannot_be(tmp_path, name, words):
    put(tmp_path / "data" / "1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=words):
        batches(config(tmp_path / "data"), own(tmp_path / name))


def test_a_resumed_run_has_the_same_hints_and_refuses_others(tmp_path):
    put(tmp_path / "data" / "1.png")
    hint = put(tmp_path / "hints" / "1.png")
    hints = own(tmp_path / "hints")
    before = batches(config(tmp_path / "data"), hints)
    items = from_rows(to_rows(before.items))
    assert items == before.items and items[0].hint == hint.resolve()
    plain = [replace(item, hint=None, hint_digest="") for item in items]
    assert items_digest(items) != items_digest(plain)
    put(hint, shade=99)
    with pytest.raises(ValueError, match="the file changed"):
        batches(config(tmp_path / "data"), own(tmp_path / "hints"), items).at(0)
    hint.unlink()
    with pytest.raises(ValueError, match="the hint is gone"):
        batches(config(tmp_path / "data"), own(tmp_path / "hints"), items).at(0)


def test_samples_are_drawn_under_training_hints_or_a_folders(folder, tmp_path):
    items, _ = scan(config(folder), folder)
    of_training = Hints(Recipe("colour", cell=8)).samples(items, [(64, 48)] * 5)
    assert all(hint.shape == (3, 48, 64) for hint in of_training) and torch.equal(of_training[0], of_training[4]) and not torch.equal(of_training[0], of_training[1])
    put(tmp_path / "shown" / "a.png", (32, 32), 255)
    shown = Hints(Recipe("canny"), shown=str(tmp_path / "shown")).samples(items, [(40, 24)])
    assert shown[0].shape == (3, 24, 40) and torch.allclose(shown[0][:, 3, 3], torch.tensor([255.0, 200, 30]) / 255)  # as they are: they are hints already
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="sample_hints: .* holds no picture"):
        Hints(Recipe("canny"), shown=str(empty)).samples(items, [(64, 64)])
