"""AUTOMATIC1111's WebUI as a host, and how the extension enters it. The only file that imports the WebUI's `modules.*`.

The run goes in the WebUI's process, on the model that is loaded, under its queue lock: it and the pictures take turns. Everything that is changed
is changed by a context manager that puts it back (kept.py, networks.py, previews.py, switched.py).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

try:
    from modules import call_queue, deepbooru, devices, lowvram, paths, processing, progress, script_callbacks, sd_hijack, sd_models, sd_unet, shared
    from modules.hypernetworks import hypernetwork
    from modules.textual_inversion import textual_inversion
except ImportError as error:  # Forge and other forks have other modules
    raise ImportError(f"The Tuner trains inside AUTOMATIC1111's WebUI 1.9 or later, and this host is another one ({error}): use the Tuner's own page, python3 -m lib_tuner.") from error

from ..config import flat_values
from ..disk import expanded
from ..events import Event, Preparing, Started, Stepped
from ..host import Captioner, Components, Forecast, GenerateRequest, LoadReport
from ..methods import METHODS
from ..methods.control_file import FORMATS
from ..progress import sentence
from ..sd.inpaint import is_inpainting
from ..sd.place import in_ram, stays
from ..settings import TrainConfig
from ..tools.shelves import Shelf
from . import interrogators, ldm, previews
from .job import interrupted, job, refuse_decided
from .midas import Midas
from .kept import attributes, checkpointing, frozen, random_state, without_members
from .networks import take_out, without_networks
from .plan import CHECKPOINTED, SIZES, WIDTH, activation_bytes, gpu_free, reads_nine
from .published import publish, sweep
from .readback import read_back
from .switched import switched

LOG = logging.getLogger("lib_tuner")


def webui() -> SimpleNamespace:
    """The host's modules, for the files that may not import them; `networks` is the Lora extension's, None where it is off."""
    try:
        networks = importlib.import_module("networks")
    except ImportError:
        networks = None
    return SimpleNamespace(
        call_queue=call_queue, deepbooru=deepbooru, devices=devices, lowvram=lowvram, paths=paths, processing=processing, progress=progress, sd_hijack=sd_hijack, sd_models=sd_models,
        sd_unet=sd_unet, shared=shared, textual_inversion=textual_inversion, hypernetwork=hypernetwork,
        networks=networks if hasattr(networks, "loaded_networks") else None,
    )  # fmt: skip


class WebUI:
    """The host of one run."""

    folds = True

    def __init__(self, cfg: TrainConfig):
        self.cfg, self.w = cfg, webui()
        self.waits: Callable[[], Any] = lambda: None
        self._sd: Components | None = None
        self._model: Any = None
        self._checkpoint: Any = None
        self._other: Path | None = None
        self._published: list[tuple[Path, str]] = []  # with the kind of file it is

    # ---- the model, for the time of the run --------------------------------------------------------------------------

    def on(self, checkpoint: Path) -> WebUI:
        """The host with another of its checkpoints, which it loads for the time of each `exclusive()`."""
        other = type(self)(self.cfg)
        other._other, other.waits = checkpoint, self.waits
        return other

    @contextmanager
    def exclusive(self) -> Iterator[Components]:
        """The loaded model, frozen and as its file has it; all is put back, however the run ends. Raises ValueError for what cannot be trained on."""
        w = self.w
        refuse_decided(flat_values(self.cfg))
        with job(w, self.waits), ExitStack() as stack:
            if self._other is not None:
                stack.enter_context(switched(w, self._other))
            model = w.shared.sd_model
            ldm.refuse(model, w.devices)
            self._refuse_second_pass(model)
            self._model, self._checkpoint = model, model.sd_checkpoint_info
            stack.callback(self._refresh)
            self._quiet(stack, model)
            self._sd = self._components(stack, model)
            try:
                yield self._sd
            finally:
                self._sd = self._model = self._checkpoint = None

    def _refuse_second_pass(self, model: Any) -> None:
        """Raises ValueError where samples would fail: for a latent's enlargement the host makes an inpainting model's mask in the first pass's size (processing.py)."""
        own = self.cfg.webui
        if own.hires_scale and is_inpainting(model.model.diffusion_model) and own.hires_upscaler in self.w.shared.latent_upscale_modes:
            raise ValueError(f"webui.hires_upscaler: the WebUI cannot enlarge an inpainting model's samples by {own.hires_upscaler!r}; choose one that works on pixels, such as Lanczos.")

    def _quiet(self, stack: ExitStack, model: Any) -> None:
        """Takes away what pictures and settings have left in the model; `stack` brings it back."""
        w, hijack = self.w, self.w.sd_hijack.model_hijack
        stack.enter_context(random_state())
        stack.callback(_forget_conditions, w)
        merged, circular = getattr(model, "applied_token_merged_ratio", 0), hijack.circular_enabled
        stack.callback(w.sd_models.apply_token_merging, model, merged)
        w.sd_models.apply_token_merging(model, 0)
        stack.callback(hijack.apply_circular, circular)
        hijack.apply_circular(False)
        if w.sd_unet.current_unet is not None:  # TensorRT and the like: another network in the place of the model's own
            stack.callback(w.sd_unet.apply_unet, w.sd_unet.current_unet_option.label)
            w.sd_unet.apply_unet("None")
        stack.enter_context(attributes(w.sd_unet, get_unet_option=lambda option=None: None))  # each sample would put it in again
        stack.enter_context(without_networks(w.networks, lambda: model))
        stack.enter_context(attributes(w.shared, loaded_hypernetworks=[]))
        stack.enter_context(without_members(model.model.diffusion_model, ("hyper_k", "hyper_v")))
        stack.enter_context(attributes(model, alphas_cumprod=model.alphas_cumprod))
        stack.enter_context(frozen(model))
        stack.enter_context(checkpointing(model.model.diffusion_model.modules(), self.forecast().checkpointing))

    def _components(self, stack: ExitStack, model: Any) -> Components:
        unet, device = model.model.diffusion_model, self.w.devices.device
        text, vae = ldm.HostText(model, self.cfg.clip_skip), ldm.HostVAE(model)
        if self.cfg.memory.offload and torch.device(device).type != "cpu":
            for part, network in ((vae, vae.vae), (text, text.transformer)):
                trained = part is text and METHODS[self.cfg.method](self.cfg).trains_text
                stack.callback(network.to, device)
                part.place = stays if trained else in_ram(network, device)
        name = model.sd_checkpoint_info.model_name
        return Components(unet, text, vae, ldm.schedule_of(model).to(device), self.w.devices.autocast, ldm.checkpoint_hash(model), name,
                          torch.device(device), next(unet.parameters()).dtype, self.forecast().checkpointing, Path(model.sd_checkpoint_info.filename), Midas(self.w, device))  # fmt: skip

    # ---- while it goes -----------------------------------------------------------------------------------------------

    def generate(self, requests: list[GenerateRequest]) -> list[Image.Image]:
        """One picture per request through the host's txt2img, fewer where it is interrupted; what is attached to the model takes part."""
        self._check_model()
        if self._sd is None:
            with job(self.w, self.waits):
                return self._drawn(self.w.shared.sd_model, None, requests)
        with ExitStack() as stack:
            for part in (self._sd.vae, self._sd.text):
                stack.enter_context(part.place())
            return self._drawn(self._model, self._sd.text, requests)

    def _drawn(self, model: Any, text: Any, requests: list[GenerateRequest]) -> list[Image.Image]:
        """Raises ValueError where the host's own check stops a picture in which there is nothing but NaN."""
        try:
            return previews.draw(self.w, model, self.cfg, text, requests)
        except self.w.devices.NansException as error:
            raise ValueError(f"The WebUI got no picture, only NaN, from {model.sd_checkpoint_info.model_name} and what is on it: the file is damaged, or half precision is too small for it.") from error

    def interrupted(self) -> bool:
        """Whether somebody pressed the host's Interrupt."""
        self._check_model()
        return interrupted(self.w.shared)

    def _check_model(self) -> None:
        """Raises ValueError where the host has loaded another model under the run."""
        now = self.w.sd_models.model_data.sd_model
        if self._model is not None and (now is not self._model or now.sd_checkpoint_info is not self._checkpoint):  # one object may get another file's weights
            raise ValueError("The WebUI loaded another model while this run was going: choose the run's model again and press Resume.")

    def told(self, event: Event) -> None:
        """The host's own progress: its API and bar count steps."""
        state = self.w.shared.state
        if self._sd is None:
            return
        if isinstance(event, Started):
            state.job_count, state.job_no, state.textinfo = event.steps, event.start, None
        elif isinstance(event, Stepped):
            state.job_no = event.step
        elif isinstance(event, Preparing):
            state.textinfo = f"{event.text} {event.done}/{event.total}" if event.total else event.text

    # ---- files -------------------------------------------------------------------------------------------------------

    def output_dir(self, kind: str) -> Path:
        """Where the host looks for files of a method."""
        options = self.w.shared.cmd_opts
        folders = {
            "textual_inversion": options.embeddings_dir, "hypernetwork": options.hypernetwork_dir, "dreambooth": options.ckpt_dir or self.w.sd_models.model_path,
        }  # fmt: skip
        if kind in FORMATS:  # the ControlNet extension's own option, or its folder
            return Path(getattr(options, "controlnet_dir", None) or Path(self.w.paths.models_path) / "ControlNet")
        return Path(folders.get(kind) or options.lora_dir)

    def reload(self, path: Path) -> LoadReport:
        """Puts a saved file where the host finds it, and reads it as the host does; its lists follow when the run has ended."""
        home = expanded(self.cfg.output)
        method, first = METHODS[self.cfg.method], path.with_suffix(".safetensors")
        kind, note = method.file_kind(path), ""
        leading = path == first or not first.is_file() or method.file_kind(first) != kind  # an embedding's other forms are the same word
        folder = self.output_dir(kind)
        if kind in FORMATS and not folder.is_dir():  # the extension makes it, and nobody else reads it
            away = f"there is no {folder.parent.name}/{folder.name}, so it stays in the run's folder: the WebUI needs its ControlNet extension to use it"
            return replace(read_back(self.w, path, kind), note=away)
        try:
            target = publish(path, folder, home) if leading else path
        except OSError as error:  # the file itself is saved, so the run goes on
            target, note = path, f"it could not be put into {folder} ({sentence(error)}): copy it there by hand"
        report = read_back(self.w, target, kind)
        if target != path:
            sweep(home)
            self._published.append((target, kind))
            if self._sd is None and self.w.call_queue.queue_lock.acquire(blocking=False):  # else somebody draws, with what would be taken out
                try:
                    self._refresh()
                finally:
                    self.w.call_queue.queue_lock.release()
        return replace(report, note=note) if note else report

    def _refresh(self) -> None:
        """The host's lists, with what was saved."""
        made, self._published = self._published, []
        for kind in sorted({kind for _, kind in made if METHODS[kind].in_prompt}):  # the ControlNet extension has a button of its own for its list
            refresh(self.w, {path.stem for path, of in made if of == kind}, kind)
        if any(kind == "dreambooth" for _, kind in made):
            refresh_checkpoints(self.w)

    def forecast(self) -> Forecast:
        """How this run would go on what the host has loaded."""
        model = self.w.sd_models.model_data.sd_model
        device = torch.device(self.w.devices.device)
        dtype = self.w.devices.dtype_unet if model is not None else self.w.devices.dtype
        width, sizes, shapes = WIDTH, SIZES, {}
        if model is not None:
            parts = {"unet": model.model.diffusion_model, "vae": model.first_stage_model, "text": model.cond_stage_model}
            width, sizes = parts["unet"].input_blocks[0][0].weight.shape[0], {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
            shapes = {name: tuple(p.shape) for name, p in parts["unet"].named_parameters()}
        activations, costs = activation_bytes(self.cfg, width, dtype), METHODS[self.cfg.method](self.cfg).costs(sizes, shapes, dtype, device.type)
        free = float(gpu_free(device)) if device.type == "cuda" else None
        tight = self._checkpoints(activations + costs.device, free)
        name = model.sd_checkpoint_info.model_name if model is not None else "the model that is loaded first"
        note = f"{name}, {device}, {str(dtype).removeprefix('torch.')}" + ", gradient checkpointing" * tight
        there = 0 if free is not None else sum(sizes.values()) * dtype.itemsize  # on a GPU the model is there already
        return Forecast(note, activations * (1 - CHECKPOINTED * tight) + there + costs.device, free, width < WIDTH, tight, costs.file, costs.state,
                        reads_nine(shapes))  # fmt: skip

    def _checkpoints(self, needed: float, free: float | None) -> bool:
        """Whether activations are computed anew: as the settings say, and where those leave it open, if what is `needed` would not fit."""
        return {"on": True, "off": False, "auto": free is not None and needed > 0.9 * free}[self.cfg.memory.checkpointing]


class Folders:
    """Where the WebUI keeps files, for the tools."""

    kinds = {  # -> the method whose files they are
        "checkpoint": "dreambooth", "lora": "lora", "embedding": "textual_inversion", "hypernetwork": "hypernetwork", "control": "controlnet",
    }  # fmt: skip

    def shelves(self) -> list[Shelf]:
        """The folders that its options name, and its own."""
        w, host = webui(), WebUI(TrainConfig())
        models = Path(w.paths.models_path)
        folders = [(host.output_dir(method), kind) for kind, method in self.kinds.items()]
        more = [(Path(w.sd_models.model_path), "checkpoint"), (models / "LyCORIS", "lora"), (models / "VAE", "vae")]
        return [Shelf(folder, kind) for folder, kind in [*folders, *more]]

    def target(self, kind: str) -> Path:
        """Its folder of that kind; the models' for what has none of its own."""
        return WebUI(TrainConfig()).output_dir(self.kinds[kind]) if kind in self.kinds else Path(webui().paths.models_path)

    def made(self, path: Path, kind: str, replaced: bool) -> None:
        """Its list has the file at once. Of a file that was replaced what the last picture left goes too, unless somebody draws just now."""
        w = webui()
        if kind == "checkpoint":
            refresh_checkpoints(w)
        elif kind == "lora":
            free = replaced and w.call_queue.queue_lock.acquire(blocking=False)
            try:
                refresh(w, {path.stem} if free else set(), kind)
            finally:
                if free:
                    w.call_queue.queue_lock.release()


def captioners() -> dict[str, Captioner]:
    """The WebUI's models that describe pictures."""
    return interrogators.captioners(webui())


def _forget_conditions(w: Any) -> None:
    """What a prompt means may have changed: the host keeps the last conditions of each by their text alone."""
    for cls in (w.processing.StableDiffusionProcessing, w.processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            if name in vars(cls):
                setattr(cls, name, [None, None])


def refresh(w: Any, names: set[str], method: str) -> None:
    """The host reads its folders anew: an embedding that was overwritten in place it would not notice by itself."""
    if method == "hypernetwork":
        w.shared.reload_hypernetworks()
    elif method == "textual_inversion":
        w.sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    elif w.networks is not None:
        w.networks.list_available_networks()
        take_out(w.networks, w.sd_models.model_data.sd_model, names)
        for name in names:
            w.networks.networks_in_memory.pop(name, None)


def refresh_checkpoints(w: Any) -> None:
    """The host's list of checkpoints anew; started with --ckpt, it would choose that one again, whatever its user has chosen since."""
    chosen = w.shared.opts.data.get("sd_model_checkpoint")
    w.sd_models.list_models()
    if chosen is not None:
        w.shared.opts.data["sd_model_checkpoint"] = chosen


# ---- the extension ---------------------------------------------------------------------------------------------------


def register() -> None:
    """What scripts/tuner.py calls."""
    from modules import scripts, sd_samplers
    from modules.infotext_utils import image_from_url_text

    from . import extension

    w = webui()
    w.script_callbacks, w.scripts, w.picture, w.samplers = script_callbacks, scripts, image_from_url_text, sd_samplers.visible_samplers
    extension.register(w, WebUI, Folders, captioners)
