"""The yaml beside a checkpoint, from which the WebUI builds the model: it guesses SD1.5's sizes and eps-prediction unless one of the same stem is there."""

from __future__ import annotations

import json

from .files import Checkpoint
from .inpaint import INPUTS
from .unet import UNetSizes
from .vae import VAESizes

CLIP = "openai/clip-vit-large-patch14"  # the text encoder of SD1.5, as the WebUI's own yaml names it

# Names and values are those of v1-inference.yaml and v1-inpainting-inference.yaml, which the WebUI's ldm package builds its modules from.
_YAML = """\
# {stem}: what a model with Stable Diffusion 1.5's structure is made of, for the WebUI
model:
  target: ldm.models.diffusion.ddpm.{model}
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
    conditioning_key: {conditioning}
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


def yaml_of(checkpoint: Checkpoint, clip: str = CLIP, prediction: str = "") -> str:
    """The WebUI's description of a checkpoint's sizes; `clip`: the folder of its text encoder's description, `prediction`: eps or v, where not as the file says.

    Raises ValueError for a model whose widths such a yaml cannot say.
    """
    unet, vae = UNetSizes.of(checkpoint.unet, checkpoint.heads.unet), VAESizes.of(checkpoint.vae)
    inpainting = unet.inputs == INPUTS
    return _YAML.format(
        model="LatentInpaintDiffusion" if inpainting else "LatentDiffusion",
        conditioning="hybrid\n    finetune_keys: null" if inpainting else "crossattn",
        stem=checkpoint.path.stem,
        prediction=prediction or checkpoint.prediction,
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
        clip=json.dumps(clip, ensure_ascii=False),  # a JSON string is a YAML string, whatever the path holds
    )


def _multiples(part: str, channels: tuple[int, ...]) -> list[int]:
    if any(width % channels[0] for width in channels):
        raise ValueError(f"The {part}'s widths {channels} are not whole multiples of the first, which the WebUI's yaml needs.")
    return [width // channels[0] for width in channels]
