"""The text encoder, OpenAI's CLIP ViT-L/14 as transformers names its parts. ids (B, L), states (B, L, C)."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from lib_tuner.sd.tokenizer import Tokenizer
from torch import Tensor, nn

from ..diffusionmodules.util import Shapes, below, layer, norm, numbered


class CLIPAttention(nn.Module):
    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        self.num_heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (layer(shapes, f"{name}_proj") for name in ("k", "v", "q", "out"))

    def forward(self, x: Tensor) -> Tensor:
        """Each token sees itself and those before it."""
        q, k, v = (project(x).unflatten(2, (self.num_heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj))
        fit = torch.einsum("blhc,bmhc->bhlm", q, k) * q.shape[-1] ** -0.5
        later = torch.ones(fit.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        seen = fit.float().masked_fill(later, -torch.inf).softmax(-1).to(v.dtype)
        return self.out_proj(torch.einsum("bhlm,bmhc->blhc", seen, v).flatten(2))


class CLIPMLP(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.fc1, self.fc2 = layer(shapes, "fc1"), layer(shapes, "fc2")

    def forward(self, x: Tensor) -> Tensor:
        wide = self.fc1(x)
        return self.fc2((1.702 * wide).sigmoid() * wide)


class CLIPEncoderLayer(nn.Module):
    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        self.self_attn, self.mlp = CLIPAttention(below(shapes, "self_attn"), heads), CLIPMLP(below(shapes, "mlp"))
        self.layer_norm1, self.layer_norm2 = norm(shapes, "layer_norm1"), norm(shapes, "layer_norm2")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPTextEmbeddings(nn.Module):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.token_embedding, self.position_embedding = (nn.Embedding(*shapes[f"{name}_embedding.weight"]) for name in ("token", "position"))
        self.register_buffer("position_ids", torch.arange(self.position_embedding.num_embeddings)[None])

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding(self.position_ids[:, : ids.shape[1]])


class CLIPTextModel(nn.Module):
    """As transformers' class: `text_model` below it, and hidden_states that begin with the embeddings and lack the last norm."""

    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        inner = self.text_model = nn.Module()
        inner.embeddings, inner.encoder = CLIPTextEmbeddings(below(shapes, "text_model.embeddings")), nn.Module()
        inner.encoder.layers = nn.ModuleList(CLIPEncoderLayer(each, heads) for each in numbered(below(shapes, "text_model.encoder.layers")))
        inner.final_layer_norm = norm(shapes, "text_model.final_layer_norm")

    def forward(self, input_ids: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        states = [self.text_model.embeddings(input_ids)]
        for each in self.text_model.encoder.layers:
            states.append(each(states[-1]))
        last = self.text_model.final_layer_norm(states[-1])
        return SimpleNamespace(last_hidden_state=last, hidden_states=tuple(states) if output_hidden_states else None)


class CLIPTokenizer(Tokenizer):
    """The tokens of one text, by transformers' names."""

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self.encode(text))

    def get_vocab(self) -> dict[str, int]:
        return dict(self._bpe.encoder)


class FrozenCLIPEmbedder(nn.Module):
    def __init__(self, shapes: Shapes, heads: int):
        super().__init__()
        self.tokenizer, self.transformer = CLIPTokenizer(), CLIPTextModel(below(shapes, "transformer"), heads)
