"""Scripts: the host's and the extensions'. Each is run as a module of its file's name, which is not among sys.modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from . import errors, extensions, paths_internal, script_callbacks

host_scripts = ""  # the folder of the host's own, set before the start


class Script:
    """One that draws in another way, as the XYZ plot does."""

    def title(self) -> str:
        raise NotImplementedError

    def ui(self, is_img2img: bool) -> list[Any]:
        """Its fields."""
        return []


class ScriptClassData(NamedTuple):
    script_class: type[Script]
    path: str
    basedir: str
    module: ModuleType


scripts_data: list[ScriptClassData] = []
_basedir = paths_internal.script_path


def basedir() -> str:
    """The folder of the extension whose script is loaded just now; the host's at any other time."""
    return _basedir


def load_scripts() -> None:
    """Runs all scripts, and forgets what came from them before. One that fails is reported."""
    script_callbacks.clear_callbacks()
    scripts_data.clear()
    for folder, file in _files():
        with _at_home(folder):
            try:
                module = _run(file)
            except Exception:  # whatever it raises
                errors.report(f"{file} does not load", exc_info=True)
                continue
        classes = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Script))
        scripts_data.extend(ScriptClassData(found, str(file), folder, module) for found in classes if found.__module__ == module.__name__)


def _files() -> Iterator[tuple[str, Path]]:
    """(base folder, file): the host's, then the extensions' by their names."""
    places = [(paths_internal.script_path, Path(host_scripts)), *((known.path, Path(known.path) / "scripts") for known in extensions.extensions)]
    return ((base, file) for base, folder in places for file in sorted(folder.glob("*.py")))


@contextmanager
def _at_home(folder: str) -> Iterator[None]:
    """The folder is on sys.path only for this long, so that a later import out of it fails."""
    global _basedir
    before = _basedir, [*sys.path]
    _basedir = folder
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        _basedir, sys.path[:] = before


def _run(file: Path) -> ModuleType:
    module = ModuleType(file.name)
    module.__file__ = str(file)
    exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), vars(module))
    return module


class ScriptRunner:
    """The scripts that one drawing tab offers."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []

    def set_up(self, is_img2img: bool) -> None:
        """New ones, with their fields as of now."""
        self.scripts = [known.script_class() for known in scripts_data]
        for script in self.scripts:
            script.ui(is_img2img)


scripts_txt2img, scripts_img2img = ScriptRunner(), ScriptRunner()
