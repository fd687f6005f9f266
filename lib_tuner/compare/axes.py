"""What one value of an axis does to a prompt: another save of a run, another LoRA, another weight, another embedding. Pure functions of text.

They are the axes that the WebUI's XYZ plot gets. A LoRA is named in a prompt as `<lora:name:weight>`, an embedding by its word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

NONE = "None"
_TAG = re.compile(r"<lora:([^:<>]+)(?::([^<>]*))?>")


@dataclass(frozen=True)
class Save:
    """A saved file by its name in a prompt, of which run (its folder's name) and after how many steps (None: at the end)."""

    name: str
    run: str
    step: int | None
    kind: str  # the method

    @property
    def label(self) -> str:
        """How the save is chosen on an axis: `my-cat-002 500`."""
        return f"{self.run} {'end' if self.step is None else self.step}"


def in_order(saves: Iterable[Save]) -> list[Save]:
    """By run, and in a run by step, the final one last."""
    return sorted(saves, key=lambda s: (s.run, s.step is None, s.step or 0))


def with_save(prompt: str, wanted: Save, saves: Iterable[Save], weight: str = "1") -> str:
    """The prompt with this save in the place of the run's other saves; a LoRA that it does not name is put at its end, an embedding in front.

    Raises ValueError for an embedding whose word the prompt lacks while it has no place to put one.
    """
    same_run = {save.name for save in saves if save.run == wanted.run} | {wanted.name}
    if wanted.kind == "textual_inversion":
        return with_word(prompt, wanted.name, same_run)
    return with_lora(prompt, wanted.name, same_run, weight, "hypernet" if wanted.kind == "hypernetwork" else "lora")


def with_lora(prompt: str, name: str, instead_of: Iterable[str], weight: str = "1", word: str = "lora") -> str:
    """The prompt with the LoRA `name` where it had one of `instead_of`, else at its end; NONE takes it out. `word`: `hypernet` for hypernetworks."""
    others, tags = set(instead_of), re.compile(_TAG.pattern.replace("lora", word))
    found = [tag for tag in tags.finditer(prompt) if tag[1] in others]
    if name == NONE:
        return tags.sub(lambda tag: "" if tag[1] in others else tag[0], prompt).strip()
    if not found:
        return f"{prompt} <{word}:{name}:{weight}>"
    return tags.sub(lambda tag: f"<{word}:{name}:{tag[2] or '1'}>" if tag[1] in others else tag[0], prompt)


def with_weight(prompt: str, weight: float, names: Iterable[str]) -> str:
    """The prompt with this weight of the LoRAs `names`, or of all where it has none of those. Raises ValueError where it has no LoRA."""
    tags = [tag[1] for tag in _TAG.finditer(prompt)]
    if not tags:
        raise ValueError("The prompt names no LoRA, so there is no weight to change: write <lora:name:1> into it.")
    ours = set(names) & set(tags) or set(tags)
    return _TAG.sub(lambda tag: f"<lora:{tag[1]}:{weight:g}>" if tag[1] in ours else tag[0], prompt)


def with_word(prompt: str, name: str, instead_of: Iterable[str]) -> str:
    """The prompt with the embedding `name` where it had one of `instead_of`, else in front of it; NONE takes it out."""
    words = sorted(set(instead_of) - {NONE}, key=len, reverse=True)
    pattern = re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?![\w-])") if words else None
    if pattern is None or not pattern.search(prompt):
        return prompt if name == NONE else f"{name}, {prompt}"
    changed = pattern.sub("" if name == NONE else name, prompt)
    return changed if name != NONE else re.sub(r"(^|,)\s*,", r"\1", changed).strip(" ,")


def parse_label(text: str, saves: Iterable[Save]) -> Save:
    """The save that a person means by `my-cat-002 500`, by its name, or by a step alone where one run has it. Raises ValueError."""
    wanted, known = text.strip(), list(saves)
    for save in known:
        if wanted in (save.label, save.name):
            return save
    alone = [save for save in known if wanted.isdigit() and save.step == int(wanted)]
    if len(alone) == 1:
        return alone[0]
    if alone:
        raise ValueError(f"Several runs have a save of step {wanted}: write the run too, as `{alone[0].label}`.")
    raise ValueError(f"{wanted!r} is no save of a run: write it as `{known[0].label}`." if known else "No run has saved anything yet.")
