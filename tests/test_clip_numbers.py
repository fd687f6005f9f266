"""CLIP's two towers against transformers' on a tiny model made here, and the numbers of samples against those worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_tuner.compare import clip as module
from lib_tuner.compare.clip import Clip, found, similarities

SIDE, OUT = 32, 16


def theirs(act: str):
    transformers = pytest.importorskip("transformers")
    common = {"num_hidden_layers": 2, "hidden_act": act}
    text = {**common, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    vision = {**common, "hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    torch.manual_seed(0)
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=OUT)).eval()


def as_open_clip(state: dict) -> dict:
    """transformers' names -> open_clip's (transformers' own convert_clip_original_pytorch_to_hf.py, backwards)."""
    made = {
        "positional_embedding": "text_model.embeddings.position_embedding.weight", "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight", "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    }  # fmt: skip
    named = {ours: state[name] for ours, name in made.items()}
    named |= {"visual.proj": state["visual_projection.weight"].T, "text_projection": state["text_projection.weight"].T, "logit_scale": state["logit_scale"]}
    for ours, name in (("ln_final", "text_model.final_layer_norm"), ("visual.ln_pre", "vision_model.pre_layrnorm"), ("visual.ln_post", "vision_model.post_layernorm")):
        named |= {f"{ours}.{p}": state[f"{name}.{p}"] for p in ("weight", "bias")}
    for tower, name in (("", "text_model"), ("visual.", "vision_model")):
        for i in range(2):
            a, b = f"{tower}transformer.resblocks.{i}", f"{name}.encoder.layers.{i}"
            for p in ("weight", "bias"):
                named[f"{a}.attn.in_proj_{p}"] = torch.cat([state[f"{b}.self_attn.{x}_proj.{p}"] for x in "qkv"])
                pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
                named |= {f"{a}.{x}.{p}": state[f"{b}.{y}.{p}"] for x, y in pairs.items()}
    return {key: tensor.detach().contiguous() for key, tensor in named.items()}


def tiny(folder, act: str = "quick_gelu"):
    """Their model, and its weights as a file of open_clip."""
    model = theirs(act)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(as_open_clip(dict(model.state_dict())), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": act == "quick_gelu"}}))
    return model, folder / "open_clip_model.safetensors"


def picture(seed: int, size=(SIDE, SIDE)) -> Image.Image:
    return Image.frombytes("RGB", size, bytes(torch.randint(256, (size[0] * size[1] * 3,), generator=torch.Generator().manual_seed(seed)).tolist()))


def features(answer) -> torch.Tensor:
    return answer if isinstance(answer, torch.Tensor) else answer.pooler_output


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_both_towers_are_those_of_transformers(tmp_path, act):
    model, file = tiny(tmp_path, act)
    ours, images, texts = Clip.load(file), [picture(1), picture(2)], ["a red robot", "two words", "x " * 200]
    assert ours.side == SIDE and ours.quick is (act == "quick_gelu")
    pixels = torch.stack([ours._prepared(image) for image in images])
    plain = torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)[3, 5, 0].item() / 255
    assert pixels[0, 0, 3, 5] == pytest.approx((plain - 0.48145466) / 0.26862954, abs=1e-5)
    ids = torch.tensor([[49406, *ours_ids(text), 49407] + [0] * (75 - len(ours_ids(text))) for text in texts])
    with torch.no_grad():
        expected = features(model.get_image_features(pixel_values=pixels)), features(model.get_text_features(input_ids=ids))
    for mine, their in zip((ours.pictures(images), ours.texts(texts)), expected):
        torch.testing.assert_close(mine, torch.nn.functional.normalize(their, dim=1), rtol=1e-4, atol=1e-5)


def ours_ids(text: str) -> list[int]:
    return module.Tokenizer().encode(text)[:75]


def test_a_wide_picture_is_cut_in_its_middle(tmp_path):
    ours = Clip.load(tiny(tmp_path)[1])
    wide = Image.new("RGB", (3 * SIDE, SIDE), "red")
    wide.paste(picture(1), (SIDE, 0))
    torch.testing.assert_close(ours.pictures([wide]), ours.pictures([picture(1)]))
    assert ours.pictures([picture(3, (100, 37)), picture(4, (7, 90))]).shape == (2, OUT)


def test_a_file_that_is_no_clip_is_one_sentence(tmp_path, checkpoint_file):
    with pytest.raises(ValueError, match="is no CLIP with a ViT as open_clip writes it"):
        Clip.load(checkpoint_file)


def test_the_smallest_of_the_cache_is_found_and_none_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert found() is None
    for name, size in (("models--laion--CLIP-ViT-L-14", 9), ("models--laion--CLIP-ViT-B-32", 5)):
        (tmp_path / "hub" / name / "snapshots" / "a").mkdir(parents=True)
        (tmp_path / "hub" / name / "snapshots" / "a" / "open_clip_pytorch_model.bin").write_bytes(b"x" * size)
    assert "ViT-B-32" in str(found())


class Words:
    """Stands in for the text tower: the vector of each prompt."""

    def texts(self, prompts):
        return torch.tensor([{"a": [1.0, 0.0], "b": [0.0, 1.0]}[p] for p in prompts])


def unit(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_the_numbers_are_those_worked_out_by_hand():
    got = similarities(Words(), unit(0, 60), ["a", "b"], unit(0, 90))
    assert got == pytest.approx({"image": (1 + 0 + 0.5 + 0.866025) / 4, "text": (1 + 0.866025) / 2, "nearest": 0.0, "diversity": 0.5}, abs=1e-6)
    assert similarities(Words(), unit(30), ["a"], unit(0)) == pytest.approx({"image": 0.866025, "text": 0.866025, "nearest": 0.133975}, abs=1e-5)
    assert similarities(Words(), unit(), [], unit(0)) == {} == similarities(Words(), unit(0), ["a"], unit())
