"""Which tags to leave out and which to keep for what is to be learned: suggestions with their evidence, none of which is carried out by itself.

The rule behind it: what the captions do not explain goes into the trigger word. It is folklore, found in guides that differ in the details (civitai 680, 11195,
13132, 14148), and no measured truth; so are the word tables (`tag_words`) and the shares below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..presets import GOALS, PACES
from ..words import number_of
from .captions import CaptionFile
from .edits import Edit
from .finding import Finding
from .items import folder_words
from .tag_edits import key
from .tag_words import SEVERAL, kind_of

OFTEN = 0.7  # of the captions: belongs to what is learned
UNEVEN = (0.2, 0.6)  # tagged now and then, or two looks
KEPT = 0.1  # rarer tags are kept without a word
USUAL_PICTURES = 30  # the middle of the 15 to 60 for which the balanced pace is meant


@dataclass(frozen=True)
class Rule:
    """What a goal does with kinds of tags: `drop` those in `least` of the captions and more, `keep`, and `vary` those in more than `most`."""

    drop: tuple[str, ...]
    keep: tuple[str, ...]
    vary: tuple[str, ...]
    least: float = OFTEN
    most: float = 0.5
    dropped: str = ""  # why
    varied: str = ""


RULES: dict[str, Rule] = {
    "character": Rule(
        ("trait",), ("clothing", "pose", "expression", "background", "framing", "light"), ("background", "medium"), most=0.8,
        dropped="it belongs to the character, and without the tag it goes into the trigger word",
        varied="what nearly all pictures share is learned with the character; keep the tag, and add pictures without it"),
    "style": Rule(
        ("medium", "quality"), ("count", "trait", "clothing", "pose", "expression", "background", "framing", "light"),
        ("trait", "clothing", "pose", "background", ""), least=0.0,
        dropped="it names the look, which is to go into the trigger word", varied="it is learned as a part of the style; keep the tag, and add pictures without it"),
    "pose": Rule(
        ("pose", "framing"), ("count", "trait", "clothing", "expression", "background", "light"), ("trait", "clothing", "background"),
        dropped="it names the pose, which is to go into the trigger word", varied="it is learned with the pose; keep the tag, and add other persons and places"),
    "clothing": Rule(
        ("clothing",), ("count", "trait", "pose", "expression", "background", "framing", "light"), ("trait", "background"),
        dropped="it is a part of the outfit, and without the tag it comes along with the trigger word",
        varied="it is learned with the outfit; keep the tag, and add other wearers and places"),
    "object": Rule(
        ("", "clothing"), ("background", "framing", "light", "count"), ("background", "light", "framing"),
        dropped="the object always looks so, and without the tag that goes into the trigger word; keep it if new variants are wanted",
        varied="it is learned with the object; keep the tag, and add pictures without it"),
}  # fmt: skip


def advise(files: Sequence[CaptionFile], goal: str, trigger: str = "") -> list[Finding]:
    """Suggestions of the kinds drop, uneven, vary and keep, the surest first; `amount` is the share of the captions that have the tag.

    Only captions of tags count: sentences have none. Raises ValueError for a goal that there is not.
    """
    if goal not in RULES:
        raise ValueError(f"There is no goal {goal!r}; choose one of {', '.join(GOALS)}.")
    own, where, total = key(trigger.strip()), {}, 0
    for file in {file.path: file for file in files}.values():
        tags = {key(tag): tag for line in file.caption.lines if not line.is_text for tag in line.tags}
        total += bool(tags)
        for words, tag in tags.items():
            if words != own:
                where.setdefault(words, (tag, []))[1].append(file.path)
    found = [told for tag, paths in where.values() for told in _judged(tag, paths, total, RULES[goal])]
    order = ("drop", "uneven", "vary", "keep")
    return sorted(found, key=lambda one: (order.index(one.kind), -one.amount, one.text))


def _judged(tag: str, paths: list[Path], total: int, rule: Rule) -> Iterator[Finding]:
    kind, share = kind_of(tag), len(paths) / total
    evidence = f"{tag!r} is in {len(paths)} of {number_of(total, 'caption')} ({share:.0%})"
    removal = Edit("remove", {"tags": [tag]})
    if kind in rule.drop and share >= rule.least:
        yield Finding("drop", tuple(paths), f"{evidence}: leave it out; {rule.dropped}.", (removal,), share, tag)
    elif kind in rule.drop and UNEVEN[0] <= share <= UNEVEN[1]:
        text = f"{evidence}: tag it wherever it is seen or nowhere; as it is, it is learned by halves, or there are two looks."
        yield Finding("uneven", tuple(paths), text, (removal,), share, tag)
    elif kind in rule.vary and share > rule.most:
        yield Finding("vary", tuple(paths), f"{evidence}: {rule.varied}.", amount=share, tag=tag)
    elif kind in rule.keep and share >= KEPT:
        yield Finding("keep", tuple(paths), f"{evidence}: keep it, so that it stays changeable.", amount=share, tag=tag)


# ---- how often, how long ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A folder of one concept: its pictures, how often each is shown per epoch (kohya's number before the name), and how often it should be."""

    folder: Path
    pictures: int
    repeats: int
    balanced: int

    def __str__(self) -> str:
        if self.balanced == self.repeats:
            return f"{self.folder.name}: {number_of(self.pictures, 'picture')}, {number_of(self.repeats, 'time')} each."
        return f"{self.folder.name}: {number_of(self.pictures, 'picture')}, {number_of(self.repeats, 'time')} each; call it {self.balanced}_{folder_words(self.folder / 'x')} to balance it with the others."


