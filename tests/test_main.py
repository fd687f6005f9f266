"""The program's start: old Pythons, the environment that makes itself, the commands, and one sentence for everything that goes wrong."""

from __future__ import annotations

import ast
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import lib_tuner
from lib_tuner import __main__ as program
from lib_tuner import cli, cli_train, environment
from lib_tuner.config import toml_text
from lib_tuner.disk import take_lock
from lib_tuner.environment import OLD_GRADIO, RUN, TEST, UI, WEBUI, Layer
from lib_tuner.events import Finished, Started, Warned
from lib_tuner.host import Forecast
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.progress import Status

posix = pytest.mark.skipif(os.name == "nt", reason="uses a shell script or POSIX signals")


def this_python() -> str:
    return sys.executable


@contextmanager
def error(*words: str):
    """One sentence, on one line, with these words."""
    with pytest.raises(ValueError) as caught:
        yield
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), str(caught.value)


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


# ---- the environment


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """An environment folder whose making and installing are recorded instead of done."""
    done = SimpleNamespace(venv=tmp_path / "place" / ".venv", calls=[], fail=None)

    def create(venv: Path, python: str) -> None:
        done.calls.append("create")
        environment.python_of(venv).parent.mkdir(parents=True)
        environment.python_of(venv).write_text("")
        (venv / "pyvenv.cfg").write_text("")

    def install(venv: Path, arguments: tuple, status: object) -> None:
        done.calls.append(arguments[-1])
        if done.fail and arguments[-1] == done.fail:
            raise KeyboardInterrupt

    def output(command: list[str], variables: object = None) -> str:
        return "1\n" if Path(command[0]).exists() else ""

    monkeypatch.setattr(environment, "_create", create)
    monkeypatch.setattr(environment, "_install", install)
    monkeypatch.setattr(environment, "_output", output)
    return done


def test_the_first_start_makes_the_environment_and_later_ones_do_nothing(setup):
    environment.ensure(setup.venv, (RUN,), this_python)
    assert setup.calls == ["create", "requirements.txt", "requirements-alone.txt"]
    environment.ensure(setup.venv, (RUN,), this_python)
    assert len(setup.calls) == 3


def test_the_tests_packages_come_on_top_of_what_is_there(setup):
    environment.ensure(setup.venv, (RUN,), this_python)
    environment.ensure(setup.venv, (RUN, TEST), this_python)
    environment.ensure(setup.venv, (RUN, TEST), this_python)
    assert setup.calls[3:] == ["requirements-test.txt"]


def test_an_interrupted_installation_is_resumed(setup):
    setup.fail = "requirements-alone.txt"
    with pytest.raises(KeyboardInterrupt):
        environment.ensure(setup.venv, (RUN,), this_python)
    assert not environment.is_ready(setup.venv, (RUN,))
    setup.fail = None
    environment.ensure(setup.venv, (RUN,), this_python)
    assert setup.calls == ["create", "requirements.txt", "requirements-alone.txt", "requirements.txt", "requirements-alone.txt"]
    assert environment.is_ready(setup.venv, (RUN,))


def test_another_list_of_packages_is_installed_at_the_next_start(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    (tmp_path / "list.txt").write_text("a==1\n")
    layer = Layer("run", (("-r", "list.txt"),))
    environment.ensure(setup.venv, (layer,), this_python)
    (tmp_path / "list.txt").write_text("a==2\n")
    environment.ensure(setup.venv, (layer,), this_python)
    assert setup.calls == ["create", "list.txt", "list.txt"]


@pytest.fixture
def unwritable(monkeypatch):
    """Folders in which no file can be made, and files of other users; as on Windows, os.access does not know."""
    places: set[Path] = set()

    def check(path: Path) -> None:
        if {path, path.parent} & places:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for name in ("open", "touch"):
        of_path = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda path, *given, of_path=of_path, **more: check(path) or of_path(path, *given, **more))
    return places


