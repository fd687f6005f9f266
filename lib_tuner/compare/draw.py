"""Draws a plan's cells on a host: those with the same checkpoint and files together, since to change these takes time; each picture is given as soon as it is there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin

from ..host import SAMPLERS, Components, GenerateRequest, Host
from ..sd.files import file_sha256
from ..words import lacks_memory
from .applied import Use, applied
from .cells import Cell, Plan

TRIES = 3  # of pictures that were not drawn
TOGETHER = 512 * 512  # pixels that are asked for at once: one picture of SD1.5's size, several of a small model's
Hosts = Callable[[str], Host]  # checkpoint, "" for the one that is there -> its host


@dataclass(frozen=True)
class Drawn:
    """A cell that is done: its picture, or what is wrong with it; `seconds` that it took, the change of files before it included."""

    index: int
    picture: Image.Image | None
    error: str = ""
    seconds: float = 0.0


def draw(plan: Plan, hosts: Hosts, only: Iterable[int] | None = None) -> Iterator[Drawn]:
    """The cells of a plan, or those that `only` names, in the order that changes models and files least often. A cell that fails is a sentence; the others are still drawn.

    Raises Interrupted where somebody stops it at the host, Lost where that could not load its own model again.
    """
    wanted = range(len(plan.cells)) if only is None else only
    for index in wanted:
        if isinstance(cell := plan.cells[index], str):
            yield Drawn(index, None, cell)
    members = [index for index in wanted if isinstance(plan.cells[index], Cell)]
    for number, (checkpoint, of_checkpoint) in enumerate(_grouped(plan, members, lambda cell: cell.checkpoint)):
        host = None
        if number:  # the model of the last checkpoint hangs in circles; to look for them takes longer than five changes of files
            _free()
        try:
            host = hosts(checkpoint)
            with host.exclusive() as sd:
                while of_checkpoint:
                    uses = plan.cells[of_checkpoint[0]].uses
                    group = [index for index in of_checkpoint if plan.cells[index].uses == uses]
                    of_checkpoint = [index for index in of_checkpoint if index not in group]
                    yield from _with_files(plan, host, sd, uses, group)
        except Lost:
            raise
        except (ValueError, OSError) as error:  # of the model itself: nothing that is left can be drawn on it
            yield from (Drawn(index, None, str(error)) for index in of_checkpoint)


class Interrupted(Exception):
    """Somebody has pressed the host's own button; what is not drawn yet stays so."""


class Lost(ValueError):
    """A host could not load its own model again, so that the work ends with this sentence: it is nothing of a cell's."""


def _free() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _grouped(plan: Plan, indices: Iterable[int], key: Callable) -> list[tuple]:
    groups: dict = {}
    for index in indices:
        groups.setdefault(key(plan.cells[index]), []).append(index)
    return list(groups.items())


def _with_files(plan: Plan, host: Host, sd: Components, uses: tuple[Use, ...], group: list[int]) -> Iterator[Drawn]:
    done: set[int] = set()
    began = time.monotonic()
    try:
        with applied(sd, uses):
            for part in _together(plan, group):
                pictures, error = _pictures(host, [plan.cells[index].request for index in part])
                seconds, began = (time.monotonic() - began) / len(part), time.monotonic()
                for place, index in enumerate(part):
                    done.add(index)
                    yield Drawn(index, pictures[place], "", seconds) if place < len(pictures) else Drawn(index, None, error)
    except (ValueError, OSError) as wrong:
        yield from (Drawn(index, None, str(wrong)) for index in group if index not in done)


def _together(plan: Plan, group: list[int]) -> Iterator[list[int]]:
    """Runs of cells of one size, as many as are drawn at once."""
    part: list[int] = []
    for index in group:
        size = (plan.cells[index].request.width, plan.cells[index].request.height)
        if part and (size != (plan.cells[part[0]].request.width, plan.cells[part[0]].request.height) or (len(part) + 1) * size[0] * size[1] > TOGETHER):
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def _pictures(host: Host, requests: list[GenerateRequest]) -> tuple[list[Image.Image], str]:
    pictures: list[Image.Image] = []
    try:
        for _ in range(TRIES):
            pictures += host.generate(requests[len(pictures) :])
            if len(pictures) == len(requests):
                return pictures, ""
            if host.interrupted():  # and not by a page that is drawn anew, which presses the same button
                raise Interrupted
    except RuntimeError as error:  # torch's OutOfMemoryError is one, and not the only sign of it
        if not lacks_memory(error):
            raise
        _free()
        return pictures, "This picture does not fit into the GPU's memory; choose a smaller size."
    return pictures, "The host did not draw this picture; draw its row again."


# ---- what is written into a picture ----------------------------------------------------------------------------------


def infotext(cell: Cell, model: str = "", of_host: str = "") -> str:
    """A cell's settings as the WebUI writes them under its pictures (modules/processing.py, `create_infotext`), so that its own tab can read them; the files follow as `Tuner files`.

    `of_host`: what the host has written of the picture, which is kept, since it knows more.
    """
    files = f'Tuner files: "{"; ".join(map(_use_text, cell.uses))}"' if cell.uses else ""
    return ", ".join(part for part in (of_host or _settings_text(cell, model), files) if part)


def _settings_text(cell: Cell, model: str) -> str:
    r = cell.request
    sampler, schedule = SAMPLERS.get(r.sampler, (r.sampler, None))
    facts = {"Steps": r.steps, "Sampler": sampler, **({"Schedule type": schedule} if schedule else {}), "CFG scale": f"{r.cfg:g}", "Seed": r.seed, "Size": f"{r.width}x{r.height}"}
    if name := Path(cell.checkpoint).stem if cell.checkpoint else model:
        facts["Model"] = name
    if r.clip_skip > 1:
        facts["Clip skip"] = r.clip_skip
    lines = [r.prompt, *([f"Negative prompt: {r.negative}"] if r.negative else []), ", ".join(f"{key}: {value}" for key, value in facts.items())]
    return "\n".join(lines)


def _use_text(use: Use) -> str:
    if not use.path.is_file():
        return use.path.stem
    return f"{use.path.stem} ({file_sha256(use.path)[:10]}) x {use.weight:g}" + (f" blocks {use.blocks}" if use.blocks else "")


def png_info(text: str) -> PngImagePlugin.PngInfo:
    """The chunk under which the WebUI looks for settings."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    return info
