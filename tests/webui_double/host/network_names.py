"""Which layer of the model a key of a file means: `lora_unet_down_blocks_0_attentions_0_proj_in` is the same as `lora_unet_input_blocks_1_1_proj_in`."""

from __future__ import annotations

from functools import lru_cache

_FIXED = {
    "conv_in": "input_blocks_0_0", "conv_norm_out": "out_0", "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0", "time_embedding_linear_2": "time_embed_2",
}  # fmt: skip
_IN_RESNET = {
    "norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0", "conv2": "out_layers_3", "conv_shortcut": "skip_connection",
}  # fmt: skip


@lru_cache(maxsize=1)
def _members() -> dict[str, str]:
    """diffusers' names of the UNet's resnets, transformers and resizers, and the original ones."""
    mid = {"mid_block_resnets_0": "middle_block_0", "mid_block_attentions_0": "middle_block_1", "mid_block_resnets_1": "middle_block_2"}
    found = {**_FIXED, **mid}
    for level in range(4):
        for kind, place in (("resnets", 0), ("attentions", 1)):
            found |= {f"down_blocks_{level}_{kind}_{i}": f"input_blocks_{3 * level + i + 1}_{place}" for i in range(2)}
            found |= {f"up_blocks_{level}_{kind}_{i}": f"output_blocks_{3 * level + i}_{place}" for i in range(3)}
        found[f"down_blocks_{level}_downsamplers_0_conv"] = f"input_blocks_{3 * level + 3}_0_op"
        found[f"up_blocks_{level}_upsamplers_0_conv"] = f"output_blocks_{3 * level + 2}_{2 if level else 1}_conv"  # the lowest level has no transformers
    return found


def _original(name: str) -> str:
    """The original name of a UNet's layer; one that is none of diffusers' stays as it is."""
    words = name.split("_")
    for end in range(len(words), 0, -1):
        member = _members().get("_".join(words[:end]))
        if member is not None:
            rest = "_".join(words[end:])
            return "_".join(word for word in (member, _IN_RESNET.get(rest, rest)) if word)
    return name


def layer_name(key: str) -> str:
    """The layer's name in `network_layer_mapping` of a key without its part (whether there is one is another question)."""
    for prefix in ("lora_te1_", "lora_te_"):
        if key.startswith(prefix):
            return "transformer_" + key.removeprefix(prefix)
    return "diffusion_model_" + _original(key.removeprefix("lora_unet_"))
