"""Pivotal tuning: a word is learned first, then an adapter beside the model's layers with the word in its captions; or both at once.

The method is Roich et al.'s (2106.05744), for diffusion models cloneofsimo's (lora, cli_lora_pti.py); its norm prior is `Word.control`. It is made of a
TextualInversion and one of the families of adapters, which know nothing of each other or of stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import opt, section
from ..data.prompts import Triggers
from ..disk import expanded
from ..host import Components
from ..optim import lr_at, lr_ended, parse_lr
from ..sd.files import read_header
from ..settings import TrainConfig
from .adapters import AdapterConfig, Adapters
from .base import Method
from .loha import LoHa
from .lokr import LoKr, LoKrConfig
from .lora import LoRA, LoRAConfig
from .lora_file import read_lora, write_lora
from .metadata import Made, lora_metadata, write_card
from .textual_inversion import TextualInversion, TextualInversionConfig, WantedWord, Word, check_new_words, check_taught, moved_words, starts_of, wanted_words

FAMILIES: dict[str, type[Adapters]] = {family.kind: family for family in (LoRA, LoHa, LoKr)}
ALL_AT_ONCE = ("prodigy", "adamw_schedulefree")  # optimizers that count the steps, or find one rate, for all weights together
WORD = "word:"  # in front of a word's name in the saved state


@dataclass(frozen=True)
class WordsConfig(TextualInversionConfig):
    """The words, whose lengths are kept in check: an adapter answers badly to words that are much longer than others."""

    norm: str = opt("prior", "Norm control", "Keep each vector's length, or pull it to the usual length of a word after each step.", choices=("off", "keep", "prior"))


@dataclass(frozen=True)
class LayersConfig(LoKrConfig, LoRAConfig):
    """The settings of all families."""


@dataclass(frozen=True)
class PivotalConfig:
    """The stages, and what each trains."""

    adapter: str = opt("lora", "Adapter", "What is trained beside the word: a LoRA (with a convolution rank: a LoCon), a LoHa or a LoKr.", choices=tuple(FAMILIES))
    inversion_steps: int = opt(300, "Inversion steps", "Steps at the start in which the word alone is learned; 0: word and adapter at once.",
                               min=0, max=10000000, unit="steps", essential=True)  # fmt: skip
    inversion_lr: float = opt(2e-3, "Inversion rate", "The word's learning rate in these steps; schedule and warm-up begin anew after them.", min=1e-6)
    continue_inversion: bool = opt(True, "Learn the word further", "Train the word beside the adapter too; off: it stays as the inversion left it.")
    continue_lr: float = opt(5e-4, "Word's rate afterwards", "The word's learning rate beside the adapter.", min=1e-6)
    save_bundle: str = opt("bundled", "Files", "bundled: one file with the word inside, as the WebUI reads it; separate: adapter and word apart; both: the former, and the word beside it.",
                           choices=("bundled", "separate", "both"), kept=False)  # fmt: skip
    words: WordsConfig = section(WordsConfig)
    layers: LayersConfig = section(LayersConfig)

    def check(self) -> None:
        """Raises ValueError for what would train nothing, and for settings that the chosen family does not have."""
        if not (self.inversion_steps or self.continue_inversion):
            raise ValueError("inversion_steps: with 0 and continue_inversion off the word is never learned; give it steps, or turn continue_inversion on")
        family = {f.name for f in fields(FAMILIES[self.adapter].Config)}
        given = [f.name for f in fields(LayersConfig) if f.name not in family and getattr(self.layers, f.name) != f.default]
        if given:
            raise ValueError(f"adapter: a {FAMILIES[self.adapter].label} has no setting {given[0]}; set it back, or choose another adapter")

    @property
    def of_family(self) -> AdapterConfig:
        """The adapter's settings as its family knows them."""
        family = FAMILIES[self.adapter].Config
        return family(**{f.name: getattr(self.layers, f.name) for f in fields(family)})


