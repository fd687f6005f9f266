"""Captions by the host's own models in an open folder: made as long work, then seen and written from what is kept.

    captions = FolderCaptions.of(opened, sets.captioners)
    captions.make("BLIP", scope, "skip")               # opened.work() says how far it is
    captions.plan("BLIP", "skip", scope)               # a preview for opened.apply
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from .data.captioning import caption, plan_captions
from .data.tag_scores import ScoreStore
from .data.tagging import to_tag
from .dataset_tags import SHOWN_PROBLEMS, tagged
from .datasets import OpenFolder, Scope
from .host import Captioner
from .work import Told


class FolderCaptions:
    """The captioners' part of one open folder; `captioners` by the names that a page shows."""

    def __init__(self, opened: OpenFolder, captioners: Mapping[str, Captioner]):
        self._opened, self._captioners = opened, captioners

    @classmethod
    def of(cls, opened: OpenFolder, captioners: Mapping[str, Captioner]) -> FolderCaptions:
        """That of a folder, the same each time."""
        return opened.part(cls, lambda: cls(opened, captioners))

    def list(self) -> list[dict[str, Any]]:
        """The captioners there are, as the list of taggers has them; and whether they have said something of this folder, with their settings of now."""
        with self._opened.lock:
            kept = self._opened.kept.texts()
        return [{"name": name, "words": True, "here": True, "embedded": False, "kept": one.name in kept} for name, one in self._captioners.items()]

    def make(self, name: str, scope: Scope, mode: str) -> dict[str, Any]:
        """Begins to ask about the pictures of which nothing was said yet; in the mode skip only those without a caption. Raises ValueError."""
        captioner = self._named(name)
        with self._opened.lock:
            paths = to_tag(tagged(self._opened.library, scope), mode)
            return self._opened.begin("caption", lambda told: self._made(captioner, paths, told))

    def _made(self, captioner: Captioner, paths: Sequence[Path], told: Told) -> dict[str, Any]:
        problems: list[str] = []
        try:
            with closing(ScoreStore(self._opened.library.folder)) as store, closing(caption(paths, captioner, store)) as reports:
                for report in reports:
                    problems += map(str, report.problems)
                    told(report.done, report.total, "turn" if report.waiting else "caption")
        finally:  # also what a stopped one has made is there
            with self._opened.lock:
                self._opened.kept.forget()
        return {"pictures": len(paths), "told": problems[:SHOWN_PROBLEMS]}

    def plan(self, name: str, mode: str, scope: Scope) -> dict[str, Any]:
        """A preview of what would be written, from what is kept. Raises ValueError, also where nothing was ever said here."""
        captioner = self._named(name)
        with self._opened.lock:
            kept = self._opened.kept
            if captioner.name not in kept.texts():
                raise ValueError(f"{name} has not seen these pictures; let it describe them first.")
            folder, said = tagged(self._opened.library, scope), kept.texts()[captioner.name]
            texts = {picture: said[digest] for picture, digest in kept.digests().items() if digest in said}
            unmade = sum(picture not in texts for picture in to_tag(folder, mode))
            return {**self._opened.planned(plan_captions(folder, texts, name, mode)), "unscored": unmade}

    def _named(self, name: str) -> Captioner:
        if name not in self._captioners:
            raise ValueError(f"There is no model {name!r} that describes pictures here.")
        return self._captioners[name]
