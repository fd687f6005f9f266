"""`audit`: what is wrong with the pictures and captions of a data folder, and what to do for what is to be learned. Nothing is written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .data.advisor import advise, balance, steps, uneven
from .data.audit import Target, audit, look_at
from .data.caption_audit import CaptionRules, audit_captions, audit_names
from .data.captions import CaptionFile
from .data.duplicates import LIMIT, alike, groups, told_apart
from .data.finding import Finding, counted
from .data.items import Problem, pictures_below
from .data.library import listing
from .data.look import Look
from .presets import GOALS
from .tools.command_line import Progress, say

PROGRAM = "python3 -m lib_tuner audit"
SHOWN = 5  # findings of a kind
NAMED = 3  # files of a finding
ADVICE = ("drop", "uneven", "vary", "keep")
EXAMPLES = ("my-cat", 'my-cat --goal character --trigger "zwx cat"', "my-cat --size 768 --json", "my-cat --all --no-pictures")


def main(rest: Sequence[str]) -> int:
    """Audits a folder; returns the exit code. Raises ValueError or OSError with one sentence."""
    args = _parser().parse_args(rest)
    if not 0 <= args.bits <= 15:
        raise ValueError(f"audit: --bits {args.bits} is outside 0 to 15; {LIMIT} is usual.")
    target = Target(args.size)
    pictures, _ = pictures_below(args.folder)
    there = listing(args.folder, args.captions)
    files, problems = list(there.files.values()), list(there.problems)
    of_pictures = {picture: there.files[file] for picture, file in there.captions.items()}
    found = [*_of_pictures(pictures, of_pictures, target, args), *_of_captions(files, of_pictures, args), *audit_names(pictures, args.captions)]
    advice = advise(files, args.goal, args.trigger) if args.goal else []
    problems = [problem for problem in problems if problem.kind != "encoding"]  # a check says it
    if args.json:
        return say(_rows([*found, *advice], problems))
    return say([*_told(found, len(pictures), args.all), *map(str, problems), *_advice(advice, args), *_length(pictures)])


def _of_pictures(pictures: list[Path], captions: Mapping[Path, CaptionFile], target: Target, args: argparse.Namespace) -> list[Finding]:
    if args.no_pictures:
        return []
    looks: dict[Path, Look] = {}
    progress = Progress("Looking at pictures")
    for path, one in look_at(pictures):
        looks[path] = one
        progress(len(looks), len(pictures))
    twins = groups(looks, args.bits)
    return [*audit(looks, target), *alike(twins, looks), *told_apart(twins, captions)]


def _of_captions(files: list[CaptionFile], captions: Mapping[Path, CaptionFile], args: argparse.Namespace) -> list[Finding]:
    from .sd.tokenizer import Tokenizer  # takes its time

    tokenizer = Tokenizer()
    owners = {file.path: picture for picture, file in captions.items()}
    return list(audit_captions(files, CaptionRules(args.trigger, lambda text: len(tokenizer.encode(text)), pictures=owners)))


class _Parser(argparse.ArgumentParser):
    """A wrong option is a ValueError of one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(f"audit: {message} (`{PROGRAM} --help` explains).")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description="Check the pictures and captions below a folder; nothing is written.", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n" + "\n".join(f"  {PROGRAM} {line}" for line in EXAMPLES),
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="the folder with the pictures; captions are the files beside them")
    parser.add_argument("--goal", choices=list(GOALS), default="", help="what is to be learned: which tags to leave out and which to keep for it")
    parser.add_argument("--trigger", metavar="WORDS", default="", help="the trigger word, which every caption should have first")
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="the resolution to train at (default 512)")
    parser.add_argument("--bits", type=int, default=LIMIT, metavar="N", help=f"bits of 64 by which the hashes of pictures that look alike may differ (default {LIMIT})")
    parser.add_argument("--captions", metavar="ENDINGS", default="txt,caption", help="endings of caption files, in order of preference (default txt,caption)")
    parser.add_argument("--no-pictures", action="store_true", help="check captions alone, which is fast")
    parser.add_argument("--all", action="store_true", help=f"show all findings of a kind, not {SHOWN}")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line: kind, paths, text, mends, amount")
    return parser


# ---- what people read


def _rows(found: Sequence[Finding], problems: Sequence[Problem]) -> list[str]:
    told = [Finding(problem.kind, (problem.path,), str(problem)) for problem in problems]
    return [json.dumps(finding.to_json(), ensure_ascii=False) for finding in (*found, *told)]


def _told(found: Sequence[Finding], pictures: int, everything: bool) -> list[str]:
    """Counts first, then findings of each kind."""
    kinds = counted(found)
    lines = [f"{pictures:,} pictures; " + (f"{len(found):,} findings:" if found else "nothing was found.")]
    lines += [f"  {kind.ljust(20)}{count:,} {'file' if count == 1 else 'files'}" for kind, count in kinds.items()]
    for kind in kinds:
        lines += ["", f"{kind}:", *_some([_with_names(finding) for finding in found if finding.kind == kind], everything)]
    return lines


def _with_names(finding: Finding) -> str:
    """The sentence, and where it speaks of many files their names."""
    names = [path.name for path in finding.paths]
    named = all(name in finding.text for name in names)
    return finding.text if named else f"{finding.text}\n    {', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}"


def _some(texts: Sequence[str], everything: bool) -> list[str]:
    shown = texts if everything else texts[:SHOWN]
    return [f"  {text}" for text in shown] + ([f"  ... and {len(texts) - len(shown)} more (--all shows them)."] if len(texts) > len(shown) else [])


def _advice(advice: Sequence[Finding], args: argparse.Namespace) -> list[str]:
    if not args.goal:
        return []
    lines = ["", f"For the goal {args.goal!r}, as suggestions after a widely followed rule that nobody has proven:"]
    for kind in ADVICE:
        texts = [one.text for one in advice if one.kind == kind]
        lines += [f"{kind}:", *_some(texts, args.all)] if texts else []
    return lines if advice else [*lines, "  nothing to change."]


def _length(pictures: Sequence[Path]) -> list[str]:
    shares = balance(pictures)
    count, batch = steps(len(pictures))
    return ["", *(map(str, shares) if uneven(shares) else ()), f"For {len(pictures):,} pictures a LoRA is usually trained about {count:,} steps of {batch} pictures (a rule of thumb)."]
