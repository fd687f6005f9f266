"""Checks of the captions of a data set; where an edit mends what is found, the finding brings it along.

    findings = list(audit_captions(files, CaptionRules(trigger="zwx cat", tokens=count)))
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..settings import DataConfig
from ..words import number_of
from . import tag_variants, tag_words
from .captions import CaptionFile
from .edits import Edit
from .file_names import plain
from .finding import Finding
from .items import Problem, caption_files
from .tag_edits import key

TOKENS = 75  # of one chunk of CLIP's
_NO_CAPTIONS = frozenset("readme license licence requirements notes prompts metadata credits".split())  # text files that lie beside pictures and describe none


@dataclass(frozen=True)
class CaptionRules:
    """What captions are held against: the trigger word ("" for none), what counts CLIP's tokens of a text (None leaves length out), and each caption's picture."""

    trigger: str = ""
    tokens: Callable[[str], int] | None = None
    limit: int = TOKENS
    pictures: Mapping[Path, Path] = field(default_factory=dict)


def audit_captions(files: Sequence[CaptionFile], rules: CaptionRules = CaptionRules()) -> Iterator[Finding]:
    """All findings about captions: those of single files first, then those of the whole set."""
    files = list({file.path: file for file in files}.values())
    tokens = _remembering(rules.tokens)
    for file in files:
        yield from _content(file, rules, tokens)
        yield from _contradictions(file)
    yield from _trigger(files, rules.trigger)
    yield from _overlays(files)
    yield from _mixed(files)
    yield from _bytes(files)
    yield from _spelled(files)
    yield from _misspelled(files, rules, tokens)


# ---- one caption -----------------------------------------------------------------------------------------------------


def _content(file: CaptionFile, rules: CaptionRules, tokens: Callable[[str], int] | None) -> Iterator[Finding]:
    """No caption, one tag, a tag twice, too long a line."""
    name, tags = file.path.name, file.caption.tags
    if not tags:
        yield Finding("no caption", (file.path,), str(Problem(rules.pictures.get(file.path, file.path.with_suffix("")), "has no caption")) if file.data is None else f"{name} is empty.")
        return
    plain = [line for line in file.caption.lines if line.tags and not line.is_text]
    if len(tags) == 1 and plain:
        yield Finding("one tag", (file.path,), f"{name} has one tag alone, {tags[0]!r}.", amount=1.0)
    twice = [tag for line in plain for words, n in Counter(map(key, line.tags)).items() if n > 1 for tag in [words]]
    if twice:
        yield Finding("tag twice", (file.path,), f"{name} has {', '.join(map(repr, twice))} more than once.", (Edit("deduplicate"),), float(len(twice)))
    longest = max((tokens(line.text) for line in file.caption.lines), default=0) if tokens else 0
    if longest > rules.limit:
        mends = (Edit("truncate", {"limit": rules.limit, "pinned": [rules.trigger] if rules.trigger else []}),) if plain else ()
        text = f"{name} has {longest} tokens; a run reads the first {rules.limit} together and the rest apart, so what counts should come first."
        yield Finding("long caption", (file.path,), text, mends, float(longest))


def _contradictions(file: CaptionFile) -> Iterator[Finding]:
    """Tags of which a picture has one only; each of them is offered as the one to keep."""
    for line in file.caption.lines:
        if line.is_text:
            continue
        for _, here in tag_words.conflicts({key(tag): tag for tag in line.tags}):
            mends = tuple(Edit("choose", {"tag": tag, "group": here}) for tag in here)
            yield Finding("contradiction", (file.path,), f"{file.path.name} says {' and '.join(map(repr, here))}, of which a picture has one only; keep one of them.", mends, float(len(here)))


# ---- the whole set ---------------------------------------------------------------------------------------------------


def _trigger(files: Sequence[CaptionFile], trigger: str) -> Iterator[Finding]:
    """Captions without the trigger word, and those in which it is not first: shuffling keeps the first tag alone."""
    wanted = key(" ".join(trigger.split()))
    if not wanted:
        return
    missing, later = [], []
    for file in files:
        lines = [line for line in file.caption.lines if line.tags]
        if any(wanted not in key(line.text) if line.is_text else wanted not in map(key, line.tags) for line in lines):
            missing.append(file.path)
        elif any(not line.is_text and key(line.tags[0]) != wanted for line in lines):
            later.append(file.path)
    if missing:
        text = f"Captions without the trigger word {trigger!r}: {len(missing)} of {len(files)}."
        yield Finding("trigger missing", tuple(missing), text, (Edit("add", {"tags": [trigger], "where": "first"}),), float(len(missing)))
    if later:
        text = f"Captions in which the trigger word {trigger!r} is not the first tag, so that shuffling moves it: {len(later)} of {len(files)}."
        yield Finding("trigger not first", tuple(later), text, (Edit("front", {"tags": [trigger]}),), float(len(later)))


def _overlays(files: Sequence[CaptionFile]) -> Iterator[Finding]:
    """Tags that say that something was written over the picture."""
    found: dict[str, list[Path]] = {}
    for file in files:
        for words in {key(tag) for tag in file.caption.tags if tag_words.kind_of(tag) == "overlay"}:
            found.setdefault(words, []).append(file.path)
    for words, paths in sorted(found.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        text = f"Pictures with {words!r} by their tags: {len(paths)}. Crop it off or paint it over, else it is learned."
        yield Finding("written over", tuple(paths), text, amount=float(len(paths)))


def _mixed(files: Sequence[CaptionFile]) -> Iterator[Finding]:
    """Sentences among tags: the kind that fewer captions are of."""
    prose, tags = [], []
    for file in files:
        kinds = {line.is_text for line in file.caption.lines if line.tags}
        (prose if kinds == {True} else tags if kinds == {False} else []).append(file.path)
        if len(kinds) == 2:
            yield Finding("sentences and tags", (file.path,), f"{file.path.name} has lines of sentences and lines of tags.")
    fewer = min(prose, tags, key=len)
    if fewer:
        text = f"Captions of sentences where most are of tags: {len(prose)}." if fewer is prose else f"Captions of tags where most are of sentences: {len(tags)}."
        yield Finding("sentences and tags", tuple(fewer), text, amount=float(len(fewer)))


def _bytes(files: Sequence[CaptionFile]) -> Iterator[Finding]:
    """Encodings that other programs misread, and line breaks of Windows."""
    halves = [file for file in files if file.caption.has_nul]
    unknown = [file.path for file in files if file.caption.unknown and not file.caption.has_nul]
    odd = [file.path for file in files if file.caption.encoding != "utf-8" and not file.caption.unknown]
    for order in sorted({file.caption.halves for file in halves}):  # a mend only where it is known which
        of_it = tuple(file.path for file in halves if file.caption.halves == order)
        text = f"Captions with NUL characters, most likely UTF-16 without a byte order mark: {len(of_it)}. Save them as UTF-8."
        yield Finding("not UTF-8", of_it, text, (Edit("utf8", {"encoding": order}),) if order else (), float(len(of_it)))
    marked = [file.path for file in files if file.caption.encoding == "utf-8" and file.caption.bom]
    breaks = [file.path for file in files if any("\r" in end for end in file.caption.ends)]
    if unknown:
        text = f"Captions that are neither UTF-8 nor UTF-16 and were read as Windows-1252: {len(unknown)}. Save them as UTF-8 where their letters are right."
        yield Finding("not UTF-8", tuple(unknown), text, (Edit("utf8", {"encoding": "cp1252"}),), float(len(unknown)))
    if odd:
        text = f"Captions that are not UTF-8, which other programs misread or refuse: {len(odd)}. See whether their letters are right."
        yield Finding("not UTF-8", tuple(odd), text, (Edit("utf8"),), float(len(odd)))
    if marked:
        text = f"Captions with a byte order mark, which other programs take for a part of the first tag: {len(marked)}."
        yield Finding("byte order mark", tuple(marked), text, (Edit("utf8"),), float(len(marked)))
    if breaks:
        text = f"Captions with the line breaks of Windows: {len(breaks)}. A run reads them like others."
        yield Finding("Windows line breaks", tuple(breaks), text, amount=float(len(breaks)))


def _spelled(files: Sequence[CaptionFile]) -> Iterator[Finding]:
    """One tag in several spellings; singular beside plural. The more frequent one is offered."""
    typed = _where(files, lambda tag: tag)
    for usual, others in tag_variants.spellings({tag: len(paths) for tag, paths in typed.items()}):
        paths = _all(typed[tag] for tag in others)
        text = f"{usual!r} is also written {' and '.join(map(repr, others[:3]))} (captions: {len(paths)})."
        yield Finding("spelling", paths, text, (Edit("rename", {"names": {others[0]: usual}}),), float(len(paths)))
    where, names = _where(files, key), _usual(typed)
    counts = {words: len(paths) for words, paths in where.items()}
    for usual, other in tag_variants.plurals(counts):
        text = f"{other!r} ({counts[other]}) beside {usual!r} ({counts[usual]}): one of them may be enough."
        yield Finding("singular and plural", tuple(where[other]), text, (Edit("rename", {"names": {other: names[usual]}}),), float(counts[other]))


def _misspelled(files: Sequence[CaptionFile], rules: CaptionRules, tokens: Callable[[str], int] | None) -> Iterator[Finding]:
    """Tags used once that are one letter away from a frequent one."""
    where, names = _where(files, key), _usual(_where(files, lambda tag: tag))
    counts = {words: len(paths) for words, paths in where.items() if words != key(rules.trigger)}
    for rare, meant in tag_variants.typos(counts, tokens):
        text = f"{where[rare][0].name} has {rare!r}, which no other caption has; {meant!r} ({number_of(counts[meant], 'caption')}) may be meant."
        yield Finding("typing error", tuple(where[rare]), text, (Edit("rename", {"names": {rare: names[meant]}}),), float(counts[meant]))


# ---- files -----------------------------------------------------------------------------------------------------------


def audit_names(pictures: Iterable[Path], extensions: str = DataConfig.caption_extension) -> Iterator[Finding]:
    """Pictures that share a caption file because only their endings differ, and caption files beside pictures that are no picture's. Reads folders, no file."""
    pictures = list(pictures)
    stems: dict[Path, list[Path]] = {}
    for path in pictures:
        stems.setdefault(path.with_suffix(""), []).append(path)
    for paths in stems.values():
        if len(paths) > 1:
            yield Finding("shared caption", tuple(paths), f"{' and '.join(path.name for path in paths)} share one caption file; rename one of them.", amount=float(len(paths)))
    files = [file for path in pictures for file in caption_files(path, extensions)]
    owned, endings = {str(file) for file in files}, {file.suffix.lower() for file in files}
    meant = {plain(str(file)) for file in files if not os.path.exists(file)}  # what is called like one that is not there
    for folder in sorted({path.parent for path in pictures}):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in endings and str(file) not in owned and plain(str(file)) not in meant and file.stem.lower() not in _NO_CAPTIONS and not file.name.startswith(".") and file.is_file():
                yield Finding("no picture", (file,), f"{file.name} is a caption without a picture; was the picture renamed?")


# ---- small parts -----------------------------------------------------------------------------------------------------


def _where(files: Sequence[CaptionFile], of: Callable[[str], str]) -> dict[str, list[Path]]:
    """The captions in which each tag is; sentences have none."""
    found: dict[str, list[Path]] = {}
    for file in files:
        for words in dict.fromkeys(of(tag) for line in file.caption.lines if not line.is_text for tag in line.tags):
            found.setdefault(words, []).append(file.path)
    return found


def _usual(typed: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """`tag_edits.key` -> the spelling that most captions have."""
    return {key(tag): tag for tag in sorted(typed, key=lambda tag: (len(typed[tag]), tag))}


def _all(many: Iterable[Iterable[Path]]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(path for paths in many for path in paths))


def _remembering(tokens: Callable[[str], int] | None) -> Callable[[str], int] | None:
    """The counter that counts each text once."""
    if tokens is None:
        return None
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in known:
            known[text] = tokens(text)
        return known[text]

    return count
