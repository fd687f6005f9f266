"""Embeddings: words of prompts with vectors of their own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from modules import devices, errors, hashes, shared


class Embedding:
    """`vec` (n, C). Who makes one sets `vectors` and `shape` as well."""

    def __init__(self, vec: Tensor, name: str, step: int | None = None):
        self.vec, self.name, self.step = vec, name, step
        self.vectors = 0
        self.shape = self.shorthash = self.sd_checkpoint = self.sd_checkpoint_name = self.filename = None


@dataclass(eq=False)
class EmbeddingDatabase:
    """The embeddings of now, by name and by the first token of it. A file that is overwritten in place is not noticed: only the folder's time is looked at."""

    folders: Iterable[str] = ()
    expected_shape: int = -1
    word_embeddings: dict[str, Embedding] = field(default_factory=dict)
    skipped_embeddings: dict[str, Embedding] = field(default_factory=dict)  # of another width than the model's
    ids_lookup: dict[int, list[tuple[list[int], Embedding]]] = field(default_factory=dict)
    _times: dict[str, float | None] = field(default_factory=dict)

    # ---- words -------------------------------------------------------------------------------------------------------

    def register_embedding(self, embedding: Embedding, model: Any) -> Embedding | None:
        return self._put(embedding.name, embedding, model)

    def register_embedding_by_name(self, embedding: Embedding | None, model: Any, name: str) -> Embedding | None:
        """None takes away what has the name."""
        return self._put(name, embedding, model)

    def _put(self, name: str, embedding: Embedding | None, model: Any) -> Embedding | None:
        (ids,) = model.cond_stage_model.tokenize([name])
        row = [(other, known) for other, known in self.ids_lookup.pop(ids[0], ()) if known.name != name and other != ids]
        self.word_embeddings.pop(name, None)
        if embedding is not None:
            row.append((ids, embedding))
            self.word_embeddings[name] = embedding
        if row:
            self.ids_lookup[ids[0]] = sorted(row, key=lambda entry: -len(entry[0]))
        return embedding

    def find_embedding_at_position(self, tokens: list[int], offset: int) -> tuple[Embedding | None, int | None]:
        """The longest one that begins there, and how many tokens its name has."""
        hits = ((known, len(ids)) for ids, known in self.ids_lookup.get(tokens[offset], ()) if tokens[offset : offset + len(ids)] == ids)
        return next(hits, (None, None))

    # ---- files -------------------------------------------------------------------------------------------------------

    def get_expected_shape(self) -> int:
        """The width of the model's text encoder."""
        return shared.sd_model.cond_stage_model.words.embedding_dim

    def load_textual_inversion_embeddings(self, force_reload: bool = False) -> None:
        """Reads the folders, if one has another time than at the last reading or it is forced. All embeddings are then other objects."""
        times = {folder: os.path.getmtime(folder) if os.path.isdir(folder) else None for folder in self.folders}
        if times == self._times and not force_reload:
            return
        self._times, self.expected_shape = times, self.get_expected_shape()
        for table in (self.ids_lookup, self.word_embeddings, self.skipped_embeddings):
            table.clear()
        for path in _files(self.folders):
            try:
                self.load_from_file(path, os.path.basename(path))
            except Exception as error:  # whatever is wrong with the file
                errors.display(error, f"reading the embedding {path}")
        self.word_embeddings = dict(sorted(self.word_embeddings.items(), key=lambda item: item[0].lower()))

    def load_from_file(self, path: str, filename: str) -> None:
        """The word is the file's name. Raises for a file that is no embedding."""
        name, kind = os.path.splitext(filename)
        if kind.lower() not in (".safetensors", ".pt", ".bin"):
            return
        data = load_file(path) if kind.lower() == ".safetensors" else torch.load(path, map_location="cpu")
        embedding = _made(data, name)
        embedding.filename, embedding.shorthash = path, (hashes.sha256(path, f"textual_inversion/{name}") or "")[:12] or None
        if self.expected_shape in (-1, embedding.shape):
            self.register_embedding(embedding, shared.sd_model)
        else:
            self.skipped_embeddings[name] = embedding


def _files(folders: Iterable[str]) -> Iterator[str]:
    """All that are not empty, those of subfolders too."""
    for parent, _, names in (found for folder in folders for found in os.walk(folder, followlinks=True)):
        yield from (path for path in (os.path.join(parent, name) for name in names) if os.path.getsize(path))


def _made(data: Any, name: str) -> Embedding:
    """Raises TypeError where nothing was read, and ValueError where it is not one tensor."""
    if not isinstance(data, dict):
        raise TypeError(f"{name} holds no embedding.")
    vectors = data.get("string_to_param", data)
    if len(vectors) != 1 or not isinstance(only := next(iter(vectors.values())), Tensor):
        raise ValueError(f"{name} does not hold one tensor alone.")
    embedding = Embedding(torch.atleast_2d(only.detach()).to(devices.device, torch.float32), name, data.get("step") if vectors is not data else None)
    embedding.vectors, embedding.shape = embedding.vec.shape
    if vectors is not data:
        embedding.sd_checkpoint, embedding.sd_checkpoint_name = data.get("sd_checkpoint"), data.get("sd_checkpoint_name")
    return embedding
