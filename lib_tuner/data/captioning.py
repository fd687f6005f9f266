"""Captions by a model that writes sentences: what it says of a picture is kept beside the scores, and from what is kept follows what would be written.

    with ScoreStore("my-cat") as store:
        for at in caption(folder.pictures, captioner, store): ...       # writes no caption; goes on where it was stopped
        planned = plan_captions(folder, texts, "BLIP", "skip")
    edits.apply(planned, journal)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..host import Captioner
from .captions import Tags, tags_of
from .edits import Plan, plan_each
from .items import Problem
from .tag_edits import key
from .tag_scores import ScoreStore
from .tagging import TaggedFolder, read, to_tag, written_beside

TURN = 20.0  # s after which others who wait for the host have theirs


@dataclass(frozen=True)
class Captioning:
    """How far it is: `done` of `total` pictures; `waiting` for the host and its model; pictures since the last report that cannot be read."""

    done: int
    total: int
    waiting: bool = False
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Written:
    """What the journal keeps of captions that were written."""

    args: dict[str, Any]
    name: str = "caption"


def caption(paths: Sequence[Path], captioner: Captioner, store: ScoreStore, clock: Callable[[], float] = time.monotonic) -> Iterator[Captioning]:
    """Asks about the pictures of which nothing was said yet, and keeps each answer at once; where nothing is to be asked, the host is left alone.

    Ends when it is closed. Raises ValueError where the model cannot be loaded or fails, OSError where nothing can be kept.
    """
    name = captioner.name
    todo, known = unsaid(paths, name, store), set(store.captions(name))
    while todo:
        waiting = Captioning(len(paths) - len(todo), len(paths), waiting=True)
        yield waiting
        with captioner.at_work() as turn:
            while (say := turn()) is None:
                yield waiting
            end = clock() + TURN
            while todo:
                seen = read(todo.pop(0), lambda picture: picture)
                if not seen.problem and seen.digest not in known:
                    known.add(seen.digest)
                    store.keep_captions(name, {seen.digest: " ".join(say(seen.prepared).split())})
                if not seen.problem:
                    store.remember({seen.path: (seen.stamp, seen.digest)})
                yield Captioning(len(paths) - len(todo), len(paths), problems=(seen.problem,) if seen.problem else ())
                if clock() >= end:
                    break


def unsaid(paths: Sequence[Path], captioner: str, store: ScoreStore) -> list[Path]:
    """The pictures of which a captioner has said nothing, as they are now."""
    known, digests = store.captions(captioner), store.digests(paths)
    return [path for path in paths if digests.get(path) not in known]


def plan_captions(folder: TaggedFolder, texts: Mapping[Path, str], title: str, mode: str) -> Plan:
    """What would be written, from kept texts by picture; modes as `tagging.plan_tags` has them, and a picture without a text keeps its caption.

    A text is put beside what is there, on the same line, without what that line says already. Raises ValueError for a mode that there is not.
    """
    found = {picture: texts[picture] for picture in to_tag(folder, mode) if picture in texts}
    parts: dict[Path, Tags] = {file.path: tags_of(found.get(picture, "")) for picture, file in folder.pairs()}
    same = lru_cache(None)(key)
    planned = plan_each(folder.captions, Written({"captioner": title, "mode": mode}), lambda path: written_beside(parts[path], mode, same))
    silent = [Problem(picture, "got no words of the model and stays as it is", "no tags") for picture, text in found.items() if not text]
    return replace(planned, problems=(*planned.problems, *silent))
