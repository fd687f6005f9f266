"""`tag`: captions for a data folder, by a tagger. What would change is shown first; `edit FOLDER undo` takes back what was written.

Scores are kept in the folder, so that the same command with another threshold needs no model and a stopped one goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import expanded
from .data import tag_models
from .data.edits import Plan, apply
from .data.items import Problem
from .data.journal import Journal
from .data.tag_rules import AGREEMENTS, RATINGS, Rules, Thresholds
from .data.tag_scores import ScoreStore
from .data.tagger import Tagger, open_wd14
from .data.tagging import MODES, plan_tags, score, seen, tagged_folder, to_tag, unscored
from .progress import Status, duration
from .tools.command_line import say

PROGRAM = "python3 -m lib_tuner tag"
DEMO = "demo"
SHOWN = 5  # changes and problems
EXAMPLES = ("my-cat --model wd-swinv2-tagger-v3", 'my-cat --model wd-swinv2-tagger-v3 --threshold 0.4 --exclude "solo, text focus" --always zwx --apply',
            "my-cat --model wd-vit-tagger-v3 --model wd-eva02-large-tagger-v3 --agreement all --mode merge --apply", "my-cat --model ~/models/model.onnx")  # fmt: skip


@dataclass(frozen=True)
class _Model:
    """A tagger that is loaded only where a picture has no scores of it yet."""

    name: str
    thresholds: Thresholds
    load: Callable[[], Tagger]
    said: str


def main(rest: Sequence[str]) -> int:
    """Runs the command; returns the exit code. Raises ValueError or OSError with one sentence."""
    args = _parser().parse_args(rest)
    rules = Rules(args.rating, args.most, (args.exclude,), (args.always,), not args.underscores, args.escape, args.agreement)
    folder = tagged_folder(args.folder, args.captions)
    paths, status = to_tag(folder, args.mode), Status(sys.stderr)
    problems: list[Problem] = list(folder.problems)
    models = [_model(name, args, status) for name in dict.fromkeys(args.model)]
    with closing(ScoreStore(args.folder)) as store:
        for model in models:
            problems += _score(paths, model, store, status)
        scores = seen(paths, store, [model.name for model in models] if paths else [])
    planned = plan_tags(folder, scores, [(model.name, model.thresholds) for model in models], rules, args.mode)
    lines = [*(model.said for model in models), *_shown(planned), *_told([*problems, *_news(planned, problems)])]
    if not args.apply:
        return say([*lines, "No caption was written: --apply does it."] if planned.changes else lines)
    with closing(Journal(args.folder)) as journal:
        apply(planned, journal)
        undo = [f"Written; `python3 -m lib_tuner edit {args.folder} undo` takes it back."] if planned.changes else []
        return say([*map(str, journal.interrupted), *lines, *undo])


def _model(name: str, args: argparse.Namespace, status: Status) -> _Model:
    """A tagger by the name of --model, with the thresholds that were given."""
    if name == DEMO:
        from .demo.tagger import DemoTagger

        demo = DemoTagger()
        thresholds = _thresholds(demo.thresholds, args)
        return _Model(demo.name, thresholds, lambda: demo, f"{demo.name}: it knows the pictures that the embedded model draws, and no others; {_of(thresholds)}.")
    folder = expanded(args.models) if args.models else tag_models.default_folder()
    files = tag_models.find(name, folder, lambda file, done, total: status.show(_fetched(name, file, done, total)))
    status.clear()
    thresholds = _thresholds(files.thresholds, args)
    checked = f"sha256 {files.sha256}, as first downloaded" if files.sha256 else "a file of your own"
    return _Model(files.tagger, thresholds, lambda: open_wd14(files, args.cpu), f"{name}: {files.model} ({checked}); {_of(thresholds)}.")


def _score(paths: Sequence[Path], model: _Model, store: ScoreStore, status: Status) -> list[Problem]:
    """Scores what has no scores yet, and shows how far that is."""
    if not unscored(paths, model.name, store):
        return []
    tagger, problems = model.load(), []
    status.line(f"{tagger.name} on {tagger.device}")
    for at in score(paths, tagger, store):
        problems += at.problems
        status.show(f"Tagging {at.done}/{at.total}" + ("" if at.left is None else f"  {duration(at.left)} left"))
    status.clear()
    return problems


def _thresholds(default: Thresholds, args: argparse.Namespace) -> Thresholds:
    """Those that were given; a general one that is given is that of characters too, as the published ones are."""
    if args.threshold is None and args.character_threshold is None:
        return default
    general = default.general if args.threshold is None else args.threshold
    character = args.character_threshold if args.character_threshold is not None else default.character if args.threshold is None else args.threshold
    return Thresholds(general, character, "given")


# ---- the command line


class _Parser(argparse.ArgumentParser):
    """A wrong option is a ValueError of one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(f"tag: {message} (`{PROGRAM} --help` explains).")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, usage=f"{PROGRAM} FOLDER --model NAME [...]", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                     description="Tag all pictures below a folder; without --apply what would change is shown and no caption written.")  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="the folder with the pictures; captions are the .txt or .caption files beside them")
    parser.add_argument("--model", metavar="NAME", required=True, action="append", help="a model below, an .onnx file, the folder of one, or demo; twice or more for several")
    parser.add_argument("--agreement", choices=AGREEMENTS, default="any", help="of several models: tags that any has found, or all (default any)")
    parser.add_argument("--mode", choices=MODES, default="skip", help="what happens to captions that are there: skip leaves them (default), merge adds missing tags "
                        "last, prepend and append put the found tags before or behind the rest, replace puts them in its place")  # fmt: skip
    parser.add_argument("--threshold", type=float, metavar="P", help="from which probability on a tag is taken (default: the model's, see below)")
    parser.add_argument("--character-threshold", type=float, metavar="P", help="the same for names of characters (default: as --threshold)")
    parser.add_argument("--rating", choices=RATINGS, default="none", help="tag puts the likeliest rating last (default none)")
    parser.add_argument("--most", type=int, default=0, metavar="N", help="take the N likeliest tags at most (default 0: all)")
    parser.add_argument("--exclude", default="", metavar="TAGS", help="tags that are never written, between commas; long hair is long_hair too")
    parser.add_argument("--always", default="", metavar="TAGS", help="tags that each tagged picture gets first, between commas")
    parser.add_argument("--underscores", action="store_true", help="leave underscores where the model has them, for blanks")
    parser.add_argument("--escape", action="store_true", help="a backslash before parentheses, as the WebUI's prompts want it")
    parser.add_argument("--captions", metavar="ENDINGS", default="txt,caption", help="endings of caption files, in order of preference (default txt,caption)")
    parser.add_argument("--models", metavar="DIR", default="", help=f"where fetched models are kept (default {str(tag_models.default_folder()).replace('%', '%%')})")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU even where there is a GPU")
    parser.add_argument("--apply", action="store_true", help="write the captions; without it they are shown")
    parser.epilog = "\n".join([
        "models, and their thresholds:", *(f"  {name.ljust(30)}{_of(thresholds)}" for name, thresholds in tag_models.MODELS.items()),
        f"  {DEMO.ljust(30)}the embedded model's own drawings; nothing is downloaded\n\nexamples:", *(f"  {PROGRAM} {line}" for line in EXAMPLES),
    ])  # fmt: skip
    return parser


# ---- what people read


def _of(thresholds: Thresholds) -> str:
    numbers = f"{thresholds.general:g}" + (f", characters {thresholds.character:g}" if thresholds.character != thresholds.general else "")
    return f"threshold {numbers} ({thresholds.source or 'none is published: the usual one'})"


def _fetched(name: str, file: str, done: int, total: int) -> str:
    return f"Fetching {name}/{file}: {done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f}" if total else "")


def _shown(planned: Plan) -> list[str]:
    return [f"{planned}."] + [line for path, before, after in planned.samples(SHOWN) for line in (f"  {path.name}", f"    - {before.strip()}", f"    + {after.strip()}")]


def _news(planned: Plan, told: list[Problem]) -> list[Problem]:
    """What the plan says of files of which nothing was said yet."""
    known = {problem.path for problem in told}
    return [problem for problem in planned.problems if problem.path not in known]


def _told(problems: list[Problem]) -> list[str]:
    more = [f"... and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else []
    return [*map(str, problems[:SHOWN]), *more]
