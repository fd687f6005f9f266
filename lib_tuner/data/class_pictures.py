"""Class pictures that a run's own model draws, while nothing is trained yet: as many as the folder of class pictures lacks of those wanted.

They stay there for later runs: `class-00012.png` with its prompt beside it in `class-00012.txt`. A picture is written last and in one piece, so whatever
ended the drawing, the next run draws the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..disk import atomic, expanded
from ..events import Preparing
from ..host import GenerateRequest, Host
from ..settings import TrainConfig
from .items import PICTURES


def missing(cfg: TrainConfig) -> list[int]:
    """The numbers of the class pictures that are to be drawn: the lowest free ones, so many as the folder has too few pictures, whosever they are."""
    if not cfg.prior.pictures:
        return []
    folder = _folder(cfg)
    there = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES] if folder.is_dir() else []
    taken = {path.stem for path in there if path.parent == folder}  # class-00000.jpg has class-00000.txt as its caption too
    free = (n for n in range(cfg.prior.pictures) if _path(folder, n).stem not in taken)
    return [n for n, _ in zip(free, range(cfg.prior.pictures - len(there)))]


def draw(cfg: TrainConfig, host: Host, stop: Callable[[], bool]) -> Iterator[Preparing]:
    """Draws what is missing, inside the host's `exclusive()`, and reports after each batch; ends early where `stop` turns true. Raises OSError."""
    numbers, folder = missing(cfg), _folder(cfg)
    for at in range(0, len(numbers), cfg.prior.batch):
        yield Preparing(at, len(numbers), "Drawing class pictures")
        if stop():
            return
        part = numbers[at : at + cfg.prior.batch]
        pictures = host.generate([_request(cfg, n) for n in part])
        folder.mkdir(parents=True, exist_ok=True)
        for n, picture in zip(part, pictures):  # a host that is interrupted gives fewer
            path = _path(folder, n)
            with atomic(path.with_suffix(".txt")) as temporary:
                temporary.write_text(_prompt(cfg, n), encoding="utf-8")
            with atomic(path) as temporary:
                picture.save(temporary, "PNG")
    if numbers:
        yield Preparing(len(numbers), len(numbers), "Drawing class pictures")


def _folder(cfg: TrainConfig) -> Path:
    return expanded(cfg.data.class_folder)


def _path(folder: Path, n: int) -> Path:
    return folder / f"class-{n:05d}.png"


def _prompt(cfg: TrainConfig, n: int) -> str:
    return cfg.prior.prompts[n % len(cfg.prior.prompts)]


def _request(cfg: TrainConfig, n: int) -> GenerateRequest:
    p, side = cfg.prior, cfg.data.resolution // 8 * 8
    return GenerateRequest(_prompt(cfg, n), p.negative, side, side, p.steps, p.cfg, p.sampler, (p.seed + n) % 2**32, plain=True)
