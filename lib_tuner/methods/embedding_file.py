"""Embeddings as files: reads every form that AUTOMATIC1111's WebUI v1.9.4 takes for Stable Diffusion 1.x, and writes three of them.

Forms (modules/textual_inversion/textual_inversion.py): .pt / .bin with `string_to_param`; .pt / .bin / .safetensors with a single tensor under
any name; a picture with the same content (`embedding_png`). Axes: n vectors, C the text encoder's width.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..disk import atomic
from ..sd.files import read_tensors, write_tensors
from ..sd.kinds import describe, kind_of
from ..sd.pickles import read_pickle
from . import embedding_png

PICTURES = (".png", ".webp", ".jxl", ".avif")
LONGEST = 200  # bytes of a name: file systems take 255, and step, ending and a temporary file's own come behind
_MODELS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL"}
# What Pillow and the decoding raise on broken pictures.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, RecursionError, struct.error, zlib.error,
           Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors that stand for a word."""

    name: str
    vectors: Tensor  # (n, C) fp32
    step: int | None = None
    model_hash: str = ""  # of the checkpoint it was trained on; files keep the first ten digits, which the WebUI shows
    model_name: str = ""


def valid_name(name: str) -> str:
    """The name, if the WebUI takes it for an embedding and finds it in a prompt: letters, digits, dot, underscore, dash and space, and a file with its endings can have it. Raises ValueError."""
    bad = "".join(dict.fromkeys(c for c in name if not (c.isalnum() or c in "._- ")))
    if bad:
        raise ValueError(f"The name {name!r} contains {bad!r}; use letters, digits, spaces and . _ - only.")
    if name != name.strip(" .") or not name:
        raise ValueError(f"The name {name!r} is empty, or starts or ends with a space or dot; no file can be found under it.")
    if len(name.encode()) > LONGEST:
        raise ValueError(f"The name that begins with {name[:30]!r} is too long for a file; use at most {LONGEST} letters, or a third of that in Chinese.")
    return name


