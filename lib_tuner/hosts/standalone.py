"""A host without the WebUI: a checkpoint file on this machine, or the embedded small model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..disk import expanded
from ..data.pictures import from_pixels
from ..data.prompts import literal
from ..events import Event
from ..host import Components, Forecast, GenerateRequest, LoadReport
from ..methods import METHODS
from ..methods.base import weight_shapes
from ..methods.checkpoint_file import count_places, is_whole
from ..methods.control_file import FORMATS, count_control
from ..methods.embedding_file import read_embedding
from ..methods.hypernetwork import attentions
from ..methods.hypernetwork_file import count_parts
from ..methods.lora_file import count_host_keys
from ..sd.attention import attention_as_products
from ..sd.inpaint import all_hidden, joined
from ..sd.loss import generator_for
from ..sd.model import Model, load_model
from ..sd.place import in_ram, stays
from ..sd.products import convolutions_as_products
from ..sd.sample import guided, sample
from ..settings import TrainConfig
from ..step import schedule_for
from .heap import heap_kept
from .kept import attributes
from .plan import Plan, plan_for

TOGETHER = 512 * 512  # pixels that are drawn at once
DECODED = 4  # pictures that become pixels at once: on a CPU more take half as long again, since they leave its caches
EMBEDDED = Path(__file__).resolve().parent.parent / "demo" / "tiny-sd15.safetensors"


class Standalone:
    """Holds one model for one run; `cfg.checkpoint` names its file, empty is the embedded one."""

    folds = False

    def __init__(self, cfg: TrainConfig):
        self.cfg = cfg
        self.waits: Callable[[], Any] = lambda: None  # nobody else has this model
        self._sd: Components | None = None

    @cached_property
    def plan(self) -> Plan:
        """Device, precision and memory measures of this run."""
        return plan_for(self.cfg, self.model_path)

    @property
    def model_path(self) -> Path:
        """The checkpoint file."""
        return expanded(self.cfg.checkpoint) if self.cfg.checkpoint else EMBEDDED

    @cached_property
    def model(self) -> Model:
        """The loaded model."""
        if not self.model_path.exists():
            raise ValueError(f"checkpoint: {self.model_path} does not exist; give the path of an SD1.5 checkpoint (.safetensors or .ckpt).")
        return load_model(self.model_path, self.plan.dtype, self.plan.device, self.cfg.clip_skip)

    def on(self, checkpoint: Path) -> Standalone:
        """The same with another checkpoint."""
        return type(self)(replace(self.cfg, checkpoint=str(checkpoint)))

    @contextmanager
    def exclusive(self) -> Iterator[Components]:
        """The model under the plan; layout and checkpointing are put back afterwards."""
        m, plan = self.model, self.plan
        before = m.unet.checkpointing
        m.unet.checkpointing = plan.checkpointing
        m.unet.to(memory_format=torch.channels_last if plan.channels_last else torch.contiguous_format)
        if self.cfg.memory.offload:
            m.vae.place = in_ram(m.vae.vae, plan.device)
            m.text.place = stays if METHODS[self.cfg.method](self.cfg).trains_text else in_ram(m.text.transformer, plan.device)
        self._sd = Components(m.unet, m.text, m.vae, m.schedule, nullcontext, m.sha256, m.name, plan.device, plan.dtype, file=self.model_path)
        try:
            with ExitStack() as stack:
                stack.enter_context(convolutions_as_products(m.unet, plan.tiles))
                if plan.products:
                    stack.enter_context(attention_as_products(m.unet, plan.keep))
                if torch.device(plan.device).type == "cpu":
                    stack.enter_context(heap_kept())
                yield self._sd
        finally:
            self._sd = None
            m.unet.checkpointing = before
            m.unet.to(memory_format=torch.contiguous_format)
            for network, part in ((m.vae.vae, m.vae), (m.text.transformer, m.text)):
                part.place = stays
                network.to(plan.device)

    @torch.no_grad()
    def generate(self, requests: list[GenerateRequest]) -> list[Image.Image]:
        """One picture per request; whatever is attached to the model takes part. Requests of one kind are drawn together as far as memory allows."""
        requests = [replace(request, prompt=literal(request.prompt), negative=literal(request.negative)) for request in requests]
        groups: dict[tuple[GenerateRequest, int], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            chunks = self.model.text.ids([request.prompt]).shape[1]  # beside a longer prompt a short one gets empty chunks, and is another picture
            groups[replace(request, prompt="", seed=0), chunks].append(i)
        pictures: dict[int, Image.Image] = {}
        for (kind, _), members in groups.items():
            many = max(1, TOGETHER // (kind.width * kind.height))
            for at in range(0, len(members), many):
                part = members[at : at + many]
                pictures.update(zip(part, self._together(kind, [requests[i] for i in part])))
        return [pictures[i] for i in range(len(requests))]

    def _together(self, kind: GenerateRequest, requests: list[GenerateRequest]) -> list[Image.Image]:
        m, schedule = self.model, schedule_for(self.cfg.loss, self.model.schedule)
        shape = (4, kind.height // m.vae.factor, kind.width // m.vae.factor)
        generators = [generator_for(request.seed, 0, "sample") for request in requests]
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.plan.device)  # each picture's own, whatever it is drawn with
        extra = all_hidden(m.vae, (kind.width, kind.height))[None] if m.inpainting else None
        with attributes(m.text, clip_skip=kind.clip_skip or m.text.clip_skip):
            wanted, unwanted = m.text([request.prompt for request in requests]), m.text([kind.negative])
        denoise = guided(joined(self._predict, extra), wanted, unwanted, kind.cfg)
        latents = sample(denoise, noise, schedule, kind.steps, kind.sampler, generators)
        return [from_pixels(pixels) for some in latents.split(DECODED) for pixels in m.vae.decode(some)]

    def _predict(self, xt: Tensor, t: Tensor, ctx: Tensor) -> Tensor:
        return self.model.unet(xt, t, ctx).float()

    def output_dir(self, kind: str) -> Path:
        """Where finished files of a kind go."""
        return expanded(self.cfg.output) / kind

    def reload(self, path: Path) -> LoadReport:
        """Reads a saved file back as the WebUI would."""
        if is_whole(path):
            parts = {"unet": self.model.unet, "vae": self.model.vae.vae, "text": self.model.text.transformer}
            return LoadReport(path, *count_places(path, {(part, name): tuple(t.shape) for part, root in parts.items() for name, t in root.state_dict().items()}))
        if self.cfg.method in FORMATS:
            return LoadReport(path, *count_control(path, self.cfg.method, self.model.unet), path.stem)
        if self.cfg.method == "hypernetwork":
            return LoadReport(path, *count_parts(path, {module.to_k.weight.shape[1] for _, module in attentions(self.model.unet)}))
        if METHODS[self.cfg.method].file_kind(path) != "textual_inversion":
            return LoadReport(path, *count_host_keys(path, weight_shapes(self.model)))
        count = len(read_embedding(path, width=self.model.text.embedding.weight.shape[1]).vectors)
        return LoadReport(path, count, count)

    def forecast(self) -> Forecast:
        """How this run would go."""
        plan = self.plan
        return Forecast(plan.note, plan.need, plan.free, plan.small, plan.checkpointing, plan.costs.file, plan.costs.state, plan.inpainting, plan.idle_gpu)

    def told(self, event: Event) -> None:
        """The page and the command line show the run by themselves."""

    def interrupted(self) -> bool:
        """Nobody else asks this program to stop."""
        return False
