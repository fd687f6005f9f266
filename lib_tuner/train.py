"""The one training loop, for every method and every host: a generator of events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .config import build, flat_values, options, read_toml
from .disk import expanded
from .data import class_pictures
from .data.batches import Batches, check_world, find_items, validation
from .data.holes import Holes
from .data.items import from_rows
from .data.problems import told
from .events import Event, Finished, Preparing, Started, Stepped, Warned
from .host import Components, Host
from .methods.base import Method
from .milestones import Orders, Run, end, milestones, no_orders, shown, write_settings
from .optim import EMA, lr_ended, make_optimizer
from .sd.inpaint import is_inpainting
from .sd.loss import check_weights
from .settings import InpaintConfig, TrainConfig
from .step import NotANumber, State, Step, schedule_for

def never() -> bool:
    """Nobody asks the run to stop."""
    return False


def train(cfg: TrainConfig, method: Method, host: Host, stop: Callable[[], bool] = never, rank: int = 0, world: int = 1,
          orders: Callable[[], Orders] = no_orders) -> Iterator[Event]:
    """Trains `method` on the host's model. When `stop()` turns true the run saves and ends; either way the model is restored.

    `orders()` is asked once after each step for what a person wants beside what the settings say.
    Of `world` processes (torchrun) each computes its share of every batch, and rank 0 alone samples, validates and writes.
    Closing the generator cancels the run without saving. Raises ValueError or OSError with one sentence before the first step where something does not fit.
    """
    method.check(cfg)
    if not cfg.resume:
        method.check_new(cfg)
    check_world(cfg.data, world)
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
        run = _prepare(cfg, method, host, sd, attached.enter_context(method.attached(sd)))
        run.writes = rank == 0
        for text in (*run.notes, *told(run.batches.problems)):
            yield Warned(text)
        if run.batches.holes is None and cfg.inpaint != InpaintConfig():
            yield Warned("The settings for inpainting models are not used: this model is an ordinary one, which is given no masks.")
        for done, total, name in run.batches.prepare():
            yield Preparing(done, total, f"Encoding {name}")
            if stopped := stop() or host.interrupted():
                break
        if _anyone(stopped, reduce, sd):
            yield Finished(run.start, "stopped", [])
            return
        run.held_out = validation(cfg.data, sd, method.triggers(), method.hints, run.batches.holes) if cfg.validate_every else []
        step = Step(cfg, sd, run.state, run.batches, rank, world, reduce)
        run.folder = _folder(cfg) if run.writes else run.folder
        yield Started(run.start, cfg.steps, run.folder, shown(run.batches), sd.model_name)
        yield from milestones(run, run.start, fresh=run.start == 0)
        try:
            reason, done = yield from _updates(run, step, lambda: _anyone(stop() or host.interrupted(), reduce, sd), orders)
        except NotANumber as error:
            yield Warned(str(error))
            reason, done = "nan", step.good[0]
            method.load_state_dict(step.good[1])
        yield from end(run, done, reason, orders())


def _updates(run: Run, step: Step, ends: Callable[[], bool], orders: Callable[[], Orders]) -> Generator[Event, None, tuple[str, int]]:
    """The updates, and after each what is due then; returns why they ended and how many are done. Raises NotANumber."""
    cfg, reason, done = run.cfg, "done", run.start
    for number in range(run.start, cfg.steps):
        if lr_ended(cfg.optim, number):
            break
        if ends():
            reason = "stopped"
            break
        run.method.train()
        loss = step(number)
        done = number + 1
        yield Stepped(done, loss, run.method.lr_at(number))
        if done < cfg.steps:
            asked = orders()
            if asked.save or cfg.save_every and done % cfg.save_every == 0:
                step.look(number)  # nothing is saved unseen
            yield from milestones(run, done, asked=asked)
    step.look(done - 1)
    return reason, done


def _draw_class_pictures(cfg: TrainConfig, host: Host, stop: Callable[[], bool]) -> Iterator[Event]:
    """What the folder of class pictures lacks, once it is sure that there is something to train on."""
    if class_pictures.missing(cfg):
        find_items(replace(cfg.data, class_folder=""))
        yield from class_pictures.draw(cfg, host, lambda: stop() or host.interrupted())


def _scaler() -> Any:
    """What keeps small gradients of fp16 above zero."""
    return torch.amp.GradScaler("cuda") if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler()  # not in torch 2.1


def _prepare(cfg: TrainConfig, method: Method, host: Host, sd: Components, groups: list[dict[str, Any]]) -> Run:
    """Optimizer and data; a resumed run gets its state and its frozen items."""
    check_weights(schedule_for(cfg.loss, sd.schedule), cfg.loss)
    params = [p for group in groups for p in group["params"]]
    for p in params:
        p.requires_grad_(True)
    optimizer = make_optimizer(cfg.optim, groups)
    scaler = _scaler() if sd.dtype == torch.float16 else None
    state = State(method, optimizer, EMA(params, cfg.optim.ema) if cfg.optim.ema else None, scaler)
    saved = checkpoint.load(expanded(cfg.resume)) if cfg.resume else None
    holes = Holes(cfg.inpaint, cfg.seed) if is_inpainting(sd.unet) else None
    batches = Batches(cfg.data, sd, cfg.seed, method.triggers(), from_rows(saved.state["items"]) if saved else None, method.hints, holes)
    run = Run(cfg, method, host, sd, state, batches, expanded(cfg.resume), time.time())
    if saved:
        _check_same(saved.state, sd, cfg, method)
        state.load_state_dict(saved.state["run"])
        run.start, run.started, run.notes = saved.step, saved.state["started"], saved.notes
        run.saves = [[run.folder / Path(p).name for p in paths] for paths in saved.state["saves"]]  # wherever the folder is now, however it is spelled
    return run


def _folder(cfg: TrainConfig) -> Path:
    """The run's folder, made when all that can be refused has been looked at, with the settings in it."""
    folder = expanded(cfg.resume) if cfg.resume else checkpoint.run_folder(expanded(cfg.output), cfg.name)
    write_settings(folder, cfg)
    if cfg.settings_text:
        text = "\n".join(f"{key}: {value}" for key, value in flat_values(cfg).items())
        (folder / time.strftime("settings-%Y-%m-%d-%H-%M-%S.txt")).write_text(f"datetime: {time.strftime('%Y-%m-%d %H:%M:%S')}\n{text}\n", encoding="utf-8")
    return folder