def checksum(vectors: Tensor) -> str:
    """Four hexadecimal digits by which the WebUI tells which embedding an optimizer's state is of (its textual_inversion.py, `Embedding.checksum`)."""
    digest = 0
    for value in (vectors.detach().float().cpu() * 100).flatten().tolist():
        digest = (digest * 281 ^ int(value) * 997) & 0xFFFFFFFF
    return f"{digest & 0xFFFF:04x}"


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_embedding(path: str | Path, width: int | None = None) -> Embedding:
    """Reads an embedding; `width` is C of the model it is for (SD1.5: 768), None takes any.

    Its name is the file's, except that a picture's own name wins, as in the WebUI. Raises ValueError or OSError, each one sentence.
    """
    path = Path(path)
    tensors, facts = _read_picture(path) if path.suffix.lower() in PICTURES else _read_weights(path)
    vectors = _vectors(path, tensors)
    if width is not None and vectors.shape[1] != width:
        made_for = f" (made for {_MODELS[vectors.shape[1]]})" if vectors.shape[1] in _MODELS else ""
        raise ValueError(f"{path.name} holds vectors of width {vectors.shape[1]}{made_for}, but this model's text encoder has width {width}.")
    named = facts.get("name") if path.suffix.lower() in PICTURES else None
    return Embedding(
        _text(named) or path.stem,
        vectors,
        _whole(facts.get("step")),
        _text(facts.get("sd_checkpoint")),
        _text(facts.get("sd_checkpoint_name")),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal():  # metadata of a safetensors file is text
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read_weights(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    tensors, metadata = read_tensors(path)
    if path.suffix.lower() != ".safetensors" and any(key.startswith("string_to_param.") for key in tensors):
        return tensors, read_pickle(path)
    return tensors, metadata


def _read_picture(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(embedding_png.CHUNK)
            data = embedding_png.from_text(text) if text else embedding_png.extract(picture)
    except _BROKEN as error:
        raise ValueError(f"{path.name} is a damaged picture or holds a damaged embedding ({str(error)[:120]}); get the original file.") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is a picture without an embedding, or was scaled or re-saved since, which destroys it; get the original file.")
    terms = data.get("string_to_param")
    nested = {f"string_to_param.{key}": value for key, value in terms.items()} if isinstance(terms, dict) else {}
    return {key: value for key, value in {**data, **nested}.items() if isinstance(value, Tensor)}, data


def _vectors(path: Path, tensors: Mapping[str, Tensor]) -> Tensor:
    """The one tensor that counts, as (n, C) fp32 of its own memory."""
    terms = {key: tensor for key, tensor in tensors.items() if key.startswith("string_to_param.")} or tensors
    if {"clip_g", "clip_l"} <= terms.keys():
        raise ValueError(f"{path.name} is an embedding for Stable Diffusion XL (it has clip_g and clip_l); Stable Diffusion 1.5 cannot use it.")
    kind = kind_of({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    found = next(iter(terms.values()), None)
    if found is None or found.ndim not in (1, 2) or kind not in ("embedding", "unknown") or (terms is tensors and len(terms) > 1):
        raise ValueError(f"{path.name} is {describe(kind)}, not an embedding that can be read; choose an embedding's .pt, .safetensors or .png file.")
    if len(terms) > 1:
        raise ValueError(f"{path.name} holds {len(terms)} words at once, of which the WebUI reads none; split it into one file a word.")
    return _checked(path, found if found.ndim == 2 else found[None])


def _checked(path: Path, vectors: Tensor) -> Tensor:
    if not vectors.is_floating_point():
        raise ValueError(f"{path.name} holds {str(vectors.dtype).partition('.')[2]} numbers, which no embedding has; choose another file.")
    if 0 in vectors.shape:
        raise ValueError(f"{path.name}: the embedding is empty, {tuple(vectors.shape)} numbers.")
    vectors = vectors.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not vectors.isfinite().all():
        raise ValueError(f"{path.name}: the embedding holds NaN or infinite numbers; its training failed, use an earlier save.")
    return vectors


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_embedding(path: str | Path, embedding: Embedding, metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a .safetensors file (with `metadata`) or a .pt that the WebUI v1.9.4 takes, atomically. Raises ValueError, OSError."""
    path = Path(path)
    data = _as_a1111(path, embedding)
    if path.suffix.lower() == ".safetensors":
        facts = {key: str(data[key]) for key in ("name", "step", "sd_checkpoint", "sd_checkpoint_name") if data[key] is not None}
        return write_tensors(path, {"emb_params": data["string_to_param"]["*"]}, {**facts, **(metadata or {})})
    if path.suffix.lower() != ".pt":
        given = path.suffix or "a file without ending"
        raise ValueError(f"{path.name}: an embedding is written as .safetensors or .pt, or into a .png picture, not as {given}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        # Not torch's zip format: v1.9.4 refuses the entries that torch >= 2.1 adds to it (its modules/safe.py, issue 10179).
        torch.save(data, temporary, _use_new_zipfile_serialization=False)
    return path


def write_embedding_png(path: str | Path, embedding: Embedding, picture: Image.Image) -> Path:
    """Writes a PNG of the picture that carries the embedding in a text chunk and in pixels, atomically. Raises ValueError, OSError."""
    path = Path(path)
    if path.suffix.lower() != ".png" or path.stem.lower().endswith(".preview"):
        raise ValueError(f"{path.name}: the WebUI reads a picture's embedding from a .png file whose name does not end in .preview.png.")
    data = _as_a1111(path, embedding)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(embedding_png.CHUNK, embedding_png.to_text(data))
    whole = embedding_png.insert(picture, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        whole.save(temporary, format="PNG", pnginfo=chunks)
    return path


def _as_a1111(path: Path, embedding: Embedding) -> dict[str, Any]:
    """What the WebUI saves, key for key; 265 is the token `*`."""
    if embedding.vectors.ndim != 2:
        raise ValueError(f"{path.name}: an embedding's vectors are (n, C), not {tuple(embedding.vectors.shape)}.")
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": _checked(path, embedding.vectors)},
        "name": embedding.name,
        "step": embedding.step,
        "sd_checkpoint": embedding.model_hash[:10] or None,
        "sd_checkpoint_name": embedding.model_name or None,
    }
