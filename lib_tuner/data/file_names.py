"""Files that are meant although their names are written in another way: in other capitals, or with accents as letters of their own, as some disks keep them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def plain(name: str) -> str:
    """The same for all ways to write a name."""
    if name.isascii():  # most are
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Names:
    """What lies in folders; each is listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, list[str]]] = {}

    def like(self, path: Path) -> Path | None:
        """The file or folder of this name, or where there is none the one that is meant, by name or by its folder's; None where none or several may be."""
        if os.path.exists(path):
            return path
        here = next((folder for folder in path.parents if os.path.exists(folder)), None)
        for name in path.relative_to(here).parts if here else ():
            found = self._in(here).get(plain(name), [])
            if name not in found and len(found) != 1:
                return None
            here /= name if name in found else found[0]
        return here

    def called(self, folder: Path, name: str) -> list[str]:
        """All that is called like this name in a folder, what is called just so first."""
        return sorted(self._in(folder).get(plain(name), ()), key=lambda found: found != name)

    def beside(self, path: Path) -> Path | None:
        """What is called like this path in its own folder; None where nothing is, or several."""
        found = self._in(path.parent).get(plain(path.name), [])
        return path.with_name(found[0]) if len(found) == 1 else None

    def _in(self, folder: Path) -> dict[str, list[str]]:
        key = str(folder)
        if key not in self._folders:
            try:
                names = os.listdir(key)
            except (OSError, ValueError):  # nothing is found in it
                names = []
            self._folders[key] = {}
            for name in names:
                self._folders[key].setdefault(plain(name), []).append(name)
        return self._folders[key]
