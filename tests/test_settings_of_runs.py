"""Settings that came with the WebUI, where the names are known: CSV every N, settings as text, optimizer state beside saves, VAE and text encoder in RAM."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch

from lib_tuner.events import Saved, Started, Warned
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.recorders import csv, read_rows
from lib_tuner.sd.place import in_ram, stays
from lib_tuner.step import Step
from lib_tuner.train import train


def run(values, **more):
    cfg = settings({**values, **more})
    return list(csv(train(cfg, METHODS[cfg.method](cfg), Standalone(cfg)), every=cfg.csv_every))


def folder_of(events):
    return next(event.folder for event in events if isinstance(event, Started))


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (0, [])])
def test_the_csv_has_a_row_every_so_many_steps(small_run, every, steps):
    rows = read_rows(folder_of(run(small_run, csv_every=every)) / "losses.csv")
    assert [row.step for row in rows] == steps and all(row.loss is not None for row in rows)


def test_settings_are_written_as_text_at_each_start_when_wanted(small_run):
    assert not list(folder_of(run(small_run)).glob("settings-*.txt"))
    folder = folder_of(run(small_run, settings_text=True))
    text = next(folder.glob("settings-*.txt")).read_text()
    assert "optim.lr: 1e-2\n" in text and "lora.rank: 2\n" in text and text.startswith("datetime: ")


def test_the_optimizers_state_lies_beside_every_save_and_goes_with_it(small_run):
    events = run({key: value for key, value in small_run.items() if not key.startswith("lora.")}, method="textual_inversion", save_optimizer=True, save_every=2, keep_last=1)
    last = [event for event in events if isinstance(event, Saved)][-1].paths[0]
    assert torch.load(last.with_suffix(".pt.optim"), weights_only=True)["optimizer_state_dict"]["state"]
    assert len(list(last.parent.glob("*.optim"))) == len(list(last.parent.glob("*.safetensors"))) == 1


def test_no_optimizers_state_lies_beside_a_file_that_the_webui_has_no_trainer_for(small_run):
    events = run(small_run, save_optimizer=True)
    assert not list(Path(small_run["output"]).rglob("*.optim")) and not any(isinstance(event, Warned) for event in events)


def test_parts_that_lie_in_ram_are_brought_for_as_long_as_they_are_used(small_run, monkeypatch):
    moves = deque()
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moves.append(str(device)) or self)
    place = in_ram(torch.nn.Linear(1, 1), "cuda:1")
    assert list(moves) == ["cpu"]
    with place(), place():  # a picture is drawn while a caption is encoded
        assert list(moves) == ["cpu", "cuda:1"]
    assert list(moves) == ["cpu", "cuda:1", "cpu"]


@pytest.mark.parametrize(("change", "places"), [({"lora.text_encoder": False}, (True, True)), ({"lora.text_encoder": True}, (True, False)), ({"memory.offload": False}, (False, False))])
def test_the_text_encoder_stays_where_it_is_trained(small_run, change, places):
    host = Standalone(settings({**small_run, "memory.offload": True, **change}))
    with host.exclusive() as sd:
        assert (sd.vae.place is not stays, sd.text.place is not stays) == places
    assert host.model.vae.place is stays and host.model.text.place is stays


def test_offloading_changes_nothing_that_is_learned(small_run):
    plain, offloaded = (run(small_run, **{"name": name, "memory.offload": name == "away"})[-1].files[0] for name in ("here", "away"))
    from safetensors.torch import load_file

    assert all(torch.equal(a, b) for a, b in zip(load_file(plain).values(), load_file(offloaded).values()))


def test_batches_are_pinned_for_a_gpu_alone(small_run, sd, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(1) or self)
    run(small_run, **{"memory.pin": True})
    assert not pinned

    class Batch:
        latents = torch.zeros(1)

    step = Step.__new__(Step)
    step.sd, step.cfg, step.state = type("Sd", (), {"device": torch.device("cuda")}), settings({**small_run, "memory.pin": True}), type("State", (), {"method": None})
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **how: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        step.loss(Batch())
    assert pinned == [1]
