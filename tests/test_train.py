"""The loop: what it reports and leaves behind, and that a resumed run is the same run."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import until
from safetensors import safe_open
from safetensors.torch import load_file

from lib_tuner.config import build, read_toml, to_toml
from lib_tuner.events import Finished, Preparing, Sampled, Saved, Started, Stepped, Validated, Warned
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS
from lib_tuner.outlook import refuse
from lib_tuner.recorders import csv
from lib_tuner.settings import TrainConfig
from lib_tuner.step import Step
from lib_tuner.train import Orders, train

LORA = {"method": "lora", "lora.rank": 2, "lora.alpha": 2, "lora.dropout": 0.1, "optim.lr": "1e-2", "optim.name": "adamw"}
WORD = {"method": "textual_inversion", "textual_inversion.vectors": 2, "optim.lr": "1e-2", "data.template": "subject_filewords"}


@pytest.fixture
def values(checkpoint_file, data_folder, tmp_path):
    return {
        "name": "thing", "checkpoint": str(checkpoint_file), "output": str(tmp_path / "out"), "data.folder": str(data_folder), "steps": 6, "save_every": 3,
        "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8, "data.batch": 2, "data.shuffle_tags": True, "data.latent": "random", **LORA,
    }


def settings(values: dict) -> TrainConfig:
    return build(TrainConfig, values, METHODS[values["method"]].Config)


def run(values: dict, stop_after: int | None = None, host: Standalone | None = None) -> list:
    cfg, events, stopping = settings(values), [], []
    host = host or Standalone(cfg)
    with closing(train(cfg, METHODS[cfg.method](cfg), host, stop=lambda: bool(stopping))) as running:
        for event in running:
            events.append(event)
            if isinstance(event, Stepped) and event.step == stop_after:
                stopping.append(True)
    return events


def of(kind: type, events: list) -> list:
    return [event for event in events if isinstance(event, kind)]


def tensors(events: list) -> dict[str, torch.Tensor]:
    return {path.name + key: tensor for path in of(Finished, events)[0].files if path.suffix == ".safetensors" for key, tensor in load_file(path).items()}


def losses(events: list) -> list[float]:
    return [float(event.loss) for event in of(Stepped, events)]


def test_a_run_reports_its_steps_and_leaves_settings_saves_and_samples(values):
    values = {**values, "sample.prompts": "a [name]\na dog", "sample.every": 3, "sample.steps": 2, "trigger": "thing"}
    events = run(values)
    started, finished = of(Started, events)[0], of(Finished, events)[0]
    assert (started.start, started.steps) == (0, 6) and [e.step for e in of(Stepped, events)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in of(Sampled, events)] == [0, 3, 6] and all(len(e.paths) == 2 and e.paths[0].is_file() for e in of(Sampled, events))
    assert [(e.step, e.paths[0].name) for e in of(Saved, events)] == [(3, "thing-000003.safetensors"), (6, "thing.safetensors")]
    assert finished.reason == "done" and finished.files[0].is_file()
    assert "of" in of(Saved, events)[0].report
    again = build(TrainConfig, read_toml(started.folder / "settings.toml"), METHODS["lora"].Config)
    assert again == settings(values)


@pytest.mark.parametrize("method", [LORA, WORD], ids=["lora", "textual_inversion"])
def test_the_saved_file_says_what_it_was_trained_on(values, method):
    """Read from the file as the WebUI's card reads it: what is JSON starts with a brace."""
    values = {k: v for k, v in values.items() if not k.startswith("lora.")} | method | {"loss.prediction": "v", "data.repeats": 2}
    with safe_open(of(Finished, run(values))[0].files[0], "pt") as file:
        card = {key: json.loads(value) if value.startswith("{") else value for key, value in file.metadata().items()}
    tags = card["ss_tag_frequency"]["pictures"]
    assert tags["red"] == tags["round"] == 6 and tags["a thing number 3"] == 1
    assert card["ss_bucket_info"] == {"buckets": {"0": {"resolution": [64, 64], "count": 12}}}
    assert card["ss_dataset_dirs"] == {"pictures": {"n_repeats": 2, "img_count": 6}}
    assert (card["ss_num_train_images"], card["ss_num_batches_per_epoch"], card["ss_num_epochs"]) == ("12", "6", "1")
    assert card["modelspec.prediction_type"] == "v"


