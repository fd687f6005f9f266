"""The CLIP ViT-L/14 text encoder of SD1.5 (196 tensors), named as in the original checkpoint without its prefix `cond_stage_model.transformer.`.

Axes: B batch, L = 77 tokens, C width. Source of the structure: OpenAI CLIP, openai/clip-vit-large-patch14.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Unfilled, attend, from_state


@dataclass(frozen=True)
class CLIPSizes:
    """Sizes of a text encoder; the defaults are SD1.5's."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    vocabulary: int = 49408
    length: int = 77

    @classmethod
    def of(cls, state: dict[str, Tensor], heads: int = 12) -> CLIPSizes:
        """Reads the sizes off the shapes of a state dict; the head count is in no shape and is given."""
        needed = (f"text_model.{name}.weight" for name in ("embeddings.token_embedding", "embeddings.position_embedding", "encoder.layers.0.mlp.fc1"))
        if missing := [name for name in needed if name not in state]:
            raise ValueError(f"This file holds no whole CLIP text encoder of Stable Diffusion 1.5: {missing[0]} is missing.")
        vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
        layers = len({key.split(".")[3] for key in state if key.startswith("text_model.encoder.layers.")})
        inner = state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
        return cls(width, layers, heads, inner, vocabulary, state["text_model.embeddings.position_embedding.weight"].shape[0])


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True))


class MLP(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # "quick GELU" of the original CLIP


class EncoderLayer(nn.Module):
    def __init__(self, sizes: CLIPSizes):
        super().__init__()
        self.self_attn, self.layer_norm1 = SelfAttention(sizes.width, sizes.heads), nn.LayerNorm(sizes.width)
        self.mlp, self.layer_norm2 = MLP(sizes.width, sizes.inner), nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    def __init__(self, sizes: CLIPSizes):
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embedding = nn.Embedding(sizes.length, sizes.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class Encoder(nn.Module):
    def __init__(self, sizes: CLIPSizes):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))


class TextModel(nn.Module):
    def __init__(self, sizes: CLIPSizes):
        super().__init__()
        self.embeddings, self.encoder, self.final_layer_norm = Embeddings(sizes), Encoder(sizes), nn.LayerNorm(sizes.width)

    def forward(self, ids: Tensor, skip: int) -> Tensor:
        x = self.embeddings(ids)  # (B, L, C)
        layers = self.encoder.layers
        for layer in layers[: len(layers) + 1 - skip]:
            x = layer(x)
        return self.final_layer_norm(x)


class CLIPText(nn.Module):
    """Token ids (B, L) -> states (B, L, C); `skip` 1 reads the last layer, 2 the one before it, each through the final norm."""

    def __init__(self, sizes: CLIPSizes = CLIPSizes()):
        super().__init__()
        self.sizes = sizes
        self.text_model = TextModel(sizes)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], heads: int = 12) -> CLIPText:
        """Builds the text encoder whose sizes the tensors have, around these very tensors. Raises ValueError where it is none of SD1.5's structure."""
        with Unfilled():
            clip = cls(CLIPSizes.of(state, heads))
        return from_state(clip, state, "text encoder")

    def forward(self, ids: Tensor, skip: int = 1) -> Tensor:
        if not 1 <= skip <= self.sizes.layers:
            raise ValueError(f"clip skip {skip} is outside 1 to {self.sizes.layers}, the layers of this text encoder.")
        return self.text_model(ids, skip)
