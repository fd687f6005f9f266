"""ONNX files in onnxruntime: the fastest device that takes a model, and one sentence for whatever it raises. The only file that imports onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..words import first_line, number_of

if TYPE_CHECKING:
    from torch import Tensor

# what onnxruntime may have, the fastest first; other providers (TensorRT, OpenVINO) compile for minutes or compute in half precision
PROVIDERS = {"CUDAExecutionProvider": "CUDA", "DmlExecutionProvider": "DirectML", "ROCMExecutionProvider": "ROCm", "MIGraphXExecutionProvider": "ROCm (MIGraphX)",
             "CPUExecutionProvider": "CPU"}  # fmt: skip


class Model:
    """A loaded model of one input; `shape` is the input's (numbers, or names where they are free), None where it is not the only one or no float32."""

    def __init__(self, path: Path, cpu: bool = False):
        """Raises ValueError where there is no onnxruntime or no such model."""
        runtime = check_runtime()
        self._session, self._errors = _session(runtime, path, _wanted(runtime, cpu)), _errors(runtime)
        inputs, used = self._session.get_inputs(), self._session.get_providers()[0]
        self.device = PROVIDERS.get(used, used)
        self.takes = ", ".join(f"{i.name} {i.shape}" for i in inputs)
        self.shape = list(inputs[0].shape) if len(inputs) == 1 and inputs[0].type == "tensor(float)" else None
        self._input, self._output = inputs[0].name, self._session.get_outputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        """The first output for pictures (N, ...). Raises ValueError where the model fails."""
        import torch

        try:
            return torch.from_numpy(self._session.run([self._output], {self._input: x.numpy()})[0])
        except self._errors as error:
            raise ValueError(f"The model failed on {number_of(len(x), 'picture')} ({first_line(error)}); close other programs, or compute on the CPU.") from error


def check_runtime() -> ModuleType:
    """Raises ValueError, with the command that mends it, where there is no onnxruntime: a model need not be fetched then."""
    try:
        import onnxruntime
    except ImportError as error:
        if error.name != "onnxruntime":
            raise ValueError(f"onnxruntime cannot be loaded ({error}); install another version of it.") from error
        command = f'"{sys.executable}" -m pip install --no-deps onnxruntime'
        raise ValueError(f"ONNX models need the package onnxruntime, which is not installed: run {command} "
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
    raise ValueError(f"{model.name} is no model that onnxruntime {runtime.__version__} can load ({first_line(failed)}); download it anew.") from failed


def _errors(runtime: Any) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: each of its errors derives from Exception itself."""
    state = runtime.capi.onnxruntime_pybind11_state
    return (RuntimeError, *(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)))
