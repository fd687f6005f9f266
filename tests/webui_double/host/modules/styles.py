"""Named pieces of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StyleDatabase:
    """A style has a prompt and a negative_prompt: what it is put around where it says {prompt}, else what comes behind. Unknown names count for nothing."""

    styles: dict[str, Any] = field(default_factory=dict)

    def apply_styles_to_prompt(self, prompt: str, styles: Iterable[str]) -> str:
        return self._applied(prompt, styles, "prompt")

    def apply_negative_styles_to_prompt(self, prompt: str, styles: Iterable[str]) -> str:
        return self._applied(prompt, styles, "negative_prompt")

    def _applied(self, text: str, names: Iterable[str], part: str) -> str:
        for style in (getattr(self.styles[name], part) for name in names if name in self.styles):
            text = style.replace("{prompt}", text) if "{prompt}" in style else ", ".join(filter(None, (text.strip(), style.strip())))
        return text
