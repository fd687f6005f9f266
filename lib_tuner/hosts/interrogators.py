"""The WebUI's own models that describe pictures: BLIP (of `shared.interrogator`) and DeepDanbooru. `w` is the host's modules as hosts/a1111.py hands them in.

They work as the host's buttons do: in the queue, with the host's settings, and put away afterwards as those say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from PIL.Image import Image

from ..host import Captioner, Say
from ..progress import reason_of
from ..words import lacks_memory
from .job import interrupted, queued

BLIP = ("interrogate_clip_num_beams", "interrogate_clip_min_length", "interrogate_clip_max_length")  # settings that the words depend on
DANBOORU = ("interrogate_deepbooru_score_threshold", "deepbooru_sort_alpha", "deepbooru_use_spaces", "deepbooru_escape", "deepbooru_filter_tags")


def captioners(w: Any) -> dict[str, Captioner]:
    """Those that this host has, by the names that a page shows."""
    return {"BLIP": Blip(w), "DeepDanbooru": Danbooru(w)}


class Blip:
    """One sentence a picture. The host loads CLIP beside it, which only its own page asks for more words."""

    def __init__(self, w: Any):
        self.w = w

    @property
    def name(self) -> str:
        return _name("BLIP", self.w, BLIP)

    def at_work(self) -> AbstractContextManager[Callable[[], Say | None]]:
        return _in_turn(self.w, self._loaded)

    @contextmanager
    def _loaded(self) -> Iterator[Say]:
        w, models = self.w, self.w.shared.interrogator
        w.lowvram.send_everything_to_cpu()
        w.devices.torch_gc()
        try:
            _load("BLIP", models.load)
            models.send_clip_to_ram()
            yield lambda picture: _said("BLIP", w, models.generate_caption, picture)
        finally:
            models.unload()


class Danbooru:
    """Danbooru's tags in a row, as the host's settings write them."""

    def __init__(self, w: Any):
        self.w = w

    @property
    def name(self) -> str:
        return _name("DeepDanbooru", self.w, DANBOORU)

    def at_work(self) -> AbstractContextManager[Callable[[], Say | None]]:
        return _in_turn(self.w, self._loaded)

    @contextmanager
    def _loaded(self) -> Iterator[Say]:
        w, model = self.w, self.w.deepbooru.model
        try:
            _load("DeepDanbooru", model.start)
            yield lambda picture: _said("DeepDanbooru", w, lambda it: model.tag_multi(it, force_disable_ranks=True), picture)  # (a tag:0.9) is emphasis in a caption
        finally:
            if model.model is not None:
                model.stop()


@contextmanager
def _in_turn(w: Any, loaded: Callable[[], AbstractContextManager[Say]]) -> Iterator[Callable[[], Say | None]]:
    """The model when the host's turn has come, and not before."""
    with queued(w) as came, ExitStack() as stack:
        yield lambda: stack.enter_context(loaded()) if came() else None


def _name(title: str, w: Any, settings: tuple[str, ...]) -> str:
    """The title with a digest of the settings: with others the words are others."""
    values = json.dumps([getattr(w.shared.opts, name) for name in settings])
    return f"{title} {hashlib.sha256(values.encode()).hexdigest()[:12]}"


def _load(title: str, load: Callable[[], Any]) -> None:
    try:
        load()
    except Exception as error:  # whatever the host raises: where its download fails it only finds no file in a list
        reason = "its file could not be fetched" if isinstance(error, IndexError) else reason_of(error)
        raise ValueError(f"The WebUI cannot load {title} ({reason}); at its first use it is fetched from the internet: check the connection, then try again. The WebUI's log may say more.") from error


def _said(title: str, w: Any, say: Callable[[Image], str], picture: Image) -> str:
    if interrupted(w.shared):
        raise ValueError("Interrupt was pressed in the WebUI; what was described so far is kept.")
    try:
        return say(picture)
    except Exception as error:  # out of memory, or a model that does not fit the host's packages
        reason = "there is not enough memory" if lacks_memory(error) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{title} fails in the WebUI ({reason}); what was described so far is kept. Close other programs or see the WebUI's log, then go on.") from error