class Words(TextualInversion):
    """The words of a run that trains an adapter too."""

    def __init__(self, run: TrainConfig):
        super().__init__(replace(run, settings=run.settings.words))
        self.run = run
        self.bundled: Mapping[str, Tensor] = {}  # those of the file that the adapter goes on from

    def _initial(self, wanted: WantedWord, sd: Components, table: Tensor, typical: Tensor, number: int) -> Tensor:
        vectors = None if wanted.start else self.bundled.get(wanted.name)
        if vectors is None:
            return super()._initial(wanted, sd, table, typical, number)
        if vectors.shape[1] != table.shape[1]:
            raise ValueError(f"start: the word {wanted.name} in the file has vectors of width {vectors.shape[1]}, but this model's text encoder has width {table.shape[1]}.")
        return vectors.float()

    def endings(self, word: Word) -> tuple[str, ...]:
        """A word that is called like the run is saved as .pt alone: the adapter's file has the other name."""
        return (".pt",) if word.name == self.cfg.name else super().endings(word)


def _learns_after(cfg: TrainConfig, first: int) -> bool:
    """Whether a rate above 0 holds for some of the run's steps from `first` on."""
    entries = parse_lr(cfg.optim.lr)
    begins = (0, *(until for _, until in entries))
    return any(rate for begin, (rate, until) in zip(begins, entries) if begin < cfg.steps and (until is None or until > first))


