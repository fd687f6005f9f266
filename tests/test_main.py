"""The command line: what it lists, refuses and hands on, how it ends."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_environment import error, posix

import lib_tuner
from lib_tuner import __main__ as program
from lib_tuner import cli, cli_train, environment
from lib_tuner.config import toml_text
from lib_tuner.events import Finished, Started, Warned
from lib_tuner.host import Forecast
from lib_tuner.hosts.standalone import Standalone

# ---- an old Python


def test_an_old_python_gets_one_sentence_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert program.main() == 2
    assert capsys.readouterr().err == "The Tuner needs Python 3.10 or later and this is Python 3.9: start it with a newer one.\n"


def test_what_an_old_python_reads_first_is_written_for_it():
    for name in ("__init__.py", "__main__.py"):
        source = (environment.PACKAGE / name).read_bytes()
        nodes = list(ast.walk(ast.parse(source)))
        assert source.isascii()
        assert not any(isinstance(n, (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Match)) for n in nodes)
        assert not any(n.returns or n.args.kwonlyargs or any(a.annotation for a in n.args.args) for n in nodes if isinstance(n, ast.FunctionDef))
        assert not any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in nodes)


def test_the_version_is_the_one_of_the_project_file():
    text = (environment.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^version = "(.*)"$', text, re.M).group(1) == lib_tuner.__version__


# ---- the commands


def run(*argv: str) -> int:
    return cli.main(["--no-venv", *argv])


def test_help_lists_the_commands_that_exist(capsys):
    assert run("--help") == 0
    assert re.findall(r"^  (\w+) ", capsys.readouterr().out, re.M) == ["ui", "demo", "train", "test", "bench", "tool", "edit", "crop", "tag", "audit", "compare"]
    assert run("--version") == 0 and capsys.readouterr().out == f"lib_tuner {lib_tuner.__version__}\n"


@pytest.mark.parametrize(("argv", "rest"), [([], []), (["--ckpt", "a.safetensors"], ["--ckpt", "a.safetensors"]), (["ui", "--port", "0"], ["--port", "0"])])
def test_without_a_command_the_page_is_served(argv, rest, monkeypatch):
    asked = []
    monkeypatch.setitem(cli.COMMANDS, "ui", (lambda rest, enter: asked.append(rest) or 0, ""))
    assert run(*argv) == 0 and asked == [rest]


def test_other_machines_are_let_in_with_a_login_alone(capsys):
    assert run("ui", "--listen") == 2 and "--auth user:password" in capsys.readouterr().err
    assert run("ui", "--no-browser", "--auth", "nobody") == 2 and "user:password" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run("ui", "--no-browser", "--out", str(tmp_path), "--port", str(taken.getsockname()[1])) == 2
    assert "choose another with --port" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ui", "demo", "test", "bench", "tool", "train"])
def test_every_command_explains_itself_without_an_environment(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TUNER_VENV", str(tmp_path / "none"))
    monkeypatch.setattr(environment, "ensure", lambda *args: pytest.fail("asking for help installed something"))
    try:
        assert cli.main([command, "--help"]) == 0
    except SystemExit as end:  # argparse's own way to end after --help
        assert end.code == 0
    assert f"usage: python3 -m lib_tuner {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", [("tool", "resize"), ("tool", "export-tiny"), ("edit",), ("compare",)])
def test_help_of_a_tool_or_a_folders_command_installs_nothing(command, monkeypatch, capsys, tmp_path):
    """Not on a fresh machine either, which has no torch yet."""
    monkeypatch.setenv("TUNER_VENV", str(tmp_path / "none"))
    monkeypatch.setattr(environment, "ensure", lambda *args: pytest.fail("asking for help installed something"))
    monkeypatch.setattr(cli, "import_module", lambda name, package=None: (_ for _ in ()).throw(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert cli.main([*command, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"usage: python3 -m lib_tuner {' '.join(command)} " in told and "once the Tuner's environment is set up" in told


def test_train_help_lists_every_setting_and_the_chosen_methods_own(capsys):
    from lib_tuner.config import options
    from lib_tuner.methods import METHODS
    from lib_tuner.settings import TrainConfig

    for name, method in METHODS.items():
        assert run("train", "--help", "--method", name) == 0
        text = capsys.readouterr().out
        assert all(f"--{option.key} " in text for option in options(TrainConfig) + options(method.Config, name))


@pytest.mark.parametrize(
    "argv, words",
    [
        (["trian"], ["no command 'trian'", "did you mean train?"]),
        (["tool", "make-randm"], ["no tool 'make-randm'", "did you mean make-random?"]),
        (["train"], ["one settings file", "got none"]),
        (["train", "a.toml", "b.toml"], ["one settings file", "got a.toml b.toml"]),
        (["train", "a.toml", "--steps"], ["--steps lacks its value"]),
        (["train", "a.toml", "--tensorboard", "--steps", "3"], ["--tensorboard lacks its value", "true or false"]),
        (["train", "none.toml"], ["none.toml: cannot be read"]),
        (["train", "--help", "--method", "lroa"], ["method: 'lroa' is not one of", "did you mean lora?"]),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_2(argv, words, capsys):
    assert run(*argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(word in err for word in words), err


def failing(what: BaseException):
    def command(rest, enter):
        raise what

    return {"demo": (command, "")}


@pytest.mark.parametrize(
    "what, code, sentence",
    [
        (ValueError("steps: 0 is outside [1, 2]"), 2, "steps: 0 is outside [1, 2]"),
        (OSError(28, "No space left on device", "out.bin"), 2, "out.bin: No space left on device"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "The package torch is missing"),
        (ImportError("libtorch.so: file too short\nand more", name="torch"), 2, f"A package in {sys.prefix} cannot be loaded (libtorch.so: file too short): "),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_errors_are_a_sentence_and_with_debug_a_traceback(monkeypatch, capsys, what, code, sentence):
    monkeypatch.setattr(cli, "COMMANDS", failing(what))
    assert run("demo") == code
    err = capsys.readouterr().err
    assert err.startswith(sentence) and err.count("\n") == 1
    if code == 2:
        with pytest.raises(type(what)):
            run("demo", "--debug")


def test_leaving_no_venv_out_is_advised_to_those_alone_who_gave_it(monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", failing(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert run("demo") == 2 and "leave --no-venv out" in capsys.readouterr().err
    assert cli.main(["demo"]) == 2 and "--no-venv" not in (told := capsys.readouterr().err) and "delete that environment" in told


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    for what in (RuntimeError("bug"), ModuleNotFoundError("gone", name="lib_tuner.gone"), ImportError("cannot import name", name="lib_tuner.cli")):
        monkeypatch.setattr(cli, "COMMANDS", failing(what))
        with pytest.raises(type(what)):
            run("demo")


def test_flags_are_split_from_the_file_wherever_they_stand():
    assert cli_train.split_flags(["--optim.lr", "-1", "run.toml", "--name=a=b"]) == (["run.toml"], {"optim.lr": "-1", "name": "a=b"})
    assert cli_train.split_flags(["--sample.negative=--x", "--trigger", ""]) == ([], {"sample.negative": "--x", "trigger": ""})


def test_flags_win_over_the_file_and_wrong_ones_are_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('method = "textual_inversion"\nsteps = 5\n[textual_inversion]\nvectors = 2\n')
    cfg, method = cli_train.settings_of(str(path), {"steps": "7", "textual_inversion.vectors": "3"})
    assert (cfg.steps, cfg.settings.vectors, method.kind) == (7, 3, "textual_inversion")
    with error("stepps: there is no such setting; did you mean steps?"):
        cli_train.settings_of(str(path), {"stepps": "7"})
    with error("method: 'textual' is not one of"):
        cli_train.settings_of(str(path), {"method": "textual"})


@pytest.mark.parametrize("reason, code", [("done", 0), ("stopped", 130), ("nan", 1)])
def test_train_ends_with_a_code_that_tells_how_it_ended(monkeypatch, tmp_path, capsys, reason, code):
    import lib_tuner.hosts.standalone
    import lib_tuner.train

    closed = []

    def train(cfg, method, host, stop, rank, world):
        try:
            yield Started(0, cfg.steps, tmp_path)
            yield Finished(1, reason, [])
        finally:
            closed.append(stop())

    monkeypatch.setattr(lib_tuner.train, "train", train)
    path = tmp_path / "run.toml"
    path.write_text('name = "x"\n')
    assert run("train", str(path)) == code
    assert closed == [False] and (tmp_path / "losses.csv").exists() and "at step 1" in capsys.readouterr().err


@posix
@pytest.mark.parametrize(("rank", "more", "warned"), [("0", {}, True), ("1", {}, False), ("0", {"resume": "x"}, False), ("0", {"optim.lr": "1e-4"}, False)])
def test_train_warns_of_what_the_page_warns_of_before_it_starts(monkeypatch, tmp_path, data_folder, capsys, rank, more, warned):
    def train(cfg, method, host, stop, rank, world):
        yield Started(0, cfg.steps, tmp_path)
        yield Finished(1, "done", [])

    monkeypatch.setattr("lib_tuner.train.train", train)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(Standalone, "forecast", lambda self: Forecast("cpu", 1, None, False, False))
    path = tmp_path / "run.toml"
    path.write_text(toml_text({"name": "x", "data.folder": str(data_folder), "optim.lr": "0.5", "sample.every": 1, "sample.prompts": "a thing", **more}))
    assert run("train", str(path)) == 0
    told = capsys.readouterr()
    assert told.out == "" and ("Warning: A learning rate of 0.5 tends to break the picture" in told.err) is warned and told.err.startswith("Warning: ") is warned


def test_train_says_a_warning_once(monkeypatch, tmp_path, data_folder, capsys):
    unused = "The settings for inpainting models are not used: this model is an ordinary one, which is given no masks."

    def train(cfg, method, host, stop, rank, world):
        yield Started(0, cfg.steps, tmp_path)
        yield Warned(unused)
        yield Warned("The disk is nearly full.")
        yield Finished(1, "done", [])

    monkeypatch.setattr("lib_tuner.train.train", train)
    monkeypatch.setattr(Standalone, "forecast", lambda self: Forecast("cpu", 1, None, False, False, inpainting=False))
    path = tmp_path / "run.toml"
    path.write_text(toml_text({"name": "x", "data.folder": str(data_folder), "inpaint.outside": 0.25}))
    assert run("train", str(path)) == 0
    told = capsys.readouterr().err
    assert told.count(unused) == 1 and "The disk is nearly full." in told


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_memory_that_runs_out_is_one_sentence(monkeypatch, tmp_path, capsys, error):
    def train(cfg, method, host, stop, rank, world):
        yield Started(0, cfg.steps, tmp_path)
        raise error

    monkeypatch.setattr("lib_tuner.train.train", train)
    path = tmp_path / "run.toml"
    path.write_text('name = "x"\n')
    assert run("train", str(path)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("There was not enough memory: choose a smaller batch")
    with pytest.raises(OSError, match="not enough memory"):
        run("train", str(path), "--debug")


def test_a_fault_in_a_run_keeps_its_traceback(monkeypatch, tmp_path):
    def train(cfg, method, host, stop, rank, world):
        yield Started(0, cfg.steps, tmp_path)
        raise RuntimeError("a bug")

    monkeypatch.setattr("lib_tuner.train.train", train)
    (tmp_path / "run.toml").write_text('name = "x"\n')
    with pytest.raises(RuntimeError, match="a bug"):
        run("train", str(tmp_path / "run.toml"))


def test_the_first_ctrl_c_asks_to_stop_and_the_handler_is_put_back(capsys):
    before = signal.getsignal(signal.SIGINT)
    with cli_train.stoppable() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() and "Stopping" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@posix
def test_the_second_ctrl_c_ends_the_program_at_once():
    code = "import os, signal\nfrom lib_tuner.cli_train import stoppable\nwith stoppable():\n  [os.kill(os.getpid(), signal.SIGINT) for _ in (1, 2)]\nprint('alive')"
    done = subprocess.run([sys.executable, "-c", code], cwd=environment.ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and "alive" not in done.stdout


def test_tools_exist_where_they_are_said_to_be():
    from importlib import import_module

    for target, text in cli.TOOLS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function)) and text


def test_a_tool_gets_the_arguments_that_follow_its_name(monkeypatch):
    import lib_tuner.tools.make_random as make_random

    given = []
    monkeypatch.setattr(make_random, "main", given.append)
    assert run("tool", "make-random", "x.safetensors", "--force") == 0
    assert given == [["x.safetensors", "--force"]]


def test_the_test_command_hands_its_arguments_to_pytest(monkeypatch):
    given = []
    monkeypatch.setattr(pytest, "main", lambda arguments, plugins: given.append((arguments, plugins)) or 0)
    monkeypatch.setattr(os, "chdir", lambda path: given.append(path))
    assert run("test", "-k", "lora", "-x", "tests/test_config.py") == 0
    assert given == [environment.ROOT, (["-k", "lora", "-x", "tests/test_config.py"], [])]


def test_webui_versions_are_tested_by_the_contract_suite_and_marked_tests(monkeypatch):
    files = [Path(path).name for path in cli.webui_tests()]
    assert "test_methods.py" in files and "test_architecture.py" not in files

    def item(file: str, mark: object) -> SimpleNamespace:
        return SimpleNamespace(path=Path(file), get_closest_marker=lambda name: mark)

    items = [item("test_methods.py", None), item("test_loss.py", "mark"), item("test_loss.py", None)]
    left_out = []
    config = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items)))
    kept = list(items)
    cli.WebUIVersions().pytest_collection_modifyitems(config, kept)
    assert kept == items[:2] and left_out == items[2:]


def test_without_pytest_the_sentence_names_the_list(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytest", None)
    assert run("test") == 2 and "requirements-test.txt" in capsys.readouterr().err
