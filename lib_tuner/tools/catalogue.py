"""The tools that the page has, in the order in which it shows them."""

from __future__ import annotations

from . import convert, extract, inspect_file, join_loras, merge_checkpoints, merge_lora, resize, scale
from .command import Tool

TOOLS: dict[str, Tool] = {module.TOOL.name: module.TOOL for module in (inspect_file, join_loras, merge_lora, resize, scale, extract, convert, merge_checkpoints)}
