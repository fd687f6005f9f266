"""The tools on LoRAs: what they write changes weights as LyCORIS, numpy and the written formulas say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tool_files import CONV, CROSS, FAMILIES, LINEAR, ONE, SHAPES, TEXT, lora, lycoris, modules_of, parts_of, plain, random, run, slim, weights_of  # noqa: F401 (slim is a fixture)

from lib_tuner.methods.lora_file import read_lora, write_lora
from lib_tuner.methods.low_rank import Keep, factors, svd, svd_of_product
from lib_tuner.tools.deltas import delta, flat_factors, shape_of

pytestmark = pytest.mark.webui_versions  # the tools run inside the WebUI's environment, too


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)


# ---- the change of every family --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_change_is_lycoris_s_and_so_is_that_of_the_flat_factors(family):
    for module, parts in modules_of(family).items():
        expected = lycoris(parts, SHAPES[module])
        assert shape_of(module, parts) == SHAPES[module]
        close(delta(module, parts), expected)
        up, down = flat_factors(module, parts)
        close((up @ down).reshape(SHAPES[module]), expected)
        assert up.shape[1] == len(down) <= {"lora": 3, "tucker": 3, "loha": 9}.get(family, 96)


# ---- into a checkpoint -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_checkpoint_has_the_change_and_nothing_else_moves(tmp_path, slim, family, capsys):
    file, out = lora(tmp_path / "a.safetensors", family), tmp_path / "m.safetensors"
    assert run("merge-lora", slim, f"{file}:0.5", "-o", out) == 0
    before, after = load_file(slim), load_file(out)
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert len(moved) == len(SHAPES) and "5 layers changed by a.safetensors x 0.5" in capsys.readouterr().out
    old, new = weights_of(slim), weights_of(out)
    for module, parts in modules_of(family).items():
        close(new[module] - old[module], 0.5 * lycoris(parts, SHAPES[module]))


def test_several_loras_add_up_each_part_with_its_weight(tmp_path, slim):
    a, b = lora(tmp_path / "a.safetensors", seed=1), lora(tmp_path / "b.safetensors", "loha", seed=2)
    (tmp_path / "recipe.toml").write_text('[[lora]]\nfile = "a.safetensors"\nweight = 0.5\ntext_encoder = -2\n\n[[lora]]\nfile = "b.safetensors"\nunet = 0\n', encoding="utf-8")
    assert run("merge-lora", slim, "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "m.safetensors") == 0
    old, new = weights_of(slim), weights_of(tmp_path / "m.safetensors")
    first, second = read_lora(a).modules, read_lora(b).modules
    for module, shape in SHAPES.items():
        strength = (0.5, 0.0) if module[0] == "unet" else (-2.0, 1.0)
        close(new[module] - old[module], strength[0] * lycoris(first[module], shape) + strength[1] * lycoris(second[module], shape))


@pytest.mark.parametrize("axis", ["in", "out"])
def test_a_dora_is_brought_to_its_lengths_along_either_axis(tmp_path, slim, axis):
    """W' = m * (W + ΔW) / ‖W + ΔW‖ over all axes but that of the lengths (2402.09353; LyCORIS, modules/base.py)."""
    modules = modules_of()
    for i, (module, shape) in enumerate(SHAPES.items()):
        ones = [1] * (len(shape) - 2)
        modules[module]["dora_scale"] = 1 + random(*((1, shape[1]) if axis == "in" else (shape[0], 1)), *ones, seed=50 + i).abs()
    file = write_lora(tmp_path / "a.safetensors", modules, {}, torch.float32)
    assert run("merge-lora", slim, f"{file}:0.7", "-o", tmp_path / "m.safetensors") == 0
    old, new = weights_of(slim), weights_of(tmp_path / "m.safetensors")
    for module, parts in modules.items():
        whole = (old[module] + plain(parts, SHAPES[module])).numpy().astype(np.float64)
        kept = 1 if axis == "in" else 0
        lengths = np.sqrt((whole**2).sum(axis=tuple(i for i in range(whole.ndim) if i != kept), keepdims=True))
        expected = whole * parts["dora_scale"].numpy() / lengths
        close(new[module], old[module] + 0.7 * (torch.from_numpy(expected).float() - old[module]))


