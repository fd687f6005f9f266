"""The folders of extensions."""

from __future__ import annotations

import os
from dataclasses import dataclass

from . import paths_internal


@dataclass
class Extension:
    name: str
    path: str

    @property
    def canonical_name(self) -> str:
        """Whatever metadata.ini says, it is the folder's name in small letters."""
        return self.name.lower()


extensions: list[Extension] = []


def list_extensions() -> None:
    """Reads the folder anew."""
    entries = sorted(os.scandir(paths_internal.extensions_dir), key=lambda entry: entry.name)
    extensions[:] = [Extension(entry.name, entry.path) for entry in entries if entry.is_dir()]


def find_extension(filename: str) -> Extension | None:
    """Whose file that is. Looks behind links, and therefore finds none for a linked folder's."""
    real = os.path.realpath(filename)
    return next((found for found in extensions if real.startswith(os.path.abspath(found.path) + os.sep)), None)
