"""Where the model lives: what training needs of a host, whether it is the WebUI or this program alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .events import Event
from .sd.schedule import Schedule

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


Say = Callable[["Image"], str]  # what a picture is described with
SAMPLERS = {"ddim": ("DDIM", None), "euler_a": ("Euler a", None), "dpmpp_2m": ("DPM++ 2M", "Karras")}  # ours -> the WebUI's name and schedule type


@dataclass(frozen=True)
class GenerateRequest:
    """One picture to draw."""

    prompt: str
    negative: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "ddim"  # ddim, euler_a, dpmpp_2m, or inside the WebUI the name of any of its own
    seed: int = 1
    clip_skip: int = 0  # 0: as the host's settings say
    plain: bool = False  # without the styles, sampler and second pass that a host may add for samples


@dataclass(frozen=True)
class LoadReport:
    """How a host read a saved file: `taken` of its `total` modules or vectors are used; `name`: what it is called in a prompt there; `note`: what a person should know."""

    path: Path
    taken: int
    total: int
    name: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.path.name}: {self.taken} of {self.total} parts are taken by the host" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Forecast:
    """How a host would run its settings: in words, with the bytes of memory it takes and those that are free (None: cannot be asked)."""

    note: str  # device, precision and memory measures
    need: float
    free: float | None
    small: bool = False  # the embedded model, or one of its size
    checkpointing: bool = False
    file: float = 0.0  # bytes of a saved file and of a state to resume from, where those are many
    state: float = 0.0
    inpainting: bool | None = None  # None: it does not know
    idle_gpu: bool = False  # there is a card that this PyTorch cannot use


class TextEncoder(Protocol):
    """Captions -> states; `transformer` is what adapters attach to."""

    transformer: nn.Module
    embedding: nn.Module  # token ids -> vectors; its `weight` is the vocabulary (V, C)
    tokenizer: Any  # .encode(text) -> ids

    def __call__(self, captions: list[str]) -> Tensor: ...  # (B, 77 k, C)
    def splice(self, name: str, vectors: Tensor) -> AbstractContextManager: ...  # (n, C) in the place of the word `name`


class Autoencoder(Protocol):
    """Pixels (B, 3, H, W) in [-1, 1] <-> scaled latents (B, 4, H / 8, W / 8)."""

    cache_key: str
    factor: int

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...  # mean, standard deviation
    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Components:
    """A host's model, frozen, on its device."""

    unet: nn.Module  # (B, 4, h, w), (B,), (B, L, C) -> (B, 4, h, w); of an inpainting model (B, 9, h, w)
    text: TextEncoder
    vae: Autoencoder
    schedule: Schedule
    autocast: Callable[[], AbstractContextManager]
    model_hash: str  # sha256 of the checkpoint
    model_name: str = ""
    device: Any = "cpu"
    dtype: Any = None  # of the UNet's weights
    checkpointing: bool = False  # the host computes the UNet's activations twice, so what is trained beside it does too
    file: Path | None = None  # the checkpoint that it was loaded from
    depth: Callable[[Tensor], Tensor] | None = None  # (3, H, W) in [0, 1] -> (1, H, W), near is 1: a depth model of the host's, loaded when first asked


class Host(Protocol):
    """The WebUI or the standalone program."""

    waits: Callable[[], Any]  # called now and then while `exclusive()` waits for others who have the model; what it raises ends the waiting
    folds: bool  # a saved adapter is written into the weights here, so samples are drawn that way too

    def on(self, checkpoint: Path) -> Host: ...  # a host of the same settings whose model is that checkpoint, for comparisons
    def exclusive(self) -> AbstractContextManager[Components]: ...  # undoes all it changed, also after an error
    def generate(self, requests: list[GenerateRequest]) -> list[Image]: ...  # inside exclusive() too: the hooks are live
    def output_dir(self, kind: str) -> Path: ...
    def reload(self, path: Path) -> LoadReport: ...
    def interrupted(self) -> bool: ...
    def forecast(self) -> Forecast: ...  # touches neither model nor lock
    def told(self, event: Event) -> None: ...  # what the run says, for a host that shows a progress of its own


class Captioner(Protocol):
    """A model of the host's own that says in words what is in a picture. A host that has none offers none."""

    @property
    def name(self) -> str: ...  # with all that its words depend on: they are kept under it
    def at_work(self) -> AbstractContextManager[Callable[[], Say | None]]: ...  # None until the host's turn has come, then the loaded model, which is put away again. Raises ValueError
