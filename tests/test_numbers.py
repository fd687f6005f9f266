"""Numbers of saved steps: what they are by hand, that the base model is asked once, and what is measured again when something changes."""

from __future__ import annotations

import copy
import json
import os
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image
from conftest import write_random
from test_applied import embedding, everything, hypernetwork
from test_clip_numbers import picture, tiny
from tool_files import lora

from lib_tuner.compare.applied import Use, applied
from lib_tuner.compare.clip import Clip, similarities
from lib_tuner.compare.numbers import FILE, Asked, Saved, numbers, saves_of, spread, without
from lib_tuner.data.batches import validation
from lib_tuner.methods import settings
from lib_tuner.metrics import TIMESTEPS
from lib_tuner.sd.files import read_tensors, write_tensors
from lib_tuner.sd.loss import generator_for
from lib_tuner.sd.model import load_model
from lib_tuner.sd.text import TextEncoder


class Place:
    """A host with the small model, which counts how often it is asked for it and how many predictions are made."""

    def __init__(self, sd):
        self.sd, self.taken, self.predicted = sd, 0, 0

    @contextmanager
    def exclusive(self):
        self.taken += 1
        handle = self.sd.unet.register_forward_hook(lambda module, args, out: setattr(self, "predicted", self.predicted + len(args[0])))
        try:
            yield self.sd
        finally:
            handle.remove()


@pytest.fixture
def values(data_folder, tmp_path) -> dict:
    """Settings of a run with two held-out pictures."""
    held = tmp_path / "held"
    held.mkdir()
    for i in (4, 5):
        for ending in ("png", "txt"):
            (data_folder / f"{i}.{ending}").rename(held / f"{i}.{ending}")
    return {"name": "it", "trigger": "zork", "data.folder": str(data_folder), "data.validation_folder": str(held), "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8,
            "seed": 3, "steps": 10, "prior.prompt": "a red thing\na zork thing\na round one"}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def two_saves(folder) -> list[Saved]:
    return [Saved(5, (lora(folder / "it-000005.safetensors", seed=1),)), Saved(10, (lora(folder / "it.safetensors", "loha", seed=2),))]


@torch.no_grad()
def predictions(sd, x0, captions, stream) -> torch.Tensor:
    """(T, B, c, h, w) from the formulas, one prediction at a time."""
    found = []
    for t in TIMESTEPS:
        for i, caption in enumerate(captions):
            noise, a = torch.randn(x0[i].shape, generator=generator_for(3, i, f"{stream} {t}")), sd.schedule.alphas_cumprod[t]
            ctx = sd.text(captions)[i : i + 1]
            found.append((sd.unet((a.sqrt() * x0[i] + (1 - a).sqrt() * noise)[None], torch.tensor([t]), ctx)[0].double(), noise.double()))
    return found


def loss(sd, x0, captions) -> float:
    return sum((pred - noise).square().mean().item() for pred, noise in predictions(sd, x0, captions, "validation")) / (4 * len(captions))


def test_the_numbers_are_those_worked_out_by_hand(sd, values, folder):
    """In double precision: in fp32 a pass over many samples is a bit from those over one, and so is a gain of 4e-4."""
    sd = replace(sd, unet=copy.deepcopy(sd.unet).double(), text=TextEncoder(copy.deepcopy(sd.text.transformer).double()))
    cfg, saves, whole = settings(values), two_saves(folder), everything(sd)
    rows = list(numbers(folder, cfg, saves, Place(sd)))
    batch = validation(cfg.data, sd, "zork")
    x0, captions = torch.cat([b.latents for b in batch]), [c for b in batch for c in b.captions]
    assert captions == ["zork, a thing number 4, red, round", "zork, a thing number 5, red, round"]
    bare, foreign = [c.removeprefix("zork, ") for c in captions], ["a red thing", "a photo of a dog"]
    base = [pred for pred, _ in predictions(sd, x0[:1].expand(2, -1, -1, -1), foreign, "drift")]
    assert [row.step for row in rows] == [0, 5, 10] and all(row.held_out for row in rows)
    for row, files in zip(rows, ((), *(save.files for save in saves))):
        with applied(sd, [Use(file) for file in files]):
            with_, without_ = loss(sd, x0, captions), loss(sd, x0, bare)
            now = [pred for pred, _ in predictions(sd, x0[:1].expand(2, -1, -1, -1), foreign, "drift")]
        drift = sum((a - f).square().sum() for a, f in zip(now, base)) / sum(f.square().sum() for f in base)
        assert row.loss == pytest.approx(with_, rel=1e-5) and row.gain == pytest.approx(with_ - without_, abs=1e-7) and row.drift == pytest.approx(drift.item(), rel=1e-4)
        assert row.files == tuple(file.name for file in files)
    assert rows[0].drift == 0 < rows[1].drift and rows[1].gain != 0
    assert all(map(torch.equal, everything(sd), whole))


