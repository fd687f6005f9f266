"""The commands of `python3 -m lib_tuner`. Standard library alone at import: what a command needs is imported once its environment is there."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from . import __version__, environment
from .cli_train import run, settings_of, split_flags, train_help
from .config import meant
from .disk import expanded
from .environment import RUN, TEST, UI, WEBUI, Layer
from .words import first_line

PROGRAM = "python3 -m lib_tuner"
Enter = Callable[..., None]  # enter(layer, ...): from here on the command runs in an environment that holds the layers

TOOLS = {  # name -> (module:function taking the arguments, help)
    "inspect": ("lib_tuner.tools.inspect_file:main", "say what a file is: kind, ranks, training, tags, norms per block (with a picture)"),
    "merge-lora": ("lib_tuner.tools.merge_lora:main", "write LoRAs into a checkpoint"),
    "join-loras": ("lib_tuner.tools.join_loras:main", "merge LoRAs with each other, exactly or to a rank"),
    "scale": ("lib_tuner.tools.scale:main", "make a LoRA, or what a checkpoint learned, weaker or stronger"),
    "extract": ("lib_tuner.tools.extract:main", "extract a LoRA or LoCon from two checkpoints"),
    "resize": ("lib_tuner.tools.resize:main", "bring a LoRA to another rank"),
    "convert": ("lib_tuner.tools.convert:main", "LoRA names (kohya, ldm, diffusers, peft); checkpoint precision, pruning, .ckpt to .safetensors"),
    "merge-checkpoints": ("lib_tuner.tools.merge_checkpoints:main", "weighted sum, or add a difference"),
    "make-random": ("lib_tuner.tools.make_random:main", "write a full-size SD1.5 checkpoint of random weights (2.1 GB)"),
    "export-tiny": ("lib_tuner.tools.export_tiny:main", "write the embedded small model as files that the WebUI loads"),
}


def main(argv: list[str]) -> int:
    """Runs one command; returns the exit code: 2 where something is wrong that one sentence on stderr explains."""
    own = [a for a in argv if a not in ("--debug", "--no-venv")]
    try:
        return _dispatch(own, _enter(argv)) or 0
    except KeyboardInterrupt:
        return _complain("Interrupted; the same command starts again, and goes on with an installation where it stopped.", 130)
    except (ValueError, OSError, ImportError) as error:
        if "--debug" in argv or (isinstance(error, ImportError) and str(error.name).startswith(__package__)):
            raise
        return _complain(_sentence(error, "--no-venv" in argv), 2)


def _dispatch(argv: list[str], enter: Enter) -> int | None:
    bare = not argv or argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")
    name, rest = ("ui", argv) if bare else (argv[0], argv[1:])
    if name == "--version":
        return _say(f"lib_tuner {__version__}")
    if name in ("-h", "--help"):
        return _say(_overview())
    if name not in COMMANDS:
        raise ValueError(f"There is no command {name!r}{meant(name, COMMANDS)} (`{PROGRAM} --help` lists all)")
    return COMMANDS[name][0](rest, enter)


def _enter(argv: list[str]) -> Enter:
    """How a command gets into its environment; with --no-venv it stays where it is."""

    def enter(*layers: Layer, venv: Path | None = None, python: Callable[[], str] = lambda: sys.executable) -> None:
        environment.enter(argv, venv or environment.folder(), layers, python)

    return stay if "--no-venv" in argv else enter


def stay(*layers: Layer, **where: Any) -> None:
    """The command runs where it was started."""


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name.ljust(width)}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([
        f"usage: {PROGRAM} COMMAND [...]\n\nFine-tunes Stable Diffusion 1.5.\n\ncommands:", *lines,
        f"\n`{PROGRAM} COMMAND --help` explains a command. With every command:",
        "  --no-venv  use this Python and its packages instead of an environment made for the Tuner",
        "  --debug    show where in the program an error comes from",
    ])  # fmt: skip


# ---- the commands: (arguments, enter) -> exit code


def demo(rest: list[str], enter: Enter) -> int | None:
    parser = _parser("demo", "Train a LoRA and an embedding of new subjects on the embedded small model, and judge what they learned.")
    parser.add_argument("--json", action="store_true", help="print the report alone, as JSON")
    parser.add_argument("--out", metavar="DIR", default="outputs/demo", help="where files, grid and report are written (default outputs/demo)")
    args = parser.parse_args(rest)
    enter(RUN)
    from .demo.run import main
    from .hosts.standalone import Standalone

    return main(args, Standalone)


def ui(rest: list[str], enter: Enter) -> int | None:
    parser = _parser("ui", "Serve the page: settings, training, samples, queue and history in the browser.")
    parser.add_argument("--ckpt", metavar="FILE", default="", help="the SD1.5 checkpoint that is chosen at first (default: the embedded small model)")
    parser.add_argument("--port", type=int, default=7870, help="default 7870; 0 takes a free one")
    parser.add_argument("--listen", action="store_true", help="answer to other machines too; only together with --auth")
    parser.add_argument("--auth", metavar="USER:PASSWORD", default="", help="ask for user and password")
    parser.add_argument("--out", metavar="DIR", default="outputs", help="where runs, presets and the queue are kept (default outputs)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in the browser")
    args = parser.parse_args(rest)
    if args.listen and not args.auth:
        raise ValueError("--listen lets other machines in, so it needs --auth user:password as well.")
    enter(RUN, UI)
    from .hosts.standalone import Standalone
    from .ui.page import Address, serve
    from .web.auth import parse_login

    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port {args.port}: a port is a number from 0 to 65535.")
    if args.ckpt and not Path(args.ckpt).is_file():
        raise ValueError(f"--ckpt: {args.ckpt} does not exist; give the path of an SD1.5 checkpoint (.safetensors or .ckpt).")
    address = Address("0.0.0.0" if args.listen else "127.0.0.1", args.port, parse_login(args.auth) if args.auth else None)
    return serve(Standalone, expanded(args.out).resolve(), address, args.ckpt, _opener(not args.no_browser))


def _opener(browser: bool) -> Callable[[str], None]:
    """Says where the page is, and opens it there."""

    def opened(url: str) -> None:
        sys.stderr.write(f"The Tuner's page: {url} (Ctrl-C ends it and saves the run that is going)\n")
        if browser and (os.environ.get("DISPLAY") or os.name == "nt" or sys.platform == "darwin"):
            import webbrowser

            threading.Timer(1.0, webbrowser.open, [url]).start()

    return opened


def bench(rest: list[str], enter: Enter) -> int | None:
    if rest and rest[0] in BENCHES:
        return BENCHES[rest[0]](rest[1:], enter)
    parser = _parser("bench", "Measure a training step of ours beside the same step of diffusers + peft, on random full-size weights; `bench methods`: all methods; `bench data`: many captions; `bench compare`: the suggested step.")
    parser.add_argument("--quick", action="store_true", help="256 px only, in about two minutes")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    args = parser.parse_args(rest)
    enter(RUN, TEST)  # the peers are among the tests' packages
    from .bench import main
    from .hosts.standalone import Standalone

    return main(args, Standalone)


def bench_methods(rest: list[str], enter: Enter) -> int | None:
    parser = _parser("bench methods", "Every method: what an update costs beside LoRA's on random full-size weights, and what it learns on the embedded model.")
    parser.add_argument("--report", metavar="FILE", default="", help="the JSON file (default benchmarks/DATE-methods.json); what is in it already is not measured again")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method on the embedded model (default 3, of one to six minutes each); 0: costs alone")
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="this row alone; may be given several times")
    parser.add_argument("--no-costs", action="store_true", help="what is learned alone")
    args = parser.parse_args(rest)
    enter(RUN)
    from .bench_methods import main
    from .hosts.standalone import Standalone

    return main(args, Standalone)


def bench_data(rest: list[str], enter: Enter) -> int:
    parser = _parser("bench data", "What it costs to open, filter, edit and show folders of many pictures with captions.")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="numbers of pictures (default 1000 10000 100000)")
    parser.add_argument("--folder", default="", help="make the pictures below this folder, on the disk to be measured (default: the system's temporary folder)")
    args = parser.parse_args(rest)
    enter(RUN)
    from .bench_data import main

    return main(args)


def bench_compare(rest: list[str], enter: Enter) -> int | None:
    parser = _parser("bench compare", "How often the step that the numbers suggest is about the best one: short runs on the embedded model, whose saves are judged.")
    parser.add_argument("--runs", type=int, default=12, help="how many runs (default 12, of some minutes each): methods, rates and seeds take turns")
    parser.add_argument("--grid", action="store_true", help="measure instead what a grid of 5 x 5 costs over its pictures")
    parser.add_argument("--report", metavar="FILE", default="", help="the JSON file (default benchmarks/DATE-compare.json); runs that are in it already are not made again")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(rest)
    enter(RUN)
    from .bench_compare import main
    from .hosts.standalone import Standalone

    return main(args, Standalone)


BENCHES = {"methods": bench_methods, "data": bench_data, "compare": bench_compare}


def train(rest: list[str], enter: Enter) -> int:
    files, given = split_flags([a for a in rest if a not in ("-h", "--help")])
    if "-h" in rest or "--help" in rest:
        if environment.is_ready(environment.folder(), (RUN,)):  # asking for help alone installs nothing
            enter(RUN)
        parser = _parser("train", "Train by a settings file (TOML). Every setting is a flag too, which wins over the file.", "RUN.toml [--section.key VALUE ...]")
        return _say(train_help(parser, given.get("method")))
    if len(files) != 1:
        raise ValueError(f"`{PROGRAM} train` takes one settings file, and got {' '.join(files) or 'none'}: {PROGRAM} train RUN.toml")
    enter(RUN)
    return run(*settings_of(files[0], given))


def test(rest: list[str], enter: Enter) -> int:
    parser = _parser("test", "Install what the tests need on top, and run them.", "[--webui-versions | --webui DIR] [arguments of pytest]")
    parser.add_argument("--webui-versions", action="store_true", help="the methods' contract suite under the WebUI's Python 3.10 and packages")
    parser.add_argument("--webui", metavar="DIR", default="", help="inside the AUTOMATIC1111 WebUI in that folder, and its page in a browser")
    parser.add_argument("--webui-python", metavar="PYTHON", default="", help="that WebUI's Python, where it has no venv of its own")
    args, rest = parser.parse_known_args(rest)
    if args.webui_versions:
        return _test_webui_versions(rest, enter)
    enter(RUN, UI, TEST)
    if args.webui:
        from . import webui_suite

        return webui_suite.main(Path(args.webui), args.webui_python, rest, lambda arguments: _pytest(arguments, []))
    if enter is not stay:  # the page is tested on the WebUI's gradio too, in a process of another environment
        try:
            environment.ensure_old_gradio()
        except environment.NoPython as lack:
            _complain(str(lack), 0)
    return _pytest(rest or ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"], [])  # all of them: half of the time on two cores, and a third process makes it longer


def _test_webui_versions(rest: list[str], enter: Enter) -> int:
    enter(WEBUI, venv=environment.webui_folder(), python=environment.python310)
    return _pytest([*webui_tests(), *rest], [WebUIVersions()])


def webui_tests() -> list[str]:
    """The test files that hold tests for the WebUI's versions; others may import what does not exist there."""
    files = sorted((environment.ROOT / "tests").glob("test_*.py"))
    return [str(path) for path in files if path.name == "test_methods.py" or "mark.webui_versions" in path.read_text(encoding="utf-8")]


