"""What a run does beside its updates: samples, validation, language drift, saves, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import checkpoint
from .config import to_toml
from .data.batches import Batches
from .data.items import to_rows
from .data.pictures import beside, from_pixels
from .disk import atomic
from .events import Drifted, Event, Finished, Preparing, Sampled, Saved, Validated, Warned
from .host import Components, GenerateRequest, Host
from .methods.base import Method
from .methods.metadata import Made
from .metrics import drift_prompts, prior_drift, validation_loss
from .optim import weights_for_eval
from .sd.inpaint import joined
from .settings import TrainConfig
from .step import State, schedule_for
from .words import lacks_memory


@dataclass(frozen=True)
class Orders:
    """What a person asks of the run for the step just done; `prompts` replaces the sample prompts from now on."""

    save: bool = False
    sample: bool = False
    prompts: str | None = None


def no_orders() -> Orders:
    """Nobody asks anything."""
    return Orders()


@dataclass
class Run:
    """What the parts of the loop share."""

    cfg: TrainConfig
    method: Method
    host: Host
    sd: Components
    state: State
    batches: Batches
    folder: Path
    started: float
    writes: bool = True  # rank 0
    start: int = 0  # updates done when it began
    saves: list[list[Path]] = field(default_factory=list)
    held_out: list[Any] = field(default_factory=list)
    notes: tuple[str, ...] = ()  # of the state that it goes on from

    @property
    def drifts(self) -> bool:
        """Whether language drift is measured."""
        can = type(self.method).disabled is not Method.disabled
        return can and {"on": True, "off": False, "auto": self.method.drifts}[self.cfg.prior.drift]


def milestones(run: Run, step: int, fresh: bool = True, asked: Orders = Orders()) -> Iterator[Event]:
    """Samples, validation and saves that are due after `step` updates, or asked for; step 0 is sampled and validated too."""
    _take_prompts(run, asked)
    cfg = run.cfg

    def due(every: int, wanted: bool = False) -> bool:
        return run.writes and (wanted or fresh and every > 0 and step % every == 0)

    sampled, saved = due(cfg.sample.every, asked.sample), bool(step) and due(cfg.save_every, asked.save)
    validated = due(cfg.validate_every) and bool(run.held_out)
    drifted = run.writes and run.drifts and (saved or validated or fresh and step == 0)
    if not (sampled or validated or saved or drifted):
        return
    with _state_kept(run, step), run_in_eval(run):
        if sampled:
            yield from _sample(run, step)
        if validated:
            yield from _validate(run, step)
        if drifted:
            yield from _drift(run, step)
        if saved:
            yield from _export(run, step, f"{cfg.name}-{step:06d}")
    if saved:
        _save_state(run, step)


@contextmanager
def run_in_eval(run: Run) -> Iterator[None]:
    """Dropout off, and the weights that are saved and sampled (EMA, schedule-free averages) in place."""
    run.method.train(False)
    try:
        with weights_for_eval(run.state.optimizer, run.state.ema):
            run.method.follow()
            yield
    finally:
        run.method.follow()


@contextmanager
def _state_kept(run: Run, step: int) -> Iterator[None]:
    """Whatever fails, as a save on a full disk, the state is kept if it still fits; outside of `run_in_eval`, whose averages are not the state."""
    try:
        yield
    except Exception:
        if run.writes and step:
            with suppress(OSError, ValueError):
                _save_state(run, step)
        raise


def end(run: Run, step: int, reason: str, asked: Orders) -> Iterator[Event]:
    """The last samples, the final file and the state to resume from; after numbers that were none, the last good weights alone."""
    _take_prompts(run, asked)
    cfg, files = run.cfg, []
    fine = reason != "nan"
    with _state_kept(run, step) if fine else nullcontext(), run_in_eval(run) if fine else nullcontext():
        if run.writes and reason == "done" and (cfg.sample.every or asked.sample):
            yield from _sample(run, step)
        if run.writes and reason == "done" and run.held_out:
            yield from _validate(run, step)
        if run.writes and step and fine and run.drifts:
            yield from _drift(run, step)
        if run.writes and step and (fine or step > run.start):
            for event in _export(run, step, cfg.name if reason == "done" else f"{cfg.name}-{step:06d}"):
                files = event.paths if isinstance(event, Saved) else files
                yield event
    if run.writes and step and fine:
        _save_state(run, step)
    yield Finished(step, reason, files)


def _take_prompts(run: Run, asked: Orders) -> None:
    """Other sample prompts are settings of the run from now on, so that a resume has them too."""
    if asked.prompts is not None and asked.prompts != run.cfg.sample.prompts:
        run.cfg = replace(run.cfg, sample=replace(run.cfg.sample, prompts=asked.prompts))
        if run.writes:
            write_settings(run.folder, run.cfg)


def shown(batches: Batches) -> tuple[Path, ...]:
    """A few of the training pictures, to be seen beside the samples."""
    files = [item.path for item in batches.items if not item.is_class and item.row < 0]
    return tuple(files[:: max(1, len(files) // 4)][:4])


def _sample(run: Run, step: int) -> Iterator[Event]:
    s, side = run.cfg.sample, run.cfg.data.resolution // 8 * 8
    prompts = [line.strip().replace("[name]", run.method.triggers()) for line in s.prompts.splitlines() if line.strip()]
    if not prompts:
        yield Warned("No samples were drawn, because there is no sample prompt: write one.")
        return
    yield Preparing(0, 0, f"Drawing {len(prompts)} sample{'s' * (len(prompts) > 1)}")
    requests = [GenerateRequest(p, s.negative, s.width or side, s.height or side, s.steps, s.cfg, s.sampler, s.seed + i) for i, p in enumerate(prompts)]
    try:
        with run.method.folded() if run.host.folds else nullcontext():
            images = run.host.generate(requests) if run.method.hints is None else _under_hints(run, requests)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        yield Warned(f"The samples of step {step} were left out, because there was not enough memory for them: draw smaller or fewer ones.")
        return
    folder = run.folder / "samples"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{step:06d}-{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths):
        with atomic(path) as temporary:
            image.save(temporary, "PNG")
    yield Sampled(step, images, paths)


def _under_hints(run: Run, requests: list[GenerateRequest]) -> list[Any]:
    """Each picture drawn under a hint of its own, which is seen to its left."""
    images = []
    for request, hint in zip(requests, run.method.hints.samples(run.batches.items, [(r.width, r.height) for r in requests])):
        run.method.begin(SimpleNamespace(hint=hint[None], indices=()))
        images += [beside(from_pixels(hint * 2 - 1), image) for image in run.host.generate([request])]
    return images


def _validate(run: Run, step: int) -> Iterator[Event]:
    yield Preparing(0, 0, "Measuring the validation loss")
    schedule = schedule_for(run.cfg.loss, run.sd.schedule)
    with run.sd.autocast():
        loss = validation_loss(run.sd.unet, run.sd.text, run.held_out, schedule, run.cfg.seed, run.method.begin)
    yield Validated(step, loss)


def _drift(run: Run, step: int) -> Iterator[Event]:
    """How far predictions for prompts without the trigger moved, at the noise of a training picture that is always the same."""
    prompts = drift_prompts(run.cfg.prior.prompts, run.method.triggers())
    if not prompts:
        return
    yield Preparing(0, 0, "Measuring the language drift")
    batch = run.batches.at(0)
    latents = batch.latents[:1].to(run.sd.device).expand(len(prompts), -1, -1, -1)
    run.method.begin(replace(batch, indices=tuple(range(len(prompts))), hint=None if batch.hint is None else batch.hint[:1]))
    predict, encode = (_cast_anew(run, part) for part in (joined(run.sd.unet, None if batch.extra is None else batch.extra[:1]), run.sd.text))
    yield Drifted(step, prior_drift(predict, run.method.disabled, encode, latents, prompts, schedule_for(run.cfg.loss, run.sd.schedule), run.cfg.seed))


def _cast_anew(run: Run, part: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`part` under an autocast of its own for each call: autocast keeps converted weights until its end, and there are two models here."""

    def called(*given: Any) -> torch.Tensor:
        with run.sd.autocast():
            return part(*given)

    return called


