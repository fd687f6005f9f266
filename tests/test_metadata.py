"""What a saved file says about itself, read as the WebUI's Lora card reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open

from lib_tuner.config import build, from_metadata, opt
from lib_tuner.methods.lora_file import write_lora
from lib_tuner.methods.metadata import Made, embedding_metadata, lora_metadata, write_card
from lib_tuner.methods.textual_inversion import TextualInversionConfig
from lib_tuner.settings import TrainConfig


@dataclass(frozen=True)
class Network:
    rank: int = opt(8, "Rank", "Rank.")
    alpha: float = opt(4.0, "Alpha", "Alpha.")
    dropout: float = opt(0.0, "Dropout", "Dropout.")
    blocks: str = opt("all", "Blocks", "Blocks.")
    start_from: str = opt("", "Start", "Start.")


MADE = Made(step=120, epoch=3, started=1700000000.5, finished=1700003600.25, model_hash="ab" * 32, model_name="tiny.safetensors")
BOTH = [("unet", "out.2"), ("text", "text_model.encoder.layers.0.mlp.fc1")]
SUMMARY = {
    "pictures": 3,
    "class_pictures": 6,
    "ss_num_train_images": 30,
    "ss_num_reg_images": 6,
    "ss_num_batches_per_epoch": 15,
    "ss_bucket_info": {"buckets": {"0": {"resolution": [64, 64], "count": 20}, "1": {"resolution": [48, 80], "count": 10}}},
    "ss_tag_frequency": {"10_moon": {"moon": 20, " red ": 3}},
    "ss_dataset_dirs": {"10_moon": {"n_repeats": 10, "img_count": 3}},
}


def settings(**values):
    return build(TrainConfig, {"name": "my moon", "steps": 200, **values}, Network)


def as_the_webui_reads(metadata):
    """modules/sd_models.py read_metadata_from_safetensors: a value that starts with a brace is JSON."""
    assert all(isinstance(value, str) for value in metadata.values())
    return {key: json.loads(value) if value.startswith("{") else value for key, value in metadata.items()}


# ---- the card of the WebUI


def test_the_card_shows_name_model_date_resolutions_size_and_tags():
    card = as_the_webui_reads(lora_metadata(settings(), SUMMARY, MADE, BOTH))
    assert card["ss_output_name"] == "my moon" and card["ss_sd_model_name"] == "tiny.safetensors" and card["ss_network_module"] == "networks.lora"
    assert float(card["ss_training_started_at"]) == 1700000000.5
    assert card["ss_bucket_info"] == {"buckets": {"0": {"resolution": [64, 64], "count": 20}, "1": {"resolution": [48, 80], "count": 10}}}
    assert card["ss_dataset_dirs"] == {"10_moon": {"n_repeats": 10, "img_count": 3}}
    assert card["ss_tag_frequency"] == {"10_moon": {"moon": 20, " red ": 3}}


def test_the_file_counts_as_sd1():
    card = lora_metadata(settings(), SUMMARY, MADE)
    assert card["ss_v2"] == "False" and card["ss_base_model_version"] == "sd_v1"


@pytest.mark.parametrize("skip, shown", [(1, "None"), (2, "2")])
def test_clip_skip_is_hidden_where_the_last_layer_is_read(skip, shown):
    """The card leaves out the word None; any other value must be text."""
    card = lora_metadata(settings(clip_skip=skip), SUMMARY, MADE)
    assert card["ss_clip_skip"] == shown and card.get("modelspec.encoder_layer") == (None if skip == 1 else "2")


def test_what_the_data_does_not_tell_is_left_out():
    card = lora_metadata(settings(), {}, MADE)
    assert not {"ss_bucket_info", "ss_tag_frequency", "ss_dataset_dirs", "ss_num_train_images", "ss_num_epochs"} & card.keys()


# ---- kohya's keys


def test_settings_are_spelt_as_kohya_does():
    values = {
        "optim.lr": "1e-4", "optim.text_lr": 5e-5, "optim.accumulate": 2, "optim.schedule": "restarts", "optim.warmup": 10, "data.batch": 4,
        "loss.min_snr": 5, "loss.kind": "mse", "data.flip": "safe", "data.resolution": 64, "memory.precision": "fp32", "lora.rank": 16, "lora.dropout": 0.1,
    }  # fmt: skip
    card = lora_metadata(settings(**values), SUMMARY, MADE, BOTH)
    expected = {
        "ss_learning_rate": "1e-4", "ss_unet_lr": "1e-4", "ss_text_encoder_lr": "5e-05", "ss_lr_scheduler": "cosine_with_restarts",
        "ss_lr_warmup_steps": "10", "ss_gradient_accumulation_steps": "2", "ss_batch_size_per_device": "4", "ss_total_batch_size": "8",
        "ss_min_snr_gamma": "5.0", "ss_loss_type": "l2", "ss_noise_offset": "None", "ss_flip_aug": "True", "ss_color_aug": "False",
        "ss_resolution": "(64, 64)", "ss_mixed_precision": "no", "ss_network_dim": "16", "ss_network_alpha": "4.0", "ss_network_dropout": "0.1",
        "ss_max_train_steps": "200", "ss_steps": "120", "ss_epoch": "3", "ss_num_train_images": "30", "ss_num_reg_images": "6",
        "ss_num_batches_per_epoch": "15", "ss_num_epochs": "27", "ss_seed": "0", "ss_new_sd_model_hash": "ab" * 32,
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.999),eps=1e-08)",
    }  # fmt: skip
    assert {key: card.get(key) for key in expected} == expected
    assert json.loads(card["ss_network_args"]) == {"blocks": "all", "start_from": ""}


def test_a_part_that_was_not_trained_has_no_learning_rate():
    card = lora_metadata(settings(), SUMMARY, MADE, BOTH[:1])
    assert (card["ss_unet_lr"], card["ss_text_encoder_lr"]) == ("1e-4", "None")
    assert lora_metadata(settings(), SUMMARY, MADE, BOTH)["ss_text_encoder_lr"] == "1e-4"


def test_the_step_syntax_is_named_and_kept():
    card = lora_metadata(settings(**{"optim.lr": "0.05:10, 0.005"}), SUMMARY, MADE)
    assert (card["ss_learning_rate"], card["ss_lr_scheduler"]) == ("0.05:10, 0.005", "piecewise_constant")


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion", "adafactor", "prodigy", "adamw_schedulefree"])
def test_every_optimizer_has_its_full_name(name):
    assert lora_metadata(settings(**{"optim.name": name}), SUMMARY, MADE)["ss_optimizer"].partition("(")[0].count(".") >= 2


# ---- modelspec


def test_modelspec_is_whole():
    card = lora_metadata(settings(trigger="mymoon", **{"data.resolution": 64}), SUMMARY, MADE)
    assert {key: value for key, value in card.items() if key.startswith("modelspec.")} == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "my moon",
        "modelspec.resolution": "64x64",
        "modelspec.date": "2023-11-14T23:13:20+00:00",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "mymoon",
    }


def test_modelspec_tells_v_prediction_and_a_part_of_the_timesteps():
    made = Made(1, 0, 0.0, 0.0, prediction="v")
    card = lora_metadata(settings(**{"loss.t_min": 100}), SUMMARY, made)
    assert (card["modelspec.prediction_type"], card["modelspec.timestep_range"]) == ("v", "100,1000")


def test_an_embedding_says_that_it_is_one_and_which_word_it_is():
    card = embedding_metadata(settings(), SUMMARY, MADE, "purple-moon")
    assert card["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert card["modelspec.trigger_phrase"] == card["modelspec.title"] == "purple-moon" and "ss_network_module" not in card
    assert embedding_metadata(settings(), SUMMARY, MADE)["modelspec.title"] == "my moon"


# ---- our settings


def test_the_settings_come_back_out_of_the_file(tmp_path):
    cfg = settings(**{"lora.rank": 3, "data.folder": "pictures/moon"})
    modules = {BOTH[0]: {"lora_up.weight": torch.ones(4, 1), "lora_down.weight": torch.ones(1, 4)}}
    path = write_lora(tmp_path / "a.safetensors", modules, lora_metadata(cfg, SUMMARY, MADE))
    with safe_open(path, "pt") as file:
        assert build(TrainConfig, from_metadata(file.metadata()), Network) == cfg


def test_no_path_of_the_machine_gets_into_the_file():
    places = {"checkpoint": "/data/somebody/v1-5.safetensors", "data.folder": "C:\\Users\\somebody\\moon", "output": "~/somebody/out"}
    places["lora.start_from"] = "/data/somebody/old.safetensors"
    for metadata in (lora_metadata(settings(**places), SUMMARY, MADE, BOTH), embedding_metadata(settings(**places), SUMMARY, MADE)):
        assert "somebody" not in json.dumps(metadata)
        values = from_metadata(metadata)
        assert (values["checkpoint"], values["data.folder"], values["output"]) == ("v1-5.safetensors", "moon", "out")


def test_files_to_start_several_words_from_are_named_without_their_place():
    text = "cat-a | 2 | red | /data/somebody/secret place/x.pt; dog-b|1\nbird|3|a dog, or a cat|~/somebody/y.pt\nfish | 2 | a / b | C:\\somebody\\z.pt\nhat | 1 | * | kept/here.pt"
    cfg = build(TrainConfig, {"name": "x", "method": "textual_inversion", "textual_inversion.embeddings": text, "sample.prompts": "a [cat|dog] / fish;\n a (b:1.2) | c"}, TextualInversionConfig)
    values = from_metadata(embedding_metadata(cfg, SUMMARY, MADE))
    assert values["textual_inversion.embeddings"] == "cat-a | 2 | red | x.pt; dog-b|1\nbird|3|a dog, or a cat|y.pt\nfish | 2 | a / b | z.pt\nhat | 1 | * | kept/here.pt"
    assert values["sample.prompts"] == "a [cat|dog] / fish;\n a (b:1.2) | c"
    both = {"lora.start_from": "\n /data/somebody/old.safetensors\n"}
    assert "somebody" not in json.dumps(lora_metadata(settings(**both), SUMMARY, MADE, BOTH))


def test_the_same_run_gives_the_same_values_but_for_times_resumed_or_not():
    later = Made(120, 3, 1800000000.0, 1800000001.0, MADE.model_hash, MADE.model_name)
    once, again = lora_metadata(settings(), SUMMARY, MADE, BOTH), lora_metadata(settings(resume="outputs/run-1"), SUMMARY, later, BOTH)
    assert {key for key in once if once[key] != again[key]} == {"ss_training_started_at", "ss_training_finished_at", "modelspec.date"}
    assert once["ss_session_id"] != lora_metadata(settings(seed=1), SUMMARY, MADE, BOTH)["ss_session_id"]


# ---- the card beside the file


def test_the_card_beside_the_file_has_the_webuis_fields(tmp_path):
    path = write_card(tmp_path / "moon.v1.safetensors", "mymoon", weight=0.8, description="Ein Möwen-Mond", notes="n")
    assert path.name == "moon.v1.json" and "Möwen" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "description": "Ein Möwen-Mond", "sd version": "SD1", "activation text": "mymoon", "preferred weight": 0.8, "negative text": "", "notes": "n",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["moon.v1.json"]


def test_what_somebody_wrote_into_the_card_stays_unless_its_trigger_is_an_old_one(tmp_path):
    lora, card = tmp_path / "a.safetensors", tmp_path / "a.json"
    card.write_text(json.dumps({"notes": "mine", "activation text": "mymoon, night", "preferred weight": 0, "extra": ""}))
    assert json.loads(write_card(lora, "mymoon", weight=0.7, notes="ours").read_text()) == {
        "description": "", "sd version": "SD1", "activation text": "mymoon, night", "preferred weight": 0.7, "negative text": "", "notes": "mine", "extra": "",
    }  # fmt: skip
    assert json.loads(write_card(lora, "robot").read_text())["activation text"] == "robot"


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_card_is_left_as_it_is(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="^a.json beside the LoRA is no.* it was left as it is"):
        write_card(tmp_path / "a.safetensors", "x")
    assert (tmp_path / "a.json").read_text() == content
