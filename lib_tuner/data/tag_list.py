"""The tags that a tagger knows, in the order of its scores: the selected_tags.csv beside a WD14 model.

Source: `SmilingWolf/wd-*` on the hub. Header tag_id,name,category,count; category 9 is a rating, 4 a character, 0 all else. A list without ratings
(`tags-selected.csv` of Z3D-E621-Convnext) is one too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

GENERAL, CHARACTER, RATING = 0, 4, 9


@dataclass(frozen=True)
class TagList:
    """Names as the model's author wrote them, and the category of each."""

    names: tuple[str, ...]
    categories: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def ratings(self) -> tuple[int, ...]:
        """Places of the ratings, of which the highest is a picture's."""
        return tuple(i for i, category in enumerate(self.categories) if category == RATING)

    @classmethod
    def of(cls, names: Sequence[str]) -> TagList:
        """A list of general tags."""
        return cls(tuple(names), (GENERAL,) * len(names))


def read_tags(data: bytes, name: str = "selected_tags.csv") -> TagList:
    """The list in a file's bytes. Raises ValueError, with the `name` of the file, for what is no such list."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name} is no list of tags ({error}); download it anew from the model's page.") from None
    head = [column.strip() for column in rows[0]] if rows else []
    if "name" not in head or "category" not in head:
        raise ValueError(f"{name} is no list of tags (its first line has no name and category); download it anew from the model's page.")
    at, kind = head.index("name"), head.index("category")
    rows = [row for row in rows[1:] if row]
    try:
        found = TagList(tuple(row[at] for row in rows), tuple(int(row[kind]) for row in rows))
    except (IndexError, ValueError):
        raise ValueError(f"{name} is no list of tags (a line has no name or no number as its category); download it anew from the model's page.") from None
    if not found.names or not all(found.names):
        raise ValueError(f"{name} is no list of tags (it has none, or one without a name); download it anew from the model's page.")
    return found
