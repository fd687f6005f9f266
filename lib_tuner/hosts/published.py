"""Saved files in the folders where the host looks for them, as links: nothing is copied where the disk can link, and nobody's file is replaced.

A run's final file keeps its name; a save in between is called after the run's folder and its step (`my-cat-002-000500`), which is the only one of that
name. A file that is there already is replaced only where its content stays in a run's folder; else the new one gets a number.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import threading
from pathlib import Path

from ..disk import atomic
from ..runs import step_of
from ..settings import SAVE

LEDGER = "published.tuner"  # JSON in the output folder: {published file: the run's file}
CARD = (".json", ".preview.png")  # what the host shows of a LoRA
_RUN = re.compile(r"(.+)-\d{3,}")
_LISTING = threading.Lock()  # the ledger: a run's own thread and a person's click may change it at the same moment


def publish(source: Path, folder: Path, home: Path) -> Path:
    """Makes `source` a file of the host's `folder`; the same file goes to the same place again. Raises OSError."""
    with _LISTING:
        ledger = _read(home)
        folder.mkdir(parents=True, exist_ok=True)
        source = source.resolve()
        wanted, number = folder.resolve() / (name_of(source) + source.suffix), 1
        target = wanted
        yaml = source.with_suffix(".yaml")  # a checkpoint's, which the host does not build rightly without
        while not _may_take(target, source, ledger) or yaml.is_file() and str(target) not in ledger and target.with_suffix(".yaml").exists():
            number += 1
            target = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        _link(source, target)
        _write(home, {**_alive(ledger), str(target): str(source)})
    if yaml.is_file():
        shutil.copyfile(yaml, target.with_suffix(".yaml"))
    for ending in CARD:  # the host writes into them when its user edits the card, so they are copies and are never replaced
        if source.with_suffix(ending).is_file() and not target.with_suffix(ending).exists():
            shutil.copyfile(source.with_suffix(ending), target.with_suffix(ending))
    return target


def renew_card(source: Path, home: Path) -> None:
    """A person has written the card of a run's file anew: the host's copy follows. Raises OSError."""
    target = published_as(home).get(source.resolve())
    for ending in CARD if target else ():
        if source.with_suffix(ending).is_file():
            shutil.copyfile(source.with_suffix(ending), target.with_suffix(ending))


def name_of(source: Path) -> str:
    """What a run's file is called in a prompt."""
    save, run = SAVE.fullmatch(source.stem), _RUN.fullmatch(source.parent.name)
    if not save:
        return source.stem
    own = run and run[1] == save[1]
    return f"{source.parent.name}-{save[2] if own else source.stem}"


def sweep(home: Path) -> list[Path]:
    """Takes back the saves in between whose run has them no longer (pruned, deleted, renamed); final files stay. Returns what went."""
    with _LISTING:
        ledger, gone = _read(home), []
        for target, source in ledger.items():
            if not Path(source).is_file() and Path(target).is_file() and step_of(Path(target)) is not None:
                Path(target).unlink()
                for ending in (*CARD, ".yaml"):
                    Path(target).with_suffix(ending).unlink(missing_ok=True)
                gone.append(Path(target))
        if ledger != _alive(ledger):
            _write(home, _alive(ledger))
    return gone


def published_as(home: Path) -> dict[Path, Path]:
    """{a run's file: where the host has it}."""
    return {Path(source): Path(target) for target, source in _read(home).items()}


def _may_take(target: Path, source: Path, ledger: dict[str, str]) -> bool:
    """Whether what lies at `target` is nothing, an earlier state of this very file, or a run's file whose content stays in that run's folder."""
    if not target.exists():
        return True
    owner = ledger.get(str(target))
    if owner is None:
        return target.samefile(source)
    return owner == str(source) or Path(owner).is_file() and filecmp.cmp(owner, target, shallow=False)


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the disk or the system makes none; the name always leads to a whole file."""
    with atomic(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def _alive(ledger: dict[str, str]) -> dict[str, str]:
    return {target: source for target, source in ledger.items() if Path(target).is_file() and Path(source).is_file()}


def _read(home: Path) -> dict[str, str]:
    try:
        values = json.loads((home / LEDGER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # damaged or gone: every file there counts as somebody's, and new ones get numbers
        return {}
    return values if isinstance(values, dict) else {}


def _write(home: Path, ledger: dict[str, str]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    with atomic(home / LEDGER) as temporary:
        temporary.write_text(json.dumps(ledger, indent=1), encoding="utf-8")
