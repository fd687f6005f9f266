"""The peer's side of the benchmark: the same update with diffusers, transformers and peft, written as diffusers' own example scripts are.

Sources: diffusers examples/text_to_image/train_text_to_image_lora.py and examples/textual_inversion/textual_inversion.py. What they do and is kept here:
frozen parts in the run's precision, what is trained in fp32, autocast around the forward pass in bf16, torch's AdamW, gradient clipping for the LoRA alone,
and for an embedding the whole token table as the parameter, whose other rows are put back after each step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bench_worker import CLIPS, RANK, RATES, VECTORS, WORD, Drawn, Inputs, Passes, Side, Worker, config_for
from .sd.clip import CLIPSizes
from .sd.files import read_checkpoint
from .sd.names import diffusers_path, text_to_diffusers, unet_to_diffusers, unet_paths
from .sd.tokenizer import Tokenizer
from .sd.unet import UNetSizes

LENGTH = 77


def lora_paths() -> list[str]:
    """The 192 modules of the UNet that kohya's scripts train: attention, feed-forward, and the projections around them."""
    return [path for path in unet_paths() if ".transformer_blocks." in path or path.endswith(("proj_in", "proj_out"))]


def peer_unet(state: Mapping[str, Tensor], heads: int, dtype: torch.dtype) -> nn.Module:
    """diffusers' UNet around a checkpoint's tensors."""
    from diffusers import UNet2DConditionModel

    sizes = UNetSizes.of(dict(state), heads)
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=sizes.inputs, out_channels=sizes.outputs, block_out_channels=sizes.channels, layers_per_block=2, cross_attention_dim=sizes.context,
            attention_head_dim=sizes.heads,  # the number of heads: diffusers keeps the wrong name for the sake of old files
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in sizes.attention],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(sizes.attention)],
        )  # fmt: skip
    unet.load_state_dict({key: tensor.to(dtype) for key, tensor in unet_to_diffusers(dict(state)).items()}, assign=True)
    return unet.requires_grad_(False).train()


