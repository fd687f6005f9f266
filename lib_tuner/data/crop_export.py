"""Crops as files: pictures of exactly the wanted size with their captions and masks, in a folder or in one ZIP.

    outputs, problems = crop_names.named(pieces, folder, cfg)       # names, none of which is there twice
    for event in export(outputs, folder, "out", cfg): ...  # Written for each picture, Exported at the end; closing the generator stops it

Nothing that exists is replaced. Each file is whole or not there; a ZIP is there when it is complete. A picture is turned upright and into sRGB once, and what
its file said of both (EXIF, ICC profile) is left out of the new one.
"""

from __future__ import annotations

import errno
import io
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from ..disk import absolute, atomic, json_bytes
from . import mirrored
from .crop import Box
from .crop_names import FILTERS, SUFFIX, ExportConfig, Output
from .crop_plan import Piece
from .item import Item
from .items import PICTURES, Problem
from .pictures import BROKEN, load
from .sources import digest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Written:
    """A picture is there, or is not because of a problem."""

    done: int
    total: int
    name: str
    problem: Problem | None = None


@dataclass(frozen=True)
class Exported:
    """All is written: where, how many pictures, and what was left out."""

    path: Path
    pictures: int
    problems: tuple[Problem, ...] = ()


class Unmade(ValueError):
    """One crop cannot be made or written, which stops no other; the text goes on from the picture's name. `kind` is that of its Problem."""

    def __init__(self, text: str, kind: str = "unmade"):
        super().__init__(text)
        self.kind = kind


# ---- writing ---------------------------------------------------------------------------------------------------------


def export(outputs: Sequence[Output], folder: str | Path, target: str | Path, cfg: ExportConfig) -> Iterator[Written | Exported]:
    """Writes the outputs of a data folder into another folder, or into a ZIP where the target ends in .zip, with a manifest.

    Raises ValueError before anything is written where a name exists or the target is in the data folder; OSError where the disk refuses.
    """
    root, path = map(absolute, (folder, target))
    sink = _Zip(path, cfg) if path.suffix.lower() == ".zip" else _Folder(path, root, cfg)
    outputs = sink.free(outputs)
    rows, problems = [], []
    with sink.opened():
        for done, (output, problem) in enumerate(_each(outputs, sink, cfg), 1):
            rows += [] if problem else [_row(output, root, cfg)]
            problems += [problem] if problem else []
            yield Written(done, len(outputs), output.stem + SUFFIX[cfg.form], problem)
        sink.finish(rows)
    yield Exported(sink.path, len(rows), tuple(problems))


def _each(outputs: Iterable[Output], sink: _Folder | _Zip, cfg: ExportConfig) -> Iterator[tuple[Output, Problem | None]]:
    """Every output, written or with what stopped it; a picture is decoded once for all its crops."""
    for item, group in groupby(outputs, key=lambda output: output.piece.item):
        try:
            picture, mask = _pictures(item, cfg)
        except (ValueError, OSError) as error:
            text = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error).removeprefix(f"{item.path}: ").rstrip(".")
            yield from ((output, Problem(item.path, text)) for output in group)
            continue
        for output in group:
            problem = None
            try:
                sink.put(_files(output, picture, mask, cfg))
            except Unmade as error:
                problem = Problem(item.path, str(error), error.kind)
            yield output, problem


def _files(output: Output, picture: Image.Image, mask: Image.Image | None, cfg: ExportConfig) -> list[tuple[str, bytes]]:
    """The names and bytes of an output, all made before anything is written; the picture last, so that one which is there has its caption. Raises Unmade."""
    made = [(output.stem + ending, _caption(output, path)) for ending, path in output.captions]
    made += [(f"{output.stem}.mask.png", _encoded(crop_mask(mask, output), ExportConfig()))] if mask else []
    return [*made, (output.stem + SUFFIX[cfg.form], _encoded(crop_picture(picture, output, cfg), cfg))]


