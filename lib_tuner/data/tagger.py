"""What a tagger is, and the WD14 models: ONNX files that turn a picture into a probability per tag. The only file that imports onnxruntime.

Axes: N pictures, S the side that the model asks for (448 px). The input is float32 (N, S, S, 3), blue first, 0 to 255; the output (N, tags), in the order of
the list of tags. As SmilingWolf's own space makes it: alpha on white, padded to a square with white, Pillow's bicubic. Peers that pad with repeated edges or
stretch give the model what it never saw.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from ..words import number_of
from .tag_list import TagList, read_tags
from .tag_rules import Thresholds

if TYPE_CHECKING:
    from torch import Tensor

# what onnxruntime may have, the fastest first; other providers (TensorRT, OpenVINO) compile for minutes or compute in half precision
PROVIDERS = {"CUDAExecutionProvider": "CUDA", "DmlExecutionProvider": "DirectML", "ROCMExecutionProvider": "ROCm", "MIGraphXExecutionProvider": "ROCm (MIGraphX)",
             "CPUExecutionProvider": "CPU"}  # fmt: skip
BATCH = 8  # pictures at once, where the model takes more than one
_WHITE = (255, 255, 255)


class Tagger(Protocol):
    """Gives pictures a score per tag. Another one needs these and nothing else."""

    name: str  # with its version: scores are kept under it
    tags: TagList
    thresholds: Thresholds
    batch: int  # pictures that `scores` takes at most
    device: str  # where it computes, for people

    def prepare(self, picture: Image.Image) -> Tensor:
        """An RGB picture as the model takes it, without the batch axis; called from several threads."""
        ...

    def scores(self, prepared: Tensor) -> Tensor:
        """(N, ...) of what `prepare` made -> probabilities (N, tags) in [0, 1]."""
        ...


def squared(picture: Image.Image, side: int) -> Image.Image:
    """The picture on a white square, centred (an odd pixel goes right or below), in S x S px."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), _WHITE)
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    return square if longest == side else square.resize((side, side), Image.Resampling.BICUBIC)


def wd14_input(picture: Image.Image, side: int) -> Tensor:
    """(S, S, 3) in float32, blue first, 0 to 255, of an RGB picture."""
    import torch

    flat = torch.frombuffer(bytearray(squared(picture, side).tobytes()), dtype=torch.uint8)
    return flat.view(side, side, 3).flip(-1).float()


class WD14:
    """A WD14 model in an onnxruntime session: `run((N, S, S, 3)) -> (N, tags)`. `fixed`: the only number of pictures that the model takes, or 0."""

    def __init__(self, name: str, tags: TagList, run: Callable[[Tensor], Tensor], side: int, fixed: int = 0):
        self.name, self.tags, self.side = name, tags, side
        self.thresholds, self.device = Thresholds(), "CPU"
        self.batch, self._fixed, self._run = fixed or BATCH, fixed, run

    def prepare(self, picture: Image.Image) -> Tensor:
        """(S, S, 3) of a picture."""
        return wd14_input(picture, self.side)

    def scores(self, prepared: Tensor) -> Tensor:
        """(N, S, S, 3) -> (N, tags). Raises ValueError where the model fails."""
        import torch

        n = len(prepared)
        if self._fixed > n:  # a model of a fixed number gets blank pictures besides
            prepared = torch.cat([prepared, prepared.new_full((self._fixed - n, *prepared.shape[1:]), 255)])
        return self._run(prepared)[:n]


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine; `sha256` of the model is "" where nobody recorded one."""

    name: str
    model: Path
    tags: Path
    thresholds: Thresholds = Thresholds()
    sha256: str = ""

    @property
    def tagger(self) -> str:
        """The name of the tagger that this model makes, which its scores are kept under: another file is another tagger."""
        return f"{self.name} {(self.sha256 or digest_of(self.model))[:12]}"


def open_wd14(files: ModelFiles, cpu: bool = False) -> WD14:
    """Loads a model, on a GPU where onnxruntime has one, unless `cpu`.

    Raises ValueError for files that are no WD14 model and where there is no onnxruntime, OSError for files that cannot be read.
    """
    listed = read_tags(files.tags.read_bytes(), files.tags.name)
    runtime = _onnxruntime()
    session = _session(runtime, files.model, _wanted(runtime, cpu))
    side, fixed = _input(files.model, session)
    tagger = WD14(files.tagger, listed, _runner(session, _errors(runtime)), side, fixed)
    tagger.thresholds, tagger.device = files.thresholds, PROVIDERS.get(session.get_providers()[0], session.get_providers()[0])
    return tagger


def check_runtime() -> None:
    """Raises ValueError, with the command that mends it, where there is no onnxruntime: a model need not be fetched then."""
    _onnxruntime()


def digest_of(path: Path) -> str:
    """sha256 of a large file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


# ---- onnxruntime -----------------------------------------------------------------------------------------------------


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        if error.name != "onnxruntime":
            raise ValueError(f"onnxruntime cannot be loaded ({error}); install another version of it.") from error
        command = f'"{sys.executable}" -m pip install --no-deps onnxruntime'
        raise ValueError(f"WD14 models need the package onnxruntime, which is not installed: run {command} "
                         "(it adds this one package and changes no other; onnxruntime-gpu for an NVIDIA GPU, onnxruntime-directml for others on Windows).") from None
    return onnxruntime


def _wanted(runtime: Any, cpu: bool) -> list[str]:
    """The providers of this build that are to be tried, in order."""
    there = runtime.get_available_providers()
    return [name for name in PROVIDERS if name == "CPUExecutionProvider" or (name in there and not cpu)]


def _session(runtime: Any, model: Path, providers: Sequence[str]) -> Any:
    """A session on the first provider that takes the model: a GPU whose driver is missing is no reason to stop."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone; the provider in use is told
    if "DmlExecutionProvider" in providers:  # as DirectML's documentation asks
        options.enable_mem_pattern, options.execution_mode = False, runtime.ExecutionMode.ORT_SEQUENTIAL
    if not model.is_file():
        raise ValueError(f"{model} does not exist; name an .onnx file.")
    for at in range(len(providers)):
        try:
            return runtime.InferenceSession(str(model), options, providers=list(providers[at:]))
        except _errors(runtime) as error:
            failed = error
    raise ValueError(f"{model.name} is no model that onnxruntime {runtime.__version__} can load ({_first_line(failed)}); download it anew.") from failed


def _input(model: Path, session: Any) -> tuple[int, int]:
    """The side S and the fixed number N (0: any) of the model's input. Raises ValueError where it takes no (N, S, S, 3)."""
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int) or inputs[0].type != "tensor(float)":
        said = ", ".join(f"{i.name} {i.shape}" for i in inputs)
        raise ValueError(f"{model.name} is no WD14 model: it takes {said} where those take one float input (N, side, side, 3).")
    return shape[1], shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0


def _runner(session: Any, errors: tuple[type[Exception], ...]) -> Callable[[Tensor], Tensor]:
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def run(prepared: Tensor) -> Tensor:
        import torch

        try:
            return torch.from_numpy(session.run([output], {name: prepared.numpy()})[0])
        except errors as error:
            raise ValueError(f"The model failed on {number_of(len(prepared), 'picture')} ({_first_line(error)}); close other programs, or compute on the CPU.") from error

    return run


def _errors(runtime: Any) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: each of its errors derives from Exception itself."""
    state = runtime.capi.onnxruntime_pybind11_state
    return (RuntimeError, *(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