def _export(run: Run, step: int, name: str) -> Iterator[Event]:
    yield Preparing(0, 0, "Saving")
    epoch = step * run.cfg.optim.accumulate // max(1, run.batches.steps_per_epoch)
    made = Made(step, epoch, run.started, time.time(), run.sd.model_hash, run.sd.model_name, schedule_for(run.cfg.loss, run.sd.schedule).prediction)
    paths = run.method.export(run.folder / name, run.batches.summary(), made)
    records = run.method.optimizer_records(paths, run.state.optimizer) if run.cfg.save_optimizer else None
    beside = _save_optimizer(records or {})
    if records == {}:
        yield Warned(f"The WebUI cannot go on with {run.cfg.optim.name}, so no .optim was written: choose adamw, or turn save_optimizer off.")
    run.saves.append(paths + beside)
    checkpoint.prune(run.saves, run.cfg.keep_last)
    reports = {path.name: run.host.reload(path) for path in paths}
    names = {file: report.name for file, report in reports.items() if report.name}
    yield Saved(step, paths, "; ".join(map(str, reports.values())), names)


def _save_optimizer(records: Mapping[Path, dict[str, Any]]) -> list[Path]:
    """In the form that the WebUI's safe reader takes."""
    for path, record in records.items():
        with atomic(path) as temporary:
            torch.save(record, temporary, _use_new_zipfile_serialization=False)
    return list(records)


def _save_state(run: Run, step: int) -> None:
    checkpoint.save(run.folder, step, {
        "run": run.state.state_dict(), "items": to_rows(run.batches.items), "model": run.sd.model_hash, "started": run.started,
        "saves": [[p.name for p in paths] for paths in run.saves],
    })


def write_settings(folder: Path, cfg: TrainConfig) -> None:
    with atomic(folder / "settings.toml") as temporary:
        temporary.write_text(to_toml(replace(cfg, resume="")), encoding="utf-8")
