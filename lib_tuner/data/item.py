"""One picture of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """One picture and what is known of it; `caption` is the raw text, `size` (w, h) upright, digests are sha256 of the files' bytes."""

    path: Path
    caption: str
    repeats: int = 1
    weight: float = 1.0
    is_class: bool = False
    size: tuple[int, int] = (0, 0)
    digest: str = ""
    mask: Path | None = None
    has_alpha: bool = False
    caption_source: str = "none"  # list, file, folder, filename, parquet, none
    mask_digest: str = ""
    hint: Path | None = None  # one's own hint picture
    hint_digest: str = ""
    row: int = -1  # of a parquet file; -1: the path is the picture itself

    @property
    def name(self) -> str:
        """How the picture is called in messages."""
        return self.path.name if self.row < 0 else f"{self.path.name} row {self.row}"
