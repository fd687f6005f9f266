"""What is drawn where: a cell is one picture with all that it depends on, an axis is what its values do to a cell, a plan is the whole grid.

    plan = plan_grid(Cell(request), {"x": Axis("step", "all"), "y": Axis("seed", "1-3")}, offer)
    plan.cells[plan.at(x, y, z)]              # z planes of y rows of x columns
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..host import GenerateRequest
from ..methods.blocks import block_numbers
from . import values
from .applied import Use

NONE = "None"
ALL = "all"
NAMES = ("x", "y", "z")
SIDES = (64, 4096)  # px


@dataclass(frozen=True)
class Cell:
    """One picture: what is asked of the host, the files on the model (in the order in which they were chosen), and the checkpoint ("" is the one that is there)."""

    request: GenerateRequest
    uses: tuple[Use, ...] = ()
    checkpoint: str = ""


@dataclass(frozen=True)
class Choice:
    """A file that an axis can name: a run's save by `RUN STEP` (`RUN end` for the final one), any file by its name; `kind` as `applied.KINDS` or checkpoint."""

    path: Path
    kind: str = "lora"
    run: str = ""
    step: int | None = None
    word: str = ""  # an embedding's, where that is not the file's name
    beside: tuple[Use, ...] = ()  # what belongs to the same save: the words of a LoRA

    @property
    def label(self) -> str:
        """As it is shown and written."""
        return f"{self.run} {'end' if self.step is None else self.step}" if self.run else self.path.stem

    @property
    def uses(self) -> tuple[Use, ...]:
        """The save as it is put on a model."""
        return (Use(self.path, word=self.word), *self.beside)

    @property
    def order(self) -> tuple[Any, ...]:
        """By run, and in a run by step, the final one last."""
        return (self.run, self.step is None, self.step or 0, self.path.name)


@dataclass(frozen=True)
class Offer:
    """What there is to choose from. `saves` are files of runs, `files` all others that a host knows."""

    saves: tuple[Choice, ...] = ()
    files: tuple[Choice, ...] = ()
    samplers: tuple[str, ...] = ("ddim", "euler_a", "dpmpp_2m")
    step: int = 8  # px: sides of a picture are multiples


@dataclass(frozen=True)
class Value:
    """One value of an axis: how it is labelled, and what it is."""

    label: str
    what: Any


@dataclass(frozen=True)
class Axis:
    """An axis as somebody chose it: a name in KINDS, and its values as text."""

    kind: str
    text: str


@dataclass(frozen=True)
class Kind:
    """What an axis changes. `read` gives the values of one text between commas; `put` a cell with one of them. `rank`: which of two axes acts first."""

    label: str
    help: str
    read: Callable[[str, Offer], list[Value]]
    put: Callable[[Cell, Any], Cell]
    rank: int = 1
    offered: Callable[[Offer], list[str]] = lambda offer: []  # what a page lists
    finish: Callable[[list[Value], Cell], list[Value]] = lambda found, base: found  # what depends on all values at once
    lines: bool = False  # a value may hold commas: values end with the line, or with a semicolon


