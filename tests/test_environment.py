"""The environment beside the package: made once, by one start at a time, mended or told where it is broken."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import until

from lib_tuner import environment
from lib_tuner.disk import take_lock
from lib_tuner.environment import OLD_GRADIO, RUN, TEST, UI, WEBUI, Layer
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
            assert not free(file.fileno())
        finally:
            os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
        until(lambda: free(file.fileno()))


def free(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        take_lock(descriptor)
        return True
    return False


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
