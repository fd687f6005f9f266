"""What is in a data folder: one `Item` per picture that can be trained on, one `Problem` per thing the user should know.

A scan is deterministic: natural order of relative paths, whatever order the file system lists.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..disk import absolute, expanded
from ..settings import DataConfig
from . import pictures, sources
from .file_names import Names
from .item import Item
from .problems import Problem

PICTURES = frozenset(".png .jpg .jpeg .jfif .webp .bmp .gif .tif .tiff .avif .heic .heif .jxl".split())  # what Pillow cannot open becomes a problem

_NOT_DATA = (".", "__MACOSX", "@eaDir")  # hidden folders; what a Mac's zip and a NAS put beside pictures
_OF_RUNS = frozenset(("state", "losses.csv", "record.tuner"))  # beside settings.toml; see runs.py
_MASK_FOLDERS = frozenset(("mask", "masks"))
_MASK_ENDINGS = (".png", *sorted(PICTURES - {".png"}))
_MASK_FILE = re.compile(r"(\.mask|-masklabel|\.preview)$", re.IGNORECASE)  # OneTrainer's masks; the WebUI's card pictures
_KOHYA, _YEAR = re.compile(r"^(\d+)_(.+)$"), re.compile(r"19\d\d|20\d\d")
_NUMBERS = re.compile(r"^[-\d]+\s*")  # modules/textual_inversion/dataset.py of the WebUI: what it cuts off a file name
_MANY_REPEATS, _MOST_REPEATS = 500, 10000
_DRAWN = re.compile(r"class-\d{5}")  # pictures that data.class_pictures drew
_NO_WORDS = re.compile(  # names that cameras, browsers and programs give, which say nothing about the picture
    r"^((img|dsc|dscn|dscf|pxl|mvimg|p|image|images|photo|picture|pic|frame|file|sample|screenshot|untitled|unnamed|download)[\s_()\-\d]*"
    r"|[\s_()\-\d]*|[0-9a-f]{8,}([-_][0-9a-f]+)*)$",
    re.IGNORECASE,
)


@dataclass
class _Scan:
    cfg: DataConfig
    root: Path
    is_class: bool
    problems: list[Problem] = field(default_factory=list)
    held_out: bool = False  # pictures that are looked at once, whatever their folder's repeats
    listed: dict[Path, str] = field(default_factory=dict)
    names: Names = field(default_factory=Names)
    told: set[Path] = field(default_factory=set)  # what was complained of `once`

    def complain(self, path: Path, text: str, kind: str, once: bool = False) -> None:
        if not (once and path in self.told):
            self.problems.append(Problem(path, text, kind))
        self.told |= {path} if once else set()


def scan(cfg: DataConfig, folder: str | Path, is_class: bool = False) -> tuple[list[Item], list[Problem]]:
    """All pictures below a folder (or in one parquet file), and what is wrong with the rest. Raises ValueError for no folder or no usable picture."""
    setting = {cfg.validation_folder: "data.validation_folder", cfg.class_folder: "data.class_folder", cfg.folder: "data.folder"}
    what = setting.get(str(folder), "data.class_folder" if is_class else "data.folder")
    if not str(folder):
        raise ValueError(f"{what} is empty; name the folder that holds the pictures.")
    caption_endings(cfg.caption_extension, "data.caption_extension")
    root = absolute(folder)
    if not root.exists():
        raise ValueError(f"{what}: {str(folder)!r} does not exist; name the folder that holds the pictures.")
    job = _Scan(cfg, root, is_class, held_out=what == "data.validation_folder")
    files = [root] if root.is_file() else sorted(_files(job), key=lambda path: natural(path.relative_to(root).as_posix()))
    for path in files:
        if path.name in sources.LISTS:
            job.listed |= sources.listed_captions(path, job.complain, cfg.wildcards)
    items = [item for path in files for item in _items(job, path)]
    _report_pairs(job, items)
    if not items:
        why = next((str(problem)[:-1] for problem in job.problems if problem.kind != "repeats"), "")
        reason = f": {why}" if why else "; put .png, .jpg or .webp files into it"
        raise ValueError(f"{what}: {str(folder)!r} holds no picture to train on{reason}.")
    return items, job.problems


def item_of(path: Path, cfg: DataConfig, names: Names | None = None) -> tuple[Item | None, list[Problem]]:
    """One picture file below `cfg.folder` as a scan has it, but for captions that lie in a list; None where it cannot be used, and what is wrong.

    `names`: what is known of the folders already, where it is asked for many.
    """
    job = _Scan(cfg, absolute(cfg.folder), False, names=names or Names())
    return next(_items(job, path), None), job.problems


def pictures_below(folder: str | Path, needed: bool = True) -> tuple[list[Path], list[Problem]]:
    """Paths of all files below a folder that are pictures by their names, none of which is opened. Raises ValueError for no folder or, `needed`, no picture."""
    root = absolute(folder)
    if not root.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder; name the one that holds the pictures.")
    job = _Scan(DataConfig(), root, False)
    found = sorted(_files(job, PICTURES), key=lambda path: natural(str(path)[len(str(root)) :].replace(os.sep, "/")))
    if needed and not found:
        reason = f": {str(job.problems[0])[:-1]}" if job.problems else "; put .png, .jpg or .webp files into it"
        raise ValueError(f"{str(folder)!r} holds no picture{reason}.")
    return found, job.problems


def natural(text: str) -> tuple[list[str | int], str]:
    """Sort key by which `a2` comes before `a10`, and capitals beside small letters."""
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(re.split(r"(\d+)", text))], text


def items_digest(items: list[Item]) -> str:
    """sha256 over what the items are made of, but not where they lie: a run may be resumed after its folder was moved, not after it was changed."""
    rows = [(item.name, item.digest, item.mask_digest, item.caption, item.repeats, item.is_class, *filter(None, (item.hint_digest,))) for item in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def to_rows(items: list[Item]) -> list[dict[str, Any]]:
    """The items as JSON takes them, for the saved state of a run."""
    return [asdict(item) | {"path": str(item.path), "mask": item.mask and str(item.mask), "hint": item.hint and str(item.hint)} for item in items]


def from_rows(rows: list[dict[str, Any]]) -> list[Item]:
    """The items that `to_rows` wrote."""
    def path(text: str | None) -> Path | None:
        return Path(text) if text else None

    return [Item(**row | {"path": Path(row["path"]), "mask": path(row["mask"]), "hint": path(row.get("hint")), "size": tuple(row["size"])}) for row in rows]


# ---- the folder ------------------------------------------------------------------------------------------------------


def _files(job: _Scan, endings: Collection[str] = ()) -> Iterator[Path]:
    """Files below the root that are no masks, previews or caches, in no run's folder and in none of the other folders that the settings name; all, or with these endings."""
    apart, seen = _other_folders(job), dict[str, str]()

    def failed(error: OSError) -> None:
        job.complain(Path(error.filename), f"cannot be listed ({error.strerror})", "folder")

    for folder, names, files in os.walk(job.root, followlinks=True, onerror=failed):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above or beside, or what the link leads to
            job.complain(Path(folder), f"is the folder {os.path.relpath(seen[real], job.root.parent)!r} once more, by a link, and is left out", "folder")
            names.clear()
            continue
        seen[real] = folder
        if folder != str(job.root) and "settings.toml" in files and _OF_RUNS & {*names, *files}:
            job.complain(Path(folder), "is the folder of a run, whose samples are no pictures to train on, and is left out", "folder")
            names.clear()
            continue
        names[:] = [n for n in sorted(names, key=natural) if not n.startswith(_NOT_DATA) and n.lower() not in _MASK_FOLDERS and Path(real, n).resolve() not in apart]
        for name in files:
            stem, ending = os.path.splitext(name)
            if (not endings or ending.lower() in endings) and not name.startswith(".") and not _MASK_FILE.search(stem):
                yield Path(folder, name)