def test_a_stop_while_pictures_are_encoded_ends_the_run_there(values, tmp_path):
    cfg, seen = settings(values), []
    with closing(train(cfg, METHODS["lora"](cfg), Standalone(cfg), stop=lambda: len(seen) >= 4)) as running:
        seen.extend(running)
    assert [(event.text, event.total) for event in seen[:-1]] == [
        ("Loading the model", 0), ("Reading pictures and captions", 0), ("Encoding 0.png", 6), ("Encoding 1.png", 6)
    ]  # fmt: skip
    assert (seen[-1].step, seen[-1].reason) == (0, "stopped") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_save_that_fails_leaves_the_state_to_resume_from(values, monkeypatch, ema):
    """With an average too: what is in place while it is exported is not what the run goes on with."""
    method, values = METHODS["lora"], {**values, "optim.ema": ema}
    whole = run({**values, "output": values["output"] + "-whole"})
    export = method.export
    monkeypatch.setattr(method, "export", lambda *args: (_ for _ in ()).throw(OSError("x.safetensors needs 3.0 MB")))
    with pytest.raises(OSError, match="needs 3.0 MB"):
        run(values)
    monkeypatch.setattr(method, "export", export)
    folder = Path(values["output"]) / "thing-001"
    second = run({**values, "resume": str(folder)})
    assert of(Started, second)[0].start == 3
    assert {k: v.tolist() for k, v in tensors(second).items()} == {k: v.tolist() for k, v in tensors(whole).items()}


class Failing(Standalone):
    """Its second drawing fails."""

    error, drawn = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 0

    def generate(self, requests):
        self.drawn += 1
        if self.drawn == 2:
            raise self.error
        return super().generate(requests)


def test_samples_for_which_memory_is_short_are_left_out_and_the_run_goes_on(values):
    values = {**values, "sample.prompts": "a dog", "sample.every": 2, "sample.steps": 1}
    events = run(values, host=Failing(settings(values)))
    assert [event.step for event in of(Sampled, events)] == [0, 4, 6] and of(Finished, events)[0].reason == "done"
    assert [event.text for event in of(Warned, events)] == ["The samples of step 2 were left out, because there was not enough memory for them: draw smaller or fewer ones."]


def test_whatever_fails_beside_the_updates_leaves_the_state_to_resume_from(values):
    values = {**values, "sample.prompts": "a dog", "sample.every": 2, "sample.steps": 1, "save_every": 0}
    host = Failing(settings(values))
    host.error = RuntimeError("a fault of a package")
    with pytest.raises(RuntimeError, match="a fault of a package"):
        run(values, host=host)
    assert of(Started, run({**values, "resume": str(Path(values["output"]) / "thing-001")}))[0].start == 2


def test_orders_are_carried_out_once_after_the_step_that_is_done(values):
    given = iter([Orders(), Orders(save=True), Orders(sample=True, prompts="a [name]\na dog"), Orders(), Orders(), Orders(sample=True)])
    cfg = settings({**values, "save_every": 0, "trigger": "thing", "sample.steps": 1, "sample.prompts": "another"})
    events = list(train(cfg, METHODS["lora"](cfg), Standalone(cfg), orders=lambda: next(given)))
    assert [(e.step, len(e.paths)) for e in of(Sampled, events)] == [(3, 2), (6, 2)]  # the new prompts stay; what is asked at the last step is done as well
    assert [e.step for e in of(Saved, events)] == [2, 6] and not any(of(Warned, events))
    assert next(Path(values["output"]).glob("*/state/state-2.safetensors"))


def test_samples_without_a_prompt_are_refused_and_the_run_goes_on(values):
    cfg = settings(values)
    events = list(train(cfg, METHODS["lora"](cfg), Standalone(cfg), orders=lambda: Orders(sample=True)))
    assert not of(Sampled, events) and "no sample prompt" in of(Warned, events)[0].text and of(Finished, events)[0].reason == "done"


def test_orders_do_not_change_what_is_learned(values):
    cfg = settings({**values, "output": values["output"] + "-ordered", "sample.steps": 1, "sample.prompts": "a"})
    ordered = list(train(cfg, METHODS["lora"](cfg), Standalone(cfg), orders=lambda: Orders(save=True, sample=True)))
    plain = run(values)
    assert losses(ordered) == losses(plain) and all(a.equal(b) for a, b in zip(tensors(ordered).values(), tensors(plain).values()))