@posix
@pytest.mark.parametrize("beside", [True, False])
def test_a_second_start_waits_for_the_first_and_installs_nothing_again(setup, monkeypatch, capsys, unwritable, beside):
    """Also where only the environment's own folder may be written to."""
    setup.venv.mkdir(parents=True)
    if not beside:
        unwritable.add(setup.venv.parent)
    install, second = environment._install, threading.Thread(target=environment.ensure, args=(setup.venv, (RUN,), this_python))

    def slow(*given) -> None:
        if second.ident is None:
            second.start()
            second.join(0.5)
            assert second.is_alive()
        install(*given)

    monkeypatch.setattr(environment, "_install", slow)
    environment.ensure(setup.venv, (RUN,), this_python)
    second.join(10)
    assert not second.is_alive() and setup.calls == ["create", "requirements.txt", "requirements-alone.txt"]
    assert capsys.readouterr().err.count("Another start of the Tuner is setting up") == 1
    assert setup.venv.with_name(".venv.lock").exists() is beside and (setup.venv / environment.LOCK).exists() is not beside


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.EINVAL, errno.EBADF])
def test_where_there_are_no_locks_it_is_done_without(setup, monkeypatch, capsys, number):
    monkeypatch.setattr(environment, "take_lock", lambda descriptor: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: pytest.fail("waits for ever"))
    environment.ensure(setup.venv, (RUN,), this_python)
    assert environment.is_ready(setup.venv, (RUN,)) and "Another start" not in capsys.readouterr().err


@pytest.mark.parametrize("number", environment._HELD)
def test_a_lock_that_another_start_has_is_waited_for(setup, monkeypatch, capsys, number):
    answers = [OSError(number, "held"), OSError(number, "held")]

    def take_lock(descriptor: int) -> None:
        if answers:
            raise answers.pop()

    monkeypatch.setattr(environment, "take_lock", take_lock)
    monkeypatch.setattr(environment.time, "sleep", lambda seconds: None)
    environment.ensure(setup.venv, (RUN,), this_python)
    assert not answers and capsys.readouterr().err.count("Another start of the Tuner is setting up") == 1


