"""Tagging a data folder: pictures are scored once, and from the scores a plan is made that is seen, carried out and taken back as every other edit.

    folder = tagged_folder("my-cat")
    with ScoreStore("my-cat") as store:
        for at in score(folder.pictures, tagger, store): ...       # writes scores, never a caption; goes on where it was stopped
        planned = plan_tags(folder, seen(folder.pictures, store, [tagger.name]), [(tagger.name, tagger.thresholds)], Rules(), "skip")
    edits.apply(planned, journal)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import DataConfig
from . import pictures, sources
from .captions import USUAL, Caption, CaptionFile, Line, Tags
from .edits import CaptionEdit, Plan, plan_each
from .item import Item
from .items import Problem
from .library import listing
from .tag_edits import key
from .tag_rules import Rules, Thresholds, tagging
from .tag_scores import ScoreStore, ScoreTable, rows_of, stamp_of
from .tagger import Tagger

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = ("skip", "merge", "prepend", "append", "replace")
_READERS = 4  # threads that decode; Pillow lets the others work meanwhile


@dataclass(frozen=True)
class TaggedFolder:
    """The pictures of a folder whose captions are files: each with its caption file, which need not be there yet."""

    pictures: tuple[Path, ...]
    captions: tuple[CaptionFile, ...]
    problems: tuple[Problem, ...] = ()

    def pairs(self) -> list[tuple[Path, CaptionFile]]:
        """(picture, caption file); of several pictures with one caption file the first comes last, so that a mapping from captions keeps it."""
        return list(zip(self.pictures, self.captions))[::-1]


def tagged_folder(folder: str | Path, extensions: str = DataConfig.caption_extension) -> TaggedFolder:
    """Reads the captions below a folder, as `listing` does. Raises ValueError where there is no such folder or no picture in it."""
    found = listing(folder, extensions)
    return TaggedFolder(tuple(found.captions), tuple(found.files[file] for file in found.captions.values()), found.problems)


def to_tag(folder: TaggedFolder, mode: str) -> list[Path]:
    """The pictures that tagging in this mode looks at: `skip` leaves those out that have a caption. Raises ValueError for a mode that there is not."""
    if mode not in MODES:
        raise ValueError(f"mode: {mode!r} is none of {', '.join(MODES)}.")
    return [picture for picture, file in zip(folder.pictures, folder.captions) if mode != "skip" or not file.caption.tags]


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
class Read:
    """A picture as a model takes it, with what it is remembered by; or what is wrong with it."""

    path: Path
    digest: str = ""
    stamp: tuple[int, int] = (-1, -1)
    prepared: Any = None
    problem: Problem | None = None


def score(
    paths: Sequence[Path], tagger: Tagger, store: ScoreStore, stop: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Scoring]:
    """Scores the pictures that the tagger has not seen, and keeps the scores after each batch; what was kept is there when it is started again.

    Ends between two batches where `stop()` turns true, or when it is closed. A picture that cannot be read is a problem of a report, and the rest goes on.
    Raises ValueError where the model fails, OSError where scores cannot be kept.
    """
    store.add(tagger.name, tagger.tags, {})
    todo = unscored(paths, tagger.name, store)
    known = done = len(paths) - len(todo)
    yield Scoring(done, len(paths), known)
    start = clock()
    with ThreadPoolExecutor(_READERS) as readers:
        for batch in _ahead(readers, todo, tagger):
            if stop():
                return
            _keep(batch, tagger, store)
            done += len(batch)
            left = (clock() - start) / (done - known) * (len(paths) - done)
            yield Scoring(done, len(paths), known, left, tuple(read.problem for read in batch if read.problem))


def unscored(paths: Sequence[Path], tagger: str, store: ScoreStore) -> list[Path]:
    """The pictures that a tagger has not seen as they are now. Without any, its model need not be loaded."""
    known, digests = store.known(tagger), store.digests(paths)
    return [path for path in paths if digests.get(path) not in known]


def _ahead(readers: ThreadPoolExecutor, paths: Sequence[Path], tagger: Tagger) -> Iterator[list[Read]]:
    """Batches of prepared pictures; the next one is read while the model works on the one before."""
    batches = [paths[at : at + tagger.batch] for at in range(0, len(paths), tagger.batch)]
    coming = None
    for batch in (*batches, []):
        ready, coming = coming, [readers.submit(read, path, tagger.prepare) for path in batch]
        if ready is not None:
            yield [future.result() for future in ready]


def read(path: Path, prepare: Callable[[Image], Any]) -> Read:
    """A picture from the disk, upright and in RGB, as `prepare` makes it."""
    try:
        stamp = stamp_of(path.stat())
        data = path.read_bytes()
        rgb, _ = pictures.load(Item(path, ""), data)
        return Read(path, sources.digest(data), stamp, prepare(rgb))
    except OSError as error:
        return Read(path, problem=Problem(path, f"cannot be read ({error.strerror or error}); it gets no tags", "unreadable"))
    except ValueError as error:
        return Read(path, problem=Problem(path, str(error).removeprefix(f"{path}: ").rstrip("."), "unreadable"))


def _keep(batch: list[Read], tagger: Tagger, store: ScoreStore) -> None:
    import torch

    whole = [one for one in batch if one.prepared is not None]
    if whole:
        with torch.inference_mode():
            scores = tagger.scores(torch.stack([one.prepared for one in whole])).float().cpu()
        store.add(tagger.name, tagger.tags, dict(zip([one.digest for one in whole], rows_of(scores, tagger.tags))))
        store.remember({one.path: (one.stamp, one.digest) for one in whole})


# ---- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tagging:
    """What the journal keeps of a tagging."""

    args: dict[str, Any]
    name: str = "tag"


@dataclass(frozen=True)
class Seen:
    """What taggers gave the pictures of a folder: tables by tagger, and each picture's content. From it follow the tags for any thresholds."""

    tables: Mapping[str, ScoreTable]
    digests: Mapping[Path, str]

    def scores(self, folder: TaggedFolder, tagger: str) -> Callable[[Path], Mapping[str, float]]:
        """Scores by tag of the picture that a caption file belongs to, for the edits that ask for them: `edits.Context(scores=...)`."""
        of_file = {file.path: self.digests.get(picture, "") for picture, file in folder.pairs()}
        return lambda path: self.tables[tagger].by_tag(of_file.get(path, ""))