class PivotalTuning(Method):
    """Words, and an adapter that is trained after them or with them."""

    Config, kind, label = PivotalConfig, "pivotal", "Pivotal tuning"
    trains_text = learns_words = True
    settings: PivotalConfig

    def __init__(self, cfg: TrainConfig):
        super().__init__(cfg)
        s = self.settings
        if s.inversion_steps >= cfg.steps:
            raise ValueError(f"pivotal.inversion_steps: {s.inversion_steps} leave nothing of the run's {cfg.steps} steps for the adapter; lower them, or raise steps")
        if s.inversion_steps and cfg.optim.name in ALL_AT_ONCE:
            raise ValueError(f"optim.name: {cfg.optim.name} takes all weights for one, but here the word is trained first; choose another optimizer, or set pivotal.inversion_steps to 0")
        if cfg.optim.name == "prodigy" and self._further not in (0, 1):
            raise ValueError("pivotal.continue_lr: prodigy finds one learning rate for all weights; set it to that in optim.lr, or choose another optimizer")
        self.words = Words(cfg)
        if s.save_bundle != "separate" and (dotted := [w.name for w in wanted_words(s.words, cfg.name) if "." in w.name]):
            raise ValueError(f"name: the WebUI reads the name of a bundled word up to its first dot, which would cut {dotted[0]!r}; choose one without, or set pivotal.save_bundle to separate")
        self.adapter = FAMILIES[s.adapter](replace(cfg, method=s.adapter, trigger=self.triggers(), settings=s.of_family))
        self.adapter.words_beside = self.triggers().each
        self._idle = ExitStack()
        self._scales: list[tuple[float, float]] = []  # of each group in the two stages; at 0 it is not trained

    @classmethod
    def check(cls, cfg: TrainConfig) -> None:
        super().check(cfg)
        check_taught(cfg.data.template, wanted_words(cfg.settings.words, cfg.name))

    @classmethod
    def check_new(cls, cfg: TrainConfig) -> None:
        super().check_new(cfg)
        check_new_words(cfg.settings.words, cfg.name, f"{cls.kind}.words")
        first = cfg.settings.inversion_steps
        if first and lr_ended(cfg.optim, first):  # its steps count from the start of the run, which ends with them
            raise ValueError(f"optim.lr: {cfg.optim.lr!r} ends within the {first} steps in which the word alone is learned (pivotal.inversion_steps), so the adapter would never be trained; let its last step come after them, or give the last rate none")
        if first and not _learns_after(cfg, first):
            raise ValueError(f"optim.lr: {cfg.optim.lr!r} is 0 behind the {first} steps in which the word alone is learned (pivotal.inversion_steps), so the adapter would never be trained; give it a rate above 0 there")

    @classmethod
    def starts(cls, cfg: TrainConfig) -> list[tuple[str, str]]:
        return super().starts(cfg) + starts_of(cfg.settings.words, cfg.name, f"{cls.kind}.words")

    @classmethod
    def moved(cls, cfg: TrainConfig, key: str, *given: str) -> bool:
        return moved_words(cfg.settings.words, cfg.name, *given) if key == f"{cls.kind}.words.embeddings" else super().moved(cfg, key, *given)

    # ---- attached ----------------------------------------------------------------------------------------------------

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        if self.settings.layers.start:
            self.words.bundled = read_lora(expanded(self.settings.layers.start)).embeddings
        words, layers = self.words.attach(sd), self.adapter.attach(sd)
        self._scales = [(1.0, self._further)] * len(words) + [(0.0, group["lr_scale"]) for group in layers]
        return [{**group, "lr_scale": self._further} for group in words] + layers

    @property
    def _further(self) -> float:
        """The word's rate beside the adapter, as a part of the adapter's."""
        s = self.settings
        return s.continue_lr / max(rate for rate, _ in parse_lr(self.cfg.optim.lr)) if s.continue_inversion else 0.0

    def detach(self) -> None:
        self._idle.close()
        try:
            self.adapter.detach()
        finally:
            self.words.detach()

    @contextmanager
    def disabled(self) -> Iterator[None]:
        with self.adapter.disabled(), self.words.disabled():
            yield

    @contextmanager
    def folded(self) -> Iterator[None]:
        with self.adapter.folded():
            yield

    def triggers(self) -> Triggers:
        return self.words.triggers()

    # ---- steps -------------------------------------------------------------------------------------------------------

    def lr_at(self, step: int) -> float:
        """Each stage has the schedule and the warm-up to itself; rates with steps (`0.05:10, 0.02`) count from the start of the run."""
        optim, first, steps = self.cfg.optim, self.settings.inversion_steps, self.cfg.steps
        if step < first:
            return lr_at(replace(optim, lr=repr(self.settings.inversion_lr)), step, first)
        return lr_at(optim, step, steps) if ":" in optim.lr else lr_at(optim, step - first, steps - first)

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        first = self.settings.inversion_steps
        stage = int(step >= first)
        for group, scales in zip(optimizer.param_groups, self._scales):
            group["lr_scale"] = scales[stage]
            for p in group["params"]:  # without a gradient no optimizer moves, decays or remembers it
                p.requires_grad_(group["lr_scale"] > 0)
        if step == first:  # the adapter's stage is a run of its own, as in cloneofsimo's: what the word's gradients were before it is forgotten
            for word in self.words.words:
                optimizer.state.pop(word.vectors, None)
        self._idle.close()
        if not stage and not self.settings.layers.start:  # a new adapter changes nothing yet, so it need not be computed
            self._idle.enter_context(self.adapter.disabled())
        self.trains_text = not stage or self.settings.continue_inversion or self.adapter.trains_text

    def train(self, mode: bool = True) -> None:
        self.adapter.train(mode)

    def begin(self, batch: Any) -> None:
        self.adapter.begin(batch)

    def after_step(self, step: int) -> None:
        beside = step > self.settings.inversion_steps
        if beside:
            self.adapter.after_step(step)
        if scale := self._further if beside else 1.0:
            for word in self.words.words:
                word.control(self.words.settings.norm, self.lr_at(step - 1) * scale)

    def follow(self) -> None:
        self.words.follow()
        self.adapter.follow()

    # ---- kept --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**{WORD + name: state for name, state in self.words.state_dict().items()}, **self.adapter.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.words.load_state_dict({key.removeprefix(WORD): value for key, value in state.items() if key.startswith(WORD)})
        self.adapter.load_state_dict({key: value for key, value in state.items() if not key.startswith(WORD)})

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        """The adapter's file, with or without the words, its card, and the words' files."""
        kind, modules = self.settings.save_bundle, self.adapter.saved_modules()
        metadata = lora_metadata(self.adapter.sized, summary, made, self.adapter.trained(modules), self.cfg)
        inside = {} if kind == "separate" else {word.name: word.vectors for word in self.words.words}
        file = write_lora(path.with_name(path.name + ".safetensors"), modules, metadata, self.adapter.saved_dtype, inside)
        write_card(file, self.triggers())
        return [file, *(self.words.export(path, summary, made) if kind != "bundled" else [])]

    @classmethod
    def file_kind(cls, path: Path) -> str:
        if path.suffix != ".safetensors":
            return TextualInversion.kind
        with suppress(OSError, ValueError):  # it was deleted, or cut off: whoever reads it says so
            return LoRA.kind if any(key.startswith("lora_") for key in read_header(path)[0]) else TextualInversion.kind
        return LoRA.kind
