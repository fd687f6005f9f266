"""Weights files one tensor at a time: read where it is needed, written as it is made, so that a tool needs the memory of a few tensors.

Format of .safetensors: the header's length (8 bytes, little-endian), the header (JSON: name -> dtype, shape, place), the numbers
(https://github.com/huggingface/safetensors). A .ckpt is mapped from the disk (`sd.pickles`), so its pages are read when they are used, too.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import atomic
from ..sd.files import TEXT, UNET, VAE, check_room, current_name, is_safetensors, read_header, read_tensors
from ..sd.kinds import kind_of

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
Told = Callable[[int, int], None]  # told(done, of all)


class Weights:
    """The tensors of a .safetensors, .ckpt or .pt file; `get` reads one of them. Raises ValueError or OSError, each one sentence."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._mapped: dict[str, Tensor] = {}
        self._places: dict[str, tuple[int, int]] = {}
        if is_safetensors(self.path):
            self._read_header()
        else:
            self._mapped, _ = read_tensors(self.path)
            self.shapes = {key: tuple(t.shape) for key, t in self._mapped.items()}
            self.dtypes = {key: t.dtype for key, t in self._mapped.items()}
        self._current = {current_name(key): key for key in self.shapes}

    def _read_header(self) -> None:
        self.shapes, self.metadata = read_header(self.path)  # which also refuses a damaged file
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        self.dtypes = {key: self._dtype(key, header[key]["dtype"]) for key in self.shapes}
        self._places = {key: (8 + length + header[key]["data_offsets"][0], 8 + length + header[key]["data_offsets"][1]) for key in self.shapes}

    def _dtype(self, key: str, code: str) -> torch.dtype:
        if code not in DTYPES:
            raise ValueError(f"{self.path.name} holds numbers of an unknown kind ({code} in {key}); use its fp16, bf16 or fp32 version.")
        return DTYPES[code]

    @property
    def kind(self) -> str:
        """What it is, by `sd.kinds`."""
        return kind_of(self.shapes)

    def named(self, key: str) -> str | None:
        """The file's own spelling of a tensor's current name; None where it has none."""
        return key if key in self.shapes else self._current.get(current_name(key))

    def get(self, key: str) -> Tensor:
        """One tensor, in memory of its own, as the file has it."""
        if key in self._mapped:
            return self._mapped[key].clone(memory_format=torch.contiguous_format)
        start, end = self._places[key]
        data = bytearray(end - start)
        with self.path.open("rb") as file:
            file.seek(start)
            if file.readinto(data) != len(data):
                raise ValueError(f"{self.path.name} was cut off while it was read; download it again.")
        return torch.frombuffer(data, dtype=self.dtypes[key]).reshape(self.shapes[key]) if data else torch.empty(self.shapes[key], dtype=self.dtypes[key])


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written: known in size, made when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * torch.empty(0, dtype=self.dtype).element_size()


def kept(weights: Weights, key: str, dtype: torch.dtype | None = None) -> Planned:
    """A tensor as it is, in another precision where one is given and it is no whole number."""
    own = weights.dtypes[key]
    return Planned(weights.shapes[key], stored_as(own, dtype), lambda: weights.get(key))


def stored_as(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """The precision in which a tensor of precision `own` is written."""
    return dtype if dtype is not None and own.is_floating_point else own


def write_weights(path: str | Path, plan: Mapping[str, Planned], metadata: Mapping[str, str], told: Told | None = None) -> Path:
    """Writes a .safetensors file of planned tensors, one after another and atomically.

    Raises ValueError for what is no number in the file's precision, OSError where the disk has too little room.
    """
    path = Path(path)
    if not plan:
        raise ValueError(f"{path.name}: there is nothing to write.")
    order = sorted(plan, key=lambda key: (-torch.empty(0, dtype=plan[key].dtype).element_size(), key))  # the larger first: every tensor lies aligned
    check_room(path, sum(planned.size for planned in plan.values()))
    with atomic(path) as temporary:
        try:
            with temporary.open("wb") as file:
                file.write(_header(plan, order, metadata))
                for number, key in enumerate(order):
                    file.write(_bytes(path, key, plan[key]))
                    if told:
                        told(number + 1, len(order))
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error}); make room or choose another folder.") from error
    return path


def keep_yaml(source: Path, target: Path) -> None:
    """The description without which the WebUI takes a checkpoint for an eps model; one that is there already is not replaced."""
    theirs, own = source.with_suffix(".yaml"), target.with_suffix(".yaml")
    if theirs.is_file() and not own.exists():
        with atomic(own) as temporary:
            shutil.copyfile(theirs, temporary)


def _header(plan: Mapping[str, Planned], order: list[str], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for key in order:
        planned = plan[key]
        header[key] = {"dtype": CODES[planned.dtype], "shape": list(planned.shape), "data_offsets": [at, at + planned.size]}
        at += planned.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(path: Path, key: str, planned: Planned) -> memoryview:
    made = planned.make()
    stored = made.to(planned.dtype).contiguous()
    if tuple(stored.shape) != planned.shape:
        raise ValueError(f"{key}: a tensor of {tuple(stored.shape)} where {planned.shape} belongs.")
    if stored.is_floating_point() and not _finite(stored):
        why = "numbers too large for it" if made.float().isfinite().all() else "NaN or infinite numbers"
        raise ValueError(f"{path.name} was not written: {why} in {key} ({str(planned.dtype)[6:]}); choose another precision, or inputs without such numbers.")
    return memoryview(stored.reshape(-1).view(torch.uint8).numpy())


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are, looked at in pieces: a mask of a whole embedding table would be as large as a few layers."""
    pieces = tensor.reshape(-1).split(1 << 20)
    return all(bool(piece.to(torch.float32 if piece.element_size() < 2 else piece.dtype).isfinite().all()) for piece in pieces)


EMA = "model_ema."
MODELS = ("sd1", "sd1-inpainting", "sd2", "sdxl", "pix2pix", "sd-other", "no-unet")  # kinds of whole checkpoints


def is_part_of_model(key: str) -> bool:
    """Whether a checkpoint's tensor is used when it draws: not an EMA copy, a buffer of the schedule or of the training loss."""
    if key.startswith(VAE):
        return not key.startswith((f"{VAE}loss.", f"{VAE}model_ema."))
    return key.startswith((UNET, "cond_stage_model.", "conditioner.")) or key == "v_pred"


def drawing(weights: Weights) -> list[str]:
    """The tensors of a checkpoint without its averaged ones, which would be those of another model once the weights are changed."""
    return [key for key in weights.shapes if not key.startswith(EMA)]


def path_in(key: str) -> tuple[str, str] | None:
    """(part, module path) of a checkpoint's weight in the parts that adapters change; None for another tensor."""
    key = current_name(key)
    for prefix, part in ((UNET, "unet"), (TEXT, "text")):
        if key.startswith(prefix) and key.endswith(".weight"):
            return part, key[len(prefix) : -len(".weight")]
    return None