def balance(pictures: Iterable[Path]) -> list[Share]:
    """Repeats with which every folder's pictures are shown about equally often: the largest folder once, each other as often as it is smaller, rounded."""
    counts: dict[Path, int] = {}
    for path in pictures:
        counts[path.parent] = counts.get(path.parent, 0) + 1
    most = max(counts.values(), default=0)
    return [Share(folder, n, _repeats(folder), max(1, (2 * most + n) // (2 * n))) for folder, n in sorted(counts.items())]


def uneven(shares: Sequence[Share]) -> bool:
    """Whether a folder's pictures are shown a third less or half more often than its share."""
    return len(shares) > 1 and any(share.balanced * 3 < 2 * share.repeats or 2 * share.balanced > 3 * share.repeats for share in shares)


def _repeats(folder: Path) -> int:
    number, line, name = folder.name.partition("_")
    return min(max(int(number), 1), 10000) if line and name and number.isascii() and number.isdigit() else 1


def steps(pictures: int, method: str = "lora", batch: int = 0) -> tuple[int, int]:
    """(steps, batch): as often as the balanced pace shows each of 30 pictures, but no shorter than the fast and no longer than the careful one; to the nearest 50.

    `batch` 0 takes the pace's. Raises ValueError for a method without presets and for no pictures.
    """
    if pictures < 1:
        raise ValueError("There are no pictures, so no number of steps fits; add some.")
    if method not in PACES["balanced"].values:
        raise ValueError(f"There is no pace for {method!r}; choose one of {', '.join(PACES['balanced'].values)}.")
    least, usual, most = (_shown(PACES[pace].values[method]) for pace in ("fast", "balanced", "careful"))
    size = batch or PACES["balanced"].values[method]["data.batch"]
    shown = min(max(usual * pictures / USUAL_PICTURES, least), most)
    return max(50, round(shown / size / 50) * 50), size


def _shown(values: dict[str, int]) -> int:
    return values["steps"] * values["data.batch"]


# ---- after cropping --------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]  # left, top, right, bottom in px of the whole picture

# tags, and the share of the former height or width that may be lost above, below, and at the sides together before they are in doubt
_LOST: tuple[tuple[frozenset[str], float, float, float], ...] = (
    (frozenset(("full body", "standing on one leg", "t-pose", "reference sheet")), 0.03, 0.03, 0.3),
    (frozenset("feet,toes,barefoot,shoes,boots,high heels,sneakers,sandals,socks,soles,footprints".split(",")), 0.9, 0.08, 0.5),
    (frozenset(("cowboy shot", "thighs", "knees", "kneehighs", "thighhighs", "legs", "lower body")), 0.9, 0.2, 0.5),
    (frozenset(("cowboy shot", "upper body", "portrait", "head", "face", "hat", "crown", "halo", "horns", "animal ears", "hair ornament", "beret")), 0.12, 0.9, 0.5),
    (frozenset(("wide shot", "very wide shot", "scenery", "landscape", "cityscape", "panorama")), 0.3, 0.3, 0.3),
    (SEVERAL, 0.6, 0.6, 0.3),
)  # fmt: skip
_WIDER = frozenset("close-up,closeup,portrait,face,upper body,head out of frame,feet out of frame,cropped legs,cropped torso,cropped,lower body,macro".split(","))
_GROWN = 1.3  # times the area


def framing(file: CaptionFile, before: Box, after: Box) -> list[Finding]:
    """Tags about what is in the frame that may no longer hold after a crop moved from one box to another; each can be removed.

    The boxes say what is cut, not what is seen: so these are doubts, to be looked at. Raises ValueError for a box without an area.
    """
    above, below, sides, area = _lost(before, after)
    found = []
    for tag in file.caption.tags:
        words = key(tag)
        cut = any(words in tags and (above >= a or below >= b or sides >= s) for tags, a, b, s in _LOST)
        if cut or (words in _WIDER and area >= _GROWN):
            reason = "the crop cuts off what it speaks of" if cut else "the crop shows more than before"
            text = f"{file.path.name}: {tag!r} may no longer hold, since {reason}."
            found.append(Finding("framing", (file.path,), text, (Edit("remove", {"tags": [tag]}),), max(above, below, sides) if cut else area))
    return found


def _lost(before: Box, after: Box) -> tuple[float, float, float, float]:
    """Shares of the former height lost above and below, of the former width lost at both sides, and the new area over the former."""
    for box in (before, after):
        if not (box[2] > box[0] and box[3] > box[1]):
            raise ValueError(f"{box} is no box; it is left, top, right, bottom in px, with right and bottom larger.")
    width, height = before[2] - before[0], before[3] - before[1]
    above, below = (min(max(part, 0.0), height) / height for part in (after[1] - before[1], before[3] - after[3]))
    sides = min(1.0, (max(after[0] - before[0], 0.0) + max(before[2] - after[2], 0.0)) / width)
    return above, below, sides, (after[2] - after[0]) * (after[3] - after[1]) / (width * height)
