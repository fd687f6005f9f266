"""`train` from the command line: the settings' file and flags, Ctrl-C, and the processes that torchrun starts. Standard library alone at import."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import Any

from .config import meant


def split_flags(rest: list[str]) -> tuple[list[str], dict[str, str]]:
    """`RUN.toml --section.key value --section.key=value` as (files, {key: value}).

    Not argparse: which flags exist depends on the method, which the file or another flag names. `build` then knows a wrong key, and the one meant.
    """
    files, given, words = [], {}, list(rest)
    while words:
        word = words.pop(0)
        key, equals, value = word[2:].partition("=")
        if not word.startswith("--"):
            files.append(word)
        elif equals:
            given[key] = value
        elif words and not words[0].startswith("--"):  # `-1` is a value
            given[key] = words.pop(0)
        else:
            raise ValueError(f"{word} lacks its value: write {word} VALUE, which is true or false for what is on or off")
    return files, given


def settings_of(file: str, given: dict[str, str]) -> tuple[Any, type]:
    """The settings of a file under the flags, and the class of the chosen method."""
    from .config import read_toml
    from .methods import METHODS, settings

    cfg = settings({**read_toml(file), **given})
    return cfg, METHODS[cfg.method]


def run(cfg: Any, method: type) -> int:
    """Trains, with the progress on stderr; 0 where the run got to its end, 130 where it was stopped, 1 where the loss was lost.

    Raises ValueError or OSError of one sentence, also where memory runs out.
    """
    from .events import Finished, Warned
    from .hosts.standalone import Standalone
    from .progress import line_of, progress
    from .recorders import csv, tensorboard
    from .train import train

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    told = foreseen(cfg) if rank == 0 else []
    sys.stderr.writelines(f"{line_of(Warned(text))}\n" for text in told)
    with _memory_told(), _process_group(world, cfg.memory.device), stoppable() as stop, closing(train(cfg, method(cfg), Standalone(cfg), stop, rank, world)) as events:
        if rank == 0:
            news = (event for event in events if not (isinstance(event, Warned) and event.text in told))
            events = csv(progress(news, sys.stderr), every=cfg.csv_every)
            events = tensorboard(events) if cfg.tensorboard else events
        last = deque(events, maxlen=1)  # runs to the end
    return next(({"done": 0, "stopped": 130}.get(event.reason, 1) for event in last if isinstance(event, Finished)), 1)


def foreseen(cfg: Any) -> list[str]:
    """What the page's *Show the plan* warns of. Nothing of a run that goes on, which was warned of, nor where the run itself is going to be refused."""
    from .hosts.standalone import Standalone
    from .outlook import outlook

    if cfg.resume:
        return []
    try:
        return [warning.text for warning in outlook(cfg, Standalone(cfg).forecast()).warnings]
    except (ValueError, OSError):  # `train` says what is wrong
        return []


@contextmanager
def _memory_told() -> Iterator[None]:
    """The page's sentence where memory runs out, which is no fault of the program; such a fault keeps its traceback."""
    from .progress import sentence
    from .words import lacks_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
        if not lacks_memory(error):
            raise
        raise OSError(sentence(error)) from error


@contextmanager
def _process_group(world: int, device: str) -> Iterator[None]:
    """The connection among the processes that torchrun started, each of which has a card of its own. Raises ValueError where there are not as many."""
    if world == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device.startswith("cuda:"):
        raise ValueError(f"memory.device: {device!r} is one card for all processes that torchrun starts; write auto.")
    on_cards = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_cards:
        own, cards = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        own = 0 if cards == 1 and "TORCHELASTIC_RUN_ID" not in os.environ else own  # other launchers than torchrun may show each process its own card alone
        if own >= cards:
            raise ValueError(f"torchrun starts more processes than this machine has GPUs ({cards}): give it --nproc-per-node {cards}.")
        torch.cuda.set_device(own)  # the one that `cuda` means in this process
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cards else "gloo", timeout=timedelta(days=1))  # rank 0 alone draws class pictures and samples, while the others wait
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """`stop()` turns true at the first Ctrl-C (or SIGTERM); the second one ends the program on the spot."""
    flag = threading.Event()

    def stop(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        flag.set()
        sys.stderr.write("\nStopping: this step is finished and what was learned saved. Once more ends at once, without saving.\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_help(parser: argparse.ArgumentParser, method: str | None) -> str:
    """All settings by section, with the method's own where the environment for reading it is there."""
    from .config import flags, method_name
    from .settings import TrainConfig

    name = method or method_name(TrainConfig, {})
    try:
        from .methods import METHODS
    except ModuleNotFoundError:
        parser.epilog = "The settings of the methods are listed here once the first run has set up the Tuner's environment."
        flags(parser, TrainConfig)
        return parser.format_help()
    if name not in METHODS:
        raise ValueError(f"method: {name!r} is not one of {', '.join(METHODS)}{meant(name, METHODS)}")
    flags(parser, TrainConfig, METHODS[name].Config, name)
    parser.epilog = f"methods: {', '.join(METHODS)}; `train --help --method NAME` lists the settings of another than {name}."
    return parser.format_help()