def _other_folders(job: _Scan) -> set[Path]:
    cfg, here = job.cfg, job.root.resolve()
    named = (cfg.folder, cfg.class_folder, cfg.validation_folder, cfg.cache_folder)
    return {path for path in (expanded(n).resolve() for n in named if n) if path != here}


def _items(job: _Scan, path: Path) -> Iterator[Item]:
    ending = path.suffix.lower()
    if ending not in PICTURES and ending != ".parquet" or not _repeats(job, path):
        return
    if ending == ".parquet":
        yield from _parquet_items(job, path)
    else:
        try:
            data = path.read_bytes()
        except OSError as error:
            job.complain(path, f"cannot be read ({error.strerror})", "unreadable")
            return
        item = _item(job, Item(path, ""), data)
        if item:
            yield _with_mask(job, _with_caption(job, item))


def _parquet_items(job: _Scan, path: Path) -> Iterator[Item]:
    try:
        for row, data, name, caption in sources.parquet_rows(path, job.complain, job.cfg.wildcards):
            item = _item(job, Item(path, "", row=row), data)
            if item:
                yield _with_caption(job, item, Path(name or f"{row}"), caption)
    except ValueError as error:
        job.complain(path, str(error), "unreadable")
    except OSError as error:
        job.complain(path, f"cannot be read ({error.strerror or error})", "unreadable")


