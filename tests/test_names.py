"""Module names: the original's, diffusers', kohya's, and the block names users know."""

import pytest
import torch
from torch import nn

from lib_tuner.sd import names
from lib_tuner.sd.clip import CLIPSizes, CLIPText
from lib_tuner.sd.unet import UNet, UNetSizes
from lib_tuner.sd.vae import VAE, VAESizes


def layers(module):
    return {name for name, m in module.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


@pytest.fixture(scope="module")
def theirs():
    """SD1.5's UNet and VAE as diffusers builds them, without memory."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        return {
            "unet": diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8),
            "vae": diffusers.AutoencoderKL(
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4),
        }  # fmt: skip


def test_the_282_unet_layers_have_diffusers_names_one_to_one(theirs):
    want = {"lora_unet_" + name.replace(".", "_") for name in layers(theirs["unet"])}
    got = [names.kohya_key(path, "unet") for path in names.unet_paths()]
    assert len(got) == len(want) == 282 and set(got) == want


def test_the_listed_paths_are_our_modules_own():
    with torch.device("meta"):
        assert set(names.unet_paths()) == layers(UNet())
        assert set(names.text_paths()) == layers(CLIPText())
    assert len(names.text_paths()) == 72


@pytest.mark.parametrize("path, key", [
    ("input_blocks.0.0", "lora_unet_conv_in"), ("out.2", "lora_unet_conv_out"), ("time_embed.2", "lora_unet_time_embedding_linear_2"),
    ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
    ("input_blocks.8.1.transformer_blocks.0.attn2.to_out.0", "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_out_0"),
    ("input_blocks.6.0.op", "lora_unet_down_blocks_1_downsamplers_0_conv"), ("input_blocks.11.0.in_layers.2", "lora_unet_down_blocks_3_resnets_1_conv1"),
    ("middle_block.2.out_layers.3", "lora_unet_mid_block_resnets_1_conv2"), ("middle_block.1.proj_in", "lora_unet_mid_block_attentions_0_proj_in"),
    ("output_blocks.2.1.conv", "lora_unet_up_blocks_0_upsamplers_0_conv"), ("output_blocks.8.2.conv", "lora_unet_up_blocks_2_upsamplers_0_conv"),
    ("output_blocks.10.0.skip_connection", "lora_unet_up_blocks_3_resnets_1_conv_shortcut"),
    ("output_blocks.5.1.transformer_blocks.0.ff.net.0.proj", "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj"),
    ("output_blocks.3.0.emb_layers.1", "lora_unet_up_blocks_1_resnets_0_time_emb_proj"),
])  # fmt: skip
def test_kohya_keys_are_those_of_the_webuis_table(path, key):
    assert names.kohya_key(path, "unet") == key
    assert names.module_path(key) == names.module_path(key + ".lora_down.weight") == ("unet", path)


def test_every_key_and_both_other_spellings_lead_back():
    for path in names.unet_paths():
        assert names.module_path(names.kohya_key(path, "unet")) == ("unet", path)
        assert names.module_path("lora_unet_" + path.replace(".", "_") + ".alpha") == ("unet", path)
    for path in names.text_paths():
        assert names.kohya_key(path, "text") == "lora_te_" + path.replace(".", "_")
        assert names.module_path("lora_te_" + path.replace(".", "_")) == ("text", path)
        assert names.module_path("lora_te1_" + path.replace(".", "_")) == ("text", path)


def test_a_small_models_further_shortcut_is_known():
    with torch.device("meta"):
        small = layers(UNet(UNetSizes(channels=(32, 64, 96, 128))))
    assert small - set(names.unet_paths()) == {"input_blocks.10.0.skip_connection"}
    assert all(names.module_path(names.kohya_key(path, "unet")) == ("unet", path) for path in small)


@pytest.mark.parametrize("key", ["lora_unet_down_blocks_9_x", "lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet", "", "input_blocks.1"])
def test_an_unknown_key_is_named(key):
    with pytest.raises(ValueError, match="names no layer of Stable Diffusion 1.5"):
        names.module_path(key)


@pytest.mark.parametrize("path", ["input_blocks.x.0", "downs.1", "middle_block.0.nothing", "output_blocks.1.0.in_layers.7"])
def test_an_unknown_module_is_named(path):
    with pytest.raises(ValueError, match=f"{path} is no module"):
        names.kohya_key(path, "unet")
    with pytest.raises(ValueError, match="part: 'vae' is not known"):
        names.kohya_key(path, "vae")


def test_the_whole_state_loads_strictly_into_diffusers(theirs):
    with torch.device("meta"):
        unet, vae = UNet().state_dict(), VAE().state_dict()
    theirs["unet"].load_state_dict(names.unet_to_diffusers(unet), strict=True, assign=True)
    theirs["vae"].load_state_dict(names.vae_to_diffusers(vae), strict=True, assign=True)


def test_a_small_state_loads_strictly_too_and_keeps_its_values():
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 32, 64), cross_attention_dim=48, attention_head_dim=4, down_block_types=["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2)  # fmt: skip
    ours = UNet(UNetSizes((32, 32, 64), (True, True, False), 48, 4))
    theirs.load_state_dict(names.unet_to_diffusers(ours.state_dict()))
    assert torch.equal(theirs.up_blocks[1].attentions[0].proj_in.weight, ours.output_blocks[3][1].proj_in.weight)

    vae = VAE(VAESizes((32, 64)))
    autoencoder = diffusers.AutoencoderKL(block_out_channels=(32, 64), layers_per_block=2, latent_channels=4, down_block_types=["DownEncoderBlock2D"] * 2,
                                          up_block_types=["UpDecoderBlock2D"] * 2)  # fmt: skip
    autoencoder.load_state_dict(names.vae_to_diffusers(vae.state_dict()))
    assert torch.equal(autoencoder.decoder.up_blocks[1].resnets[0].conv1.weight, vae.decoder.up[0].block[0].conv1.weight)
    assert torch.equal(autoencoder.encoder.mid_block.attentions[0].to_out[0].weight, vae.encoder.mid.attn_1.proj_out.weight[:, :, 0, 0])

    text = CLIPText(CLIPSizes(48, 2, 4, 96, 60))
    config = transformers.CLIPTextConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=60)
    model = transformers.CLIPTextModel(config)
    prefix = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    model.load_state_dict(names.text_to_diffusers(text.state_dict(), prefix))


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_block_indices_are_kohyas():
    """Its `get_block_index` reads them off the key: down 1 + 3 i + j, middle 12, up 13 + 3 i + j, samplers with j = 2."""
    for path in names.unet_paths():
        words = names.kohya_key(path, "unet").split("_")[2:]
        if words[1] != "blocks":
            continue
        i, what, j = int(words[2]), words[3], int(words[4])
        want = {"down": 1, "up": 13}[words[0]] + 3 * i + (2 if "samplers" in what else j)
        assert names.block_index(path) == want, path
    assert {names.block_index(p) for p in names.unet_paths() if p.startswith("middle_block")} == {12}
    assert (names.block_index("input_blocks.0.0"), names.block_index("time_embed.0"), names.block_index("out.2")) == (0, 0, 24)


def test_block_names_are_the_26_and_attention_lies_in_the_17():
    attention = [path for path in names.unet_paths() if "proj_in" in path]
    assert [names.block_name(path) for path in attention] == list(names.BLOCKS17[1:])
    assert names.block_name("text_model.encoder.layers.3.mlp.fc1") == "BASE"
    every = {names.block_name(path) for path in (*names.unet_paths(), *names.text_paths())}
    assert every == set(names.BLOCKS26) and len(names.BLOCKS26) == 26 and len(names.BLOCKS17) == 17


@pytest.mark.parametrize("path", ["input_blocks.12.0", "text_model.x", "input_blocks.a.0", ""])
def test_a_path_outside_the_unet_has_no_block(path):
    with pytest.raises(ValueError, match="is no module of Stable Diffusion 1.5's UNet"):
        names.block_index(path)
