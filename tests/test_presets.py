"""Presets: every combination is accepted by the settings; one's own are files that hold no places and never lie outside their folder."""

from __future__ import annotations

import itertools
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from lib_tuner.config import MIGRATIONS, build, flat_values
from lib_tuner.data.prompts import template_lines
from lib_tuner.methods import METHODS
from lib_tuner.optim import parse_lr
from lib_tuner.presets import GOALS, LEFT_OUT, PACES, delete_own, own_presets, preset_values, read_own, save_own
from lib_tuner.settings import TrainConfig

KINDS = tuple(METHODS)


def built(values: dict, method: str) -> TrainConfig:
    return build(TrainConfig, {**values, "method": method}, METHODS[method].Config)


# ---- shipped


@pytest.mark.parametrize("goal, pace, method", list(itertools.product(["", *GOALS], ["", *PACES], KINDS)))
def test_every_combination_is_accepted_by_the_settings_and_arrives_there(goal, pace, method):
    values = preset_values(goal, pace, method)
    flat = flat_values(built(values, method))
    assert {key: flat[key] for key in values} == values
    assert parse_lr(flat["optim.lr"]) and flat["optim.warmup"] < flat["steps"]
    assert bool(values) == bool(goal or pace)


@pytest.mark.parametrize("goal", GOALS)
def test_templates_of_goals_are_shipped(goal):
    assert template_lines(preset_values(goal, "", "textual_inversion")["data.template"])


@pytest.mark.parametrize("method", KINDS)
def test_goal_and_pace_decide_different_settings(method):
    """So that the order in which they are chosen does not matter."""
    for goal, pace in itertools.product(GOALS.values(), PACES.values()):
        assert not goal.values[method].keys() & pace.values[method].keys()
        assert preset_values(goal.name, pace.name, method) == {**goal.values[method], **pace.values[method]}


def test_a_pace_sets_how_long_and_how_fast():
    steps = [preset_values("", pace, "lora")["steps"] for pace in ("fast", "balanced", "careful")]
    rates = [float(preset_values("", pace, "lora")["optim.lr"]) for pace in ("fast", "balanced", "careful")]
    assert steps == sorted(steps) and rates == sorted(rates, reverse=True)


def test_goals_take_the_fields_usual_measures():
    assert preset_values("character", "", "lora")["data.flip"] == "off"  # what has a side keeps it
    assert preset_values("style", "", "lora")["data.flip"] == "safe"
    assert preset_values("style", "", "lora")["lora.conv_rank"] > 0
    assert preset_values("style", "", "textual_inversion")["data.template"] == "style_filewords"
    assert {preset_values(goal, "", "lora")["loss.min_snr"] for goal in GOALS} == {5.0}
    assert not any("caption_dropout" in key for goal in GOALS for key in preset_values(goal, "", "textual_inversion"))


def test_goals_and_paces_say_what_they_are():
    for goal in GOALS.values():
        assert goal.label and 2 <= goal.advice.count(". ") + 1 <= 4 and goal.advice.endswith("."), goal.name
    assert all(pace.label and pace.help.endswith(".") for pace in PACES.values())
    assert "folklore" in GOALS["character"].advice
    with pytest.raises(FrozenInstanceError):
        GOALS["style"].name = "other"


def test_the_values_handed_out_are_a_copy():
    preset_values("style", "", "lora").clear()
    assert preset_values("style", "", "lora")


@pytest.mark.parametrize(
    "names, message",
    [
        (("charakter", "", "lora"), "goal: there is no 'charakter'; there are character, style, pose, clothing, object; did you mean character?"),
        (("", "slow", "lora"), "pace: there is no 'slow'; there are fast, balanced, careful"),
        (("style", "", "nothing"), "method: there are no presets for 'nothing'; there are some for lora, locon, loha, lokr, adalora, textual_inversion, pivotal, dreambooth, hypernetwork, t2i_adapter, controlnet"),
    ],
)
def test_unknown_names_are_one_clear_sentence(names, message):
    with pytest.raises(ValueError) as caught:
        preset_values(*names)
    assert str(caught.value) == message


def test_no_choice_is_no_values_for_any_method():
    assert preset_values("", "", "hypernetwork") == {}


# ---- one's own