def test_the_base_model_is_asked_once_and_each_save_a_few_times(sd, values, folder):
    host = Place(sd)
    list(numbers(folder, settings(values), two_saves(folder), host))
    pictures, prompts = 2, 2
    assert host.taken == 1 and host.predicted == 4 * (3 * 2 * pictures + 3 * prompts)


def test_what_was_measured_is_kept_and_only_what_changed_is_measured_again(sd, values, folder):
    cfg, saves, host = settings(values), two_saves(folder), Place(sd)
    first = list(numbers(folder, cfg, saves[:1], host))
    rows = list(numbers(folder, cfg, saves, host))
    assert rows[:2] == first and host.taken == 2
    assert list(numbers(folder, cfg, saves, host)) == rows and host.taken == 2  # the model is not even loaded
    os.utime(saves[0].files[0], (1, 1))
    assert list(numbers(folder, cfg, saves, host)) == rows and host.taken == 3
    host.predicted = 0
    lora(saves[0].files[0], seed=7)
    again = list(numbers(folder, cfg, saves, host))
    assert again[1] != rows[1] and again[2] == rows[2] and host.predicted == 4 * (2 * 2 + 2 * 2)  # one save, and the base's prompts


def test_other_questions_are_measured_anew(sd, values, folder, data_folder, tmp_path):
    saves, host = two_saves(folder)[:1], Place(sd)
    kept = list(numbers(folder, settings(values), saves, host))
    written = (folder / FILE).read_bytes()
    for change in ({"seed": 4}, {"trigger": "zwx"}, {"data.validation_folder": ""}, {"prior.prompt": ""}, {"data.resolution": 72}, {"clip_skip": 2}):
        (folder / FILE).write_bytes(written)
        host.predicted = 0
        assert list(numbers(folder, settings({**values, **change}), saves, host)) and host.predicted, change
    (tmp_path / "held" / "4.txt").write_text("another caption")
    assert list(numbers(folder, settings(values), saves, host)) != kept
    (folder / FILE).write_text("{broken")
    host.predicted = 0
    assert list(numbers(folder, settings(values), saves, host)) and host.predicted
    host.predicted = 0
    assert list(numbers(folder, settings({**values, "save_every": 7, "name": "other", "optim.lr": "1e-2"}), saves, host)) and not host.predicted