def _caption(output: Output, path: Path | None) -> bytes:
    try:
        data = path.read_bytes() if path else output.piece.item.caption.encode()
        return mirrored.swapped_bytes(data) if output.mirrored else data
    except OSError as error:
        raise Unmade(f"has a caption that cannot be read ({error.strerror})", kind="caption") from error
    except ValueError as error:
        raise Unmade(f"has a caption that {error}", kind="caption") from error


def _pictures(item: Item, cfg: ExportConfig) -> tuple[Image.Image, Image.Image | None]:
    """The picture upright in sRGB, with its transparency where that is kept, and its mask file. Raises ValueError, OSError."""
    data = item.path.read_bytes()
    if digest(data) != item.digest:
        raise ValueError("has changed since it was looked at; read the folder anew")
    picture, alpha = load(item, data, masks=True)
    if item.has_alpha:
        alpha = alpha or Image.new("L", picture.size)  # `load` takes a mask that hides everything for none
        if cfg.background or cfg.form == "jpg":
            picture = Image.composite(picture, Image.new("RGB", picture.size, cfg.colour()), alpha)
        else:
            picture.putalpha(alpha)
    mask = load(item, data, True, item.mask.read_bytes())[1] if item.mask and cfg.masks else None
    return picture, mask


def crop_picture(picture: Image.Image, output: Output, cfg: ExportConfig) -> Image.Image:
    """The box of an upright picture as exactly W x H px; transparent parts are weighed by how much is seen of them, as Pillow does for RGBA."""
    return _turned(picture.resize(output.piece.size, FILTERS[cfg.filter], box=_scaled(output.piece, picture)), output)


def crop_mask(mask: Image.Image, output: Output) -> Image.Image:
    """The same of a mask."""
    return _turned(mask.resize(output.piece.size, Image.Resampling.BILINEAR, box=_scaled(output.piece, mask)), output)


def _scaled(piece: Piece, image: Image.Image) -> Box:
    (w, h), box = piece.item.size, piece.box
    if image.size != (w, h):
        raise Unmade(f"has {image.width} x {image.height} px, not the {w} x {h} that were expected; read the folder anew")
    return box


def _turned(image: Image.Image, output: Output) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if output.mirrored else image


