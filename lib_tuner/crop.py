"""`crop`: the pictures of a data folder cut to size, from the command line. What would be made is shown first; the pictures themselves are never changed.

The options are the fields of `CropConfig` and `ExportConfig`, so that command line and page take the same.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .config import build, flags
from .disk import absolute
from .data.crop_acts import KeptActs
from .data.crop_export import Exported, export
from .data.crop_file import Book, PictureCrops, change_crops, key_of, read_crops
from .data.crop_names import ExportConfig, Output, named
from .data.crop_plan import CropConfig, Piece, pieces, propose
from .data.focal import Detector, face_detector
from .data.item import Item
from .data.items import Problem, scan
from .data.pictures import load
from .settings import DataConfig
from .tools.command_line import Progress, say
from .words import number_of

PROGRAM = "python3 -m lib_tuner crop"
SHOWN = 5  # samples, and problems of one kind
EXAMPLES = ("my-cat --size 512x512", "my-cat --size bucket:512 --out my-cat-512", "my-cat --size 512x768 --zip my-cat.zip --form jpg --mirror safe", "my-cat --size area:768 --out smaller")
_NOT_ASKED = ("no caption", "clash", "duplicate")  # of a scan: what does not matter here


def main(rest: Sequence[str]) -> int:
    """Runs the command on a folder; returns the exit code. Raises ValueError or OSError with one sentence."""
    given = vars(_parser().parse_args(rest))
    folder, target = absolute(given.pop("folder")), given.pop("out") or given.pop("zip")
    keep, model = given.pop("keep"), given.pop("face_model")
    cfg, how = (build(kind, {name: value for name, value in given.items() if name in _names(kind)}) for kind in (CropConfig, ExportConfig))
    detector = face_detector(model) if cfg.focus in ("auto", "face") else None
    if cfg.focus == "face" and detector is None:
        raise ValueError("--focus face needs the package opencv-python-headless: install it, or leave --focus out.")
    items, problems = _items(folder, how)
    book, found = _cropped(folder, items, cfg, detector)
    problems += found
    made = [pieces(item, book[key_of(folder, item.path)], cfg) for item in items if key_of(folder, item.path) in book]
    problems += [problem for _, some in made for problem in some]
    outputs, unmirrored = named([piece for some, _ in made for piece in some], folder, how)
    lines = [*_shown(items, outputs, book), *_told([*problems, *unmirrored])]
    if keep:
        change_crops(folder, lambda kept: _kept(kept, book), noting=KeptActs(folder).noting("find"))
        lines.append(f"Kept in {folder / '.tuner' / 'crops.json'}.")
    if not target:
        return say([*lines, *([] if keep else ["Nothing was written: --out DIR or --zip FILE writes it."])])
    return say([*lines, *_written(outputs, folder, target, how)])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, usage=f"{PROGRAM} FOLDER [--out DIR | --zip FILE] [...]", description="Crop all pictures below a folder to one size, about their subjects, into another folder or a ZIP.",
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="\n".join(["examples:", *(f"  {PROGRAM} {line}" for line in EXAMPLES)]),
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", help="the folder with the pictures; nothing in it is changed")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", type=_folder, help="the folder that the crops are written to; without it and --zip they are shown and nothing written")
    where.add_argument("--zip", metavar="FILE", type=_zip, help="one ZIP with crops, captions and manifest.json")
    parser.add_argument("--keep", action="store_true", help="keep the crops that were found in the folder's .tuner/crops.json, where the page takes them from; what a person set there stays")
    parser.add_argument("--face_model", metavar="FILE", default="", help="a YuNet model (.onnx) for faces, better than OpenCV's own cascades")
    for kind, title in ((CropConfig, "how pictures are cropped"), (ExportConfig, "how crops are written")):
        flags(SimpleNamespace(add_argument_group=lambda _, title=title: parser.add_argument_group(title)), kind, name="crop")  # two groups, for which `flags` has one heading
    return parser


class _Parser(argparse.ArgumentParser):
    """A wrong option is a ValueError of one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(f"crop: {message} (`{PROGRAM} --help` explains).")


