"""Pictures through the host's own txt2img while a run goes: what is attached to the model is live, and nothing of the host is another afterwards.

`w` is the host's modules as hosts/a1111.py hands them in. What a generation changes by the way is in host.md: T6 (the model, where the chosen
checkpoint is another), T7 (conditions cached by prompt), T8 (random numbers, job counters).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..host import SAMPLERS, GenerateRequest
from ..sd.text import TextEncoder
from ..settings import TrainConfig, WebUIConfig
from .kept import attributes, random_state

_CLIP_SKIP = "CLIP_stop_at_last_layers"
_COUNTERS = ("job_count", "job_no", "sampling_step", "sampling_steps", "textinfo", "job", "processing_has_refined_job_count")


def draw(w: Any, model: Any, cfg: TrainConfig, text: TextEncoder | None, requests: Iterable[GenerateRequest]) -> list[Image.Image]:
    """One picture per request; fewer where the host is interrupted meanwhile. `text`: whose spliced words are live in the prompts."""
    pictures = []
    with random_state(), _counters(w.shared.state), _prompt_file(w), _options(w.shared.opts), _checkpoint(w, model), _tiling(w), _words(w, model, text):
        for request in requests:
            if w.shared.state.interrupted:
                break
            drawn = w.processing.process_images(_processing(w, model, cfg, request)).images
            if not drawn or w.shared.state.interrupted:
                break
            pictures.append(drawn[0])
            w.shared.state.assign_current_image(drawn[0])
    return pictures


def _processing(w: Any, model: Any, cfg: TrainConfig, request: GenerateRequest) -> Any:
    own = WebUIConfig() if request.plain else cfg.webui
    sampler, scheduler = SAMPLERS.get(request.sampler, (request.sampler, None))
    hires = {"enable_hr": True, "hr_scale": own.hires_scale, "hr_upscaler": own.hires_upscaler, "hr_second_pass_steps": own.hires_steps,
             "denoising_strength": own.hires_denoise} if own.hires_scale else {}  # fmt: skip
    p = w.processing.StableDiffusionProcessingTxt2Img(
        sd_model=model, prompt=request.prompt, negative_prompt=request.negative, styles=[s.strip() for s in own.styles.split(",") if s.strip()],
        seed=request.seed, steps=request.steps, cfg_scale=request.cfg, width=request.width, height=request.height, sampler_name=own.sampler or sampler,
        do_not_save_samples=True, do_not_save_grid=True, do_not_reload_embeddings=True,
        override_settings={_CLIP_SKIP: request.clip_skip or cfg.clip_skip}, **hires,
    )  # fmt: skip
    if hasattr(p, "scheduler"):  # since 1.9; before, it was part of the sampler's name
        p.scheduler = own.scheduler or (None if own.sampler else scheduler)
    p.disable_extra_networks = True  # another LoRA would be written into the weights, and a list of hypernetworks cleared
    p.cached_c, p.cached_uc = [None, None], [None, None]
    p.cached_hr_c, p.cached_hr_uc = [None, None], [None, None]
    return p


@contextmanager
def _counters(state: Any) -> Iterator[None]:
    """The host's progress counts the run, not the pictures in between."""
    before = {name: getattr(state, name) for name in _COUNTERS if hasattr(state, name)}
    state.job_count = -1
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(state, name, value)


@contextmanager
def _options(opts: Any) -> Iterator[None]:
    """The host puts an overridden option back only where it had been set before: a clip skip that nobody had chosen would stay chosen."""
    absent = _CLIP_SKIP not in opts.data
    try:
        yield
    finally:
        if absent:
            opts.data.pop(_CLIP_SKIP, None)


@contextmanager
def _checkpoint(w: Any, model: Any) -> Iterator[None]:
    """The host draws on this model, whatever its settings name. An override of these would stand in a config.json that is saved meanwhile, and undo what is chosen meanwhile."""
    info = model.sd_checkpoint_info
    with attributes(w.sd_models, select_checkpoint=lambda: info):
        yield


@contextmanager
def _tiling(w: Any) -> Iterator[None]:
    """A picture leaves the convolutions circular where the host's option Tiling is on (host.md, T15): a run that goes on needs them as they were."""
    hijack = w.sd_hijack.model_hijack
    before = hijack.circular_enabled
    try:
        yield
    finally:
        hijack.apply_circular(before)


@contextmanager
def _prompt_file(w: Any) -> Iterator[None]:
    """params.txt is what the host's arrow button brings back: the person's last prompt, not a sample's."""
    path = Path(w.paths.data_path) / "params.txt"
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            path.write_bytes(before)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _words(w: Any, model: Any, text: TextEncoder | None) -> Iterator[None]:
    """The words that are being learned as embeddings of the host, in the place of those that have their names."""
    with ExitStack() as stack:
        for name, vectors in text.words() if text else ():
            stack.enter_context(_registered(w, model, name, vectors.detach().float()))
        yield


@contextmanager
def _registered(w: Any, model: Any, name: str, vectors: Any) -> Iterator[None]:
    db = w.sd_hijack.model_hijack.embedding_db
    before = db.word_embeddings.get(name)
    embedding = w.textual_inversion.Embedding(vectors, name)
    embedding.vectors, embedding.shape = vectors.shape[0], vectors.shape[-1]
    db.register_embedding(embedding, model)
    try:
        yield
    finally:
        db.register_embedding_by_name(None, model, name)
        if before is not None:
            db.register_embedding_by_name(before, model, name)
