"""`tool export-tiny DIR`: the embedded small model as files that the WebUI loads: checkpoint, the .yaml of its sizes, a CLIP folder.

The WebUI guesses SD1.5's sizes unless a yaml of the same stem lies beside the checkpoint; its `version` names a folder, and so a text encoder of any width.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Callable, Sequence

from ..disk import expanded
from ..sd.clip import CLIPSizes
from ..sd.files import Checkpoint, read_checkpoint
from ..sd.tokenizer import BOS, EOS, write_clip_folder
from ..sd.yaml import yaml_of
from .command_line import exists

TINY = Path(__file__).resolve().parent.parent / "demo" / "tiny-sd15.safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the three things into the folder named on the command line; returns the exit code. Raises FileExistsError, ValueError or OSError, each one sentence."""
    parser = argparse.ArgumentParser(prog="export-tiny", description="Write the embedded small model as files that the WebUI loads.")
    parser.add_argument("folder", type=expanded, help="where to write, such as the WebUI's models/Stable-diffusion")
    parser.add_argument("--model", type=expanded, default=TINY, help="another small model (default: the embedded one)")
    parser.add_argument("--force", action="store_true", help="replaces files that exist")
    args = parser.parse_args(argv)
    there = next((path for path in places(args.model, args.folder) if path.exists() and not (args.model.exists() and path.samefile(args.model))), None)
    if there and not args.force:
        raise FileExistsError(exists(there, "folder"))
    for path in export(args.model, args.folder):
        sys.stdout.write(f"{path}\n")
    return 0


def export(model: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Copies a small model into a folder and writes its yaml and CLIP folder beside it: the paths of all three.

    Raises ValueError for a model whose widths the WebUI's yaml cannot say.
    """
    checkpoint = read_checkpoint(model)
    folder = folder.resolve()
    target, yaml, clip = places(model, folder)
    text = yaml_of(checkpoint, str(clip))
    folder.mkdir(parents=True, exist_ok=True)
    write_clip_folder(clip, _clip_config(checkpoint))
    _replace(yaml, lambda path: path.write_text(text, encoding="utf-8"))
    if model.resolve() != target:
        _replace(target, lambda path: shutil.copyfile(model, path))
    return target, yaml, clip


def places(model: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Where the model, its yaml and its CLIP folder are written."""
    return folder / model.name, folder / f"{model.stem}.yaml", folder / f"{model.stem}-clip"


def _clip_config(checkpoint: Checkpoint) -> dict:
    sizes = CLIPSizes.of(checkpoint.text, checkpoint.heads.text)
    return {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.length,
        "vocab_size": sizes.vocabulary,
        "projection_dim": sizes.width,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 1,
        "torch_dtype": "float32",
    }


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
