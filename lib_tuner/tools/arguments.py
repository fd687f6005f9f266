"""What a tool is asked, declared once: the command line's arguments, the page's form and a script's JSON are all made of the same `Argument`s."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import meant
from ..disk import expanded
from ..methods.adapters import DTYPES
from ..methods.low_rank import Keep
from .recipe import Weighted, read_recipe, weighted, weighted_rows

Find = Callable[[str], Path]  # a file by what a person calls it
NO_LORA = "no LoRA is given: choose one at least, or a recipe."


@dataclass(frozen=True)
class Limits:
    """Which numbers are taken, ends included; `apart`: the lowest itself is not."""

    type: type = float
    low: float | None = None
    high: float | None = None
    apart: bool = False

    def admits(self, value: float) -> bool:
        low = self.low is None or (value > self.low if self.apart else value >= self.low)
        return abs(value) < float("inf") and low and (self.high is None or value <= self.high)

    def __call__(self, text: str) -> Any:
        """The number that a text is. Raises ArgumentTypeError, which argparse shows as `argument --x: ...`."""
        try:
            value = self.type(text)
        except ValueError:
            value = None
        if value is None or not self.admits(value):
            raise ArgumentTypeError(self.refusal(repr(text)))
        return value

    def refusal(self, shown: str) -> str:
        """What is said of a text that is none of them."""
        if self.low is None:
            return f"{shown} is not a number"
        if self.high is None:
            return f"{shown} is not a number from {self.low:g} up"
        if self.apart:
            return f"{shown} is not a part, above {self.low:g} and up to {self.high:g}"
        return f"{shown} is not a whole number from {self.low:g} to {self.high:g}"


RANKS, PART, FROM_ONE = Limits(int, 1, 4096), Limits(float, 0, 1, apart=True), Limits(float, 1)


@dataclass(frozen=True)
class Argument:
    """One thing that a tool is asked.

    `kind`: file, loras (files with weights), recipe, out (the file to write), picture (one more), flag, choice or number. `empty`: what it means where
    nothing is given. `of`: kinds of files (as `shelves` has them) that fit. `only`: it has a meaning for an input of this kind alone. `more`: seldom needed.
    """

    key: str
    kind: str
    label: str
    help: str
    default: Any = None
    required: bool = False
    limits: Limits = Limits()
    choices: tuple[str, ...] = ()
    empty: str = ""
    of: tuple[str, ...] = ()
    only: str = ""
    more: bool = False

    @property
    def shown(self) -> Any:
        """The default as a field shows it; empty where it says that nothing is given."""
        if self.kind == "flag":
            return False
        given = self.default is not None and (self.kind != "number" or self.limits.admits(self.default))
        return self.default if given else ""

    # ---- the command line --------------------------------------------------------------------------------------------

    def add(self, parser: argparse.ArgumentParser) -> None:
        """Adds it to a command line: files by their place, all else by name."""
        names = [f"--{self.key.replace('_', '-')}"]
        if self.kind in ("file", "loras"):
            more = {"nargs": "*", "type": weighted, "metavar": "LORA[:WEIGHT]"} if self.kind == "loras" else {"nargs": None if self.required else "?", "type": expanded}
            parser.add_argument(self.key, help=self._told(), **more)
        elif self.kind == "flag":
            parser.add_argument(*names, action="store_true", help=self._told())
        elif self.kind == "choice":
            parser.add_argument(*names, choices=self.choices, default=self.default, help=self._told())
        elif self.kind == "number":
            parser.add_argument(*names, type=self.limits, default=self.default, required=self.required, help=self._told())
        else:
            short, metavar = (["-o"], "FILE") if self.kind == "out" else ([], {"recipe": "TOML", "picture": "PNG"}[self.kind])
            parser.add_argument(*short, *names, type=expanded, required=self.kind == "out", metavar=metavar, help=self._told())

    def _told(self) -> str:
        """The help of the command line, with what holds where nothing is given."""
        default = self.shown if self.kind in ("choice", "number") and self.shown != "" else self.empty
        return (self.help + (f" (default: {default})" if default != "" else "")).replace("%", "%%")

    # ---- a form's or a script's value --------------------------------------------------------------------------------

    def read(self, value: Any, find: Find) -> Any:
        """The value as the command line would have it. Raises ValueError; `Missing` where it has to be given and is not."""
        if self.kind == "flag":
            return _flag(value)
        if self.kind == "loras":
            return _loras(value, find)
        text = _text(value)
        if not text:
            if self.required:
                raise Missing("choose a file, or type its path." if self.kind == "file" else "this has to be filled in.")
            return self.default
        if self.kind == "number":
            return self._number(text)
        if self.kind == "choice":
            if text not in self.choices:
                raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}{meant(text, self.choices)}")
            return text
        return _there(find(text)) if self.kind in ("file", "recipe") else expanded(text)

    def _number(self, text: str) -> Any:
        try:
            return self.limits(text)
        except ArgumentTypeError as error:
            raise ValueError(str(error)) from None


class Missing(ValueError):
    """Nothing is wrong yet: it has only not been given."""


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{value!r} is neither text nor a number")
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else "" if value is None else str(value).strip()


def _flag(value: Any) -> bool:
    if value not in (None, "", True, False):
        raise ValueError(f"{value!r} is not true or false")
    return value is True


def _loras(value: Any, find: Find) -> list[Weighted]:
    if not isinstance(value or [], list) or not all(isinstance(row, Mapping) for row in value or []):
        raise ValueError("a list of tables is wanted, each with file and weight")
    rows = weighted_rows(value or [], find)
    for row in rows:
        _there(row.path)
    return rows


def _there(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} does not exist; choose a file, or type its whole path.")
    return path


# ---- what several tools ask ------------------------------------------------------------------------------------------

OUT = Argument("out", "out", "Name of the new file", "The .safetensors file to write.")
FORCE = Argument("force", "flag", "Replace the file of that name", "Replaces a file that exists; an input is never replaced.")
DTYPE = Argument("dtype", "choice", "Precision", "Precision of the new file.", choices=tuple(DTYPES), empty="as the input has it", more=True)
KEEP = (
    Argument("rank", "number", "Rank", "Largest rank of a layer.", 0, limits=RANKS, empty="no limit"),
    Argument("energy", "number", "Energy", "Keeps as few ranks as reach this part of the sum of squared singular values, such as 0.98.", 1.0,
             limits=PART, more=True),
    Argument("ratio", "number", "Ratio", "Keeps singular values down to the layer's largest divided by this, such as 10.", 0.0,
             limits=FROM_ONE, empty="no limit", more=True),
)  # fmt: skip
LORAS = (
    Argument("loras", "loras", "LoRAs", "LoRA files, and how strong each is (1: as it was trained).", of=("lora",)),
    Argument("recipe", "recipe", "Recipe", "LoRAs and weights from a file: [[lora]] tables with file, weight, unet, text_encoder.", of=("recipe",)),
)


def keep_of(args: Namespace) -> Keep:
    return Keep(args.rank, args.energy, args.ratio)


def dtype_of(args: Namespace) -> Any:
    return DTYPES[args.dtype] if args.dtype else None


def loras_of(args: Namespace) -> list[Weighted]:
    """The LoRAs that are named, and those of the recipe. Raises ValueError where there is none."""
    found = [*args.loras, *(read_recipe(args.recipe) if args.recipe else [])]
    if not found:
        raise ValueError(NO_LORA)
    return found
