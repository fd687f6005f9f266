"""The plan of a run in plain words, and the warnings with what mends them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lib_tuner.host import Forecast
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.outlook import outlook, refuse
from lib_tuner.presets import GOALS, PACES, preset_values
from lib_tuner.train import train

ROOM = Forecast("cpu, float32", 4e9, 16e9)
SMALL = Forecast("cpu, float32", 4e9, 16e9, small=True)
SAMPLED = {"sample.every": 2, "sample.prompts": "a thing"}


def plan(values, forecast=ROOM, seconds=None):
    return outlook(settings(values), forecast, seconds)


def warned(values, words, forecast=ROOM):
    """The one warning with these words; its fix makes it go away."""
    found = [w for w in plan(values, forecast).warnings if words in w.text]
    assert len(found) == 1, plan(values, forecast).warnings
    if found[0].fix:
        assert not [w for w in plan({**values, **found[0].fix.values}, forecast).warnings if words in w.text]
    return found[0]


def test_a_plan_says_what_will_happen(small_run):
    lines = plan({**small_run, **SAMPLED, "steps": 30}).lines
    assert lines == [
        "6 pictures, 6 with a caption.", "1 bucket: 64x64 (6).", "30 steps, 3 per epoch: a picture is seen about 10 times.",
        "How long it takes is measured on the first steps.", "Needs about 4.0 GB of memory, 16.0 GB are free; runs on cpu, float32.",
    ]  # fmt: skip
    assert plan({**small_run, **SAMPLED, "optim.accumulate": 3, "data.repeats": 2}).lines[2] == "6 steps, 2 per epoch: a picture is seen about 6.0 times."
    assert "seen about 100 times" in plan({**small_run, "steps": 300, "data.repeats": 10}).lines[2]  # 300 steps of 2 pictures for 6 of them
    assert "About 1 min 00 s (2 s per step" in plan({**small_run, "steps": 30}, seconds=2.0).lines[3]
    assert "free" not in plan(small_run, Forecast("mps", 4e9, None)).lines[4]


def test_a_run_as_it_should_be_has_no_warnings(small_run):
    assert plan({**small_run, **SAMPLED, "optim.lr": "2e-3", "trigger": "zwx"}, SMALL).warnings == []


def test_a_size_of_the_embedded_model_is_warned_of_with_a_real_one(small_run, tmp_path):
    """The form starts with it, and so does whoever chooses another model in it."""
    drawn = tmp_path / "demo-data" / "data" / "class"
    drawn.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(drawn / "a.png")
    found = warned({**small_run, "sample.cfg": 3.0, "data.class_folder": str(drawn)}, "64 px is far less than the 512 px of SD1.5")
    assert found.fix.values == {"data.resolution": 512, "data.bucket_min": 256, "data.bucket_step": 64, "sample.cfg": 7.0, "data.class_folder": ""}
    assert not [w for w in plan(small_run, SMALL).warnings if "px" in w.text]


def test_a_card_that_pytorch_cannot_use_is_said(small_run, tmp_path, monkeypatch):
    assert not [w for w in plan(small_run).warnings if "NVIDIA" in w.text]
    warned(small_run, "has an NVIDIA card, but its PyTorch computes on the CPU alone", replace(ROOM, idle_gpu=True))
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for cuda, idle in ((None, True), ("12.6", False)):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert Standalone(settings(small_run)).forecast().idle_gpu is idle


def test_buckets_and_class_pictures_are_counted(small_run, tmp_path):
    more = tmp_path / "class"
    more.mkdir()
    for i in range(3):
        Image.new("RGB", (128, 64), (i, 0, 0)).save(more / f"c{i}.png")
    lines = plan({**small_run, "data.class_folder": str(more)}).lines
    assert lines[0].endswith("; 3 class pictures beside them.") and lines[1].startswith("2 buckets: ") or lines[1].startswith("1 bucket")


def test_pictures_without_captions(small_run):
    folder = Path(small_run["data.folder"])
    for i in (1, 2):
        (folder / f"{i}.txt").unlink()
    warning = warned({**small_run, "trigger": "zwx"}, "2 pictures without a caption")
    assert warning.fix.values == {"data.template": "subject"}
    assert any("has no caption" in p for p in plan(small_run).problems)


@pytest.mark.parametrize(("rate", "words"), [("1e-1", "tends to break"), ("1e-7", "hardly anything"), ("1e-3:10, 5e-2", "tends to break")])
def test_unusual_learning_rates(small_run, rate, words):
    warned({**small_run, "optim.lr": rate}, words)


def test_the_embedded_model_may_learn_faster(small_run):
    assert not [w for w in plan({**small_run, "optim.lr": "4e-3"}, SMALL).warnings if "learning rate" in w.text]
    assert [w for w in plan({**small_run, "optim.lr": "4e-3"}).warnings if "learning rate" in w.text]
    assert not [w for w in plan({**small_run, "optim.name": "prodigy", "optim.lr": "1"}).warnings if "learning rate" in w.text]


def test_prodigy_is_given_1(small_run):
    assert warned({**small_run, "optim.name": "prodigy", "optim.lr": "1e-4"}, "Prodigy finds the learning rate").fix.values == {"optim.lr": "1"}
    assert not [w for w in plan({**small_run, "optim.name": "prodigy", "optim.lr": "0.5"}).warnings if "Prodigy" in w.text]


def test_lion_is_given_its_own_averages(small_run):
    lion = {**small_run, "optim.name": "lion"}
    assert warned(lion, "betas are usually 0.9, 0.99").fix.values == {"optim.betas": "0.9, 0.99"}
    assert not [w for own in ({**lion, "optim.betas": "0.95, 0.98"}, small_run) for w in plan(own).warnings if "0.99" in w.text]


def test_a_warm_up_that_never_ends(small_run):
    assert warned({**small_run, "steps": 300, "optim.warmup": 300}, "takes 300 steps, and there are 300").fix.values == {"optim.warmup": 30}
    pivotal = {key: value for key, value in small_run.items() if not key.startswith("lora.")} | {"method": "pivotal", "steps": 300, "pivotal.inversion_steps": 250}
    warned({**pivotal, "optim.warmup": 60}, "takes 60 steps, and there are 50")
    for fine in ({**small_run, "steps": 300, "optim.warmup": 299}, {**pivotal, "optim.warmup": 40}, {**pivotal, "pivotal.inversion_steps": 0, "optim.warmup": 200}):
        assert not [w for w in plan(fine).warnings if "warm-up" in w.text]


@pytest.mark.parametrize(("change", "words"), [
    ({"optim.name": "lion", "optim.eps": 1e-6}, "Epsilon is not used by the optimizer lion"), ({"optim.name": "adafactor", "optim.betas": "0.9, 0.99"}, "Betas is not used"),
    ({"optim.name": "adafactor", "optim.eps": 1e-6, "optim.betas": "0.9, 0.99"}, "Betas is not used"), ({"data.class_folder": "class", "data.class_share": 0.0}, "class pictures are not used"),
    ({"method": "hypernetwork", "optim.text_lr": 1e-5}, "Hypernetwork does not train the text encoder"), ({"method": "textual_inversion", "optim.text_lr": 1e-5}, "Textual Inversion does not"),
])  # fmt: skip
def test_settings_that_do_nothing(small_run, change, words):
    values = {key: value for key, value in small_run.items() if not key.startswith("lora.")} | {"data.class_folder": small_run["data.folder"]} | change
    values["data.class_folder"] = small_run["data.folder"] if "data.class_share" in change else ""
    warned(values, words)
    assert not [w for w in plan({**small_run, **{key: value for key, value in change.items() if key == "optim.betas"}, "optim.text_lr": 1e-5}).warnings if "not used" in w.text]


def test_a_text_encoder_of_a_start_that_is_switched_off(small_run, tmp_path):
    for name in ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_unet_mid_block_attentions_0_proj_in"):
        save_file({f"{name}.lora_down.weight": torch.zeros(1, 48)}, tmp_path / f"{name[5:7]}.safetensors")
    file, plain = str(tmp_path / "te.safetensors"), {key: value for key, value in small_run.items() if not key.startswith("lora.")}
    assert warned({**small_run, "lora.start": file}, "stays as it is there").fix.values == {"lora.text_encoder": True}
    assert warned({**plain, "method": "pivotal", "pivotal.layers.start": file, "pivotal.inversion_steps": 2}, "stays as it is there").fix.values == {"pivotal.layers.text_encoder": True}
    for other in (str(tmp_path / "un.safetensors"), "", __file__):
        assert not [w for w in plan({**small_run, "lora.start": other}).warnings if "stays" in w.text]


def test_a_word_that_only_captions_can_have_and_do_not(small_run, tmp_path):
    plain = {key: value for key, value in small_run.items() if not key.startswith("lora.")} | {"method": "textual_inversion", "name": "zorb"}
    (tmp_path / "mine.txt").write_text("a photo of zorb\n")
    assert warned({**plain, "data.template": "hypernetwork"}, "6 pictures without the word").fix.values == {"data.template": "subject"}
    for i, caption in enumerate(("a Zorb", "[name], red", "a thing", "a thing", "a thing", "zorb")):
        (Path(small_run["data.folder"]) / f"{i}.txt").write_text(caption)
    warned({**plain, "data.template": "hypernetwork"}, "3 pictures without the word")
    for fine in ({**plain, "data.template": "subject"}, {**plain, "data.template": str(tmp_path / "mine.txt")}, plain, {**small_run, "data.template": "hypernetwork"}):
        assert not [w for w in plan(fine).warnings if "without the word" in w.text]


@pytest.mark.parametrize("method", ["textual_inversion", "pivotal"])
def test_a_trigger_word_beside_words_that_are_learned_is_not_used(small_run, method):
    plain = {key: value for key, value in small_run.items() if not key.startswith("lora.")} | {"method": method, "name": "zorb"}
    plain |= {"pivotal.inversion_steps": 2} if method == "pivotal" else {}
    found = warned({**plain, "trigger": "sks"}, "The trigger word “sks” is not used")
    assert found.fix.values == {"trigger": ""} and "“zorb”" in found.text
    for fine in ({**plain, "trigger": " Zorb"}, plain, {**small_run, "trigger": "sks"}):
        assert not [w for w in plan(fine).warnings if "is not used" in w.text]


def test_no_preset_asks_for_what_is_warned_of(small_run):
    """But for what a person has to say: captions, a trigger word, samples; and the rates that the small model needs."""
    for method, goal, pace in product(METHODS, GOALS, PACES):
        found = plan({**{key: value for key, value in small_run.items() if not key.startswith("lora.")}, "method": method, **preset_values(goal, pace, method), "data.resolution": 64})
        assert not [w.text for w in found.warnings if any(words in w.text for words in ("not used", "Prodigy", "warm-up", "without the word"))], (method, goal, pace)


def test_a_rank_above_the_layers_width(small_run):
    assert warned({**small_run, "lora.rank": 512}, "Rank 512").fix.values == {"lora.rank": 128, "lora.alpha": 128.0}
    assert warned({**small_run, "lora.conv_rank": 400}, "Rank 400").fix.values == {"lora.conv_rank": 128, "lora.conv_alpha": 128.0}
    assert warned({**small_run, "lora.rank": 65}, "Rank 65", SMALL)


@pytest.mark.parametrize("word", ["cat", "dog", "man", "red", "robot", "Robot"])
def test_a_trigger_word_that_the_model_knows(small_run, word):
    values = {**small_run, "trigger": f"{word} toy", "sample.prompts": f"a {word} toy\na {word}ic thing"}
    fix = warned(values, f"“{word}”").fix.values
    rare = fix["trigger"].split()[0]
    assert word not in rare and fix["sample.prompts"] == f"a {rare} toy\na {word}ic thing"


@pytest.mark.parametrize("word", ["ohwx", "sks", "zwx", "zwx cat", "v1", ""])
def test_a_rare_trigger_word_is_fine_and_so_is_any_on_the_embedded_model(small_run, word):
    assert not [w for w in plan({**small_run, "trigger": word}).warnings if "trigger" in w.text]
    assert not [w for w in plan({**small_run, "trigger": "robot"}, SMALL).warnings if "trigger" in w.text]


def test_no_samples(small_run):
    assert warned({**small_run, "trigger": "zwx", "steps": 500}, "No samples").fix.values == {"sample.every": 50, "sample.prompts": "a picture of [name]"}
    assert warned(small_run, "No samples").fix is None


def test_more_memory_than_there_is(small_run):
    tight = Forecast("cuda", 9e9, 6e9)
    assert [w for w in plan(small_run, tight).warnings if "memory" in w.text][0].fix.values == {"data.batch": 1}
    assert [w for w in plan({**small_run, "data.batch": 1, "data.resolution": 512}, tight).warnings if "memory" in w.text][0].fix.values == {"data.resolution": 256}


def test_many_problems_are_cut_short(small_run):
    for i in range(12):
        (Path(small_run["data.folder"]) / f"broken{i}.png").write_bytes(b"no picture")
    assert len(plan(small_run).problems) == 4 and plan(small_run).problems[-1] == "9 more files cannot be read or used."


def test_what_is_wrong_is_said_under_its_settings_key(small_run):
    bad = {**small_run, "data.folder": "nowhere", "optim.lr": "fast", "optim.betas": "1", "checkpoint": "gone.ckpt"}
    with pytest.raises(ValueError) as caught:
        refuse(settings(bad))
    assert sorted(line.partition(":")[0] for line in str(caught.value).splitlines()) == ["checkpoint", "data.folder", "optim.betas", "optim.lr"]
    with pytest.raises(ValueError, match="data.folder: is empty"):
        refuse(settings({**small_run, "data.folder": " "}))
    refuse(settings(small_run))


@pytest.mark.parametrize(("more", "key", "said"), [
    ({"method": "textual_inversion", "name": "zorb_"}, "name", "'zorb_' ends with '_'"),
    ({"method": "textual_inversion", "name": "zorb+"}, "name", "The name 'zorb\\+' contains '\\+'"),
    ({"method": "textual_inversion", "textual_inversion.embeddings": "a; b- | 2"}, "textual_inversion.embeddings", "'b-' ends with '-'"),
    ({"method": "textual_inversion", "textual_inversion.embeddings": "a; cat-20231101"}, "textual_inversion.embeddings", "'cat-20231101' ends as the saves of a run do"),
    ({"method": "pivotal", "pivotal.inversion_steps": 2, "pivotal.words.embeddings": "cat-20231101"}, "pivotal.words.embeddings", "'cat-20231101' ends as the saves of a run do"),
])  # fmt: skip
def test_words_that_no_new_run_may_learn_are_said_under_the_key_they_stand_in_and_earlier_runs_go_on(small_run, tmp_path, more, key, said):
    cfg = settings({name: value for name, value in small_run.items() if not name.startswith("lora.")} | more)  # is read, as that of an earlier run
    for check in (refuse, lambda cfg: next(train(cfg, METHODS[cfg.method](cfg), None))):
        with pytest.raises(ValueError, match=f"^{key}: {said}"):
            check(cfg)
    refuse(replace(cfg, resume=str(tmp_path)))


def test_files_and_folders_that_a_run_would_fail_at_are_said_before_it_waits_for_its_turn(small_run, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    (tmp_path / "file").write_text("x")
    for key, value, words in (
        ("checkpoint", tmp_path / "a.png", "a.png is a picture, not a checkpoint"), ("checkpoint", tmp_path / "lora.safetensors", "is a LoRA, not a full Stable Diffusion 1.5"),
        ("lora.start", tmp_path / "gone", "gone' does not exist"), ("data.validation_folder", tmp_path / "held", "held' does not exist"),
        ("output", tmp_path / "file" / "below", "no folder can be made in .*file'; choose a folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as caught:
            refuse(settings({**small_run, key: str(value)}))
        assert str(caught.value).startswith(f"{key}: ") and "\n" not in str(caught.value)


def test_where_a_resumed_runs_file_to_start_from_is_gone_a_save_of_the_run_is_advised(small_run, tmp_path):
    with pytest.raises(ValueError, match="^lora.start: .* does not exist; name it where it lies now, or a copy of a save of this run under its name"):
        refuse(settings({**small_run, "lora.start": str(tmp_path / "gone.safetensors"), "resume": str(tmp_path)}))


def test_the_standalone_host_foresees_memory_from_the_models_own_size(small_run):
    def need(**change):
        return Standalone(settings({**small_run, **change})).forecast().need

    small, real = need(), need(checkpoint="not-there-yet.safetensors")
    assert small < 0.2e9 < real < 10e9 and need(**{"data.batch": 4}) > small
    assert need(checkpoint="not-there-yet.safetensors", **{"memory.checkpointing": "on", "data.resolution": 512}) < need(checkpoint="not-there-yet.safetensors", **{"data.resolution": 512, "memory.checkpointing": "off"})


# ---- DreamBooth ------------------------------------------------------------------------------------------------------


def dream(small_run, **own):
    return {**{k: v for k, v in small_run.items() if not k.startswith("lora.")}, "method": "dreambooth", "optim.lr": "2e-6", **own}


@pytest.mark.parametrize(("own", "gigabytes"), [
    ({"dreambooth.masters": "fp32"}, 859.5e6 * (4 + 4 + 8)), ({"dreambooth.masters": "bf16"}, 859.5e6 * (2 + 4)),
    ({"dreambooth.masters": "bf16", "dreambooth.text_encoder": True}, 982.6e6 * (2 + 4)), ({"dreambooth.masters": "fp32", "optim.name": "adamw8bit"}, 859.5e6 * (4 + 4 + 2)),
    ({"dreambooth.masters": "bf16", "prior.weight": 1.0, "prior.prompt": "a cat"}, 859.5e6 * (2 + 4 + 2)),
])  # fmt: skip
def test_a_graphics_card_needs_room_for_weights_gradients_and_averages(small_run, own, gigabytes):
    import torch

    from lib_tuner.hosts.plan import SIZES
    from lib_tuner.methods import METHODS

    cfg = settings(dream(small_run, **own))
    assert METHODS["dreambooth"](cfg).costs(SIZES, {}, torch.bfloat16, "cuda").device == pytest.approx(gigabytes, rel=1e-3)


def test_of_a_dreambooth_of_some_blocks_those_alone_need_room(small_run):
    import torch

    from lib_tuner.methods import METHODS

    cfg = settings(dream(small_run, **{"dreambooth.blocks": "M00", "dreambooth.masters": "bf16"}))
    shapes = {"input_blocks.1.0.in_layers.2.weight": (8, 8, 3, 3), "middle_block.0.in_layers.2.weight": (10, 10), "middle_block.0.in_layers.2.bias": (5,), "out.2.weight": (7,)}
    whole = {"unet": 10**6, "text": 10**6, "vae": 10**6}
    for prefix, more in (("model.diffusion_model.", {"first_stage_model.encoder.conv_in.weight": (9, 9)}), ("", {})):  # as in a checkpoint, as in the WebUI
        costs = METHODS["dreambooth"](cfg).costs(whole, {**{prefix + key: shape for key, shape in shapes.items()}, **more}, torch.bfloat16, "cuda")
        assert costs.device == 105 * (2 + 4) and costs.state == 105 * 6


def test_a_dreambooths_files_are_forecast_as_large_as_they_get(small_run, tmp_path):
    from contextlib import closing

    from lib_tuner.methods import METHODS
    from lib_tuner.train import train

    cfg = settings(dream(small_run, **{"steps": 1, "prior.drift": "off"}))
    forecast = Standalone(cfg).forecast()
    with closing(train(cfg, METHODS["dreambooth"](cfg), Standalone(cfg))) as events:
        list(events)
    file, state = next(tmp_path.rglob("thing.safetensors")), next(tmp_path.rglob("state-1.safetensors"))
    assert forecast.file == pytest.approx(file.stat().st_size, rel=0.1) and forecast.state == pytest.approx(state.stat().st_size, rel=0.1)


def test_large_saves_are_told_and_a_disk_that_has_no_room_is_warned_of(small_run):
    large = Forecast("cuda, bfloat16", 9e9, 12e9, file=2.1e9, state=10.3e9)
    values = dream(small_run, steps=1000, **{"save_every": 250, "keep_last": 3, **SAMPLED})
    assert plan(values, large).lines[-1] == "3 saves of 2.1 GB and 2 states of 10.3 GB to resume from will lie on the disk."
    endless = Forecast("cuda, bfloat16", 9e9, 12e9, file=1e18, state=1e18)
    assert [w.fix.values for w in plan(values, endless).warnings if "make room" in w.text] == [{"save_every": 0}]


def test_class_pictures_that_will_be_drawn_are_told(small_run, tmp_path):
    values = {**small_run, "data.class_folder": str(tmp_path / "class"), "prior.pictures": 7, "prior.prompt": "a thing"}
    assert "7 class pictures will be drawn first." in plan(values).lines
    (tmp_path / "class").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "class" / "mine.png")
    lines = plan(values).lines
    assert lines[0].endswith("; 1 class picture beside them.") and "6 class pictures will be drawn first." in lines