@posix
@pytest.mark.parametrize("step", ["_install(venv, ('-r', 'requirements.txt'), status)", "_create(venv, str(environment.python_of(venv)))"])
def test_what_a_killed_start_leaves_running_holds_the_lock_until_it_ends(tmp_path, step):
    venv = tmp_path / ".venv"
    fake_python(venv, f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/child; exec sleep 60")
    code = f"from pathlib import Path\nfrom lib_tuner import environment\nvenv, status = Path({str(venv)!r}), None\nwith environment._alone(venv, status):\n  environment.{step}"
    start = subprocess.Popen([sys.executable, "-c", code], cwd=environment.ROOT)
    until((tmp_path / "child").exists)
    start.kill()
    start.wait()
    with (tmp_path / ".venv.lock").open("ab") as file:
        try:
            with pytest.raises(BlockingIOError):
                take_lock(file.fileno())
        finally:
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
        until(lambda: not take_lock(file.fileno()))


def until(done: Callable[[], bool]) -> None:
    """Waits for it, ten seconds at most; one that cannot be asked yet is not."""
    for _ in range(200):
        with suppress(BlockingIOError):
            if done():
                return
        time.sleep(0.05)
    pytest.fail("it did not come")


def test_lock_files_of_another_user_do_not_stop_a_start(setup, unwritable):
    unwritable.update((setup.venv.with_name(".venv.lock"), setup.venv / environment.LOCK))
    environment.ensure(setup.venv, (RUN,), this_python)
    assert environment.is_ready(setup.venv, (RUN,))


def test_an_interrupted_upgrade_that_is_taken_back_is_installed_again(setup, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    layers = Layer("run", (("-r", "list.txt"),)), Layer("ui", (("-r", "other.txt"),))
    (tmp_path / "list.txt").write_text("a==1\n")
    (tmp_path / "other.txt").write_text("b==1\n")
    environment.ensure(setup.venv, layers, this_python)
    (tmp_path / "list.txt").write_text("a==2\n")
    setup.fail = "list.txt"
    with pytest.raises(KeyboardInterrupt):
        environment.ensure(setup.venv, layers, this_python)
    (tmp_path / "list.txt").write_text("a==1\n")
    assert not environment.is_ready(setup.venv, layers[:1]) and environment.is_ready(setup.venv, layers[1:])


@pytest.mark.parametrize("stamp", ["", "[]", "{", '{"run": 3}'])
def test_a_damaged_stamp_counts_as_none(setup, stamp):
    environment.ensure(setup.venv, (RUN,), this_python)
    (setup.venv / environment.STAMP).write_text(stamp)
    assert not environment.is_ready(setup.venv, (RUN,))


def test_a_folder_that_is_something_else_is_left_alone(setup):
    setup.venv.mkdir(parents=True)
    (setup.venv / "thesis.txt").write_text("x")
    with error(str(setup.venv), "is not a virtual environment", "TUNER_VENV"):
        environment.ensure(setup.venv, (RUN,), this_python)
    assert setup.calls == []


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_cannot_be_written_names_the_way_out(setup, unwritable, monkeypatch, there):
    setup.venv.mkdir(parents=True)
    unwritable.update((setup.venv, setup.venv.parent))
    if not there:
        setup.venv.rmdir()
        monkeypatch.setattr(Path, "mkdir", lambda path, **given: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")))
    with error(str(setup.venv if there else setup.venv.parent), "cannot be written to (Permission denied)", "TUNER_VENV"):
        environment.ensure(setup.venv, (RUN,), this_python)


def test_a_python_without_venv_says_what_to_install(setup, monkeypatch):
    monkeypatch.setattr(environment, "_output", lambda *command: "")
    with error("lacks venv or ensurepip", "python3-venv"):
        environment.ensure(setup.venv, (RUN,), this_python)


def test_an_environment_whose_python_is_gone_is_told_apart(setup):
    environment.ensure(setup.venv, (RUN,), this_python)
    environment.python_of(setup.venv).unlink()
    with error("is broken", "delete that folder"):
        environment.ensure(setup.venv, (RUN,), this_python)


@posix
def test_an_unfinished_environment_whose_python_is_gone_is_told_apart_too(setup, capsys):
    environment._create(setup.venv, sys.executable)
    environment.python_of(setup.venv).unlink()
    environment.python_of(setup.venv).symlink_to("gone")
    with error("is broken", "delete that folder"):
        environment.ensure(setup.venv, (RUN,), this_python)
    assert setup.calls == ["create"] and capsys.readouterr().err == ""


def fake_python(venv: Path, script: str) -> None:
    path = environment.python_of(venv)
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@posix
@pytest.mark.parametrize("mended", [True, False])
def test_a_pip_that_is_half_unpacked_is_made_anew_or_told(tmp_path, monkeypatch, mended):
    """Python's venv takes it for installed where its list of files is there already."""
    venv, calls = tmp_path / ".venv", []
    (venv / "site" / "pip").mkdir(parents=True)
    (venv / "site" / "pip" / "__init__.py").write_text("__version__ = '1'")
    (venv / "pyvenv.cfg").touch()
    fake_python(venv, f'PYTHONPATH={venv}/site exec {sys.executable} -S "$@"')

    def create(venv: Path, python: str) -> None:
        calls.append("create")
        (venv / "site" / "pip" / "__main__.py").write_text("print('pip 1')" if mended else "")

    monkeypatch.setattr(environment, "_create", create)
    monkeypatch.setattr(environment, "_install", lambda venv, install, status: calls.append(install[-1]))
    if mended:
        environment.ensure(venv, (TEST,), this_python)
        assert calls == ["create", "requirements-test.txt"]
    else:
        with error("is broken", "its pip cannot be started", "delete that folder"):
            environment.ensure(venv, (TEST,), this_python)
        assert calls == ["create"]


@posix
@pytest.mark.parametrize("name, value, words", [("PIP_TIMEOUT", "abc", ["timeout", "'abc'"]), ("PIP_CONFIG_FILE", "no settings", ["pip's configuration file is malformed"])])
def test_wrong_settings_of_pip_are_what_is_said_and_not_a_broken_environment(tmp_path, monkeypatch, name, value, words):
    """With this Python's own pip."""
    venv = tmp_path / ".venv"
    fake_python(venv, f'exec {sys.executable} "$@"')
    (venv / "pyvenv.cfg").touch()
    if name == "PIP_CONFIG_FILE":
        (tmp_path / "pip.ini").write_text(value)
    monkeypatch.setenv(name, str(tmp_path / "pip.ini") if name == "PIP_CONFIG_FILE" else value)
    monkeypatch.setattr(environment, "_create", lambda venv, python: pytest.fail("the environment was taken for one without pip"))
    with error("could not be installed", *words):
        environment.ensure(venv, (TEST,), this_python)


@posix
@pytest.mark.parametrize(
    "output, words",
    [
        ("WARNING: Retrying (Retry(total=4)) after ...\nERROR: No matching distribution found for torch", ["cannot be reached", "network"]),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ["disk is full"]),
        ("ERROR: No matching distribution found for torch==2.13.0", ["Python 3.11 or 3.12"]),
        ("something\nERROR: a new kind of failure", ["ERROR: a new kind of failure", "run the same command again"]),
        ("", ["pip gave no reason"]),
    ],
)
def test_a_failed_installation_says_why_and_where_the_details_are(tmp_path, capsys, output, words):
    fake_python(tmp_path, f"echo '{output}'; exit 1")
    with error("could not be installed", environment.LOG, *words):
        environment._install(tmp_path, ("-r", "requirements.txt"), Status(sys.stderr))


@posix
def test_pip_is_called_with_the_list_and_its_options(tmp_path):
    fake_python(tmp_path, f'echo "$@ $PIP_USER" > {tmp_path}/called')
    environment._install(tmp_path, ("--no-deps", "-r", "requirements-alone.txt"), Status(sys.stderr))
    called = (tmp_path / "called").read_text().split()
    assert called[:3] == ["-m", "pip", "install"] and called[-4:] == ["--no-deps", "-r", str(environment.PACKAGE / "requirements-alone.txt"), "0"]


@posix
def test_an_environment_that_cannot_be_made_gives_the_last_line_of_the_reason(tmp_path):
    fake_python(tmp_path / "bad", "echo first; echo 'Error: no ensurepip'; exit 1")
    with error("is broken", "Error: no ensurepip", "delete"):
        environment._create(tmp_path / "venv", str(environment.python_of(tmp_path / "bad")))


def pins(install: tuple[str, ...]) -> list[str]:
    """The lines of a list of packages that name one."""
    lines = (environment.PACKAGE / install[-1]).read_text(encoding="utf-8").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


def test_every_layer_pins_every_package_exactly():
    for install in (*RUN.installs, *UI.installs, *TEST.installs, *WEBUI.installs):
        packages = pins(install)
        assert packages and all(re.match(r"[A-Za-z0-9_-]+==[0-9.]+(; python_version [<>]=? \"3\.11\")?$", p) for p in packages), install


def test_every_package_without_a_marker_runs_on_python_310_too():
    """As what is installed here says of itself; another version than the list's says nothing of the list's."""
    specifiers = pytest.importorskip("packaging.specifiers")
    plain = [pin.partition("==") for layer in (RUN, UI, TEST, OLD_GRADIO, WEBUI) for install in layer.installs for pin in pins(install) if ";" not in pin]
    asks = {name: metadata.metadata(name)["Requires-Python"] for name, _, version in plain if version in [d.version for d in metadata.distributions(name=name)]}
    assert not [f"{name} asks for Python {asked}" for name, asked in asks.items() if asked and "3.10.0" not in specifiers.SpecifierSet(asked)]


def test_the_environment_lies_beside_the_package_or_where_tuner_venv_says(monkeypatch, tmp_path):
    monkeypatch.delenv("TUNER_VENV", raising=False)
    assert environment.folder() == environment.PACKAGE.parent / ".venv"
    assert environment.webui_folder() == environment.PACKAGE.parent / ".venv-webui"
    monkeypatch.setenv("TUNER_VENV", str(tmp_path / "mine"))
    assert environment.folder() == tmp_path / "mine" and environment.webui_folder() == tmp_path / "mine-webui"


@pytest.fixture
def outside(monkeypatch):
    """No sign of torchrun or of a start inside an environment; what would be ensured and started is recorded."""
    calls = []
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", environment._ENTERED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(environment, "ensure", lambda *args: calls.append("ensure"))
    monkeypatch.setattr(os, "execve", lambda file, command, env: calls.append((file, command, env)))
    return calls


@posix
def test_the_same_command_is_started_anew_inside(outside, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    environment.enter(["demo", "--json"], tmp_path / ".venv", (RUN,), this_python)
    python = str(tmp_path / ".venv" / "bin" / "python")
    ensured, (file, command, env) = outside
    assert ensured == "ensure" and file == python and command == [python, "-m", "lib_tuner", "demo", "--json"]
    assert env["PYTHONPATH"] == f"{environment.ROOT}{os.pathsep}elsewhere"


def test_inside_the_environment_or_under_torchrun_nothing_is_made(outside, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "is_ready", lambda venv, layers: venv == Path(sys.prefix) and layers == (RUN,))
    environment.enter([], Path(sys.prefix), (RUN,), this_python)
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "0")
        environment.enter([], tmp_path, (RUN,), this_python)
        monkeypatch.delenv(name)
    assert outside == []


@posix
def test_in_an_activated_environment_what_is_missing_is_installed_once(outside, monkeypatch):
    monkeypatch.setattr(environment, "is_ready", lambda venv, layers: False)
    environment.enter(["test"], Path(sys.prefix), (RUN, TEST), this_python)
    ensured, (_, command, env) = outside
    assert ensured == "ensure" and command[1:] == ["-m", "lib_tuner", "test"]
    monkeypatch.setenv(environment._ENTERED, env[environment._ENTERED])
    environment.enter(["test"], Path(sys.prefix), (RUN, TEST), this_python)
    assert len(outside) == 2


def test_where_an_activated_environment_cannot_be_finished_the_way_to_use_it_as_it_is_is_named(outside, tmp_path, monkeypatch):
    """One that was made by hand on a machine without a network, for one."""

    def fail(*args) -> None:
        raise ValueError("The package index cannot be reached.")

    monkeypatch.setattr(environment, "is_ready", lambda venv, layers: False)
    monkeypatch.setattr(environment, "ensure", fail)
    with error("cannot be reached. Or use the packages that are in it as they are: --no-venv."):
        environment.enter(["demo"], Path(sys.prefix), (RUN,), this_python)
    with pytest.raises(ValueError, match="cannot be reached.$"):
        environment.enter(["demo"], tmp_path, (RUN,), this_python)


def test_an_environment_that_does_not_take_effect_ends_in_a_sentence_and_not_in_a_circle(outside, tmp_path, monkeypatch):
    monkeypatch.setenv(environment._ENTERED, str(tmp_path))
    with error("is broken", "delete that folder"):
        environment.enter([], tmp_path, (RUN,), this_python)
    assert environment._ENTERED not in os.environ


def test_a_python_310_is_recognised_by_what_it_says(monkeypatch):
    answers = {sys.executable: "3 11 /usr/bin/python3.11\n", "python3.10": "3 10 /opt/my python/python3.10\n"}
    monkeypatch.setattr(environment, "_output", lambda command: answers.get(command[0], ""))
    assert environment.python310() == "/opt/my python/python3.10"
    answers.pop("python3.10")
    with error("no Python 3.10", "install it"):
        environment.python310()


def test_the_webuis_gradio_gets_a_python_that_it_runs_on(setup, monkeypatch):
    answers = {"python3.11": "3 11 /opt/python3.11\n", "/opt/python3.11": "1\n"}
    monkeypatch.setattr(environment, "_output", lambda command: answers.get(command[0], ""))
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    assert environment.old_gradio_python() == sys.executable
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert environment.old_gradio_python() == "/opt/python3.11"
    answers["/opt/python3.11"] = ""  # without ensurepip
    with error("not tested on the WebUI's gradio", "3.11 or 3.10"):
        environment.old_gradio_python()


def test_an_old_gradio_environment_of_a_python_that_is_too_new_is_told(setup, monkeypatch):
    monkeypatch.setattr(environment, "old_gradio_folder", lambda: setup.venv)
    monkeypatch.setattr(environment, "old_gradio_python", this_python)
    version = ["3 13\n"]
    monkeypatch.setattr(environment, "_output", lambda command, *variables: version[0] if Path(command[0]).exists() else "")
    environment._create(setup.venv, sys.executable)
    with error("is broken", "Python 3.13", "delete that folder"):
        environment.ensure_old_gradio()
    version[0] = "3 11\n"
    environment.ensure_old_gradio()
    assert setup.calls == ["create", "requirements-old-gradio.txt", "requirements-webui-alone.txt"]


def test_without_such_a_python_the_other_tests_are_run_all_the_same(monkeypatch, capsys):
    def lack() -> None:
        raise environment.NoPython("There is none.")

    given = []
    monkeypatch.setattr(environment, "enter", lambda *args: None)
    monkeypatch.setattr(environment, "ensure_old_gradio", lack)
    monkeypatch.setattr(pytest, "main", lambda arguments, plugins: given.append(arguments) or 0)
    monkeypatch.setattr(os, "chdir", lambda path: None)
    assert cli.main(["test", "tests/test_config.py"]) == 0 and given == [["tests/test_config.py"]]
    assert capsys.readouterr().err == "There is none.\n"


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
