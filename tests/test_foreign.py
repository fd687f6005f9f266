"""Settings of other programs' files: what they become, and that what they cannot become is named. Oracles: the other programs' documented meanings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lib_tuner.config import METADATA_KEY, build, flat_values, opt, to_metadata, to_toml
from lib_tuner.foreign import Imported, read_settings
from lib_tuner.methods import METHODS
from lib_tuner.methods.metadata import Made, lora_metadata
from lib_tuner.optim import parse_betas, parse_lr
from lib_tuner.settings import TrainConfig


def read(path, content: str | bytes | dict, name: str = "settings.toml") -> Imported:
    """What a file of this content gives; whatever it is, the values must be accepted, and by the optimizer too."""
    file = path / (name if not isinstance(content, dict) else "settings.json")
    if isinstance(content, dict):
        content = json.dumps(content)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return checked(read_settings(file, METHODS))


def checked(found: Imported) -> Imported:
    cfg = build(TrainConfig, found.values, METHODS[found.values.get("method", "lora")].Config)
    assert parse_lr(cfg.optim.lr) and parse_betas(cfg.optim.betas)
    flat = flat_values(cfg)
    assert {key: flat[key] for key in found.values} == found.values
    return found


def refused(path, content: str | bytes | dict, name: str = "settings.toml") -> str:
    with pytest.raises(ValueError) as caught:
        read(path, content, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights(path, metadata: dict[str, str], *keys: str):
    save_file({key: torch.zeros(1) for key in keys or ("lora_unet_x.lora_down.weight",)}, str(path), metadata)
    return checked(read_settings(path, METHODS))


def same(found: Imported, expected: dict[str, Any]) -> None:
    assert {key: found.values.get(key) for key in expected} == expected


# ---- our own


def test_our_own_toml_gives_the_same_settings(tmp_path):
    cfg = build(TrainConfig, {"steps": 7, "optim.lr": "5e-3:20, 1e-3", "data.folder": "/pics", "lora.rank": 3}, METHODS["lora"].Config)
    found = read(tmp_path, to_toml(cfg), "anything.txt")
    assert build(TrainConfig, found.values, METHODS["lora"].Config) == cfg
    assert found.source == "settings of the Tuner" and found.without == []


def test_our_own_toml_with_what_does_not_fit_is_read_without_it(tmp_path):
    found = read(tmp_path, "steps = 7\nsteppps = 8\n[optim]\nwarmup = -1\n[lora]\nrank = 4000\n")
    assert found.values == {"method": "lora", "steps": 7}
    assert found.without == ["steppps = 8", "optim.warmup = -1", "lora.rank = 4000"]


def test_a_file_that_names_no_method_leaves_the_choice(tmp_path):
    assert read(tmp_path, "[optim]\nwarmup = 5\n").values == {"optim.warmup": 5}
    assert read(tmp_path, "[textual_inversion]\nvectors = 5\n").values == {"method": "textual_inversion", "textual_inversion.vectors": 5}


def test_a_method_there_is_not_is_missed_with_its_own_settings_and_its_rate(tmp_path):
    found = read(tmp_path, 'method = "oft"\nsteps = 5\n[optim]\nlr = 9.0\n[oft]\nrank = 5\n')
    assert found.values == {"steps": 5} and found.without == ["method = oft", "optim.lr = 9.0", "oft.rank = 5"]


def test_values_that_are_allowed_only_together_are_kept_in_any_order(tmp_path):
    text = '[sample]\nevery = 5\nprompts = "a"\n[data]\nbucket_min = 1500\nbucket_max = 2000\n[loss]\nt_min = 300\nt_max = 200\n'
    found = read(tmp_path, text)
    same(found, {"sample.every": 5, "data.bucket_min": 1500, "data.bucket_max": 2000, "loss.t_min": 300})
    assert found.without == ["loss.t_max = 200"]


def test_a_file_that_we_trained_tells_its_settings_but_for_places_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"data.folder": "pics", "output": "outputs", "checkpoint": "model.safetensors", "lora.rank": 3, "lora.start": "a.safetensors", "name": "x"}
    cfg = build(TrainConfig, {**values, "data.validation_folder": str(tmp_path)}, METHODS["lora"].Config)
    found = weights(tmp_path / "x.safetensors", to_metadata(cfg))
    assert found.source == "metadata of x.safetensors"
    assert found.without == ["checkpoint = model.safetensors", "data.folder = pics", "lora.start = a.safetensors"]
    same(found, {"lora.rank": 3, "name": "x", "method": "lora", "data.validation_folder": str(tmp_path)})
    assert "data.folder" not in found.values and "output" not in found.values


# ---- kohya's configuration

LORA = """
pretrained_model_name_or_path = "/models/sd15.safetensors"
resolution = "512,512"
[folders]
train_data_dir = "/pics"
reg_data_dir = "/class"
output_dir = "/out"
output_name = "mine"
[run]
train_batch_size = 4
max_train_steps = 2000
learning_rate = 1e-4
unet_lr = 2e-4
text_encoder_lr = [5e-5, 5e-5]
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 3
lr_warmup_steps = 0.1
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_dropout = 0.1
network_args = ["conv_dim=8", "conv_alpha=1", "rank_dropout=0.2", "loraplus_lr_ratio=16"]
scale_weight_norms = 1.0
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.05", "betas=0.9,0.99", "eps=1e-6"]
mixed_precision = "bf16"
save_precision = "float"
gradient_checkpointing = true
save_every_n_steps = 500
save_last_n_steps = 1000
seed = 42
[data]
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1
flip_aug = true
enable_bucket = true
bucket_no_upscale = true
min_bucket_reso = 320
cache_latents = true
cache_latents_to_disk = true
masked_loss = true
token_warmup_step = 50
[loss]
min_snr_gamma = 5
loss_type = "huber"
max_timestep = 900
v_parameterization = true
ip_noise_gamma = 0.1
xformers = true
wandb_api_key = "secret"
"""


def test_a_kohya_toml_with_sections_becomes_ours(tmp_path):
    found = read(tmp_path, LORA)
    assert found.source == "kohya TOML" and found.without == []
    same(found, {
        "method": "lora", "checkpoint": "/models/sd15.safetensors", "data.folder": "/pics", "data.class_folder": "/class", "output": "/out", "name": "mine",
        "data.resolution": 512, "data.batch": 4, "steps": 2000, "seed": 42, "optim.lr": "0.0002", "optim.text_lr": 5e-5, "lora.text_encoder": True,
        "optim.schedule": "restarts", "optim.cycles": 3, "optim.warmup": 200, "optim.name": "adamw8bit", "optim.weight_decay": 0.05,
        "optim.betas": "0.9, 0.99", "optim.eps": 1e-6, "lora.rank": 32, "lora.alpha": 16.0, "lora.dropout": 0.1, "lora.conv_rank": 8, "lora.conv_alpha": 1.0,
        "lora.rank_dropout": 0.2, "lora.up_lr_ratio": 16.0, "lora.max_norm": 1.0, "lora.save_dtype": "fp32", "memory.precision": "bf16",
        "memory.checkpointing": "on", "save_every": 500, "keep_last": 3, "data.caption_extension": "txt", "data.shuffle_tags": True, "data.keep_tags": 1,
        "data.flip": "all", "data.buckets": True, "data.upscale": False, "data.bucket_min": 320, "data.cache": "disk", "data.masks": True,
        "data.mask_floor": 0.0, "data.token_warmup": 50, "loss.min_snr": 5.0, "loss.kind": "huber", "loss.t_max": 900, "loss.prediction": "v",
        "loss.input_perturbation": 0.1,
    })  # fmt: skip


def test_where_kohya_is_silent_its_defaults_hold_and_the_text_encoder_is_trained(tmp_path):
    found = read(tmp_path, 'network_module = "networks.lora"\n')
    expected = {"lora.rank": 4, "lora.alpha": 1.0, "steps": 1600, "optim.lr": "2e-06", "optim.text_lr": 2e-6, "lora.text_encoder": True, "data.buckets": False}
    same(found, expected)
    assert found.without == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("learning_rate = 1e-3", {"optim.lr": "0.001", "optim.text_lr": 1e-3, "lora.text_encoder": True}),
        ("learning_rate = 1e-3\ntext_encoder_lr = 0", {"optim.lr": "0.001", "optim.text_lr": None, "lora.text_encoder": False}),
        ("unet_lr = 1e-3\ntext_encoder_lr = 1e-5\nnetwork_train_unet_only = true", {"optim.lr": "0.001", "optim.text_lr": None, "lora.text_encoder": False}),
        ("unet_lr = 1e-3\ntext_encoder_lr = 1e-5\nnetwork_train_text_encoder_only = true",
         {"optim.lr": "1e-05", "lora.text_encoder": True, "lora.attention": False, "lora.feed_forward": False, "lora.projections": False}),
        ("network_alpha = 0\nnetwork_dim = 8", {"lora.alpha": 8.0}),  # kohya: as the rank
        ('network_args = ["conv_dim=4", "conv_alpha=0"]', {"lora.conv_alpha": 4.0}),
        ('resolution = "512,768"\nenable_bucket = true', {"data.resolution": 624}),  # buckets keep the area
        ("resolution = 640", {"data.resolution": 640}),
        ('lr_warmup_steps = "5%"\nmax_train_steps = 200', {"optim.warmup": 10}),
        ('lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 30', {"optim.schedule": "constant", "optim.warmup": 30}),
        ('optimizer_type = "Lion"', {"optim.name": "lion", "optim.betas": "0.9, 0.99", "optim.weight_decay": 0.0}),
        ('optimizer_type = "Prodigy"\noptimizer_args = ["weight_decay=0.1", "decouple=True"]', {"optim.name": "prodigy", "optim.weight_decay": 0.1}),
        ('optimizer_type = "AdamWScheduleFree"', {"optim.name": "adamw_schedulefree"}),
        ('optimizer_type = "Adafactor"\noptimizer_args = ["relative_step=False", "scale_parameter=False"]', {"optim.name": "adafactor"}),
        ("use_8bit_adam = true", {"optim.name": "adamw8bit"}),
        ('caption_extension = ".none-use-foldername"', {"data.caption_from": "folder"}),
        ("cache_latents = false", {"data.cache": "off"}),
        (f'network_args = ["block_dims=0,{",".join(["4"] * 11)},2,{",".join(["4"] * 12)}"]\nnetwork_dim = 4',
         {"lora.block_ranks": "M00=2", "lora.blocks": ", ".join([f"IN{i:02}" for i in range(1, 12)] + ["M00"] + [f"OUT{i:02}" for i in range(12)])}),
        (f'network_args = ["down_lr_weight={",".join(["0.05", "0.5"] + ["1"] * 10)}", "up_lr_weight={",".join(["2"] + ["1"] * 11)}", "block_lr_zero_threshold=0.1"]',
         {"lora.block_rates": ", ".join(["0", "0.5"] + ["1"] * 11 + ["2"] + ["1"] * 11)}),
        ("clip_skip = 0\nmax_timestep = 0", {"clip_skip": None, "loss.t_max": None}),
    ],
)  # fmt: skip
def test_what_kohya_means_is_what_is_set(tmp_path, text, expected):
    found = read(tmp_path, f'network_module = "networks.lora"\n{text}\n')
    assert found.without == []
    same(found, expected)


@pytest.mark.parametrize(
    "text, without",
    [
        ("max_train_epochs = 10", ["max_train_epochs = 10"]),
        ("network_dim = 5000", ["network_dim = 5000"]),
        ('lr_scheduler = "inverse_sqrt"', ["lr_scheduler = inverse_sqrt"]),
        ('network_module = "networks.dylora"', ["network_module = networks.dylora"]),
        ('resolution = "512,768"', ["resolution = 512,768"]),
        ('pretrained_model_name_or_path = "runwayml/stable-diffusion-v1-5"', ["pretrained_model_name_or_path = runwayml/stable-diffusion-v1-5"]),
        ("save_every_n_epochs = 2\nsave_last_n_steps = 100", ["save_last_n_steps = 100", "save_every_n_epochs = 2"]),
        ("color_aug = true\nrandom_crop = true\nweighted_captions = false\nresume = ''", ["color_aug = True", "random_crop = True"]),
        ('network_args = ["down_lr_weight=1,0.5", "block_dims=1,2", "mid_lr_weight=0.5", "up_lr_weight=sine"]',
         ["network_args block_dims = 1,2", "network_args down_lr_weight = 1,0.5", "network_args mid_lr_weight = 0.5", "network_args up_lr_weight = sine"]),
        ("lr_warmup_steps = 0.1\nmax_train_epochs = 3", ["max_train_epochs = 3", "lr_warmup_steps = 0.1"]),
        ('optimizer_args = ["betas=0.9", "amsgrad=True", "foo=False"]', ["optimizer_args betas = 0.9", "optimizer_args amsgrad = True"]),
        ('optimizer_type = "Adafactor"', ["optimizer_args relative_step = True"]),
        ('comment = "' + "x" * 100 + '"', ["comment = " + "x" * 57 + "..."]),
        ("sample_every_n_steps = 100", ["sample_every_n_steps = 100"]),
        ('sample_prompts = "nowhere.txt"', ["sample_prompts = nowhere.txt"]),
        ('huggingface_token = "hf_x"\nwandb_api_key = "y"\nhuber_scale = 1.0', []),
    ],
)
def test_what_has_no_counterpart_is_named_and_nothing_that_is_off(tmp_path, text, without):
    module = "" if "network_module" in text else 'network_module = "networks.lora"\n'
    assert read(tmp_path, f"{module}{text}\n").without == without


def test_the_rates_of_an_optimizer_that_we_lack_are_not_taken_over(tmp_path):
    found = read(tmp_path, 'network_module = "networks.lora"\noptimizer_type = "DAdaptAdam"\nlearning_rate = 0.5\nunet_lr = 1.0\n')
    assert found.without == ["optimizer_type = DAdaptAdam", "unet_lr = 1.0", "learning_rate = 0.5"]
    assert not {"optim.lr", "optim.text_lr", "optim.name"} & found.values.keys()


def test_steps_beside_epochs_are_taken_and_the_epochs_named(tmp_path):
    found = read(tmp_path, 'network_module = "networks.lora"\nmax_train_epochs = 10\nmax_train_steps = 300\n')
    assert found.values["steps"] == 300 and found.without == ["max_train_epochs = 10"]


def test_a_run_that_trains_the_whole_model_is_no_lora(tmp_path):
    found = read(tmp_path, 'train_data_dir = "/pics"\nlearning_rate = 2e-6\nmax_train_steps = 3\n')
    whole = {"data.folder": "/pics", "steps": 3, "method": "dreambooth", "optim.lr": "2e-06", "lora.rank": None}
    same(found, {**whole, "dreambooth.text_encoder": True, "dreambooth.text_until": None})
    assert found.without == []
    more = 'train_data_dir = "/pics"\nlearning_rate = 2e-6\nmax_train_steps = 3\nlearning_rate_te = 1e-6\nstop_text_encoder_training = '
    same(read(tmp_path, more + "2\n"), {**whole, "dreambooth.text_encoder": True, "dreambooth.text_until": 2, "optim.text_lr": 1e-6})
    same(read(tmp_path, more + "-1\n"), {**whole, "dreambooth.text_encoder": False, "dreambooth.text_until": None})


def test_lycoris_locon_trains_the_convolutions_as_the_rest_unless_told_otherwise(tmp_path):
    head = 'network_module = "lycoris.kohya"\nnetwork_dim = 8\nnetwork_alpha = 4\nnetwork_args = '
    same(read(tmp_path, head + '["algo=locon"]'), {"lora.conv_rank": 8, "lora.conv_alpha": 4.0, "lora.rank": 8})
    same(read(tmp_path, head + '["conv_dim=2", "conv_alpha=1"]'), {"lora.conv_rank": 2, "lora.conv_alpha": 1.0})
    same(read(tmp_path, head + '["preset=attn-only"]'), {"lora.conv_rank": 0, "lora.feed_forward": False, "lora.projections": False})
    found = read(tmp_path, head + '["algo=lokr", "factor=8", "dora_wd=True", "preset=mine.toml"]')
    names = ("preset = mine.toml", "dora_wd = True")  # there it is the other axis, and alpha may be any
    assert (found.values["method"], found.values["lokr.factor"], found.values["lokr.conv_rank"]) == ("lokr", 8, 8) and found.without == [f"network_args {name}" for name in names]
    found = read(tmp_path, head + '["algo=boft", "factor=8", "rs_lora=True"]')
    assert (found.values["method"], found.values["lora.rank_stabilized"]) == ("lora", True) and found.without == ["network_args algo = boft", "network_args factor = 8"]


def test_a_method_that_we_have_under_lycoris_name_is_chosen(tmp_path):
    @dataclass(frozen=True)
    class Config:
        rank: int = opt(1, "Rank", "Rank.", min=1, max=100)

    (tmp_path / "a.toml").write_text('network_module = "lycoris.kohya"\nnetwork_dim = 8\nnetwork_args = ["algo=loha", "preset=attn-mlp"]\n')
    found = read_settings(tmp_path / "a.toml", {**METHODS, "loha": SimpleNamespace(Config=Config)})
    assert found.values["method"] == "loha" and found.values["loha.rank"] == 8 and "network_args algo = loha" not in found.without


def test_kohyas_embedding_takes_the_word_of_the_captions_as_its_name(tmp_path):
    text = 'token_string = "mychar"\ninit_word = "girl"\nnum_vectors_per_token = 4\noutput_name = "file"\nuse_style_template = true\nsave_model_as = "pt"\n'
    found = read(tmp_path, text + "learning_rate = 5e-3\nmax_train_steps = 9\n")
    assert found.values["method"] == "textual_inversion" and found.without == ["output_name = file"]
    same(found, {"name": "mychar", "textual_inversion.init": "girl", "textual_inversion.vectors": 4, "data.template": "style", "optim.lr": "0.005",
                 "textual_inversion.save_pt": True})  # fmt: skip


def test_sample_prompts_are_read_from_their_file_with_the_options_all_share(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# comment\na cat --n bad --w 512 --d 1 --s 28\n\na dog --n bad --w 768 --d 1 --s 28 --ss euler\n")
    found = read(tmp_path, f"network_dim = 4\nsample_every_n_steps = 50\nsample_prompts = '{prompts}'\nsample_sampler = 'euler_a'\n")
    same(found, {"sample.prompts": "a cat\na dog", "sample.negative": "bad", "sample.seed": 1, "sample.steps": 28, "sample.width": None, "sample.every": 50,
                 "sample.sampler": "euler_a"})  # fmt: skip
    assert found.without == ["sample_prompts --w = 512 | 768", "sample_prompts --ss = | euler"]


# ---- the GUI

GUI = {
    "LoRA_type": "Standard", "max_resolution": "512,512", "learning_rate": "0.0001", "unet_lr": "0.0002", "text_encoder_lr": "5e-5", "lr_scheduler": "cosine",
    "lr_warmup": "10", "max_train_steps": "500", "epoch": 3, "optimizer": "AdamW8bit", "optimizer_args": '"weight_decay=0.1" "betas=0.9,0.99"',
    "network_dim": 8, "network_alpha": "4", "conv_dim": 16, "conv_alpha": 16, "LyCORIS_preset": "full", "factor": -1, "unit": 1, "use_tucker": False,
    "rank_dropout": 0, "module_dropout": 0.1, "block_dims": "", "lora_network_weights": "", "seed": "", "noise_offset_type": "Original",
    "noise_offset": "0.05", "multires_noise_iterations": 8, "multires_noise_discount": 0.2, "max_timestep": 0, "clip_skip": "2", "sdxl": False, "v2": False,
    "flux1_checkbox": False, "enable_bucket": True, "stop_text_encoder_training": 0, "training_comment": "", "sample_prompts": "a cat --w 512\na dog --w 512",
    "sample_every_n_steps": 0, "max_train_epochs": "", "xformers": "xformers", "num_machines": 1, "huggingface_token": "hf_x",
}  # fmt: skip


def test_the_gui_s_json_becomes_what_it_would_hand_to_the_trainer(tmp_path):
    found = read(tmp_path, GUI)
    assert found.source == "settings of kohya's GUI" and found.without == []
    same(found, {
        "method": "lora", "optim.lr": "0.0002", "optim.text_lr": 5e-5, "lora.text_encoder": True, "optim.warmup": 50, "optim.weight_decay": 0.1,
        "optim.betas": "0.9, 0.99", "lora.rank": 8, "lora.alpha": 4.0, "lora.conv_rank": None, "lora.module_dropout": 0.1, "clip_skip": 2, "steps": 500,
        "loss.noise_offset": 0.05, "loss.pyramid": None, "loss.t_max": None, "sample.prompts": "a cat\na dog", "sample.width": 512, "optim.name": "adamw8bit",
    })  # fmt: skip


@pytest.mark.parametrize(
    "change, expected, without",
    [
        ({"LoRA_type": "Kohya LoCon"}, {"lora.conv_rank": 16, "lora.conv_alpha": 16.0}, []),
        ({"LoRA_type": "LyCORIS/LoCon", "train_norm": True}, {"lora.conv_rank": 16}, ["train_norm = True"]),
        ({"LoRA_type": "LyCORIS/LoHa"}, {"method": "loha", "loha.rank": 8}, []),
        ({"LoRA_type": "LyCORIS/DyLoRA"}, {"method": "lora", "lora.rank": 8}, ["LoRA_type = dylora"]),
        ({"LoRA_type": "LoRA-FA"}, {"lora.rank": 8}, ["LoRA_type = lora-fa"]),
        ({"text_encoder_lr": 0}, {"optim.lr": "0.0002", "lora.text_encoder": False}, []),
        ({"unet_lr": "0"}, {"optim.lr": "5e-5", "lora.text_encoder": True, "lora.attention": False}, []),
        ({"unet_lr": 0, "text_encoder_lr": 0}, {"optim.lr": "0.0001", "optim.text_lr": 1e-4, "lora.text_encoder": True, "lora.attention": None}, []),
        ({"max_train_steps": 0}, {"steps": None}, ["epoch = 3", "lr_warmup_steps = 10%"]),
        ({"noise_offset_type": "Multires"}, {"loss.noise_offset": None, "loss.pyramid": 8}, []),
        ({"stop_text_encoder_training": 50, "training_comment": "trigger: xyz"}, {}, ["stop_text_encoder_training = 50", "training_comment = trigger: xyz"]),
        ({"optimizer": "DAdaptation"}, {"optim.lr": None}, ["optimizer = DAdaptation", "unet_lr = 0.0002", "text_encoder_lr = 5e-5"]),
        ({"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": ""}, {"optim.schedule": "restarts", "optim.cycles": 3}, []),
    ],
)
def test_choices_of_the_gui(tmp_path, change, expected, without):
    found = read(tmp_path, {**GUI, **change})
    same(found, expected)
    assert found.without == without


def test_the_gui_s_embedding(tmp_path):
    content = {"max_resolution": "512", "token_string": "zxc", "init_word": "*", "num_vectors_per_token": 8, "template": "object template", "epoch": 1,
               "max_train_steps": "80", "learning_rate": 1e-3, "weights": "", "noise_offset_type": "Original", "multires_noise_iterations": 6,
               "optimizer": "AdamW"}  # fmt: skip
    found = read(tmp_path, content)
    same(found, {"method": "textual_inversion", "name": "zxc", "data.template": "subject", "steps": 80, "optim.lr": "0.001", "loss.pyramid": 6})
    assert found.without == []


def test_the_toml_that_the_gui_makes_for_the_trainer_is_the_trainers(tmp_path):
    text = 'epoch = 4\nnoise_offset_type = "Original"\nnetwork_module = "networks.lora"\ntext_encoder_lr = [5e-5, 5e-5]\nunet_lr = 1e-4\nlr_warmup_steps = 7\n'
    found = read(tmp_path, text + 'network_args = ["conv_dim=8", "conv_alpha=1"]\nmax_train_steps = 100\noptimizer_type = "AdamW"\n')
    assert found.source == "kohya TOML" and found.without == []
    same(found, {"lora.text_encoder": True, "optim.text_lr": 5e-5, "optim.warmup": 7, "lora.conv_rank": 8, "steps": 100})


def test_kohyas_json_is_read_as_its_toml(tmp_path):
    found = read(tmp_path, {"network_module": "networks.lora", "network_dim": 7, "network_args": ["conv_dim=3"]})
    assert found.source == "kohya JSON" and found.values["lora.rank"] == 7 and found.values["lora.conv_rank"] == 3


# ---- kohya's metadata


def test_the_kohya_names_that_we_write_ourselves_are_read_back(tmp_path):
    values = {"steps": 50, "seed": 3, "optim.lr": "3e-4", "optim.text_lr": 1e-5, "optim.name": "lion", "optim.weight_decay": 0.2, "optim.schedule": "restarts",
              "lora.rank": 6, "lora.alpha": 3.0, "lora.max_norm": 2.0, "data.resolution": 256, "data.batch": 2, "data.shuffle_tags": True, "data.flip": "all",
              "data.keep_tags": 2, "data.upscale": False, "loss.kind": "l1", "loss.min_snr": 4.0, "loss.pyramid": 2, "loss.debiased": True, "name": "x",
              "data.tag_dropout": 0.25, "optim.accumulate": 3, "clip_skip": 2, "memory.precision": "fp32"}  # fmt: skip
    cfg = build(TrainConfig, {**values, "lora.text_encoder": True}, METHODS["lora"].Config)
    metadata = lora_metadata(cfg, {}, Made(50, 1, 1.0, 2.0), [("unet", "a"), ("text", "b")])
    del metadata[METADATA_KEY]
    found = weights(tmp_path / "x.safetensors", metadata, "lora_unet_a.lora_down.weight", "lora_te_b.lora_down.weight")
    assert found.source == "metadata of x.safetensors"
    same(found, {**values, "lora.text_encoder": True, "optim.betas": "0.9, 0.999"})


KOHYA = {
    "ss_network_module": "networks.lora", "ss_network_dim": "16", "ss_network_alpha": "8", "ss_network_args": '{"conv_dim": "4", "unknown": "1"}',
    "ss_learning_rate": "0.0001", "ss_unet_lr": "None", "ss_text_encoder_lr": "None", "ss_max_train_steps": "100", "ss_num_epochs": "5", "ss_v2": "False",
    "ss_base_model_version": "sd_v1", "ss_optimizer": "transformers.optimization.Adafactor(scale_parameter=False,relative_step=False,betas=(0.9, 0.99))",
    "ss_sd_model_name": "anime.safetensors", "ss_training_comment": "None", "ss_clip_skip": "2", "ss_epoch": "5", "ss_steps": "100", "ss_tag_frequency": "{}",
    "ss_datasets": json.dumps([{"batch_size_per_device": 3, "resolution": [512, 512], "enable_bucket": True, "subsets": [{"keep_tokens": 2}]}, {}]),
}  # fmt: skip


def test_a_file_that_kohya_trained_tells_its_settings(tmp_path):
    found = weights(tmp_path / "k.safetensors", KOHYA)
    same(found, {"lora.rank": 16, "lora.alpha": 8.0, "lora.conv_rank": 4, "optim.lr": "0.0001", "lora.text_encoder": False, "steps": 100, "clip_skip": 2,
                 "optim.name": "adafactor", "optim.betas": "0.9, 0.99", "data.batch": 3, "data.resolution": 512, "data.keep_tags": 2, "data.buckets": True})
    assert found.without == ["ss_network_args unknown = 1", "ss_datasets = 2, of which the first was read", "ss_sd_model_name = anime.safetensors"]
    with_text = weights(tmp_path / "k.safetensors", KOHYA, "lora_unet_a.lora_down.weight", "lora_te_b.lora_down.weight")
    same(with_text, {"lora.text_encoder": True, "optim.text_lr": 1e-4})


def test_damaged_metadata_of_kohya_loses_only_what_is_damaged(tmp_path):
    found = weights(tmp_path / "k.safetensors", {**KOHYA, "ss_datasets": "[1", "ss_network_args": "{", "ss_network_dim": "many"})
    assert {"ss_datasets = [1", "ss_network_args unreadable = {", "ss_network_dim = many"} <= set(found.without)
    assert found.values["lora.alpha"] == 8.0


# ---- the WebUI

WEBUI = {
    "datetime": "2024-01-01 10:00:00", "batch_size": 2, "clip_grad_mode": "norm", "clip_grad_value": "0.5", "create_image_every": 50, "data_root": "C:\\pics",
    "embedding_name": "mychar", "gradient_step": 3, "initial_step": 0, "latent_sampling_method": "deterministic", "learn_rate": "0.005:100, 1e-3",
    "log_directory": "textual_inversion\\2024-01-01\\mychar", "model_hash": "abc", "model_name": "anime", "num_of_dataset_images": 12,
    "num_vectors_per_token": 6, "save_embedding_every": 100, "save_image_with_stored_embedding": True, "steps": 3000,
    "template_file": "C:\\webui\\textual_inversion_templates\\style_filewords.txt", "training_height": 512, "training_width": 512,
    "preview_prompt": "mychar, smiling", "preview_negative_prompt": "bad", "preview_steps": 25, "preview_cfg_scale": 6.5, "preview_seed": -1,
    "preview_width": 512, "preview_height": 768, "preview_sampler_index": "Euler a",
}  # fmt: skip
OURS = {
    "method": "textual_inversion", "name": "mychar", "data.batch": 2, "optim.clip": 0.5, "sample.every": 50, "data.folder": "C:\\pics", "optim.accumulate": 3,
    "data.latent": "deterministic", "optim.lr": "0.005:100, 1e-3", "textual_inversion.vectors": 6, "save_every": 100, "textual_inversion.save_png": True,
    "steps": 3000, "data.template": "style_filewords", "data.resolution": 512, "data.buckets": False, "sample.prompts": "mychar, smiling",
    "sample.negative": "bad", "sample.steps": 25, "sample.cfg": 6.5, "sample.seed": None, "sample.width": 512, "sample.height": 768,
    "sample.sampler": "euler_a",
}  # fmt: skip


def test_the_webui_s_json_becomes_ours(tmp_path):
    found = read(tmp_path, WEBUI)
    assert found.source == "WebUI training settings" and found.without == ["model_hash = abc", "model_name = anime"]
    same(found, OURS)


def test_the_webui_s_older_text_is_read_alike_and_its_last_run_counts(tmp_path):
    block = "\n".join(f"{key}: {value}" for key, value in WEBUI.items())
    found = read(tmp_path, f"datetime : 2022\nlearn_rate: 9\nsteps: 1\ndata_root: /old\n\n\n{block}\nshuffle_tags: True\ntag_drop_out: 0.1\n", "settings.txt")
    same(found, {**OURS, "data.shuffle_tags": True, "data.tag_dropout": 0.1})
    assert found.source == "WebUI training settings" and found.without == ["model_hash = abc", "model_name = anime"]


@pytest.mark.parametrize(
    "rates, ours",
    [
        ("0.005", "0.005"),
        ("0.05:10, 0.02:20, 0.005:-1, 9", "0.05:10, 0.02:20, 0.005"),
        (" 0.05 : 10,, 0.04:10, 0.01:20,", "0.05:10, 0.01:20"),
        ("five", None), ("0", None), ("-1", None), ("0.1:x", None),
    ],
)  # fmt: skip
def test_the_webui_s_rates_are_cleaned_of_what_it_ignores(tmp_path, rates, ours):
    found = read(tmp_path, {**WEBUI, "learn_rate": rates})
    assert found.values.get("optim.lr") == ours
    assert (f"learn_rate = {rates}" in found.without) == (ours is None and rates != "0")


def test_what_the_webui_does_otherwise_is_named(tmp_path):
    change = {"preview_prompt": None, "clip_grad_mode": "value", "training_height": 768, "template_file": "/own/mine.txt", "varsize": True, "initial_step": 5}
    found = read(tmp_path, {**WEBUI, **change})
    for line in ("create_image_every = 50", "clip_grad_mode = value 0.5", "training_width x training_height = 512 x 768", "template_file = /own/mine.txt",
                 "varsize = True", "initial_step = 5"):  # fmt: skip
        assert line in found.without
    assert read(tmp_path, {**WEBUI, "clip_grad_mode": "disabled"}).values["optim.clip"] == 0.0
    own = tmp_path / "mine.txt"
    own.write_text("[name]")
    assert read(tmp_path, {**WEBUI, "template_file": str(own)}).values["data.template"] == str(own)


@pytest.mark.parametrize("layers", [[1, 2.0, 1], "[1, 2.0, 1]"])  # in JSON, in the older text
def test_a_hypernetwork_s_settings_become_ours(tmp_path, layers):
    content = {key: value for key, value in WEBUI.items() if key not in ("embedding_name", "num_vectors_per_token", "save_embedding_every")}
    theirs = {"hypernetwork_name": "hn", "layer_structure": layers, "learn_rate": "1e-5", "activation_func": "swish", "weight_init": "XavierNormal",
              "add_layer_norm": True, "save_hypernetwork_every": 70}  # fmt: skip
    found = read(tmp_path, {**content, **theirs, "use_dropout": True})
    same(found, {"method": "hypernetwork", "steps": 3000, "name": "hn", "optim.lr": "1e-5", "hypernetwork.structure": "1, 2.0, 1", "save_every": 70,
                 "hypernetwork.activation": "swish", "hypernetwork.init": "XavierNormal", "hypernetwork.layer_norm": True})  # fmt: skip
    assert "use_dropout = True" in found.without and "activation_func" not in str(found.without)
    assert "activation_func = softmax" in read(tmp_path, {**content, **theirs, "activation_func": "softmax"}).without


# ---- what is refused


@pytest.mark.parametrize(
    "content, family",
    [
        ({**GUI, "sdxl": True}, "SDXL"), ({**GUI, "v2": "True"}, "Stable Diffusion 2"), ({**GUI, "flux1_checkbox": True}, "FLUX.1"),
        ({"network_module": "networks.lora_flux", "network_dim": 4}, "flux"),
    ],
)  # fmt: skip
def test_settings_of_other_models_are_refused(tmp_path, content, family):
    assert refused(tmp_path, content) == f"settings.json holds settings for {family}; the Tuner trains Stable Diffusion 1.5 only"


def test_files_of_other_models_are_refused(tmp_path):
    for change in ({"ss_base_model_version": "sdxl_base_v1-0"}, {"ss_v2": "True"}):
        with pytest.raises(ValueError, match="Stable Diffusion 1.5 only"):
            weights(tmp_path / "k.safetensors", {**KOHYA, **change})


@pytest.mark.parametrize(
    "content, name, words",
    [
        (b"PK\x03\x04abc", "a.pt", "a.pt is a file of weights"),
        (b"\x80\x02}q", "renamed.txt", "renamed.txt is a file of weights"),
        ("old torch", "a.ckpt", "a.ckpt is a file of weights"),
        (b"\x89PNG\r\n\x1a\n", "a.png", "a.png holds no settings that are known here"),
        ("a photo of a cat", "a.txt", "holds no settings that are known here"),
        ("job: train\nsteps: 5\n", "a.yaml", "holds no settings that are known here"),
        ("", "a.toml", "holds no settings that are known here"),
        ("x = = 1", "a.toml", "a.toml: not valid TOML"),
        ("{", "a.json", "a.json is not valid JSON"),
        ('{"a": 1}', "a.json", "holds no settings that are known here"),
        ("[1, 2]", "a.json", "holds no settings that are known here"),
        ('{"a":' * 5000, "a.json", "holds no settings that are known here"),
        ("a = " + "[" * 5000, "a.toml", "holds no settings that are known here"),
        ("x" * 5_000_000, "a.toml", "holds no settings that are known here"),
        ("[general]\nshuffle_caption = true\n[[datasets]]\nresolution = 512\n", "d.toml", "d.toml is kohya's description of data (--dataset_config)"),
        (b"", "a.safetensors", "a.safetensors is empty"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "a.bin", "a.bin does not tell how it was trained"),
    ],
)
def test_files_without_settings_are_one_clear_sentence(tmp_path, content, name, words):
    assert words in refused(tmp_path, content, name)


def test_a_missing_file_a_folder_and_a_file_of_weights_alone_are_one_clear_sentence(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: "):
            read_settings(path, METHODS)
    with pytest.raises(ValueError, match="does not tell how it was trained"):
        weights(tmp_path / "w.safetensors", {})