class WebUIVersions:
    """A pytest plugin: keeps the contract suite and the tests marked `webui_versions`."""

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        kept = [item for item in items if item.path.name == "test_methods.py" or item.get_closest_marker("webui_versions")]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _pytest(arguments: list[str], plugins: list[Any]) -> int:
    try:
        import pytest
    except ModuleNotFoundError:
        raise ValueError(f"pytest is not in this Python: install {environment.PACKAGE / 'requirements-test.txt'}, or leave --no-venv out.") from None
    os.chdir(environment.ROOT)
    return int(pytest.main(arguments, plugins))


def tool(rest: list[str], enter: Enter) -> int | None:
    name, rest = (rest or ["--help"])[0], rest[1:]
    if name in ("-h", "--help"):
        parser = _parser("tool", "Tools for model files; `tool NAME --help` explains one.", "NAME [...]")
        parser.epilog = "\n".join(["tools:", *(f"  {known.ljust(19)}{text}" for known, (_, text) in TOOLS.items())])
        return _say(parser.format_help())
    if name not in TOOLS:
        raise ValueError(f"There is no tool {name!r}{meant(name, TOOLS)} (`{PROGRAM} tool --help` lists all)")
    return _called(TOOLS[name][0], rest, enter, _parser(f"tool {name}", f"{TOOLS[name][1]}{_LATER}", "[...]"))


