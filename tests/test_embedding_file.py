"""Embeddings as files. The picture's format is read and written here a second time, in plain Python from its description, as the oracle."""

from __future__ import annotations

import base64
import json
import pickletools
import random
import zipfile
import zlib

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from lib_tuner.methods import embedding_png
from lib_tuner.methods.embedding_file import Embedding, read_embedding, valid_name, write_embedding, write_embedding_png

# What modules/safe.py of the WebUI v1.9.4 lets an old-format file call, as far as a tensor needs it.
SAFE = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}


@pytest.fixture
def vectors():
    return torch.randn(2, 24, generator=torch.Generator().manual_seed(1)) * 0.02


@pytest.fixture
def embedding(vectors):
    return Embedding("moon-1", vectors, 500, "0123456789abcdef", "tiny")


def noise_picture(w=72, h=64):
    return Image.frombytes("RGB", (w, h), random.Random(0).randbytes(w * h * 3))


def write(path, embedding):
    return write_embedding_png(path, embedding, noise_picture()) if path.suffix == ".png" else write_embedding(path, embedding)


# ---- the picture's format, a second time


def lcg(n):
    seed, out = 0, []
    for _ in range(n):
        seed = (1664525 * seed + 1013904223) & 0xFFFFFFFF
        out.append(seed % 255)
    return out


def decode_pixels(image):
    """Rows and columns as lists; columns whose low nibbles are all zero separate low block, picture, high block."""
    w, h = image.size
    raw = image.convert("RGB").tobytes()
    rows = [[raw[(y * w + x) * 3 : (y * w + x) * 3 + 3] for x in range(w)] for y in range(h)]
    black = [x for x in range(w) if all(v & 15 == 0 for y in range(h) for v in rows[y][x])]
    low, high = ([v & 15 for row in rows for pixel in row[part] for v in pixel] for part in (slice(0, min(black)), slice(max(black) + 1, w)))
    noise = [v & 15 for v in lcg(len(low))]
    packed = bytes(((b ^ n) << 4) | (a ^ n) for a, b, n in zip(low, high, noise))
    return json.loads(zlib.decompressobj().decompress(packed))


def encode_pixels(picture, text):
    """Without the decoration of the high bits: 0x80 everywhere, so that nothing counts as a black border."""
    w, h = picture.size
    packed = zlib.compress(text.encode(), 9)
    size = -(-len(packed) // (3 * h)) * 3 * h
    padded = (packed * (size // len(packed) + 1))[:size]
    k, noise = size // (3 * h), [v & 15 for v in lcg(size)]
    halves = [[0x80 | (half ^ n) for half, n in zip(part, noise)] for part in ([b & 15 for b in padded], [b >> 4 for b in padded])]
    image = Image.new("RGB", (w + 2 * k + 2, h))
    image.paste(Image.frombytes("RGB", (k, h), bytes(halves[0])), (0, 0))
    image.paste(picture, (k + 1, 0))
    image.paste(Image.frombytes("RGB", (k, h), bytes(halves[1])), (w + k + 2, 0))
    return image


def as_json(vectors, **more):
    data = {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": "moon-1", "step": 500, **more}
    return json.dumps(data)


# ---- reading weights files


@pytest.mark.parametrize("legacy", [True, False])
def test_the_webuis_own_file_is_read_with_step_and_model(tmp_path, vectors, legacy):
    data = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "ignored", "step": 7, "sd_checkpoint": "abc", "sd_checkpoint_name": "v1"}
    torch.save(data, tmp_path / "cat.pt", _use_new_zipfile_serialization=not legacy)
    found = read_embedding(tmp_path / "cat.pt", 24)
    assert torch.equal(found.vectors, vectors)
    assert (found.name, found.step, found.model_hash, found.model_name) == ("cat", 7, "abc", "v1")


def test_the_original_repositorys_file_is_read_although_its_token_is_a_tensor_too(tmp_path, vectors):
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})}, tmp_path / "a.pt")
    assert torch.equal(read_embedding(tmp_path / "a.pt").vectors, vectors)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("key", ["emb_params", "<cat-toy>", "*"])
