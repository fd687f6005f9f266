"""Reads and writes Stable Diffusion 1.x checkpoints in the original layout, and says what a file is when it is something else.

Tensors are mapped from the file, not copied: a file of 2 GB opens at once, and its pages are read when they are used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Iterator, Mapping

import torch
from torch import Tensor

from ..disk import atomic
from .kinds import describe, kind_of
from .pickles import read_pickle

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")  # a training checkpoint also holds `loss.` and `model_ema.`
_OLD_TEXT = re.compile(r"^(embeddings|encoder|final_layer_norm)\.")
_V_YAML = re.compile(r"""^\s*parameterization\s*:\s*["']?v["']?\s*(#.*)?$""", re.MULTILINE)


@dataclass(frozen=True)
class Heads:
    """Numbers of attention heads, which no tensor's shape shows; the defaults are SD1.5's."""

    unet: int = 8
    text: int = 12


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint's three parts under the original keys without their prefixes, in the file's own precision."""

    path: Path
    unet: dict[str, Tensor]
    vae: dict[str, Tensor]
    text: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    inpainting: bool = False
    prediction: str = "eps"
    heads: Heads = Heads()
    position_ids: bool = True  # whether the file had the text encoder's position ids, which old converters wrote and new ones leave out

    def sha256(self) -> str:
        """The hash of the whole file in hexadecimal, which the WebUI shows too; read when first asked for."""
        return file_sha256(self.path)


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file in hexadecimal; the same file is read again only after it was written."""
    now = os.stat(path)
    return _sha256_of(os.path.abspath(path), now.st_size, now.st_mtime_ns, now.st_ino)


@lru_cache(maxsize=256)
def _sha256_of(path: str, *stamp: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a full SD1.x checkpoint (.safetensors, or .ckpt / .pt without running what it contains).

    EMA copies, schedule buffers and position ids are left out; old text encoder keys come out as the current ones.
    Raises ValueError or OSError with one sentence that says what the file is instead.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    kind = _check_kind(path, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    unet, vae, text = _parts(tensors)
    _check_parts(path, unet, vae, text)
    return Checkpoint(
        path,
        unet,
        vae,
        text,
        metadata,
        inpainting=kind == "sd1-inpainting",
        prediction=_prediction(path, tensors, metadata),
        heads=_heads(path, metadata),
        position_ids=any(key.endswith("embeddings.position_ids") for key in tensors),
    )


def glance(path: str | Path) -> None:
    """Raises what `read_checkpoint` would, as far as the first bytes tell and, of a .safetensors, its header; in milliseconds."""
    path = Path(path)
    if is_safetensors(path):
        _check_kind(path, read_header(path)[0])


def _check_kind(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    kind = kind_of(shapes)
    if kind not in ("sd1", "sd1-inpainting"):
        raise ValueError(f"{path.name} is {describe(kind)}, not a full Stable Diffusion 1.5 checkpoint; choose a checkpoint with UNet, VAE and text encoder.")
    return kind


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a weights file under flat names (nested dicts joined by dots), and its metadata ({} for a pickle).

    The container is told by its first bytes, not by the file's ending. Raises UnsafePickle, ValueError or OSError, each one sentence.
    """
    path = Path(path)
    container = _container(path)
    if container == "safetensors":
        return _read_safetensors(path)
    content = read_pickle(path)
    content = content if isinstance(content, Mapping) else {"": content}
    return dict(_flat(content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content)), {}


def is_safetensors(path: str | Path) -> bool:
    """Whether a weights file is a .safetensors, by its first bytes. Raises ValueError or OSError where it is evidently no weights file."""
    return _container(Path(path)) == "safetensors"


def _container(path: Path) -> str:
    """"safetensors" or "pickle"; raises where the file is evidently neither."""
    if path.is_dir():
        what = "a diffusers folder" if (path / "model_index.json").exists() else "a folder"
        raise ValueError(f"{path.name} is {what}, not a checkpoint file; choose a single .safetensors or .ckpt file.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        raise ValueError(f"{path.name} is empty (0 bytes); download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path.name} is a Git LFS pointer of {path.stat().st_size} bytes instead of the weights; fetch it with `git lfs pull`.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path.name} is a web page instead of the weights; download it again, logged in where the site asks for it.")
    if head.startswith(b"GGUF"):
        raise ValueError(f"{path.name} is a GGUF file of quantised weights, which cannot be trained; choose a .safetensors checkpoint.")
    if head.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
        raise ValueError(f"{path.name} is a picture, not a checkpoint; choose a .safetensors or .ckpt file.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:  # the header's length, then the header
        return "safetensors"
    return "safetensors" if path.suffix.lower() == ".safetensors" and not head.startswith((b"PK", b"\x80")) else "pickle"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path.name} is cut off or damaged ({str(error)[:120]}); download it again.") from error


def read_header(path: str | Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes and metadata of a .safetensors file, without its tensors. Raises ValueError or OSError, each one sentence."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if _container(path) != "safetensors":
        raise ValueError(f"{path.name} is not a .safetensors file, so it has no header.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path.name} is cut off or damaged ({str(error)[:120]}); download it again.") from error


def _flat(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, (Mapping, tuple)):  # a hypernetwork keeps pairs of state dicts
            yield from _flat(value if isinstance(value, Mapping) else dict(enumerate(value)), f"{prefix}{key}.")


def place_of(key: str) -> tuple[str, str] | None:
    """The part (unet, vae, text) and the name in it of a checkpoint's key, an old text encoder's under its current name; None for what is no weight of these."""
    if key.startswith(UNET):
        return "unet", key[len(UNET) :]
    if key.startswith(VAE) and key[len(VAE) :].startswith(_VAE_PARTS):
        return "vae", key[len(VAE) :]
    if key.startswith(TEXT):
        name = current_name(key)[len(TEXT) :]
        return ("text", name) if name.startswith("text_model.") and not name.endswith("position_ids") else None
    return None


def _parts(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {"unet": {}, "vae": {}, "text": {}}
    for key, tensor in tensors.items():
        if place := place_of(key):
            found[place[0]][place[1]] = tensor
    return found["unet"], found["vae"], found["text"]


def current_name(key: str) -> str:
    """A checkpoint tensor's name as it is written today: old text encoders lack `text_model.`."""
    return TEXT + _OLD_TEXT.sub(r"text_model.\1.", key[len(TEXT) :]) if key.startswith(TEXT) else key


def _check_parts(path: Path, unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor]) -> None:
    absent = [name for name, part in (("UNet", unet), ("VAE", vae), ("text encoder", text)) if not part]
    if absent:
        raise ValueError(f"{path.name} has no {' and no '.join(absent)}; choose a full checkpoint, or merge the missing part into it.")
    for key, tensor in (*unet.items(), *vae.items(), *text.items()):
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            kind = str(tensor.dtype).partition(".")[2]
            raise ValueError(f"{path.name} holds {kind} weights ({key}); choose the fp16, bf16 or fp32 version of this checkpoint.")
    cross = next((tensor for key, tensor in unet.items() if key.endswith("attn2.to_k.weight")), None)
    token = text.get("text_model.embeddings.token_embedding.weight")
    if cross is not None and token is not None and cross.shape[1] != token.shape[1]:
        raise ValueError(f"{path.name} is inconsistent: its UNet reads text of width {cross.shape[1]}, its text encoder gives {token.shape[1]}.")


def _prediction(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """"v" where the metadata, a marker key or the yaml beside the file says so: nothing in the weights shows it."""
    if "v_pred" in tensors or metadata.get("modelspec.prediction_type", "").lower().replace("-", "_") in ("v", "v_prediction"):
        return "v"
    yaml = path.with_suffix(".yaml")
    return "v" if yaml.is_file() and _V_YAML.search(yaml.read_text(encoding="utf-8", errors="replace")) else "eps"


def _heads(path: Path, metadata: Mapping[str, str]) -> Heads:
    def read(key: str, default: int) -> int:
        value = metadata.get(key, str(default))
        if not value.isdigit() or int(value) < 1:
            raise ValueError(f"{path.name}: its metadata's {key} is {value!r}, not a number of attention heads.")
        return int(value)

    return Heads(read("tuner_unet_heads", Heads.unet), read("tuner_text_heads", Heads.text))


# ---- writing ---------------------------------------------------------------------------------------------------------


def save_checkpoint(
    path: str | Path,
    unet: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    position_ids: bool = True,
) -> Path:
    """Writes a .safetensors checkpoint in the original layout, atomically: the 1,130 keys of SD1.5, and its position ids unless told not to.

    `dtype` None keeps each tensor's own; head counts other than SD1.5's belong into the metadata (`tuner_unet_heads`, `tuner_text_heads`).
    Raises OSError where the disk has too little room.
    """
    tensors = {prefix + key: tensor for prefix, part in ((UNET, unet), (VAE, vae), (TEXT, text)) for key, tensor in part.items()}
    if position_ids:
        length = text["text_model.embeddings.position_embedding.weight"].shape[0]
        tensors[f"{TEXT}text_model.embeddings.position_ids"] = torch.arange(length)[None]
    return write_tensors(path, tensors, metadata, dtype)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, dtype: torch.dtype | None = None) -> Path:
    """Writes a .safetensors file beside its place and moves it there when it is whole; floating-point tensors become `dtype`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    check_room(path, sum(t.numel() * (dtype.itemsize if dtype and t.is_floating_point() else t.element_size()) for t in tensors.values()))
    stored = {key: t.detach().to("cpu", dtype if t.is_floating_point() else None).contiguous() for key, t in tensors.items()}
    with atomic(path) as temporary:
        try:
            save_file(stored, str(temporary), metadata={"format": "pt", **(metadata or {})})
        except SafetensorError as error:  # what the system said, in safetensors' words
            raise OSError(f"{path} cannot be written ({error}); make room or choose another folder.") from error
    return path


def check_room(path: Path, needed: int) -> None:
    """Makes the folder of a file of so many bytes; raises OSError where its disk has too little room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    needed += 1 << 20  # a mebibyte for the header
    if free < needed:
        raise OSError(f"{path.name} needs {needed / 1e6:,.1f} MB, but {path.parent} has {free / 1e6:,.1f} MB free; make room or choose another folder.")
