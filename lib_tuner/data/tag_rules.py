"""From scores to tags: thresholds, what is left out or always put in, how names are written, and how two taggers agree.

Tags are compared as `tag_edits.key` has them, on both sides: excluding `long hair` excludes `long_hair`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import tag_edits
from .captions import Tags, tags_of
from .tag_edits import key
from .tag_list import CHARACTER, RATING
from .tag_scores import LEAST, ScoreTable

RATINGS = ("none", "tag")
AGREEMENTS = ("any", "all")
Found = list[tuple[str, float]]  # tags as they are written, and their scores

_NEVER = 2.0  # a threshold that no score reaches
USUAL_THRESHOLD = 0.35  # where a model's author published none: what WD14 extensions of the WebUI start with


@dataclass(frozen=True)
class Thresholds:
    """From which score on a tag is a picture's, by category. `source` says who found them; empty: nobody published any.

    Raises ValueError for what lies outside [LEAST, 1].
    """

    general: float = USUAL_THRESHOLD
    character: float = USUAL_THRESHOLD
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("general", "character"):
            value = getattr(self, name)
            if not LEAST <= value <= 1:
                raise ValueError(f"The threshold {value} of {name} tags is outside [{LEAST}, 1]: lower scores are not kept.")


@dataclass(frozen=True)
class Rules:
    """How found tags become a caption's. Raises ValueError.

    `rating`: none, or tag (the likeliest one, last); `most`: the number of tags that a tagger may add, 0 for any; `always` come first;
    `agreement` of several taggers: any of them has the tag, or all have it.
    """

    rating: str = "none"
    most: int = 0
    exclude: Tags = ()
    always: Tags = ()
    spaces: bool = True
    escape: bool = False
    agreement: str = "any"

    def __post_init__(self) -> None:
        for name, choices in (("rating", RATINGS), ("agreement", AGREEMENTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(choices)}.")
        if self.most < 0:
            raise ValueError(f"most: {self.most} is no number of tags; choose 1 or more, or 0 for all.")
        for name in ("exclude", "always"):
            object.__setattr__(self, name, tuple(tag for text in getattr(self, name) for tag in tags_of(text)))


def tagging(tables: Sequence[tuple[ScoreTable, Thresholds]], rules: Rules = Rules()) -> Callable[[str], Tags | None]:
    """A function from a picture's content to its tags, highest score first; None where a tagger has not seen the picture."""
    finders = [_finder(table, thresholds, rules) for table, thresholds in tables]
    excluded, join = {key(tag) for tag in rules.exclude}, _union if rules.agreement == "any" else _intersection
    same = lru_cache(None)(key)

    def tags_of_picture(digest: str) -> Tags | None:
        found = [finder(digest) for finder in finders]
        if any(one is None for one in found):
            return None
        tags = [tag for tag, _ in (found[0] if len(found) == 1 else join(found))]
        rating = _rating(tables[0][0], digest) if rules.rating == "tag" else ""
        names: dict[str, str] = {}
        for tag in (*rules.always, *tags[: rules.most or None], *([rating] if rating and key(rating) not in excluded else [])):
            names.setdefault(same(tag), tag)
        return tuple(names.values())

    return tags_of_picture


def written(name: str, rules: Rules) -> str:
    """A tag of a list as it stands in a caption, where a comma would part it into two."""
    name = " ".join(name.replace(",", " ").split())
    if rules.spaces:
        name = tag_edits.with_spaces(name)
    return tag_edits.escape()((name,))[0] if rules.escape else name


def _finder(table: ScoreTable, thresholds: Thresholds, rules: Rules) -> Callable[[str], Found | None]:
    """One tagger's tags of a picture. What depends on the tag alone is found once for all pictures."""
    names = [written(name, rules) for name in table.tags.names]
    excluded = {"", *(key(tag) for tag in rules.exclude)}
    by_category = {CHARACTER: thresholds.character, RATING: _NEVER}  # ratings compete with each other, not with a threshold
    limits = [_NEVER if key(name) in excluded else by_category.get(category, thresholds.general) for name, category in zip(names, table.tags.categories)]

    def found(digest: str) -> Found | None:
        row = table.rows.get(digest)
        return None if row is None else [(names[place], score) for place, score in zip(*row) if score >= limits[place]]

    return found


def _rating(table: ScoreTable, digest: str) -> str:
    ratings = table.tags.ratings
    return next((table.tags.names[place] for place in table.rows[digest][0] if place in ratings), "")  # rows go down


def _scores(found: Found) -> dict[str, tuple[str, float]]:
    return {key(tag): (tag, score) for tag, score in reversed(found)}  # of two spellings the one with the higher score


def _union(found: Sequence[Found]) -> Found:
    return _ranked([_scores(one) for one in found], lambda where: True)


def _intersection(found: Sequence[Found]) -> Found:
    return _ranked([_scores(one) for one in found], all)


def _ranked(found: Sequence[Mapping[str, tuple[str, float]]], wanted: Callable[[list[bool]], Any]) -> Found:
    """Tags by their highest score among the taggers."""
    keys = dict.fromkeys(name for one in found for name in one)
    best = {name: max((one[name] for one in found if name in one), key=lambda pair: pair[1]) for name in keys if wanted([name in one for one in found])}
    return sorted(best.values(), key=lambda pair: -pair[1])
