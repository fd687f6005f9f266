"""The one training loop, for every method and every host: a generator of events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import checkpoint
from .config import build, flat_values, read_toml, to_toml
from .data import class_pictures
from .data.batches import Batches, find_items, validation
from .data.holes import Holes
from .data.items import from_rows, to_rows
from .data.pictures import beside, from_pixels
from .disk import atomic
from .events import Drifted, Event, Finished, Preparing, Sampled, Saved, Started, Stepped, Validated, Warned
from .host import Components, GenerateRequest, Host
from .methods.base import Method
from .methods.metadata import Made
from .metrics import drift_prompts, prior_drift, validation_loss
from .optim import EMA, lr_ended, make_optimizer, weights_for_eval
from .sd.inpaint import is_inpainting, joined
from .sd.loss import check_weights
from .settings import InpaintConfig, TrainConfig
from .step import NotANumber, State, Step, schedule_for


# settings that are part of the saved state, beside the method's own: another value would not be used
KEPT = frozenset(f"optim.{name}" for name in ("name", "text_lr", "weight_decay", "betas", "eps", "accumulate"))
EXPORTED = (".save", ".lora_rank", ".sample_hints")  # of a method's own settings those that shape what is written or drawn, as `save_...` do


def never() -> bool:
    """Nobody asks the run to stop."""
    return False


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
    saves: list[list[Path]] = field(default_factory=list)
    held_out: list[Any] = field(default_factory=list)

    @property
    def drifts(self) -> bool:
        """Whether language drift is measured."""
        can = type(self.method).disabled is not Method.disabled
        return can and {"on": True, "off": False, "auto": self.method.drifts}[self.cfg.prior.drift]


def train(cfg: TrainConfig, method: Method, host: Host, stop: Callable[[], bool] = never, rank: int = 0, world: int = 1,
          orders: Callable[[], Orders] = no_orders) -> Iterator[Event]:
    """Trains `method` on the host's model. When `stop()` turns true the run saves and ends; either way the model is restored.

    `orders()` is asked once after each step for what a person wants beside what the settings say.
    Of `world` processes (torchrun) each computes its share of every batch, and rank 0 alone samples, validates and writes.
    Closing the generator cancels the run without saving. Raises ValueError or OSError with one sentence before the first step where something does not fit.
    """
    method.check(cfg)
    reduce, stopped = _reducer(world), False
    yield Preparing(0, 0, "Loading the model")
    with host.exclusive() as sd, ExitStack() as attached:
        if cfg.prior.pictures and not cfg.resume:  # a resumed run has its pictures
            if rank == 0:
                yield from _draw_class_pictures(cfg, host, stop)
            if _anyone(stop() or host.interrupted(), reduce, sd):
                yield Finished(0, "stopped", [])
                return
        yield Preparing(0, 0, "Reading pictures and captions")
        run, start = _prepare(cfg, method, host, sd, attached.enter_context(method.attached(sd)))
        run.writes = rank == 0
        for problem in run.batches.problems:
            yield Warned(str(problem))
        if run.batches.holes is None and cfg.inpaint != InpaintConfig():
            yield Warned("The settings for inpainting models are not used: this model is an ordinary one, which is given no masks.")
        for done, total, name in run.batches.prepare():
            yield Preparing(done, total, f"Encoding {name}")
            if stopped := stop() or host.interrupted():
                break
        if _anyone(stopped, reduce, sd):
            yield Finished(start, "stopped", [])
            return
        run.held_out = validation(cfg.data, sd, method.triggers(), method.hints, run.batches.holes) if cfg.validate_every else []
        step = Step(cfg, sd, run.state, run.batches, rank, world, reduce)
        run.folder = _folder(cfg) if run.writes else run.folder
        yield Started(start, cfg.steps, run.folder, _shown(run.batches), sd.model_name)
        yield from _milestones(run, start, fresh=start == 0)
        reason, done = "done", start
        for number in range(start, cfg.steps):
            if lr_ended(cfg.optim, number):
                break
            if _anyone(stop() or host.interrupted(), reduce, sd):
                reason = "stopped"
                break
            method.train()
            try:
                loss = step(number)
            except NotANumber as error:
                yield Warned(str(error))
                reason = "nan"
                if step.good[1]:  # else the first update was left out, and the weights are as they were
                    done = step.good[0]
                    method.load_state_dict(step.good[1])
                break
            done = number + 1
            yield Stepped(done, loss, method.lr_at(number))
            if done < cfg.steps:
                yield from _milestones(run, done, asked=orders())
        yield from _end(run, done, reason, orders())


def _draw_class_pictures(cfg: TrainConfig, host: Host, stop: Callable[[], bool]) -> Iterator[Event]:
    """What the folder of class pictures lacks, once it is sure that there is something to train on."""
    if class_pictures.missing(cfg):
        find_items(replace(cfg.data, class_folder=""))
        yield from class_pictures.draw(cfg, host, lambda: stop() or host.interrupted())


def _prepare(cfg: TrainConfig, method: Method, host: Host, sd: Components, groups: list[dict[str, Any]]) -> tuple[Run, int]:
    """Optimizer and data; a resumed run gets its state and its frozen items."""
    check_weights(schedule_for(cfg.loss, sd.schedule), cfg.loss)
    params = [p for group in groups for p in group["params"]]
    for p in params:
        p.requires_grad_(True)
    optimizer = make_optimizer(cfg.optim, groups)
    scaler = torch.cuda.amp.GradScaler() if sd.dtype == torch.float16 else None
    state = State(method, optimizer, EMA(params, cfg.optim.ema) if cfg.optim.ema else None, scaler)
    saved = checkpoint.load(Path(cfg.resume).expanduser()) if cfg.resume else None
    holes = Holes(cfg.inpaint, cfg.seed) if is_inpainting(sd.unet) else None
    batches = Batches(cfg.data, sd, cfg.seed, method.triggers(), from_rows(saved.state["items"]) if saved else None, method.hints, holes)
    if saved:
        _check_same(saved.state, sd, cfg)
        state.load_state_dict(saved.state["run"])
    run = Run(cfg, method, host, sd, state, batches, Path(cfg.resume).expanduser(), saved.state["started"] if saved else time.time())
    run.saves = [[Path(p) for p in paths] for paths in saved.state["saves"]] if saved else []
    return run, saved.step if saved else 0


def _folder(cfg: TrainConfig) -> Path:
    """The run's folder, made when all that can be refused has been looked at, with the settings in it."""
    folder = Path(cfg.resume).expanduser() if cfg.resume else checkpoint.run_folder(Path(cfg.output).expanduser(), cfg.name)
    _write_settings(folder, cfg)
    if cfg.settings_text:
        text = "\n".join(f"{key}: {value}" for key, value in flat_values(cfg).items())
        (folder / time.strftime("settings-%Y-%m-%d-%H-%M-%S.txt")).write_text(f"datetime: {time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n", encoding="utf-8")
    return folder