def peer_text(state: Mapping[str, Tensor], heads: int, dtype: torch.dtype) -> nn.Module:
    """transformers' text encoder around a checkpoint's tensors."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = CLIPSizes.of(dict(state), heads)
    config = CLIPTextConfig(
        hidden_size=sizes.width, intermediate_size=sizes.inner, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        vocab_size=sizes.vocabulary, max_position_embeddings=sizes.length, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407,
    )  # fmt: skip
    with torch.device("meta"):
        text = CLIPTextModel(config)
    prefix = "text_model." if any(key.startswith("text_model.") for key in text.state_dict()) else ""  # transformers before version 5
    text.load_state_dict({key: tensor.to(dtype) for key, tensor in text_to_diffusers(dict(state), prefix).items()}, assign=True)
    embeddings = text.get_submodule(f"{prefix}embeddings")
    embeddings.register_buffer("position_ids", torch.arange(sizes.length)[None], persistent=False)  # in no file, so still without memory
    return text.requires_grad_(False).eval()


class Peer(Worker):
    """What both tasks share: models, inputs, and the update. Raises ModuleNotFoundError where diffusers, transformers or peft are missing."""

    def __init__(self, side: Side):
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it where it is, and it then complains of a kernel nobody asked for
        from diffusers import DDPMScheduler

        self.device, self.half = torch.device(side.device), side.precision == "bf16"
        self._dtype = torch.bfloat16 if self.half else torch.float32
        file = read_checkpoint(side.checkpoint)
        self.unet = peer_unet(file.unet, file.heads.unet, self._dtype).to(self.device)
        self.text = peer_text(file.text, file.heads.text, self.text_dtype()).to(self.device)
        self.schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
        self.drawn, self.tokenizer, self.clip = Drawn(config_for(side), self.device), Tokenizer(), CLIPS[side.task]
        self.passes = Passes(self.unet, self.device)
        self.params = self.prepare()
        self.optimizer = torch.optim.AdamW(self.params, lr=float(RATES[side.task]), betas=(0.9, 0.999), eps=1e-8, weight_decay=self.decay())

    def text_dtype(self) -> torch.dtype:
        return self._dtype

    def decay(self) -> float:
        return 0.01

    def prepare(self) -> list[nn.Parameter]:
        """Puts what is trained into the models; returns its parameters."""
        raise NotImplementedError

    def take_start(self, start: Mapping[str, Any]) -> None:
        """Starts from what our side starts from, `Method.state_dict()`."""
        raise NotImplementedError

    def states(self, captions: list[str]) -> Tensor:
        """Text states (B, L, C)."""
        raise NotImplementedError

    def after(self) -> None:
        """What follows the optimizer's step."""

    def load_start(self, path: Any) -> None:
        """`take_start` of a file that our side has written."""
        self.take_start(torch.load(path, map_location="cpu", weights_only=True))

    def dtype(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    def update(self, number: int, given: Inputs) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext():
            xt = self.schedule.add_noise(given.x0.to(self._dtype), given.noise.to(self._dtype), given.t)
            pred = self.unet(xt, given.t, self.states(given.captions), return_dict=False)[0]
            loss = F.mse_loss(pred.float(), given.noise.float())
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.params, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.after()
        return loss.detach()

    def ids(self, caption: str, rows: list[int]) -> list[int]:
        """Begin, the caption's tokens with `rows` in the place of the learned word, ends: 77 ids."""
        parts = [self.tokenizer.encode(part) for part in caption.split(WORD)]
        tokens = parts[0] + [i for part in parts[1:] for i in (*rows, *part)]
        tokens = [self.tokenizer.bos, *tokens[: LENGTH - 2]]
        return tokens + [self.tokenizer.eos] * (LENGTH - len(tokens))

    def encode(self, captions: list[str], rows: list[int]) -> Tensor:
        ids = torch.tensor([self.ids(caption, rows) for caption in captions], device=self.device)
        return self.text(ids).last_hidden_state


class PeerLoRA(Peer):
    """peft layers of the same rank on the same 192 modules; text states cached."""

    def prepare(self) -> list[nn.Parameter]:
        from peft import LoraConfig

        self.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[diffusers_path(path) for path in lora_paths()]))
        self.cached: dict[str, Tensor] = {}
        params = [p for p in self.unet.parameters() if p.requires_grad]
        for p in params:
            p.data = p.data.float()  # what is trained is fp32 (diffusers: cast_training_params)
        return params

    def take_start(self, start: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for target, state in start.items():
                layer = self.unet.get_submodule(diffusers_path(target.partition(":")[2]))
                layer.lora_A["default"].weight.copy_(state["down"])
                layer.lora_B["default"].weight.copy_(state["up"])

    def start(self) -> dict[str, Any]:
        layers = {path: self.unet.get_submodule(diffusers_path(path)) for path in lora_paths()}
        return {f"unet:{path}": {"down": m.lora_A["default"].weight, "up": m.lora_B["default"].weight} for path, m in layers.items()}

    @torch.no_grad()
    def states(self, captions: list[str]) -> Tensor:
        for caption in captions:
            if caption not in self.cached:
                self.cached[caption] = self.encode([caption], [])[0]
        return torch.stack([self.cached[caption] for caption in captions])


class PeerTextualInversion(Peer):
    """The rows of the word at the end of the token table, which is trained as a whole and put back but for them."""

    def text_dtype(self) -> torch.dtype:
        return torch.float32  # the script keeps the text encoder so, since its table is what is trained

    def decay(self) -> float:
        return 0.0  # embeddings are not decayed on our side

    def prepare(self) -> list[nn.Parameter]:
        old = self.text.get_input_embeddings().weight
        self.known = len(old)
        rows = torch.zeros(VECTORS, old.shape[1], device=self.device)
        self.table = nn.Embedding.from_pretrained(torch.cat([old, rows]), freeze=False)
        self.text.set_input_embeddings(self.table)
        self.before = self.table.weight.detach().clone()
        return list(self.table.parameters())

    def take_start(self, start: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.table.weight[self.known :] = start[WORD]["vectors"].to(self.device)

    def start(self) -> dict[str, Any]:
        return {WORD: {"vectors": self.table.weight[self.known :]}}

    def states(self, captions: list[str]) -> Tensor:
        return self.encode(captions, list(range(self.known, self.known + VECTORS)))

    @torch.no_grad()
    def after(self) -> None:
        self.table.weight[: self.known] = self.before[: self.known]


PEERS = {"lora": PeerLoRA, "textual_inversion": PeerTextualInversion}