def test_what_is_done_when_it_is_stopped_is_kept(sd, values, folder):
    host, whole = Place(sd), everything(sd)
    rows = numbers(folder, settings(values), two_saves(folder), host)
    done = [next(rows), next(rows)]
    rows.close()
    assert sorted(json.loads((folder / FILE).read_text())["rows"]) == ["0", "5"] and all(map(torch.equal, everything(sd), whole))
    assert list(numbers(folder, settings(values), two_saves(folder), host))[0] == done[0] and [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_file_that_does_not_fit_is_one_sentence_and_what_came_before_is_kept(sd, values, folder):
    saves = two_saves(folder)
    embedding(folder / "wide.pt", width=64)
    rows = numbers(folder, settings(values), [saves[0], Saved(7, (folder / "wide.pt",))], Place(sd))
    with pytest.raises(ValueError, match="width"):
        list(rows)
    assert sorted(json.loads((folder / FILE).read_text())["rows"]) == ["0", "5"]


def test_a_file_of_another_model_is_one_sentence(sd, values, folder):
    save = two_saves(folder)[0]
    for trained_on, said in (("f" * 64, "it-000005.safetensors was trained on another model .ffffffffff, this one is 0123456789.; load that one first"), (sd.model_hash, ""), ("None", "")):
        tensors, _ = read_tensors(save.files[0])
        write_tensors(save.files[0], tensors, {"ss_new_sd_model_hash": trained_on})
        with pytest.raises(ValueError, match=said) if said else nullcontext():
            assert len(list(numbers(folder, settings(values), [save], Place(sd)))) == 2


def test_numbers_beside_another_model_are_not_taken_for_the_same(sd, values, folder, tmp_path):
    """The host's own model, which no setting names: first the wrong one, then the one that the saves were trained on."""
    cfg, (first, second) = settings(values), two_saves(folder)
    tensors = read_tensors(second.files[0])[0]
    write_tensors(second.files[0], tensors, {"ss_new_sd_model_hash": "f" * 64})
    right = replace(sd, model_hash="f" * 64, unet=load_model(write_random(tmp_path / "right.safetensors", 8), torch.float32, "cpu").unet)
    with pytest.raises(ValueError, match="another model"):
        list(numbers(folder, cfg, [first, second], Place(sd)))
    expected = list(numbers(tmp_path / "run", cfg, [first, second], Place(right)))
    assert [row.step for row in expected] == [0, 5, 10]
    on_both = [list(numbers(folder, cfg, [first], Place(model)))[0].loss for model in (sd, right)]
    assert on_both[0] == on_both[1] == expected[0].loss  # nothing was missing, so no model was asked for
    extra = Saved(7, (lora(folder / "it-000007.safetensors", seed=4),))
    other = list(numbers(folder, cfg, [extra], Place(sd)))
    (tmp_path / "fresh").mkdir()
    assert other[0].loss != expected[0].loss
    assert other == list(numbers(tmp_path / "fresh", cfg, [extra], Place(sd)))


def test_without_held_out_pictures_some_of_the_training_ones_are_taken_and_that_is_said(sd, values, folder):
    rows = list(numbers(folder, settings({**values, "data.validation_folder": ""}), two_saves(folder)[:1], Place(sd)))
    assert not any(row.held_out for row in rows)


def test_a_run_without_a_trigger_has_no_gain(sd, values, folder):
    host = Place(sd)
    rows = list(numbers(folder, settings({**values, "trigger": ""}), two_saves(folder)[:1], host))
    assert [row.gain for row in rows] == [None, None] and host.predicted == 4 * (2 * 2 + 2 * 2)


def test_an_embedding_is_its_word_and_leaves_everything_else_as_it_is(sd, values, folder):
    cfg = settings({**values, "method": "textual_inversion", "trigger": "", "textual_inversion.init": "toy", "prior.prompt": ""})
    asked = Asked(cfg)
    assert asked.trigger == "it" and asked.without(asked.captions[0]) == "toy, a thing number 4, red, round"
    assert [use.word for use in asked.uses(Saved(5, (folder / "it-000005.pt", folder / "renamed.pt")))] == ["it", "it"]
    base, row = numbers(folder, cfg, [Saved(5, (embedding(folder / "it-000005.pt"),))], Place(sd))
    assert row.loss != base.loss and row.drift == base.drift == 0
    unnamed = base.loss - base.gain
    assert row.loss - row.gain == pytest.approx(unnamed)  # without the word nothing has changed


def test_a_hypernetwork_drifts(sd, values, folder):
    cfg = settings({**values, "method": "hypernetwork"})
    base, row = numbers(folder, cfg, [Saved(5, (hypernetwork(folder / "it-000005.pt"),))], Place(sd))
    assert row.drift > 0 and row.loss != base.loss and row.gain is not None


def test_a_checkpoint_is_asked_as_the_model_that_it_is(sd, values, folder, data_folder):
    """Whole, though a LoRA of its difference lies beside it; the base model is there again for the next save."""
    cfg = settings({**values, "method": "dreambooth", "dreambooth.save": "both"})
    first, beside, final = write_random(folder / "it-000005.safetensors", 5), lora(folder / "a-lora-000005.safetensors"), write_random(folder / "it.safetensors", 6)
    saves = saves_of([first, beside, final], {first: 5, beside: 5, final: 10}, "it", whole=True)
    assert [(save.step, save.files) for save in saves] == [(5, (first,)), (10, (final,))]
    whole = everything(sd)
    rows = list(numbers(folder, cfg, saves, Place(sd)))
    batch = validation(cfg.data, sd, "zork")
    x0, captions = torch.cat([b.latents for b in batch]), [c for b in batch for c in b.captions]
    base = [pred for pred, _ in predictions(sd, x0[:1].expand(2, -1, -1, -1), ["a red thing", "a photo of a dog"], "drift")]
    for row, file in zip(rows[1:], (first, final)):
        model = load_model(file)
        with_, without_ = loss(model, x0, captions), loss(model, x0, [c.removeprefix("zork, ") for c in captions])
        now = [pred for pred, _ in predictions(model, x0[:1].expand(2, -1, -1, -1), ["a red thing", "a photo of a dog"], "drift")]
        drift = sum((a - f).square().sum() for a, f in zip(now, base)) / sum(f.square().sum() for f in base)
        assert row.loss == pytest.approx(with_, rel=1e-5) and row.gain == pytest.approx(with_ - without_, abs=1e-7) and row.drift == pytest.approx(drift.item(), rel=1e-4)
        assert row.files == (file.name,)
    assert rows[0].drift == 0 < rows[1].drift != rows[2].drift > 0 and all(map(torch.equal, everything(sd), whole))
    alone = saves_of([beside], {beside: 5}, "it", whole=True)  # dreambooth.save = "lora"
    assert list(numbers(folder, cfg, alone, Place(sd)))[1].files == (beside.name,)


@pytest.mark.parametrize("method", ["controlnet", "t2i_adapter"])
def test_what_is_not_measured_yet_says_so(values, folder, method):
    with pytest.raises(ValueError, match="are not measured yet: only LoRAs of any kind, embeddings, hypernetworks and DreamBooth's checkpoints are"):
        next(numbers(folder, settings({**values, "method": method, "trigger": "x"}), [], None))


def test_a_clip_adds_columns_where_the_run_drew_samples_and_is_asked_once(sd, values, folder, tmp_path, monkeypatch):
    cfg, saves, host = settings({**values, "sample.prompts": "[name] on a wall\na dog"}), two_saves(folder), Place(sd)
    plain = list(numbers(folder, cfg, saves, host))
    assert all(row.more == {} for row in plain)
    (folder / "samples").mkdir()
    for i in range(2):
        picture(i).save(folder / "samples" / f"000005-{i}.png")
    asked, clip = Asked(cfg), tiny(tmp_path / "clip")[1]
    assert asked.sampled == ["zork on a wall", "a dog"] and len(asked.trained_on) == 4
    rows = list(numbers(folder, cfg, saves, host, clip))
    model = Clip.load(clip)
    expected = similarities(model, model.pictures([picture(0), picture(1)]), asked.sampled, model.pictures(Image.open(item.path) for item in asked.trained_on))
    assert [row.more for row in rows] == [{}, pytest.approx(expected), {}] and set(expected) == {"image", "text", "nearest", "diversity"}
    assert [replace(row, more={}) for row in rows] == plain and host.taken == 1  # the model itself was not needed again
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "load", None)
        assert list(numbers(folder, cfg, saves, host, clip)) == rows
    assert list(numbers(folder, cfg, saves, host)) == plain
    picture(9).save(folder / "samples" / "000005-1.png")
    assert list(numbers(folder, cfg, saves, host, clip))[1].more != rows[1].more