@dataclass(frozen=True)
class Plan:
    """A grid. A cell that cannot be is a sentence instead; `problems` say what was left out."""

    axes: Mapping[str, tuple[str, tuple[Value, ...]]]  # by NAMES: the kind and its values; an axis that was not chosen has one value without a label
    cells: tuple[Cell | str, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, planes."""
        x, y, z = (len(self.axes[name][1]) for name in NAMES)
        return x, y, z

    def at(self, x: int, y: int, z: int = 0) -> int:
        """The place of a cell in `cells`."""
        columns, rows, _ = self.shape
        return (z * rows + y) * columns + x

    def labels(self, name: str) -> list[str]:
        """The labels of an axis; one empty one where it was not chosen."""
        return [value.label for value in self.axes[name][1]]


def plan_grid(base: Cell, axes: Mapping[str, Axis], offer: Offer, most: int = 10000) -> Plan:
    """The grid of `base` along up to three axes. What cannot be read of an axis is a problem, and the rest is still made.

    Raises ValueError, one sentence, for an axis of no kind, for two of the same kind, and for more than `most` cells; for an axis of which nothing is left a line
    for each value that was left out as well.
    """
    problems: list[str] = []
    found: dict[str, tuple[str, tuple[Value, ...]]] = {name: ("", (Value("", None),)) for name in NAMES}
    chosen = {name: axis for name in NAMES if (axis := axes.get(name)) and axis.kind}
    twice = [axis.kind for axis in chosen.values() if sum(other.kind == axis.kind for other in chosen.values()) > 1]
    if twice:
        raise ValueError(f"Two axes change the same thing ({KINDS[twice[0]].label}); choose another one for one of them.")
    for name, axis in chosen.items():
        found[name] = (axis.kind, tuple(_values(name, axis, base, offer, problems)))
    count = math.prod(len(found[name][1]) for name in NAMES)
    if count > most:
        raise ValueError(f"This grid would have {count:,} pictures, and at most {most:,} are drawn at once; take values away.")
    order = sorted(chosen, key=lambda name: KINDS[chosen[name].kind].rank)
    cells = []
    for z in found["z"][1]:
        for y in found["y"][1]:
            for x in found["x"][1]:
                cells.append(_cell(base, [(KINDS[chosen[name].kind], {"x": x, "y": y, "z": z}[name]) for name in order]))
    return Plan(found, tuple(cells), tuple(problems))


def _values(name: str, axis: Axis, base: Cell, offer: Offer, problems: list[str]) -> list[Value]:
    kind = KINDS.get(axis.kind)
    if kind is None:
        raise ValueError(f"There is no axis {axis.kind!r}; choose one of {', '.join(KINDS)}.")
    if kind.lines:
        wanted, empty = [text.strip().strip('"') for line in axis.text.splitlines() for text in line.split(";") if text.strip()], 0
    else:
        try:
            wanted, empty = values.texts(axis.text)
        except ValueError as error:
            raise ValueError(f"Axis {name.upper()}: {error}.") from None
    if empty:
        problems.append(f"Axis {name.upper()}: nothing is written in {empty} of its places between commas; they are left out.")
    found: list[Value] = []
    for text in wanted:
        try:
            found += kind.read(text, offer)
        except ValueError as error:
            problems.append(f"Axis {name.upper()}: {error}; it is left out.")
    found = kind.finish(list({value.label: value for value in found}.values()), base)
    if not found:
        raise ValueError("\n".join([*problems, f"Axis {name.upper()} ({kind.label}) has no value; write some, or choose no axis there."]))
    return found


def _cell(base: Cell, changes: Iterable[tuple[Kind, Value]]) -> Cell | str:
    cell = base
    try:
        for kind, value in changes:
            cell = kind.put(cell, value.what)
    except ValueError as error:
        return str(error)
    return cell


# ---- the kinds -------------------------------------------------------------------------------------------------------


def _of_request(**how: Callable[[Any], Any]) -> Callable[[Cell, Any], Cell]:
    return lambda cell, what: replace(cell, request=replace(cell.request, **{name: make(what) for name, make in how.items()}))


def _numbers(low: float, high: float, whole: bool = True) -> Callable[[str, Offer], list[Value]]:
    def read(text: str, offer: Offer) -> list[Value]:
        found = values.numbers(text, whole)
        for number in found:
            if not low <= number <= high or whole and number != int(number):
                raise ValueError(f"{number:g} is no {'whole ' * whole}number from {low:g} to {high:g}")
        return [Value(f"{number:g}" if not whole else str(int(number)), int(number) if whole else number) for number in found]

    return read


def _named(text: str, choices: Sequence[Choice], what: str) -> list[Value]:
    """The choices that a text means: by label, by file name, by a step alone where one run has it, or all of them."""
    if text.lower() == ALL and choices:
        return [Value(choice.label, choice) for choice in sorted(choices, key=lambda c: c.order)]
    fitting = [choice for choice in choices if text in (choice.label, choice.path.name, choice.path.stem, str(choice.path))]
    fitting = fitting or [choice for choice in choices if text.isdigit() and choice.step == int(text)]
    if len({choice.path for choice in fitting}) == 1:
        return [Value(fitting[0].label, fitting[0])]
    if fitting:
        raise ValueError(f"{text!r} may be {' or '.join(sorted(choice.label for choice in fitting)[:3])}; write one of them")
    raise ValueError(f"{text!r} is no {what} that is known here" + (f"; there is {choices[0].label}, for instance" if choices else ""))


def _step(text: str, offer: Offer) -> list[Value]:
    return [Value(NONE, _paths(offer.saves))] if text == NONE else _named(text, offer.saves, "save of a run")


def _file(text: str, offer: Offer) -> list[Value]:
    usable = [choice for choice in (*offer.saves, *offer.files) if choice.kind != "checkpoint"]
    return [Value(NONE, _paths(usable))] if text == NONE else _named(text, usable, "LoRA, embedding or hypernetwork")


def _paths(choices: Iterable[Choice]) -> frozenset[Path]:
    return frozenset(use.path for choice in choices for use in choice.uses)


def _checkpoint(text: str, offer: Offer) -> list[Value]:
    return _named(text, [choice for choice in (*offer.saves, *offer.files) if choice.kind == "checkpoint"], "checkpoint")


def _put_file(cell: Cell, choice: Choice | frozenset[Path]) -> Cell:
    """The file in the place of those that the cell has of its run or, for a file of no run, of the first; else behind them. A set takes all its files away."""
    if isinstance(choice, frozenset):
        return replace(cell, uses=tuple(use for use in cell.uses if use.path not in choice))
    if choice.kind == "checkpoint":
        return replace(cell, checkpoint=str(choice.path))
    same = [use for use in cell.uses if use.path.parent == choice.path.parent] if choice.run else list(cell.uses[:1])
    if not same:
        return replace(cell, uses=(*cell.uses, *choice.uses))
    first = cell.uses.index(same[0])
    mine = [replace(use, weight=same[0].weight, blocks=same[0].blocks) for use in choice.uses]
    return replace(cell, uses=(*cell.uses[:first], *mine, *(use for use in cell.uses[first:] if use not in same)))


def _weights(cell: Cell, weight: float) -> Cell:
    if not cell.uses:
        raise ValueError("No file is chosen, so there is no weight to change: choose a LoRA or an axis of files.")
    return replace(cell, uses=tuple(replace(use, weight=weight) for use in cell.uses))


# by the names of sd-webui-lora-block-weight, whose rows of 17 they are
_ROWS = {
    "ALL": "1" * 17, "INS": "11110000000000000", "IND": "10001110000000000", "INALL": "11111110000000000", "MIDD": "10001111111100000",
    "OUTD": "10000000111100000", "OUTS": "10000000000011111", "OUTALL": "10000000111111111",
}  # fmt: skip


def _blocks(text: str, offer: Offer) -> list[Value]:
    row = ",".join(_ROWS[text.upper()]) if text.upper() in _ROWS else text
    block_numbers(row, -16, 16)
    return [Value(text, row)]


def _put_blocks(cell: Cell, row: str) -> Cell:
    if not cell.uses:
        raise ValueError("No LoRA is chosen, so there are no blocks to weigh: choose one or an axis of files.")
    return replace(cell, uses=tuple(replace(use, blocks=row) for use in cell.uses))


def _sampler(text: str, offer: Offer) -> list[Value]:
    found = next((name for name in offer.samplers if name.lower() == text.lower()), None)
    if found is None:
        raise ValueError(f"{text!r} is no sampler; there are {', '.join(offer.samplers)}")
    return [Value(found, found)]


def _size(text: str, offer: Offer) -> list[Value]:
    sides = [side.strip() for side in text.lower().replace("×", "x").split("x")]
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or not all(side.isdigit() and SIDES[0] <= int(side) <= SIDES[1] and int(side) % offer.step == 0 for side in sides):
        raise ValueError(f"{text!r} is no size such as 512x768, with sides from {SIDES[0]} to {SIDES[1]} px that are multiples of {offer.step}")
    return [Value("x".join(sides), (int(sides[0]), int(sides[1])))]


def _replacements(found: list[Value], base: Cell) -> list[Value]:
    """Every value takes the place of the first one, which has to be in a prompt."""
    if found and found[0].label not in base.request.prompt and found[0].label not in base.request.negative:
        raise ValueError(f"{found[0].label!r} is not in the prompt; the first value of this axis is what the others take the place of.")
    return [Value(value.label, (found[0].label, value.label)) for value in found]


def _put_words(cell: Cell, words: tuple[str, str]) -> Cell:
    request = cell.request
    return replace(cell, request=replace(request, prompt=request.prompt.replace(*words), negative=request.negative.replace(*words)))


def _labels(choices: Iterable[Choice]) -> list[str]:
    return [choice.label for choice in sorted(choices, key=lambda c: c.order)]


KINDS: Mapping[str, Kind] = {
    "step": Kind("Saved step", "Saves of runs, as `my-cat-001 500`, a step alone, `all`, or None for the model without them.", _step, _put_file, 0,
                 lambda offer: [ALL, NONE, *_labels(offer.saves)]),
    "file": Kind("LoRA, embedding, hypernetwork", "Files by their names, or None.", _file, _put_file, 0,
                 lambda offer: [NONE, *_labels(c for c in (*offer.saves, *offer.files) if c.kind != "checkpoint")]),
    "checkpoint": Kind("Checkpoint", "Models by their names.", _checkpoint, _put_file, 0, lambda offer: _labels(c for c in (*offer.saves, *offer.files) if c.kind == "checkpoint")),
    "weight": Kind("Weight", "How strong the files are: 0.4, 0.6, 0.8, or 0-1 [5].", _numbers(-16, 16, False), _weights, 2),
    "blocks": Kind("Block weights", "A row of 17, 25 or 26 numbers, names as M00=0.5, OUT03=0, or a preset from the list; one value a line.", _blocks, _put_blocks, 2,
                   lambda offer: list(_ROWS), lines=True),
    "prompt": Kind("Prompt S/R", "Words of the prompt, and what takes their place: wavy hair, straight hair.", lambda text, offer: [Value(text, text)], _put_words, finish=_replacements),
    "seed": Kind("Seed", "1-4, or 7, 8, 9.", _numbers(0, 2**32 - 1), _of_request(seed=int)),
    "cfg": Kind("CFG scale", "How strongly the prompt is followed: 5, 7, 9.", _numbers(1, 30, False), _of_request(cfg=float)),
    "steps": Kind("Sampling steps", "Steps of the sampler: 10, 20, 30.", _numbers(1, 150), _of_request(steps=int)),
    "sampler": Kind("Sampler", "Samplers by their names.", _sampler, _of_request(sampler=str), offered=lambda offer: list(offer.samplers)),
    "size": Kind("Size", "Width x height in px: 512x512, 512x768.", _size, _of_request(width=lambda size: size[0], height=lambda size: size[1])),
    "clip_skip": Kind("Clip skip", "1 or 2.", _numbers(1, 12), _of_request(clip_skip=int)),
}  # fmt: skip
