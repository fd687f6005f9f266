"""Names and containers: what is converted is read by diffusers' and peft's own loaders, and comes back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tool_files import CONV, LINEAR, ONE, SHAPES, TEXT, lora, modules_of, parts_of, plain, random, run, slim  # noqa: F401 (slim is a fixture)

from lib_tuner.methods.lora_file import read_lora, write_lora
from lib_tuner.sd.files import read_checkpoint
from lib_tuner.sd.names import diffusers_path
from lib_tuner.tools.lora_names import read_any


@pytest.fixture
def unet():
    """diffusers' UNet of the small random model's widths."""
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DConditionModel(block_out_channels=(32, 64, 96, 96), cross_attention_dim=48, attention_head_dim=4)


def mixed() -> dict:
    """Modules of different ranks and alphas."""
    return {module: parts_of("lora", shape, rank=2 + i, alpha=1.5 + i, seed=i) for i, (module, shape) in enumerate(SHAPES.items())}


def same_change(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for module, parts in expected.items():
        own = found[module] if "alpha" in found[module] else {**found[module], "alpha": torch.tensor(float(len(found[module]["lora_down.weight"])))}
        torch.testing.assert_close(plain(own, SHAPES[module]), plain(parts, SHAPES[module]), rtol=tolerance, atol=tolerance)


# ---- LoRA names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ldm", "diffusers", "peft"])
def test_there_and_back_the_change_is_the_same(tmp_path, form):
    modules, there = mixed(), tmp_path / ("there" if form == "peft" else "there.safetensors")
    file = write_lora(tmp_path / "a.safetensors", modules, {"ss_steps": "9"}, torch.float32)
    assert run("convert", file, "--names", form, "-o", there) == 0
    assert run("convert", there, "-o", tmp_path / "back.safetensors") == 0
    back = read_lora(tmp_path / "back.safetensors")
    same_change(back.modules, modules)
    assert back.metadata["ss_steps"] == "9" and len(back.metadata["sshs_model_hash"]) == 64


def test_diffusers_itself_loads_what_is_written_for_it(tmp_path, unet):
    from diffusers import StableDiffusionPipeline

    modules = mixed()
    assert run("convert", write_lora(tmp_path / "a.safetensors", modules, {}, torch.float32), "--names", "diffusers", "-o", tmp_path / "d.safetensors") == 0
    state, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path, weight_name="d.safetensors", local_files_only=True)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
    loaded = {name: module.get_delta_weight("default_0") for name, module in unet.named_modules() if hasattr(module, "get_delta_weight")}
    assert loaded.keys() == {diffusers_path(path) for part, path in modules if part == "unet"}
    for (part, path), parts in modules.items():
        if part == "unet":
            torch.testing.assert_close(loaded[diffusers_path(path)].detach(), plain(parts, SHAPES[part, path]), rtol=1e-5, atol=1e-5)
    keys = [key for key in state if key.startswith("text_encoder.")]
    assert len(keys) == 2 and all("mlp.fc1.lora_linear_layer." in key for key in keys)


def test_peft_itself_loads_what_is_written_for_it(tmp_path, unet):
    peft = pytest.importorskip("peft")
    modules = mixed()
    assert run("convert", write_lora(tmp_path / "a.safetensors", modules, {}, torch.float32), "--names", "peft", "-o", tmp_path / "p") == 0
    model = peft.PeftModel.from_pretrained(unet, tmp_path / "p" / "unet")
    loaded = {name: module.get_delta_weight("default") for name, module in model.base_model.model.named_modules() if hasattr(module, "get_delta_weight")}
    assert loaded.keys() == {diffusers_path(path) for part, path in modules if part == "unet"}
    for (part, path), parts in modules.items():
        if part == "unet":
            torch.testing.assert_close(loaded[diffusers_path(path)].detach(), plain(parts, SHAPES[part, path]), rtol=1e-5, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "p" / "text_encoder").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_itself_saves_is_read(tmp_path, unet, rslora):
    peft = pytest.importorskip("peft")
    names = {diffusers_path(path): (part, path) for part, path in SHAPES if part == "unet"}
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=list(names), rank_pattern={diffusers_path(ONE[1]): 2}, alpha_pattern={diffusers_path(ONE[1]): 7},
                             use_rslora=rslora, init_lora_weights=False)  # fmt: skip
    model = peft.get_peft_model(unet, config)
    model.save_pretrained(tmp_path / "p")
    found = read_any(tmp_path / "p")
    assert found.modules.keys() == set(names.values())
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            torch.testing.assert_close(plain(found.modules[names[name]], SHAPES[names[name]]), module.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-5)
    assert run("convert", tmp_path / "p" / "adapter_model.safetensors", "-o", tmp_path / "k.safetensors") == 0
    assert read_lora(tmp_path / "k.safetensors").ranks[ONE] == 2


def test_a_dora_of_peft_keeps_its_lengths_per_channel_out(tmp_path, unet, slim):
    """Merged into the same weights, ours are those that peft merges."""
    peft = pytest.importorskip("peft")
    from lib_tuner.sd.names import unet_to_diffusers

    weights = read_checkpoint(slim)
    unet.load_state_dict(unet_to_diffusers(weights.unet), strict=False)
    name = diffusers_path(LINEAR[1])
    model = peft.get_peft_model(unet, peft.LoraConfig(r=4, lora_alpha=6, target_modules=[name], use_dora=True, init_lora_weights=False))
    with torch.no_grad():
        dict(model.named_parameters())[f"base_model.model.{name}.lora_magnitude_vector.default.weight"].mul_(1.3)
    model.save_pretrained(tmp_path / "p")
    assert run("merge-lora", slim, tmp_path / "p", "-o", tmp_path / "m.safetensors") == 0
    merged = model.merge_and_unload().get_submodule(name).weight.detach()
    torch.testing.assert_close(read_checkpoint(tmp_path / "m.safetensors").unet[f"{LINEAR[1]}.weight"], merged, rtol=1e-4, atol=1e-5)
    assert run("convert", tmp_path / "p", "--names", "diffusers", "-o", tmp_path / "d.safetensors") == 0
    assert torch.equal(load_file(tmp_path / "d.safetensors")[f"unet.{name}.lora_magnitude_vector"], load_file(tmp_path / "p" / "adapter_model.safetensors")[f"base_model.model.{name}.lora_magnitude_vector"])


def test_a_part_that_the_lora_lacks_does_not_stay_from_the_one_replaced(tmp_path):
    """One could be told from the other by nobody who reads the folder."""
    both = lora(tmp_path / "both.safetensors", seed=1)
    alone = write_lora(tmp_path / "unet.safetensors", {module: parts for module, parts in modules_of(seed=2).items() if module[0] == "unet"}, {}, torch.float32)
    assert run("convert", both, "--names", "peft", "-o", tmp_path / "p") == 0 and read_any(tmp_path / "p").modules.keys() == SHAPES.keys()
    (tmp_path / "p" / "text_encoder" / "README.md").write_text("mine")
    assert run("convert", alone, "--names", "peft", "-o", tmp_path / "p", "--force") == 0
    same_change(read_any(tmp_path / "p").modules, read_lora(alone).modules)
    assert [path.name for path in (tmp_path / "p" / "text_encoder").iterdir()] == ["README.md"]


def test_attention_processors_names_and_the_metadata_of_diffusers_are_read(tmp_path):
    parts = parts_of("lora", SHAPES[LINEAR], rank=4)
    old = diffusers_path(LINEAR[1]).removesuffix(".to_q")
    save_file({f"unet.{old}.processor.to_q_lora.{which}.weight": parts[f"lora_{which}.weight"] for which in ("down", "up")}, tmp_path / "old.safetensors")
    assert read_any(tmp_path / "old.safetensors").modules.keys() == {LINEAR}
    about = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {}, "text_encoder.lora_alpha": 2})}
    tensors = {f"unet.{old}.to_q.lora_{a}.weight": parts[f"lora_{which}.weight"] for a, which in (("A", "down"), ("B", "up"))}
    tensors |= {f"text_encoder.{TEXT[1]}.lora_{a}.weight": parts[f"lora_{which}.weight"].clone() for a, which in (("A", "down"), ("B", "up"))}
    save_file(tensors, tmp_path / "new.safetensors", metadata=about)
    assert read_any(tmp_path / "new.safetensors").alphas == {LINEAR: 8, TEXT: 2}


def test_the_original_names_are_those_of_the_checkpoint(tmp_path):
    assert run("convert", lora(tmp_path / "a.safetensors"), "--names", "ldm", "-o", tmp_path / "l.safetensors", "--dtype", "bf16") == 0
    tensors = load_file(tmp_path / "l.safetensors")
    assert "lora_unet_input_blocks_4_0_in_layers_2.lora_down.weight" in tensors and "lora_te_text_model_encoder_layers_1_mlp_fc1.alpha" in tensors
    assert {t.dtype for key, t in tensors.items() if not key.endswith("alpha")} == {torch.bfloat16}


def test_bundled_embeddings_stay_with_the_lora(tmp_path):
    tensors = load_file(lora(tmp_path / "a.safetensors")) | {"bundle_emb.cat.string_to_param.*": random(2, 48)}
    save_file(tensors, tmp_path / "b.safetensors")
    for tool in (("convert",), ("resize", "--rank", 2), ("scale", "--alpha", 0.5)):
        assert run(tool[0], tmp_path / "b.safetensors", *tool[1:], "-o", tmp_path / "x.safetensors", "--dtype", "fp32", "--force") == 0
        assert torch.equal(read_lora(tmp_path / "x.safetensors").embeddings["cat"], tensors["bundle_emb.cat.string_to_param.*"])


def test_words_stay_with_joined_loras_and_two_meanings_are_refused(tmp_path, slim, capsys):
    words = {"cat": random(2, 48), "dog": random(1, 48, seed=3)}
    for name, word in (("a", "cat"), ("b", "dog")):
        save_file(load_file(lora(tmp_path / "plain.safetensors")) | {f"bundle_emb.{word}.string_to_param.*": words[word]}, tmp_path / f"{name}.safetensors")
    assert run("join-loras", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-o", tmp_path / "x.safetensors") == 0
    found = read_lora(tmp_path / "x.safetensors").embeddings
    assert found.keys() == words.keys() and all(torch.equal(found[word], words[word]) for word in words)
    save_file(load_file(lora(tmp_path / "plain.safetensors")) | {"bundle_emb.cat.string_to_param.*": words["cat"] + 1}, tmp_path / "c.safetensors")
    assert run("join-loras", tmp_path / "a.safetensors", tmp_path / "c.safetensors", "-o", tmp_path / "y.safetensors") == 2
    assert "has another word 'cat' inside than a file before it" in capsys.readouterr().err and not (tmp_path / "y.safetensors").exists()
    assert run("merge-lora", slim, tmp_path / "a.safetensors", "-o", tmp_path / "z.safetensors") == 0
    assert "keep cat as embeddings" in "".join(capsys.readouterr())


GOLDEN = {  # the whole of a file with one module of each part
    "kohya": {
        "lora_unet_down_blocks_1_resnets_0_conv1.lora_down.weight": (3, 32, 3, 3), "lora_unet_down_blocks_1_resnets_0_conv1.lora_up.weight": (64, 3, 1, 1),
        "lora_unet_down_blocks_1_resnets_0_conv1.alpha": (), "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight": (3, 48),
        "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight": (96, 3), "lora_te_text_model_encoder_layers_1_mlp_fc1.alpha": (),
    },
    "ldm": {
        "lora_unet_input_blocks_4_0_in_layers_2.lora_down.weight": (3, 32, 3, 3), "lora_unet_input_blocks_4_0_in_layers_2.lora_up.weight": (64, 3, 1, 1),
        "lora_unet_input_blocks_4_0_in_layers_2.alpha": (), "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight": (3, 48),
        "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight": (96, 3), "lora_te_text_model_encoder_layers_1_mlp_fc1.alpha": (),
    },
    "diffusers": {
        "unet.down_blocks.1.resnets.0.conv1.lora.down.weight": (3, 32, 3, 3), "unet.down_blocks.1.resnets.0.conv1.lora.up.weight": (64, 3, 1, 1),
        "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.down.weight": (3, 48),
        "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.up.weight": (96, 3),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", GOLDEN)
def test_a_form_is_as_written_down(tmp_path, form):
    file = write_lora(tmp_path / "a.safetensors", {module: parts_of("lora", SHAPES[module]) for module in (CONV, TEXT)}, {})
    assert run("convert", file, "--names", form, "-o", tmp_path / "x.safetensors") == 0
    found = load_file(tmp_path / "x.safetensors")
    assert {key: tuple(t.shape) for key, t in found.items()} == GOLDEN[form]
    assert {t.dtype for key, t in found.items() if not key.endswith("alpha")} == {torch.float16}


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def training_file(tmp_path, slim) -> tuple[Path, dict]:
    """A .ckpt as a training leaves it: averaged weights of half the values, buffers, an optimizer, numbers of the program."""
    state = {key: t.half() if key.startswith("model.") else t for key, t in load_file(slim).items()}
    averaged = {"model_ema." + key.removeprefix("model.").replace(".", ""): t.float() * 0.5 for key, t in state.items() if key.startswith("model.diffusion_model.")}
    more = {"model_ema.decay": torch.tensor(0.9999), "betas": torch.ones(1000), "first_stage_model.loss.logvar": torch.ones(())}
    torch.save({"state_dict": {**state, **averaged, **more}, "global_step": 7, "optimizer_states": [{"exp_avg": torch.ones(3)}]}, tmp_path / "t.ckpt")
    return tmp_path / "t.ckpt", state


@pytest.mark.parametrize("legacy", [False, True])
def test_a_ckpt_becomes_a_safetensors_of_the_same_tensors(tmp_path, slim, legacy):
    state = load_file(slim)
    torch.save({"state_dict": state}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    assert run("convert", tmp_path / "a.ckpt", "-o", tmp_path / "a.safetensors") == 0
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)


@pytest.mark.parametrize("dtype, kind", [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_changed_of_what_is_no_whole_number(tmp_path, slim, dtype, kind):
    assert run("convert", slim, "--dtype", dtype, "-o", tmp_path / "a.safetensors") == 0
    before, after = load_file(slim), load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(after[key], t.to(kind) if t.is_floating_point() else t) for key, t in before.items())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["tuner_unet_heads"] == "4"


@pytest.mark.parametrize("more, factor, ema, buffers", [
    ((), 1.0, True, True), (("--ema", "drop"), 1.0, False, True), (("--ema", "use"), 0.5, False, True), (("--prune",), 1.0, False, False), (("--prune", "--ema", "use"), 0.5, False, False),
])  # fmt: skip
def test_averaged_weights_are_kept_dropped_or_used(tmp_path, training_file, more, factor, ema, buffers):
    path, state = training_file
    assert run("convert", path, *more, "-o", tmp_path / "x.safetensors") == 0
    found = load_file(tmp_path / "x.safetensors")
    assert any(key.startswith("model_ema.") for key in found) is ema and ("betas" in found) is ("first_stage_model.loss.logvar" in found) is buffers
    assert not any("optimizer" in key or "global_step" in key for key in found)
    for key, tensor in state.items():
        expected = (tensor.float() * factor).to(tensor.dtype) if key.startswith("model.") else tensor
        assert torch.equal(found[key], expected), key
    read_checkpoint(tmp_path / "x.safetensors")


def test_merging_leaves_averaged_weights_behind(tmp_path, training_file):
    """They would be those of the unmerged model, which `--ema use` would bring back."""
    path, _ = training_file
    assert run("merge-lora", path, lora(tmp_path / "a.safetensors"), "-o", tmp_path / "m.safetensors") == 0
    assert run("merge-checkpoints", path, path, "-o", tmp_path / "c.safetensors") == 0
    for name in ("m", "c"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert "betas" in found and not any(key.startswith("model_ema.") for key in found)


def test_what_cannot_be_converted_is_one_sentence(tmp_path, slim, capsys):
    out = ("-o", tmp_path / "x.safetensors")
    hada = lora(tmp_path / "h.safetensors", "loha")
    dora = write_lora(tmp_path / "d.safetensors", {LINEAR: {**parts_of("lora", SHAPES[LINEAR]), "dora_scale": torch.ones(1, 32)}}, {})
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "e.safetensors")
    xl = {f"unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(xl, tmp_path / "xl.safetensors")
    half = {f"unet.{diffusers_path(LINEAR[1])}.lora_A.weight": torch.ones(4, 32)}
    save_file(half, tmp_path / "half.safetensors")
    for argv, words in (
        (("convert", slim, "--names", "kohya", *out), "Names are for LoRAs, and small.safetensors is a Stable Diffusion 1 checkpoint"),
        (("convert", hada, "--prune", *out), "for checkpoints, not for a LoRA"), (("convert", hada, "--names", "diffusers", *out), "is no plain LoRA"),
        (("convert", hada, "--names", "peft", "-o", tmp_path / "p"), "is no plain LoRA"), (("convert", dora, "--names", "peft", "-o", tmp_path / "p"), "is a DoRA with a length per channel in"),
        (("convert", slim, "--ema", "use", *out), "has no averaged weights"), (("convert", tmp_path / "e.safetensors", *out), "is a textual inversion embedding"),
        (("convert", tmp_path / "xl.safetensors", *out), "layers that Stable Diffusion 1.5 does not have"), (("convert", tmp_path / "half.safetensors", *out), "is incomplete"),
        (("convert", tmp_path, *out), "is a folder without adapter_model.safetensors"),
    ):  # fmt: skip
        assert run(*argv) == 2 and words in capsys.readouterr().err, argv
    assert not (tmp_path / "x.safetensors").exists() and not (tmp_path / "p").exists()
    assert run("convert", hada, "-o", tmp_path / "h2.safetensors") == 0  # kohya's names say every family
    assert modules_of("loha")[LINEAR].keys() == read_lora(tmp_path / "h2.safetensors").modules[LINEAR].keys()
