"""`edit`: the captions of a data folder from the command line. What would change is shown first; what was changed can be taken back, also later.

The options of an edit are its arguments in `data.edits.OPERATIONS`, so that command line and page take the same.
"""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .data.edits import OPERATIONS, Context, Edit, Plan, apply, plan
from .data.items import Problem
from .data.journal import Journal
from .data.kept_scores import KeptScores
from .data.library import open_captions
from .data.tagging import tagged_folder
from .tools.command_line import say

PROGRAM = "python3 -m lib_tuner edit"
SHOWN = 5  # changes and problems
EXAMPLES = ('my-cat remove --tags "lips, mouth"', 'my-cat remove --tags "lips, mouth" --apply', 'my-cat add --tags "zwx cat" --where first', 'my-cat rename --names "grey cat=gray cat"', "my-cat undo")


def main(rest: Sequence[str]) -> int:
    """Runs one command on a folder; returns the exit code. Raises ValueError or OSError with one sentence."""
    parser = _parser("FOLDER NAME [...]", "Edit the captions of all pictures below a folder.")
    parser.add_argument("folder", metavar="FOLDER", help="the folder with the pictures; captions are the .txt or .caption files beside them")
    parser.add_argument("name", metavar="NAME", help="what to do")
    parser.epilog = "\n".join([
        *(f"  {name.ljust(14)}{_about(operation.make)}" for name, operation in OPERATIONS.items()), *(f"  {name.ljust(14)}{text}" for name, (_, text) in STEPS.items()),
        f"\n`{PROGRAM} FOLDER NAME --help` has the options of one; without --apply an edit is shown and nothing written.\n\nexamples:", *(f"  {PROGRAM} {line}" for line in EXAMPLES),
    ])  # fmt: skip
    args = parser.parse_args([*rest[:2]] if len(rest) > 1 and not rest[0].startswith("-") else rest)
    if args.name in STEPS:
        _parser(f"FOLDER {args.name}", STEPS[args.name][1]).parse_args(rest[2:])
        with closing(Journal(args.folder)) as journal:
            return say([*map(str, journal.interrupted), *STEPS[args.name][0](journal)])
    if args.name not in OPERATIONS:
        raise ValueError(f"There is no edit {args.name!r}; choose one of {', '.join([*OPERATIONS, *STEPS])}.")
    return _edit(args.folder, args.name, rest[2:])


def _edit(folder: str, name: str, rest: Sequence[str]) -> int:
    """Shows what an edit changes, and with --apply carries it out."""
    given = vars(_options(name).parse_args(rest))
    carry_out, extensions = given.pop("apply"), given.pop("captions")
    edit = Edit(name, given)
    files, problems = open_captions(folder, extensions)
    planned = plan(files, edit, Context(lambda text: len(_tokenizer().encode(text)), _scores(folder, extensions) if name == "above" or given.get("by") == "confidence" else None))
    lines = [*_shown(planned), *_told([*problems, *planned.problems])]
    if not carry_out:
        return say([*lines, "Nothing was written: --apply carries it out."] if planned.changes else lines)
    with closing(Journal(folder)) as journal:
        apply(planned, journal)
        return say([*map(str, journal.interrupted), *lines, *([f"Written; `{PROGRAM} {folder} undo` takes it back."] if planned.changes else [])])


def _scores(folder: str, extensions: str) -> Callable[[Path], Mapping[str, float]] | None:
    """What `tag` kept: scores by tag of the picture that a caption file belongs to; None where no tagger was ever asked."""
    tagged = tagged_folder(folder, extensions)
    kept = KeptScores(folder, lambda: tagged.pictures)
    owners = {file.path: (picture, file.caption.tags) for picture, file in tagged.pairs()}
    return (lambda path: kept(*owners[path]) if path in owners else {}) if kept.tables() else None


def _options(name: str) -> argparse.ArgumentParser:
    """The options of an edit: those without a default must be given."""
    operation = OPERATIONS[name]
    parser = _parser(f"FOLDER {name} [...]", _about(operation.make))
    for argument, default in operation.arguments().items():
        kind, what = Edit.kind_of(argument)
        more: dict[str, Any] = {"action": "store_true"} if kind is bool else {"action": _Pairs, "metavar": "OLD=NEW"} if kind is dict else {"type": kind if kind in (int, float) else str}
        parser.add_argument(f"--{argument}", required=default is inspect.Parameter.empty, default=argparse.SUPPRESS, help=what, **more)
    parser.add_argument("--captions", metavar="ENDINGS", default="txt,caption", help="endings of caption files, in order of preference (default txt,caption)")
    parser.add_argument("--apply", action="store_true", help="write the changes; without it they are shown")
    return parser


class _Pairs(argparse.Action):
    """`--names OLD=NEW`, as often as one likes, as one mapping."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        old, equals, new = str(value).partition("=")
        if not equals:
            parser.error(f"{option} {value}: write OLD=NEW")
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), old: new})


class _Parser(argparse.ArgumentParser):
    """A wrong option is a ValueError of one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(f"edit: {message} (`{PROGRAM} --help` explains).")


def _parser(usage: str, text: str) -> argparse.ArgumentParser:
    return _Parser(prog=PROGRAM, usage=f"{PROGRAM} {usage}", description=text, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)


def _about(make: Callable[..., Any]) -> str:
    return inspect.getdoc(make).partition("\n")[0]


@functools.cache
def _tokenizer() -> Any:
    from .sd.tokenizer import Tokenizer  # takes its time, and few edits count

    return Tokenizer()


# ---- what people read


def _shown(planned: Plan) -> list[str]:
    return [f"{planned}."] + [line for path, before, after in planned.samples(SHOWN) for line in (f"  {path.name}", f"    - {before.strip()}", f"    + {after.strip()}")]


def _told(problems: list[Problem]) -> list[str]:
    more = [f"... and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else []
    return [*map(str, problems[:SHOWN]), *more]


def _undone(journal: Journal) -> list[str]:
    entry = journal.undo()
    return [entry.told or f"Taken back: {entry.name} of {entry.files} files ({entry.when})." if entry else "There is nothing to take back."]


def _redone(journal: Journal) -> list[str]:
    entry = journal.redo()
    return [entry.told or f"Done again: {entry.name} of {entry.files} files." if entry else "There is nothing to do again."]


def _history(journal: Journal) -> list[str]:
    return [f"{entry.when}  {entry.state.ljust(8)} {entry.name} {entry.args or ''} ({entry.files} files)" for entry in journal.entries()] or ["Nothing has been edited here."]


STEPS: dict[str, tuple[Callable[[Journal], list[str]], str]] = {
    "undo": (_undone, "takes the last edit back"),
    "redo": (_redone, "does again what was taken back last"),
    "history": (_history, "lists what can be taken back and done again"),
}