def test_the_settings_of_a_resumed_run_start_a_new_one(values):
    folder = of(Started, run(values, stop_after=3))[0].folder
    run({**values, "resume": str(folder)})
    again = of(Started, run(read_toml(folder / "settings.toml")))[0]
    assert again.start == 0 and again.folder != folder


OVERRULED = (
    ({"optim.name": "lion"}, "optim.name was 'adamw' and is now 'lion'"), ({"optim.weight_decay": 0.5}, "optim.weight_decay was 0.01 and is now 0.5"),
    ({"lora.rank": 4}, "lora.rank was 2 and is now 4"), ({"lora.up_lr_ratio": 16}, "lora.up_lr_ratio was 1.0 and is now 16.0"),
    ({"data.repeats": 7}, "data.repeats was 1 and is now 7"), ({"data.folder": "elsewhere"}, "data.folder was .* and is now 'elsewhere'"),
    ({"data.masks": True}, "data.masks was False and is now True"),
)  # fmt: skip


def test_a_resumed_run_refuses_settings_that_its_state_would_overrule(values):
    folder = of(Started, run(values, stop_after=3))[0].folder
    for change, sentence in OVERRULED:
        with pytest.raises(ValueError, match=sentence):
            run({**values, **change, "resume": str(folder)})
    (folder / "settings.toml").unlink()  # then the state itself says what does not fit
    with pytest.raises(ValueError, match="has other layers"):
        run({**values, "lora.rank": 4, "resume": str(folder)})
    values["data.folder"] += "/../pictures/."  # the same one
    assert of(Finished, run({**values, "optim.lr": "5e-3", "steps": 8, "lora.save_dtype": "fp32", "resume": str(folder)}))[0].step == 8


@pytest.mark.parametrize("method", [LORA, WORD], ids=["lora", "textual_inversion"])
def test_a_run_goes_on_where_the_file_that_it_started_from_was_moved(values, tmp_path, method):
    plain = {key: value for key, value in values.items() if key not in LORA} | method
    plain["optim.lr"] = "1e-2"
    saved = of(Finished, run({**plain, "steps": 2, "output": str(tmp_path / "first")}))[0].files[0]
    key, folder = f"{method['method']}.start", of(Started, run({**plain, f"{method['method']}.start": str(saved)}, stop_after=3))[0].folder
    (tmp_path / "elsewhere").mkdir()
    moved = saved.rename(tmp_path / "elsewhere" / saved.name)
    (other := moved.with_name("other.safetensors")).write_bytes(moved.read_bytes())
    with pytest.raises(ValueError, match=f"{key} was .* and is now"):
        run({**plain, key: str(other), "resume": str(folder)})
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    save = shutil.copy(next(copy.glob("thing*.safetensors")), tmp_path / saved.name)  # a save of the run in its place has the same sizes
    ends = [of(Finished, run({**plain, key: str(file), "resume": str(there)}))[0] for file, there in ((moved, folder), (save, copy))]
    first, second = (load_file(end.files[0]) for end in ends)
    assert [end.step for end in ends] == [6, 6] and first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_goes_on_where_the_files_that_its_words_started_from_were_moved(values, tmp_path):
    plain = {key: value for key, value in values.items() if key not in LORA} | WORD
    saved = of(Finished, run({**plain, "steps": 2, "output": str(tmp_path / "first")}))[0].files[0]

    def words(file: Path | str) -> dict:
        return {**plain, "textual_inversion.embeddings": f"thing | 2 | * | {file}; other | 1"}

    with pytest.raises(ValueError, match="^textual_inversion.embeddings: .*gone.pt' does not exist; name the file to start from"):
        refuse(settings(words(tmp_path / "gone.pt")))
    folder = of(Started, run(words(saved), stop_after=3))[0].folder
    (tmp_path / "elsewhere").mkdir()
    moved = saved.rename(tmp_path / "elsewhere" / saved.name)
    (other := moved.with_name("other.safetensors")).write_bytes(moved.read_bytes())
    with pytest.raises(ValueError, match="^textual_inversion.embeddings: .* does not exist; name it where it lies now, or a copy of a save"):
        refuse(settings({**words(saved), "resume": str(folder)}))
    with pytest.raises(ValueError, match="textual_inversion.embeddings was .* and is now"):
        run({**words(other), "resume": str(folder)})
    assert of(Finished, run({**words(moved), "resume": str(folder)}))[0].step == 6
    (folder / "settings.toml").write_text(to_toml(settings(words("C:\\models\\thing.safetensors"))), encoding="utf-8")  # it began on another system
    assert of(Finished, run({**words(moved), "steps": 8, "resume": str(folder)}))[0].step == 8