def _folder(text: str) -> str:
    if text.lower().endswith(".zip"):
        raise argparse.ArgumentTypeError(f"{text} is no folder; write --zip {text}")
    return text


def _zip(text: str) -> str:
    return text if text.lower().endswith(".zip") else f"{text}.zip"


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


# ---- the pictures


def _items(folder: Path, how: ExportConfig) -> tuple[list[Item], list[Problem]]:
    """The picture files of a folder; rows of a parquet file are no files and stay out."""
    try:
        items, problems = scan(DataConfig(folder=str(folder), masks=how.masks, caption_from="file", caption_extension=how.captions), folder)
    except ValueError as error:
        raise ValueError(f"FOLDER: {str(error).removeprefix('data.folder: ')}") from error  # here it is no setting of a run
    rows = [Problem(path, "is a table of pictures and is not cropped", "table") for path in dict.fromkeys(item.path for item in items if item.row >= 0)]
    return [item for item in items if item.row < 0], [*(problem for problem in problems if problem.kind not in _NOT_ASKED), *rows]


def _cropped(folder: Path, items: list[Item], cfg: CropConfig, detector: Detector | None) -> tuple[dict[str, PictureCrops], list[Problem]]:
    """The crops of each picture: those that are kept, else found now. What a person set for a picture that changed since is left out, as stale."""
    kept, book, problems, progress = read_crops(folder), {}, [], Progress("Looking at pictures")
    for done, item in enumerate(items, 1):
        key = key_of(folder, item.path)
        record = kept.get(key)
        if record and record.touched:
            book[key] = record
        else:  # what was found before may be of another size or by another way
            try:
                book[key] = propose(item, load(item, item.path.read_bytes())[0], cfg, detector)
            except (ValueError, OSError) as error:
                text = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error).removeprefix(f"{item.path}: ").rstrip(".")
                problems.append(Problem(item.path, text))
        progress(done, len(items))
    return book, problems


def _kept(kept: Book, found: Book) -> Book:
    """The crops that are kept with those that were found, but where a person has set them."""
    return {**kept, **{key: record for key, record in found.items() if key not in kept or not kept[key].touched}}


def _written(outputs: list[Output], folder: Path, target: str, how: ExportConfig) -> list[str]:
    """Writes; Ctrl-C stops between two files."""
    progress, lines = Progress("Writing"), []
    with closing(export(outputs, folder, target, how)) as events:
        for event in events:
            if isinstance(event, Exported):
                lines = [*_told(event.problems), f"Written: {number_of(event.pictures, 'picture')} to {event.path}."]
            else:
                progress(event.done, event.total)
    return lines


# ---- what people read


def _shown(items: list[Item], outputs: list[Output], book: dict[str, PictureCrops]) -> list[str]:
    used = {output.piece.item.path for output in outputs}
    sizes, ways = Counter(output.piece.size for output in outputs), Counter(record.found for record in book.values())
    lines = [f"{number_of(len(outputs), 'crop')} of {len(used):,} of {number_of(len(items), 'picture')}."]
    lines += ["Sizes: " + ", ".join(f"{count:,} of {w} x {h}" for (w, h), count in sizes.most_common(SHOWN)) + (", ..." if len(sizes) > SHOWN else "") + "."] if outputs else []
    lines += ["Found by: " + ", ".join(f"{way} {count:,}" for way, count in ways.most_common()) + "."] if ways else []
    step = max(1, len(outputs) // SHOWN)
    return lines + [_sample(output.piece, output.stem) for output in outputs[::step][:SHOWN]]


def _sample(piece: Piece, stem: str) -> str:
    left, top, right, bottom = piece.box
    return f"  {piece.item.path.name}: {right - left:.0f} x {bottom - top:.0f} px at {left:.0f}, {top:.0f} of {piece.item.size[0]} x {piece.item.size[1]} -> {stem}"


def _told(problems: Sequence[Problem]) -> list[str]:
    """Some problems of each kind, so that the many of one do not hide another."""
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in problems):
        some = [problem for problem in problems if problem.kind == kind]
        lines += [*map(str, some[:SHOWN]), *([f"... and {len(some) - SHOWN:,} more of this kind."] if len(some) > SHOWN else [])]
    return lines
