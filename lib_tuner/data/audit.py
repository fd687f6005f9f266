"""Whether the pictures of a data set are fit to be trained on: each check a pure function of what one look at a picture measured.

    looks = dict(look_at(paths))                        # decodes each picture once; may be shown as progress, kept, and given back as `known`
    findings = list(audit(looks, Target(512)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..settings import DataConfig
from . import sources
from .buckets import bucket_for
from .finding import Finding
from .look import Look, look

# Where a measure becomes a finding. Chosen on photographs and drawings with and without the defect; tests/test_audit.py measures precision and recall.
ENLARGED = 1.1  # times; a tenth is not seen
BLURRED = 0.15  # of `measures.sharpness`: what a Gaussian blur of 1.5 px at 512 px leaves
BLURRED_OF_SET, DOUBTFUL = 0.2, 0.3  # below a fifth of the set's median, if it is below this as well
EVEN = 16.0  # levels
BLOCKY = 0.3
POOR = 35  # JPEG quality; blocks are seen at a glance
LONG = 2.5  # longer side over shorter: cinema's 2.39 is just below
MODES = {
    "CMYK": "is made for print (CMYK)", "YCbCr": "holds YCbCr colours", "LAB": "holds Lab colours", "HSV": "holds HSV colours", "P": "has a palette of at most 256 colours",
    "PA": "has a palette of at most 256 colours", "1": "has black and white alone, without greys", "F": "has more than 8 bits per level",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What the pictures are for: the resolution in px (the side of the square; buckets keep its area), and the set's median sharpness, nan for unknown.

    Raises ValueError for a resolution that no bucket has.
    """

    size: int = 512
    usual: float = float("nan")

    def __post_init__(self) -> None:
        bucket_for((self.size, self.size), DataConfig(resolution=self.size))


def look_at(paths: Iterable[Path], known: Mapping[str, Look] | None = None) -> Iterator[tuple[Path, Look]]:
    """Each picture's path and look, one after the other; one that is in `known` by its digest is read but not decoded."""
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            yield path, Look("", trouble=f"cannot be read ({error.strerror})")
            continue
        kept = (known or {}).get(sources.digest(data))
        yield path, kept or look(data)


def audit(looks: Mapping[Path, Look], target: Target = Target()) -> Iterator[Finding]:
    """All findings of all checks, picture by picture."""
    sharp = [one.sharpness for one in looks.values() if one.sharpness == one.sharpness]
    target = Target(target.size, median(sharp)) if len(sharp) >= 5 and target.usual != target.usual else target
    for path, one in looks.items():
        if one.trouble:
            yield Finding("unreadable", (path,), f"{path.name} {one.trouble}.")
            continue
        for kind, check in CHECKS.items():
            told = check(one, target)
            if told is not None:
                text, amount = told
                yield Finding(kind, (path,), f"{path.name} {text}.", amount=amount)


Told = tuple[str, float] | None  # what is wrong, without the picture's name, and how much


def too_small(one: Look, target: Target) -> Told:
    """More than a tenth of enlargement: the larger of W / w and H / h over its bucket W x H, bars not counted."""
    left, top, right, bottom = one.bars
    w, h = one.size[0] - left - right, one.size[1] - top - bottom
    W, H = bucket_for((w, h), DataConfig(resolution=target.size))
    factor = max(W / w, H / h)
    if factor <= ENLARGED:
        return None
    return f"is {w} x {h} px and would be enlarged {factor:.1f} times for {W} x {H} px; find a larger one, or train at a smaller size", factor


def blurred(one: Look, target: Target) -> Told:
    """Sharpness (see `measures.sharpness`) below 0.15, or below 0.3 and a fifth of the set's median."""
    limit = max(BLURRED, min(DOUBTFUL, BLURRED_OF_SET * target.usual)) if target.usual == target.usual else BLURRED
    if not one.sharpness < limit:  # nan is no answer
        return None
    return f"is blurred (sharpness {one.sharpness:.2f}; below {limit:.2f} no place of it is sharp); leave it out unless blur is to be learned", one.sharpness


def barred(one: Look, target: Target) -> Told:
    """Even bars at the edges, see `measures.bars`."""
    if not any(one.bars):
        return None
    left, top, right, bottom = one.bars
    return f"has even bars of {left}, {top}, {right} and {bottom} px (left, top, right, bottom); crop them off, else they are learned", float(max(one.bars))


def even(one: Look, target: Target) -> Told:
    """No square of 8 px differs by more than 16 levels from another in any channel."""
    return ("shows next to nothing: it is nearly one colour", one.spread) if one.spread <= EVEN else None


def blocky(one: Look, target: Target) -> Told:
    """A JPEG's tables are of quality 35 or less, or steps on one line in eight exceed the others by 0.3 of the mean step."""
    if 0 < one.quality <= POOR:
        return f"was saved as JPEG of quality {one.quality}; its blocks are learned, so find a better copy", float(one.quality)
    if one.blocks >= BLOCKY:
        return f"has the 8 px blocks of a strongly compressed JPEG ({one.blocks:.1f} times a usual step); find a better copy", one.blocks
    return None


def wrong_mode(one: Look, target: Target) -> Told:
    """Pixels that are not 8-bit RGB or grey; they are converted."""
    mode = "F" if one.mode.startswith("I") else one.mode
    return (f"{MODES[mode]}; it is converted to 8-bit RGB, so see whether its colours are right", 0.0) if mode in MODES else None


def transparent(one: Look, target: Target) -> Told:
    """An alpha channel that is used."""
    return ("has transparent parts, which become white or a mask", 255.0 - one.alpha) if one.alpha < 255 else None


def animated(one: Look, target: Target) -> Told:
    """More than one frame."""
    return (f"is animated ({one.frames} frames); the first is used", float(one.frames)) if one.frames > 1 else None


def turned(one: Look, target: Target) -> Told:
    """An EXIF orientation that other programs may not heed."""
    return ("is turned by an EXIF entry alone, which is heeded here but not by every program", float(one.orientation)) if one.orientation in range(2, 9) else None


def too_long(one: Look, target: Target) -> Told:
    """Longer side above 2.5 times the shorter one."""
    ratio = max(one.size) / min(one.size)
    return (f"is {ratio:.1f} times as long as wide ({one.size[0]} x {one.size[1]} px); crop it", ratio) if ratio > LONG else None


CHECKS: dict[str, Callable[[Look, Target], Told]] = {
    "too small": too_small, "blurred": blurred, "bars": barred, "nearly one colour": even, "JPEG blocks": blocky, "colour mode": wrong_mode, "transparent": transparent,
    "animated": animated, "EXIF turned": turned, "long": too_long,
}  # fmt: skip