def test_a_linear_s_factors_fit_a_convolution_of_one_pixel(tmp_path, slim):
    parts = {name: tensor.flatten(1) if tensor.ndim else tensor for name, tensor in parts_of("lora", SHAPES[ONE]).items()}
    file = write_lora(tmp_path / "a.safetensors", {ONE: parts}, {}, torch.float32)
    assert run("merge-lora", slim, file, "-o", tmp_path / "m.safetensors") == 0
    close(weights_of(tmp_path / "m.safetensors")[ONE] - weights_of(slim)[ONE], plain(parts, SHAPES[ONE]))


# ---- with each other -------------------------------------------------------------------------------------------------


def test_joined_ranks_are_the_sum_exactly(tmp_path):
    a, b = lora(tmp_path / "a.safetensors", rank=2, seed=1, alpha=3), lora(tmp_path / "b.safetensors", "tucker", rank=4, seed=2)
    assert run("join-loras", f"{a}:0.5", f"{b}:-1.5", "-o", tmp_path / "j.safetensors", "--dtype", "fp32") == 0
    first, second, both = (read_lora(path) for path in (a, b, tmp_path / "j.safetensors"))
    for module, shape in SHAPES.items():
        assert both.ranks[module] == both.alphas[module] == 6
        expected = 0.5 * lycoris(first.modules[module], shape).double() - 1.5 * lycoris(second.modules[module], shape).double()
        assert (plain(both.modules[module], shape) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_joins_exactly_even_past_the_size_of_a_layer(tmp_path, family):
    a, b = lora(tmp_path / "a.safetensors", family, seed=1), lora(tmp_path / "b.safetensors", "lokr", seed=2)
    assert run("join-loras", a, f"{b}:2", "-o", tmp_path / "j.safetensors", "--dtype", "fp32") == 0
    first, second, both = (read_lora(path) for path in (a, b, tmp_path / "j.safetensors"))
    for module, shape in SHAPES.items():
        expected = lycoris(first.modules[module], shape) + 2 * lycoris(second.modules[module], shape)
        close(plain(both.modules[module], shape), expected, 1e-4)
        assert both.ranks[module] <= min(shape[0], np.prod(shape[1:]))


def test_modules_that_only_one_file_has_are_kept(tmp_path):
    a = write_lora(tmp_path / "a.safetensors", {LINEAR: parts_of("lora", SHAPES[LINEAR])}, {}, torch.float32)
    b = write_lora(tmp_path / "b.safetensors", {TEXT: parts_of("lora", SHAPES[TEXT])}, {}, torch.float32)
    assert run("join-loras", a, b, "-o", tmp_path / "j.safetensors") == 0
    assert read_lora(tmp_path / "j.safetensors").modules.keys() == {LINEAR, TEXT}


def test_a_join_to_a_rank_is_the_best_of_that_rank(tmp_path):
    """Eckart and Young: no matrix of rank r is nearer than numpy's truncated SVD."""
    a, b = lora(tmp_path / "a.safetensors", rank=4, seed=1), lora(tmp_path / "b.safetensors", rank=4, seed=2)
    assert run("join-loras", a, b, "--rank", 3, "-o", tmp_path / "j.safetensors", "--dtype", "fp32") == 0
    first, second, both = (read_lora(path) for path in (a, b, tmp_path / "j.safetensors"))
    for module, shape in SHAPES.items():
        whole = (plain(first.modules[module], shape) + plain(second.modules[module], shape)).flatten(1).numpy()
        u, s, vh = np.linalg.svd(whole, full_matrices=False)
        close(plain(both.modules[module], shape).flatten(1), torch.from_numpy((u[:, :3] * s[:3]) @ vh[:3]), 1e-4)
        assert both.ranks[module] == 3


def test_the_joined_file_says_where_it_comes_from_and_keeps_the_tags(tmp_path):
    tags = {"ss_tag_frequency": json.dumps({"10_cat": {"cat": 3}}), "modelspec.trigger_phrase": "cat", "ss_clip_skip": "2"}
    a = lora(tmp_path / "a.safetensors", metadata=tags)
    b = lora(tmp_path / "b.safetensors", metadata={**tags, "modelspec.trigger_phrase": "dog", "ss_tag_frequency": json.dumps({"10_cat": {"dog": 2}})})
    assert run("join-loras", f"{a}:0.5", b, "-o", tmp_path / "j.safetensors") == 0
    with safe_open(tmp_path / "j.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.merged_from"] == "a.safetensors x 0.5, b.safetensors x 1" and metadata["modelspec.trigger_phrase"] == "cat, dog"
    assert json.loads(metadata["ss_tag_frequency"]) == {"10_cat": {"cat": 3}, "b/10_cat": {"dog": 2}}
    assert (metadata["ss_network_module"], metadata["ss_network_dim"], metadata["ss_base_model_version"], metadata["ss_clip_skip"]) == ("networks.lora", "6", "sd_v1", "2")
    assert len(metadata["sshs_model_hash"]) == 64 and len(metadata["sshs_legacy_hash"]) == 8


# ---- scale, resize ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scaled_lora_changes_so_many_times_as_much(tmp_path, family):
    file = lora(tmp_path / "a.safetensors", family, metadata={"ss_steps": "12", "sshs_model_hash": "old", "modelspec.hash_sha256": "old"})
    assert run("scale", file, "--alpha", "-0.4", "-o", tmp_path / "s.safetensors") == 0
    before, after = read_lora(file), read_lora(tmp_path / "s.safetensors")
    for module, shape in SHAPES.items():
        close(lycoris(after.modules[module], shape), -0.4 * lycoris(before.modules[module], shape))
    assert after.metadata["ss_steps"] == "12" and after.metadata["modelspec.merged_from"] == "a x -0.4" and "old" not in after.metadata.values() and len(after.metadata["sshs_model_hash"]) == 64
    assert {t.dtype for t in load_file(tmp_path / "s.safetensors").values()} == {torch.float32}


def test_checkpoints_are_scaled_between_and_beyond(tmp_path, slim):
    assert run("merge-lora", slim, lora(tmp_path / "a.safetensors"), "-o", tmp_path / "tuned.safetensors") == 0
    for alpha in (0.25, 1.5):
        assert run("scale", slim, tmp_path / "tuned.safetensors", "--alpha", alpha, "-o", tmp_path / f"{alpha}.safetensors") == 0
        old, new = weights_of(slim), weights_of(tmp_path / f"{alpha}.safetensors")
        for module, parts in modules_of().items():
            close(new[module] - old[module], alpha * plain(parts, SHAPES[module]))
        assert torch.equal(new[("unet", "out.0")], old[("unet", "out.0")])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_limit_resize_makes_the_same_change_as_a_plain_lora(tmp_path, family):
    file = lora(tmp_path / "a.safetensors", family)
    assert run("resize", file, "-o", tmp_path / "r.safetensors", "--dtype", "fp32") == 0
    after = read_lora(tmp_path / "r.safetensors")
    for module, parts in modules_of(family).items():
        assert after.modules[module].keys() == {"lora_up.weight", "lora_down.weight", "alpha"}
        close(plain(after.modules[module], SHAPES[module]), lycoris(parts, SHAPES[module]), 1e-4)


def known_values(values: list[float]) -> torch.Tensor:
    """A (12, 10) matrix of these singular values."""
    left, right = (torch.linalg.qr(random(n, len(values), seed=n).double())[0] for n in (12, 10))
    return ((left * torch.tensor(values).double()) @ right.t()).float()


@pytest.mark.parametrize("keep, count", [
    (Keep(), 4), (Keep(rank=3), 3), (Keep(rank=9), 4), (Keep(energy=0.75), 1), (Keep(energy=0.76), 2), (Keep(energy=0.94), 2), (Keep(energy=0.95), 3),
    (Keep(energy=0.99), 4), (Keep(ratio=2.0), 2), (Keep(ratio=1.9), 1), (Keep(ratio=8.0), 4), (Keep(ratio=7.9), 3), (Keep(rank=2, energy=0.99, ratio=5), 2),
])  # fmt: skip
def test_how_many_values_are_kept(keep, count):
    """The squares of 8, 4, 2, 1 add up to 64, 80, 84 and 85 of 85: 0.753, 0.941, 0.988, 1."""
    assert keep.count(torch.tensor([8.0, 4.0, 2.0, 1.0])) == count


def test_a_part_that_is_reached_but_for_rounding_is_reached():
    assert Keep(energy=0.8).count(torch.tensor([2.0, 1.0])) == 1 and Keep(energy=0.80001).count(torch.tensor([2.0, 1.0])) == 2
    assert Keep(energy=0.5).count(torch.zeros(4)) == 1


def test_the_small_svd_of_a_product_is_numpy_s_of_the_whole():
    up, down = random(40, 5, seed=1), random(5, 60, seed=2)
    u, values, vh = svd_of_product(up, down)
    expected = np.linalg.svd((up @ down).numpy(), compute_uv=False)
    close(values, torch.from_numpy(expected[:5]), 1e-4)
    close((u * values) @ vh, up @ down)


def test_clamping_is_kohya_s():
    """networks/extract_lora_from_models.py: U diag(S) and Vh, clamped at the quantile of both together."""
    matrix, q = random(30, 20, seed=4), 0.9
    up, down = factors(svd(matrix), Keep(6), q)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, vh = u[:, :6] @ torch.diag(s[:6]), vh[:6]
    limit = torch.quantile(torch.cat([u.flatten(), vh.flatten()]), q)
    close(up @ down, u.clamp(-limit, limit) @ vh.clamp(-limit, limit))
    assert float(up.max()) <= float(limit) + 1e-6 < float(u.abs().max())


def test_resize_keeps_the_energy_that_it_says(tmp_path, capsys):
    matrix = known_values([8.0, 4.0, 2.0, 1.0])
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    parts = {"lora_up.weight": torch.from_numpy(u[:, :4] * s[:4]), "lora_down.weight": torch.from_numpy(vh[:4]), "alpha": torch.tensor(4.0)}
    file = write_lora(tmp_path / "a.safetensors", {LINEAR: parts}, {"ss_network_dim": "4", "ss_network_args": '{"algo": "lora"}', "ss_steps": "7"}, torch.float32)
    assert run("resize", file, "--energy", 0.94, "-o", tmp_path / "r.safetensors", "--dtype", "fp32") == 0
    after = read_lora(tmp_path / "r.safetensors")
    assert after.ranks == {LINEAR: 2} and "94.12% of the change is kept" in capsys.readouterr().out
    assert (after.metadata["ss_network_dim"], after.metadata["ss_steps"], "ss_network_args" in after.metadata) == ("2", "7", False)


# ---- extract ---------------------------------------------------------------------------------------------------------


def test_what_was_merged_is_extracted_again(tmp_path, slim, capsys):
    file = lora(tmp_path / "a.safetensors", rank=3)
    assert run("merge-lora", slim, file, "-o", tmp_path / "m.safetensors") == 0
    assert run("extract", slim, tmp_path / "m.safetensors", "--rank", 3, "--conv-rank", 3, "-o", tmp_path / "e.safetensors", "--dtype", "fp32") == 0
    found = read_lora(tmp_path / "e.safetensors")
    assert found.modules.keys() == SHAPES.keys() and set(found.ranks.values()) == {3}
    for module, parts in modules_of(rank=3).items():
        close(plain(found.modules[module], SHAPES[module]), plain(parts, SHAPES[module]), 1e-4)
    assert "100.00% of their change; they hold 100.00% of that of all weights" in capsys.readouterr().out
    assert all(key.startswith(("lora_unet_", "lora_te_")) for key in load_file(tmp_path / "e.safetensors"))
    assert found.metadata["modelspec.merged_from"] == "m - small" and found.metadata["ss_network_dim"] == "3"


@pytest.mark.parametrize("more, left", [((), {LINEAR, CROSS, ONE, TEXT}), (("--conv-rank", 2), set(SHAPES)), (("--no-text",), {LINEAR, CROSS, ONE})])
def test_which_layers_are_extracted(tmp_path, slim, more, left):
    assert run("merge-lora", slim, lora(tmp_path / "a.safetensors", rank=3), "-o", tmp_path / "m.safetensors") == 0
    assert run("extract", slim, tmp_path / "m.safetensors", *more, "-o", tmp_path / "e.safetensors") == 0
    found = read_lora(tmp_path / "e.safetensors")
    assert found.modules.keys() == left and (CONV not in left or found.ranks[CONV] == 2)


def test_an_extraction_of_low_rank_is_numpy_s(tmp_path, slim):
    assert run("merge-lora", slim, lora(tmp_path / "a.safetensors", "full"), "-o", tmp_path / "m.safetensors") == 0
    assert run("extract", slim, tmp_path / "m.safetensors", "--rank", 5, "--conv-rank", 7, "-o", tmp_path / "e.safetensors", "--dtype", "fp32") == 0
    found = read_lora(tmp_path / "e.safetensors")
    for module, parts in modules_of("full").items():
        rank = 7 if module == CONV else 5
        u, s, vh = np.linalg.svd(parts["diff"].flatten(1).numpy(), full_matrices=False)
        close(plain(found.modules[module], SHAPES[module]).flatten(1), torch.from_numpy((u[:, :rank] * s[:rank]) @ vh[:rank]), 1e-3)


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(capsys, *argv) -> str:
    """The one sentence on stderr with which a tool ends with 2."""
    capsys.readouterr()
    assert run(*argv) == 2
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.endswith(".") and "Traceback" not in text
    return text


def test_what_does_not_fit_is_one_sentence(tmp_path, slim, capsys):
    wide = write_lora(tmp_path / "wide.safetensors", {LINEAR: parts_of("lora", (320, 320))}, {}, torch.float32)
    hada = write_lora(tmp_path / "hada.safetensors", {LINEAR: parts_of("loha", (320, 320))}, {}, torch.float32)
    xl = write_lora(tmp_path / "xl.safetensors", {LINEAR: parts_of("lora", (32, 32))}, {"ss_base_model_version": "sdxl_base_v1-0"}, torch.float32)
    glora = write_lora(tmp_path / "g.safetensors", {LINEAR: {f"{n}.weight": random(4, 4) for n in ("a1", "a2", "b1", "b2")} | {"alpha": torch.tensor(1.0)}}, {})
    small, out = lora(tmp_path / "a.safetensors"), ("-o", tmp_path / "x.safetensors")
    for argv, words in (
        (("merge-lora", slim, wide, *out), "a layer of 320x320 instead of 32x32"),
        (("merge-lora", slim, hada, *out), "hada.safetensors does not fit"),
        (("merge-lora", slim, xl, *out), "is a LoRA for Stable Diffusion XL"),
        (("merge-lora", slim, glora, *out), "g.safetensors is a family of adapters that the tools do not know (a1.weight"),
        (("merge-lora", small, small, *out), "a.safetensors is a LoRA, not a Stable Diffusion 1.5 checkpoint"),
        (("merge-lora", slim, *out), "no LoRA is given"),
        (("merge-lora", slim, tmp_path / "none.safetensors", *out), "does not exist"),
        (("join-loras", small, wide, *out), "for models of different widths"),
        (("resize", slim, *out), "is a Stable Diffusion 1 checkpoint, not a LoRA"),
        (("resize", small, "--energy", "1.5", *out), "'1.5' is not a part, above 0 and up to 1"),
        (("resize", small, "--ratio", "0.5", *out), "'0.5' is not a number from 1 up"),
        (("scale", small, small, small, "--alpha", 1, *out), "unrecognized arguments"),
        (("extract", slim, slim, *out), "there is nothing to extract"),
        (("extract", slim, slim, "--min-change", "-1", *out), "'-1' is not a number from 0 up"),
        (("extract", slim, small, *out), "not a Stable Diffusion 1.5 checkpoint"),
    ):  # fmt: skip
        assert words in refused(capsys, *argv), argv
    assert not (tmp_path / "x.safetensors").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("tool", ["join-loras", "resize", "scale"])
def test_a_dora_is_not_taken_for_what_it_is_without_its_lengths(tmp_path, capsys, tool):
    modules = {LINEAR: {**parts_of("lora", SHAPES[LINEAR]), "dora_scale": torch.ones(1, 32)}}
    file = write_lora(tmp_path / "a.safetensors", modules, {})
    assert "is a DoRA" in refused(capsys, tool, file, *(("--alpha", 1) if tool == "scale" else ()), "-o", tmp_path / "x.safetensors")


@pytest.mark.parametrize("text, words", [
    ("", "a recipe is a row of [[lora]] tables"), ("lora = 3", "a recipe is"), ("[[lora]]\nweight = 1", "lora 1 names no file"), ("[[lora]]\nfile = 3", "names no file"),
    ('[[lora]]\nfile = "a.safetensors"\nwieght = 1', "there is no 'wieght'; did you mean weight? (a table has file"), ('[[lora]]\nfile = "a.safetensors"\nweight = "x"', "weight is 'x', not a number"),
    ('[[lora]]\nfile = "a"\nweight = inf', "weight is inf, not a number"), ("[[lora", "not valid TOML"), ('name = "x"\n[[lora]]\nfile = "a"', "and nothing else"),
])  # fmt: skip
def test_a_wrong_recipe_is_one_sentence(tmp_path, capsys, text, words):
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert run("join-loras", "--recipe", tmp_path / "r.toml", "-o", tmp_path / "x.safetensors") == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="another variable names the home there")
def test_files_may_be_named_from_home(tmp_path, monkeypatch):
    """`--out=~/x` is not opened up by the shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    lora(tmp_path / "a.safetensors")
    assert run("join-loras", "~/a.safetensors:0.5", "--out=~/b.safetensors") == 0
    assert run("scale", "~/b.safetensors", "--alpha", "2", "--out=~/c.safetensors") == 0
    close(plain(read_lora(tmp_path / "c.safetensors").modules[TEXT], SHAPES[TEXT]), plain(read_lora(tmp_path / "a.safetensors").modules[TEXT], SHAPES[TEXT]), 1e-2)


def test_files_may_stand_on_both_sides_of_an_option(tmp_path, slim):
    a, b, made = lora(tmp_path / "a.safetensors", seed=1), lora(tmp_path / "b.safetensors", seed=2), [tmp_path / f"{i}.safetensors" for i in range(6)]
    assert run("join-loras", a, b, "-o", made[0]) == run("join-loras", a, "-o", made[1], f"{b}:1.0") == 0
    assert run("merge-lora", slim, a, b, "-o", made[2]) == run("merge-lora", slim, "-o", made[3], a, "--dtype", "fp32", b) == 0
    assert run("scale", slim, made[2], "--alpha", "-0.5", "-o", made[4]) == run("scale", slim, "--alpha", "-0.5", made[2], "-o", made[5]) == 0
    for one, other in zip(made[::2], made[1::2]):
        one, other = load_file(one), load_file(other)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_file_whose_name_begins_with_a_dash_stands_after_two_dashes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lora(tmp_path / "-x.safetensors", seed=1), lora(tmp_path / "b.safetensors", seed=2)
    assert run("convert", "-o", "c.safetensors", "--", "-x.safetensors") == 0
    assert run("join-loras", "b.safetensors", "-o", "d.safetensors", "--", "-x.safetensors:0.5", "b.safetensors") == 0
    assert run("convert", "-o", "e.safetensors", "--", "b.safetensors", "-y") == 2 and "unrecognized arguments" in capsys.readouterr().err
    assert run("convert", "-o", "e.safetensors", "-x.safetensors") == 2


@pytest.mark.parametrize("argv, words", [(("a", "--rnak", "2", "-o", "b"), "unrecognized arguments: --rnak"), (("a",), "required: -o/--out"), (("a", "--rank", "-1", "-o", "b"), "argument --rank")])
def test_a_wrong_option_of_a_tool_is_one_sentence(capsys, argv, words):
    assert run("join-loras", *argv) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_a_colon_in_a_name_is_no_weight(tmp_path):
    from lib_tuner.tools.recipe import weighted

    assert weighted("C:/loras/cat.safetensors").path == Path("C:/loras/cat.safetensors") and weighted("C:/cat.safetensors:0.5").unet == 0.5
    odd = tmp_path / "cat:2"
    odd.write_bytes(b"x")
    assert weighted(str(odd)).path == odd and weighted(f"{odd}:-3").text == -3
