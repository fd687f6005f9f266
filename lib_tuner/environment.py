"""The Tuner's own virtual environment: made at the first start, finished where that was interrupted, afterwards only checked by a stamp.

Standard library alone: this runs in whatever Python the user has. What cannot be done is a ValueError of one sentence.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .disk import take_lock
from .progress import Status

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
STAMP, LOG, LOCK = "tuner.json", "tuner-install.log", "tuner.lock"
_ENTERED = "TUNER_ENTERED"  # set for the process that is started inside, so that an environment which is none ends in a sentence, not in a circle


@dataclass(frozen=True)
class Layer:
    """A list of packages: the arguments of one `pip install` after another, where a .txt lies in this folder."""

    name: str
    installs: tuple[tuple[str, ...], ...]


RUN = Layer("run", (("-r", "requirements.txt"), ("--no-deps", "-r", "requirements-alone.txt")))
UI = Layer("ui", (("-r", "requirements-ui.txt"),))
TEST = Layer("test", (("-r", "requirements-test.txt"),))
OLD_GRADIO = Layer("old-gradio", (("-r", "requirements-old-gradio.txt"), ("--no-deps", "-r", "requirements-webui-alone.txt")))
WEBUI = Layer("webui", (("-r", "requirements-webui.txt"), ("--no-deps", "-r", "requirements-webui-alone.txt")))


def folder() -> Path:
    """`.venv` beside the package, or what TUNER_VENV names."""
    return Path(os.environ.get("TUNER_VENV") or ROOT / ".venv").expanduser().absolute()


def webui_folder() -> Path:
    """The environment with the WebUI's versions, beside the other one."""
    return folder().with_name(folder().name + "-webui")


def old_gradio_folder() -> Path:
    """The environment with the WebUI's gradio, beside the other one."""
    return folder().with_name(folder().name + "-old-gradio")


def enter(argv: list[str], venv: Path, layers: tuple[Layer, ...], python: Callable[[], str]) -> None:
    """Makes sure that `venv` holds the layers and starts the program anew inside it; returns only where it already runs there with all of them, or under torchrun.

    A person may have activated the environment, which may lack what this command needs or what has changed since: what is installed there needs a new start,
    since half of the packages may be imported. torchrun's workers are started by the Python of its own environment, all at once: making another under them would be a race.
    """
    entered = os.environ.pop(_ENTERED, None)
    if "LOCAL_RANK" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return
    inside = is_inside(venv)
    if inside and (entered == str(venv) or is_ready(venv, layers)):
        return
    if entered == str(venv):
        raise broken(venv, "its Python does not use it")
    try:
        ensure(venv, layers, python)
    except ValueError as error:
        if not inside:
            raise
        raise ValueError(f"{error} Or use the packages that are in it as they are: --no-venv.") from None  # made by hand, it may have all that is needed, and no network
    _restart(venv, argv)


def is_inside(venv: Path) -> bool:
    """Whether this very process runs in the environment."""
    return venv.exists() and os.path.samefile(sys.prefix, venv)


def is_ready(venv: Path, layers: tuple[Layer, ...]) -> bool:
    """Whether all layers are installed as they are written today."""
    stamp = _stamp(venv)
    return all(stamp.get(layer.name) == fingerprint(layer) for layer in layers)


def broken(venv: Path, why: str) -> ValueError:
    """The sentence for an environment that cannot be used."""
    return ValueError(f"The environment {venv} is broken ({why}): delete that folder and run the same command again.")


