"""Numbers of each saved step of a run: how well it knows the pictures, how much of that hangs on its trigger, how far it has moved from the base model.

All saves are asked the same few questions at the same noise (`metrics.Questions`), the base model once for all of them. What is measured is kept in
`numbers.tuner` in the run's folder, each row for as long as its files and what was asked are the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.batches import Batch, fixed, fixed_captions
from ..data.holes import Holes
from ..data.item import Item
from ..data.items import scan
from ..disk import atomic, expanded
from ..host import Components, Host
from ..methods import METHODS
from ..methods.checkpoint_file import is_whole
from ..methods.control_file import FORMATS
from ..methods.textual_inversion import wanted_words
from ..metrics import Questions, drift_prompts, moved
from ..sd.files import is_safetensors, read_header
from ..sd.inpaint import is_inpainting
from ..settings import SAVE, TrainConfig
from ..step import schedule_for
from .applied import Use, applied, kind_of_file, replaced
from .clip import Looks

FILE, FORMAT = "numbers.tuner", 1  # JSON, but no .json: `numbers.tuner` is the card of a LoRA named numbers
FEWEST, MOST = 2, 8  # pictures: more say more and cost more
PER_PICTURE = 1000  # examples of training that pay for a picture: ten saves then cost less than a twentieth of it (`bench compare`)
LOOKED_AT = 64  # training pictures that samples are compared with
PROMPTS = 4  # for the drift, at most one per picture
ENDINGS = (".safetensors", ".pt", ".png")  # the same word may lie in all of them
WHOLE = "checkpoint"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Saved:
    """A saved step with its files: a LoRA, a hypernetwork or a checkpoint, or words, or a LoRA with words beside it."""

    step: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Row:
    """The numbers of a step; step 0 without files is the model before the run."""

    step: int
    files: tuple[str, ...]
    loss: float
    gain: float | None  # loss with the trigger minus without it, negative where the trigger helps; None where the run has none
    drift: float  # Σ (a - f)² / Σ f² over predictions for prompts without the trigger
    held_out: bool  # whether the pictures are held out, or else some of those that were trained on
    more: dict[str, float] = field(default_factory=dict)  # `clip.similarities`, empty without a CLIP or without samples


def saves_of(files: Iterable[Path], steps: Mapping[Path, int], name: str = "", whole: bool = False) -> list[Saved]:
    """The saved steps in order. Of a kind's files that differ only in their ending one is taken, and of the rest those that can be put on a model.

    A step has one network, beside which there may be words; where a person has renamed copies of one, that of the run's own `name` is taken.
    `whole`: checkpoints too, rather than the LoRA of the difference beside one, which is only near it.
    """
    chosen: dict[tuple[int, str, str], Path] = {}
    for file in sorted(files, key=lambda f: ENDINGS.index(f.suffix.lower()) if f.suffix.lower() in ENDINGS else len(ENDINGS)):
        if file.suffix.lower() in ENDINGS and (kind := WHOLE if whole and is_whole(file) else usable_kind(file)):
            chosen.setdefault((steps[file], file.stem, kind), file)
    saves = []
    for step in sorted({step for step, *_ in chosen}):
        mine = {key: file for key, file in chosen.items() if key[0] == step}
        networks = [file for _, file in sorted(((kind != WHOLE, file.stem != name, file.name), file) for (_, _, kind), file in mine.items() if kind != "embedding")]
        words = [file for (_, _, kind), file in mine.items() if kind == "embedding"]
        saves.append(Saved(step, tuple(sorted([*networks[:1], *words]))))
    return saves


def usable_kind(file: Path) -> str:
    """What a file is that can be put on a model; empty for others."""
    try:
        return kind_of_file(file)
    except (ValueError, OSError):
        return ""


def check(cfg: TrainConfig) -> None:
    """Raises ValueError, one sentence, for a method whose saves cannot be measured."""
    if cfg.method in FORMATS:
        raise ValueError(f"Saves of {METHODS[cfg.method].label} are not measured yet: only LoRAs of any kind, embeddings, hypernetworks and DreamBooth's checkpoints are.")


def numbers(folder: Path, cfg: TrainConfig, saves: Sequence[Saved], host: Host, clip: Path | None = None) -> Iterator[Row]:
    """The row of the model before the run, then one for each save in order; only what is missing is measured, and the model loaded only for that.

    `clip`: weights of an open_clip, by which the samples that the run drew at a save are looked at. Raises ValueError, one sentence, where something cannot be measured; what was measured before is kept.
    """
    check(cfg)
    asked = Asked(cfg)
    kept, looks = Kept(folder / FILE, asked.key), Looks(clip, folder, asked.sampled, asked.trained_on) if clip else None
    every = (Saved(0, ()), *saves)
    with ExitStack() as stack:
        if any(kept.get(save) is None for save in every):
            sd = stack.enter_context(host.exclusive())
            for save in saves:  # before anything is measured: the row of a wrong model would be kept as that of the right one
                same_model(save, sd)
            kept.measured_on(sd.model_hash)
            measure = Measure(cfg, asked, sd)
        for save in every:
            row = kept.get(save)
            if row is None:
                row = measure.row(save)
                kept.put(save, row)
            yield replace(row, more=kept.more(save, looks) if looks else {})


def same_model(save: Saved, sd: Components) -> None:
    """Raises ValueError where a file says that it was trained on another model: beside that one its numbers would say nothing."""
    for file in save.files:
        trained_on = read_header(file)[1].get("ss_new_sd_model_hash", "") if is_safetensors(file) else ""
        if _SHA256.fullmatch(trained_on) and trained_on != sd.model_hash:
            raise ValueError(f"{file.name} was trained on another model ({trained_on[:10]}, this one is {sd.model_hash[:10]}); load that one first.")


# ---- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Which pictures and prompts a run's saves are asked about: a function of its settings and its folders."""

    cfg: TrainConfig

    @cached_property
    def trigger(self) -> str:
        """What stands for the subject in captions; empty where the run has no such word."""
        return METHODS[self.cfg.method](self.cfg).triggers()

    @property
    def held_out(self) -> bool:
        """Whether there are pictures that were never trained on."""
        return bool(self.cfg.data.validation_folder)

    @cached_property
    def items(self) -> list[Item]:
        """A few pictures from all over the folder: as many as a run of this length pays for."""
        data, examples = self.cfg.data, self.cfg.steps * self.cfg.data.batch * self.cfg.optim.accumulate
        found = [item for item in scan(data, data.validation_folder or data.folder)[0] if not item.is_class]
        return spread(found, max(FEWEST, min(MOST, examples // PER_PICTURE)))

    @property
    def trained_on(self) -> list[Item]:
        """Training pictures that samples are compared with."""
        return spread([item for item in scan(self.cfg.data, self.cfg.data.folder)[0] if not item.is_class], LOOKED_AT)

    @property
    def sampled(self) -> list[str]:
        """The prompts of the run's samples, in the order in which they are drawn."""
        return [line.strip().replace("[name]", self.trigger) for line in self.cfg.sample.prompts.splitlines() if line.strip()]

    @cached_property
    def captions(self) -> list[str]:
        """Those of the pictures, with the trigger."""
        return fixed_captions(self.cfg.data, self.items, self.trigger)

    @cached_property
    def prompts(self) -> list[str]:
        """Those of the drift: class prompts, or captions of class pictures, and ordinary ones; none of them has the trigger."""
        cfg, wanted = self.cfg, min(PROMPTS, len(self.items))
        classes = cfg.prior.prompts
        if not classes and cfg.data.class_folder:
            classes = [item.caption for item in spread(scan(cfg.data, cfg.data.class_folder, is_class=True)[0], wanted) if item.caption]
        found = drift_prompts(classes, self.trigger)
        own = [prompt for prompt in found if prompt in classes]
        rest = [prompt for prompt in found if prompt not in classes]
        return [*own[: wanted - 1], *rest][:wanted]

    def without(self, caption: str) -> str:
        """A caption with what the trigger started from in the trigger's place: an embedding's initial text, else nothing."""
        return without(caption, self._words or {self.trigger: ""})

    @cached_property
    def _words(self) -> dict[str, str]:
        """The words of a run that learns words, and what each started from."""
        if not METHODS[self.cfg.method].learns_words:
            return {}
        own = getattr(self.cfg.settings, "words", self.cfg.settings)  # pivotal tuning has them in a section
        return {word.name: word.init for word in wanted_words(own, self.cfg.name)}

    def uses(self, save: Saved) -> list[Use]:
        """A save's files as they are put on a model."""
        return [Use(file, word=self.word_of(file)) for file in save.files]

    def word_of(self, file: Path) -> str:
        """An embedding's word: its file's name without the step, or the run's one word where a person has renamed the file."""
        stem = match[1] if (match := SAVE.fullmatch(file.stem)) else file.stem
        return stem if stem in self._words or len(self._words) != 1 else next(iter(self._words))

    @property
    def key(self) -> str:
        """Names all that the numbers depend on beside the saves themselves. The model file is told by its size and time: to hash it takes longer than to measure."""
        cfg = self.cfg
        model = expanded(cfg.checkpoint)
        data = {name: value for name, value in asdict(cfg.data).items() if not name.endswith("folder")}
        pictures = [[item.digest, item.mask_digest, caption] for item, caption in zip(self.items, self.captions)]
        loss = [cfg.loss.prediction, cfg.loss.zero_terminal_snr]
        made_of = [FORMAT, cfg.checkpoint, stamp(model) if cfg.checkpoint and model.is_file() else [], cfg.seed, cfg.clip_skip, loss, asdict(cfg.inpaint), data, pictures,
                   self.held_out, self.trigger, self._words, self.prompts, cfg.memory.precision]  # fmt: skip
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def spread(found: Sequence[Any], most: int) -> list[Any]:
    """At most so many, from all over."""
    return [found[i * len(found) // most] for i in range(most)] if len(found) > most else list(found)


def without(caption: str, words: dict[str, str]) -> str:
    """A caption with other words in the place of some, and no blanks or commas left over."""
    for word, instead in words.items():
        if word:
            caption = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _, instead=instead: instead, caption, flags=re.IGNORECASE)
    parts = [" ".join(part.split()) for part in caption.split(",")]
    return ", ".join(part for part in parts if part)


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measure:
    """The questions of a run on a model, with the base model's answers."""

    cfg: TrainConfig
    asked: Asked
    sd: Components

    @cached_property
    def batches(self) -> list[Batch]:
        """The pictures as the validation loss has them."""
        holes = Holes(self.cfg.inpaint, self.cfg.seed) if is_inpainting(self.sd.unet) else None
        return fixed(replace(self.cfg.data, batch=MOST), self.sd, self.asked.items, self.asked.trigger, None, holes)

    @cached_property
    def known(self) -> list[Questions]:
        """The pictures with their captions, one for each size."""
        return [self._questions(b.latents, b.captions, b.indices, "validation", b.extra) for b in self.batches]

    @cached_property
    def unnamed(self) -> list[Questions]:
        """The same without the trigger; none where there is no trigger."""
        return [q.asked([self.asked.without(caption) for caption in b.captions]) for q, b in zip(self.known, self.batches)] if self.asked.trigger else []

    @cached_property
    def foreign(self) -> Questions:
        """Prompts that the run is not about, at the noise of the first picture."""
        first, count = self.batches[0], len(self.asked.prompts)
        extra = None if first.extra is None else first.extra[:1].expand(count, -1, -1, -1)
        return self._questions(first.latents[:1].expand(count, -1, -1, -1), self.asked.prompts, range(count), "drift", extra)

    @cached_property
    def frozen(self) -> Tensor:
        """What the base model answers to those; asked for while nothing is on it."""
        return self._answers(self.foreign)

    def row(self, save: Saved) -> Row:
        """The numbers of one save. The model is as it was before afterwards."""
        whole = next((file for file in save.files if is_whole(file)), None)
        moves = whole is not None or any(kind_of_file(file) != "embedding" for file in save.files)  # a word changes nothing where it is not written
        if moves:
            _ = self.frozen
        with replaced(self.sd, whole) if whole else nullcontext(), applied(self.sd, [use for use in self.asked.uses(save) if use.path != whole]):
            loss = self._loss(self.known)
            gain = loss - self._loss(self.unnamed) if self.unnamed else None
            drift = moved(self._answers(self.foreign), self.frozen) if moves and self.asked.prompts else 0.0
        return Row(save.step, tuple(file.name for file in save.files), loss, gain, drift, self.asked.held_out)

    def _loss(self, questions: Sequence[Questions]) -> float:
        errors = [q.errors(self._answers(q)) for q in questions]
        return sum(e.sum().item() for e in errors) / sum(len(e) for e in errors)

    def _questions(self, latents: Tensor, captions: Sequence[str], indices: Iterable[int], stream: str, extra: Tensor | None) -> Questions:
        device = self.sd.device
        schedule = schedule_for(self.cfg.loss, self.sd.schedule)
        return Questions.of(latents.to(device), captions, indices, schedule, self.cfg.seed, stream, None if extra is None else extra.to(device))

    def _answers(self, questions: Questions) -> Tensor:
        with self.sd.autocast():  # anew for each save: it keeps converted weights until its end
            return questions.answers(self.sd.unet, self.sd.text)


# ---- keeping ---------------------------------------------------------------------------------------------------------


class Kept:
    """`numbers.tuner`: rows by their files' names, sizes and times; rows to other questions are forgotten. A damaged file is measured anew."""

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.rows: dict[str, Any] = dict(found["rows"]) if found["key"] == key else {}
            self.model = str(found.get("model", ""))
        except (OSError, ValueError, KeyError, TypeError):
            self.rows, self.model = {}, ""

    def measured_on(self, model: str) -> None:
        """The hash of the model beside which rows are measured from now on; those of another one are forgotten."""
        if model != self.model:
            self.rows, self.model = {}, model

    def get(self, save: Saved) -> Row | None:
        """The row of a save, if it was measured as it is now."""
        found = self.rows.get(_name(save))
        try:
            return row_of(found["row"]) if found["files"] == _stamps(save) else None
        except (KeyError, TypeError):
            return None

    def put(self, save: Saved, row: Row) -> None:
        """Keeps a row at once. Raises OSError."""
        self.rows[_name(save)] = {"files": _stamps(save), "row": asdict(row)}
        self._write()

    def more(self, save: Saved, looks: Looks) -> dict[str, float]:
        """What a CLIP says of a step whose row is kept, asked for where it is not known."""
        entry, stamps = self.rows[_name(save)], looks.stamps(save.step)
        if entry.get("looked at") != stamps:
            entry |= {"looked at": stamps, "more": looks.numbers(save.step)}
            self._write()
        return entry["more"]

    def _write(self) -> None:
        with atomic(self.path, durable=False) as part:
            part.write_text(json.dumps({"key": self.key, "model": self.model, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")


def row_of(values: dict[str, Any]) -> Row:
    """A row as `asdict` and JSON made it. Raises TypeError."""
    row = Row(**known_fields(Row, values))
    return replace(row, files=tuple(row.files))


def known_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a dataclass's fields that JSON has: another release may have written more."""
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}


def _name(save: Saved) -> str:
    return str(save.step)


def _stamps(save: Saved) -> list[Any]:
    return [[file.name, *stamp(file)] for file in save.files]


def stamp(file: Path) -> list[int]:
    """What tells whether a file was written anew."""
    now = file.stat()
    return [now.st_size, now.st_mtime_ns]
