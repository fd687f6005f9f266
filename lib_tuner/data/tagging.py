"""Tagging a data folder: pictures are scored once, and from the scores a plan is made that is seen, carried out and taken back as every other edit.

    folder = tagged_folder("my-cat")
    with ScoreStore("my-cat") as store:
        for at in score(folder.pictures, tagger, store): ...       # writes scores, never a caption; goes on where it was stopped
        planned = plan_tags(folder, store, [(tagger.name, tagger.thresholds)], Rules(), "skip")
    edits.apply(planned, journal)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import DataConfig
from . import pictures, sources, tag_edits
from .captions import USUAL, Caption, CaptionFile, Tags
from .edits import CaptionEdit, Plan, plan_each
from .item import Item
from .items import Problem, caption_files, pictures_below
from .library import open_captions
from .tag_edits import key
from .tag_rules import Rules, Thresholds, tagging
from .tag_scores import ScoreStore, rows_of, stamp_of
from .tagger import Tagger

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("skip", "merge", "prepend", "append", "replace")
_READERS = 4  # threads that decode; Pillow lets the others work meanwhile


@dataclass(frozen=True)
class TaggedFolder:
    """The pictures of a folder whose captions are files: each with its caption file, which need not be there yet."""

    pictures: tuple[Path, ...]
    captions: tuple[CaptionFile, ...]
    problems: tuple[Problem, ...] = ()


def tagged_folder(folder: str | Path, extensions: str = DataConfig.caption_extension) -> TaggedFolder:
    """Reads the captions below a folder, as `open_captions` does. Raises ValueError where there is no such folder or no picture in it."""
    files, problems = open_captions(folder, extensions)
    by_path = {file.path: file for file in files}
    pairs = [(picture, by_path[path]) for picture in pictures_below(folder)[0] if (path := _caption_path(picture, by_path, extensions))]
    return TaggedFolder(tuple(picture for picture, _ in pairs), tuple(file for _, file in pairs), tuple(problems))


def _caption_path(picture: Path, known: dict[Path, CaptionFile], extensions: str) -> Path | None:
    """The caption file that was read for a picture; None for one that a list captions, or whose file cannot be read."""
    return next((path for path in caption_files(picture, extensions) or [picture.with_suffix(".txt")] if path in known), None)


# ---- scoring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """How far scoring is: `done` of `total` pictures, of which `known` had scores before; `left` seconds, None while that is not known."""

    done: int
    total: int
    known: int = 0
    left: float | None = None
    problems: tuple[Problem, ...] = ()  # pictures since the last report that cannot be read


@dataclass(frozen=True)
class _Read:
    path: Path
    digest: str = ""
    stamp: tuple[int, int] = (-1, -1)
    prepared: Tensor | None = None
    problem: Problem | None = None


def score(paths: Sequence[Path], tagger: Tagger, store: ScoreStore, stop: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic) -> Iterator[Scoring]:
    """Scores the pictures that the tagger has not seen, and keeps the scores after each batch; what was kept is there when it is started again.

    Ends between two batches where `stop()` turns true, or when it is closed. A picture that cannot be read is a problem of a report, and the rest goes on.
    Raises ValueError where the model fails, OSError where scores cannot be kept.
    """
    known, digests = store.known(tagger.name), store.digests(paths)
    todo = [path for path in paths if digests.get(path) not in known]
    seen = done = len(paths) - len(todo)
    yield Scoring(done, len(paths), seen)
    start = clock()
    with ThreadPoolExecutor(_READERS) as readers:
        for batch in _ahead(readers, todo, tagger):
            if stop():
                return
            _keep(batch, tagger, store)
            done += len(batch)
            left = (clock() - start) / (done - seen) * (len(paths) - done)
            yield Scoring(done, len(paths), seen, left, tuple(read.problem for read in batch if read.problem))


def _ahead(readers: ThreadPoolExecutor, paths: Sequence[Path], tagger: Tagger) -> Iterator[list[_Read]]:
    """Batches of prepared pictures; the next one is read while the model works on the one before."""
    batches = [paths[at : at + tagger.batch] for at in range(0, len(paths), tagger.batch)]
    coming = None
    for batch in (*batches, []):
        ready, coming = coming, [readers.submit(_read, path, tagger) for path in batch]
        if ready is not None:
            yield [future.result() for future in ready]


def _read(path: Path, tagger: Tagger) -> _Read:
    try:
        stamp = stamp_of(path.stat())
        data = path.read_bytes()
        pictures.inspect(data)
        rgb, _ = pictures.load(Item(path, ""), data)
        return _Read(path, sources.digest(data), stamp, tagger.prepare(rgb))
    except OSError as error:
        return _Read(path, problem=Problem(path, f"cannot be read ({error.strerror or error}); it gets no tags", "unreadable"))
    except ValueError as error:
        return _Read(path, problem=Problem(path, str(error).removeprefix(f"{path}: ").rstrip("."), "unreadable"))


def _keep(batch: list[_Read], tagger: Tagger, store: ScoreStore) -> None:
    import torch

    read = [one for one in batch if one.prepared is not None]
    if read:
        with torch.inference_mode():
            scores = tagger.scores(torch.stack([one.prepared for one in read])).float().cpu()
        store.add(tagger.name, tagger.tags, dict(zip([one.digest for one in read], rows_of(scores, tagger.tags))))
        store.remember({one.path: (one.stamp, one.digest) for one in read})


# ---- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tagging:
    """What the journal keeps of a tagging."""

    args: dict[str, Any]
    name: str = "tag"


def plan_tags(folder: TaggedFolder, store: ScoreStore, taggers: Sequence[tuple[str, Thresholds]], rules: Rules = Rules(), mode: str = "skip") -> Plan:
    """What tagging would write, from scores alone: no model is needed, no picture read, nothing written.

    skip: captions that are there stay; merge: tags that are missing come last; prepend, append: the found tags, in their order, before or behind the rest;
    replace: instead of it. A picture for which no tag is found keeps its caption, as a problem. Raises ValueError for a mode that there is not, and taggers
    that have not seen the folder.
    """
    if mode not in MODES:
        raise ValueError(f"mode: {mode!r} is none of {', '.join(MODES)}.")
    found = tags_found(folder.pictures, store, taggers, rules)
    of_file = {file.path: found[picture] for picture, file in reversed(list(zip(folder.pictures, folder.captions)))}
    args = {"mode": mode, "taggers": {name: {"general": t.general, "character": t.character} for name, t in taggers}, **_given(rules)}
    planned = plan_each(folder.captions, Tagging(args), lambda path: _written(of_file[path] or (), mode))
    return replace(planned, problems=(*planned.problems, *_untagged(folder, found, mode)))


def tags_found(paths: Sequence[Path], store: ScoreStore, taggers: Sequence[tuple[str, Thresholds]], rules: Rules = Rules()) -> dict[Path, Tags | None]:
    """The tags of each picture; None for one that was not scored. Raises ValueError for taggers that have not seen the folder."""
    tables = []
    for name, thresholds in taggers:
        table = store.table(name)
        if table is None:
            raise ValueError(f"{name} has not seen these pictures; let it score them first.")
        tables.append((table, thresholds))
    tags_of_picture, digests = tagging(tables, rules), store.digests(paths)
    return {path: tags_of_picture(digests[path]) if path in digests else None for path in paths}


def _given(rules: Rules) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(rules).items() if value != getattr(Rules(), name)}


def _untagged(folder: TaggedFolder, found: dict[Path, Tags | None], mode: str) -> Iterator[Problem]:
    for picture, file in zip(folder.pictures, folder.captions):
        if mode == "skip" and file.caption.tags:
            continue
        if found[picture] is None:
            yield Problem(picture, "has no scores and stays as it is", "no tags")
        elif not found[picture]:
            yield Problem(picture, "has no tag that reaches the threshold and stays as it is", "no tags")


def _written(tags: Tags, mode: str) -> CaptionEdit:
    """The edit that writes these tags. Sentences are not cut to pieces: where a caption has some, only missing tags are put before or behind it."""

    def write(caption: Caption) -> Caption:
        if not tags:
            return caption
        if not caption.tags or mode == "replace":
            separator = next((line.separator for line in caption.lines if line.separator), USUAL)
            return caption.with_text(separator.join(tags))
        return caption if mode == "skip" else caption.with_lines(lambda line: _WAYS[mode](line.tags, tags, line.is_text), type(caption.lines[0]).with_tags)

    return write


def _merged(old: Tags, new: Tags, is_text: bool) -> Tags:
    return tag_edits.add(new)(old)


def _prepended(old: Tags, new: Tags, is_text: bool) -> Tags:
    return (*_missing(new, old), *old) if is_text else (*new, *_missing(old, new))


def _appended(old: Tags, new: Tags, is_text: bool) -> Tags:
    return (*old, *_missing(new, old)) if is_text else (*_missing(old, new), *new)


def _missing(tags: Tags, among: Tags) -> Tags:
    there = {key(tag) for tag in among}
    return tuple(tag for tag in tags if key(tag) not in there)


_WAYS: dict[str, Callable[[Tags, Tags, bool], Tags]] = {"merge": _merged, "prepend": _prepended, "append": _appended}
