"""Checkpoints merged with each other, and what all tools share: little memory, inputs as they were, no file half written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tool_files import lora, parts_of, plain, run, slim, weights_of  # noqa: F401 (slim is a fixture)

from lib_tuner.methods.lora_file import write_lora
from lib_tuner.sd import files
from lib_tuner.sd.files import TEXT, UNET, read_checkpoint
from lib_tuner.tools.weights import Planned, Weights, write_weights

FIRST = f"{UNET}input_blocks.0.0.weight"

pytestmark = pytest.mark.webui_versions  # the tools run inside the WebUI's environment, too


@pytest.fixture
def three(tmp_path, slim) -> list[Path]:
    """Checkpoints of one structure: the small random one in fp16, and two others."""
    state = load_file(slim)
    found = []
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        tensors = {key: t + i * 0.1 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t for key, t in state.items()}
        found.append(tmp_path / f"{'abc'[i]}.safetensors")
        save_file({key: t.half() if i == 0 and t.is_floating_point() else t for key, t in tensors.items()}, found[-1], metadata={"tuner_unet_heads": "4"})
    return found


# ---- merging checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.3, 1.0, 1.7])
def test_a_weighted_sum_and_an_added_difference(tmp_path, three, weight, capsys):
    a, b, c = three
    assert run("merge-checkpoints", a, b, "--weight", weight, "-o", tmp_path / "sum.safetensors") == 0
    assert run("merge-checkpoints", a, b, c, "--weight", weight, "-o", tmp_path / "difference.safetensors", "--dtype", "fp32") == 0
    first, second, third, total, difference = (load_file(path) for path in (*three, tmp_path / "sum.safetensors", tmp_path / "difference.safetensors"))
    assert first.keys() == total.keys() == difference.keys()
    for key, x in first.items():
        if not x.is_floating_point():
            assert torch.equal(total[key], x)
            continue
        assert total[key].dtype == torch.float16 and difference[key].dtype == torch.float32
        torch.testing.assert_close(total[key], ((1 - weight) * x.double() + weight * second[key].double()).half(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(difference[key], (x.double() + weight * (second[key].double() - third[key].double())).float(), rtol=1e-5, atol=1e-6)
    assert "a + " in capsys.readouterr().out
    with safe_open(tmp_path / "sum.safetensors", "pt") as file:
        assert file.metadata()["modelspec.merged_from"] == f"a + {weight:g} x (b - a)" and file.metadata()["tuner_unet_heads"] == "4"
    read_checkpoint(tmp_path / "sum.safetensors")


def test_an_inpainting_checkpoint_takes_a_difference_in_its_first_four_channels(tmp_path, three):
    a, b, c = three
    first = load_file(a)
    first[FIRST] = torch.cat([first[FIRST], torch.ones(first[FIRST].shape[0], 5, 3, 3, dtype=torch.float16)], 1)
    save_file(first, tmp_path / "inpainting.safetensors")
    assert run("merge-checkpoints", tmp_path / "inpainting.safetensors", b, c, "--weight", 1, "-o", tmp_path / "x.safetensors") == 0
    got = load_file(tmp_path / "x.safetensors")[FIRST]
    expected = first[FIRST][:, :4].float() + load_file(b)[FIRST] - load_file(c)[FIRST]
    assert torch.equal(got[:, 4:], first[FIRST][:, 4:]) and torch.equal(got[:, :4], expected.half())


def test_a_lora_on_the_first_convolution_changes_an_inpainting_checkpoint(tmp_path, three):
    first = {key: t.float() if t.is_floating_point() else t for key, t in load_file(three[0]).items()}
    first[FIRST] = torch.cat([first[FIRST], torch.ones(first[FIRST].shape[0], 5, 3, 3)], 1)
    save_file(first, tmp_path / "inpainting.safetensors")
    parts = parts_of("lora", (32, 4, 3, 3))
    file = write_lora(tmp_path / "l.safetensors", {("unet", "input_blocks.0.0"): parts}, {}, torch.float32)
    assert run("merge-lora", tmp_path / "inpainting.safetensors", file, "-o", tmp_path / "x.safetensors") == 0
    got = load_file(tmp_path / "x.safetensors")[FIRST]
    torch.testing.assert_close(got[:, :4] - first[FIRST][:, :4], plain(parts, (32, 4, 3, 3)), rtol=1e-4, atol=1e-5)
    assert torch.equal(got[:, 4:], first[FIRST][:, 4:])


@pytest.mark.parametrize("tool", ["convert", "merge-checkpoints", "merge-lora"])
def test_a_checkpoints_yaml_goes_with_it(tmp_path, three, tool):
    more = {"convert": [], "merge-checkpoints": [three[1], "--weight", 0.5], "merge-lora": [lora(tmp_path / "l.safetensors")]}[tool]
    three[0].with_suffix(".yaml").write_text("parameterization: v")
    assert run(tool, three[0], *more, "-o", tmp_path / "x.safetensors") == 0
    assert (tmp_path / "x.yaml").read_text() == "parameterization: v"


def test_old_names_of_the_text_encoder_meet_the_new_ones(tmp_path, three):
    a, b, _ = three
    save_file({key.replace(f"{TEXT}text_model.", TEXT): t for key, t in load_file(b).items()}, tmp_path / "old.safetensors")
    for name, other in (("x", b), ("y", tmp_path / "old.safetensors")):
        assert run("merge-checkpoints", a, other, "-o", tmp_path / f"{name}.safetensors") == 0
    x, y = load_file(tmp_path / "x.safetensors"), load_file(tmp_path / "y.safetensors")
    assert all(torch.equal(x[key], y[key]) for key in x)


def test_checkpoints_that_do_not_go_together_are_one_sentence(tmp_path, three, capsys):
    a, b, _ = three
    wide = {key: torch.zeros(64, *t.shape[1:]) if key == FIRST else t for key, t in load_file(b).items()}
    nine = {key: torch.zeros(32, 9, 3, 3) if key == FIRST else t for key, t in load_file(b).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    save_file(nine, tmp_path / "nine.safetensors")
    save_file({"conditioner.embedders.0.x": torch.ones(1)}, tmp_path / "xl.safetensors")
    for other, words in (("wide", "are models of different widths"), ("nine", "name the inpainting checkpoint first"), ("xl", "is a Stable Diffusion XL model and a.safetensors")):
        assert run("merge-checkpoints", a, tmp_path / f"{other}.safetensors", "-o", tmp_path / "x.safetensors") == 2
        assert words in capsys.readouterr().err
    assert run("merge-checkpoints", a, lora(tmp_path / "l.safetensors"), "-o", tmp_path / "x.safetensors") == 2
    assert "l.safetensors is a LoRA, not a checkpoint" in capsys.readouterr().err
    assert run("extract", a, tmp_path / "nine.safetensors", "-o", tmp_path / "x.safetensors") == 2
    assert "models of different widths or kinds" in capsys.readouterr().err


# ---- the streaming file ----------------------------------------------------------------------------------------------


def test_a_file_is_read_as_safetensors_reads_it_and_written_as_it_can_be_read(tmp_path):
    tensors = {f"t{i}": t for i, t in enumerate((torch.randn(3, 5), torch.randn(7).half(), torch.arange(3), torch.tensor(2.5), torch.empty(0, 4), torch.tensor([True, False]),
                                                 torch.randn(4, 2).bfloat16(), torch.tensor([1, 2, 3], dtype=torch.uint8), torch.randn(2).double()))}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors", metadata={"é": "\"x\"\n"})
    weights = Weights(tmp_path / "a.safetensors")
    plan = {key: Planned(weights.shapes[key], weights.dtypes[key], lambda key=key: weights.get(key)) for key in weights.shapes}
    write_weights(tmp_path / "b.safetensors", plan, weights.metadata)
    found = load_file(tmp_path / "b.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], t) and found[key].dtype == t.dtype for key, t in tensors.items())
    data = (tmp_path / "b.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert data[8:10] == b'{"' and length % 8 == 0 and header["__metadata__"]["é"] == '"x"\n'
    for key, t in tensors.items():
        assert (8 + length + header[key]["data_offsets"][0]) % t.element_size() == 0


def test_numbers_that_are_none_are_not_written(tmp_path, three, capsys):
    a, b, _ = three
    broken = load_file(b)
    key = f"{UNET}middle_block.1.proj_in.weight"
    broken[key][0, 0] = float("nan")
    save_file(broken, tmp_path / "nan.safetensors")
    huge = load_file(b)
    huge[key][0, 0] = 1e6
    save_file(huge, tmp_path / "huge.safetensors")
    for argv, words in (
        (("merge-checkpoints", b, tmp_path / "nan.safetensors"), f"x.safetensors was not written: NaN or infinite numbers in {key} (float32)"),
        (("convert", tmp_path / "huge.safetensors", "--dtype", "fp16"), f"x.safetensors was not written: numbers too large for it in {key} (float16)"),
        (("extract", b, tmp_path / "nan.safetensors"), f"{key} holds NaN or infinite numbers"),
    ):
        assert run(*argv, "-o", tmp_path / "x.safetensors") == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists() and not list(tmp_path.glob(".*"))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, slim, capsys, monkeypatch):
    argv = ("convert", slim, "-o", tmp_path / "x.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
        assert run(*argv) == 2
    assert "x.safetensors needs" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # another program fills it meanwhile
        patch.setattr("lib_tuner.tools.weights._bytes", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        assert run(*argv) == 2
    assert "cannot be written (No space left on device); make room or choose another folder." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


MEASURE = """
import sys
from lib_tuner import cli
import lib_tuner.tools.extract, lib_tuner.tools.merge_checkpoints, lib_tuner.tools.merge_lora
def memory(name):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name)))
now = memory("VmRSS:")
a, lora, out = sys.argv[1:]
for call in (["merge-checkpoints", a, a], ["merge-lora", a, lora], ["convert", a, "--dtype", "fp16"], ["inspect", a]):
    more = [] if call[0] == "inspect" else ["-o", out, "--force"]
    assert cli.main(["--no-venv", "tool", *call, *more]) == 0, call
    print(memory("VmHWM:") - now, call[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_large_file_needs_the_memory_of_a_few_tensors(tmp_path):
    """Of a checkpoint of 300 MB with tensors of 4 MB; pages of files that are mapped would count too."""
    block = torch.randn(1 << 20).reshape(1024, 1024)
    names = [f"{UNET}output_blocks.{i}.1.transformer_blocks.0.attn1.{x}.weight" for i in range(3, 12) for x in ("to_q", "to_k", "to_v", "to_out.0")]
    names += [f"{TEXT}text_model.encoder.layers.{i}.self_attn.{x}_proj.weight" for i in range(12) for x in ("q", "k", "v")]
    tensors = {name: block for name in names} | {FIRST: torch.zeros(32, 4, 3, 3)}
    a = write_weights(tmp_path / "a.safetensors", {key: Planned(tuple(t.shape), t.dtype, lambda t=t: t) for key, t in tensors.items()}, {})
    assert a.stat().st_size > 300e6
    pair = {"lora_down.weight": torch.ones(2, 1024), "lora_up.weight": torch.ones(1024, 2)}
    small = write_lora(tmp_path / "l.safetensors", {("unet", "output_blocks.3.1.transformer_blocks.0.attn1.to_q"): pair}, {})
    command = [sys.executable, "-c", MEASURE, str(a), str(small), str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parent.parent)
    more = {name: int(number) for number, name in re.findall(r"^(\d+) ([a-z-]+)$", done.stdout, re.M)}
    assert len(more) == 4 and max(more.values()) < 75_000, more  # kB


# ---- inputs and outputs ----------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def calls(tmp_path: Path, checkpoint: Path) -> list[list]:
    """Every tool, without its output; the first of its inputs is the second word."""
    a, b = lora(tmp_path / "a.safetensors", seed=1), lora(tmp_path / "b.safetensors", "lokr", seed=2)
    tuned = tmp_path / "tuned.safetensors"
    assert run("merge-lora", checkpoint, a, "-o", tuned) == 0
    return [
        ["merge-lora", checkpoint, a, b], ["join-loras", a, b], ["scale", a, "--alpha", 2], ["scale", checkpoint, tuned, "--alpha", 2], ["extract", checkpoint, tuned],
        ["resize", a, "--rank", 1], ["convert", a], ["convert", checkpoint], ["merge-checkpoints", checkpoint, tuned],
    ]  # fmt: skip


def test_inputs_stay_as_they_are_and_are_never_the_output(tmp_path, slim, capsys, monkeypatch):
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(slim.read_bytes())
    monkeypatch.chdir(tmp_path)
    todo = calls(tmp_path, copy)
    before = {path: digest(path) for path in tmp_path.iterdir()}
    (tmp_path / "folder").mkdir()
    for call in todo:
        assert run(*call, "-o", tmp_path / "x.safetensors", "--force") == 0
        source = Path(call[1])
        link, hard = tmp_path / "link.safetensors", tmp_path / "hard.safetensors"
        link.symlink_to(source)
        os.link(source, hard)
        for out in (source, Path(source.name), tmp_path / "folder" / ".." / source.name, link, hard):
            capsys.readouterr()
            assert run(*call, "-o", out, "--force") == 2
            assert "is one of the inputs" in capsys.readouterr().err, (call, out)
        link.unlink()
        hard.unlink()
    assert {path: digest(path) for path in before} == before


def test_a_file_that_exists_is_replaced_only_when_told_to(tmp_path, slim, capsys):
    out = tmp_path / "x.safetensors"
    for call in calls(tmp_path, slim):
        out.write_bytes(b"mine")
        assert run(*call, "-o", out) == 2 and out.read_bytes() == b"mine"
        assert "exists already; choose another name, or replace it with --force." in capsys.readouterr().err
        assert run(*call, "-o", tmp_path / "x.ckpt") == 2
        assert "must end in .safetensors" in capsys.readouterr().err
        assert run(*call, "-o", out, "--force") == 0 and out.stat().st_size > 4
        capsys.readouterr()
        assert run(*call) == 2
        assert "the following arguments are required: -o/--out" in capsys.readouterr().err
    assert run("merge-lora", slim, tmp_path / "a.safetensors", "--recipe", out, "-o", out, "--force") == 2


@pytest.mark.parametrize("name", ["merge-lora", "join-loras", "scale", "extract", "resize", "convert", "merge-checkpoints", "inspect"])
def test_help_of_each_tool_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as left:
        run(name, "--help")
    text = capsys.readouterr().out
    assert left.value.code == 0 and f"python3 -m lib_tuner tool {name} " in text.partition("example:")[2]


def test_progress_goes_to_stderr_and_ends_complete(tmp_path, slim, capsys):
    assert run("merge-lora", slim, lora(tmp_path / "a.safetensors"), "-o", tmp_path / "m.safetensors") == 0
    out, err = capsys.readouterr()
    total = len(load_file(slim))
    assert len(out.splitlines()) == 1 and err.splitlines()[-1] == f"writing tensor {total}/{total}" and 9 <= len(err.splitlines()) <= 11
    assert weights_of(tmp_path / "m.safetensors")
