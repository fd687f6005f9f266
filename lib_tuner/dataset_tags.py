"""Tagging in an open folder: which taggers there are, scoring as long work, and previews from kept scores, for which no model is needed.

    tagging = FolderTagging.of(opened, sets.taggers)
    tagging.score(["wd-swinv2-tagger-v3"], scope, "skip")               # opened.work() says how far it is
    tagging.plan(TagOrder((Chosen("wd-swinv2-tagger-v3", 0.4),)), scope)     # a preview for opened.apply
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .data import tag_models
from .data.captions import Tags
from .data.library import Library
from .data.suggest import Named, fitting, named, of_files
from .data.tag_edits import key, with_spaces
from .data.tag_rules import Rules, Thresholds
from .data.tag_scores import ScoreStore
from .data.onnx import check_runtime
from .data.tagger import Tagger, open_wd14
from .data.tagging import Seen, TaggedFolder, moved, plan_tags, score, tags_found, to_tag, unscored
from .datasets import OpenFolder, Scope
from .work import Told

SHOWN_TAGS = 12  # of those that other thresholds bring or take away
SHOWN_PROBLEMS = 50


@dataclass(frozen=True)
class Chosen:
    """A tagger: its name in the list, or the path of an .onnx file; thresholds where they are not its own."""

    name: str
    general: float | None = None
    character: float | None = None


@dataclass(frozen=True)
class TagOrder:
    """Which tags are to be written, and how: see `tag_rules.Rules` and `tagging.MODES`."""

    taggers: tuple[Chosen, ...]
    rules: Rules = Rules()
    mode: str = "skip"


@dataclass(frozen=True)
class _Loadable:
    """A tagger under the name that its scores are kept under; `load` makes it, where a picture has no scores of it."""

    name: str
    load: Callable[[], Tagger]


class FolderTagging:
    """The tagger's part of one open folder. `made` are taggers that need no file, by name."""

    def __init__(self, opened: OpenFolder, made: Mapping[str, Callable[[], Tagger]]):
        self._opened, self._made = opened, made
        self._kept_as: dict[str, str] = {}  # by the tagger's name in the list
        self._before: dict[Path, Tags | None] = {}  # tags of the last preview

    @classmethod
    def of(cls, opened: OpenFolder, made: Mapping[str, Callable[[], Tagger]]) -> FolderTagging:
        """That of a folder, the same each time."""
        return opened.part(cls, lambda: cls(opened, made))

    def list(self) -> dict[str, Any]:
        """The taggers there are, with their thresholds, whether they are on this machine, and whether they have seen pictures of this folder; and why WD14 models cannot run."""
        with self._opened.lock:
            kept = {name.rpartition(" ")[0] for name in self._opened.kept.tables()}
        folder = tag_models.default_folder()
        made = [(name, make().thresholds, True, make().name) for name, make in self._made.items()]
        named = [(name, thresholds, tag_models.is_here(name, folder), "") for name, thresholds in tag_models.MODELS.items()]
        return {"taggers": [
            {"name": name, "general": t.general, "character": t.character, "source": t.source, "here": here, "embedded": bool(own), "kept": name in kept}
            for name, t, here, own in (*made, *named)
        ], "error": _missing()}  # fmt: skip

    def suggest(self, part: str, limit: int) -> list[tuple[str, int | None]]:
        """Tags that hold what somebody has typed: the folder's own with their counts, the most frequent first, then those of the taggers' lists."""
        if not part.strip():
            return []
        with self._opened.lock:
            counts = self._opened.library.index.counts()
        own = fitting(((key(tag), tag) for tag, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))), part)[:limit]
        there = {words for words, _ in own}
        listed = (pair for pair in fitting(self._listed(), part) if pair[0] not in there) if len(own) < limit else ()
        spelled = str if "_" in part else with_spaces  # as it was begun
        return [*((tag, counts[tag]) for _, tag in own), *((spelled(tag), None) for _, tag in islice(listed, limit - len(own)))]

    def _listed(self) -> Named:
        """The lists of the models on this machine; without any, those of the taggers that need no file."""
        folder = tag_models.default_folder()
        files = [tag_models.list_of(name, folder) for name in tag_models.MODELS if tag_models.is_here(name, folder)]
        return of_files(files) or named(tag for make in self._made.values() for tag in make().tags.names)

    # ---- scoring -----------------------------------------------------------------------------------------------------

    def score(self, names: Sequence[str], scope: Scope, mode: str) -> dict[str, Any]:
        """Begins to score the pictures that have no scores yet of these taggers; in the mode skip only those without a caption. Raises ValueError."""
        names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
        if not names:
            raise ValueError("Choose a tagger.")
        with self._opened.lock:
            paths = to_tag(tagged(self._opened.library, scope), mode)
            return self._opened.begin("tag", lambda told: self._scored(names, paths, told))

    def _scored(self, names: Sequence[str], paths: Sequence[Path], told: Told) -> dict[str, Any]:
        problems: list[str] = []
        try:
            with closing(ScoreStore(self._opened.library.folder)) as store:
                for at, name in enumerate(names if paths else ()):
                    for report in self._reports(name, paths, store, told):
                        told(at * len(paths) + report.done, len(names) * len(paths), "tag")
                        problems += map(str, report.problems)
        finally:  # also what a stopped run has scored is there
            with self._opened.lock:
                self._opened.kept.forget()
        return {"pictures": len(paths), "told": list(dict.fromkeys(problems))[:SHOWN_PROBLEMS]}

    def _reports(self, name: str, paths: Sequence[Path], store: ScoreStore, told: Told) -> Iterable[Any]:
        known = self._stored_as(name, store.taggers())
        if known and not unscored(paths, known, store):
            return ()  # no model is needed
        found = self._loadable(name, told)
        self._kept_as[name] = found.name
        return score(paths, found.load(), store) if unscored(paths, found.name, store) else ()

    def _loadable(self, name: str, told: Told) -> _Loadable:
        """A tagger by its name in the list; its files are fetched where they are not here."""
        if name in self._made:
            made = self._made[name]()
            return _Loadable(made.name, lambda: made)
        check_runtime()
        files = tag_models.find(name, tag_models.default_folder(), lambda file, done, total: told(done, max(done, total), "fetch"))
        return _Loadable(files.tagger, lambda: open_wd14(files))

    # ---- what kept scores say ----------------------------------------------------------------------------------------

    def plan(self, order: TagOrder, scope: Scope) -> dict[str, Any]:
        """A preview of what tagging would write, and which tags come and go against the last one. Raises ValueError, also where a tagger was never asked here."""
        with self._opened.lock:
            folder = tagged(self._opened.library, scope)
            taggers, seen = self._seen(order)
            planned = plan_tags(folder, seen, taggers, order.rules, order.mode)
            found = tags_found(to_tag(folder, order.mode), seen, taggers, order.rules)
            missing = {path for path, tags in found.items() if tags is None}
            came, went = moved(self._before, found) if self._before.keys() == found.keys() else ({}, {})
            self._before = found
            planned = replace(planned, problems=tuple(problem for problem in planned.problems if problem.path not in missing))
            return {**self._opened.planned(planned), "unscored": len(missing), "came": _first(came), "went": _first(went)}

    def lacking(self, order: TagOrder, row: int) -> list[tuple[str, float]]:
        """The tags that reach the thresholds and are not in a row's caption, with their scores, the highest first; none where no tagger has seen it."""
        with self._opened.lock:
            library = self._opened.library
            picture, there = library.picture(row), set(map(key, library.tags(row)))
            there |= {key(word.strip()) for word in library.text(row).split(",")}
            taggers, seen = self._seen(order)
            found = tags_found([picture], seen, taggers, replace(order.rules, always=(), most=0, rating="none"))[picture]
            scores = self._opened.kept(picture)
            return [(tag, round(scores.get(key(tag), 0.0), 3)) for tag in found or () if key(tag) not in there]

    def _seen(self, order: TagOrder) -> tuple[list[tuple[str, Thresholds]], Seen]:
        """The taggers as their scores are kept, with thresholds, and those scores."""
        if not order.taggers:
            raise ValueError("Choose a tagger.")
        tables, taggers = self._opened.kept.tables(), {}
        for chosen in order.taggers:
            name = self._stored_as(chosen.name, tables)
            if not name:
                raise ValueError(f"{chosen.name} has not seen these pictures; let it tag them first.")
            taggers[name] = _thresholds(chosen, self._usual(chosen.name))
        return list(taggers.items()), Seen({name: tables[name] for name in taggers}, self._opened.kept.digests())

    def _stored_as(self, name: str, stored: Iterable[str]) -> str:
        """The name that a tagger's scores are kept under, of those that there are: the one of this session, or else of the last file of that name; "" for none."""
        if name in self._made:
            self._kept_as[name] = self._made[name]().name
        own = self._kept_as.get(name)
        plain = Path(os.path.expanduser(name))
        short = (plain.parent.name if plain.name == tag_models.MODEL else plain.stem) if plain.suffix.lower() == ".onnx" else plain.name
        fitting = [one for one in stored if one == own or (own is None and one.rpartition(" ")[0] in (name, short))]
        return fitting[-1] if fitting else ""

    def _usual(self, name: str) -> Thresholds:
        return self._made[name]().thresholds if name in self._made else tag_models.MODELS.get(name.partition("@")[0], Thresholds())


def tagged(library: Library, scope: Scope) -> TaggedFolder:
    """The pictures that are meant, with their captions. Raises ValueError."""
    rows = scope.of(library)
    return TaggedFolder(tuple(map(library.picture, rows)), tuple(map(library.file, rows)))


def _thresholds(chosen: Chosen, usual: Thresholds) -> Thresholds:
    """Those that were given; a general one alone is that of characters too."""
    if chosen.general is None and chosen.character is None:
        return usual
    general = usual.general if chosen.general is None else chosen.general
    return Thresholds(general, general if chosen.character is None else chosen.character, "given")


def _missing() -> str:
    try:
        check_runtime()
    except ValueError as error:
        return str(error)
    return ""


def _first(counts: Any) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN_TAGS]
