"""Small files for the tests of the tools: LoRAs of every family beside the small random model, and what they change by LyCORIS's own functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib_tuner import cli
from lib_tuner.methods.lora_file import write_lora
from lib_tuner.sd.files import read_checkpoint, write_tensors

LINEAR = ("unet", "input_blocks.1.1.transformer_blocks.0.attn1.to_q")  # (32, 32)
CROSS = ("unet", "output_blocks.4.1.transformer_blocks.0.attn2.to_k")  # (96, 48)
ONE = ("unet", "middle_block.1.proj_in")  # (96, 96, 1, 1)
CONV = ("unet", "input_blocks.4.0.in_layers.2")  # (64, 32, 3, 3)
TEXT = ("text", "text_model.encoder.layers.1.mlp.fc1")  # (96, 48)
SHAPES = {LINEAR: (32, 32), CROSS: (96, 48), ONE: (96, 96, 1, 1), CONV: (64, 32, 3, 3), TEXT: (96, 48)}
FAMILIES = ("lora", "tucker", "loha", "loha tucker", "lokr", "lokr whole", "lokr low", "lokr tucker", "full")


_SLIM = ("input_blocks.0.0.", "input_blocks.1.1.transformer_blocks.0.attn1.", "input_blocks.4.0.in_layers.", "middle_block.1.proj_in.", "out.0.",
         "output_blocks.4.1.transformer_blocks.0.attn2.", "first_stage_model.post_quant_conv.", "encoder.layers.1.", "position_ids")  # fmt: skip


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory, checkpoint_file: Path) -> Path:
    """A checkpoint of a few layers of the small random model."""
    path = tmp_path_factory.mktemp("slim") / "small.safetensors"
    kept = {key: tensor for key, tensor in load_file(checkpoint_file).items() if any(name in key for name in _SLIM)}
    return write_tensors(path, kept, {"tuner_unet_heads": "4"})


def run(*argv: object) -> int:
    """A tool's command line; the exit code."""
    return cli.main(["--no-venv", "tool", *map(str, argv)])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parts_of(family: str, shape: tuple[int, ...], rank: int = 3, alpha: float = 2.0, seed: int = 0) -> dict[str, torch.Tensor]:
    """A module's factors in a file; forms with a core only where there is a kernel, else without."""
    out, inputs, *kernel = shape
    area, core = kernel[0] * kernel[1] if kernel else 1, family.endswith("tucker") and kernel[:1] == [3]
    rest, s = {"alpha": torch.tensor(alpha)}, iter(range(100 * seed, 100 * seed + 100))
    if family == "full":
        return {"diff": random(*shape, seed=next(s))}
    if family in ("lora", "tucker"):
        ones = [1] * len(kernel)
        found = {"lora_up.weight": random(out, rank, *ones, seed=next(s)), "lora_down.weight": random(rank, inputs, *(ones if core else kernel), seed=next(s))}
        return found | rest | ({"lora_mid.weight": random(rank, rank, *kernel, seed=next(s))} if core else {})
    if family.startswith("loha"):
        if core:
            return {f"hada_w{i}_{x}": random(rank, size, seed=next(s)) for i in (1, 2) for x, size in (("a", out), ("b", inputs))} | rest | {
                f"hada_t{i}": random(rank, rank, *kernel, seed=next(s)) for i in (1, 2)}  # fmt: skip
        return {f"hada_w{i}_{x}": random(*size, seed=next(s)) for i in (1, 2) for x, size in (("a", (out, rank)), ("b", (rank, inputs * area)))} | rest
    a, c = 4, 8
    b, d = out // a, inputs // c
    first = {"lokr_w1_a": random(a, rank, seed=next(s)), "lokr_w1_b": random(rank, c, seed=next(s))} if family == "lokr low" else {"lokr_w1": random(a, c, seed=next(s))}
    if family == "lokr whole":
        return first | rest | {"lokr_w2": random(b, d, *kernel, seed=next(s))}
    if core:
        return first | rest | {"lokr_t2": random(rank, rank, *kernel, seed=next(s)), "lokr_w2_a": random(rank, b, seed=next(s)), "lokr_w2_b": random(rank, d, seed=next(s))}
    return first | rest | {"lokr_w2_a": random(b, rank, seed=next(s)), "lokr_w2_b": random(rank, d * area, seed=next(s))}


def modules_of(family: str = "lora", **more) -> dict:
    return {module: parts_of(family, shape, **{"seed": i, **more}) for i, (module, shape) in enumerate(SHAPES.items())}


def lora(path: Path, family: str = "lora", metadata: dict | None = None, **more) -> Path:
    return write_lora(path, modules_of(family, **more), metadata or {}, torch.float32)


def lycoris(parts: dict, shape: tuple[int, ...]) -> torch.Tensor:
    """ΔW by LyCORIS's functions, which know nothing of ours."""
    locon, loha, lokr = (pytest.importorskip(f"lycoris.functional.{name}") for name in ("locon", "loha", "lokr"))
    alpha = float(parts.get("alpha", 1))
    if "diff" in parts:
        return parts["diff"]
    if "lora_up.weight" in parts:
        found = locon.diff_weight(parts["lora_down.weight"], parts["lora_up.weight"], parts.get("lora_mid.weight"), gamma=alpha / len(parts["lora_down.weight"]))
    elif "hada_w1_a" in parts:
        names = ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")
        found = loha.diff_weight(*(parts.get(f"hada_{name}") for name in names), gamma=alpha / len(parts["hada_w1_b"]))
    else:
        given = [parts.get(f"lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
        gamma = alpha if given[1] is not None or given[4] is not None else 1.0  # it divides by the rank itself
        if given[6] is not None:
            gamma *= given[4].shape[1] / len(given[4])  # with a core its division is by the wrong axis; LyCORIS's modules and the WebUI divide by the rank
        found = lokr.diff_weight(*given, gamma=gamma)
    return found.reshape(shape)


def plain(parts: dict, shape: tuple[int, ...]) -> torch.Tensor:
    """ΔW of a plain LoRA, by the formula."""
    up, down = parts["lora_up.weight"].float(), parts["lora_down.weight"].float()
    return (float(parts["alpha"]) / len(down) * up.flatten(1) @ down.flatten(1)).reshape(shape)


def weights_of(path: Path) -> dict:
    """The weights of a checkpoint's trainable parts by module."""
    checkpoint = read_checkpoint(path)
    states = {"unet": checkpoint.unet, "text": checkpoint.text}
    return {(part, key[: -len(".weight")]): tensor for part, state in states.items() for key, tensor in state.items() if key.endswith(".weight")}
