"""Questions that are put to the double and to the real WebUI alike; the answers of the real one are recorded (record.py) and are what the double must give.

A probe is a function of `w`: the host's modules by name, `w.model` (the model of now), `w.folder` (scratch), `w.log` (what the probe extension saw),
`w.reload_ui()`. Its answer is JSON and depends neither on weights nor on the machine.
"""

from __future__ import annotations

import copy
import importlib
import json
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .asked import drawing, host, model, networks, text

FIRST = "first"  # the checkpoint that is loaded before and after every probe
PARTS = (model, text, networks, drawing, host)
PROBES: dict[str, Callable[[Any], Any]] = {
    name: probe for part in PARTS for name, probe in vars(part).items() if getattr(probe, "__module__", "") == part.__name__ and getattr(probe, "is_probe", False)
}


IMPORTED = (
    "call_queue devices extra_networks infotext_utils paths processing progress prompt_parser safe script_callbacks scripts sd_hijack sd_hijack_checkpoint sd_models "
    "sd_samplers sd_schedulers sd_unet sd_vae shared shared_state"
).split()


def in_order() -> list[str]:
    """All names; the one that builds the page anew comes last."""
    return sorted(PROBES)


class Questioned(SimpleNamespace):
    """`w`."""

    @property
    def model(self) -> Any:
        return self.shared.sd_model


def questioned(log: dict, folder: Path, reload_ui: Callable[[], None]) -> Questioned:
    """The host of this process, started and with a model."""
    parts = {name: importlib.import_module(f"modules.{name}") for name in IMPORTED}
    parts["textual_inversion"] = importlib.import_module("modules.textual_inversion.textual_inversion")
    parts["hypernetwork"] = importlib.import_module("modules.hypernetworks.hypernetwork")
    return Questioned(**parts, networks=importlib.import_module("networks"), log=log, folder=folder, reload_ui=reload_ui)


def ask(w: Any, name: str) -> Any:
    """The answer of one probe, in a job of its own unless it looks after the lock itself; the host is then as before."""
    probe, before = PROBES[name], copy.deepcopy(w.shared.opts.data)
    torch.manual_seed(0)
    random.seed(0)
    try:
        answer = probe(w) if probe.alone else _in_job(w, probe)
    except Exception as error:  # an answer too: the hosts should fail alike
        answer = {"raised": type(error).__name__, "text": str(error)[:200], "where": traceback.format_exc()[-800:]}
    finally:
        w.shared.opts.data = before
        reset(w)
    return json.loads(json.dumps(answer))


def _in_job(w: Any, probe: Callable[[Any], Any]) -> Any:
    task = w.progress.create_task_id("probe")
    with w.call_queue.queue_lock:
        w.shared.state.begin(job=task)
        w.progress.start_task(task)
        try:
            return probe(w)
        finally:
            w.progress.finish_task(task)
            w.shared.state.end()


def reset(w: Any) -> None:
    """The host as after its start."""
    _empty(Path(w.shared.cmd_opts.embeddings_dir), Path(w.shared.cmd_opts.lora_dir), Path(w.shared.cmd_opts.hypernetwork_dir), w.folder)
    w.shared.state.interrupted = w.shared.state.skipped = False
    w.shared.loaded_hypernetworks.clear()
    w.shared.reload_hypernetworks()
    w.sd_unet.apply_unet("None")
    w.networks.loaded_networks.clear()
    w.networks.networks_in_memory.clear()
    info = w.sd_models.get_closet_checkpoint_match(FIRST + ".safetensors")
    w.shared.opts.data["sd_model_checkpoint"] = info.title
    w.sd_models.reload_model_weights(info=info)
    model = w.model
    w.sd_models.apply_token_merging(model, 0)
    w.sd_hijack.model_hijack.apply_circular(False)
    _fresh_parameters(model)
    w.sd_models.reload_model_weights(info=info, forced_reload=True)
    w.networks.list_available_networks()
    w.sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    for cls in (w.processing.StableDiffusionProcessing, w.processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            if name in vars(cls):
                setattr(cls, name, [None, None])


def _empty(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)


def _fresh_parameters(model: Any) -> None:
    """Leaves with the flags of a fresh model and no gradients, whatever a probe made of them; the host's own checkpointing on."""
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None and not p.is_leaf:
                module._parameters[name] = torch.nn.Parameter(p.detach())
        for flag in ("checkpoint", "use_checkpoint"):
            if isinstance(vars(module).get(flag), bool):
                setattr(module, flag, True)
    model.requires_grad_(False)
    model.model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
