"""From scores to tags: thresholds, what is left out or always put in, how names are written, and how two taggers agree.

Tags are compared as `tag_edits.key` has them, on both sides: excluding `long hair` excludes `long_hair`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import neg

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
    spelling: dict[str, str] = {}  # tags that are the same are spelled in one way, so that pictures' tags are compared as plain text

    def spelled(tag: str) -> str:
        return spelling.setdefault(key(tag), tag)

    always = tuple(map(spelled, rules.always))
    finders = [_finder(table, thresholds, rules, spelled) for table, thresholds in tables]
    join = _first if len(tables) == 1 else _any if rules.agreement == "any" else _all
    rating = _rater(tables[0][0], rules, spelled) if rules.rating == "tag" else lambda digest: ()

    def tags_of_picture(digest: str) -> Tags | None:
        found = [finder(digest) for finder in finders]
        if any(one is None for one in found):
            return None
        return tuple(dict.fromkeys((*always, *join(found)[: rules.most or None], *rating(digest))))

    return tags_of_picture


def written(name: str, rules: Rules) -> str:
    """A tag of a list as it stands in a caption, where a comma would part it into two."""
    name = " ".join(name.replace(",", " ").split())
    if rules.spaces:
        name = tag_edits.with_spaces(name)
    return tag_edits.escape()((name,))[0] if rules.escape else name


def _finder(table: ScoreTable, thresholds: Thresholds, rules: Rules, spelled: Callable[[str], str]) -> Callable[[str], Found | None]:
    """One tagger's tags of a picture. What depends on the tag alone is found once for all pictures."""
    names = [spelled(written(name, rules)) for name in table.tags.names]
    excluded = {"", *(key(tag) for tag in rules.exclude)}
    by_category = {CHARACTER: thresholds.character, RATING: _NEVER}  # ratings compete with each other, not with a threshold
    limits = [_NEVER if key(name) in excluded else by_category.get(category, thresholds.general) for name, category in zip(names, table.tags.categories)]

    lowest = min(limits, default=_NEVER)

    def found(digest: str) -> Found | None:
        row = table.rows.get(digest)
        if row is None:
            return None
        places, scores = row  # they go down: what is below the lowest threshold need not be looked at
        enough = bisect_right(scores, -lowest, key=neg)
        return [(names[place], score) for place, score in zip(places[:enough], scores) if score >= limits[place]]

    return found


def _rater(table: ScoreTable, rules: Rules, spelled: Callable[[str], str]) -> Callable[[str], Tags]:
    """The likeliest rating of a picture, unless it is excluded."""
    excluded = {key(tag) for tag in rules.exclude}
    names = {place: spelled(written(table.tags.names[place], rules)) for place in table.tags.ratings}

    def rating(digest: str) -> Tags:
        likeliest = next((names[place] for place in table.rows[digest][0] if place in names), "")  # rows go down
        return (likeliest,) if likeliest and key(likeliest) not in excluded else ()

    return rating


def _first(found: Sequence[Found]) -> list[str]:
    return [tag for tag, _ in found[0]]


def _any(found: Sequence[Found]) -> list[str]:
    """Tags of any tagger, by the highest score that one gave."""
    best: dict[str, float] = {}
    for tag, score in (pair for one in found for pair in one):
        best[tag] = max(score, best.get(tag, 0.0))
    return sorted(best, key=lambda tag: -best[tag])


def _all(found: Sequence[Found]) -> list[str]:
    """Tags of all taggers, in the same order."""
    common = set.intersection(*({tag for tag, _ in one} for one in found))
    return [tag for tag in _any(found) if tag in common]
