"""A tool: what it is called, what it asks and what it does; its command line, where its output may go, and what it says when it is done."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..config import meant
from .arguments import NO_LORA, Argument, Find, Missing
from .command_line import Parser, Progress, exists, say
from .recipe import read_recipe
from .weights import Told


@dataclass(frozen=True)
class Made:
    """What came of a tool: its files, what is said of them (a sentence each), and of `inspect` the report."""

    files: tuple[Path, ...] = ()
    said: tuple[str, ...] = ()
    report: Mapping[str, Any] | None = None

    def lines(self) -> list[str]:
        """As the command line says it."""
        if self.report is not None:
            return list(self.said)
        sizes = [f"{path}: {path.stat().st_size / 1e6:,.1f} MB" for path in self.files]
        return [", ".join([*sizes, *self.said[:1]]), *self.said[1:]] if len(sizes) == 1 else [*sizes, *self.said]


def _out(args: Namespace) -> tuple[tuple[Path, str], ...]:
    return ((args.out, ".safetensors"),)


@dataclass(frozen=True)
class Tool:
    """`run` does the work of checked arguments and says how far it is; `proposal` names a file for them. Both raise ValueError or OSError, each one sentence.

    `makes`: the kind of file that comes out, empty where it is that of the first input. `outputs`: what will be written, each with the ending it must have.
    """

    name: str
    label: str
    text: str
    example: str
    arguments: tuple[Argument, ...]
    run: Callable[[Namespace, Told], Made]
    proposal: Callable[[Namespace], str]
    makes: str = ""
    step: str = "writing tensor"
    outputs: Callable[[Namespace], tuple[tuple[Path, str], ...]] = _out

    def main(self, argv: Sequence[str] | None = None) -> int:
        """The command line; returns the exit code. Raises ValueError or OSError, each one sentence."""
        args = self.parse(argv)
        try:
            self.check(args)
        except Exists as error:
            raise FileExistsError(exists(error.path)) from None
        return say(self.run(args, Progress(self.step)).lines())

    def parse(self, argv: Sequence[str] | None = None) -> Namespace:
        """The arguments of a command line. Raises ValueError."""
        parser = Parser(self.name, self.text, self.example)
        for argument in self.arguments:
            argument.add(parser)
        return parser.parse_intermixed_args(_no_options(sys.argv[1:] if argv is None else argv))  # files may stand on both sides of an option, as in `a -o out b`

    def read(self, values: Mapping[str, Any], find: Find = Path) -> tuple[Namespace, dict[str, str], list[str]]:
        """The arguments out of a form's or a script's values; the sentence of each that is wrong, by its key; the keys of those that are still missing."""
        known, missing, args = {a.key: a for a in self.arguments}, [], Namespace()
        problems = {key: f"there is no such field{meant(key, known)}" for key in values if key not in known}
        for key, argument in known.items():
            setattr(args, key, argument.default)
            try:
                setattr(args, key, argument.read(values.get(key), find))
            except Missing as error:
                missing.append(key)
                problems[key] = str(error)
            except ValueError as error:
                problems[key] = str(error)
        if "loras" in known and not problems and not args.loras and not args.recipe:
            problems["loras"] = NO_LORA
            missing.append("loras")
        return args, problems, missing

    def inputs(self, args: Namespace) -> list[Path]:
        """All files that are read, those of a recipe and in a folder too; none of them is ever written."""
        of = {kind: [value for a in self.arguments if a.kind == kind and (value := getattr(args, a.key))] for kind in ("file", "recipe", "loras")}
        rows = [*chain(*of["loras"]), *chain(*map(read_recipe, of["recipe"]))]
        files = [*of["file"], *of["recipe"], *(lora.path for lora in rows)]
        return [*files, *(path for folder in files if folder.is_dir() for path in folder.rglob("adapter_*"))]

    def check(self, args: Namespace) -> None:
        """Raises ValueError, or Exists, where an output may not be written: another ending, an input under whatever name, a file that is there."""
        for path, suffix in self.outputs(args):
            check_output(path, suffix, self.inputs(args), args.force)


def _no_options(argv: Sequence[str]) -> list[str]:
    """What stands after `--` is files alone, also where one's name begins with a dash: parse_intermixed_args looks at them twice, the second time without the `--`."""
    at = argv.index("--") if "--" in argv else len(argv)
    return [*argv[:at], *(os.path.join(os.curdir, file) if file.startswith("-") else file for file in argv[at + 1 :])]


class Exists(FileExistsError):
    """There is a file at the output's place, and nobody said that it is replaced."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path = path


# ---- output ----------------------------------------------------------------------------------------------------------


def check_output(path: Path, suffix: str, inputs: Sequence[Path], force: bool) -> None:
    """Raises ValueError or Exists where `path` may not be written; `suffix`: what its name must end in, if anything."""
    if suffix and path.suffix.lower() != suffix:
        raise ValueError(f"{path}: the file's name must end in {suffix}.")
    for each in inputs:
        if path.exists() and each.exists() and os.path.samefile(path, each):
            raise ValueError(f"{path} is one of the inputs ({each}), which are never replaced; choose another name.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it.")
    if (path.exists() or path.is_symlink()) and not force:
        raise Exists(path)
