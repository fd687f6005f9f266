"""LoRA files: kohya's names both ways, refusals, hashes, and what a file does to the weights by the formula of the WebUI."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lib_tuner.methods.lora_file import check_fits, count_host_keys, ranks_of_blocks, read_lora, write_lora
from lib_tuner.sd.names import kohya_key, text_paths, unet_paths

LINEAR, CONV, TEXT = ("unet", "input_blocks.1.1.proj_in"), ("unet", "input_blocks.1.0.in_layers.2"), ("text", "text_model.encoder.layers.0.mlp.fc1")
CROSS = ("unet", "input_blocks.1.1.transformer_blocks.0.attn2.to_k")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(out, inputs, rank, kernel=(), alpha=None):
    parts = {"lora_up.weight": random(out, rank, *[1 for _ in kernel]), "lora_down.weight": random(rank, inputs, *kernel, seed=1)}
    return parts if alpha is None else {**parts, "alpha": torch.tensor(float(alpha))}


@pytest.fixture
def modules():
    return {LINEAR: pair(8, 6, 4, alpha=2), CONV: pair(8, 6, 2, (3, 3), alpha=1), TEXT: pair(10, 5, 4, alpha=4)}


def delta_weights(path):
    """{(part, path): change of the weight} of a LoRA / LoCon file, by peers' formula: alpha / rank * up @ down over flattened kernels; with a
    middle factor of CP sum_ij mid[i, j, k, l] up[n, i] down[j, m]; read without the code under test."""
    names = {kohya_key(place, part): (part, place) for part, places in (("unet", unet_paths()), ("text", text_paths())) for place in places}
    tensors, out = {key: tensor.float() for key, tensor in load_file(path).items()}, {}
    for key in tensors:
        name, _, part = key.partition(".")
        if part != "lora_up.weight":
            continue
        up, down, mid = (tensors.get(f"{name}.lora_{which}.weight") for which in ("up", "down", "mid"))
        scale = tensors[f"{name}.alpha"].item() / down.shape[0] if f"{name}.alpha" in tensors else 1.0
        if mid is not None:
            out[names[name]] = scale * torch.einsum("ijkl,ni,jm->nmkl", mid, up.flatten(1), down.flatten(1))
        else:
            out[names[name]] = scale * (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
    return out


# ---- both ways


def test_a_written_file_has_kohyas_keys_in_half_precision_with_a_whole_alpha(tmp_path, modules):
    tensors = load_file(write_lora(tmp_path / "new" / "a.safetensors", modules, {}))
    assert {key: tensor.dtype for key, tensor in tensors.items()} == {
        f"{name}.{part}": torch.float32 if part == "alpha" else torch.float16
        for name in ("lora_unet_down_blocks_0_attentions_0_proj_in", "lora_unet_down_blocks_0_resnets_0_conv1", "lora_te_text_model_encoder_layers_0_mlp_fc1")
        for part in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_written_file_comes_back_the_same(tmp_path, modules, dtype):
    found = read_lora(write_lora(tmp_path / "a.safetensors", modules, {"ss_output_name": "a"}, dtype))
    assert found.modules.keys() == modules.keys()
    for module, parts in modules.items():
        for name, tensor in parts.items():
            assert torch.equal(found.modules[module][name], tensor if name == "alpha" else tensor.to(dtype))
    assert found.metadata["ss_output_name"] == "a"


def test_rank_and_alpha_are_summed_up(tmp_path, modules):
    del modules[TEXT]["alpha"]  # the scale is then 1
    found = read_lora(write_lora(tmp_path / "a.safetensors", modules, {}))
    assert found.ranks == {LINEAR: 4, CONV: 2, TEXT: 4} and found.alphas == {LINEAR: 2, CONV: 1, TEXT: 4}
    assert str(found) == "2 UNet and 1 text encoder modules, rank 2 to 4, alpha 1 to 4"


def test_the_file_changes_weights_by_alpha_over_rank_times_up_times_down(tmp_path, modules):
    cp = {**pair(8, 6, 2, (1, 1), alpha=3), "lora_mid.weight": random(2, 2, 3, 3, seed=2)}
    last = ("unet", "output_blocks.11.0.in_layers.2")
    delta = delta_weights(write_lora(tmp_path / "a.safetensors", {**modules, last: cp}, {}, torch.float32))
    parts = modules[LINEAR]
    assert torch.allclose(delta[LINEAR], 2 / 4 * parts["lora_up.weight"] @ parts["lora_down.weight"], atol=1e-6)
    x, parts = random(1, 6, 5, 5, seed=3), modules[CONV]  # a LoCon is two convolutions in a row
    twice = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, parts["lora_down.weight"], padding=1), parts["lora_up.weight"])
    assert torch.allclose(torch.nn.functional.conv2d(x, delta[CONV], padding=1), 1 / 2 * twice, atol=1e-5)
    thrice = torch.nn.functional.conv2d(x, cp["lora_down.weight"])
    thrice = torch.nn.functional.conv2d(torch.nn.functional.conv2d(thrice, cp["lora_mid.weight"], padding=1), cp["lora_up.weight"])
    assert torch.allclose(torch.nn.functional.conv2d(x, delta[last], padding=1), 3 / 2 * thrice, atol=1e-4)


@pytest.mark.parametrize(
    "key, module",
    [
        ("lora_unet_input_blocks_1_1_proj_in", LINEAR),  # the original names
        ("lora_unet_output_blocks_5_2_conv", ("unet", "output_blocks.5.2.conv")),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", TEXT),
    ],
)
def test_other_spellings_are_read_too(tmp_path, key, module):
    save_file({f"{key}.{part}": tensor for part, tensor in pair(8, 6, 4, (3, 3) if key.endswith("conv") else ()).items()}, tmp_path / "a.safetensors")
    assert list(read_lora(tmp_path / "a.safetensors").modules) == [module]


def test_other_families_keep_their_parts(tmp_path):
    parts = {name: random(4, 4) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    found = read_lora(write_lora(tmp_path / "a.safetensors", {LINEAR: parts}, {}))
    assert found.modules[LINEAR].keys() == parts.keys() and found.ranks == {LINEAR: 4}
    assert count_host_keys(tmp_path / "a.safetensors") == (1, 1)


def test_bundled_embeddings_are_read_beside_the_modules(tmp_path):
    tensors = {f"{kohya_key(LINEAR[1], 'unet')}.{part}": tensor for part, tensor in pair(8, 6, 4).items()}
    tensors |= {"bundle_emb.cat.string_to_param.*": random(2, 6), "bundle_emb.dog.emb_params": random(6), "bundle_emb.cat.step": torch.tensor(5)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors")
    assert {name: tuple(vectors.shape) for name, vectors in found.embeddings.items()} == {"cat": (2, 6), "dog": (1, 6)} and list(found.modules) == [LINEAR]
    assert count_host_keys(tmp_path / "a.safetensors") == (3, 3)


# ---- the host's view


def test_all_layers_of_a_full_file_are_taken(tmp_path):
    modules = {(part, place): pair(2, 2, 1) for part, places in (("unet", unet_paths()), ("text", text_paths())) for place in places}
    assert count_host_keys(write_lora(tmp_path / "a.safetensors", modules, {})) == (282 + 72, 282 + 72)


def test_misspelt_incomplete_and_misfitting_modules_are_not_counted(tmp_path, modules):
    path = write_lora(tmp_path / "a.safetensors", modules, {})
    tensors = load_file(path)
    tensors |= {f"lora_unet_down_blocks_0_attentions_0_proj_inn.{part}": tensor for part, tensor in pair(8, 6, 4).items()}
    tensors["lora_unet_conv_in.lora_up.weight"] = random(8, 4)
    save_file(tensors, path)
    assert count_host_keys(path) == (3, 5)
    assert count_host_keys(path, {LINEAR: (8, 6, 1, 1), CONV: (8, 6, 3, 3), TEXT: (10, 5)}) == (3, 5)  # a 1x1 convolution takes a Linear's factors
    assert count_host_keys(path, {LINEAR: (8, 7), CONV: (8, 6), TEXT: (10, 5)}) == (1, 5)
    assert count_host_keys(path, {LINEAR: (8, 6)}) == (1, 5)


def test_a_file_for_another_width_is_refused_with_both_sizes(tmp_path, modules):
    found = read_lora(write_lora(tmp_path / "a.safetensors", modules, {}))
    shapes = {LINEAR: (8, 6, 1, 1), CONV: (8, 6, 3, 3), TEXT: (10, 5)}
    check_fits(found, shapes)
    with pytest.raises(ValueError, match=r"a.safetensors does not fit this model: its input_blocks.1.1.proj_in is for a layer of 8x6x1x1 instead of 16x6x1x1;"):
        check_fits(found, {**shapes, LINEAR: (16, 6, 1, 1)})
    with pytest.raises(ValueError, match="8x6x3x3 instead of 8x6x1x1"):
        check_fits(found, {**shapes, CONV: (8, 6, 1, 1)})
    with pytest.raises(ValueError, match="trains text_model.encoder.layers.0.mlp.fc1, which this model does not have"):
        check_fits(found, {LINEAR: (8, 6), CONV: (8, 6, 3, 3)})


# ---- refusals


def named(key, **more):
    return {f"{key}.{part}": tensor for part, tensor in pair(8, 6, 4, **more).items()}


FLUX = {key: tensor for i in range(5) for key, tensor in named(f"lora_unet_double_blocks_{i}_img").items()}


@pytest.mark.parametrize(
    "tensors, metadata, words",
    [
        ({"emb_params": torch.ones(1, 768)}, {}, "is a textual inversion embedding, not a LoRA"),
        ({}, {}, "is a file without tensors, not a LoRA"),
        ({"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": torch.ones(4, 8)}, {}, "LoRA in another spelling .unet.down_blocks.*convert it"),
        ({"down_blocks.0.attn1.to_q_lora.down.weight": torch.ones(4, 8)}, {}, "LoRA in another spelling"),
        (named("lora_unet_down_blocks_0_attentions_0_proj_in"), {"ss_base_model_version": "sdxl_base_v1-0"}, "for Stable Diffusion XL"),
        (named("lora_unet_down_blocks_0_attentions_0_proj_in"), {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "for Stable Diffusion XL"),
        (named("lora_te2_text_model_encoder_layers_0_mlp_fc1"), {}, "for Stable Diffusion XL"),
        (named("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k"), {}, "for Stable Diffusion XL"),
        ({f"{kohya_key(CROSS[1], 'unet')}.lora_down.weight": torch.ones(4, 2048)}, {}, "for Stable Diffusion XL"),
        ({f"{kohya_key(CROSS[1], 'unet')}.lora_down.weight": torch.ones(4, 1024)}, {}, "for Stable Diffusion 2"),
        (named("lora_unet_down_blocks_0_attentions_0_proj_in"), {"ss_v2": "True"}, "for Stable Diffusion 2"),
        (FLUX, {}, "lora_unet_double_blocks_2_img and 2 more.; it was made for another model"),
        ({"lora_unet_conv_in.lora_down.weight": torch.ones(4, 4, 3, 3)}, {}, "is incomplete: it lacks a factor of lora_unet_conv_in;"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(tmp_path, tensors, metadata, words):
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata or None)
    with pytest.raises(ValueError, match=f"^a.safetensors .*{words}.*[.]$"):
        read_lora(tmp_path / "a.safetensors")


def test_metadata_of_sd1_refuses_nothing(tmp_path, modules):
    metadata = {"ss_v2": "False", "ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    assert len(read_lora(write_lora(tmp_path / "a.safetensors", modules, metadata)).modules) == 3


@pytest.mark.parametrize("value, dtype", [(float("nan"), torch.float32), (1e5, torch.float16)])
def test_broken_numbers_are_not_written(tmp_path, modules, value, dtype):
    modules[CONV]["lora_up.weight"][0, 0] = value
    with pytest.raises(ValueError, match=f"not saved: NaN or numbers too large for {str(dtype)[6:]} in lora_unet_down_blocks_0_resnets_0_conv1.lora_up"):
        write_lora(tmp_path / "a.safetensors", modules, {}, dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, modules, words", [("a.pt", {LINEAR: pair(2, 2, 1)}, "written as .safetensors, not as .pt"), ("a.safetensors", {}, "nothing to save")]
)
def test_other_endings_and_empty_networks_are_not_written(tmp_path, name, modules, words):
    with pytest.raises(ValueError, match=words):
        write_lora(tmp_path / name, modules, {})


def test_modules_may_share_one_alpha(tmp_path):
    alpha = torch.tensor(4.0)
    path = write_lora(tmp_path / "a.safetensors", {module: {**pair(4, 4, 2), "alpha": alpha} for module in (LINEAR, TEXT)}, {}, torch.float32)
    assert set(read_lora(path).alphas.values()) == {4.0}


# ---- hashes


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file above 1 MiB, so that the old hash has bytes to read."""
    path = tmp_path_factory.mktemp("large") / "a.safetensors"
    return write_lora(path, {LINEAR: pair(600, 500, 600, alpha=1)}, {"ss_output_name": "a", "modelspec.title": "b", "tuner_settings": "{}"})