def _item(job: _Scan, item: Item, data: bytes) -> Item | None:
    """The item with all that its bytes tell, or None with a problem."""
    try:
        facts = pictures.inspect(data)
    except ValueError as error:
        job.complain(item.path, f"{_row(item)}{error}", "unreadable")
        return None
    if facts.animated:
        job.complain(item.path, f"{_row(item)}is animated; its first frame is used", "animated")
    if facts.transparent:
        job.complain(item.path, f"{_row(item)}is fully transparent" + ("; its mask counts as none" if job.cfg.masks else ""), "mask")
    weight = job.cfg.class_weight if job.is_class else 1.0
    return replace(item, repeats=job.cfg.repeats * _repeats(job, item.path), weight=weight, is_class=job.is_class, size=facts.size,
                   digest=sources.digest(data), has_alpha=facts.has_alpha)


def _repeats(job: _Scan, path: Path) -> int:
    """How often its kohya folder repeats a picture. 0 leaves it out, as in sd-scripts (library/train_util.py DreamBoothDataset: fewer than 1 are ignored)."""
    folder, number, _ = _kohya(job, path)
    if job.held_out:
        return 1
    if number == 1 and (found := _KOHYA.match(folder.name)) and _YEAR.fullmatch(found[1]):
        job.complain(folder, f"begins with {found[1]}, which is taken for a year, so each picture occurs once; set data.repeats for more", "repeats", once=True)
    if number == 0:
        job.complain(folder, "stands for 0 repeats, so its pictures are left out; write another number in front of its name to train on them", "folder", once=True)
    if _MANY_REPEATS <= number <= _MOST_REPEATS:  # kohya's own folders have a few dozen at most; a year in front of a name has thousands
        job.complain(folder, f"stands for {number} repeats of each picture; rename it if that number is something else", "repeats", once=True)
    if number > _MOST_REPEATS:
        job.complain(folder, f"stands for {number} repeats, of which {_MOST_REPEATS} are made; set more steps instead", "repeats", once=True)
    return min(number, _MOST_REPEATS)


def _kohya(job: _Scan, path: Path) -> tuple[Path, int, str]:
    """The nearest folder called `10_name`, the scanned folder included, its repeats and name; (the picture's folder, 1, "") without one."""
    top = job.root.parent if job.root.is_file() else job.root
    for folder in path.parents[: len(path.parts) - len(top.parts)]:
        found = _KOHYA.match(folder.name)
        if found:
            dated = folder == top and _YEAR.fullmatch(found[1])  # `2023_holiday`: a folder that is named for a run need not be kohya's
            return folder, 1 if dated else int(found[1]), found[2]
    return path.parent, 1, ""


def _row(item: Item) -> str:
    return "" if item.row < 0 else f"row {item.row} "


# ---- captions --------------------------------------------------------------------------------------------------------


def _with_caption(job: _Scan, item: Item, named: Path | None = None, own: str | None = None) -> Item:
    """The item with its caption from where the settings say; `named` and `own` are a parquet row's picture name and text."""
    way, caption, source = job.cfg.caption_from, "", "none"
    prompt = item.path.with_suffix(".txt")
    if job.is_class and item.row < 0 and _DRAWN.fullmatch(item.path.stem) and os.path.exists(prompt):
        # data.class_pictures wrote what the picture was drawn from, wherever the subject's captions come from
        return replace(item, caption=sources.read_text(prompt, job.complain), caption_source="file")
    if way in ("auto", "file"):
        caption, source = (own, "parquet") if own else _beside(job, item.path)
    if source == "none" and way in ("auto", "folder"):
        folder = _kohya(job, item.path)[2] or (folder_words(item.path) if way == "folder" else "")
        caption, source = (folder, "folder") if folder else ("", "none")
    if source == "none" and way in ("auto", "filename"):
        words = file_words(named or item.path)
        if way == "filename" or not _NO_WORDS.match(words):
            caption, source = words, "filename"
    if not caption and way != "none":
        job.complain(item.path, f"{_row(item)}has no caption" if source == "none" else f"{_row(item)}has an empty caption ({source})", "no caption")
    return replace(item, caption=caption, caption_source=source)


def _beside(job: _Scan, path: Path) -> tuple[str, str]:
    if path in job.listed:
        return job.listed[path], "list"
    file = caption_beside(path, job.cfg.caption_extension, job.names)
    if file:
        return sources.read_text(file, job.complain), "file"
    return "", "none"


