"""Into which environment a command goes: the Tuner's own, the one it is in already, or that of another Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from test_environment import error, posix, setup, this_python  # noqa: F401 (fixture)

from lib_tuner import cli, environment
from lib_tuner.environment import RUN, TEST


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