def _write_settings(folder: Path, cfg: TrainConfig) -> None:
    with atomic(folder / "settings.toml") as temporary:
        temporary.write_text(to_toml(replace(cfg, resume="")), encoding="utf-8")


def _check_same(saved: dict[str, Any], sd: Components, cfg: TrainConfig) -> None:
    """Refuses another model; changed pictures are refused where they are read."""
    if saved["model"] != sd.model_hash:
        raise ValueError(f"resume: the run in {cfg.resume} trained another model ({saved['model'][:10]}, this one is {sd.model_hash[:10]}); choose the same model file.")
    try:
        before = flat_values(build(TrainConfig, read_toml(Path(cfg.resume).expanduser() / "settings.toml"), type(cfg.settings)))
    except (OSError, ValueError):  # they are gone, or of another method, which the state does not fit
        return
    for key, value in flat_values(cfg).items():
        own = key.startswith(f"{cfg.method}.") and ".save_" not in key and not key.endswith(EXPORTED)
        if (key in KEPT or own) and before.get(key, value) != value:
            raise ValueError(f"resume: {key} was {before[key]!r} and is now {value!r}, but the saved state goes on as it was; set it back, or start a new run.")


def _reducer(world: int) -> Callable[[list[torch.Tensor]], None] | None:
    """Sums tensors over the processes that torchrun started; None for one process."""
    if world == 1:
        return None
    import torch.distributed as dist

    def reduce(tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor)

    return reduce


def _anyone(flag: bool, reduce: Callable[[list[torch.Tensor]], None] | None, sd: Components) -> bool:
    """Whether any process says so: all have to end at the same step."""
    if reduce is None:
        return flag
    said = torch.tensor(float(flag), device=sd.device)
    reduce([said])
    return bool(said)


# ---- milestones


def _milestones(run: Run, step: int, fresh: bool = True, asked: Orders = Orders()) -> Iterator[Event]:
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
    """Where a save fails, as on a full disk, the state is kept if it still fits; outside of `run_in_eval`, whose averages are not the state."""
    try:
        yield
    except (OSError, ValueError):
        if run.writes and step:
            with suppress(OSError):
                _save_state(run, step)
        raise


