"""`tool inspect`: every kind of file is named, what is said of a LoRA is true of it, and the picture shows the blocks."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tool_files import CONV, CROSS, FAMILIES, LINEAR, ONE, SHAPES, TEXT, lora, lycoris, modules_of, parts_of, run, slim  # noqa: F401 (slim is a fixture)

from lib_tuner.config import METADATA_KEY
from lib_tuner.methods.embedding_file import Embedding, write_embedding
from lib_tuner.methods.factors import shape_of
from lib_tuner.methods.lora_file import write_lora
from lib_tuner.sd.names import BLOCKS26
from lib_tuner.tools.deltas import delta
from lib_tuner.tools.inspect_file import inspect
from lib_tuner.tools.picture import BAR, COLUMN, HEIGHT, LEFT, TOP, draw_blocks

X4 = {"model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3)}
CROSS_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

pytestmark = pytest.mark.webui_versions  # the tools run inside the WebUI's environment, too


@pytest.mark.parametrize("kind, words, shapes", [
    ("sd1", "a Stable Diffusion 1 checkpoint", X4), ("sd1-inpainting", "a Stable Diffusion 1 inpainting checkpoint", {"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3)}),
    ("sd2", "a Stable Diffusion 2 model", {**X4, CROSS_KEY: (32, 1024)}), ("sdxl", "a Stable Diffusion XL model", {**X4, CROSS_KEY: (32, 2048)}),
    ("controlnet", "a ControlNet", {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), "control_model.input_blocks.0.0.weight": (32, 4, 3, 3)}),
    ("t2i-adapter", "a T2I-Adapter", {"conv_in.weight": (32, 64, 3, 3), "body.0.block1.weight": (32, 32, 3, 3)}), ("vae", "a VAE alone", {"decoder.up.0.block.0.conv1.weight": (8, 8, 3, 3)}),
    ("unknown", "a weights file of an unknown kind", {"a": (3, 100), "b": (2,)}),
])  # fmt: skip
def test_every_kind_is_named(tmp_path, capsys, kind, words, shapes):
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    report = inspect(tmp_path / "a.safetensors")
    assert (report["kind"], report["is"], report["tensors"]) == (kind, words, len(shapes))
    assert report["parameters"] == sum(math.prod(shape) for shape in shapes.values())
    assert run("inspect", tmp_path / "a.safetensors") == 0
    assert capsys.readouterr().out.startswith(f"a.safetensors: {words}\n")
    if kind == "controlnet":
        assert report["hint channels"] == 3 and report["blocks"]["IN00"] == pytest.approx(math.sqrt(32 * 4 * 9))
    if kind == "t2i-adapter":
        assert report["input channels"] == 64


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_s_family_ranks_and_norms(tmp_path, family):
    report = inspect(lora(tmp_path / "a.safetensors", family))
    words = {"lora": "LoCon", "tucker": "LoCon, Tucker", "full": "full", "loha": "LoHa", "loha tucker": "LoHa"}.get(family, "LoKr")
    assert report["is"] == f"a LoRA for Stable Diffusion 1.5 ({words})" and report["modules"] == {"unet": 4, "text": 1}
    if family not in ("full", "lokr whole"):
        assert report["ranks"] == {3: 5} and report["alphas"] == {2.0: 5}
    expected = dict.fromkeys(BLOCKS26, 0.0)
    blocks = {LINEAR: "IN01", CROSS: "OUT04", ONE: "M00", CONV: "IN04", TEXT: "BASE"}
    for module, parts in modules_of(family).items():
        expected[blocks[module]] = float(lycoris(parts, SHAPES[module]).norm())
    assert report["blocks"] == pytest.approx(expected, rel=1e-4)


def changed(family: str, module: tuple[str, str], change) -> dict:
    modules = modules_of(family)
    modules[module] = {name: change(name, tensor).contiguous() for name, tensor in modules[module].items()}
    return modules


def cut(*names: str):
    """Takes the last rank away from these factors."""
    return lambda name, tensor: (tensor[:, :-1] if name.endswith(("_a", "up.weight")) else tensor[:-1]) if name in names else tensor


DAMAGED = {
    "ranks of up and down": ("lora", LINEAR, cut("lora_down.weight")), "no rank": ("lora", LINEAR, lambda name, t: t[:0] if "down" in name else t[:, :0] if "up" in name else t),
    "one axis": ("lora", TEXT, lambda name, t: t.flatten()), "a kernel that is flat and too short": ("lora", CONV, lambda name, t: t.flatten(1)[:, :31] if "down" in name else t),
    "a core of another rank": ("tucker", CONV, cut("lora_mid.weight")), "two alphas": ("lora", ONE, lambda name, t: t.repeat(3) if name == "alpha" else t),
    "ranks of a LoHa": ("loha", LINEAR, cut("hada_w2_a")), "sizes of a LoHa": ("loha", LINEAR, lambda name, t: t[:, :-1] if name == "hada_w2_b" else t),
    "a LoHa's core": ("loha tucker", CONV, cut("hada_t1")), "ranks of a LoKr": ("lokr", LINEAR, cut("lokr_w2_b")), "a LoKr's core": ("lokr tucker", CONV, cut("lokr_t2")),
    "a whole change of one axis": ("full", TEXT, lambda name, t: t.flatten()),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_factors_that_do_not_fit_each_other_are_one_sentence(tmp_path, capsys, slim, case):
    write_lora(tmp_path / "a.safetensors", changed(*DAMAGED[case]), {})
    sentence = re.compile(r"a\.safetensors is damaged: \S+ has factors that do not fit each other \(.*\); download it again\.")
    assert sentence.search(inspect(tmp_path / "a.safetensors")["note"])
    assert run("merge-lora", slim, tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors") == 2 and sentence.search(capsys.readouterr().err)


def test_a_flat_kernel_is_read_as_the_webui_reads_it():
    parts = modules_of("lora")[CONV]
    flat = {name: tensor.flatten(1) if tensor.ndim else tensor for name, tensor in parts.items()}
    assert shape_of(CONV, flat) == SHAPES[CONV]
    torch.testing.assert_close(delta(CONV, flat), delta(CONV, parts))


def test_a_checkpoint_s_norms_are_those_of_its_blocks(slim):
    report = inspect(slim)
    state = load_file(slim)
    middle = torch.cat([t.flatten() for key, t in state.items() if key.startswith("model.diffusion_model.middle_block.")])
    text = torch.cat([t.flatten().float() for key, t in state.items() if key.startswith("cond_stage_model.") and "position_ids" not in key])
    assert report["blocks"]["M00"] == pytest.approx(float(middle.norm())) and report["blocks"]["BASE"] == pytest.approx(float(text.norm()))
    assert report["blocks"]["IN11"] == 0 and report["precision"]["F32"] == len(state) - report["precision"].get("I64", 0)


def test_training_tags_and_settings_are_told(tmp_path, capsys):
    metadata = {
        "ss_sd_model_name": "base.safetensors", "ss_steps": "120", "ss_clip_skip": "None", "ss_training_started_at": "1700000000.5", "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_tag_frequency": json.dumps({"a": {"cat": 3, "red ": 1}, "b": {"cat": 2}}), METADATA_KEY: json.dumps({"steps": 120, "optim.lr": "1e-4"}),
    }  # fmt: skip
    file = lora(tmp_path / "a.safetensors", metadata=metadata)
    report = inspect(file)
    assert report["trained by"] == "the Tuner" and report["tags"] == {"cat": 5, "red": 1} and report["settings"]["optim.lr"] == "1e-4"
    assert report["training"]["base model"] == "base.safetensors" and report["training"]["date"] == "2023-11-14 22:13 UTC" and "clip skip" not in report["training"]
    assert run("inspect", file) == 0
    text = capsys.readouterr().out
    assert "tags: cat (5), red (1)\n" in text and "  steps: 120\n" in text and "  M00  " in text
    assert run("inspect", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["training"] == report["training"]


def test_a_lora_for_another_model_is_said_to_be_one(tmp_path, capsys):
    file = write_lora(tmp_path / "xl.safetensors", {LINEAR: parts_of("lora", (32, 32))}, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert run("inspect", file) == 0
    assert "note: xl.safetensors is a LoRA for Stable Diffusion XL" in capsys.readouterr().out


def test_a_dora_says_so_and_an_embedding_and_a_hypernetwork_too(tmp_path):
    file = write_lora(tmp_path / "d.safetensors", {LINEAR: {**parts_of("lora", (32, 32)), "dora_scale": torch.ones(1, 32)}}, {})
    assert inspect(file)["is"] == "a LoRA for Stable Diffusion 1.5 (LoRA, DoRA)" and "lengths left aside" in inspect(file)["norms"]
    vectors = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    for name in ("cat.pt", "cat.safetensors"):
        write_embedding(tmp_path / name, Embedding("cat", vectors, 7, "0123456789", "base"))
        report = inspect(tmp_path / name)
        assert (report["kind"], report["vectors"], report["vector norms"], report["width"]) == ("embedding", 2, [5.0, 2.0], 3)
    hyper = {768: ({"linear.0.weight": torch.ones(4, 2)}, {"linear.0.weight": torch.ones(4, 2)}), "layer_structure": [1, 2, 1], "activation_func": "relu", "step": 9, "name": "h"}
    torch.save(hyper, tmp_path / "h.pt", _use_new_zipfile_serialization=False)
    report = inspect(tmp_path / "h.pt")
    assert (report["is"], report["sizes"], report["layer structure"], report["activation func"], report["step"]) == ("a hypernetwork", [768], [1, 2, 1], "relu", 9)


def test_the_picture_has_a_bar_for_each_block_as_tall_as_its_norm(tmp_path):
    draw_blocks(tmp_path / "p.png", {name: float(i) for i, name in enumerate(BLOCKS26)}, "a é")
    with Image.open(tmp_path / "p.png") as image:
        for i in (1, 13, 25):
            x = LEFT + COLUMN * i + (COLUMN - BAR) // 2 + 3
            tall = sum(max(image.getpixel((x, y))) - min(image.getpixel((x, y))) > 40 for y in range(TOP, TOP + HEIGHT))
            assert abs(tall - HEIGHT * i / 25) <= 2


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_lora_with_numbers_that_are_none_is_not_said_to_have_no_strength(tmp_path, capsys, broken):
    tensors = load_file(lora(tmp_path / "a.safetensors"))
    key = next(key for key in tensors if "attn1" in key and key.endswith("lora_up.weight"))
    save_file({**tensors, key: torch.full_like(tensors[key], broken)}, tmp_path / "a.safetensors")
    assert run("inspect", tmp_path / "a.safetensors", "--picture", tmp_path / "p.png") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[:1] == ["IN01"]] in ([["IN01", "nan"]], [["IN01", "inf"]])
    with Image.open(tmp_path / "p.png") as image:
        bars = [image.getpixel((LEFT + COLUMN * i + (COLUMN - BAR) // 2 + 1, TOP + 2)) for i in range(len(BLOCKS26))]
    assert [i for i, colour in enumerate(bars) if colour == (192, 32, 42)] == [BLOCKS26.index("IN01")]
    assert run("inspect", tmp_path / "a.safetensors", "--json") == 0
    blocks = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["blocks"]
    assert [name for name, norm in blocks.items() if norm is None] == ["IN01"]


def test_the_folder_that_one_is_in_has_its_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "cat").mkdir()
    monkeypatch.chdir(tmp_path / "cat")
    assert run("inspect", ".") == 2 and capsys.readouterr().err.startswith("cat is a folder without")
    assert run("convert", lora(tmp_path / "a.safetensors"), "--names", "peft", "-o", tmp_path / "cat") == 0 and capsys.readouterr()
    assert run("inspect", ".") == 0 and capsys.readouterr().out.startswith("cat: a LoRA for Stable Diffusion 1.5")


def test_a_picture_is_written_beside_what_is_said_and_never_over_an_input(tmp_path, capsys):
    file = lora(tmp_path / "a.safetensors")
    assert run("inspect", file, "--picture", tmp_path / "new" / "p.png") == 0 and (tmp_path / "new" / "p.png").stat().st_size > 500
    assert run("inspect", file, "--picture", tmp_path / "new" / "p.png") == 2
    assert "exists already" in capsys.readouterr().err
    shutil.copy(file, tmp_path / "odd.png")
    assert run("inspect", tmp_path / "odd.png", "--picture", tmp_path / "odd.png", "--force") == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert run("inspect", file, "--picture", tmp_path / "p.jpg") == 2
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "e.safetensors")
    assert run("inspect", tmp_path / "e.safetensors", "--picture", tmp_path / "e.png") == 2
    assert "which has no blocks to draw" in capsys.readouterr().err and not (tmp_path / "e.png").exists()


@pytest.mark.parametrize("content, words", [(b"", "is empty (0 bytes)"), (b"<!DOCTYPE html>", "is a web page"), (b"\x05\0\0\0\0\0\0\0{\"a\":", "is cut off or damaged")])
def test_what_is_no_weights_file_is_one_sentence(tmp_path, capsys, content, words):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert run("inspect", tmp_path / "a.safetensors") == 2
    assert words in capsys.readouterr().err
    assert run("inspect", tmp_path / "none.safetensors") == 2
    assert "does not exist" in capsys.readouterr().err