def fingerprint(layer: Layer) -> str:
    """A hash of all that decides what a layer installs."""
    import hashlib

    texts = [" ".join(install) + "\n" + (PACKAGE / install[-1]).read_text(encoding="utf-8") for install in layer.installs]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def python_of(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def python310() -> str:
    """A Python 3.10, as the WebUI runs on. Raises NoPython where there is none."""
    found = _found("3.10")
    if not found:
        raise NoPython("There is no Python 3.10 here, which the WebUI's versions need: install it (for example `pyenv install 3.10`) and run this again.")
    return found


def old_gradio_python() -> str:
    """A Python that the WebUI's gradio runs on, this one where it does: of numpy 1.26 and pydantic 1 there is nothing for those after 3.11. Raises NoPython."""
    if sys.version_info < (3, 12):
        return sys.executable
    for version in ("3.11", "3.10"):
        found = _found(version)
        if found and _output([found, "-c", "import venv, ensurepip; print(1)"]):
            return found
    raise NoPython("The page is not tested on the WebUI's gradio, which needs Python 3.11 or 3.10 and there is none here (for example `pyenv install 3.11`).")


class NoPython(ValueError):
    """There is no Python of a version that is needed."""


def _found(version: str) -> str:
    """A Python of that version, such as 3.10; empty where there is none."""
    start = version.replace(".", " ") + " "
    for command in _pythons(version):
        answer = _output([*command, "-c", "import sys; print(*sys.version_info[:2], sys.executable)"])
        if answer.startswith(start):
            return answer[len(start) :].strip()
    return ""


def _pythons(version: str) -> Iterator[list[str]]:
    yield [sys.executable]
    yield [f"python{version}"]  # may be pyenv's stand-in, which fails where that is not the version chosen
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from ([str(path / "bin" / "python")] for path in sorted(versions.glob(f"{version}*"), reverse=True))
    if os.name == "nt":
        yield ["py", f"-{version}"]


def _output(command: list[str], variables: dict[str, str] | None = None) -> str:
    """What a command prints; empty where it fails or is not there."""
    import subprocess

    try:
        return subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def ensure_old_gradio() -> None:
    """The environment with the WebUI's gradio. Raises NoPython where nothing can make it, ValueError."""
    venv = old_gradio_folder()
    python = "" if is_ready(venv, (OLD_GRADIO,)) else old_gradio_python()
    version = _output([str(python_of(venv)), "-c", "import sys; print(*sys.version_info[:2])"]).split() if python else []
    if version and tuple(map(int, version)) >= (3, 12):  # left behind by a Tuner that did not look for another Python
        raise broken(venv, f"it was made with Python {'.'.join(version)}, on which the WebUI's gradio cannot be installed")
    ensure(venv, (OLD_GRADIO,), lambda: python)


# ---- making it


def ensure(venv: Path, layers: tuple[Layer, ...], python: Callable[[], str]) -> None:
    """Makes the environment and installs what its stamp does not have; costs a millisecond where nothing is missing. Raises ValueError."""
    if is_ready(venv, layers):
        if not python_of(venv).exists():
            raise broken(venv, "its Python is gone")
        return
    made_by, status = python(), Status(sys.stderr)
    with _alone(venv, status):
        if not is_ready(venv, layers):  # or another start has made it meanwhile
            _make(venv, layers, made_by, status)


_HELD = (errno.EACCES, errno.EDEADLK) if os.name == "nt" else (errno.EAGAIN, errno.EWOULDBLOCK)  # what a lock that another process has is refused with
_CLOSE = os.name == "nt"  # whether what fills the environment is started without the lock


@contextmanager
def _alone(venv: Path, status: Status) -> Iterator[None]:
    """One start at a time makes the environment: two pips in one folder leave packages that are of neither. The others wait.

    Where there can be no lock, as on some network disks, it is made without.
    """
    file = _lock_file(venv)
    with file or nullcontext():
        told = False
        while file:
            try:
                take_lock(file.fileno())
                if os.name != "nt":  # a pip whose start was killed goes on, and has to hold the lock until it ends
                    os.set_inheritable(file.fileno(), True)
                break
            except OSError as error:
                if error.errno not in _HELD:
                    break
                if not told:
                    status.line(f"Another start of the Tuner is setting up {venv}; waiting until it is done")
                told = True
            time.sleep(0.2)
        yield


def _lock_file(venv: Path) -> IO[bytes] | None:
    """Beside the environment, which need not be there yet; in it where that cannot be, None where neither can. Raises ValueError where nothing can be written."""
    for place in (venv.with_name(f"{venv.name}.lock"), venv / LOCK):
        with suppress(OSError):  # only trying tells: os.access calls every folder of Windows writable, and the file may be another user's
            place.parent.mkdir(parents=True, exist_ok=True)
            return place.open("ab")
    _check_writable(venv)
    return None


def _check_writable(venv: Path) -> None:
    place = next(parent for parent in (venv, *venv.parents) if parent.is_dir())
    probe = place / f".tuner.{os.getpid()}.part"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{place} cannot be written to ({error.strerror}): set TUNER_VENV to a folder for the Tuner's environment.") from None


def _make(venv: Path, layers: tuple[Layer, ...], made_by: str, status: Status) -> None:
    has_pip = _check_place(venv, made_by)
    status.line(f"Setting up {venv} (once; torch is large, this may take some minutes)")
    if not has_pip:
        _create(venv, made_by)
        if not _has_pip(venv):  # half unpacked, it counts as installed and is not mended
            raise broken(venv, "its pip cannot be started")
    for layer in layers:
        if not is_ready(venv, (layer,)):
            if layer.name in _stamp(venv):  # packages change from here on: where that is broken off and the list taken back, what is there is not what the list says
                _write_stamp(venv, {name: made for name, made in _stamp(venv).items() if name != layer.name})
            for install in layer.installs:
                _install(venv, install, status)
            _write_stamp(venv, {**_stamp(venv), layer.name: fingerprint(layer)})
    status.line("Set up.")


def _check_place(venv: Path, python: str) -> bool:
    """Whether there is an environment with pip already, as an interrupted start leaves it. Raises ValueError where none can be made."""
    if not (venv / "pyvenv.cfg").exists() and (venv.is_file() or any(path.is_file() and path.name != LOCK for path in venv.rglob("*"))):
        raise ValueError(f"{venv} is not a virtual environment: move it away, or set TUNER_VENV to another folder.")
    if python_of(venv).is_symlink() and not python_of(venv).exists():
        raise broken(venv, "its Python is gone")
    if _has_pip(venv):
        return True
    _check_writable(venv)
    if not _output([python, "-c", "import venv, ensurepip; print(1)"]):
        raise ValueError("This Python lacks venv or ensurepip: install them (Debian, Ubuntu: `sudo apt install python3-venv`) or use another Python.")
    return False


def _has_pip(venv: Path) -> bool:
    """Whether the environment has a pip that can be started: one that is half unpacked can be imported all the same.

    Asked without the user's settings for pip: where those are wrong the environment is not, and the installation says what pip says of them.
    """
    variables = {name: value for name, value in os.environ.items() if not name.upper().startswith("PIP_")}
    return bool(_output([str(python_of(venv)), "-m", "pip", "--version"], {**variables, "PIP_CONFIG_FILE": os.devnull}))


def _create(venv: Path, python: str) -> None:
    import subprocess

    done = subprocess.run([python, "-m", "venv", str(venv)], close_fds=_CLOSE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise broken(venv, f"making it failed: {(done.stdout.strip().splitlines() or ['no reason given'])[-1]}")


def _install(venv: Path, install: tuple[str, ...], status: Status) -> None:
    import subprocess

    # compiling every file of torch and its company takes longer than unpacking it; Python compiles what is imported when it is
    arguments = ["install", "--no-input", "--disable-pip-version-check", "--no-compile", *install[:-1], str(PACKAGE / install[-1])]
    environment = {**os.environ, "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}  # a user's `user = true` would install past the environment
    with open(venv / LOG, "w", encoding="utf-8") as log:
        try:
            pip = subprocess.Popen([str(python_of(venv)), "-m", "pip", *arguments], env=environment, close_fds=_CLOSE, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        except OSError as error:
            raise broken(venv, str(error)) from None
        with pip:
            for line in pip.stdout or ():
                log.write(line)
                _show(line, status)
    if pip.returncode:
        raise ValueError(f"The packages could not be installed: {_reason(venv)} (details: {venv / LOG}).")


def _show(line: str, status: Status) -> None:
    """One of pip's lines, where it says what is going on."""
    words = line.split()
    if words[:1] in (["Collecting"], ["Downloading"], ["Installing"], ["Using"]):
        status.show(" ".join(words)[:100])


_REASONS = {
    "No space left on device": "the disk is full; make room and run the same command again",
    "Permission denied": "a file cannot be written; check who owns the folder and run the same command again",
    "Retrying (Retry(": "the package index cannot be reached; connect to the network and run the same command again",
    "Read timed out": "the network is too slow or breaks off; run the same command again, it goes on where it stopped",
    "Configuration file could not be loaded": "pip's configuration file is malformed; mend it (the details name it) and run the same command again",
    "No module named pip": "pip is missing in the environment; delete its folder and run the same command again",
    "No matching distribution": "the index has no such package for this Python and system; use Python 3.11 or 3.12 on 64 bits, or check your pip settings",
}


def _reason(venv: Path) -> str:
    """Why pip failed, and what to do."""
    text = (venv / LOG).read_text(encoding="utf-8", errors="replace")
    for sign, reason in _REASONS.items():
        if sign in text:
            return reason
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return f"{(errors or lines or ['pip gave no reason'])[-1]}; run the same command again"


def _stamp(venv: Path) -> dict[str, str]:
    """The fingerprints of the layers that are installed to their end; a damaged stamp counts as none."""
    import json

    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(venv: Path, stamp: dict[str, str]) -> None:
    import json

    temporary = venv / f"{STAMP}.{os.getpid()}.part"
    temporary.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    os.replace(temporary, venv / STAMP)


# ---- going into it


def _restart(venv: Path, argv: list[str]) -> None:
    """Replaces this process by the same command inside the environment; on Windows, where that is impossible, runs it and ends as it ends."""
    command = [str(python_of(venv)), "-m", __package__, *argv]
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    environment = {**os.environ, _ENTERED: str(venv), "PYTHONPATH": path}
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        sys.exit(_run_to_end(command, environment))
    try:
        os.execve(command[0], command, environment)
    except OSError as error:
        raise broken(venv, str(error)) from None


def _run_to_end(command: list[str], environment: dict[str, str]) -> int:
    import subprocess

    child = subprocess.Popen(command, env=environment)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue  # the child got it as well, and decides: it saves and ends
