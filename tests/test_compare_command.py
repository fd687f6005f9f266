"""`compare numbers`: the table of a run's saves, as text and JSON, and what is said where there is none."""

from __future__ import annotations

import json
from collections import deque

import pytest

from lib_tuner import cli
from lib_tuner.compare.numbers import FILE, Row
from lib_tuner.compare.suggest import Suggestion
from lib_tuner.compare_command import saves_in, table
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.train import train


@pytest.fixture
def run(small_run, tmp_path):
    """The folder of a run with two saves."""
    cfg = settings({**small_run, "trigger": "thing", "steps": 4, "save_every": 2})
    deque(train(cfg, METHODS["lora"](cfg), Standalone(cfg)), maxlen=1)
    return next((tmp_path / "out").iterdir())


def command(*argv: object) -> int:
    return cli.main(["--no-venv", "compare", *map(str, argv)])


def test_a_run_is_measured_once_and_told_as_a_table_and_as_json(run, capsys):
    assert [(save.step, [f.name for f in save.files]) for save in saves_in(run)] == [(2, ["thing-000002.safetensors"]), (4, ["thing.safetensors"])]
    assert command("numbers", run) == 0
    text, told = capsys.readouterr()
    assert told.endswith("Measuring saves 3/3\n") and text.splitlines()[0].split() == ["step", "loss", "gain", "drift"]
    lines = text.splitlines()[1:4]
    assert [line.split()[0] for line in lines] == ["0", "2", "4"] and "the model before the run" in lines[0] and sum("suggested" in line for line in lines) == 1
    assert "for the run holds none out (data.validation_folder)" in text and text.splitlines()[-1].startswith("Step ")
    written = (run / FILE).read_bytes()
    assert command("numbers", run, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (run / FILE).read_bytes() == written
    assert [row["step"] for row in answer["rows"]] == [0, 2, 4] and {"loss", "gain", "drift", "held_out"} <= answer["rows"][1].keys()
    assert answer["suggestion"]["step"] in (2, 4) and answer["suggestion"]["why"].endswith(".")


def test_checkpoints_of_dreambooth_are_measured_from_their_run(small_run, tmp_path, capsys):
    """Held beside the base model that they were trained on, of which the first save's file is told by its hash."""
    own = {key: value for key, value in small_run.items() if not key.startswith("lora.")}
    cfg = settings({**own, "method": "dreambooth", "trigger": "thing", "steps": 4, "save_every": 2, "dreambooth.save": "both", "prior.drift": "off", "optim.lr": "1e-4"})
    deque(train(cfg, METHODS["dreambooth"](cfg), Standalone(cfg)), maxlen=1)
    folder = next((tmp_path / "out").iterdir())
    assert command("numbers", folder, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["step"], row["files"]) for row in rows] == [(0, []), (2, ["thing-000002.safetensors"]), (4, ["thing.safetensors"])]
    assert rows[0]["drift"] == 0 < rows[1]["drift"] < rows[2]["drift"] and rows[2]["loss"] < rows[0]["loss"]
    settings_file = folder / "settings.toml"
    settings_file.write_text(settings_file.read_text().replace(small_run["checkpoint"], str(folder / "thing.safetensors")))
    assert command("numbers", folder) == 2 and "was trained on another model" in capsys.readouterr().err


def test_what_cannot_be_measured_is_one_sentence(run, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "settings.toml").write_text((run / "settings.toml").read_text())
    for argv, said in (
        (("numbers", tmp_path), "is not the folder of a run"), (("numbers", empty), "empty has no saved file yet"), (("numbers", run, "--clip", "nowhere.bin"), "--clip: nowhere.bin does not exist"),
        (("nombers", run), "there is no action 'nombers'; did you mean numbers"), (("numbers",), "the following arguments are required: RUN"), (("numbers", run, "--jsn"), "--jsn"),
    ):  # fmt: skip
        assert command(*argv) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    (empty / "settings.toml").write_text(f'method = "controlnet"\n[data]\nfolder = "{tmp_path}"\n')
    assert command("numbers", empty) == 2 and "ControlNet are not measured yet" in capsys.readouterr().err


def test_the_help_names_the_actions(capsys):
    assert command("--help") == command() == 0
    assert "numbers" in capsys.readouterr().out


def test_the_table_has_a_column_of_what_there_is_and_marks_what_is_flagged():
    rows = [Row(0, (), 0.2, None, 0.0, True), Row(5, ("a",), 0.1, None, 0.01, True, {"image": 0.7}), Row(9, ("b",), 0.15, None, 12.5, True, {"image": 0.8})]
    lines = table(rows, Suggestion(5, "Because.", "overfitting", {9: "overfitting"}))
    assert lines[0].split() == ["step", "loss", "gain", "drift", "image"]
    assert lines[1].split()[:5] == ["0", "0.20000", "-", "0.00000", "-"]
    assert lines[2].split() == ["5", "0.10000", "-", "0.01000", "0.70000", "suggested"] and lines[3].split() == ["9", "0.15000", "-", "12.5", "0.80000", "overfitting"]
    assert lines[-1] == "Step 5: Because." and "trigger minus" not in "".join(lines)
    none = table(rows, Suggestion(None, "Nothing was learned.", "underfitting", {5: "underfitting"}))
    assert none[-1] == "Nothing was learned." and not any("suggested" in line for line in none)
