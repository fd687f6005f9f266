"""A stand-in for onnxruntime, which the tests do not install."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np


class Broken(Exception):
    pass


def blue_tag(x: np.ndarray) -> np.ndarray:
    """A tagger of pictures (N, S, S, 3), whose first tag is the mean of blue."""
    blue = x[..., 0].mean((1, 2)) / 255
    return np.stack([blue, np.zeros(len(x)), np.ones(len(x))], 1).astype(np.float32)


def runtime(shape=(None, 8, 8, 3), available=("CPUExecutionProvider",), failing=(), kind="tensor(float)", model=blue_tag) -> SimpleNamespace:
    """What data/onnx.py uses of onnxruntime: `model` computes, and fails where it is given 13; what was asked is in `asked` and `ran`."""
    fake = SimpleNamespace(asked=[], ran=[], __version__="0", __spec__=ModuleSpec("onnxruntime", None))  # diffusers asks whether it is there

    def session(path, options, providers):
        fake.asked.append((providers, options))
        if providers[0] in failing:
            raise Broken("no driver\nat all")

        def run(outputs, feeds):
            x = feeds["in"]
            fake.ran.append(x.shape)
            if x.max() == 13:
                raise Broken("out of memory\n")
            return [model(x)]

        return SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="in", shape=list(shape), type=kind)], get_outputs=lambda: [SimpleNamespace(name="out")],
                               get_providers=lambda: [*providers, "CPUExecutionProvider"], run=run)  # fmt: skip

    fake.InferenceSession, fake.SessionOptions, fake.get_available_providers = session, SimpleNamespace, lambda: list(available)
    fake.ExecutionMode = SimpleNamespace(ORT_SEQUENTIAL="sequential")
    fake.capi = SimpleNamespace(onnxruntime_pybind11_state=SimpleNamespace(Broken=Broken, other=3))
    return fake
