"""One module, several names: the original checkpoint's path, diffusers' name, kohya's LoRA key and the block names users know.

A path is the module's place inside its part, as in the original checkpoint: `input_blocks.1.1.proj_in` in "unet",
`text_model.encoder.layers.0.mlp.fc1` in "text". The rule holds for SD1.5's block structure (two residual blocks per level) at any width.
"""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

_FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_LAYERS = ("in_layers.2", "emb_layers.1", "out_layers.3")
_TRANSFORMER_LAYERS = (
    "proj_in",
    *(f"transformer_blocks.0.attn{a}.{name}" for a in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
    "proj_out",
)
_TEXT_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")

BLOCKS26 = ("BASE", *(f"IN{i:02}" for i in range(12)), "M00", *(f"OUT{i:02}" for i in range(12)))
BLOCKS17 = ("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{i:02}" for i in range(3, 12)))  # those with attention


# ---- diffusers -------------------------------------------------------------------------------------------------------


def diffusers_path(path: str) -> str:
    """A UNet module's name in diffusers: `input_blocks.1.1.proj_in` -> `down_blocks.0.attentions.0.proj_in`.

    The inverse of the WebUI's `convert_diffusers_name_to_compvis`. Raises ValueError where the path is no module of SD1.5's UNet.
    """
    if path in _FIXED:
        return _FIXED[path]
    kind, _, rest = path.partition(".")
    number, _, inner = rest.partition(".")
    try:
        if kind == "middle_block":
            return _member("mid_block", int(number) // 2 if number != "1" else 0, number == "1", inner)
        member, _, inner = inner.partition(".")
        if kind == "input_blocks":
            level, i = divmod(int(number) - 1, 3)
            return f"down_blocks.{level}.downsamplers.0.conv" if inner == "op" else _member(f"down_blocks.{level}", i, member == "1", inner)
        if kind == "output_blocks":
            level, i = divmod(int(number), 3)
            return f"up_blocks.{level}.upsamplers.0.conv" if inner == "conv" else _member(f"up_blocks.{level}", i, member == "1", inner)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no module of Stable Diffusion 1.5's UNet.") from error
    raise ValueError(f"{path} is no module of Stable Diffusion 1.5's UNet.")


def _member(block: str, i: int, attention: bool, inner: str) -> str:
    return f"{block}.attentions.{i}.{inner}" if attention else f"{block}.resnets.{i}.{_RESNET[inner]}"


def unet_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's tensors under the names of diffusers' UNet2DConditionModel; shapes stay."""
    return {f"{diffusers_path(path)}.{leaf}": tensor for (path, leaf), tensor in _leaves(state)}


def text_to_diffusers(state: dict[str, Tensor], prefix: str = "text_model.") -> dict[str, Tensor]:
    """The text encoder's tensors under the names of transformers' CLIPTextModel: the original ones up to version 4; version 5 has `prefix` ""."""
    return {prefix + key.removeprefix("text_model."): tensor for key, tensor in state.items()}


def vae_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's tensors under the names of diffusers' AutoencoderKL; its attention is of Linear layers: (C, C, 1, 1) -> (C, C)."""
    levels = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("decoder.up."))
    out = {}
    for (path, leaf), tensor in _leaves(state):
        linear = ".attn_1." in path and tensor.ndim == 4
        out[f"{_vae_path(path, levels)}.{leaf}"] = tensor.flatten(1) if linear else tensor
    return out


_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _vae_path(path: str, levels: int) -> str:
    half, *rest = path.split(".")
    if rest and rest[0] == "norm_out":
        return f"{half}.conv_norm_out"
    if rest and rest[0] == "mid":
        if rest[1] == "attn_1":
            return f"{half}.mid_block.attentions.0.{_VAE_ATTENTION[rest[2]]}"
        return f"{half}.mid_block.resnets.{int(rest[1][-1]) - 1}.{rest[2]}"
    if rest and rest[0] in ("down", "up"):
        # The original counts the decoder's levels from the largest picture, diffusers from the smallest.
        level = int(rest[1]) if rest[0] == "down" else levels - 1 - int(rest[1])
        if rest[2] == "block":
            return f"{half}.{rest[0]}_blocks.{level}.resnets.{rest[3]}.{rest[4].replace('nin_shortcut', 'conv_shortcut')}"
        return f"{half}.{rest[0]}_blocks.{level}.{rest[0]}samplers.0.conv"
    return path


