"""Latents and text states are made once, and a cache never changes what training sees."""

import os
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch.nn.functional import avg_pool2d

from lib_tuner.data.cache import Entry, LatentCache, TextCache
from lib_tuner.data.items import scan
from lib_tuner.data.pictures import View
from lib_tuner.settings import DataConfig

VIEW = View((64, 32))


class MeanVAE:
    """Stands for the VAE: the mean of each 8 x 8 block, with a fourth channel; counts what it encodes."""

    factor = 8

    def __init__(self, key="a"):
        self.cache_key, self.calls = key, 0

    def encode(self, pixels):
        self.calls += len(pixels)
        mean = avg_pool2d(torch.cat([pixels, pixels.mean(1, keepdim=True)], 1), 8)
        return mean, mean.abs() * 0.1 + 0.01


@pytest.fixture
def item(tmp_path):
    from skimage.data import astronaut

    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(astronaut()[100:300, 100:400]).save(folder / "a person.png")
    return scan(DataConfig(), folder)[0][0]


def same(a, b):
    return torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std) and ((a.mask is None and b.mask is None) or torch.equal(a.mask, b.mask))


def test_memory_encodes_once_and_off_encodes_every_time(item):
    for kind, calls in (("memory", 1), ("off", 3)):
        vae = MeanVAE()
        cache = LatentCache(vae, kind)
        entries = [cache.get(item, VIEW) for _ in range(3)]
        assert vae.calls == calls and all(same(entries[0], entry) for entry in entries)
        assert entries[0].mean.shape == (4, 4, 8) and entries[0].mean.dtype == torch.float32


def test_the_entry_is_the_encoded_crop(item):
    entry = LatentCache(MeanVAE()).get(item, VIEW)
    whole = Image.open(item.path).resize((64, 43), Image.Resampling.LANCZOS).crop((0, 5, 64, 37))
    expected = torch.tensor(list(whole.tobytes()), dtype=torch.float32).view(32, 64, 3).permute(2, 0, 1) / 127.5 - 1
    assert (entry.mean[:3] - avg_pool2d(expected, 8)).abs().max() < 0.02  # `reducing_gap` may differ by a shade
    flipped = LatentCache(MeanVAE()).get(item, View((64, 32), flip=True))
    assert torch.allclose(flipped.mean, entry.mean.flip(-1), atol=1e-6)


def test_disk_is_read_by_the_next_run(item, tmp_path):
    first, second = MeanVAE(), MeanVAE()
    a = LatentCache(first, "disk", tmp_path / "cache").get(item, VIEW)
    cache = LatentCache(second, "disk", tmp_path / "cache")
    assert same(a, cache.get(item, VIEW)) and (first.calls, second.calls) == (1, 0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cache.key(item, VIEW) + ".safetensors"]  # no temporary file stays


def other_shape(data):
    return save({"mean": torch.zeros(4, 8, 4), "std": torch.zeros(4, 8, 4)})


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: bytes(len(data)), other_shape])
def test_a_damaged_cache_file_is_written_anew(item, tmp_path, damage):
    vae = MeanVAE()
    cache = LatentCache(vae, "disk", tmp_path / "cache")
    a = cache.get(item, VIEW)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert same(a, cache.get(item, VIEW)) and vae.calls == 2 and file.read_bytes() == whole


def test_the_key_sees_content_view_mask_and_vae_but_no_seed(item):
    from dataclasses import replace

    base = LatentCache(MeanVAE())
    keys = [
        base.key(item, VIEW),
        base.key(replace(item, digest="other"), VIEW),
        base.key(item, View((32, 64))),
        base.key(item, View((64, 32), (1, 0))),
        base.key(item, View((64, 32), room=4)),
        base.key(item, View((64, 32), flip=True)),
        LatentCache(MeanVAE("b")).key(item, VIEW),
        LatentCache(MeanVAE(), masks=True).key(item, VIEW),
        LatentCache(MeanVAE(), masks=True).key(replace(item, mask_digest="m"), VIEW),
    ]
    assert len(set(keys)) == len(keys)
    assert base.key(replace(item, path=item.path.with_name("moved.png"), caption="x", mask_digest="m"), VIEW) == keys[0]