def test_the_model_hash_is_that_of_all_behind_the_header(large):
    data = large.read_bytes()
    with safe_open(large, "pt") as file:
        assert file.metadata()["sshs_model_hash"] == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def test_the_old_hash_is_that_of_64_kib_at_1_mib_of_a_file_with_only_the_ss_metadata(large, tmp_path):
    """kohya's precalculate_safetensors_hashes, checked on a file that is really written that way."""
    with safe_open(large, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(large), tmp_path / "b.safetensors", metadata={"ss_output_name": "a"})
    block = (tmp_path / "b.safetensors").read_bytes()[0x100000:0x110000]
    assert len(block) == 0x10000 and metadata["sshs_legacy_hash"] == hashlib.sha256(block).hexdigest()[:8]
    assert (metadata["ss_output_name"], metadata["modelspec.title"], metadata["tuner_settings"]) == ("a", "b", "{}")


def test_the_header_starts_as_the_webui_demands(large):
    data = large.read_bytes()
    assert data[8:10] == b'{"' and json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["ss_output_name"] == "a"


# ---- ranks of blocks -------------------------------------------------------------------------------------------------


def test_ranks_are_added_up_over_the_layers_of_a_block(tmp_path, modules):
    file = write_lora(tmp_path / "a.safetensors", {**modules, ("unet", "middle_block.1.proj_in"): pair(8, 6, 7)}, {})
    assert list(ranks_of_blocks(file).items()) == [("BASE", 4), ("IN01", 4 + 2), ("M00", 7)]


def test_equal_ranks_are_no_news(tmp_path):
    assert ranks_of_blocks(write_lora(tmp_path / "a.safetensors", {LINEAR: pair(8, 6, 4), TEXT: pair(10, 5, 4)}, {})) == {}