PLACES = {key: "somewhere" for key in LEFT_OUT} | {"lora.start": "a.safetensors", "textual_inversion.start": "b.pt", "controlnet.hints": "d", "t2i_adapter.sample_hints": "e", "controlnet.depth_model": "f.onnx"}
OWN = {"method": "lora", "steps": 7, "optim.lr": "1e-3", "loss.min_snr": 5.0, "data.shuffle_tags": True, "lora.rank": 4, "trigger": 'é "q" \\ \n\x7f😀'}


def test_a_saved_preset_is_read_back_without_the_places(tmp_path):
    path = save_own(tmp_path / "new", "my preset", {**PLACES, **OWN})
    assert path == tmp_path / "new" / "my preset.toml"
    assert read_own(tmp_path / "new", "my preset") == OWN
    assert "somewhere" not in path.read_text(encoding="utf-8")
    assert flat_values(built(read_own(path.parent, "my preset"), "lora"))["lora.rank"] == 4


def test_all_the_settings_of_a_run_can_be_kept_but_for_what_is_left_out(tmp_path):
    flat = flat_values(built({"lora.rank": 3}, "lora"))
    save_own(tmp_path, "all", flat)
    assert read_own(tmp_path, "all") == {key: value for key, value in flat.items() if key not in LEFT_OUT and key != "lora.start"}


def test_nested_values_are_kept_too(tmp_path):
    save_own(tmp_path, "x", {"optim": {"lr": "1e-3"}, "steps": 3})
    assert read_own(tmp_path, "x") == {"optim.lr": "1e-3", "steps": 3}


def test_a_preset_carries_the_version_of_the_settings(tmp_path):
    assert save_own(tmp_path, "x", {}).read_text(encoding="utf-8").startswith(f"version = {len(MIGRATIONS) + 1}\n")


def test_saving_replaces_and_leaves_nothing_beside_it(tmp_path):
    save_own(tmp_path, "x", {"steps": 1})
    save_own(tmp_path, "x", {"steps": 2})
    assert read_own(tmp_path, "x") == {"steps": 2} and [p.name for p in tmp_path.iterdir()] == ["x.toml"]


def test_a_value_that_is_no_setting_is_refused_before_anything_is_written(tmp_path):
    save_own(tmp_path, "x", {"steps": 1})
    for values in ({"steps": None}, {"a": [1]}, {"a b": 1}, {"a\n[b]": 1}):
        with pytest.raises(ValueError, match="cannot be kept in a preset"):
            save_own(tmp_path, "x", values)
    assert read_own(tmp_path, "x") == {"steps": 1} and len(list(tmp_path.iterdir())) == 1


def test_names_are_sorted_and_a_missing_folder_has_none(tmp_path):
    assert own_presets(tmp_path / "none") == []
    for name in ("b", "a.1", "c"):
        save_own(tmp_path, name, {})
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.toml").mkdir()
    assert own_presets(tmp_path) == ["a.1", "b", "c"]


def test_a_deleted_preset_is_gone(tmp_path):
    save_own(tmp_path, "x", {})
    delete_own(tmp_path, "x")
    assert own_presets(tmp_path) == []


@pytest.mark.parametrize("use", [lambda f, n: save_own(f, n, {}), read_own, delete_own])
@pytest.mark.parametrize("name", ["../x", "..", "", " ", "a/b", "a\\b", "c:x", "a\n", "a\0", "x" * 201])
def test_a_name_that_cannot_be_a_files_is_refused_and_nothing_outside_is_touched(tmp_path, use, name):
    (tmp_path / "x.toml").write_text("steps = 1\n")
    folder = tmp_path / "presets"
    folder.mkdir()
    with pytest.raises(ValueError, match="cannot be a file's name") as caught:
        use(folder, name)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "x.toml").read_text() == "steps = 1\n" and list(folder.iterdir()) == []


@pytest.mark.parametrize("use", [read_own, delete_own])
def test_a_preset_that_is_not_there_is_one_clear_sentence(tmp_path, use):
    save_own(tmp_path, "portrait", {})
    with pytest.raises(ValueError, match="^there is no preset named 'portrai' in .*; did you mean portrait?"):
        use(Path(tmp_path), "portrai")


def test_a_damaged_preset_is_one_clear_sentence(tmp_path):
    (tmp_path / "x.toml").write_text("steps = = 1\n")
    with pytest.raises(ValueError, match="not valid TOML"):
        read_own(tmp_path, "x")
