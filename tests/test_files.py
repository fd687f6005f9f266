"""Checkpoints: what is read, what is refused by which name, what is written."""

import argparse
import collections
import datetime
import os
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_tuner.sd import files, pickles
from lib_tuner.sd.clip import CLIPSizes, CLIPText
from lib_tuner.sd.files import TEXT, UNET, VAE, read_checkpoint, read_tensors, save_checkpoint, write_tensors
from lib_tuner.sd.kinds import KINDS, describe, kind_of
from lib_tuner.sd.pickles import Inert, UnsafePickle, read_pickle
from lib_tuner.sd.unet import UNet, UNetSizes
from lib_tuner.sd.vae import VAE as VAEModule
from lib_tuner.sd.vae import VAESizes


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    unet = UNet(UNetSizes(channels=(32, 64), attention=(True, False), context=48, heads=4))
    vae, text = VAEModule(VAESizes(channels=(32, 32))), CLIPText(CLIPSizes(width=48, layers=2, heads=4, inner=96, vocabulary=60))
    return tuple({k: v.clone() for k, v in module.state_dict().items()} for module in (unet, vae, text))


@pytest.fixture(scope="module")
def flat(parts):
    return {prefix + k: v for prefix, part in zip((UNET, VAE, TEXT), parts) for k, v in part.items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_saved_checkpoint_comes_back_the_same_in_its_precision(tmp_path, parts, dtype):
    path = save_checkpoint(tmp_path / "m.safetensors", *parts, {"tuner_unet_heads": "4", "note": "x"}, dtype)
    got = read_checkpoint(path)
    for part, saved in zip(parts, (got.unet, got.vae, got.text)):
        assert same({k: v.to(dtype) for k, v in part.items()}, saved)
    assert (got.heads.unet, got.heads.text, got.prediction, got.inpainting, got.metadata["note"]) == (4, 12, "eps", False, "x")
    UNet.from_state(got.unet, got.heads.unet), VAEModule.from_state(got.vae), CLIPText.from_state(got.text, 4)


def test_the_written_keys_are_the_original_ones(tmp_path):
    with torch.device("meta"):
        states = [module().state_dict() for module in (UNet, VAEModule, CLIPText)]
    keys = [prefix + k for prefix, state in zip((UNET, VAE, TEXT), states) for k in state]
    assert [len(state) for state in states] == [686, 248, 196] and len(set(keys)) == 1130
    assert "model.diffusion_model.input_blocks.0.0.weight" in keys and "first_stage_model.post_quant_conv.bias" in keys
    assert "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.bias" in keys


def test_position_ids_are_written_unless_told_not_to(tmp_path, parts, flat):
    with_ids = load_file(save_checkpoint(tmp_path / "a.safetensors", *parts))
    ids = with_ids.pop("cond_stage_model.transformer.text_model.embeddings.position_ids")
    assert ids.dtype == torch.int64 and torch.equal(ids, torch.arange(77)[None]) and with_ids.keys() == flat.keys()
    without = save_checkpoint(tmp_path / "b.safetensors", *parts, position_ids=False)
    assert load_file(without).keys() == flat.keys()
    assert read_checkpoint(tmp_path / "a.safetensors").position_ids and not read_checkpoint(without).position_ids


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_ckpt_files_are_read_in_both_formats_flat_or_wrapped(tmp_path, parts, flat, legacy, wrapped):
    content = {"state_dict": flat, "global_step": 7} if wrapped else flat
    torch.save(content, tmp_path / "m.ckpt", _use_new_zipfile_serialization=not legacy)
    got = read_checkpoint(tmp_path / "m.ckpt")
    assert all(same(part, read) for part, read in zip(parts, (got.unet, got.vae, got.text)))


def test_a_pickle_named_safetensors_is_read_by_its_content_and_the_other_way_round(tmp_path, flat):
    torch.save(flat, tmp_path / "m.safetensors")
    save_file(flat, tmp_path / "m.ckpt")
    assert same(read_checkpoint(tmp_path / "m.safetensors").unet, read_checkpoint(tmp_path / "m.ckpt").unet)


def test_ema_schedule_buffers_position_ids_and_training_losses_are_left_out(tmp_path, parts, flat):
    more = {"model_ema.diffusion_modelout0weight": torch.ones(2), "betas": torch.ones(1000), "first_stage_model.loss.logvar": torch.ones(1),
            "model_ema.decay": torch.ones(()), "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file({**flat, **more}, tmp_path / "m.safetensors")
    got = read_checkpoint(tmp_path / "m.safetensors")
    assert all(same(part, read) for part, read in zip(parts, (got.unet, got.vae, got.text)))


def test_old_text_encoder_keys_come_out_as_the_current_ones(tmp_path, parts, flat):
    save_file({k.replace(".transformer.text_model.", ".transformer."): v for k, v in flat.items()}, tmp_path / "m.safetensors")
    assert same(read_checkpoint(tmp_path / "m.safetensors").text, parts[2])


@pytest.mark.parametrize("channels, inpainting", [(4, False), (9, True)])
def test_inpainting_is_told_by_its_nine_channels(tmp_path, flat, channels, inpainting):
    save_file({**flat, UNET + "input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)}, tmp_path / "m.safetensors")
    assert read_checkpoint(tmp_path / "m.safetensors").inpainting is inpainting


@pytest.mark.parametrize("how, prediction", [
    ({"metadata": {"modelspec.prediction_type": "v"}}, "v"), ({"metadata": {"modelspec.prediction_type": "epsilon"}}, "eps"),
    ({"key": "v_pred"}, "v"), ({"yaml": '    parameterization: "v"\n'}, "v"), ({"yaml": "parameterization: v # velocity\n"}, "v"),
    ({"yaml": '    parameterization: "eps"\n    target: v\n'}, "eps"), ({}, "eps"),
])  # fmt: skip
def test_v_prediction_is_told_by_metadata_marker_or_yaml(tmp_path, flat, how, prediction):
    more = {how["key"]: torch.zeros(1)} if "key" in how else {}
    save_file({**flat, **more}, tmp_path / "m.safetensors", metadata=how.get("metadata"))
    if "yaml" in how:
        (tmp_path / "m.yaml").write_text(how["yaml"])
    assert read_checkpoint(tmp_path / "m.safetensors").prediction == prediction


def test_a_head_count_that_is_no_number_is_refused(tmp_path, flat):
    save_file(flat, tmp_path / "m.safetensors", metadata={"tuner_text_heads": "many"})
    with pytest.raises(ValueError, match="tuner_text_heads is 'many'"):
        read_checkpoint(tmp_path / "m.safetensors")


def test_sha256_is_that_of_the_file(tmp_path, parts):
    import hashlib

    path, found = tmp_path / "m.safetensors", []
    for make in (lambda: save_checkpoint(path, *parts), lambda: os.replace(shutil.copy(path, tmp_path / "n"), path), lambda: path.write_bytes(path.read_bytes() + b"x")):
        make()  # an unchanged file is not read again, a written one is
        found += [(files.file_sha256(path), hashlib.sha256(path.read_bytes()).hexdigest()) for _ in range(2)]
    assert [ours for ours, _ in found] == [theirs for _, theirs in found] and len(set(found)) == 2


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_changing_a_read_tensor_never_changes_the_file(tmp_path, parts, flat, name):
    path = tmp_path / name
    save_checkpoint(path, *parts) if name.endswith("safetensors") else torch.save(flat, path)
    before = path.read_bytes()
    for tensor in read_checkpoint(path).unet.values():
        tensor.zero_()
    assert path.read_bytes() == before


# ---- pickles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_views_strides_types_and_parameters_are_as_torch_reads_them(tmp_path, legacy):
    base = torch.arange(24.0).reshape(4, 6)
    content = {"base": base, "t": base.t(), "row": base[2], "step": base[::2, 1::2], "p": torch.nn.Parameter(base.half()), "i": torch.arange(3),
               "b": torch.tensor([True, False]), "bf": base.bfloat16(), "scalar": torch.tensor(2.5), "none": torch.empty(0, 3),
               "deep": {"list": [torch.ones(2), 3, "x"], "size": torch.Size([2, 3]), "dtype": torch.float16, "set": {1, 2}}}  # fmt: skip
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    want, got = torch.load(tmp_path / "x.pt", weights_only=False), read_pickle(tmp_path / "x.pt")
    for key in content.keys() - {"deep"}:
        assert got[key].dtype == want[key].dtype and got[key].stride() == want[key].stride() and torch.equal(got[key], want[key]), key
    assert torch.equal(got["deep"]["list"][0], torch.ones(2)) and got["deep"]["list"][1:] == [3, "x"]
    assert got["deep"]["size"] == (2, 3) and got["deep"]["dtype"] is torch.float16 and got["deep"]["set"] == {1, 2}
    assert got["base"].untyped_storage().data_ptr() == got["row"].untyped_storage().data_ptr()


@pytest.fixture
def lightning(monkeypatch):
    """A stand-in for the package whose records are in real checkpoints; gone again when the file is read."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        yield module.ModelCheckpoint


def test_records_of_the_training_program_are_read_as_nothing_and_not_imported(tmp_path, parts, flat, lightning, monkeypatch):
    record = lightning()
    record.best = "path"
    torch.save({"state_dict": flat, "callbacks": {lightning: {"best": 1}}, "record": record}, tmp_path / "m.ckpt")
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    assert same(read_checkpoint(tmp_path / "m.ckpt").unet, parts[0])
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


def test_records_of_pythons_own_are_read_as_nothing(tmp_path):
    record = {"args": argparse.Namespace(lr=1e-4), "seen": collections.Counter("aab"), "at": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)}
    torch.save({"x": torch.ones(2), **record}, tmp_path / "m.ckpt")
    got = read_pickle(tmp_path / "m.ckpt")
    assert torch.equal(got["x"], torch.ones(2)) and all(isinstance(got[key], Inert) for key in record)


def test_fp8_in_a_pickle_is_called_by_its_name(tmp_path):
    torch.save({"x": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match=r"^m\.ckpt holds numbers in fp8 or another precision") as told:
        read_pickle(tmp_path / "m.ckpt")
    assert not isinstance(told.value, UnsafePickle)


@pytest.mark.parametrize("name", ["_rebuild_tensor_v2", "_rebuild_parameter"])
def test_what_a_file_puts_on_a_function_does_not_stay_for_the_next_one(tmp_path, name):
    code = f"ctorch._utils\n{name}\n".encode() + b"(S'note'\nS'mine'\ndb."  # BUILD with a dict as state
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", code)
    assert read_pickle(tmp_path / "x.pt").note == "mine"
    assert not any(hasattr(each, "note") for each in vars(pickles._Reader).values())


def test_the_vectors_of_an_old_embedding_are_reached_through_its_parameter_dict(tmp_path):
    vectors = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 8))})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": vectors, "name": "x", "step": 3}, tmp_path / "e.pt")
    got = read_pickle(tmp_path / "e.pt")
    assert torch.equal(got["string_to_param"]["*"], torch.ones(2, 8)) and got["step"] == 3
    assert kind_of({k: tuple(v.shape) for k, v in read_tensors(tmp_path / "e.pt")[0].items()}) == "embedding"


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def write_evil(path, evil, how):
    if how == "zip":
        torch.save({"state_dict": {"x": torch.ones(1), "y": evil}}, path)
    elif how == "legacy":
        torch.save({"x": torch.ones(1), "y": evil}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=int(how)))


@pytest.mark.parametrize("how", ["zip", "legacy", "0", "1", "2", "4", "5"])
def test_a_file_that_would_run_code_is_refused_by_its_name_and_runs_nothing(tmp_path, how):
    proof = tmp_path / "proof"
    write_evil(tmp_path / "evil.ckpt", Evil(os.system, f"touch {proof}"), how)
    with pytest.raises(UnsafePickle, match=rf"evil\.ckpt holds code besides weights.*{os.system.__module__}\.system"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not proof.exists()


@pytest.mark.parametrize("call, args, name", [
    (eval, ("1",), "builtins.eval"), (getattr, ("x", "y"), "builtins.getattr"), (__import__, ("os",), "builtins.__import__"),
    (torch.load, ("x",), "torch.*load"), (torch.hub.load, ("x",), "torch.hub.load"), (Path.unlink, ("x",), "Path.*unlink|getattr"),
])  # fmt: skip
def test_other_calls_are_refused_too(tmp_path, call, args, name):
    write_evil(tmp_path / "evil.pt", Evil(call, *args), "zip")
    with pytest.raises(UnsafePickle, match=name):
        read_pickle(tmp_path / "evil.pt")


@pytest.mark.parametrize("code, name", [
    (b"(S'touch proof'\nios\nsystem\n.", "os.system"),  # INST
    (b"cos\nsystem\n(S'touch proof'\ntR.", "os.system"),  # GLOBAL
    (b"\x80\x04\x8c\x05torch\x8c\x0a_C.os.path\x93.", "torch._C.os.path"),  # STACK_GLOBAL with a dotted way to somewhere else
    (b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01xq\x00\x85R.", "torch.storage._load_from_bytes"),  # a pickle inside the pickle
    (b"\x80\x04\x8c\x09pytorch_x\x8c\x01f\x93.", "pytorch_x.f"),
])  # fmt: skip
def test_handmade_pickles_are_refused_too(tmp_path, monkeypatch, code, name):
    monkeypatch.chdir(tmp_path)
    for suffix in (".pt", ".zip.pt"):
        path = tmp_path / f"x{suffix}"
        if "zip" in suffix:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", code)
        else:
            path.write_bytes(code)
        with pytest.raises(UnsafePickle, match=name.replace(".", r"\.")):
            read_pickle(path)
    assert not (tmp_path / "proof").exists()


def test_a_tensor_that_reaches_beyond_its_data_is_refused(tmp_path):
    torch.save({"x": torch.arange(4.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"K\x04\x85", b"K\x7f\x85"))  # the size (4,) -> (127,)
    with pytest.raises(ValueError, match="reaches beyond its data"):
        read_pickle(tmp_path / "y.pt")


# ---- what is not a checkpoint ----------------------------------------------------------------------------------------

X4 = {UNET + "input_blocks.0.0.weight": (320, 4, 3, 3)}
CROSS = UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
WRONG = [
    ("lora", "a LoRA", {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8, 1, 1)}),
    ("lora", "a LoRA", {"unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight": (4, 8)}),
    ("lora", "a LoRA", {"down_blocks.0.attn1.processor.to_q_lora.up.weight": (8, 4)}),
    ("lora", "a LoRA", {"unet.down_blocks.0.attentions.0.attn1.to_q.lora.down.weight": (4, 8)}),
    ("lora", "a LoRA", {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": (8, 4)}),
    ("lora", "a LoRA", {"lora_te_x.hada_w1_a": (8, 4)}),
    ("lora", "a LoRA", {"lycoris_x.lokr_w1": (8, 4)}),
    ("controlnet", "a ControlNet", {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), **X4}),
    ("controlnet", "a ControlNet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "down_blocks.0.x": (1,)}),
    ("t2i-adapter", "a T2I-Adapter", {"conv_in.weight": (320, 64, 3, 3), "body.0.block1.weight": (320, 320, 3, 3)}),
    ("hypernetwork", "a hypernetwork", {"768.0.linear.0.weight": (1536, 768)}),
    ("sd3", "a Stable Diffusion 3 model", {UNET + "joint_blocks.0.context_block.attn.qkv.weight": (9, 3)}),
    ("flux", "a Flux model", {"double_blocks.0.img_attn.qkv.weight": (9, 3)}),
    ("sdxl", "a Stable Diffusion XL model", {**X4, "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,)}),
    ("sdxl", "a Stable Diffusion XL model", {**X4, CROSS: (640, 2048)}),
    ("sd2", "a Stable Diffusion 2 model", {**X4, "cond_stage_model.model.ln_final.weight": (1024,)}),
    ("sd2", "a Stable Diffusion 2 model", {**X4, CROSS: (320, 1024)}),
    ("pix2pix", "an InstructPix2Pix model", {UNET + "input_blocks.0.0.weight": (320, 8, 3, 3)}),
    ("no-unet", "a checkpoint without its UNet", {"first_stage_model.encoder.down.0.x": (1,), "cond_stage_model.transformer.text_model.x": (1,)}),
    ("vae", "a VAE alone", {"first_stage_model.encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3)}),
    ("vae", "a VAE alone", {"decoder.up.0.block.0.conv1.weight": (8, 8, 3, 3)}),
    ("text-encoder", "a text encoder alone", {"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}),
    ("diffusers-vae", "the VAE of a diffusers folder", {"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}),
    ("diffusers-unet", "the UNet of a diffusers folder", {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}),
    ("unet", "a UNet alone", {"input_blocks.0.0.weight": (8, 4, 3, 3)}),
    ("embedding", "a textual inversion embedding", {"emb_params": (4, 768)}),
    ("embedding", "a textual inversion embedding", {"clip_g": (1, 1280), "clip_l": (1, 768)}),
    ("sd-other", "a Stable Diffusion model with an unknown number of input channels", {UNET + "input_blocks.0.0.weight": (320, 5, 3, 3)}),
    ("empty", "a file without tensors", {}),
    ("unknown", "a weights file of an unknown kind", {"fc.weight": (1000, 512), "fc.bias": (1000,)}),
]


@pytest.mark.parametrize("kind, words, shapes", WRONG)
def test_another_kind_of_file_is_called_by_its_name(tmp_path, kind, words, shapes):
    assert kind_of(shapes) == kind and words in describe(kind)
    save_file({k: torch.zeros(s, dtype=torch.uint8) for k, s in shapes.items()}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=f"^m.safetensors is {words}.*, not a full Stable Diffusion 1.5 checkpoint; "):
        read_checkpoint(tmp_path / "m.safetensors")


def test_every_kind_has_a_case_here():
    assert {kind.name for kind in KINDS} - {kind for kind, *_ in WRONG} == {"sd1", "sd1-inpainting"}


def test_a_hypernetwork_is_told_in_its_own_format(tmp_path):
    torch.save({768: ({"linear.0.weight": torch.ones(2, 2)}, {"linear.0.weight": torch.ones(2, 2)}), "step": 3}, tmp_path / "h.pt")
    with pytest.raises(ValueError, match="h.pt is a hypernetwork"):
        read_checkpoint(tmp_path / "h.pt")


@pytest.mark.parametrize("absent, words", [((VAE,), "has no VAE;"), ((TEXT,), "has no text encoder;"), ((VAE, TEXT), "has no VAE and no text encoder;")])
def test_a_missing_part_is_named(tmp_path, flat, absent, words):
    save_file({k: v for k, v in flat.items() if not k.startswith(absent)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=words):
        read_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("absent", ["embeddings.position_embedding", "encoder.layers.0.mlp.fc1"])
def test_a_text_encoder_that_is_not_whole_is_told(tmp_path, flat, absent):
    save_file({k: v for k, v in flat.items() if absent not in k}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=f"no whole CLIP text encoder of Stable Diffusion 1.5: text_model.{absent}.weight is missing"):
        CLIPSizes.of(read_checkpoint(tmp_path / "m.safetensors").text)


def test_parts_that_do_not_fit_and_quantised_weights_are_refused(tmp_path, flat):
    key = TEXT + "text_model.embeddings.token_embedding.weight"
    save_file({**flat, key: torch.zeros(60, 40)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="reads text of width 48, its text encoder gives 40"):
        read_checkpoint(tmp_path / "a.safetensors")
    save_file({**flat, key: torch.zeros(60, 48, dtype=torch.int8)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="holds int8 weights"):
        read_checkpoint(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name, content, words", [
    ("m.ckpt", b"", "is empty"),
    ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n", "Git LFS pointer"),
    ("m.safetensors", b"\n<!DOCTYPE html><html><body>Access denied", "web page"),
    ("m.ckpt", b"<html>", "web page"),
    ("m.safetensors", b"GGUF\x03\x00\x00\x00", "GGUF"),
    ("m.ckpt", b"\x89PNG\r\n\x1a\n", "picture"),
    ("m.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{\"x\":", "cut off or damaged"),
    ("m.safetensors", b"hello, this is no weights file at all", "cut off or damaged"),
    ("m.ckpt", b"hello, this is no weights file at all", "damaged or no torch file"),
    ("m.ckpt", pickle.dumps({"a": 1}), "damaged or no torch file"),
])  # fmt: skip
def test_a_broken_file_is_one_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{name} .*{words}") as caught:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, legacy", [("m.safetensors", False), ("m.ckpt", False), ("m.ckpt", True)])
@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_a_truncated_file_is_one_sentence(tmp_path, flat, name, legacy, keep):
    save_file(flat, tmp_path / name) if name.endswith("safetensors") else torch.save(flat, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ValueError, match=f"^{name} is (cut off or )?damaged"):
        read_checkpoint(tmp_path / name)


def test_a_folder_and_an_absent_file_are_named(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is a diffusers folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.ckpt does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, parts, monkeypatch):
    path = save_checkpoint(tmp_path / "m.safetensors", *parts)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            save_checkpoint(path, *parts, dtype=torch.float16)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.safetensors"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"m.safetensors needs [\d,.]+ MB, but .* has 0.0 MB free"):
        save_checkpoint(tmp_path / "m.safetensors", *parts)
    assert not list(tmp_path.iterdir())


def test_a_model_read_from_a_ckpt_is_saved_although_its_tensors_share_one_mapping(tmp_path, parts, flat):
    torch.save(flat, tmp_path / "m.ckpt")
    got = read_checkpoint(tmp_path / "m.ckpt")
    save_checkpoint(tmp_path / "m.safetensors", got.unet, got.vae, got.text)
    assert same(read_checkpoint(tmp_path / "m.safetensors").vae, parts[1])


# ---- tools -----------------------------------------------------------------------------------------------------------


def test_make_random_writes_the_parts_keys_in_half_precision_from_its_seed(tmp_path):
    from lib_tuner.tools.make_random import main, write_random

    with torch.device("meta"):
        modules = UNet(UNetSizes((32,), (True,), 48, 4)), VAEModule(VAESizes((32,))), CLIPText(CLIPSizes(48, 1, 4, 96, 60))
    one, same_seed, other = (load_file(write_random(tmp_path / f"{i}.safetensors", *modules, seed=s)) for i, s in enumerate((1, 1, 2)))
    shapes = {prefix + k: t.shape for prefix, m in zip((UNET, VAE, TEXT), modules) for k, t in m.state_dict().items()}
    assert {k: t.shape for k, t in one.items()} == shapes and {t.dtype for t in one.values()} == {torch.float16}
    assert same(one, same_seed) and not same(one, other)
    unet = UNet.from_state({k: v.float() for k, v in read_checkpoint(tmp_path / "0.safetensors").unet.items()}, 4)
    out = unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 48))
    assert out.isfinite().all() and 0.1 < out.std() < 10
    with pytest.raises(FileExistsError, match="exists already"):
        main([str(tmp_path / "0.safetensors")])
    with pytest.raises(ValueError, match="must end in .safetensors"):
        main([str(tmp_path / "x.ckpt")])


def test_export_tiny_writes_checkpoint_yaml_and_clip_folder(tmp_path, parts, monkeypatch, capsys):
    transformers, yaml = pytest.importorskip("transformers"), pytest.importorskip("yaml")
    from lib_tuner.tools.export_tiny import main

    model = save_checkpoint(tmp_path / "small.safetensors", *parts, {"tuner_unet_heads": "4", "tuner_text_heads": "2"})
    monkeypatch.chdir(tmp_path)
    assert main(["out", "--model", str(model)]) == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["small-clip", "small.safetensors", "small.yaml"]
    assert (out / "small.safetensors").read_bytes() == model.read_bytes()
    params = yaml.safe_load((out / "small.yaml").read_text())["model"]["params"]
    unet, vae = params["unet_config"]["params"], params["first_stage_config"]["params"]
    assert (unet["model_channels"], unet["channel_mult"], unet["attention_resolutions"], unet["num_heads"], unet["context_dim"]) == (32, [1, 2], [1], 4, 48)
    assert (vae["ddconfig"]["ch"], vae["ddconfig"]["ch_mult"], params["scale_factor"]) == (32, [1, 1], 0.18215)
    assert params["cond_stage_config"]["params"] == {"version": str(out / "small-clip"), "device": "cpu"}
    config = transformers.CLIPTextConfig.from_pretrained(out / "small-clip")
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers, config.hidden_act) == (48, 2, 2, "quick_gelu")


@pytest.mark.parametrize("name", ["small.safetensors", "small.yaml", "small-clip/config.json"])
def test_export_tiny_replaces_what_is_there_only_when_told_to(tmp_path, parts, name):
    from lib_tuner.tools.export_tiny import main

    model, out = save_checkpoint(tmp_path / "small.safetensors", *parts, {"tuner_unet_heads": "4", "tuner_text_heads": "2"}), tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name.partition('/')[0]} exists already; choose another folder, .*--force"):
        main([str(out), "--model", str(model)])
    assert [(path, path.read_text()) for path in out.rglob("*") if path.is_file()] == [(out / name, "mine")]
    assert main([str(out), "--model", str(model), "--force"]) == 0 and (out / name).read_bytes() != b"mine"


def test_written_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}).stat().st_mode == plain.stat().st_mode