def _end(run: Run, step: int, reason: str, asked: Orders) -> Iterator[Event]:
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
        if run.writes and step:
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
            _write_settings(run.folder, run.cfg)


def _shown(batches: Batches) -> tuple[Path, ...]:
    """A few of the training pictures, to be seen beside the samples."""
    files = [item.path for item in batches.items if not item.is_class and item.row < 0]
    return tuple(files[:: max(1, len(files) // 4)][:4])


def _sample(run: Run, step: int) -> Iterator[Event]:
    s, side = run.cfg.sample, run.cfg.data.resolution
    prompts = [line.strip().replace("[name]", run.method.triggers()) for line in s.prompts.splitlines() if line.strip()]
    if not prompts:
        yield Warned("No samples were drawn, because there is no sample prompt: write one.")
        return
    yield Preparing(0, 0, f"Drawing {len(prompts)} sample{'s' * (len(prompts) > 1)}")
    requests = [GenerateRequest(p, s.negative, s.width or side, s.height or side, s.steps, s.cfg, s.sampler, s.seed + i) for i, p in enumerate(prompts)]
    with run.method.folded() if run.host.folds else nullcontext():
        images = run.host.generate(requests) if run.method.hints is None else _under_hints(run, requests)
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
    yield Validated(step, validation_loss(run.sd.unet, run.sd.text, run.held_out, schedule, run.cfg.seed, run.method.begin))


def _drift(run: Run, step: int) -> Iterator[Event]:
    """How far predictions for prompts without the trigger moved, at the noise of a training picture that is always the same."""
    prompts = drift_prompts(run.cfg.prior.prompts, run.method.triggers())
    if not prompts:
        return
    yield Preparing(0, 0, "Measuring the language drift")
    batch = run.batches.at(0)
    latents = batch.latents[:1].to(run.sd.device).expand(len(prompts), -1, -1, -1)
    run.method.begin(replace(batch, indices=tuple(range(len(prompts))), hint=None if batch.hint is None else batch.hint[:1]))
    unet = joined(run.sd.unet, None if batch.extra is None else batch.extra[:1])

    def predict(*given: torch.Tensor) -> torch.Tensor:
        with run.sd.autocast():  # anew for each: it keeps converted weights, and there are two models here
            return unet(*given)

    yield Drifted(step, prior_drift(predict, run.method.disabled, run.sd.text, latents, prompts, schedule_for(run.cfg.loss, run.sd.schedule), run.cfg.seed))


def _export(run: Run, step: int, name: str) -> Iterator[Event]:
    yield Preparing(0, 0, "Saving")
    epoch = step * run.cfg.optim.accumulate // max(1, run.batches.steps_per_epoch)
    made = Made(step, epoch, run.started, time.time(), run.sd.model_hash, run.sd.model_name, schedule_for(run.cfg.loss, run.sd.schedule).prediction)
    paths = run.method.export(run.folder / name, run.batches.summary(), made)
    beside = _save_optimizer(run, paths[0]) if run.cfg.save_optimizer else []
    if run.cfg.save_optimizer and not beside:
        yield Warned(f"The WebUI cannot go on with {run.cfg.optim.name}, so no .optim was written: choose adamw, or turn save_optimizer off.")
    run.saves.append(paths + beside)
    checkpoint.prune(run.saves, run.cfg.keep_last)
    reports = {path.name: run.host.reload(path) for path in paths}
    names = {file: report.name for file, report in reports.items() if report.name}
    yield Saved(step, paths, "; ".join(map(str, reports.values())), names)


def _save_optimizer(run: Run, path: Path) -> list[Path]:
    """NAME.optim as the WebUI's own trainer keeps it beside an embedding (textual_inversion.py, `save_optimizer_state`), in the form its safe reader takes."""
    record = run.method.optimizer_record(path, run.state.optimizer, run.sd.model_hash)
    if record is None:
        return []
    beside = path.with_name(path.name + ".optim")
    with atomic(beside) as temporary:
        torch.save(record, temporary, _use_new_zipfile_serialization=False)
    return [beside]


def _save_state(run: Run, step: int) -> None:
    checkpoint.save(run.folder, step, {
        "run": run.state.state_dict(), "items": to_rows(run.batches.items), "model": run.sd.model_hash, "started": run.started,
        "saves": [[str(p) for p in paths] for paths in run.saves],
    })
