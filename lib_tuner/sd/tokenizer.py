"""CLIP's byte-pair tokens, by open_clip's own tokenizer.

`import open_clip` loads torchvision, which is slow and in places missing; its tokenizer.py needs neither, so that one file is loaded by its place,
when the first text is encoded. Both 2.20 and 3.x have it, beside the vocabulary `bpe_simple_vocab_16e6.txt.gz`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

BOS, EOS, VOCABULARY = 49406, 49407, 49408
_MERGES = slice(1, 49152 - 256 - 2 + 1)  # the vocabulary file has a title and more merges than CLIP uses


class Tokenizer:
    """Text <-> CLIP's token ids, without the begin and end tokens; the vocabulary is read at the first use."""

    bos, eos = BOS, EOS

    @property
    def _bpe(self) -> Any:
        return _open_clips_own()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, however long; upper case and runs of spaces make no difference, HTML entities are read."""
        return self._bpe.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, in lower case."""
        return self._bpe.decode(ids).strip()


@lru_cache(maxsize=1)
def _open_clips_own() -> Any:
    """One for the process: to read the vocabulary takes a quarter of a second."""
    return _open_clip_tokenizer().SimpleTokenizer()


@lru_cache(maxsize=1)
def _open_clip_tokenizer() -> ModuleType:
    if "open_clip.tokenizer" in sys.modules:  # as in the WebUI, which has imported it already
        return sys.modules["open_clip.tokenizer"]
    spec = importlib.util.spec_from_file_location("lib_tuner_open_clip_tokenizer", _package() / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    spec.loader.exec_module(module)
    if before is None:
        os.environ.pop("TOKENIZERS_PARALLELISM", None)  # which the file sets for its own use of transformers
    return module


def _package() -> Path:
    spec = importlib.util.find_spec("open_clip")  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("The package open_clip_torch, whose CLIP tokenizer is used, is not installed; run `pip install open_clip_torch`.")
    return Path(next(iter(spec.submodule_search_locations)))


# ---- for programs that read transformers' folders --------------------------------------------------------------------


def write_clip_folder(folder: str | Path, config: dict) -> Path:
    """Writes config.json, vocab.json and merges.txt, from which transformers' CLIPTokenizer and CLIPTextModel are made.

    `config` is the text encoder's (hidden_size, num_attention_heads, ...); the vocabulary is CLIP's own of 49,408 tokens.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges = gzip.decompress((_package() / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8").split("\n")[_MERGES]
    letters = list(_byte_letters().values())
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(merge.split()) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    config = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": VOCABULARY, **config}
    contents = {
        "vocab.json": json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "config.json": json.dumps(config, indent=2) + "\n",
    }
    for name, content in contents.items():
        temporary = folder / f".{name}.{os.getpid()}.part"
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, folder / name)
    return folder


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes: printable bytes stand for themselves, the others count on from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
