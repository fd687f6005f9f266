"""The host's way from prompts to states: chunks of 75 tokens, brackets, and embeddings by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import devices, prompt_parser, shared
from .sd_emphasis import EMPHASIS


class PromptChunkFix(NamedTuple):
    """An embedding's vectors take the place of tokens from `offset` on, the first token of the chunk being 0."""

    offset: int
    embedding: Any


class Unit(NamedTuple):
    """What no chunk's end divides: a token, or all of an embedding."""

    tokens: list[int]
    weight: float = 1.0
    embedding: Any = None


@dataclass
class PromptChunk:
    """77 tokens, the first and last of which are marks."""

    tokens: list[int]
    multipliers: list[float]
    fixes: list[PromptChunkFix]


class FrozenCLIPEmbedderWithCustomWords(nn.Module):
    """Around the model's own text encoder, `wrapped`."""

    chunk_length = 75

    def __init__(self, wrapped: Any, hijack: Any):
        super().__init__()
        self.wrapped, self.hijack, self.tokenizer = wrapped, hijack, wrapped.tokenizer
        self.id_start, self.id_end = self.tokenizer.bos, self.tokenizer.eos
        (self.comma_token,) = self.tokenizer(",").input_ids

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Without marks, and every character for itself."""
        return [self.tokenizer(text).input_ids for text in texts]

    def tokenize_line(self, line: str) -> tuple[list[PromptChunk], int]:
        """Chunks of a prompt, and how many tokens it has with those that fill chunks up before the last."""
        parsed = [[line, 1.0]] if shared.opts.emphasis == "None" else prompt_parser.parse_prompt_attention(line)
        sections = [[*parts] for is_break, parts in groupby(parsed, key=lambda part: part == ["BREAK", -1]) if not is_break]
        rows = [row for section in sections for row in self._divided(unit for text, weight in section for unit in self._units(text, weight))] or [[]]
        return [self._chunk(row) for row in rows], self.chunk_length * (len(rows) - 1) + _size(rows[-1])

    def _units(self, text: str, weight: float) -> Iterator[Unit]:
        (ids,), at = self.tokenize([text]), 0
        while at < len(ids):
            embedding, length = self.hijack.embedding_db.find_embedding_at_position(ids, at)
            yield Unit([ids[at]], weight) if embedding is None else Unit([0] * int(embedding.vectors), weight, embedding)
            at += length or 1

    def _divided(self, units: Iterator[Unit]) -> list[list[Unit]]:
        """Rows of at most 75 tokens. What follows a comma among the last of a full one (setting comma_padding_backtrack) goes into the next."""
        rows: list[list[Unit]] = [[]]
        for unit in units:
            comma = unit.embedding is None and unit.tokens == [self.comma_token]
            while _size(rows[-1]) + len(unit.tokens) > self.chunk_length and rows[-1]:
                rows.append([] if comma else self._behind_the_comma(rows[-1]))
            rows[-1].append(unit)
        return rows

    def _behind_the_comma(self, row: list[Unit]) -> list[Unit]:
        """Takes it out of a full row."""
        commas = [i for i, unit in enumerate(row) if unit.embedding is None and unit.tokens == [self.comma_token]]
        if not commas or _size(row) < self.chunk_length or _size(row[commas[-1] :]) > shared.opts.comma_padding_backtrack:
            return []
        moved = row[commas[-1] + 1 :]
        del row[commas[-1] + 1 :]
        return moved

    def _chunk(self, row: Sequence[Unit] = ()) -> PromptChunk:
        room = self.chunk_length - _size(row)
        tokens = [self.id_start, *(token for unit in row for token in unit.tokens), *[self.id_end] * (room + 1)]
        weights = [1.0, *(unit.weight for unit in row for _ in unit.tokens), *[1.0] * (room + 1)]
        fixes = [PromptChunkFix(_size(row[:i]), unit.embedding) for i, unit in enumerate(row) if unit.embedding is not None]
        return PromptChunk(tokens, weights, fixes)

    # ---- states ------------------------------------------------------------------------------------------------------

    def forward(self, texts: Sequence[str]) -> Tensor:
        """States (B, 77 k, C), k the chunks of the longest; gradients go through to embeddings."""
        rows = [self.tokenize_line(text)[0] for text in texts]
        return torch.cat([self._states(chunks) for chunks in zip_longest(*rows, fillvalue=self._chunk())], dim=1)

    def _states(self, chunks: Sequence[PromptChunk]) -> Tensor:
        """Of one chunk of each text."""
        self.hijack.fixes = [chunk.fixes for chunk in chunks]
        z = self.encode_with_transformers(torch.tensor([chunk.tokens for chunk in chunks], device=devices.device))
        return EMPHASIS[shared.opts.emphasis](z, torch.tensor([chunk.multipliers for chunk in chunks], dtype=z.dtype, device=z.device))

    def encode_with_transformers(self, tokens: Tensor) -> Tensor:
        """States (B, 77, C) of tokens (B, 77), of the layer that the setting for clip skip names."""
        skip, clip = shared.opts.CLIP_stop_at_last_layers, self.wrapped.transformer
        out = clip(input_ids=tokens, output_hidden_states=True)
        return out.last_hidden_state if skip <= 1 else clip.text_model.final_layer_norm(out.hidden_states[-skip])

    @property
    def words(self) -> nn.Embedding:
        """The table of tokens itself."""
        return self.wrapped.transformer.text_model.embeddings.token_embedding.wrapped

    def encode_embedding_init_text(self, text: str, count: int) -> Tensor:
        """Vectors (n, C) of a text's tokens, at most so many."""
        return self.words(torch.tensor(self.tokenize([text])[0][:count], dtype=torch.long, device=devices.device))


def _size(row: Sequence[Unit]) -> int:
    return sum(len(unit.tokens) for unit in row)


class EmbeddingsWithFixes(nn.Module):
    """Around the table of tokens: puts in the vectors that the prompts at hand name, and forgets them."""

    def __init__(self, wrapped: nn.Embedding, hijack: Any):
        super().__init__()
        self.wrapped, self.hijack = wrapped, hijack

    def forward(self, ids: Tensor) -> Tensor:
        rows, wanted = self.wrapped(ids), self.hijack.fixes or ()
        self.hijack.fixes = None
        return torch.stack([_with(row, fixes) for row, fixes in zip_longest(rows, wanted, fillvalue=())]) if any(wanted) else rows


def _with(row: Tensor, fixes: Sequence[PromptChunkFix]) -> Tensor:
    for at, embedding in fixes:
        vectors = embedding.vec.to(row)[: len(row) - at - 2]  # not over the last mark
        row = row.slice_scatter(vectors, 0, at + 1, at + 1 + len(vectors))
    return row
