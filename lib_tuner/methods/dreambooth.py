"""DreamBooth (Ruiz et al. 2208.12242): the whole UNet, with or without the text encoder, learns a subject under a rare word beside its class.

The only method that changes the host's weights. Each is kept aside as it was and put back bit for bit when the run ends, however that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import opt
from ..host import Components
from ..optim import average_bytes, text_scale
from ..sd.files import UNET
from ..sd.inpaint import FIRST, LATENT
from ..sd.names import block_name
from ..settings import TrainConfig
from .adapters import DTYPES
from .base import Costs, Method, parts
from .blocks import RATE_HELP, block_rates, check_blocks, chosen_blocks, rate_of
from .checkpoint_file import Place, is_whole, write_whole, write_yaml
from .difference import as_lora
from .lora_file import write_lora
from .metadata import Made, checkpoint_metadata, lora_metadata, write_card

OF_UNET = tuple(f"{prefix}{root}." for prefix in (UNET, "") for root in ("input_blocks", "middle_block", "output_blocks", "out", "time_embed"))
UNFIT = ("prodigy", "adamw_schedulefree")  # optimizers that look at all weights at once, which bf16 masters do not allow


@dataclass(frozen=True)
class DreamBoothConfig:
    """What is trained, in which precision, and what is saved."""

    text_encoder: bool = opt(False, "Text encoder", "Train the text encoder too, on its own learning rate.", essential=True)
    blocks: str = opt("all", "Blocks", "Which blocks of the UNet: all, or names such as `IN04, IN05, M00, OUT03` (IN00-IN11, M00, OUT00-OUT11); the others need no memory to learn.")
    block_rates: str = opt("", "Learning rates of blocks", RATE_HELP)
    text_until: int = opt(0, "Text encoder until", "The text encoder learns in the first steps alone; 0: to the end.", min=0, max=10000000, unit="steps")
    masters: str = opt("fp32", "Trained weights", "fp32 is exact; bf16 with stochastic rounding needs less than half of the memory.", choices=("fp32", "bf16"))
    save: str = opt("checkpoint", "Save", "A whole checkpoint (2 GB in fp16), what was learned as a LoRA, or both.", choices=("checkpoint", "lora", "both"), essential=True, kept=False)
    save_dtype: str = opt("fp16", "Saved precision", "Precision of the saved file.", choices=("fp16", "bf16", "fp32"), kept=False)
    lora_rank: int = opt(64, "LoRA rank", "Rank of the saved LoRA: more keeps more of what was learned.", min=1, max=1024, kept=False)

    def check(self) -> None:
        """Raises ValueError for block names there are not, and for what would be left aside."""
        check_blocks(self, self.text_encoder)


@dataclass(eq=False)
class _Weight:
    """One trained weight: where it is, the host's own, what it was (with its flag and gradient), and the one that the optimizer moves."""

    place: Place
    param: nn.Parameter
    original: Tensor
    wanted: bool
    grad: Tensor | None
    master: nn.Parameter

    def follow(self) -> None:
        """The host's weight becomes the master, rounded to its precision."""
        if self.master is not self.param:
            self.param.copy_(self.master)

    def restore(self) -> None:
        self.param.grad = None
        self.param.requires_grad_(False).copy_(self.original)
        self.param.requires_grad_(self.wanted)
        self.param.grad = self.grad