def caption_beside(path: Path, extensions: str, names: Names) -> Path | None:
    """A picture's caption file: the first that is there, or else is called like one, `a.TXT`, and is no other picture's; None without one."""
    files = caption_files(path, extensions)
    return next((file for file in files if os.path.exists(file)), None) or caption_alike(path, files, names)


def caption_alike(path: Path, files: Iterable[Path], names: Names) -> Path | None:
    """Of a picture none of whose caption files is there: what is called like one and is no other picture's."""
    alike = filter(None, map(names.beside, files))
    return next((file for file in alike if file.stem == path.stem or not _is_of_another(file, names)), None)


def _is_of_another(caption: Path, names: Names) -> bool:
    """Whether there is a picture of just its name."""
    return any(Path(found).stem == caption.stem for ending in PICTURES for found in names.called(caption.parent, caption.stem + ending))  # as the disk spells them


def caption_files(path: Path, extensions: str) -> list[Path]:
    """Where a picture's caption may lie beside it, in order of preference; see `caption_endings`."""
    return [path.with_suffix(ending) for ending in caption_endings(extensions)]


@lru_cache(maxsize=16)  # asked for once for each picture
def caption_endings(extensions: str, setting: str = "captions") -> tuple[str, ...]:
    """`txt,caption` as (".txt", ".caption"), each once. Raises ValueError, beginning with `setting`, for what no file's name can end with."""
    found = []
    for ending in filter(None, map(str.strip, extensions.split(","))):
        bare = ending.lstrip(".")
        if not bare or set(bare) & set("/\\\0"):
            raise ValueError(f"{setting}: {ending!r} is no ending of a file's name; write endings between commas, such as txt,caption.")
        found.append(f".{bare}")
    return tuple(dict.fromkeys(found))


def folder_words(path: Path) -> str:
    """What a file's folder says of it: its name, of kohya's `10_name` the name."""
    name = path.parent.name
    found = _KOHYA.match(name)
    return found[2] if found else name


def file_words(path: Path) -> str:
    """What a file's name says of it: the name without its ending and the number before it."""
    return _NUMBERS.sub("", path.stem)


# ---- masks, pairs ----------------------------------------------------------------------------------------------------


def masks_of(path: Path, names: Names) -> list[Path]:
    """A picture's masks, in order of preference: in each place as any kind of picture, as a .png first. Their names, and their folder's, may have other capitals, unless they are another picture's."""
    folder, stem = path.parent, path.stem
    inside = [folder / found for name in sorted(_MASK_FOLDERS) for found in names.called(folder, name)]
    places = ((folder, f"{stem}.mask"), *((place, stem) for place in inside), (folder, f"{stem}-masklabel"))
    found = [(place / name, wanted) for place, wanted in places for ending in _MASK_ENDINGS for name in names.called(place, wanted + ending)]
    return [mask for mask, wanted in found if mask.stem == wanted or (own := _MASK_FILE.sub("", mask.stem)) == stem or not _is_of_another(folder / f"{own}.png", names)]


def _with_mask(job: _Scan, item: Item) -> Item:
    """The item with its mask file, where masks are on and there is one that can be read."""
    mask = next(iter(masks_of(item.path, job.names)), None) if job.cfg.masks else None
    if mask is None:
        return item
    try:
        data = mask.read_bytes()
        (w, h), (mw, mh) = item.size, pictures.mask_size(data)
    except OSError as error:
        job.complain(mask, f"cannot be read ({error.strerror}); {item.name} is trained without it", "mask")
        return item
    except ValueError as error:
        job.complain(mask, f"{error}; {item.name} is trained without it", "mask")
        return item
    if abs(w * mh - h * mw) > 0.02 * w * mh:
        job.complain(mask, f"is {mw} x {mh} px, another shape than {item.name} ({w} x {h} px); it is stretched", "mask")
    return replace(item, mask=mask, mask_digest=sources.digest(data))


def _report_pairs(job: _Scan, items: list[Item]) -> None:
    """Equal pictures, and pictures that share one caption file because only their endings differ."""
    contents: dict[str, Item] = {}
    stems: dict[Path, Item] = {}
    for item in items:
        first = contents.setdefault(item.digest, item)
        if first is not item:
            job.complain(item.path, f"{_row(item)}is the same picture as {first.name}; both are used", "duplicate")
        first = stems.setdefault(item.path.with_suffix(""), item)
        if first is not item and item.caption_source == "file" and item.row < 0:
            job.complain(item.path, f"shares its caption file with {first.name}; rename one of them", "clash")
