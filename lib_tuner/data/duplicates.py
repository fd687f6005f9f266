"""Pictures that look alike, mirror images among them, found without comparing each with each.

A picture's hash has 64 bits: whether each of 8 x 8 squares is darker than its right neighbour (dHash, N. Krawetz 2013). It is the same for another size, another
light, and JPEG. Pictures are alike where few bits differ and the tiny pictures (8 x 8 RGB) are of one colour too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .captions import CaptionFile
from .edits import Edit
from .finding import Finding
from .tag_edits import key

if TYPE_CHECKING:
    from .look import Look

LIMIT = 6  # bits of 64
_BANDS, _BITS = 4, 16  # 64 bits as four bands of 16
_COLOUR = 14.0  # levels: mean distance of two tiny pictures, each about its own mean
_LIGHT = 64.0  # levels: distance of the means


def fingerprint(image: Image.Image) -> tuple[int, int, str]:
    """The hash of an RGB picture, that of its mirror image, and its 8 x 8 RGB as hexadecimal digits."""
    tiny = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    thumb = image.resize((8, 8), Image.Resampling.BOX)
    return _dhash(tiny), _dhash(tiny.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), thumb.tobytes().hex()


def _dhash(tiny: Image.Image) -> int:
    levels, bits = tiny.tobytes(), 0
    for y in range(8):
        for x in range(9 * y, 9 * y + 8):
            bits = bits << 1 | (levels[x] < levels[x + 1])
    return bits


@dataclass(frozen=True)
class Twin:
    """A picture that looks like the one that is kept: how many bits differ, and whether it is its mirror image."""

    path: Path
    bits: int
    mirrored: bool


@dataclass(frozen=True)
class Group:
    """Pictures that look alike: the best, by longer side and then by sharpness, and the others, each of which looks like the best."""

    keep: Path
    twins: tuple[Twin, ...]


def groups(looks: Mapping[Path, Look], limit: int = LIMIT, mirrors: bool = True) -> list[Group]:
    """Groups of pictures that look alike, each picture in one at most.

    Every twin is within the limit of the picture that is kept, not of another twin alone: so nothing is thrown away for a chain of small steps. Raises
    ValueError for a limit that is none.
    """
    if not 0 <= limit <= 15:
        raise ValueError(f"{limit} bits is no limit for pictures that look alike; choose 0 (equal) to 15, such as {LIMIT}.")
    seen = {path: one for path, one in looks.items() if not one.trouble}
    index, taken, found = _Index(seen, limit), set(), []
    for path in sorted(seen, key=lambda p: _rank(p, seen[p])):
        if path in taken:
            continue
        taken.add(path)
        twins = [t for t in _twins(path, seen, index, mirrors) if t.path not in taken]
        taken.update(t.path for t in twins)
        if twins:
            found.append(Group(path, tuple(sorted(twins, key=lambda t: (t.bits, str(t.path))))))
    return sorted(found, key=lambda group: str(group.keep))


def _rank(path: Path, one: Look) -> tuple[int, float, str]:
    return -max(one.size), -(one.sharpness if one.sharpness == one.sharpness else 0.0), str(path)


def _twins(path: Path, looks: Mapping[Path, Look], index: _Index, mirrors: bool) -> list[Twin]:
    mine, twins = looks[path], {}
    for mirrored in (True, False) if mirrors else (False,):  # what is alike both ways is no mirror image
        for other, bits in index.near(mine.mirrored if mirrored else mine.hash):
            if other != path and _one_colour(mine, looks[other], mirrored):
                twins[other] = Twin(other, bits, mirrored)
    return list(twins.values())


def _one_colour(a: Look, b: Look, mirrored: bool) -> bool:
    """Whether two tiny pictures are alike but for a change of light: pictures of nothing have equal hashes, and so have recoloured ones."""
    one, other = bytes.fromhex(a.thumb), bytes.fromhex(b.thumb)
    if mirrored:
        one = b"".join(one[24 * y + 3 * x : 24 * y + 3 * x + 3] for y in range(8) for x in reversed(range(8)))
    far = 0.0
    for channel in range(3):
        mine, its = one[channel::3], other[channel::3]
        shift = (sum(mine) - sum(its)) / 64
        if abs(shift) > _LIGHT:
            return False
        far += sum(abs(x - y - shift) for x, y in zip(mine, its)) / 64
    return far / 3 <= _COLOUR


class _Index:
    """Finds hashes within `limit` bits, all of them: if at most `limit` bits differ, then in one of four bands at most limit // 4 do, and those few values are
    looked up. Equal hashes are one entry, so a thousand black pictures cost no million comparisons."""

    def __init__(self, looks: Mapping[Path, Look], limit: int):
        self.limit, self.paths = limit, {}
        for path, one in looks.items():
            self.paths.setdefault(one.hash, []).append(path)
        self.bands: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]
        for value in self.paths:
            for number, band in enumerate(self.bands):
                band.setdefault(_part(value, number), []).append(value)
        self.flips = [sum(1 << bit for bit in bits) for count in range(limit // _BANDS + 1) for bits in combinations(range(_BITS), count)]

    def near(self, value: int) -> Iterator[tuple[Path, int]]:
        """Paths and differing bits of all hashes within the limit."""
        seen: set[int] = set()
        for number, band in enumerate(self.bands):
            part = _part(value, number)
            for flip in self.flips:
                seen.update(band.get(part ^ flip, ()))
        for other in seen:
            bits = bin(value ^ other).count("1")
            if bits <= self.limit:
                yield from ((path, bits) for path in self.paths[other])


def _part(value: int, number: int) -> int:
    return value >> _BITS * number & (1 << _BITS) - 1


# ---- what is told ----------------------------------------------------------------------------------------------------


def alike(found: Sequence[Group], looks: Mapping[Path, Look]) -> Iterator[Finding]:
    """A finding per group: the kept picture first, then its twins."""
    for group in found:
        size = looks[group.keep].size
        names = ", ".join(t.path.name + (" (mirrored)" if t.mirrored else "") for t in group.twins[:3]) + (" ..." if len(group.twins) > 3 else "")
        text = f"{names} {'looks' if len(group.twins) == 1 else 'look'} like {group.keep.name}, the best of them ({size[0]} x {size[1]} px); keep that one."
        yield Finding("near duplicate", (group.keep, *(t.path for t in group.twins)), text, amount=float(min(t.bits for t in group.twins)))


def told_apart(found: Sequence[Group], captions: Mapping[Path, CaptionFile]) -> Iterator[Finding]:
    """Twins whose captions differ, by picture path; what the kept picture's caption has more can be added to the twin's."""
    for group in found:
        for twin in group.twins:
            kept, other = captions.get(group.keep), captions.get(twin.path)
            if kept is None or other is None or kept.path == other.path:
                continue
            mine, its = {key(t): t for t in kept.caption.tags}, {key(t): t for t in other.caption.tags}
            more, less = [t for k, t in mine.items() if k not in its], [t for k, t in its.items() if k not in mine]
            if more or less:
                text = f"{other.path.name} and {kept.path.name} describe one picture in different words: the first alone says {', '.join(less) or '-'}, the second alone {', '.join(more) or '-'}."
                yield Finding("twin captions", (other.path,), text, (Edit("add", {"tags": more}),) if more else (), float(len(more) + len(less)))
