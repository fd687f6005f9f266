"""What the model reads for a picture: its caption through template, trigger word, wildcards, tag options and dropout.

The order is kohya's (library/train_util.py process_caption): caption dropout, wildcards, warm-up, shuffle, tag dropout; the template comes last, as in the
WebUI (modules/textual_inversion/dataset.py create_text). Parentheses are letters here, never emphasis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import floor
from pathlib import Path
from random import Random

from ..disk import expanded
from ..settings import DataConfig
from .item import Item

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"

_WILDCARD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
_ESCAPED = re.compile(r"\\([()\[\]])")  # how taggers write a literal parenthesis for the WebUI's prompt parser


class Triggers(str):
    """The words that stand for the subjects, as they are put into a prompt; `each` by itself, since a word may have spaces."""

    each: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: Iterable[str]) -> Triggers:
        made = cls(" ".join(each := tuple(words)))
        made.each = each
        return made


def mentions(text: str, trigger: str) -> bool:
    """Whether the trigger, or one of several words, is in the text; CLIP reads lower case."""
    words = getattr(trigger, "each", ()) or tuple(filter(None, [trigger.strip()]))
    return any(_pattern(word).search(text) for word in words)


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _words_in(text: str, each: tuple[str, ...]) -> list[str]:
    """Those of several words that the text has, in their own order. Of words of which one has another inside, `anna-2` and `anna`, only the longer one is there where it stands."""
    found = set()
    for word in sorted(each, key=len, reverse=True):
        text, times = _pattern(word).subn("\n", text)
        found |= {word.lower()} if times else set()
    return [word for word in each if word.lower() in found]


class Prompts:
    """Captions as a function of (item, random numbers, step). Raises ValueError for a template that is missing, empty, or needs a trigger word there is not."""

    def __init__(self, cfg: DataConfig, trigger: str = ""):
        self.cfg, self.trigger = cfg, trigger if isinstance(trigger, Triggers) else trigger.strip()
        self.lines = template_lines(cfg.template) if cfg.template else ["[filewords]"]
        if cfg.template and not self.trigger and any("[name]" in line for line in self.lines):
            raise ValueError(f"data.template: {cfg.template!r} has [name], but there is no trigger word; set `trigger`, or choose a template without [name].")

    def caption(self, item: Item, rng: Random, step: int = 0) -> str:
        """The caption of one example at one step; all randomness comes from `rng`. Class pictures get neither template nor trigger word."""
        if self.cfg.caption_dropout and rng.random() < self.cfg.caption_dropout:
            return ""
        chosen = self._choice(item.caption, rng)
        words = self._tags(chosen, rng, step)
        if item.is_class:
            return literal(_without_name(words))
        text = rng.choice(self.lines).replace("[filewords]", words)
        text = text if words else text.strip(", ")  # "[name], [filewords]" without filewords
        name = self._named(chosen, item.caption)
        text = text.replace("[name]", name) if name else _without_name(text)
        return literal(text if self.cfg.template else self._with_trigger(text, name))

    def tags(self, item: Item) -> list[str]:
        """The caption's tags as they are counted for the saved file's metadata: all of them, the trigger word first."""
        text = item.caption if item.is_class else self._with_trigger(item.caption, self.trigger)
        return split_tags(literal(text))

    def _named(self, *texts: str) -> str:
        """What stands for the subject: of several words those that the first of the texts with any has, since a picture of one teaches that one alone; else all."""
        own = next((found for text in texts if (found := _words_in(text, getattr(self.trigger, "each", ())))), [])
        return " ".join(own) or self.trigger

    def _with_trigger(self, text: str, name: str) -> str:
        if not name or mentions(text, self.trigger):
            return text
        return f"{name}, {text}" if text else name

    def _choice(self, caption: str, rng: Random) -> str:
        if not self.cfg.wildcards:
            return caption
        lines = [line.strip() for line in caption.splitlines() if line.strip()]
        line = rng.choice(lines) if lines else ""
        return _WILDCARD.sub(lambda m: rng.choice(m[1].split("|")) if m[1] else m[0][0], line)  # {{ and }} are literal braces

    def _tags(self, caption: str, rng: Random, step: int) -> str:
        """The caption with its tags thinned and shuffled; untouched (but for line breaks) where no option asks for tags."""
        cfg = self.cfg
        warming = step < cfg.token_warmup
        if not (cfg.shuffle_tags or cfg.tag_dropout or warming):
            return " ".join(caption.split("\n")).strip()
        tags = split_tags(caption)
        first = self._first_tags(tags)
        kept, rest = tags[:first], self._trigger_as_one(tags[first:])
        if warming:
            rest = rest[: floor(step * (len(rest) - cfg.token_warmup_min) / cfg.token_warmup) + cfg.token_warmup_min]
        if cfg.shuffle_tags:
            rng.shuffle(rest)
        if cfg.tag_dropout:
            rest = [tag for tag in rest if rng.random() >= cfg.tag_dropout]
        return ", ".join(kept + rest)

    def _first_tags(self, tags: list[str]) -> int:
        """How many tags stay in place: those that the settings say, and the rest of a trigger that begins among them."""
        at, end = self._trigger_in(tags)
        return end if at < self.cfg.keep_tags < end else self.cfg.keep_tags

    def _trigger_as_one(self, tags: list[str]) -> list[str]:
        """The tags with a trigger that has a comma in it as one of them, so that it is not shuffled apart."""
        at, end = self._trigger_in(tags)
        return [*tags[:at], ", ".join(tags[at:end]), *tags[end:]] if end else tags

    def _trigger_in(self, tags: list[str]) -> tuple[int, int]:
        """Where a trigger with a comma in it begins among the tags and where it ends; (0, 0) where it is not, or has none."""
        parts = [part.lower() for part in split_tags(self.trigger)]
        at = next((i for i in range(len(tags)) if len(parts) > 1 and [tag.lower() for tag in tags[i : i + len(parts)]] == parts), None)
        return (0, 0) if at is None else (at, at + len(parts))


def split_tags(caption: str) -> list[str]:
    """Tags between commas or line breaks, without blanks around them and without empty ones."""
    return [tag for tag in map(str.strip, re.split(r"[,\n]", caption)) if tag]


def literal(caption: str) -> str:
    r"""`\(` and `\)` as the letters they stand for: the WebUI reads `name_\(series\)` in a prompt as `name_(series)`, so training has to."""
    return _ESCAPED.sub(r"\1", caption)


def shipped_templates() -> list[str]:
    """Names of the templates that come with the Tuner."""
    return sorted(path.stem for path in TEMPLATES.glob("*.txt"))


def template_lines(template: str) -> list[str]:
    """The lines of a template file, or of a shipped template by its name. Raises ValueError where there is none, or no line in it."""
    shipped = TEMPLATES / (Path(template).name.removesuffix(".txt") + ".txt")
    path = expanded(template)
    if not path.is_file() and Path(template).name == template:
        path = shipped
    if not path.is_file():
        raise ValueError(f"data.template: there is no file {template!r}; name a file, or one of {', '.join(shipped_templates())}.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"data.template: {template!r} is not UTF-8 text; save it as UTF-8.") from None
    if not lines:
        raise ValueError(f"data.template: {template!r} has no line; write at least one, such as 'a photo of [name]'.")
    return lines


def _without_name(text: str) -> str:
    return ", ".join(" ".join(tag.split()) for tag in split_tags(text.replace("[name]", ""))) if "[name]" in text else text