@pytest.mark.parametrize("flat", [True, False])
def test_a_single_tensor_is_read_under_any_key_from_one_or_two_axes(tmp_path, vectors, name, key, flat):
    stored = (vectors[0] if flat else vectors).half()
    save_file({key: stored.clone()}, tmp_path / name) if name.endswith("safetensors") else torch.save({key: stored}, tmp_path / name)
    found = read_embedding(tmp_path / name, 24)
    assert found.vectors.dtype == torch.float32 and torch.equal(found.vectors, (vectors[:1] if flat else vectors).half().float())
    assert found.name == "a" and found.step is None


def test_what_is_read_is_not_tied_to_the_file(tmp_path, embedding):
    path = write_embedding(tmp_path / "a.pt", embedding)
    before = path.read_bytes()
    read_embedding(path).vectors.zero_()
    assert path.read_bytes() == before


# ---- writing weights files


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_written_embedding_comes_back_whole(tmp_path, embedding, suffix):
    found = read_embedding(write_embedding(tmp_path / "new" / f"moon-1{suffix}", embedding), 24)
    assert torch.equal(found.vectors, embedding.vectors)
    assert (found.name, found.step, found.model_hash, found.model_name) == ("moon-1", 500, "0123456789", "tiny")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"moon-1{suffix}"]


def test_the_written_pt_is_in_the_old_format_and_calls_only_what_the_webui_allows(tmp_path, embedding):
    path = write_embedding(tmp_path / "a.pt", embedding)
    assert not zipfile.is_zipfile(path)
    with path.open("rb") as file:
        calls = {arg for _ in range(5) for op, arg, _ in pickletools.genops(file) if op.name == "GLOBAL"}
    assert calls == SAFE
    data = torch.load(path, weights_only=True)
    assert list(data) == ["string_to_token", "string_to_param", "name", "step", "sd_checkpoint", "sd_checkpoint_name"]
    assert data["string_to_token"] == {"*": 265} and list(data["string_to_param"]) == ["*"] and data["sd_checkpoint"] == "0123456789"


def test_a_slice_of_a_larger_tensor_takes_no_more_room_than_itself(tmp_path, embedding):
    whole = torch.zeros(1000, 24)
    path = write_embedding(tmp_path / "a.pt", Embedding("a", whole[:1].requires_grad_()))
    assert path.stat().st_size < 2000


def test_safetensors_hold_one_tensor_and_the_given_metadata(tmp_path, embedding):
    from safetensors import safe_open

    path = write_embedding(tmp_path / "a.safetensors", embedding, {"modelspec.title": "Moon"})
    assert list(load_file(path)) == ["emb_params"]
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "name": "moon-1", "step": "500", "sd_checkpoint": "0123456789", "sd_checkpoint_name": "tiny",
                                   "modelspec.title": "Moon"}


# ---- pictures


def test_the_noise_is_the_formats_generator():
    assert embedding_png._random(5).tolist() == [253, 242, 127, 44, 157]
    assert embedding_png._random(5000).tolist() == lcg(5000)


def test_the_picture_holds_the_same_content_in_chunk_and_pixels(tmp_path, embedding, vectors):
    picture = noise_picture()
    written = Image.open(write_embedding_png(tmp_path / "a.png", embedding, picture))
    expected = json.loads(as_json(vectors, sd_checkpoint="0123456789", sd_checkpoint_name="tiny"))
    assert json.loads(base64.b64decode(written.text["sd-ti-embedding"])) == expected
    assert decode_pixels(written) == expected
    k = (written.width - picture.width - 2) // 2
    assert written.crop((k + 1, 0, k + 1 + picture.width, 64)).tobytes() == picture.tobytes()


