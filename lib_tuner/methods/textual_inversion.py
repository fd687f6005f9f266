"""Textual Inversion (Gal et al. 2208.01618): new words, each of one or more vectors in the text encoder's input.

Axes: n vectors of a word, C width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..config import opt
from ..disk import expanded
from ..data.pictures import writable
from ..data.prompts import Triggers, mentions, template_lines
from ..host import Components
from ..optim import holds_average
from ..sd.loss import generator_for
from ..settings import TrainConfig, check_final
from .base import Method, file_named, no_blocks
from .embedding_file import Embedding, checksum, read_embedding, valid_name, write_embedding, write_embedding_png
from .metadata import Made, embedding_metadata


@dataclass(frozen=True)
class TextualInversionConfig:
    """The words that are learned."""

    vectors: int = opt(4, "Vectors", "How many tokens of the prompt the word takes; more learn more and leave less room.", min=1, max=75, essential=True)
    init: str = opt("*", "Initial text", "Text whose vectors the word starts from, spread over its own; empty: small random numbers.", essential=True)
    start: str = opt("", "Start from", "An embedding file of the WebUI to go on from (.pt, .safetensors, or a picture that carries one).")
    embeddings: str = opt("", "Several words", "One a line or separated by `;`: `name | vectors | initial text | file to start from`. A caption that has none of them gets all. Empty: the run's name with the settings above.")
    norm: str = opt("off", "Norm control", "Keep each vector's length, or pull it to the usual length of a word after each step.", choices=("off", "keep", "prior"))
    norm_target: float = opt(0.0, "Usual length", "The length to which `prior` pulls; 0: that of the model's own words, about 0.4 in SD1.5.", min=0.0, max=100.0)
    save_pt: bool = opt(False, "Also save .pt", "Beside .safetensors, a .pt that WebUI 1.9.4 accepts.", kept=False)
    save_png: bool = opt(False, "Also save a picture", "Beside .safetensors, a picture that carries the embedding.", kept=False)

    def check(self) -> None:
        """Raises ValueError for words that cannot be read."""
        wanted_words(self, "name")
        if self.start and self.embeddings.strip():
            raise ValueError("start: with several words each has its own; write it as the fourth part of its line in embeddings, and leave start empty")


@dataclass(frozen=True)
class WantedWord:
    """A word to learn, before it has vectors."""

    name: str
    vectors: int
    init: str
    start: str = ""


def _lines(cfg: TextualInversionConfig) -> list[str]:
    return [line.strip() for line in cfg.embeddings.replace(";", "\n").splitlines() if line.strip()]


def wanted_words(cfg: TextualInversionConfig, name: str) -> list[WantedWord]:
    """The words of the settings; `name` is that of the run."""
    lines = _lines(cfg)
    if not lines:
        return [WantedWord(name, cfg.vectors, cfg.init, cfg.start)]
    words = []
    for line in lines:
        parts = [part.strip() for part in line.split("|", 3)]
        word, vectors, init, start = parts + [str(cfg.vectors), cfg.init, ""][len(parts) - 1 :]
        if not vectors.isdigit() or not 1 <= int(vectors) <= 75:
            raise ValueError(f"embeddings: {line!r} is not `name | vectors (1 to 75) | initial text | file to start from`")
        words.append(WantedWord(valid_name(word), int(vectors), init, start))
    if len({word.name for word in words}) < len(words):
        raise ValueError("embeddings: two words have the same name; give each its own")
    return words


def check_new_words(cfg: TextualInversionConfig, name: str, section: str) -> None:
    """Raises ValueError, beginning with the setting's key, for words that a new run may not learn: those whose files would be taken for saves, and those that no caption could have."""
    for word in wanted_words(cfg, name):
        _check_new_word(word.name, f"{section}.embeddings" if _lines(cfg) else "name")


def _check_new_word(word: str, key: str) -> None:
    try:
        valid_name(word)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    check_final(word, key)
    if word.endswith(("-", "_")):  # CLIP's tokenizer makes one token of all signs that touch, `_,`
        raise ValueError(f"{key}: {word!r} ends with {word[-1]!r}, which a comma behind it in a caption is read together with, so the word would not be found there; let it end with a letter or a digit")


def starts_of(cfg: TextualInversionConfig, name: str, section: str) -> list[tuple[str, str]]:
    """The files that the lines of several words start from, behind their key."""
    return [(f"{section}.embeddings", word.start) for word in wanted_words(cfg, name) if word.start] if _lines(cfg) else []