def test_masks_are_cached_with_the_latent(tmp_path):
    image = Image.new("RGBA", (64, 32), (200, 100, 50, 255))
    image.paste((200, 100, 50, 0), (0, 0, 20, 32))
    (tmp_path / "data").mkdir()
    image.save(tmp_path / "data" / "a.png")
    item = scan(DataConfig(masks=True), tmp_path / "data")[0][0]
    for _ in range(2):
        mask = LatentCache(MeanVAE(), "disk", tmp_path / "cache", masks=True).get(item, VIEW).mask
        assert mask.shape == (1, 4, 8) and mask[0, 0].tolist() == [0, 0, 0.5, 1, 1, 1, 1, 1]
    assert LatentCache(MeanVAE(), "disk", tmp_path / "cache").get(item, VIEW).mask is None


def test_a_cache_folder_that_cannot_be_written_is_one_sentence(item, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"^the latent cache .*/file/cache' cannot be written \(.*\); set data.cache_folder"):
        LatentCache(MeanVAE(), "disk", tmp_path / "file" / "cache").get(item, VIEW)


def test_a_full_disk_leaves_nothing_half_written(item, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        LatentCache(MeanVAE(), "disk", tmp_path / "cache").get(item, VIEW)
    assert not list((tmp_path / "cache").iterdir())


def test_a_vae_that_overflows_is_named(item):
    vae = SimpleNamespace(encode=lambda pixels: (torch.full((1, 4, 4, 8), float("nan")), torch.ones(1, 4, 4, 8)), cache_key="n", factor=8)
    with pytest.raises(ValueError, match="a person.png: the VAE gives numbers that are not finite"):
        LatentCache(vae).get(item, VIEW)


# ---- how a latent is drawn


def test_each_way_to_draw_a_latent():
    entry = Entry(torch.full((4, 40, 50), 3.0), torch.full((4, 40, 50), 0.5))
    assert torch.equal(entry.sample("deterministic", 1, "a", 7), entry.mean)
    once = [entry.sample("once", 1, "a", index) for index in (1, 2)]
    assert torch.equal(*once)  # the picture's own draw
    assert not torch.equal(once[0], entry.sample("once", 2, "a", 1)) and not torch.equal(once[0], entry.sample("once", 1, "b", 1))
    anew = [entry.sample("random", 1, "a", index) for index in (1, 2)]
    assert not torch.equal(*anew) and torch.equal(anew[0], entry.sample("random", 1, "a", 1))
    for z in (once[0], anew[0]):
        assert abs(z.mean() - 3) < 0.02 and abs(z.std() - 0.5) < 0.02  # n = 8000: 4 sigma are 0.022 and 0.016


# ---- text


def states(captions):
    """Stands for the text encoder: 3 tokens to a chunk, each caption a chunk per word, empty ones one chunk."""
    states.seen += captions
    words = [caption.split() or [""] for caption in captions]
    longest = max(map(len, words))
    return torch.stack([torch.cat([torch.full((3, 2), float(len(word))) for word in row + [""] * (longest - len(row))]) for row in words])


@pytest.fixture(autouse=True)
def seen():
    states.seen = []


def test_a_caption_is_encoded_once():
    cache = TextCache(states)
    first = cache(["a bcd", "a bcd"])
    assert torch.equal(first, cache(["a bcd", "a bcd"])) and states.seen == ["a bcd"]


def test_cached_states_are_those_of_the_encoder_whatever_the_batch():
    cache = TextCache(states)
    for captions in (["a", "bb ccc dddd", ""], ["a"], ["bb ccc dddd", "a a"]):
        assert torch.equal(cache(captions), states(captions))


def test_the_least_recently_used_captions_are_forgotten_beyond_the_limit():
    size = 3 * 2 * 4
    cache = TextCache(states, limit=2 * size)
    for caption in ("a", "b", "a", "c", "a", "b"):
        assert torch.equal(cache([caption]), states([caption])) and cache.bytes <= 2 * size
        states.seen.pop()
    assert states.seen == ["a", "b", "c", "b"]
    assert torch.equal(TextCache(states, limit=0)(["a", "b c"]), states(["a", "b c"]))
    cache.clear()
    assert cache.bytes == 0


def test_cached_states_carry_no_gradient():
    weight = torch.ones(1, requires_grad=True)
    cache = TextCache(lambda captions: torch.ones(len(captions), 3, 2) * weight)
    assert not cache(["a"]).requires_grad