def test_many_problems_of_pictures_are_cut_short(values):
    for i in range(12):
        (Path(values["data.folder"]) / f"broken{i}.png").write_bytes(b"no picture")
    told = [event.text for event in of(Warned, run(values, stop_after=1))]
    assert len(told) == 4 and told[0].startswith("broken0.png ") and told[-1] == "9 more files cannot be read or used."


def test_every_setting_of_the_samples_reaches_the_host(values):
    own = {"prompts": "a [name]\n\na dog", "negative": "blur", "width": 32, "height": 48, "steps": 3, "cfg": 2.5, "sampler": "euler_a", "seed": 9, "every": 6}
    values = {**values, "trigger": "thing", **{f"sample.{key}": value for key, value in own.items()}}
    host, asked = Standalone(settings(values)), []
    draw, host.generate = host.generate, lambda requests: (asked.append(requests), draw(requests))[1]
    pictures = of(Sampled, run(values, host=host))[0].images
    shared = {"negative": "blur", "width": 32, "height": 48, "steps": 3, "cfg": 2.5, "sampler": "euler_a"}
    assert asked[0] == [GenerateRequest("a thing", seed=9, **shared), GenerateRequest("a dog", seed=10, **shared)]
    assert [picture.size for picture in pictures] == [(32, 48)] * 2
    others = [draw([replace(asked[0][0], **change)])[0] for change in ({}, {"sampler": "ddim"}, {"negative": ""}, {"cfg": 5.0}, {"steps": 2}, {"seed": 10})]
    assert len({picture.tobytes() for picture in others}) == 6