def moved_words(cfg: TextualInversionConfig, name: str, *given: str) -> bool:
    """Whether the lines of several words say the same, wherever the files lie that they start from."""
    before, now = ([replace(word, start=file_named(word.start)) for word in wanted_words(replace(cfg, embeddings=lines), name)] for lines in given)
    return before == now


def check_taught(template: str, words: list[WantedWord]) -> None:
    """Raises ValueError for a template with which no prompt can have a word that is to be learned; a missing one is refused where it is read."""
    try:
        lines = template_lines(template) if template else []
    except (OSError, ValueError):
        return
    trigger = Triggers.of(word.name for word in words)
    if lines and not any("[name]" in line or "[filewords]" in line or mentions(line, trigger) for line in lines):
        raise ValueError(f"data.template: {template!r} has neither [name] nor [filewords], so no picture would teach {trigger}; choose one that has, such as subject.")


class Word(nn.Module):
    """One word's vectors (n, C), fp32, and the lengths they started with."""

    def __init__(self, name: str, vectors: Tensor, typical: Tensor):
        super().__init__()
        self.name = name
        self.vectors = nn.Parameter(vectors.float().clone())
        self.register_buffer("lengths", vectors.float().norm(dim=1, keepdim=True))  # (n, 1)
        self.register_buffer("typical", typical)  # the length that `prior` pulls to

    @torch.no_grad()
    def control(self, kind: str, lr: float) -> None:
        """`keep`: every vector its first length. `prior`: cloneofsimo's step towards the usual length, λ = min(1, 100 lr) (peers: cli_lora_pti.py)."""
        now = self.vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
        if kind == "keep":
            self.vectors.mul_(self.lengths / now)
        elif kind == "prior":
            self.vectors.mul_((now + min(1.0, 100 * lr) * (self.typical - now)) / now)


