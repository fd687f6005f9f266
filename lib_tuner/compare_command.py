"""`compare`: saved steps beside each other. `compare numbers RUN`: what the numbers say of each, and which one to take."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from .compare.clip import found as found_clip
from .compare.numbers import Row, check, numbers
from .compare.suggest import Suggestion, suggest
from .config import meant
from .disk import expanded
from .measuring import as_json, saves_in
from .runs import is_run, settings_of
from .tools.command_line import Progress, say

PROGRAM = "python3 -m lib_tuner compare"
COLUMNS = {"loss": "loss", "gain": "gain", "drift": "drift"}  # of a row -> its head


def main(rest: Sequence[str]) -> int:
    """One of ACTIONS; returns the exit code. Raises ValueError or OSError with one sentence."""
    name = rest[0] if rest else "--help"
    if name in ("-h", "--help"):
        return say([f"usage: {PROGRAM} ACTION [...]\n\nactions:", *(f"  {known.ljust(10)}{text}" for known, (_, text) in ACTIONS.items()), f"\n`{PROGRAM} ACTION --help` explains one."])
    if name not in ACTIONS:
        raise ValueError(f"compare: there is no action {name!r}{meant(name, ACTIONS)} (`{PROGRAM} --help` lists all)")
    return ACTIONS[name][0](rest[1:])


def numbers_of_run(rest: Sequence[str]) -> int:
    """`compare numbers`: measures what is missing, and prints the table."""
    args = _parser().parse_args(rest)
    folder = expanded(args.run)
    if not is_run(folder):
        raise ValueError(f"{args.run} is not the folder of a run (it has no settings.toml); name one, such as outputs/my-tuning-001.")
    cfg = settings_of(folder)
    check(cfg)
    clip = expanded(args.clip) if args.clip else found_clip()
    if clip and not clip.is_file():
        raise ValueError(f"--clip: {args.clip} does not exist; give the weights file of an open_clip, or leave it out.")
    saves = saves_in(folder)
    from .hosts.standalone import Standalone

    rows, progress = [], Progress("Measuring saves")
    for row in numbers(folder, cfg, saves, Standalone(cfg), clip):
        rows.append(row)
        progress(len(rows), len(saves) + 1)
    found = suggest(rows)
    if args.json:
        return say([json.dumps(as_json(rows, found), ensure_ascii=False)])
    return say(table(rows, found))


class _Parser(argparse.ArgumentParser):
    """A wrong option is a ValueError of one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(f"compare: {message} (`{self.prog} --help` explains).")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{PROGRAM} numbers", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="What the numbers say of each saved step of a run, and which one to take. They are kept in numbers.tuner in the run's folder.",
        epilog=f"examples:\n  {PROGRAM} numbers outputs/my-cat-001\n  {PROGRAM} numbers outputs/my-cat-001 --json",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--clip", metavar="FILE", default="", help="weights of an open_clip, for similarities of the run's samples (default: what lies in open_clip's cache; nothing is downloaded)")
    parser.add_argument("--json", action="store_true", help="print rows and suggestion as JSON")
    return parser


# ---- what people read


def table(rows: Sequence[Row], found: Suggestion | None) -> list[str]:
    """A line a step, and the suggestion."""
    more = [name for name in rows[-1].more] if rows else []
    lines = ["step".rjust(8) + "".join(head.rjust(10) for head in (*COLUMNS.values(), *more)) + "   "]
    for row in rows:
        values = [getattr(row, name) for name in COLUMNS] + [row.more.get(name) for name in more]
        lines.append(f"{row.step:>8}" + "".join(_number(value).rjust(10) for value in values) + f"   {_remark(row, found)}".rstrip())
    lines += ["", *_legend(rows), ""]
    return lines + ([found.why if found.step is None else f"Step {found.step}: {found.why}"] if found else [])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}" if abs(value) < 1 else f"{value:.4g}"


def _remark(row: Row, found: Suggestion | None) -> str:
    if not row.files:
        return "the model before the run"
    marks = ["suggested"] * (found is not None and row.step == found.step) + [flag for flag in [found.flags.get(row.step, "") if found else ""] if flag]
    return ", ".join(marks)


def _legend(rows: Sequence[Row]) -> list[str]:
    held = bool(rows) and rows[0].held_out
    of = "of held-out pictures" if held else "of some training pictures, for the run holds none out (data.validation_folder), so overfitting shows in it late"
    gain = "; gain: the same with the trigger minus without it, negative is good" if any(row.gain is not None for row in rows) else ""
    return [f"loss: {of}, at fixed noise{gain};", "drift: how far predictions for prompts without the trigger have moved from the base model's."]


ACTIONS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "numbers": (numbers_of_run, "what the numbers say of each saved step of a run, and which one to take"),
}
