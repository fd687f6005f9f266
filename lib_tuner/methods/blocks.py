"""The UNet's blocks in the settings: which learn, of what rank, how fast; BASE is the text encoder."""

from __future__ import annotations

import math
from typing import Any

from ..sd.names import BLOCKS17, BLOCKS26, block_name

RATE_HELP = "Times the learning rate, as `IN04=0.5, M00=0, BASE=2` (0: the block stays as it is), or 17, 25 or 26 numbers in the order of block weights."
_ROWS = {17: BLOCKS17, 25: BLOCKS26[1:], 26: BLOCKS26}


def chosen_blocks(text: str) -> frozenset[str]:
    """The blocks that `blocks` names."""
    names = frozenset(BLOCKS26) if text.strip().lower() in ("", "all") else frozenset(n.strip().upper() for n in text.split(",") if n.strip())
    if unknown := sorted(names - set(BLOCKS26)):
        raise ValueError(f"blocks: {unknown[0]!r} is no block; there are BASE, IN00 to IN11, M00 and OUT00 to OUT11, or write all")
    return names


def block_ranks(text: str) -> dict[str, int]:
    """`M00=4, OUT03=32` as a table."""
    table = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, rank = part.partition("=")
        if name.strip().upper() not in BLOCKS26 or not rank.strip().isdigit() or not 1 <= int(rank) <= 1024:
            raise ValueError(f"block_ranks: {part!r} is not a block and its rank, such as M00=4")
        table[name.strip().upper()] = int(rank)
    return table


def block_rates(text: str) -> dict[str, float]:
    """`M00=0.5, OUT03=0`, or a row of numbers, as a table; what is not in it learns at the usual rate."""
    try:
        return block_numbers(text, 0, 64)
    except ValueError as error:
        raise ValueError(f"block_rates: {error}") from None


def block_numbers(text: str, low: float, high: float) -> dict[str, float]:
    """A number for some blocks, by name or as a row. Raises ValueError, without a full stop."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if _is_row(text):
        if len(parts) not in _ROWS:
            raise ValueError(f"{len(parts)} numbers are no row of block weights, which has 17, 25 or 26; or write names, such as M00=0.5")
        parts = [f"{name}={number}" for name, number in zip(_ROWS[len(parts)], parts)]
    return dict(_number(part, low, high) for part in parts)


def _is_row(text: str) -> bool:
    return bool(text.strip()) and "=" not in text


def _number(part: str, low: float, high: float) -> tuple[str, float]:
    name, _, text = (p.strip() for p in part.partition("="))
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if name.upper() not in BLOCKS26 or not low <= number <= high:
        raise ValueError(f"{part!r} is not a block and a number from {low:g} to {high:g}, such as M00=0.5")
    return name.upper(), number


def rate_of(rates: dict[str, float], part: str, path: str) -> float:
    """How many times the learning rate a module or tensor learns at."""
    return rates.get("BASE" if part == "text" else block_name(path), 1.0)


def check_blocks(cfg: Any, text: bool) -> None:
    """Raises ValueError for blocks there are not, and for what would be left aside without a word; `text`: the text encoder may be trained."""
    chosen, ranks, rates = chosen_blocks(cfg.blocks), block_ranks(getattr(cfg, "block_ranks", "")), block_rates(cfg.block_rates)
    named = {"blocks": chosen if len(chosen) < len(BLOCKS26) else (), "block_ranks": ranks, "block_rates": () if _is_row(cfg.block_rates) else rates}
    for setting, names in named.items():
        if "BASE" in names and not text:
            raise ValueError(f"{setting}: BASE is the text encoder, which is not trained: turn text_encoder on, or leave BASE out")
        if outside := sorted(set(names) - chosen - {"BASE"}):
            raise ValueError(f"{setting}: {outside[0]} is not among the blocks that are trained: add it to blocks, or leave it out")
    if plain := sorted(set(ranks) - set(BLOCKS17)):
        raise ValueError(f"block_ranks: {plain[0]} has no attention, and convolutions have conv_rank: leave it out")
    if cfg.text_encoder and rates.get("BASE") == 0:
        raise ValueError("block_rates: BASE=0 leaves the text encoder as it is: turn text_encoder off, or give BASE a rate above 0")
    if not any(rates.get(name, 1.0) for name in chosen - {"BASE"}) and not text:
        raise ValueError("block_rates: with 0 for every block that is trained nothing would learn: give one a rate above 0")