# ---- what is asked


def test_longer_runs_pay_for_more_pictures(values, data_folder):
    for i in range(6, 20):
        (data_folder / f"{i}.png").write_bytes((data_folder / "0.png").read_bytes() + bytes([i]))
    plain = {**values, "data.validation_folder": ""}
    counts = [len(Asked(settings({**plain, "steps": steps, "data.batch": 4})).items) for steps in (10, 800, 100_000)]
    assert counts == [2, 3, 8]


def test_pictures_are_taken_from_all_over():
    assert spread(list("abcdefgh"), 3) == ["a", "c", "f"] and spread([1, 2], 5) == [1, 2]


def test_captions_of_class_pictures_stand_in_for_class_prompts(values, data_folder, tmp_path):
    (tmp_path / "class").mkdir()
    for i in range(3):
        (tmp_path / "class" / f"{i}.png").write_bytes((data_folder / f"{i}.png").read_bytes())
        (tmp_path / "class" / f"{i}.txt").write_text(f"class {i}")
    long = {**values, "data.class_folder": str(tmp_path / "class"), "data.validation_folder": "", "steps": 100_000}
    assert Asked(settings({**long, "prior.prompt": ""})).prompts == ["class 0", "class 1", "class 2", "a photo of a dog"]
    assert Asked(settings(long)).prompts == ["a red thing", "a round one", "a photo of a dog", "a house beside a lake"]


@pytest.mark.parametrize(("caption", "words", "expected"), [
    ("zork, red, round", {"zork": ""}, "red, round"), ("a Zork on a wall", {"zork": ""}, "a on a wall"), ("a zork on a wall", {"zork": "toy"}, "a toy on a wall"),
    ("a zorkling", {"zork": ""}, "a zorkling"), ("red, zwx cat, round", {"zwx cat": ""}, "red, round"), ("a one and two", {"one": "x", "two": ""}, "a x and"), ("red", {"": ""}, "red"),
    ("a b\\c", {"b\\c": "\\1"}, "a \\1"), ("zork", {"zork": ""}, ""),
])  # fmt: skip
def test_a_caption_without_the_trigger(caption, words, expected):
    assert without(caption, words) == expected


def test_saves_are_in_order_and_one_file_of_each_stem_and_kind(folder):
    files = {embedding(folder / "it-000005.pt"): 5, embedding(folder / "it.pt"): 10, embedding(folder / "other-000005.pt"): 5, lora(folder / "it-000005.safetensors"): 5, folder / "it.json": 5}
    (folder / "it.json").write_text("{}")
    (folder / "it.yaml").write_text("")
    found = saves_of([*files, folder / "it.yaml"], {**files, folder / "it.yaml": 10})
    assert [(save.step, [file.name for file in save.files]) for save in found] == [(5, ["it-000005.pt", "it-000005.safetensors", "other-000005.pt"]), (10, ["it.pt"])]
