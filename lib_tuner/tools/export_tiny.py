"""`tool export-tiny DIR`: the embedded small model as files that the WebUI loads: checkpoint, the .yaml of its sizes, a CLIP folder.

The WebUI guesses SD1.5's sizes unless a yaml of the same stem lies beside the checkpoint; its `version` names a folder, and so a text encoder of any width.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Callable, Sequence

from ..sd.clip import CLIPSizes
from ..sd.files import Checkpoint, read_checkpoint
from ..sd.tokenizer import BOS, EOS, write_clip_folder
from ..sd.unet import UNetSizes
from ..sd.vae import VAESizes

TINY = Path(__file__).resolve().parent.parent / "demo" / "tiny-sd15.safetensors"

# Names and values are those of v1-inference.yaml, which the WebUI's ldm package builds its modules from.
_YAML = """\
# {stem}: sizes of a small model with Stable Diffusion 1.5's structure, for the WebUI
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    parameterization: "{prediction}"
    first_stage_key: jpg
    cond_stage_key: txt
    cond_stage_trainable: false
    conditioning_key: crossattn
    image_size: 64
    channels: 4
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: {inputs}
        out_channels: {outputs}
        model_channels: {channels}
        channel_mult: {multiples}
        attention_resolutions: {resolutions}
        num_res_blocks: 2
        num_heads: {heads}
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {context}
        use_checkpoint: true
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: {latent}
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: {latent}
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: {vae_channels}
          ch_mult: {vae_multiples}
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {clip}
        device: cpu
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the three things into the folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="export-tiny", description="Write the embedded small model as files that the WebUI loads.")
    parser.add_argument("folder", type=Path, help="where to write, such as the WebUI's models/Stable-diffusion")
    parser.add_argument("--model", type=Path, default=TINY, help="another small model (default: the embedded one)")
    args = parser.parse_args(argv)
    for path in export(args.model, args.folder):
        sys.stdout.write(f"{path}\n")
    return 0


def export(model: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Copies a small model into a folder and writes its yaml and CLIP folder beside it: the paths of all three.

    Raises ValueError for a model whose widths the WebUI's yaml cannot say.
    """
    checkpoint = read_checkpoint(model)
    folder = folder.resolve()
    target, yaml, clip = folder / model.name, folder / f"{model.stem}.yaml", folder / f"{model.stem}-clip"
    text = yaml_of(checkpoint, clip)
    folder.mkdir(parents=True, exist_ok=True)
    write_clip_folder(clip, _clip_config(checkpoint))
    _replace(yaml, lambda path: path.write_text(text, encoding="utf-8"))
    if model.resolve() != target:
        _replace(target, lambda path: shutil.copyfile(model, path))
    return target, yaml, clip


def yaml_of(checkpoint: Checkpoint, clip: Path) -> str:
    """The WebUI's description of a checkpoint's sizes; `clip` is the folder of its text encoder's description."""
    unet, vae = UNetSizes.of(checkpoint.unet, checkpoint.heads.unet), VAESizes.of(checkpoint.vae)
    return _YAML.format(
        stem=checkpoint.path.stem,
        prediction=checkpoint.prediction,
        inputs=unet.inputs,
        outputs=unet.outputs,
        channels=unet.channels[0],
        multiples=_multiples("UNet", unet.channels),
        resolutions=[2**i for i, attention in enumerate(unet.attention) if attention],
        heads=unet.heads,
        context=unet.context,
        latent=vae.latent,
        vae_channels=vae.channels[0],
        vae_multiples=_multiples("VAE", vae.channels),
        clip=json.dumps(str(clip), ensure_ascii=False),  # a JSON string is a YAML string, whatever the path holds
    )


def _multiples(part: str, channels: tuple[int, ...]) -> list[int]:
    if any(width % channels[0] for width in channels):
        raise ValueError(f"The {part}'s widths {channels} are not whole multiples of the first, which the WebUI's yaml needs.")
    return [width // channels[0] for width in channels]


def _clip_config(checkpoint: Checkpoint) -> dict:
    sizes = CLIPSizes.of(checkpoint.text, checkpoint.heads.text)
    return {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.length,
        "vocab_size": sizes.vocabulary,
        "projection_dim": sizes.width,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": 1,
        "torch_dtype": "float32",
    }


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
