"""The captions of a data folder, as the panel and the command line open it."""

from __future__ import annotations

from pathlib import Path

from ..settings import DataConfig
from . import sources
from .captions import CaptionFile, read
from .items import Problem, caption_files, pictures_below


def open_captions(folder: str | Path, extensions: str = DataConfig.caption_extension) -> tuple[list[CaptionFile], list[Problem]]:
    """The caption file of each picture below a folder, those that are not there yet among them, and what is wrong.

    `extensions` are endings in order of preference; the first is that of new files. What a list (metadata.jsonl, metadata.csv) captions is left out: a run
    reads the list. Raises ValueError where there is no such folder or no picture in it.
    """
    pictures, problems = pictures_below(folder)
    listed: dict[Path, str] = {}
    for path in sorted({path.parent / name for path in pictures for name in sources.LISTS}):
        if path.is_file():
            listed |= sources.listed_captions(path, lambda *what: problems.append(Problem(*what)))
            problems.append(Problem(path, "has captions of its own, which are not edited here; move it away to edit files instead", "list"))
    files, unread = read(_caption_of(path, extensions) for path in pictures if path not in listed)
    return files, problems + unread


def _caption_of(picture: Path, extensions: str) -> Path:
    files = caption_files(picture, extensions) or [picture.with_suffix(".txt")]
    return next((file for file in files if file.is_file()), files[0])
