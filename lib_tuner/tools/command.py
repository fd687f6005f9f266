"""What the tools' command lines share: arguments, recipes, where the output may go, progress."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch

from ..config import load_toml, meant
from ..methods.adapters import DTYPES
from ..methods.low_rank import Keep

PROGRAM = "python3 -m lib_tuner tool"


class Parser(argparse.ArgumentParser):
    """A tool's arguments; a wrong one is a ValueError of one sentence."""

    def __init__(self, name: str, text: str, example: str = ""):
        self.name = name
        super().__init__(
            prog=f"{PROGRAM} {name}", description=text, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=f"example:\n  {PROGRAM} {name} {example}" if example else None,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.name}: {message} (`{self.prog} --help` explains).")


def add_output(parser: Parser, help: str = "the .safetensors file to write") -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help=help)
    parser.add_argument("--force", action="store_true", help="replace a file that exists (an input is never replaced)")


def add_dtype(parser: Parser, default: str = "") -> None:
    parser.add_argument("--dtype", choices=tuple(DTYPES), default=default or None, help=f"precision of the file (default: {default or 'as the input has it'})")


def dtype_of(args: argparse.Namespace) -> torch.dtype | None:
    return DTYPES[args.dtype] if args.dtype else None


def add_keep(parser: Parser) -> None:
    parser.add_argument("--rank", type=rank, default=0, help="largest rank of a layer")
    parser.add_argument("--energy", type=part, default=1.0, help="keep as few ranks as reach this part of the sum of squared singular values, such as 0.98")
    parser.add_argument("--ratio", type=above_one, default=0.0, help="keep singular values down to the layer's largest divided by this, such as 10")


def keep_of(args: argparse.Namespace) -> Keep:
    return Keep(args.rank, args.energy, args.ratio)


# ---- types of arguments: argparse shows a ValueError's text as `argument --x: ...` only where it is an ArgumentTypeError


def _checked(text: str, kind: type, good: Any, wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not good(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def rank(text: str) -> int:
    return _checked(text, int, lambda n: 1 <= n <= 4096, "a whole number from 1 to 4096")


def part(text: str) -> float:
    return _checked(text, float, lambda x: 0 < x <= 1, "a part, above 0 and up to 1")


def above_one(text: str) -> float:
    return _checked(text, float, lambda x: 1 <= x < float("inf"), "a number from 1 up")


def number(text: str) -> float:
    return _checked(text, float, lambda x: abs(x) < float("inf"), "a number")


# ---- several files with weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighted:
    """A LoRA of a merge and how strong it is there, in each part of the model."""

    path: Path
    unet: float = 1.0
    text: float = 1.0

    def weight(self, part: str) -> float:
        return self.unet if part == "unet" else self.text

    def __str__(self) -> str:
        return f"{self.path.name} x {self.unet:g}" + ("" if self.unet == self.text else f" (text encoder x {self.text:g})")


def add_loras(parser: Parser) -> None:
    parser.add_argument("loras", nargs="*", type=weighted, metavar="LORA[:WEIGHT]", help="a LoRA file and how strong it is (default 1)")
    parser.add_argument("--recipe", type=Path, metavar="TOML", help="the LoRAs and weights from a file: [[lora]] with file, weight, unet, text_encoder")


def weighted(text: str) -> Weighted:
    """`FILE` or `FILE:WEIGHT`; a file of that very name wins."""
    name, colon, tail = text.rpartition(":")
    if colon and name and not Path(text).exists():
        try:
            strength = float(tail)
        except ValueError:
            return Weighted(Path(text))
        if not abs(strength) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}: the weight is not a number")
        return Weighted(Path(name), strength, strength)
    return Weighted(Path(text))


def loras_of(args: argparse.Namespace, parser: Parser) -> list[Weighted]:
    """The LoRAs of the command line and of the recipe."""
    found = [*args.loras, *(read_recipe(args.recipe) if args.recipe else [])]
    if not found:
        parser.error("no LoRA is given: name files, or a --recipe")
    return found


def read_recipe(path: Path) -> list[Weighted]:
    """The LoRAs of a recipe; files beside it are named without their folder. Raises ValueError, one sentence."""
    values = load_toml(path)
    rows = values.get("lora")
    if values.keys() - {"lora"} or not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{path}: a recipe is a row of [[lora]] tables, each with file = \"...\" and weight = 1.0, and nothing else.")
    return [_row(path, i + 1, row) for i, row in enumerate(rows)]


def _row(path: Path, place: int, row: Mapping[str, Any]) -> Weighted:
    known = ("file", "weight", "unet", "text_encoder")
    for key, value in row.items():
        if key not in known:
            raise ValueError(f"{path}: lora {place}: there is no {key!r}{meant(key, known)} (a table has {', '.join(known)}).")
        if key != "file" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf")):
            raise ValueError(f"{path}: lora {place}: {key} is {value!r}, not a number.")
    if not isinstance(row.get("file"), str) or not row["file"]:
        raise ValueError(f"{path}: lora {place} names no file.")
    weight = float(row.get("weight", 1.0))
    return Weighted(path.parent / Path(row["file"]).expanduser(), float(row.get("unet", weight)), float(row.get("text_encoder", weight)))


# ---- output ----------------------------------------------------------------------------------------------------------


def output(args: argparse.Namespace, inputs: Iterable[str | Path], suffix: str = ".safetensors", path: Path | None = None) -> Path:
    """Where the result may go. Raises ValueError, or FileExistsError: another ending, an input under whatever name, a file that is there already."""
    path = path or args.out
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"{path}: the file's name must end in {suffix}.")
    for each in inputs:
        if path.exists() and Path(each).exists() and os.path.samefile(path, each):
            raise ValueError(f"{path} is one of the inputs ({each}), which are never replaced; choose another name.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it.")
    if (path.exists() or path.is_symlink()) and not args.force:
        raise FileExistsError(f"{path} exists already; choose another name, or replace it with --force.")
    return path


def size_of(path: Path) -> str:
    return f"{path}: {path.stat().st_size / 1e6:,.1f} MB"


class Progress:
    """`told(done, of all)` as one line on stderr that is written over; every tenth part of the way where it is no terminal."""

    def __init__(self, text: str, stream: TextIO | None = None):
        self.text, self.stream, self.at, self.tenth = text, stream or sys.stderr, 0.0, 0

    def __call__(self, done: int, total: int) -> None:
        if self.stream.isatty():
            if done == total or time.monotonic() - self.at > 0.1:
                self.at = time.monotonic()
                self.stream.write(f"\r{self.text} {done}/{total}" + "\n" * (done == total))
        elif done == total or done * 10 // total > self.tenth:
            self.tenth = done * 10 // total
            self.stream.write(f"{self.text} {done}/{total}\n")
        self.stream.flush()


def note(text: str) -> None:
    """A line for the person at the terminal."""
    sys.stderr.write(f"{text}\n")


def say(lines: Sequence[str]) -> int:
    """The result, on stdout; returns the exit code."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0