def _check_same(saved: dict[str, Any], sd: Components, cfg: TrainConfig, method: Method) -> None:
    """Refuses another model; changed pictures are refused where they are read."""
    if saved["model"] != sd.model_hash:
        raise ValueError(f"resume: the run in {cfg.resume} trained another model ({saved['model'][:10]}, this one is {sd.model_hash[:10]}); choose the same model file.")
    try:
        before = flat_values(build(TrainConfig, read_toml(expanded(cfg.resume) / "settings.toml"), type(cfg.settings)))
    except (OSError, ValueError):  # they are gone, or of another method, which the state does not fit
        return
    own = options(type(cfg.settings), cfg.method)
    kept = {option.key for option in (*options(TrainConfig), *own) if (option in own if option.kept is None else option.kept)}
    for key, value in flat_values(cfg).items():
        if key in kept and before.get(key, value) != value and not _same_folder(key, before[key], value) and not method.moved(cfg, key, before[key], value):
            raise ValueError(f"resume: {key} was {before[key]!r} and is now {value!r}, but the saved state goes on as it was; set it back, or start a new run.")


def _same_folder(key: str, *given: str) -> bool:
    return key.endswith("folder") and all(given) and len({os.path.realpath(os.path.expanduser(folder)) for folder in given}) == 1


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
