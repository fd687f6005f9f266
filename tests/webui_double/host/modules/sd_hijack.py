"""What the host puts around and into the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ldm.modules.attention import CrossAttention
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from . import devices, half_on_cpu, script_callbacks, sd_hijack_clip, sd_hijack_optimizations, sd_unet, shared
from .hypernetworks import hypernetwork
from .textual_inversion import textual_inversion

optimizers: list[Any] = []
current_optimizer: Any = None

UNetModel.forward = sd_unet.create_unet_forward(UNetModel.forward)
if devices.dtype == devices.HALF:
    half_on_cpu.install()


# ---- attention -------------------------------------------------------------------------------------------------------


def list_optimizers() -> None:
    """The host's own and extensions', the first choice first."""
    optimizers[:] = sorted([*sd_hijack_optimizations.known, *script_callbacks.list_optimizers_callback()], key=lambda each: -each.priority)


def apply_optimizations(option: str | None = None) -> str:
    """Puts one into the class of attention modules, by its title; without one that of the settings, and the first where that is not there. Returns its name."""
    global current_optimizer
    wanted = option or shared.opts.cross_attention_optimization
    undo_optimizations()
    if wanted == "None" or not optimizers:
        current_optimizer = None
    else:
        current_optimizer = next((each for each in optimizers if each.title() == wanted), optimizers[0])
        _use(current_optimizer.forward)
    model_hijack.optimization_method = current_optimizer.name if current_optimizer else "none"
    return model_hijack.optimization_method


def undo_optimizations() -> None:
    _use(hypernetwork.attention_CrossAttention_forward)


def _use(forward: Callable[..., Any]) -> None:
    CrossAttention.forward = forward


# ---- the model -------------------------------------------------------------------------------------------------------


class StableDiffusionModelHijack:
    """The text encoder's wrappers, tiling, and what is said beside a picture."""

    def __init__(self) -> None:
        self.embedding_db = textual_inversion.EmbeddingDatabase([shared.cmd_opts.embeddings_dir])
        self.fixes: list[Any] | None = None  # of the prompts that are just being encoded
        self.comments: list[str] = []
        self.circular_enabled, self.optimization_method = False, None
        self.clip: Any = None
        self.layers: list[nn.Module] | None = None

    def hijack(self, m: Any) -> None:
        for owner, name, wrapper in _wrapped_places(m):
            setattr(owner, name, wrapper(getattr(owner, name), self))
        apply_optimizations()
        self.clip, self.layers = m.cond_stage_model, list(m.modules())

    def undo_hijack(self, m: Any) -> None:
        """The bare model, whose names are the file's."""
        for owner, name, wrapper in _wrapped_places(m):
            found = getattr(owner, name)
            setattr(owner, name, found.wrapped if isinstance(found, wrapper) else found)
        undo_optimizations()
        self.apply_circular(False)
        self.layers = self.clip = None

    def apply_circular(self, on: bool) -> None:
        """Pictures that continue at the other edge."""
        self.circular_enabled, mode = on, ("zeros", "circular")[on]
        for layer in self.layers or ():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = mode

    def clear_comments(self) -> None:
        self.comments.clear()

    def get_prompt_lengths(self, text: str) -> tuple[int, int]:
        """How many tokens there are, and how many the chunks for them hold."""
        count, full = self.clip.tokenize_line(text)[1], self.clip.chunk_length
        return count, full * max(math.ceil(count / full), 1)


def _wrapped_places(m: Any) -> list[tuple[nn.Module, str, type[nn.Module]]]:
    text = getattr(m.cond_stage_model, "wrapped", m.cond_stage_model)
    words = text.transformer.text_model.embeddings
    return [(words, "token_embedding", sd_hijack_clip.EmbeddingsWithFixes), (m, "cond_stage_model", sd_hijack_clip.FrozenCLIPEmbedderWithCustomWords)]


model_hijack = StableDiffusionModelHijack()
