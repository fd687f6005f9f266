"""LoRAs with weights: as the command line names them, as rows of a form, and as a recipe, a TOML file of `[[lora]]` tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import load_toml, meant, toml_value
from ..disk import atomic, expanded


@dataclass(frozen=True)
class Weighted:
    """A LoRA of a merge and how strong it is there, in each part of the model."""

    path: Path
    unet: float = 1.0
    text: float = 1.0

    def weight(self, part: str) -> float:
        return self.unet if part == "unet" else self.text

    def __str__(self) -> str:
        return f"{self.path.name} x {self.unet:g}" + ("" if self.unet == self.text else f" (text encoder x {self.text:g})")


def weighted(text: str) -> Weighted:
    """`FILE` or `FILE:WEIGHT`; a file of that very name wins."""
    name, colon, tail = text.rpartition(":")
    if colon and name and not expanded(text).exists():
        try:
            strength = float(tail)
        except ValueError:
            return Weighted(expanded(text))
        if not abs(strength) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}: the weight is not a number")
        return Weighted(expanded(name), strength, strength)
    return Weighted(expanded(text))


def read_recipe(path: Path) -> list[Weighted]:
    """The LoRAs of a recipe; files beside it are named without their folder. Raises ValueError, one sentence."""
    values = load_toml(path)
    rows = values.get("lora")
    if values.keys() - {"lora"} or not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{path}: a recipe is a row of [[lora]] tables, each with file = \"...\" and weight = 1.0, and nothing else.")
    try:
        return weighted_rows(rows, lambda name: path.parent / expanded(name))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_recipe(path: Path, loras: Iterable[Weighted]) -> Path:
    """Writes a recipe that names its files by their whole paths. Raises FileExistsError where there is one of that name, OSError."""
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another name.")
    tables = [f"[[lora]]\nfile = {toml_value(str(lora.path.absolute()))}\nunet = {lora.unet!r}\ntext_encoder = {lora.text!r}\n" for lora in loras]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text("\n".join(tables), encoding="utf-8")
    return path


def weighted_rows(rows: Iterable[Mapping[str, Any]], find: Callable[[str], Path]) -> list[Weighted]:
    """The LoRAs of tables with file, weight, unet and text_encoder; `find` makes paths of names. Raises ValueError that counts the tables from 1."""
    return [_row(i + 1, row, find) for i, row in enumerate(rows)]


def _row(place: int, row: Mapping[str, Any], find: Callable[[str], Path]) -> Weighted:
    known = ("file", "weight", "unet", "text_encoder")
    for key, value in row.items():
        if key not in known:
            raise ValueError(f"lora {place}: there is no {key!r}{meant(key, known)} (a table has {', '.join(known)}).")
        if key != "file" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf")):
            raise ValueError(f"lora {place}: {key} is {value!r}, not a number.")
    if not isinstance(row.get("file"), str) or not row["file"].strip():
        raise ValueError(f"lora {place} names no file.")
    weight = float(row.get("weight", 1.0))
    return Weighted(find(row["file"].strip()), float(row.get("unet", weight)), float(row.get("text_encoder", weight)))