class TextualInversion(Method):
    """Learns words; the model itself stays as it is."""

    Config, kind, label = TextualInversionConfig, "textual_inversion", "Textual Inversion"
    trains_text = learns_words = True
    refuses = {
        "prior.weight": "a word leaves the model as it is, so it predicts for class prompts what it did; set it to 0.",
        "data.class_folder": "a word leaves the model as it is, so class pictures, whose captions do not have it, teach nothing; leave it empty.",
        **no_blocks("a word is learned in the text encoder's input and touches no block of the UNet; leave it out, or take method = pivotal with pivotal.layers.blocks"),
    }
    settings: TextualInversionConfig

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        self.run: TrainConfig = cfg  # the settings that the files carry
        self.words: list[Word] = []
        self._splices, self._sd = ExitStack(), None

    @classmethod
    def check(cls, cfg: TrainConfig) -> None:
        super().check(cfg)
        check_taught(cfg.data.template, wanted_words(cfg.settings, cfg.name))

    @classmethod
    def check_new(cls, cfg: TrainConfig) -> None:
        super().check_new(cfg)
        check_new_words(cfg.settings, cfg.name, cls.kind)

    @classmethod
    def starts(cls, cfg: TrainConfig) -> list[tuple[str, str]]:
        return super().starts(cfg) + starts_of(cfg.settings, cfg.name, cls.kind)

    @classmethod
    def moved(cls, cfg: TrainConfig, key: str, *given: str) -> bool:
        return moved_words(cfg.settings, cfg.name, *given) if key == f"{cls.kind}.embeddings" else super().moved(cfg, key, *given)

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        self._sd = sd
        table = sd.text.embedding.weight.detach()  # (V, C)
        typical = table[:: max(1, len(table) // 4096)].float().norm(dim=1).median()
        usual = torch.full_like(typical, self.settings.norm_target) if self.settings.norm_target else typical
        for number, wanted in enumerate(wanted_words(self.settings, self.cfg.name)):
            valid_name(wanted.name)
            vectors = self._initial(wanted, sd, table, typical, number)
            self.words.append(Word(wanted.name, vectors, usual).to(table.device))
        self._splice()
        return [{"params": [word.vectors], "weight_decay": 0.0} for word in self.words]

    def _initial(self, wanted: WantedWord, sd: Components, table: Tensor, typical: Tensor, number: int) -> Tensor:
        """(n, C): from a file, or the initial text's vectors stretched over n as the WebUI does, or random ones of a hundredth part of a word's length."""
        if wanted.start:
            return read_embedding(expanded(wanted.start), width=table.shape[1]).vectors
        ids = sd.text.tokenizer.encode(wanted.init)
        if ids:
            return table[torch.tensor([ids[i * len(ids) // wanted.vectors] for i in range(wanted.vectors)], device=table.device)].float()
        noise = torch.randn(wanted.vectors, table.shape[1], generator=generator_for(self.cfg.seed, number, "embedding"))
        return (noise / noise.norm(dim=1, keepdim=True) * typical.cpu() * 0.01).to(table.device)

    def _splice(self) -> None:
        for word in self.words:
            self._splices.enter_context(self._sd.text.splice(word.name, word.vectors))

    def detach(self) -> None:
        self._splices.close()
        self.words = []

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self._splices.close()
        try:
            yield
        finally:
            self._splice()

    def triggers(self) -> Triggers:
        return Triggers.of(word.name for word in wanted_words(self.settings, self.cfg.name))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for word in self.words:
            word.control(self.settings.norm, self.lr_at(step - 1))

    def follow(self) -> None:
        for word in self.words:
            if self.settings.norm == "keep" and holds_average(word.vectors):  # vectors of one length have a shorter mean; `prior` pulls step by step
                word.control("keep", 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {word.name: {k: v.detach().clone() for k, v in word.state_dict().items()} for word in self.words}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if {word.name for word in self.words} != state.keys():
            raise ValueError(f"The saved run learned {', '.join(state)}; resume with the same words.")
        for word in self.words:
            if (saved := state[word.name]["vectors"].shape) != word.vectors.shape:
                raise ValueError(f"The saved run learned {word.name} with {saved[0]} vectors; resume with as many.")
            word.load_state_dict(state[word.name])

    def endings(self, word: Word) -> tuple[str, ...]:
        """Those of a word's weights files."""
        return (".safetensors", *[".pt"] * self.settings.save_pt)

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        files = []
        for word in self.words:
            # the WebUI takes the file's stem for the word, so each word's final file has to be called like it
            base = path.with_name(path.name.replace(self.cfg.name, word.name, 1))
            embedding = Embedding(word.name, word.vectors.detach().cpu().float(), made.step, made.model_hash, made.model_name)
            metadata = embedding_metadata(self.cfg, summary, made, word.name, self.run)
            for ending in self.endings(word):
                files.append(write_embedding(base.with_name(base.name + ending), embedding, metadata if ending == ".safetensors" else None))
            if self.settings.save_png:
                files.append(write_embedding_png(base.with_name(base.name + ".png"), embedding, card(embedding)))
        return files

    def optimizer_records(self, paths: Sequence[Path], optimizer: Any) -> dict[Path, dict[str, Any]]:
        """The WebUI trains into NAME.pt with an AdamW of this one embedding, and goes on with its state where the checksum is that of the embedding it loaded."""
        if type(optimizer) is not torch.optim.AdamW:
            return {}
        firsts = [path for path in paths if path.suffix == ".safetensors"]
        return {path.with_suffix(".pt.optim"): {"hash": checksum(word.vectors), "optimizer_state_dict": alone(optimizer, word.vectors)} for word, path in zip(self.words, firsts)}


def alone(optimizer: torch.optim.AdamW, parameter: nn.Parameter) -> dict[str, Any]:
    """The state dict of an optimizer that has this parameter alone."""
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    usual = torch.optim.AdamW([parameter]).state_dict()["param_groups"][0]  # whoever reads it knows which of the kernels its torch has
    own = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")}
    return {"state": {0: {key: value.detach().cpu() for key, value in optimizer.state[parameter].items()}}, "param_groups": [{**usual, **own}]}


def card(embedding: Embedding) -> Image.Image:
    """A plain picture with the word on it, for a file that is looked at as a picture."""
    picture = Image.new("RGB", (512, 512), (48, 52, 70))
    text = f"{embedding.name}\n{len(embedding.vectors)} vectors, step {embedding.step}\n{embedding.model_name}"
    pen = ImageDraw.Draw(picture)
    pen.text((24, 24), writable(text, pen.getfont()), fill=(230, 230, 240))  # before Pillow 10.1 its own letters raise for a Chinese or a Russian word
    return picture
