"""What files there are to choose from: a host's folders, each with the kind of its files, and what lies in them.

Kinds: checkpoint, lora, embedding, hypernetwork, control (ControlNet, T2I-Adapter), vae, recipe; empty for what nobody knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..sd.files import read_header
from ..sd.kinds import kind_of
from .weights import MODELS

WEIGHTS, RECIPES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin"), (".toml",)
_KINDS = {**dict.fromkeys(MODELS, "checkpoint"), "lora": "lora", "embedding": "embedding", "hypernetwork": "hypernetwork", "controlnet": "control",
          "t2i-adapter": "control", "vae": "vae"}  # fmt: skip


@dataclass(frozen=True)
class Shelf:
    """A folder (or a single file) of a host. `kind`: that of all its files; empty where each one's own header has to say it. `deep`: folders in it too."""

    folder: Path
    kind: str = ""
    deep: bool = True

    def files(self) -> Iterator[Path]:
        """Its files, by name; none where there is no such folder."""
        if self.folder.is_file():
            yield self.folder
            return
        endings = RECIPES if self.kind == "recipe" else WEIGHTS
        found = self.folder.rglob("*") if self.deep else self.folder.glob("*")
        yield from sorted(path for path in found if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file())


@dataclass(frozen=True)
class Known:
    """A file to choose: what it is called in the list, where it is, what it is. A name is given once: a second file of it is called by its path."""

    name: str
    path: str
    kind: str
    bytes: int


def scan(shelves: Iterable[Shelf]) -> list[Known]:
    """All files on the shelves, each once, in their order: a file that is linked into a second folder is the first one's."""
    found: dict[tuple[int, int], tuple[Path, str, int]] = {}
    for shelf in shelves:
        for path in shelf.files():
            try:
                now = path.stat()
            except OSError:  # gone since it was listed
                continue
            kind = shelf.kind or kind_in(path, now.st_mtime_ns)
            found.setdefault((now.st_dev, now.st_ino or hash(path)), (path.absolute(), kind, now.st_size))
    names = Counter(path.name for path, _, _ in found.values())
    return [Known(path.name if names[path.name] == 1 else str(path), str(path), kind, size) for path, kind, size in found.values()]


@lru_cache(maxsize=4096)
def kind_in(path: Path, written: int) -> str:
    """The kind of a .safetensors file by its header, read once for each time at which it was written; empty for what has none or is unknown."""
    try:
        return _KINDS.get(kind_of(read_header(path)[0]), "") if path.suffix.lower() == ".safetensors" else ""
    except (OSError, ValueError):  # a damaged file: the tool says it of the one that is chosen
        return ""