def test_the_blocks_are_as_wide_as_the_webui_makes_them():
    """Bytes are rounded up to whole rows and then to columns of 3 colours, and each rounding adds something where nothing is to be rounded."""
    data = {"string_to_param": {"*": torch.ones(1, 24)}}
    length = len(zlib.compress(json.dumps({"string_to_param": {"*": {"TORCHTENSOR": [[1.0] * 24]}}}).encode(), 9))
    h = length * 2 // 5  # between 2 and 3 rows -> 3 rows, one column; which becomes two
    assert embedding_png.insert(noise_picture(h=h), data).width == 72 + 2 + 2 * 2


def test_the_high_bits_show_dots_shaded_after_the_vector(vectors):
    whole = embedding_png.insert(noise_picture(), {"string_to_param": {"*": vectors}})
    shades = [int(abs(v) / max(map(abs, vectors[0].tolist())) * 255) & 0xF0 for v in vectors[0].tolist()]
    for left, sequence in ((0, shades), ((whole.width + 74) // 2, shades[::-1])):
        # Dots of 7 pixels go down from (-6, -6) in steps of 8, those of even rows moved right by 4: at its middle an odd row's ends at x = 0.
        seen = [[whole.getpixel((left + x, -6 + 8 * row + 3))[0] & 0xF0 for x in (0, 1)] for row in range(1, 8)]
        assert seen == [[sequence[row], 0 if row % 2 else sequence[row]] for row in range(1, 8)]


@pytest.mark.parametrize("form", ["chunk", "pixels", "webp", "letterboxed"])
def test_pictures_made_elsewhere_are_read_and_their_own_name_wins(tmp_path, vectors, form):
    text, image, path = as_json(vectors), noise_picture(), tmp_path / "other.png"
    chunks = PngImagePlugin.PngInfo()
    if form == "chunk":
        chunks.add_text("sd-ti-embedding", base64.b64encode(text.encode()))
    else:
        image = encode_pixels(image, text)
    if form == "letterboxed":
        whole = Image.new("RGB", (image.width + 20, image.height + 30))
        whole.paste(image, (10, 15))
        image = whole
    path = path.with_suffix(".webp") if form == "webp" else path
    image.save(path, **({"lossless": True} if form == "webp" else {"pnginfo": chunks}))
    found = read_embedding(path, 24)
    assert torch.equal(found.vectors, vectors) and (found.name, found.step) == ("moon-1", 500)


@pytest.mark.parametrize("colour", [(0, 0, 0), (16, 32, 0), (255, 255, 255)])
@pytest.mark.parametrize("size", [(64, 64), (200, 96), (64, 512)])
def test_flat_pictures_keep_the_embedding_too(tmp_path, embedding, colour, size):
    path = write_embedding_png(tmp_path / "a.png", embedding, Image.new("RGB", size, colour))
    Image.open(path).save(tmp_path / "stripped.png")
    assert torch.equal(read_embedding(tmp_path / "stripped.png").vectors, embedding.vectors)


def test_a_picture_that_could_not_be_read_back_is_refused():
    """One row high, 3 half bytes a column: one in 4096 columns is all zeros and is taken for the black one."""
    data = {"string_to_param": {"*": torch.randn(200, 24, generator=torch.Generator().manual_seed(1))}}
    with pytest.raises(ValueError, match="picture of 8x1 pixels cannot hold this embedding"):
        embedding_png.insert(noise_picture(8, 1), data)


def test_a_cropped_picture_is_one_sentence(tmp_path, vectors):
    whole = encode_pixels(noise_picture(), as_json(vectors))
    whole.crop((0, 0, whole.width - 1, whole.height)).save(tmp_path / "cut.png")
    with pytest.raises(ValueError, match="cut.png is a picture without an embedding, or was scaled or re-saved"):
        read_embedding(tmp_path / "cut.png")


def test_a_picture_without_embedding_is_one_sentence(tmp_path):
    striped = noise_picture()
    striped.paste((0, 0, 0), (20, 0, 30, 64))
    even = noise_picture()
    even.paste((0, 0, 0), (30, 0, 42, 64))  # blocks of equal size, no zlib in them
    for picture in (noise_picture(), striped, even, Image.new("RGB", (64, 64))):
        picture.save(tmp_path / "plain.png")
        with pytest.raises(ValueError, match="plain.png is a picture without an embedding"):
            read_embedding(tmp_path / "plain.png")


def test_a_damaged_chunk_and_a_damaged_picture_are_one_sentence(tmp_path, embedding):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("sd-ti-embedding", base64.b64encode(b'{"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}}'))
    noise_picture().save(tmp_path / "a.png", pnginfo=chunks)
    (tmp_path / "b.png").write_bytes(write_embedding_png(tmp_path / "c.png", embedding, noise_picture()).read_bytes()[:3000])
    (tmp_path / "d.png").write_bytes(b"<html>")
    for name in ("a.png", "b.png", "d.png"):
        with pytest.raises(ValueError, match=f"^{name} is a damaged picture or holds a damaged embedding .*get the original file.$"):
            read_embedding(tmp_path / name)


# ---- refusals


@pytest.mark.parametrize(
    "tensors, words",
    [
        ({"clip_g": torch.ones(1, 1280), "clip_l": torch.ones(1, 768)}, "for Stable Diffusion XL"),
        ({"emb": torch.ones(1, 1024)}, "vectors of width 1024 .made for Stable Diffusion 2., but this model's text encoder has width 768"),
        ({"emb": torch.ones(1, 20)}, "vectors of width 20, but this model's text encoder has width 768"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(4, 8)}, "is a LoRA, not an embedding"),
        ({"a": torch.ones(1, 768), "b": torch.ones(1, 768)}, "an unknown kind, not an embedding"),
        ({"string_to_param.a": torch.ones(1, 768), "string_to_param.b": torch.ones(1, 768)}, "holds 2 words at once"),
        ({"emb": torch.ones(1, 768, dtype=torch.int64)}, "holds int64 numbers"),
        ({"emb": torch.full((1, 768), float("nan"))}, "holds NaN"),
        ({"emb": torch.ones(0, 768)}, "is empty"),
        ({}, "a file without tensors, not an embedding"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path, tensors, words):
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"^a.safetensors.*{words}.*[.]$"):
        read_embedding(tmp_path / "a.safetensors", 768)


@pytest.mark.parametrize("name", ["a.pt", "a.png"])
def test_an_absent_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        read_embedding(tmp_path / name)


@pytest.mark.parametrize("name", ["a.ckpt", "a", "a.png"])
def test_other_endings_are_not_written(tmp_path, embedding, name):
    with pytest.raises(ValueError, match="written as .safetensors or .pt"):
        write_embedding(tmp_path / name, embedding)
    assert not list(tmp_path.iterdir())


def test_a_preview_picture_carries_no_embedding_since_the_webui_skips_it(tmp_path, embedding):
    with pytest.raises(ValueError, match="preview"):
        write_embedding_png(tmp_path / "a.preview.png", embedding, noise_picture())


@pytest.mark.parametrize("vectors, words", [(torch.full((1, 4), float("inf")), "NaN or infinite"), (torch.ones(4), "are .n, C., not .4,.")])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.png"])
def test_broken_vectors_are_not_written(tmp_path, vectors, words, name):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / name, Embedding("a", vectors))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.pt", "a.png"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, embedding, monkeypatch, name):
    (tmp_path / name).write_bytes(b"old")

    def fail(*args, **options):
        path = next(arg for arg in args if hasattr(arg, "write_bytes"))
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError):
        write(tmp_path / name, embedding)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", ["moon", "moon-1.2_b c", "Möwe", "猫", "zorb_", "a-", "w" * 200, "猫" * 66])
def test_names_that_the_webui_takes_are_taken(name):
    assert valid_name(name) == name


@pytest.mark.parametrize(
    "name, words",
    [("a/b", "contains '/'"), ("<cat>", "contains '<>'"), ("a:1", "contains ':'"), ("", "is empty"), (" a", "space or dot"), ("..", "space or dot"), ("w" * 201, "too long"), ("猫" * 67, "too long")],
)
def test_names_that_it_would_change_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        valid_name(name)
