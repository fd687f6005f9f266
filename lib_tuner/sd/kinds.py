"""Tells from its tensors' names and shapes what a weights file is: a table, first match first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Mapping

Shapes = Mapping[str, "tuple[int, ...]"]
Sign = Callable[[Shapes, str], bool]  # shapes by name, and all names, a line each


def _any(pattern: str, *parts: str) -> Sign:
    """Whether a name fits. `parts`: one of them is in every name that does; a model's thousand names are asked for them first, which is a hundred times faster."""
    search = re.compile(pattern, re.MULTILINE).search
    return lambda shapes, names: any(part in names for part in parts) and bool(search(names))


def _context(shapes: Shapes) -> int:
    """Width of the text that a UNet's cross-attention reads, 0 where there is none."""
    return next((shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight") and len(shape) == 2), 0)


def _inputs(shapes: Shapes) -> int:
    """Channels that the UNet of an original-layout checkpoint takes, 0 where there is none."""
    shape = shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    return shape[1] if len(shape) == 4 else 0


def _is_embedding(shapes: Shapes, names: str) -> bool:
    if any(key.startswith("string_to_param.") for key in shapes) or {"clip_g", "clip_l"} <= shapes.keys():
        return True
    return len(shapes) == 1 and all(len(shape) == 1 or len(shape) == 2 and shape[0] <= 75 for shape in shapes.values())


_SDXL = _any(r"^conditioner\.embedders\.|(^|\.)label_emb\.|^add_embedding\.", "conditioner.embedders.", "label_emb.", "add_embedding.")
_OPEN_CLIP = _any(r"^cond_stage_model\.model\.", "cond_stage_model.model.")
_FIRST_STAGE = _any(r"^first_stage_model\.", "first_stage_model.")
_COND_STAGE = _any(r"^cond_stage_model\.", "cond_stage_model.")


@dataclass(frozen=True)
class Kind:
    """A kind of file: its short name, its name in a sentence, and how it is recognised."""

    name: str
    text: str
    sign: Sign


KINDS = (
    Kind("lora", "a LoRA", _any(r"lora_(up|down|mid|A|B)\b|^lora_|lora(_linear_layer)?\.(up|down)\.|\bhada_|\blokr_|^oft_unet_|\bdora_scale$", "lora", "hada_", "lokr_", "oft_unet_", "dora_scale")),
    Kind("controlnet", "a ControlNet", _any(r"^control_model\.|(^|\.)input_hint_block\.|^controlnet_cond_embedding\.", "control_model.", "input_hint_block.", "controlnet_cond_embedding.")),
    Kind("t2i-adapter", "a T2I-Adapter", _any(r"^(adapter\.)?body\.\d+\.(block1|in_conv|resnets)\.|^style_embedding$", "body.", "style_embedding")),
    Kind("hypernetwork", "a hypernetwork", _any(r"^\d+\.[01]\.linear\d?\.", ".linear")),
    Kind("sd3", "a Stable Diffusion 3 model", _any(r"(^|\.)joint_blocks\.", "joint_blocks.")),
    Kind("flux", "a Flux model", _any(r"(^|\.)double_blocks\.", "double_blocks.")),
    Kind("sdxl", "a Stable Diffusion XL model", lambda s, names: _SDXL(s, names) or _context(s) == 2048),
    Kind("sd2", "a Stable Diffusion 2 model", lambda s, names: _OPEN_CLIP(s, names) or _context(s) == 1024),
    Kind("pix2pix", "an InstructPix2Pix model (8 input channels)", lambda s, names: _inputs(s) == 8),
    Kind("sd1-inpainting", "a Stable Diffusion 1 inpainting checkpoint", lambda s, names: _inputs(s) == 9),
    Kind("sd1", "a Stable Diffusion 1 checkpoint", lambda s, names: _inputs(s) == 4),
    Kind("sd-other", "a Stable Diffusion model with an unknown number of input channels", lambda s, names: _inputs(s) > 0),
    Kind("no-unet", "a checkpoint without its UNet", lambda s, names: _FIRST_STAGE(s, names) and _COND_STAGE(s, names)),
    Kind("vae", "a VAE alone", _any(r"^(first_stage_model\.)?(encoder\.down\.|decoder\.up\.)\d", "encoder.down.", "decoder.up.")),
    Kind("text-encoder", "a text encoder alone", _any(r"^(cond_stage_model\.transformer\.)?(text_model\.)?(encoder\.layers|embeddings\.token_embedding)\.", "encoder.layers.", "embeddings.token_embedding.")),
    Kind("diffusers-vae", "the VAE of a diffusers folder", _any(r"^(encoder\.down_blocks|decoder\.up_blocks)\.", "encoder.down_blocks.", "decoder.up_blocks.")),
    Kind("diffusers-unet", "the UNet of a diffusers folder", _any(r"^(down_blocks|up_blocks)\.\d", "down_blocks.", "up_blocks.")),
    Kind("unet", "a UNet alone", _any(r"^(model\.diffusion_model\.)?(input_blocks|output_blocks)\.\d", "input_blocks.", "output_blocks.")),
    Kind("embedding", "a textual inversion embedding", _is_embedding),
)


def kind_of(shapes: Shapes) -> str:
    """The name in KINDS of what holds tensors of these names and shapes; "empty" or "unknown" where none fits."""
    if not shapes:
        return "empty"
    names = "\n".join(shapes)
    return next((kind.name for kind in KINDS if kind.sign(shapes, names)), "unknown")


def describe(kind: str) -> str:
    """A kind as part of a sentence: "a LoRA"."""
    others = {"empty": "a file without tensors", "unknown": "a weights file of an unknown kind"}
    return others.get(kind) or next(k.text for k in KINDS if k.name == kind)
