"""A data folder as the panel and the command line have it open: pictures, captions, tags, the filter, edits and what takes them back.

    with Library.open("my-cat") as library:
        rows = library.find("lips, NOT closed mouth")
        planned = library.plan(Edit("remove", {"tags": ["lips"]}), rows)      # str(planned): "37 of 412 change"
        library.apply(planned)                                                # library.undo(), library.redo()

A picture is a row: a number that is its own as long as the folder is open, also when others come and go.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from ..disk import absolute
from ..settings import DataConfig
from . import edits, filters, sources
from .captions import Caption, CaptionFile, Tags, parse, read
from .edits import Context, Edit, Plan
from .file_names import Names, plain
from .items import Problem, caption_alike, caption_files, masks_of, pictures_below
from .journal import Journal
from .journal_file import Change, Entry, Move, read_changes
from .tag_edits import key
from .tag_index import Rows, TagIndex

Below = tuple[list[Path], list[Problem]]
Scores = Callable[..., Mapping[str, float]]  # of a picture, by tag as `tag_edits.key` has it; empty where no tagger has seen it; see `kept_scores`


@dataclass(frozen=True)
class Listing:
    """What lies in a folder: the caption file of each picture, those captions as read, and what is wrong."""

    captions: Mapping[Path, Path]
    files: Mapping[Path, CaptionFile]
    problems: tuple[Problem, ...]


def listing(folder: str | Path, extensions: str = DataConfig.caption_extension, below: Below | None = None) -> Listing:
    """Reads a folder, or of it what `pictures_below` gave. A caption file that is not there yet is one without data.

    `extensions` are endings in order of preference; the first is that of new files. What a list (metadata.jsonl, metadata.csv) captions is left out: a run
    reads the list. Raises ValueError where there is no such folder or no picture in it.
    """
    pictures, problems = below or pictures_below(folder)
    listed: dict[Path, str] = {}
    for path in sorted(parent / name for parent in {path.parent for path in pictures} for name in sources.LISTS):
        if path.is_file():
            listed |= sources.listed_captions(path, lambda *what: problems.append(Problem(*what)))
            problems.append(Problem(path, "has captions of its own, which are not edited here; move it away to edit files instead", "list"))
    names = Names()
    captions = {path: _caption_of(path, extensions, names) for path in pictures if path not in listed}
    root = os.path.join(os.path.realpath(absolute(folder)), "")
    links = {file: os.path.realpath(file) for file in captions.values() if os.path.islink(file)}
    outside = {file for file, real in links.items() if not real.startswith(root)}  # whose words are not this data set's
    problems += [Problem(file, "is a link out of the folder and is left alone; put a copy in its place", "list") for file in sorted(outside)]
    captions = _merged(captions, links)
    files, unread = read(file for file in dict.fromkeys(captions.values()) if file not in outside)
    read_ones = {file.path: file for file in files}
    return Listing({path: file for path, file in captions.items() if file in read_ones}, read_ones, (*problems, *unread, *_shared(captions)))


def open_captions(folder: str | Path, extensions: str = DataConfig.caption_extension) -> tuple[list[CaptionFile], list[Problem]]:
    """The caption files below a folder, and what is wrong; see `listing`."""
    found = listing(folder, extensions)
    return list(found.files.values()), list(found.problems)


def _caption_of(picture: Path, extensions: str, names: Names) -> Path:
    files = caption_files(picture, extensions) or [picture.with_suffix(".txt")]
    return next((file for file in files if os.path.isfile(file)), None) or caption_alike(picture, files, names) or files[0]


def _merged(captions: Mapping[Path, Path], links: Mapping[Path, str]) -> dict[Path, Path]:
    """The same with one path for each file: a link and what it leads to, or on some disks `Cat.txt` and `cat.txt`, cannot both be changed by one edit."""
    folders: dict[str, str] = {}
    first: dict[str, Path] = {}  # by where it really lies
    alike: dict[str, tuple[Path, Path]] = {}  # by a name that is the same for all capitals: the first of them, and its picture
    merged = {}
    for picture, file in captions.items():
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        real = (links.get(file) if links else None) or f"{folders[folder]}{os.sep}{name}"
        if real not in first:
            other, owner = alike.setdefault(plain(real), (file, picture))
            first[real] = other if other is not file and _is_one(other, file, owner) else file
        merged[picture] = first[real]
    return merged


def _is_one(caption: Path, other: Path, picture: Path) -> bool:
    """Whether two captions that are called alike are one file: of those that are there the disk says it, else whether it finds a picture in other capitals too."""
    if os.path.exists(caption) and os.path.exists(other):
        return os.path.samefile(caption, other)
    swapped = picture.with_name(picture.name.swapcase())
    return swapped.exists() and swapped.samefile(picture)


def _shared(captions: Mapping[Path, Path]) -> list[Problem]:
    """Pictures whose endings alone differ have one caption between them."""
    owners: dict[Path, Path] = {}
    return [Problem(path, f"shares its caption file with {owners[file].name}; rename one of them", "clash")
            for path, file in captions.items() if owners.setdefault(file, path) != path]  # fmt: skip


class Library:
    """An open folder. `journal` is None where it cannot be written, and `reason` says why; then it can be looked at alone.

    It is what the filter asks (`filters.Table`). Methods are not to be called from two threads at once.
    """

    def __init__(self, folder: str | Path, extensions: str = DataConfig.caption_extension, journal: Journal | None = None, reason: str = "", below: Below | None = None):
        self.folder, self.extensions = Path(folder), extensions
        self.journal, self.reason = journal, reason
        self.index = TagIndex()
        self.pictures: dict[int, Path] = {}  # in the order of the folder
        self.problems: tuple[Problem, ...] = ()
        self.scores: Scores = lambda picture, tags=(): {}
        self.found: dict[int, tuple[str, ...]] = {}  # kinds of what an audit found, by row
        self.crops: Callable[[Path], str] = lambda picture: "none"
        self.crop_troubles: Callable[[Path], tuple[str, ...]] = lambda picture: ()  # kinds of what is wrong with its crops
        self._files: dict[Path, CaptionFile] = {}
        self._file_of: dict[int, Path] = {}
        self._rows_of: dict[Path, list[int]] = defaultdict(list)
        self._count = lru_cache(maxsize=1 << 17)(_tokens)
        self._next = 0
        self.read(below)

    @classmethod
    def open(cls, folder: str | Path, extensions: str = DataConfig.caption_extension) -> Library:
        """Opens a folder, for editing where that is possible. Raises ValueError where there is no such folder or no picture in it."""
        folder = absolute(folder)
        below = pictures_below(folder)  # before a journal is made in a folder that is none of ours
        journal, reason = _journal(folder)
        try:
            return cls(folder, extensions, journal, reason, below)
        except (OSError, ValueError):
            if journal:
                journal.close()
            raise

    def __enter__(self) -> Library:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets the folder go."""
        if self.journal:
            self.journal.close()

    def try_again(self) -> None:
        """Where the folder could not be edited, sees whether it can be now: another program may have let it go."""
        if self.journal is None:
            self.journal, self.reason = _journal(self.folder)

    def read(self, below: Below | None = None) -> None:
        """Reads the folder anew: what other programs changed is seen; pictures that stay keep their numbers."""
        found = listing(self.folder, self.extensions, below or pictures_below(self.folder, needed=False))
        known = {path: row for row, path in self.pictures.items()}
        rows: dict[int, Path] = {}
        for path in found.captions:
            row = known.pop(path, None)
            if row is None:
                row, self._next = self._next, self._next + 1
            rows[row] = path
        for row in known.values():
            self.index.put(row, self.tags(row), ())
        before = {row: self.tags(row) for row in rows if row in self._file_of}
        self.pictures, self.problems, self._files = rows, found.problems, dict(found.files)
        self._file_of = {row: found.captions[path] for row, path in rows.items()}
        self._rows_of = defaultdict(list)
        for row, file in self._file_of.items():
            self._rows_of[file].append(row)
            self.index.put(row, before.get(row, ()), self.tags(row))

    # ---- rows --------------------------------------------------------------------------------------------------------

    def everything(self) -> Rows:
        """All rows."""
        return set(self.pictures)

    def picture(self, row: int) -> Path:
        """A row's picture. Raises ValueError where there is no such row."""
        if row not in self.pictures:
            raise ValueError("That picture is not in the folder any more; read the folder anew.")
        return self.pictures[row]

    def file(self, row: int) -> CaptionFile:
        """A row's caption file."""
        return self._files[self._file_of[row]]

    def caption(self, row: int) -> Caption:
        """A row's caption."""
        return self.file(row).caption

    def rows_at(self, paths: Iterable[Path]) -> list[int]:
        """The rows whose pictures or captions lie at these paths, each once."""
        own = {path: [row] for row, path in self.pictures.items()}
        return list(dict.fromkeys(row for path in paths for row in own.get(path) or self._rows_of.get(path, ())))

    def name(self, row: int) -> str:
        """The file name of a row's picture."""
        return self.pictures[row].name

    def place(self, row: int) -> str:
        """The path of a row's picture in the folder, with slashes."""
        return self.pictures[row].relative_to(self.folder).as_posix()

    def text(self, row: int) -> str:
        """A row's caption as typed."""
        return self.caption(row).text

    def tags(self, row: int) -> Tags:
        """A row's tags, those of all its lines."""
        return self.caption(row).tags

    def lines(self, row: int) -> int:
        """How many lines of a row's caption hold anything."""
        return sum(bool(line.tags) for line in self.caption(row).lines)

    def tokens(self, row: int) -> int:
        """How many of CLIP's tokens the longest line of a row's caption has; a run gives a prompt 75 at once."""
        return max(self._count(line.text) for line in self.caption(row).lines)

    def count_tokens(self, text: str) -> int:
        """CLIP's tokens of a text; each is counted once."""
        return self._count(text)

    def score(self, row: int, tag: str) -> float | None:
        """What the tagger gave a tag of a row's picture; None where it has not seen the picture."""
        scores = self.scores(self.pictures[row])
        return scores.get(key(tag), 0.0) if scores else None

    def crop(self, row: int) -> str:
        """How far the crop of a row's picture is: none, auto, adjusted, approved or stale."""
        return self.crops(self.pictures[row])

    def troubles(self, row: int) -> tuple[str, ...]:
        """Kinds of what is wrong with a row."""
        return self.found.get(row, ()) + self.crop_troubles(self.pictures[row])

    # ---- what is looked for, and what is done ------------------------------------------------------------------------

    def find(self, line: str) -> list[int]:
        """Rows that a line of the filter language names, in the order of the folder. Raises ValueError for a line that is none."""
        rows = filters.parse(line)(self, self.everything())
        return [row for row in self.pictures if row in rows]

    def plan(self, edit: Edit, rows: Iterable[int] | None = None) -> Plan:
        """What an edit would do to these rows, or to all. Raises ValueError."""
        chosen = self.pictures if rows is None else rows
        files = dict.fromkeys(self._file_of[row] for row in chosen if row in self._file_of)
        owners = {file: self.pictures[self._rows_of[file][0]] for file in files}
        context = Context(tokens=self._count, scores=lambda file: self.scores(owners[file], self._files[file].caption.tags) if file in owners else {})
        unseen = [file for file in files if not self.scores(owners[file])] if edits.by_scores(edit) else []
        if unseen and len(unseen) == len(files):
            raise ValueError("No tagger has seen these pictures; tag them first.")
        planned = edits.plan([self._files[file] for file in files], edit, context)
        problems = [Problem(owners[file], "has no scores and stays as it is", "no tags") for file in unseen]
        return replace(planned, problems=(*planned.problems, *problems)) if problems else planned

    def apply(self, planned: Plan) -> Entry | None:
        """Carries a plan out, all of it or nothing. Raises ValueError where a file changed since or nothing can be written here, OSError."""
        entry = edits.apply(planned, self._writable())
        self._took(planned.changes, forward=True)
        return entry

    def delete(self, rows: Sequence[int]) -> Entry | None:
        """Moves pictures to the folder's trash, and with them their captions of all endings and their masks where no other picture has them.

        What stayed would be that of another picture which gets the name later. Raises ValueError, OSError.
        """
        gone = set(rows)
        paths = [self.picture(row) for row in rows]
        left = {path.with_suffix("") for row, path in self.pictures.items() if row not in gone}
        used = {file for file, owners in self._rows_of.items() if not gone.issuperset(owners)}
        used |= {Path(os.path.realpath(file)) for file in used if file.is_symlink()}
        names = Names()
        owners: dict[Path, Path] = {}
        for path in paths:
            files = [_caption_of(path, self.extensions, names), *caption_files(path, self.extensions), *masks_of(path, names)] if path.with_suffix("") not in left else []
            for file in files:  # what a link leads to stays
                if os.path.lexists(file) and (file.is_symlink() or not used & {file, Path(os.path.realpath(file))}):
                    owners.setdefault(file, path)
        entry = self._writable().delete([*paths, *sorted(owners)], owners)
        self.read()
        return entry

    def undo(self, partly: bool = True) -> Entry | None:
        """Takes the last edit back; None where there is none. See `Journal.undo`."""
        return self._turned(self._writable().undo(partly), forward=False)

    def redo(self, partly: bool = True) -> Entry | None:
        """Does again what was taken back last; None where there is none. See `Journal.undo`."""
        return self._turned(self._writable().redo(partly), forward=True)

    def _writable(self) -> Journal:
        if self.journal is None:
            raise ValueError(f"Nothing can be edited here: {self.reason}")
        return self.journal

    def _turned(self, entry: Entry | None, forward: bool) -> Entry | None:
        if entry:
            changes = read_changes(entry, self.folder)
            if entry.left or any(isinstance(change, Move) for change in changes):
                self.read()
            else:
                self._took(changes, forward)
        return entry

    def _took(self, changes: Iterable[Change | Move], forward: bool) -> None:
        """Files have changed on the disk."""
        for change in changes:
            if not isinstance(change, Change) or change.path not in self._files:
                continue
            old, data = self._files[change.path], change.after if forward else change.before
            new = CaptionFile(change.path, data, parse(data or b"", old.caption.lines[0].kind))
            self._files[change.path] = new
            for row in self._rows_of[change.path]:
                self.index.put(row, old.caption.tags, new.caption.tags)


def _journal(folder: Path) -> tuple[Journal | None, str]:
    """The journal of a folder, or why there is none."""
    try:
        return Journal(folder), ""
    except (OSError, ValueError) as error:
        return None, str(error)


def _tokens(text: str) -> int:
    """CLIP's tokens of a text. Blanks part them, so that each word is counted once; letters that may be mended across blanks go as a whole."""
    return sum(map(_encoded, text.split())) if text.isascii() and "&" not in text else _encoded(text)


@lru_cache(maxsize=1 << 17)
def _encoded(text: str) -> int:
    from ..sd.tokenizer import Tokenizer  # it takes a quarter of a second, and few need it

    return len(Tokenizer().encode(text))