def _leaves(state: dict[str, Tensor]):
    return ((key.rpartition(".")[::2], tensor) for key, tensor in state.items())


# ---- kohya -----------------------------------------------------------------------------------------------------------


def kohya_key(path: str, part: str) -> str:
    """The LoRA key of a module, without `.lora_down.weight` and the like: `lora_unet_down_blocks_0_attentions_0_proj_in`.

    `part` is "unet" or "text". The names that kohya's sd-scripts write and every host reads.
    """
    if part == "unet":
        return "lora_unet_" + diffusers_path(path).replace(".", "_")
    if part == "text":
        return "lora_te_" + path.replace(".", "_")
    raise ValueError(f"part: {part!r} is not known; use unet or text.")


def module_path(key: str) -> tuple[str, str]:
    """(part, path) of a LoRA key, whatever follows its first dot.

    Also reads the original names with underscores (`lora_unet_input_blocks_1_1_proj_in`) and `lora_te1_text_model_...`, as the WebUI does.
    Raises ValueError for a key of no layer of SD1.5.
    """
    module = key.partition(".")[0]
    module = module.replace("lora_te1_", "lora_te_", 1) if module.startswith("lora_te1_") else module
    found = _key_table().get(module)
    if found is None:
        raise ValueError(f"{module} names no layer of Stable Diffusion 1.5.")
    return found


@lru_cache(maxsize=1)
def _key_table() -> dict[str, tuple[str, str]]:
    table = {kohya_key(path, "text"): ("text", path) for path in text_paths()}
    for path in (*unet_paths(), "input_blocks.10.0.skip_connection"):  # where a small model's last two widths differ
        table[kohya_key(path, "unet")] = table["lora_unet_" + path.replace(".", "_")] = ("unet", path)
    return table


def unet_paths() -> tuple[str, ...]:
    """The 282 Linear and Conv2d modules of SD1.5's UNet, in the order of the forward pass."""
    resnet = [*_RESNET_LAYERS, "skip_connection"]
    paths = ["time_embed.0", "time_embed.2", "input_blocks.0.0"]
    for i in range(1, 12):
        if i % 3 == 0:
            paths.append(f"input_blocks.{i}.0.op")
            continue
        paths += [f"input_blocks.{i}.0.{layer}" for layer in (resnet if i in (4, 7) else _RESNET_LAYERS)]  # 4, 7: the width changes
        paths += [f"input_blocks.{i}.1.{layer}" for layer in _TRANSFORMER_LAYERS if i < 10]
    for i, layers in enumerate((_RESNET_LAYERS, _TRANSFORMER_LAYERS, _RESNET_LAYERS)):
        paths += [f"middle_block.{i}.{layer}" for layer in layers]
    for i in range(12):
        paths += [f"output_blocks.{i}.0.{layer}" for layer in resnet]
        paths += [f"output_blocks.{i}.1.{layer}" for layer in _TRANSFORMER_LAYERS if i > 2]
        paths += {2: ["output_blocks.2.1.conv"], 5: ["output_blocks.5.2.conv"], 8: ["output_blocks.8.2.conv"]}.get(i, [])
    return (*paths, "out.2")


def text_paths(layers: int = 12) -> tuple[str, ...]:
    """The six Linear modules of each layer of the text encoder: 72 in SD1.5."""
    return tuple(f"text_model.encoder.layers.{i}.{layer}" for i in range(layers) for layer in _TEXT_LAYERS)


# ---- blocks ----------------------------------------------------------------------------------------------------------


def block_index(path: str) -> int:
    """A UNet module's block: 0 to 11 the input blocks, 12 the middle, 13 to 24 the output blocks (kohya's `get_block_index`).

    The time embedding counts with block 0 and the output convolution with block 24, as in block-weighted merging.
    """
    kind, _, rest = path.partition(".")
    number = rest.partition(".")[0]
    if kind in ("time_embed", "middle_block", "out"):
        return {"time_embed": 0, "middle_block": 12, "out": 24}[kind]
    if kind not in ("input_blocks", "output_blocks") or not number.isdigit() or int(number) > 11:
        raise ValueError(f"{path} is no module of Stable Diffusion 1.5's UNet.")
    return int(number) + (13 if kind == "output_blocks" else 0)


def block_name(path: str) -> str:
    """A module's block as users of block weights know it: BASE (the text encoder), IN00 to IN11, M00, OUT00 to OUT11."""
    return BLOCKS26[0] if path.startswith("text_model.") else BLOCKS26[1 + block_index(path)]