def _encoded(image: Image.Image, cfg: ExportConfig) -> bytes:
    image.info = {}  # Pillow would write the old ICC profile and EXIF block again, which no longer hold
    file = io.BytesIO()
    more: dict[str, dict[str, Any]] = {"jpg": {"quality": cfg.quality, "subsampling": 0 if cfg.quality >= 90 else 2}, "webp": {"quality": cfg.quality}, "png": {}}
    try:
        image.save(file, {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[cfg.form], **more[cfg.form])
    except BROKEN as error:  # a WebP has 16,383 px along a side at most, a JPEG 65,500
        raise Unmade(f"gets no crop: {image.width} x {image.height} px cannot be written as {cfg.form} ({error}); choose png, or a smaller size") from error
    return file.getvalue()


def _row(output: Output, root: Path, cfg: ExportConfig) -> dict[str, Any]:
    piece = output.piece
    return {
        "file": output.stem + SUFFIX[cfg.form], "source": piece.item.path.relative_to(root).as_posix(), "source_digest": piece.item.digest, "source_size": piece.item.size,
        "box": [round(value, 3) for value in piece.box], "size": piece.size, "mirrored": output.mirrored,
    }  # fmt: skip


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be made ({error.strerror}); choose another place for the crops.") from error


class _Folder:
    """A folder to which files are added. Raises ValueError where it is the folder of the originals, or in it."""

    def __init__(self, path: Path, root: Path, cfg: ExportConfig):
        self.path, self.cfg = path, cfg
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder, or a file that ends in .zip.")
        if root.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(f"{path} is in the folder of the originals; choose one outside, so that crops and originals are not mixed.")

    def free(self, outputs: Sequence[Output]) -> list[Output]:
        """The outputs with names that do not exist. Raises ValueError where one does and it is not to be changed."""
        listed: dict[str, set[str]] = {}
        taken = {output.stem.casefold() for output in outputs}
        return [self._freed(output, listed, taken) for output in outputs]

    def _freed(self, output: Output, listed: dict[str, set[str]], taken: set[str]) -> Output:
        found, number = output, 1
        while exists := self._existing(found, listed):
            if self.cfg.existing == "refuse":
                raise ValueError(f"{self.path / exists} exists already, so nothing was written; choose another folder, or take the next free names.")
            number += 1
            while f"{output.stem}_{number}".casefold() in taken:
                number += 1
            found = Output(output.piece, f"{output.stem}_{number}", output.captions, output.mirrored)
        taken.add(found.stem.casefold())
        return found

    def _existing(self, output: Output, listed: dict[str, set[str]]) -> str:
        """The file in the way: one of the same name, or a picture that differs in its ending alone and would share the caption."""
        parent = output.stem.rpartition("/")[0]
        if parent not in listed:
            folder = self.path / parent
            listed[parent] = {path.name.casefold() for path in folder.iterdir()} if folder.is_dir() else set()
        names = [name.rpartition("/")[2] for name in output.names(self.cfg)]
        names += [output.stem.rpartition("/")[2] + suffix for suffix in sorted(PICTURES)]
        return next((f"{parent}/{name}".lstrip("/") for name in names if name.casefold() in listed[parent]), "")

    @contextmanager
    def opened(self) -> Iterator[None]:
        _make(self.path)
        yield

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """New files, all or none. Raises Unmade where the disk takes no such name, ValueError where one has appeared there since, OSError."""
        done: list[Path] = []
        try:
            for name, data in files:
                self._write(self.path / name, data)
                done.append(self.path / name)
        except BaseException:
            for path in done:
                path.unlink(missing_ok=True)
            raise

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path, new=True) as temporary:
                temporary.write_bytes(data)
        except FileExistsError:
            raise ValueError(f"{path} was made by another program meanwhile, so the export has stopped; it was left as it is.") from None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise Unmade(f"gets no crop: the name {path.name} is too long for the disk; choose shorter names") from error
            raise OSError(f"{path} cannot be written ({error.strerror}), so the export has stopped; what was written before is whole.") from error

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """A folder needs no list: its files are the list."""


class _Zip:
    """A ZIP that is written next to its place and takes it in the end. Raises ValueError where one is there."""

    def __init__(self, path: Path, cfg: ExportConfig):
        number = 1
        self.path = path
        while self.path.exists():
            if cfg.existing == "refuse":
                raise ValueError(f"{path} exists already, so nothing was written; choose another name, or take the next free one.")
            number += 1
            self.path = path.with_name(f"{path.stem}_{number}{path.suffix}")
        self._zip: zipfile.ZipFile | None = None

    def free(self, outputs: Sequence[Output]) -> list[Output]:
        return list(outputs)

    @contextmanager
    def opened(self) -> Iterator[None]:
        _make(self.path.parent)
        try:
            with atomic(self.path, new=True) as temporary, zipfile.ZipFile(temporary, "w") as self._zip:
                yield
        except FileExistsError:
            raise ValueError(f"{self.path} was made by another program meanwhile; choose another name.") from None

    def put(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Pictures are stored as they are: they are compressed already."""
        for name, data in files:
            info = zipfile.ZipInfo(name, time.localtime()[:6])
            info.external_attr = 0o644 << 16
            self._zip.writestr(info, data, zipfile.ZIP_DEFLATED if name.endswith((".txt", ".caption", ".json")) else zipfile.ZIP_STORED)

    def finish(self, rows: list[dict[str, Any]]) -> None:
        self.put([(MANIFEST, json_bytes({"version": 1, "pictures": rows}, indent=1))])