def seen(paths: Sequence[Path], store: ScoreStore, taggers: Sequence[str]) -> Seen:
    """Reads kept scores. Raises ValueError for taggers that were never asked here, OSError where the scores cannot be read."""
    tables = {}
    for name in taggers:
        table = store.table(name)
        if table is None:
            raise ValueError(f"{name} has not seen these pictures; let it score them first.")
        tables[name] = table
    return Seen(tables, store.digests(paths))


def plan_tags(folder: TaggedFolder, scores: Seen, taggers: Sequence[tuple[str, Thresholds]], rules: Rules = Rules(), mode: str = "skip") -> Plan:
    """What tagging would write, from scores alone: no model is needed, no picture read, nothing written.

    skip: captions that are there stay; merge: tags that are missing come last; prepend, append: the found tags, in their order, before or behind the rest;
    replace: instead of it. A picture for which no tag is found keeps its caption, as a problem. Raises ValueError for a mode that there is not.
    """
    found = tags_found(to_tag(folder, mode), scores, taggers, rules)
    of_file, same = {file.path: found.get(picture) or () for picture, file in folder.pairs()}, lru_cache(None)(key)
    args = {"mode": mode, "taggers": {name: {"general": t.general, "character": t.character} for name, t in taggers}, **_given(rules)}
    planned = plan_each(folder.captions, Tagging(args), lambda path: written_beside(of_file[path], mode, same))
    return replace(planned, problems=(*planned.problems, *_untagged(found)))


def tags_found(paths: Sequence[Path], scores: Seen, taggers: Sequence[tuple[str, Thresholds]], rules: Rules = Rules()) -> dict[Path, Tags | None]:
    """The tags of each picture; None for one that was not scored."""
    if not paths:
        return {}
    tags_of_picture = tagging([(scores.tables[name], thresholds) for name, thresholds in taggers], rules)
    return {path: tags_of_picture(scores.digests[path]) if path in scores.digests else None for path in paths}


def moved(before: Mapping[Path, Tags | None], after: Mapping[Path, Tags | None]) -> tuple[Counter[str], Counter[str]]:
    """Which tags other thresholds bring, and which they take away, with the number of pictures: of two answers of `tags_found`."""
    old, new = (Counter(tag for tags in found.values() for tag in tags or ()) for found in (before, after))
    return new - old, old - new


def _given(rules: Rules) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(rules).items() if value != getattr(Rules(), name)}


def _untagged(found: Mapping[Path, Tags | None]) -> Iterator[Problem]:
    for picture, tags in found.items():
        if tags is None:
            yield Problem(picture, "has no scores and stays as it is", "no tags")
        elif not tags:
            yield Problem(picture, "has no tag that reaches the threshold and stays as it is", "no tags")


def written_beside(tags: Tags, mode: str, same: Callable[[str], str]) -> CaptionEdit:
    """The edit that writes these tags; `same` is `key`. Sentences are not cut to pieces: only tags that are missing are put before or behind them."""

    def without(some: Tags, others: Tags) -> Tags:
        there = set(map(same, others))
        return tuple([tag for tag in some if same(tag) not in there])

    def beside(old: Tags, is_text: bool) -> Tags:
        if mode == "merge" or is_text:
            return (*without(tags, old), *old) if mode == "prepend" else (*old, *without(tags, old))
        return (*tags, *without(old, tags)) if mode == "prepend" else (*without(old, tags), *tags)

    def write(caption: Caption) -> Caption:
        if not tags:
            return caption
        if not caption.tags or mode == "replace":
            return caption.with_text(next((line.separator for line in caption.lines if line.separator), USUAL).join(tags))
        return caption if mode == "skip" else caption.with_lines(lambda line: beside(line.tags, line.is_text), Line.with_tags)

    return write
