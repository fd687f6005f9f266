"""The hosts that the contract is tried on: the standalone one, a double of the WebUI's modules, and, started inside a WebUI, that very one.

A world has a host, says in full what state it is in, and draws a picture as its user would.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lib_tuner.host import GenerateRequest, Host
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import settings
from lib_tuner.settings import TrainConfig

FLAGS = ("checkpoint", "use_checkpoint", "padding_mode", "network_current_names")
SIZE = 64  # px
REAL = bool(os.environ.get("TUNER_INSIDE_WEBUI"))
DRAWN = 4 if REAL else 2  # steps of a picture
WORLDS = ["webui"] if REAL else ["standalone", "double", "double-half"]


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def state_of_model(root: nn.Module) -> dict[str, Any]:
    """All that a run could leave in a model: values, flags, gradients, modes, hooks, instance attributes that shadow methods."""
    found: dict[str, Any] = {}
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        found[name] = (digest(tensor), tensor.dtype, tensor.device, tensor.stride(), tensor.requires_grad, tensor.is_leaf, tensor.grad is None)
    for name, module in root.named_modules():
        own = {flag: vars(module)[flag] for flag in FLAGS if flag in vars(module)}
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        shadows = sorted(key for key, value in vars(module).items() if key in ("forward", "_forward") or callable(value) and key.startswith("forward"))
        found[f"{name} (module)"] = (module.training, hooks, own, shadows)
    return found


def random_now() -> tuple[str, str]:
    return digest(torch.get_rng_state()), hashlib.sha256(repr(random.getstate()).encode()).hexdigest()[:16]


class World:
    """A host to try. `inside`: it is a WebUI, real or doubled."""

    inside = False
    half = False

    def __init__(self, folder: Path):
        self.folder = folder

    def host(self, values: dict[str, Any]) -> Host:
        raise NotImplementedError

    def snapshot(self) -> dict[str, Any]:
        raise NotImplementedError

    def picture(self, prompt: str = "a red star on a white background", seed: int = 3, steps: int = DRAWN) -> np.ndarray:
        raise NotImplementedError

    @staticmethod
    def config(values: dict[str, Any]) -> TrainConfig:
        return settings(values)


class Alone(World):
    """The standalone host on the small random model; one host for all, so that what a run leaves would be seen."""

    def __init__(self, folder: Path, checkpoint: Path):
        super().__init__(folder)
        self.values = {"checkpoint": str(checkpoint)}
        self._host = Standalone(settings({**self.values, "output": str(folder / "out")}))

    def host(self, values: dict[str, Any]) -> Host:
        self._host.cfg = settings({**values, **self.values})
        return self._host

    def snapshot(self) -> dict[str, Any]:
        model = self._host.model
        parts = {"unet": model.unet, "text": model.text.transformer, "vae": model.vae.vae}
        return {f"{part}.{key}": value for part, root in parts.items() for key, value in state_of_model(root).items()} | {"random": random_now()}

    def picture(self, prompt: str = "a red star on a white background", seed: int = 3, steps: int = DRAWN) -> np.ndarray:
        request = GenerateRequest(prompt, width=SIZE, height=SIZE, steps=steps, cfg=3.0, seed=seed)
        return np.asarray(self._host.generate([request])[0]).astype(int)


class Inside(World):
    """A WebUI whose modules can be imported here."""

    inside = True

    def __init__(self, folder: Path, half: bool = False, double: Any = None):
        super().__init__(folder)
        self.half, self.double = half, double
        self.a1111 = importlib.import_module("lib_tuner.hosts.a1111")
        self.w = self.a1111.webui()

    @property
    def model(self) -> Any:
        return self.w.shared.sd_model

    def host(self, values: dict[str, Any]) -> Host:
        return self.a1111.WebUI(settings(values))

    def snapshot(self) -> dict[str, Any]:
        w, model = self.w, self.model
        hijack, db = w.sd_hijack.model_hijack, w.sd_hijack.model_hijack.embedding_db
        prompts = Path(w.paths.data_path) / "params.txt"
        return state_of_model(model) | {
            "random": random_now(), **{f"option {key}": value for key, value in w.shared.opts.data.items()}, "model": id(model), "circular": hijack.circular_enabled,
            "merged": getattr(model, "applied_token_merged_ratio", 0), "hypernetworks": list(w.shared.loaded_hypernetworks),
            "networks": [net.name for net in w.networks.loaded_networks] if w.networks else [],
            "embeddings": sorted(name for name in db.word_embeddings if not name.startswith("thing")),
            "alphas": digest(model.alphas_cumprod), "prompt file": prompts.read_bytes() if prompts.is_file() else None,
            "state": {name: getattr(w.shared.state, name) for name in ("interrupted", "skipped", "job", "job_count")},
            "task": w.progress.current_task, "pending": list(w.progress.pending_tasks), "attention": _attention(model),
            "forwards": [cls.forward for cls in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)], "load": torch.load,
        }  # fmt: skip

    def picture(self, prompt: str = "a red star on a white background", seed: int = 3, steps: int = DRAWN) -> np.ndarray:
        """As the host's API draws, on a thread's own: under the lock, with extra networks and embeddings read anew."""
        w = self.w
        with w.call_queue.queue_lock:
            w.shared.state.begin(job="scripts_txt2img")
            try:
                p = w.processing.StableDiffusionProcessingTxt2Img(
                    sd_model=w.shared.sd_model, prompt=prompt, seed=seed, steps=steps, cfg_scale=3.0, width=SIZE, height=SIZE, sampler_name="DDIM",
                    do_not_save_samples=True, do_not_save_grid=True,
                )  # fmt: skip
                return np.asarray(w.processing.process_images(p).images[0].convert("RGB")).astype(int)
            finally:
                w.shared.state.end()


def _attention(model: Any) -> Any:
    blocks = [m for m in model.model.diffusion_model.modules() if type(m).__name__ == "CrossAttention"]
    return type(blocks[0]).forward if blocks else None


@contextlib.contextmanager
def doubled(folder: Path, **how: Any) -> Iterator[Inside]:
    """The double of the WebUI's modules, started for as long as this lasts."""
    from webui_double.start import started

    with started(folder, **how) as double:  # at its end, what was imported on top of it is forgotten with it
        yield Inside(folder, bool(how.get("half")), double)


@contextlib.contextmanager
def world_of(kind: str, folder: Path, checkpoint: Path | None = None) -> Iterator[World]:
    """The world of one name of WORLDS."""
    if kind == "webui":
        yield Inside(folder)
    elif kind == "standalone":
        yield Alone(folder, checkpoint)
    else:
        with doubled(folder, half=kind == "double-half") as made:
            yield made