def test_validation_is_at_step_0_and_where_it_is_due(values, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    data = Path(values["data.folder"])
    for i in (0, 1):
        for end in (".png", ".txt"):
            (data / f"{i}{end}").rename(held / f"{i}{end}")
    events = run({**values, "validate_every": 3, "data.validation_folder": str(held)})
    assert [e.step for e in of(Validated, events)] == [0, 3, 6] and all(math.isfinite(e.loss) for e in of(Validated, events))


@pytest.mark.parametrize("method", [LORA, WORD], ids=["lora", "textual_inversion"])
@pytest.mark.parametrize("more", [{}, {"optim.ema": 0.9, "optim.accumulate": 2, "optim.schedule": "cosine"}], ids=["plain", "ema and accumulation"])
def test_a_stopped_and_resumed_run_is_the_unbroken_run_bit_for_bit(values, method, more):
    values = {k: v for k, v in values.items() if not k.startswith("lora.")} | method | more
    whole = run({**values, "output": values["output"] + "-whole"})
    first = run(values, stop_after=4)
    folder = of(Started, first)[0].folder
    assert of(Finished, first)[0].reason == "stopped"
    second = run({**values, "resume": str(folder)})
    assert of(Started, second)[0].start == 4
    assert losses(first) + losses(second) == losses(whole)
    a, b = tensors(whole), tensors(second)
    assert [v.tolist() for v in a.values()] == [v.tolist() for v in b.values()] and len(a) > 0


def test_the_metadata_of_a_resumed_run_is_the_same_but_for_times(values):
    from safetensors import safe_open

    def metadata(events):
        with safe_open(of(Finished, events)[0].files[0], "pt") as file:
            return {k: v for k, v in file.metadata().items() if not any(word in k for word in ("_at", "date", "hash", "session"))}

    whole = run(values)
    first = run(values, stop_after=2)
    second = run({**values, "resume": str(of(Started, first)[0].folder)})
    assert metadata(whole) == metadata(second)


def test_the_csv_of_a_resumed_run_is_that_of_an_unbroken_one(values):
    def record(values, stop_after=None):
        cfg, stopping = settings(values), []
        with closing(train(cfg, METHODS["lora"](cfg), Standalone(cfg), lambda: bool(stopping))) as running:
            path = Path(cfg.output) / f"{cfg.name}.csv"
            for event in csv(running, path):
                if isinstance(event, Started):
                    folder = event.folder
                if isinstance(event, Stepped) and event.step == stop_after:
                    stopping.append(True)
        return folder, [line.split(",")[:4] for line in path.read_text().splitlines()]

    _, whole = record({**values, "output": values["output"] + "-whole"})
    folder, _ = record(values, stop_after=2)
    _, resumed = record({**values, "resume": str(folder)})
    assert resumed == whole and len(whole) == 7


def test_the_host_is_as_before_after_success_error_and_cancelling(values):
    host = Standalone(settings(values))
    model = host.model
    before = {k: v.clone() for part in (model.unet, model.text.transformer) for k, v in part.state_dict().items()}

    def same():
        now = {k: v for part in (model.unet, model.text.transformer) for k, v in part.state_dict().items()}
        hooks = sum(len(m._forward_hooks) for m in model.unet.modules())
        return now.keys() == before.keys() and all(torch.equal(before[k], now[k]) for k in before) and hooks == 0 and not model.unet.checkpointing

    run(values, host=host)
    assert same()
    cfg = settings({**values, "memory.checkpointing": "on"})
    events = train(cfg, METHODS["lora"](cfg), host)
    for event in events:
        if isinstance(event, Stepped):
            break
    events.close()
    assert same()
    with pytest.raises(ValueError):
        run({**values, "data.folder": "nowhere"}, host=host)
    assert same()


@pytest.mark.parametrize("average", [{}, {"optim.ema": 0.9}, {"optim.name": "adamw_schedulefree"}], ids=["plain", "ema", "schedule-free"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_weights(values, average):
    values |= {"optim.clip": 0.0, "save_every": 0, **average}
    events = run({**values, "optim.lr": "0.01:3, 1e30"})
    finished, good = of(Finished, events)[0], run({**values, "optim.lr": "0.01", "steps": 3})
    assert (finished.reason, finished.step) == ("nan", 3) and any("lower the learning rate" in w.text for w in of(Warned, events))
    assert all(torch.equal(a, b) for a, b in zip(tensors(events).values(), tensors(good).values()))


def test_numbers_that_are_none_in_the_first_update_after_a_resume_leave_the_files_as_they_are(values, monkeypatch):
    """With an average: the weights that go on are not those that were saved."""
    values = {**values, "optim.ema": 0.9, "save_every": 0}
    first = run(values, stop_after=3)
    folder = of(Started, first)[0].folder
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    monkeypatch.setattr(Step, "loss", lambda self, batch, loss=Step.loss: loss(self, batch) * float("nan"))
    events = run({**values, "resume": str(folder)})
    assert (of(Finished, events)[0].reason, of(Finished, events)[0].step, of(Finished, events)[0].files) == ("nan", 3, [])
    assert before == {path: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_numbers_that_are_none_in_the_last_updates_are_seen_before_the_end_and_before_a_save(values, monkeypatch):
    """On a GPU nobody looks at each."""
    monkeypatch.setattr(Step, "__post_init__", lambda self, made=Step.__post_init__: (setattr(self, "look_every", 10), made(self))[1])
    for bad in (4, 5):
        losses = iter(range(100))
        monkeypatch.setattr(Step, "loss", lambda self, batch, bad=bad, count=losses, loss=Step.loss: loss(self, batch) * (float("nan") if next(count) == bad else 1))
        events = run({**values, "save_every": 5})
        monkeypatch.undo()
        monkeypatch.setattr(Step, "__post_init__", lambda self, made=Step.__post_init__: (setattr(self, "look_every", 10), made(self))[1])
        assert (of(Finished, events)[0].reason, of(Finished, events)[0].step) == ("nan", 0) and [event.step for event in of(Saved, events)] == [5] * (bad == 5)


def test_a_state_that_cannot_be_read_is_said_when_an_older_one_is_taken(values):
    folder = of(Started, run({**values, "save_every": 2}, stop_after=4))[0].folder
    newest = folder / "state" / "state-4.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    events = run({**values, "resume": str(folder)})
    assert of(Started, events)[0].start == 2 and [str(newest) in event.text for event in of(Warned, events)] == [True]


def test_another_learning_rate_after_a_resume_leaves_the_text_encoders_as_the_settings_say(values, monkeypatch):
    values = {**values, "lora.text_encoder": True, "optim.text_lr": 1e-3}
    folder = of(Started, run(values, stop_after=3))[0].folder
    rates = []
    monkeypatch.setattr(Step, "_move", lambda self, number, move=Step._move: (rates.append([group["lr"] for group in self.state.optimizer.param_groups]), move(self, number))[1])
    run({**values, "optim.lr": "1e-3", "resume": str(folder)})
    assert rates[0] == pytest.approx([1e-3] * len(rates[0]))


def test_keep_last_prunes_older_saves(values):
    events = run({**values, "save_every": 1, "keep_last": 2})
    folder = of(Started, events)[0].folder
    assert sorted(p.name for p in folder.glob("*.safetensors")) == ["thing-000005.safetensors", "thing.safetensors"]


def test_keep_last_keeps_the_last_save_however_the_folder_is_spelled(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = of(Started, run({**values, "output": "here", "save_every": 2, "keep_last": 1}))[0].folder
    assert not folder.is_absolute()
    run({**values, "output": "here", "save_every": 2, "keep_last": 1, "steps": 12, "resume": str(folder.resolve())})
    assert sorted(p.name for p in folder.glob("*.safetensors")) == ["thing.safetensors"]


def test_another_model_is_refused_on_resume(values, tmp_path):
    from lib_tuner.sd.files import read_checkpoint, save_checkpoint

    first = run(values, stop_after=1)
    file = read_checkpoint(values["checkpoint"])
    other = save_checkpoint(tmp_path / "other.safetensors", file.unet, file.vae, file.text, {**file.metadata, "note": "another"})
    with pytest.raises(ValueError, match="trained another model"):
        run({**values, "resume": str(of(Started, first)[0].folder), "checkpoint": str(other)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"checkpoint": "nowhere.safetensors"}, "does not exist"),
        ({"data.folder": ""}, "data.folder"),
        ({"resume": "nowhere"}, "holds no saved state"),
        ({"optim.lr": "fast"}, "optim.lr"),
        ({"memory.device": "abacus"}, "no device"),
        ({"memory.device": "meta"}, "no device to train on"),
        ({"name": "../away"}, "name: '../away' cannot be a file's name"),
        ({"loss.debiased": True, "loss.zero_terminal_snr": True}, "loss.debiased: with zero terminal SNR"),
        ({"name": " "}, "name: ' ' cannot be a file's name"),
        ({"name": "cat-20231101"}, "ends as the saves of a run do"),
        ({"lora.attention": False, "lora.feed_forward": False, "lora.projections": False}, "hold no layer"),
    ],
)
def test_bad_input_is_one_sentence_before_the_first_step(values, change, sentence):
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        run({**values, **change})
    assert "\n" not in str(caught.value) and not (Path(values["output"]) / "thing-001").exists()


# runs of the command line, each in a process of its own that has imported what it needs before it was made: to import is most of so short a run
RUNS = """
import os, sys
from lib_tuner import cli, cli_train, hosts, methods, train
from lib_tuner.hosts import standalone
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(cli.main(["train", *line.split("\\t")[:-1], "--no-venv"]))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_run_killed_at_five_random_moments_resumes_to_the_same_result(values, tmp_path):
    values = {**values, "steps": 24, "save_every": 2, "keep_last": 1}
    whole = run({**values, "output": values["output"] + "-whole"})
    file, folder, random = tmp_path / "run.toml", tmp_path / "out" / "thing-001", Random(4)
    file.write_text(to_toml(settings(values)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", RUNS], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as runs:
        for target in sorted(random.sample(range(2, 20), 5)):
            kill_after(runs, target, random.random() * 0.1, file, folder)
            assert newest(folder) < 24
        runs.stdin.close()
    resumed = run({**values, "resume": str(folder)})
    assert [t.tolist() for t in tensors(resumed).values()] == [t.tolist() for t in tensors(whole).values()]


def kill_after(runs: subprocess.Popen, target: int, delay: float, file: Path, folder: Path) -> None:
    """Runs or resumes in a process of its own, and kills it a moment after the state of step `target` is there."""
    runs.stdin.write("".join(f"{word}\t" for word in [file, *(["--resume", folder] if newest(folder) else [])]) + "\n")
    runs.stdin.flush()
    child = int(runs.stdout.readline())
    until(lambda: newest(folder) >= target)  # the file, whose coming nothing announces to another process
    time.sleep(delay)  # the random moment
    os.kill(child, signal.SIGKILL)
    assert runs.stdout.readline() == "ended\n"


def newest(folder: Path) -> int:
    """The step of the newest state."""
    return max((int(p.stem.split("-")[1]) for p in folder.glob("state/state-*.safetensors")), default=0)
