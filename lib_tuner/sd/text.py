"""Captions -> the states that the UNet reads, as the WebUI computes them with emphasis off: every character is literal.

Axes: B captions, k chunks, L = 77 tokens of a chunk (begin, 75, end), C width. Source of the rules: modules/sd_hijack_clip.py of the WebUI 1.9.4.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .place import Place, stays
from .tokenizer import Tokenizer

CHUNK = 75  # tokens of a chunk between its begin and end
BACKTRACK = 20  # the WebUI's `comma_padding_backtrack`
_EMBEDDING = "text_model.embeddings.token_embedding"


@dataclass(frozen=True, eq=False)
class _Splice:
    name: str
    ids: tuple[int, ...]  # what the tokenizer makes of the name
    param: Tensor  # (n, C)


class TextEncoder:
    """Captions in, states (B, 77 * k, C) out; `transformer(ids (B, 77), skip)` is the CLIP text encoder."""

    def __init__(self, transformer: nn.Module, tokenizer: Tokenizer | None = None, clip_skip: int = 1):
        self.transformer, self.tokenizer, self.clip_skip = transformer, tokenizer or Tokenizer(), clip_skip
        self.place: Place = stays
        self._splices: tuple[_Splice, ...] = ()
        self._hooks: tuple[RemovableHandle, ...] = ()

    @property
    def embedding(self) -> nn.Module:
        """The module that turns token ids into vectors; its rows are its `weight` (V, C)."""
        return self.transformer.get_submodule(_EMBEDDING)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States (B, 77 * k, C), k the chunks that the longest caption needs; shorter captions get empty chunks after their own."""
        return self.encode(self.ids(captions))

    def encode(self, ids: Tensor) -> Tensor:
        """States (B, 77 * k, C) of token ids (B, k, 77) as `ids` makes them; a function of tensors alone."""
        with self.place():
            states = self.states(ids.flatten(0, 1).to(self.embedding.weight.device))  # (B * k, 77, C)
        return states.reshape(ids.shape[0], -1, states.shape[-1])  # (B, k * 77, C)

    def states(self, ids: Tensor) -> Tensor:
        """States (B, 77, C) of chunks (B, 77)."""
        return self.transformer(ids, skip=self.clip_skip)

    def ids(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, k, 77) on the encoder's device; ids from the vocabulary's size on are rows of spliced embeddings."""
        rows = [self._chunks(caption) for caption in captions]
        count = max((len(row) for row in rows), default=1)
        rows = [row + [[]] * (count - len(row)) for row in rows]
        bos, eos = self.tokenizer.bos, self.tokenizer.eos
        full = [[[bos, *chunk, *[eos] * (CHUNK + 1 - len(chunk))] for chunk in row] for row in rows]
        return torch.tensor(full, dtype=torch.long, device=self.embedding.weight.device).reshape(len(full), count, CHUNK + 2)

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def tokens(self, caption: str) -> list[int]:
        """Token ids of a caption without begin and end; a spliced name is one id per vector."""
        return [i for unit in self._units(caption) for i in unit]

    def token_count(self, caption: str) -> int:
        """How many tokens a caption has; a chunk has room for 75."""
        return len(self.tokens(caption))

    def _units(self, caption: str) -> list[list[int]]:
        """What may not be divided: single tokens, and whole embeddings."""
        ids, units, at = self.tokenizer.encode(caption), [], 0
        first = self.embedding.weight.shape[0]
        rows, names = {}, sorted(self._splices, key=lambda splice: -len(splice.ids))  # the longest name wins
        for splice in self._splices:
            rows[splice.name] = list(range(first, first + len(splice.param)))
            first += len(splice.param)
        while at < len(ids):
            found = next((splice for splice in names if tuple(ids[at : at + len(splice.ids)]) == splice.ids), None)
            units.append(rows[found.name] if found else [ids[at]])
            at += len(found.ids) if found else 1
        return units

    def _chunks(self, caption: str) -> list[list[int]]:
        """Chunks of at most 75 tokens. What follows a comma among a full chunk's last 20 tokens moves into the next chunk."""
        comma, chunks, chunk, last = self._comma, [], [], -1
        for unit in self._units(caption):
            if unit == [comma]:
                last = len(chunk)
            elif len(chunk) == CHUNK and last != -1 and CHUNK - last <= BACKTRACK:
                chunks.append(chunk[: last + 1])
                chunk, last = chunk[last + 1 :], -1
            if len(chunk) + len(unit) > CHUNK:
                chunks.append(chunk)
                chunk, last = [], -1
            chunk = chunk + unit
        return chunks + [chunk] if chunk or not chunks else chunks

    @property
    def _comma(self) -> int:
        return self.tokenizer.encode(",")[0]

    # ---- splice ------------------------------------------------------------------------------------------------------

    @contextmanager
    def splice(self, name: str, param: Tensor) -> Iterator[None]:
        """While active, `name` inside a caption stands for the vectors `param` (n, C), through which gradients flow.

        Raises ValueError for a name that is empty, active already or read as another active one, and for vectors of another width.
        """
        splice = self._checked(name, param)
        if not self._splices:
            self._hooks = gather_rows(self.embedding, lambda: torch.cat([s.param for s in self._splices]))  # in the order that _units counts
        self._splices += (splice,)
        try:
            yield
        finally:
            self._splices = tuple(s for s in self._splices if s is not splice)
            if not self._splices:  # the last to end takes the hooks away, in whatever order they end
                for hook in self._hooks:
                    hook.remove()
                self._hooks = ()

    def words(self) -> list[tuple[str, Tensor]]:
        """The active names with their vectors (n, C)."""
        return [(splice.name, splice.param) for splice in self._splices]

    def _checked(self, name: str, param: Tensor) -> _Splice:
        width = self.embedding.weight.shape[1]
        ids = tuple(self.tokenizer.encode(name))
        if not ids:
            raise ValueError(f"embedding name {name!r} has no letters; give it a name that can be written in a caption.")
        if param.ndim != 2 or param.shape[1] != width or not 1 <= len(param) <= CHUNK:
            raise ValueError(f"embedding {name}: vectors of shape {tuple(param.shape)} do not fit; this text encoder needs (1 to {CHUNK}, {width}).")
        same = next((s.name for s in self._splices if s.ids == ids), None)
        if same is not None:
            raise ValueError(f"embedding {name}: {same!r} is active already and is written in the same tokens; choose another name.")
        return _Splice(name, ids, param)


def gather_rows(embedding: nn.Module, rows: Callable[[], Tensor]) -> tuple[RemovableHandle, ...]:
    """Lets ids from the vocabulary's size V on stand for `rows()` (n, C): id V + i gives row i, with its gradient. Remove both handles to undo.

    A gather by tensor index next to the module's own look-up: the V rows are not copied, and a captured graph can replay it.
    """
    first, asked = embedding.weight.shape[0], {}

    def clamp(module: nn.Module, args: tuple) -> tuple:
        asked["ids"] = args[0]
        return (args[0].clamp(max=first - 1), *args[1:])

    def gather(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        ids, new = asked.pop("ids"), rows().to(out)
        spliced = new[(ids - first).clamp(0, len(new) - 1)]  # (..., C)
        return torch.where((ids >= first)[..., None], spliced, out)

    return embedding.register_forward_pre_hook(clamp), embedding.register_forward_hook(gather)