def of_folder(name: str, text: str, file: str = "") -> Callable[[list[str], Enter], int]:
    """A command on a data folder or on runs, whose module has its name or is `file`."""

    return lambda rest, enter: _called(f"{__package__}.{file or name}:main", rest, enter, _parser(name, f"{text}{_LATER}", "FOLDER [...]"))


_LATER = "; all options are listed once the Tuner's environment is set up."


def _called(target: str, rest: list[str], enter: Enter, short: argparse.ArgumentParser) -> int:
    """Calls module:function with the arguments; where help alone is asked for and the packages are not there, that is `short`, and nothing is installed."""
    helps = bool({"-h", "--help"} & set(rest))
    if not helps or environment.is_ready(environment.folder(), (RUN,)):
        enter(RUN)
    module, _, function = target.partition(":")
    try:
        called = getattr(import_module(module), function)
    except ModuleNotFoundError:
        if not helps:  # what was to be done was not done
            raise
        return _say(short.format_help())
    return called(rest)


COMMANDS: dict[str, tuple[Callable[[list[str], Enter], int | None], str]] = {
    "ui": (ui, "serve the page in the browser (what happens without a command)"),
    "demo": (demo, "train on the embedded small model and show what was learned"),
    "train": (train, "train by a settings file"),
    "test": (test, "run the tests"),
    "bench": (bench, "measure our training step beside the peers'"),
    "tool": (tool, "tools for model files"),
    **{name: (of_folder(name, text[0].upper() + text[1:]), text) for name, text in {
        "edit": "edit the captions of a data folder",
        "crop": "crop the pictures of a data folder about their subjects",
        "tag": "tag the pictures of a data folder",
        "audit": "check the pictures and captions of a data folder, and advise on tags",
    }.items()},
    "compare": (of_folder("compare", "Compare the saved steps of runs", "compare_command"), "what numbers say of a run's saved steps"),
}


# ---- what people read


def _parser(command: str, text: str, usage: str = "") -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"{PROGRAM} {command}", description=text, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{PROGRAM} {command} {usage}" if usage else None,
    )  # fmt: skip


def _say(text: str) -> int:
    sys.stdout.write(text.rstrip("\n") + "\n")
    return 0


def _complain(sentence: str, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


_ANEW = "delete that environment if it is the Tuner's own, and run the same command again"


def _sentence(error: Exception, stayed: bool) -> str:
    """What is said of an error; `stayed`: --no-venv was given."""
    if isinstance(error, ModuleNotFoundError):
        advice = "install it there, or leave --no-venv out" if stayed else _ANEW
        return f"The package {error.name} is missing in {sys.prefix}: {advice}."
    if isinstance(error, ImportError):
        advice = "install it anew, or leave --no-venv out" if stayed else _ANEW
        why = first_line(error.__cause__ or error)  # numpy's own first line is a heading of many more
        return f"A package in {sys.prefix} cannot be loaded ({why}): {advice}."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
