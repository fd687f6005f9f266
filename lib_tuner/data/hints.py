"""The hint of every picture: one's own file of the same name, or made of the picture; cropped and mirrored as the picture is.

Axes: B samples, H W pixels of the bucket. A hint is (3, H, W) in [0, 1], in steps of 1 / 255 as the picture that a person gives later is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..disk import absolute
from . import pictures, sources
from .conditions import Recipe, make_hint
from .depth import Depth
from .item import Item
from .items import PICTURES, Problem, natural
from .pictures import View

OWN, DEPTH = "own", "depth"  # kinds of hints: one that is not made but read, one that a model makes
LIMIT = 256 * 2**20  # bytes of hints that are kept; the others are made anew each time


class Hints:
    """Hints by item and view. `folder`: of one's own (`recipe.kind` is then "own"); `shown`: a folder of those that samples are drawn under, or empty."""

    def __init__(self, recipe: Recipe, folder: str = "", shown: str = "", limit: int = LIMIT, masks: bool = False):
        self.recipe, self.folder, self.shown, self.limit, self.masks = recipe, folder, shown, limit, masks
        self.bytes = 0
        self.depth: Depth | None = None  # the model, which kind `depth` needs
        self._held: OrderedDict[tuple[str, str, View], Tensor] = OrderedDict()
        self._read = sources.Reader()

    def of(self, item: Item, view: View) -> Tensor:
        """The hint of a picture's view. Raises ValueError for files that changed or are gone."""
        key = (item.digest, item.hint_digest, view)
        if key not in self._held:
            self._held[key] = self._make(item, view)
            self.bytes += self._held[key].numel()
        self._held.move_to_end(key)
        hint = self._held[key]
        while self.bytes > self.limit:
            self.bytes -= self._held.popitem(last=False)[1].numel()
        return (hint.float() / 255).expand(3, -1, -1)

    def _make(self, item: Item, view: View) -> Tensor:
        """(1 or 3, H, W) in bytes."""
        if item.hint is not None:
            return _bytes(_fitted(_own_picture(item.hint, self._read.hint(item)), item.size, view))
        mask = self._read.mask(item) if self.masks else None  # where there is one, the colours below are not white, as in the latents
        image, _ = pictures.fit(pictures.load(item, self._read.picture(item), self.masks, mask)[0], None, view)
        pixels = (pictures.to_pixels(image) + 1) / 2
        return _levels(self.depth(pixels) if self.recipe.kind == DEPTH else make_hint(pixels, self.recipe))

    # ---- one's own ---------------------------------------------------------------------------------------------------

    def paired(self, items: list[Item]) -> tuple[list[Item], list[Problem]]:
        """The items that have a hint, each with its own, and what is wrong with the rest; all of them where hints are made.

        A hint is called like its picture (the ending aside); one in a folder below the hints' is of a picture in a folder of that name.
        Raises ValueError where there is no such folder, or no picture has a hint.
        """
        if self.recipe.kind != OWN:
            return items, []
        root = _folder(self.folder, "hints")
        outside = [item for item in items if not self.holds(item.path)]  # a folder of hints among the pictures is not trained on
        if not outside:
            raise ValueError(f"hints: {self.folder!r} holds the training pictures themselves; put the hints into a folder of their own.")
        files: dict[str, list[tuple[str, ...]]] = {}
        for path in _pictures_below(root):
            files.setdefault(path.stem, []).append(path.relative_to(root).parts)
        found, problems, taken = [], [], {}
        for item in outside:
            hint = _best(item, files.get(item.path.stem, [])) if item.row < 0 else None
            if hint is None:
                problems.append(Problem(item.path, "has no hint in the folder of hints, so it is left out", "hint"))
                continue
            with_hint, more = _with_hint(item, root / Path(*hint))
            problems += more
            if with_hint:
                found.append(with_hint)
                if (first := taken.setdefault(hint, item)) is not item:
                    problems.append(Problem(item.path, f"shares its hint with {first.name}", "hint"))
        if not found:
            raise ValueError(f"hints: {self.folder!r} has no hint for any of the pictures; put one for each into it, called like the picture.")
        return found, problems

    def holds(self, path: Path) -> bool:
        """Whether a file is one of the hints."""
        return self.recipe.kind == OWN and path.resolve().is_relative_to(_folder(self.folder, "hints"))

    # ---- samples -----------------------------------------------------------------------------------------------------

    def samples(self, items: list[Item], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """A hint (3, H, W) for each size (W, H): of the folder for samples, else of a few training pictures, one after another. Raises ValueError."""
        if self.shown:
            files = _pictures_below(_folder(self.shown, "sample_hints"))
            if not files:
                raise ValueError(f"sample_hints: {self.shown!r} holds no picture; put hints into it, or leave it empty.")
            return [_own_at(files[i % len(files)], size) for i, size in enumerate(sizes)]
        own = [item for item in items if not item.is_class] or items
        few = own[:: max(1, len(own) // 4)][:4]
        return [self.of(few[i % len(few)], View(size)) for i, size in enumerate(sizes)]


def _folder(name: str, setting: str) -> Path:
    root = absolute(name)
    if not root.is_dir():
        raise ValueError(f"{setting}: {name!r} is no folder; name the one that holds the hint pictures.")
    return root.resolve()


def _pictures_below(root: Path) -> list[Path]:
    files = [path for path in root.rglob("*") if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    return sorted(files, key=lambda path: natural(path.relative_to(root).as_posix()))


def _best(item: Item, hints: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Of files with the picture's name the one whose folders are the picture's too, the more of them the better."""
    folders = item.path.parts[:-1]
    fitting = [parts for parts in hints if folders[len(folders) - len(parts) + 1 :] == parts[:-1]]
    return max(fitting, key=len, default=None)


def _with_hint(item: Item, path: Path) -> tuple[Item | None, list[Problem]]:
    try:
        data = path.read_bytes()
        (w, h), (hw, hh) = item.size, pictures.inspect(data).size
    except OSError as error:
        return None, [Problem(path, f"cannot be read ({error.strerror}), so {item.name} is left out", "hint")]
    except ValueError as error:
        return None, [Problem(path, f"{error}, so {item.name} is left out", "hint")]
    other = abs(w * hh - h * hw) > 0.02 * w * hh
    problem = Problem(path, f"is {hw} x {hh} px, another shape than {item.name} ({w} x {h} px); it is stretched", "hint")
    return replace(item, hint=path, hint_digest=sources.digest(data)), [problem] * other


def _own_picture(path: Path, data: bytes) -> Image.Image:
    return pictures.load(Item(path, ""), data)[0]


def _own_at(path: Path, size: tuple[int, int]) -> Tensor:
    image = _own_picture(path, path.read_bytes())
    return (_bytes(_fitted(image, image.size, View(size))).float() / 255).expand(3, -1, -1)


def _fitted(hint: Image.Image, size: tuple[int, int], view: View) -> Image.Image:
    """A hint under the geometry of a picture of (w, h): stretched to its shape, cropped and mirrored with it."""
    scaled, box = pictures.placement(size, view)
    hint = hint.resize(scaled, Image.Resampling.BILINEAR).crop(box)
    return hint.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else hint


def _bytes(image: Image.Image) -> Tensor:
    return _levels((pictures.to_pixels(image) + 1) / 2)


def _levels(hint: Tensor) -> Tensor:
    return (hint * 255).round().to(torch.uint8)