class DreamBooth(Method):
    """Trains the model itself; the host's model is the frozen one again while `disabled`, and for good after `detach`."""

    Config, kind, label = DreamBoothConfig, "dreambooth", "DreamBooth"
    refuses = {".block_ranks": "whole weights have no rank; choose blocks, or set dreambooth.lora_rank for the saved LoRA"}
    freezes = False
    in_prompt = False  # nor is the checkpoint named there; the LoRA of the difference is, as its kind says
    drifts = True
    good_every = 100
    settings: DreamBoothConfig

    def __init__(self, cfg: TrainConfig):
        super().__init__(cfg)
        self.trains_text = self.settings.text_encoder
        self._blocks, self._rates = chosen_blocks(self.settings.blocks), block_rates(self.settings.block_rates)
        self.weights: list[_Weight] = []
        self._handles: list[Any] = []
        self._sd: Components | None = None
        self._done = 0

    @classmethod
    def check(cls, cfg: TrainConfig) -> None:
        super().check(cfg)
        s = cfg.settings
        rates = block_rates(s.block_rates)
        if 0 < s.text_until < cfg.steps and s.text_encoder and not any(rates.get(name, 1.0) for name in chosen_blocks(s.blocks) - {"BASE"}):
            raise ValueError("dreambooth.text_until: no block of the UNet learns, so nothing would after that step: set it to 0, or end the run there.")

    # ---- the host's weights ------------------------------------------------------------------------------------------

    def attach(self, sd: Components) -> list[dict[str, Any]]:
        s = self.settings
        if s.masters == "bf16" and sd.dtype == torch.float16:
            raise ValueError("dreambooth.masters: bf16 needs a model that computes in bf16 or fp32, and this one computes in fp16; choose fp32.")
        if s.masters == "bf16" and self.cfg.optim.name in UNFIT:
            raise ValueError(f"optim.name: {self.cfg.optim.name} does not work with dreambooth.masters = bf16; choose adamw, adafactor or another one.")
        self._sd, self._done = sd, 0
        for part, root in parts(sd).items():
            for name, param in root.named_parameters():
                if self._rate(part, name):
                    self._take((part, name.replace(".wrapped.", ".")), param)  # the WebUI wraps the token embedding
        return [{"params": params, "lr_scale": scale * rate} for part, scale in (("unet", 1.0), ("text", text_scale(self.cfg.optim))) for rate, params in self._by_rate(part).items()]

    def _rate(self, part: str, name: str) -> float:
        """How many times the learning rate a weight learns at; 0 where it stays as it is."""
        if part == "text":
            return self._rates.get("BASE", 1.0) * self.settings.text_encoder
        return rate_of(self._rates, part, name) * (block_name(name) in self._blocks)

    def _by_rate(self, part: str) -> dict[float, list[nn.Parameter]]:
        groups: dict[float, list[nn.Parameter]] = {}
        for w in self._of(part):
            groups.setdefault(self._rate(*w.place), []).append(w.master)
        return groups

    def _take(self, place: Place, param: nn.Parameter) -> None:
        """Keeps a weight aside and makes it one that learns; frozen predictions at every step want the original where it is computed."""
        near = param.device if self.cfg.prior.weight else "cpu"
        original = param.detach().to(near, copy=True)
        dtype = DTYPES[self.settings.masters]
        master = param if param.dtype == dtype else nn.Parameter(param.detach().to(dtype))
        self.weights.append(_Weight(place, param, original, param.requires_grad, param.grad, master))
        param.grad = None
        param.requires_grad_(True)
        if master is not param:
            self._handles.append(param.register_post_accumulate_grad_hook(_collector(master)))

    def _of(self, part: str) -> list[_Weight]:
        return [w for w in self.weights if w.place[0] == part]

    @classmethod
    def file_kind(cls, path: Path) -> str:
        return cls.kind if is_whole(path) else "lora"

    @torch.no_grad()
    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for weight in self.weights:
            weight.restore()
        self.weights, self._handles, self._sd = [], [], None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        trained = [w.param.data for w in self.weights]
        try:
            for w in self.weights:
                w.param.data = w.original.to(w.param.device)
            yield
        finally:
            for w, data in zip(self.weights, trained):
                w.param.data = data

    # ---- learning ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def follow(self) -> None:
        for weight in self.weights:
            weight.follow()

    def after_step(self, step: int) -> None:
        self._done = step
        for weight in self.weights:
            weight.master.grad = None  # as large as the weights, and samples and saves may come before the next step
        self.follow()
        self._end_text()

    def _end_text(self) -> None:
        """From `text_until` on the text encoder gets no gradients, so no optimizer moves it."""
        if 0 < self.settings.text_until <= self._done:
            for weight in self._of("text"):
                weight.param.requires_grad_(False)
                weight.master.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        return {**self._copies(), "done": {"steps": torch.tensor(self._done)}}

    def snapshot(self) -> dict[str, Any]:
        dtype = DTYPES[self.settings.save_dtype] if self.settings.save == "checkpoint" else None  # all that would be written of it
        return {**self._copies(dtype), "done": {"steps": torch.tensor(self._done)}}

    def _copies(self, dtype: torch.dtype | None = None) -> dict[str, dict[str, Tensor]]:
        """The trained weights on the CPU, by part and name."""
        copies: dict[str, dict[str, Tensor]] = {}
        for w in self.weights:
            copies.setdefault(w.place[0], {})[w.place[1]] = w.master.detach().to("cpu", dtype or w.master.dtype, copy=True)
        return copies

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = {(part, name): value for part, values in state.items() if part != "done" for name, value in values.items()}
        if {place: value.shape for place, value in saved.items()} != {w.place: w.master.shape for w in self.weights}:
            raise ValueError("The saved dreambooth trained other weights than these settings do; resume with the settings of the run that was saved.")
        for w in self.weights:
            w.master.copy_(saved[w.place])
        self._done = int(state["done"]["steps"])
        self.follow()
        self._end_text()

    def costs(self, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: str) -> Costs:
        s, count = self.settings, self._unet_count(sizes["unet"], shapes) + sizes["text"] * self.settings.text_encoder
        own, kept = DTYPES[s.masters].itemsize, DTYPES[s.save_dtype].itemsize
        averages = average_bytes(self.cfg.optim.name, own)
        masters = own if dtype != DTYPES[s.masters] else 0
        ema = 4 if self.cfg.optim.ema else 0
        aside = dtype.itemsize if device == "cpu" or self.cfg.prior.weight else 0  # the originals; the snapshot is in RAM
        snapshot = kept if device == "cpu" else 0
        file = sum(sizes.values()) * kept if s.save != "lora" else 0
        return Costs(count * (masters + own + averages + ema + aside + snapshot), file, count * (own + averages + ema))

    def _unet_count(self, whole: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """How many of the UNet's numbers learn; all, where the shapes of its tensors are not known."""
        own = {key.removeprefix(UNET): math.prod(shape) for key, shape in shapes.items() if key.startswith(OF_UNET)}
        return sum(count for name, count in own.items() if self._rate("unet", name)) if own else whole

    # ---- files -------------------------------------------------------------------------------------------------------

    def export(self, path: Path, summary: Mapping[str, Any], made: Made) -> list[Path]:
        s, files = self.settings, []
        if s.save != "lora":
            files.append(self._export_whole(path.with_name(path.name + ".safetensors"), checkpoint_metadata(self.cfg, summary, made), made.prediction))
        if s.save != "checkpoint":
            name = path.name if s.save == "lora" else path.name.replace(self.cfg.name, f"{self.cfg.name}-lora", 1)
            files.append(self._export_lora(path.with_name(name + ".safetensors"), summary, made))
        return files

    def _export_whole(self, path: Path, metadata: Mapping[str, str], prediction: str) -> Path:
        if self._sd.file is None:
            raise ValueError(f"{path.name} was not saved: the host does not say which file its model came from; set dreambooth.save to lora.")
        write_yaml(path, self._sd.file, prediction)
        return write_whole(path, self._sd.file, {w.place: w.master for w in self.weights}, metadata, DTYPES[self.settings.save_dtype])

    def _export_lora(self, path: Path, summary: Mapping[str, Any], made: Made) -> Path:
        modules = as_lora(self._changes(), self.settings.lora_rank)
        file = write_lora(path, modules, lora_metadata(self.cfg, summary, made, modules), DTYPES[self.settings.save_dtype])
        write_card(file, self.cfg.trigger)
        return file

    def _changes(self) -> Iterator[tuple[tuple[str, str], Tensor]]:
        """The change of each weight of a Linear or Conv2d; norms, biases and the vocabulary have no place in a LoRA.

        Nor have an inpainting model's five channels beside the latent's: the WebUI takes a change of the first convolution's four and fills up with zeros.
        """
        kinds = {(part, name) for part, root in parts(self._sd).items() for name, m in root.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        for w in self.weights:
            path = w.place[1].removesuffix(".weight")
            if (w.place[0], path) in kinds and path != w.place[1]:
                change = w.master.detach().float() - w.original.to(w.master.device).float()
                yield (w.place[0], path), change[:, :LATENT] if w.place == ("unet", f"{FIRST}.weight") else change


def _collector(master: nn.Parameter) -> Any:
    """What takes a gradient of the host's weight over into the master's, in its precision, and frees it."""

    def collect(param: Tensor) -> None:
        if master.grad is None:
            master.grad = param.grad.to(master.dtype)
        else:
            master.grad.add_(param.grad)
        param.grad = None

    return collect
