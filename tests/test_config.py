"""Settings: declared once, built strictly, written and read back the same. Oracles: the stated messages, tomllib, argparse, json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from lib_tuner import config
from lib_tuner.config import build, flags, flat_values, flatten, from_metadata, migrate, opt, options, read_toml, section, to_metadata, to_toml
from lib_tuner.disk import expanded
from lib_tuner.settings import TrainConfig

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")


@dataclass(frozen=True)
class Inner:
    low: int = opt(1, "Low", "Low end.", min=0, max=10)
    high: int = opt(5, "High", "High end.", min=0, max=10)

    def check(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")


@dataclass(frozen=True)
class LoraConfig:
    rank: int = opt(4, "Rank", "Rank of the update.", min=1, max=128, unit="rows", essential=True)
    alpha: float = opt(1.0, "Alpha", "50% is usual.", min=0.0)
    inner: Inner = section(Inner)


@dataclass(frozen=True)
class Run:
    name: str = opt("run", "Name", "Name of the file.", essential=True)
    method: str = opt("lora", "Method", "What is trained.")
    steps: int = opt(100, "Steps", "How many.", min=1, max=2**32 - 1, unit="steps")
    rate: str = opt("1e-4", "Rate", "A number or steps.")
    share: float = opt(0.5, "Share", "A part.", min=0.0, max=1.0)
    most: float = opt(1.0, "Most", "No lower limit.", max=1.5)
    mirror: bool = opt(False, "Mirror", "Yes or no.")
    kind: str = opt("mse", "Kind", "Distance.", choices=("mse", "huber", "l1"))
    inner: Inner = section(Inner)
    settings: Any = field(default=None)


def problem(values: dict, method: type | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        build(Run, values, method)
    return str(caught.value)


def test_options_are_dotted_typed_and_in_the_order_they_are_written():
    found = options(Run)
    assert [o.key for o in found] == ["name", "method", "steps", "rate", "share", "most", "mirror", "kind", "inner.low", "inner.high"]
    assert [o.type for o in found[2:7]] == [int, str, float, float, bool]
    assert found[2] == config.Option("steps", int, 100, "Steps", "How many.", min=1, max=2**32 - 1, unit="steps")
    assert [o.key for o in options(LoraConfig, "lora")] == ["lora.rank", "lora.alpha", "lora.inner.low", "lora.inner.high"]
    assert [o.essential for o in options(LoraConfig)] == [True, False, False, False]


def test_options_are_frozen_and_refuse_a_type_they_cannot_read():
    with pytest.raises(dataclasses.FrozenInstanceError):
        options(Run)[0].key = "other"
    bad = dataclasses.make_dataclass("Bad", [("x", list, opt((), "X", "Help."))])
    with pytest.raises(TypeError, match="Bad.x"):
        options(bad)


def test_build_without_values_gives_the_defaults():
    assert build(Run, {}) == Run()


def test_build_takes_nested_and_dotted_keys_and_strings_for_numbers():
    nested = build(Run, {"steps": 7, "inner": {"low": 2, "high": 3}, "mirror": True})
    dotted = build(Run, {"steps": "7", "inner.low": "2", "inner.high": "3", "mirror": "true"})
    assert nested == dotted == Run(steps=7, mirror=True, inner=Inner(2, 3))


@pytest.mark.parametrize("value, expected", [("yes", True), ("ON", True), ("1", True), ("off", False), ("No", False), (False, False)])
def test_bools_are_read_from_words(value, expected):
    assert build(Run, {"mirror": value}).mirror is expected


def test_whole_numbers_may_be_floats_and_keep_every_digit():
    assert build(Run, {"steps": 512.0}).steps == 512 and isinstance(build(Run, {"steps": 512.0}).steps, int)
    assert build(Run, {"steps": "1e3"}).steps == 1000
    assert build(Run, {"steps": "4294967295"}).steps == 2**32 - 1


def test_ints_are_taken_for_floats():
    share = build(Run, {"share": 1}).share
    assert share == 1.0 and isinstance(share, float)


def test_a_number_is_taken_for_a_text_whose_default_is_a_number_only():
    assert build(Run, {"rate": 0.001}).rate == "0.001"
    assert build(Run, {"rate": "0.05:10, 0.005"}).rate == "0.05:10, 0.005"
    assert problem({"name": 5}) == "name: 5 is not text"
    assert problem({"rate": True}) == "rate: True is not text"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"share": -1.0}, "share: -1.0 is outside [0, 1]"),
        ({"share": "-1"}, "share: -1.0 is outside [0, 1]"),
        ({"steps": 2**32}, "steps: 4294967296 is outside [1, 4294967295]"),
        ({"most": 2}, "most: 2.0 is above 1.5"),
        ({"steps": "two"}, "steps: 'two' is not a whole number"),
        ({"steps": 1.5}, "steps: 1.5 is not a whole number"),
        ({"steps": True}, "steps: True is not a whole number"),
        ({"steps": None}, "steps: None is not a whole number"),
        ({"steps": "9" * 5000}, f"steps: '{'9' * 76}... is not a whole number"),
        ({"share": False}, "share: False is not a number"),
        ({"share": math.nan}, "share: nan is not a number"),
        ({"share": "inf"}, "share: 'inf' is not a number"),
        ({"share": 10**400}, f"share: 1{'0' * 76}... is not a number"),
        ({"mirror": 1}, "mirror: 1 is not true or false"),
        ({"mirror": "maybe"}, "mirror: 'maybe' is not true or false"),
        ({"name": ["a"]}, "name: ['a'] is not text"),
        ({"name": "a\ud800"}, "name: 'a\\ud800' is not text"),
        ({"kind": "hubert"}, "kind: 'hubert' is not one of mse, huber, l1; did you mean huber?"),
        ({"kind": False}, "kind: False is not one of mse, huber, l1"),
        ({"stepps": 5}, "stepps: there is no such setting; did you mean steps?"),
        ({"steps": ""}, "steps: is empty; write a whole number"),
        ({"kind": " "}, "kind: ' ' is not one of mse, huber, l1"),
        ({"low": 5}, "low: there is no such setting; did you mean inner.low?"),
        ({"inner": {"lov": 5}}, "inner.lov: there is no such setting; did you mean inner.low?"),
        ({"qqqqqq": 5}, "qqqqqq: there is no such setting"),
        ({"inner": 3}, "inner: 3 is not a section; write [inner] and its settings below"),
        ({"iner": {"low": 1}}, "iner: there is no such section; there are inner; did you mean inner?"),
        ({"nothing": {}}, "nothing: there is no such section; there are inner"),
        ({"settings": 3}, "settings: there is no such setting"),
        ({"inner": {"low": 1}, "inner.low": 2}, "inner.low: given twice"),
        ({"inner.low": 7}, "inner: low (7) must be below high (5)"),
    ],
)
def test_each_problem_is_one_clear_sentence(values, message):
    assert problem(values) == message


def test_a_setting_that_is_called_by_its_label_is_meant():
    with pytest.raises(ValueError, match="optim.learning_rate: there is no such setting; did you mean optim.lr?"):
        build(TrainConfig, {"optim.learning_rate": 1})


def test_a_limit_on_one_side_is_told_alone():
    assert problem({"lora.alpha": -1}, LoraConfig) == "lora.alpha: -1.0 is below 0"


def test_several_problems_are_told_together_one_a_line():
    assert problem({"steps": 0, "share": 2.0, "stepps": 1}).splitlines() == [
        "steps: 0 is outside [1, 4294967295]",
        "share: 2.0 is outside [0, 1]",
        "stepps: there is no such setting; did you mean steps?",
    ]


def test_checks_of_several_sections_are_told_together():
    assert problem({"inner.low": 7, "lora.inner.low": 8}, LoraConfig).splitlines() == [
        "lora.inner: low (8) must be below high (5)",
        "inner: low (7) must be below high (5)",
    ]


def test_a_check_does_not_see_a_section_that_is_wrong():
    with pytest.raises(ValueError) as caught:
        build(TrainConfig, {"data.bucket_min": 1024, "data.bucket_max": 512, "validate_every": 10})
    assert str(caught.value) == "data: bucket_min (1024) is above bucket_max (512)"


def test_a_post_init_that_objects_is_told_like_a_check():
    def object_to(self):
        raise ValueError("never right")

    made = dataclasses.make_dataclass("Made", [("x", int, opt(1, "X", "Help."))], namespace={"__post_init__": object_to})
    with pytest.raises(ValueError, match="^never right$"):
        build(made, {"x": 2})


def test_an_empty_section_is_allowed():
    assert build(Run, {"inner": {}}) == Run()


def test_the_chosen_methods_section_is_built_into_settings():
    made = build(Run, {"lora": {"rank": 8, "inner": {"high": 9}}}, LoraConfig)
    assert made.settings == LoraConfig(rank=8, inner=Inner(high=9))
    assert build(Run, {"method": "other", "other.rank": 3}, LoraConfig).settings.rank == 3
    assert build(Run, {}, LoraConfig).settings == LoraConfig()


def test_the_section_of_another_method_is_refused():
    assert problem({"method": "dora", "lora": {"rank": 8, "alpha": 1}}, LoraConfig).startswith("lora: there is no such section; there are inner, dora")
    assert problem({"lora": {"rank": 8, "alpha": 1}}) == "lora: there is no such section; there are inner"


def test_toml_is_read_back_the_same_by_an_independent_reader():
    hard = 'C:\\new\\table "quoted" \x00\x1f\x7f é 漢 😀\nline\r\ttab'
    cfg = build(Run, {"name": hard, "rate": "0.05:10, 0.005", "share": 1e-8, "mirror": True, "lora.rank": 16, "lora.inner.low": 2}, LoraConfig)
    values = tomllib.loads(to_toml(cfg))
    assert values.pop("version") == 1
    assert values["name"] == hard and values["share"] == 1e-8 and values["mirror"] is True
    assert values["lora"] == {"rank": 16, "alpha": 1.0, "inner": {"low": 2, "high": 5}}
    assert build(Run, values, LoraConfig) == cfg


def test_a_toml_file_reruns_the_same_settings(tmp_path):
    cfg = build(TrainConfig, {"optim.lr": "5e-3:20, 1e-3", "data.batch": 4, "sample": {"every": 10, "prompts": "a\nb"}, "loss.t_max": 500})
    path = tmp_path / "run.toml"
    path.write_text(to_toml(cfg), encoding="utf-8")
    assert build(TrainConfig, read_toml(path)) == cfg


def test_flat_values_build_the_same_settings():
    cfg = build(Run, {"lora.rank": 2, "inner.low": 3}, LoraConfig)
    assert flat_values(cfg)["lora.rank"] == 2 and flat_values(cfg)["inner.low"] == 3
    assert build(Run, flat_values(cfg), LoraConfig) == cfg


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes("\ufeffsteps = 3\r\n[inner]\r\nlow = 2\r\n".encode())
    assert read_toml(path) == {"steps": 3, "inner.low": 2}


@pytest.mark.parametrize(
    "content, words",
    [
        (b"steps = 3\nname = oops\n", ["run.toml: not valid TOML", "line 2"]),
        ("name = 'é'".encode("utf-16"), ["run.toml: not a settings file: it is not UTF-8 text"]),
        (b"version = 99\n", ["written by a newer Tuner (version 99", "update the Tuner"]),
        (b"version = 'x'\n", ["version: 'x' is not a whole number from 1 up"]),
        (b"version = 0\n", ["version: 0 is not a whole number from 1 up"]),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path, content, words):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_toml(path)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_one_clear_sentence(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ValueError, match="cannot be read: "):
            read_toml(path)


def fake_migrations():
    def to_2(flat):
        return {("inner.low" if key == "lowest" else key): value for key, value in flat.items()}

    def to_3(flat):
        return {**flat, "steps": flat["steps"] * 2}

    return to_2, to_3


def test_an_old_file_is_moved_through_every_later_version(monkeypatch, tmp_path):
    monkeypatch.setattr(config, "MIGRATIONS", fake_migrations())
    path = tmp_path / "run.toml"
    path.write_text("version = 1\nlowest = 2\nsteps = 3\n")
    assert read_toml(path) == {"inner.low": 2, "steps": 6}
    assert from_metadata({config.METADATA_KEY: '{"version": 2, "steps": 3}'}) == {"steps": 6}
    assert tomllib.loads(to_toml(Run()))["version"] == 3


def test_a_current_file_or_one_without_a_version_is_not_moved():
    assert migrate({"version": 3, "steps": 3}, "x", fake_migrations()) == {"steps": 3}
    assert migrate({"steps": 3}, "x", fake_migrations()) == {"steps": 3}


def test_flags_overlay_a_file_and_say_limits_and_default():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    flags(parser, Run, LoraConfig)
    given = vars(parser.parse_args(["--steps", "7", "--inner.low", "3", "--lora.rank=2", "--mirror", "true"]))
    assert given == {"steps": "7", "inner.low": "3", "lora.rank": "2", "mirror": "true"}
    cfg = build(Run, {**flatten({"steps": 5, "inner": {"high": 9}}), **given}, LoraConfig)
    assert (cfg.steps, cfg.inner, cfg.settings.rank, cfg.mirror) == (7, Inner(3, 9), 2, True)
    text = " ".join(parser.format_help().split())
    assert "How many. (1 to 4294967295 steps; default 100)" in text and "one of mse, huber, l1; default mse" in text
    assert "50% is usual." in text and "default false" in text


def test_flags_name_the_section_of_the_method_given():
    parser = argparse.ArgumentParser()
    flags(parser, Run, LoraConfig, "dora")
    assert "--dora.rank" in parser.format_help() and "--lora.rank" not in parser.format_help()


def test_metadata_round_trip():
    cfg = build(Run, {"name": "é", "lora.rank": 3}, LoraConfig)
    metadata = to_metadata(cfg)
    assert all(isinstance(v, str) for v in metadata.values()) and json.loads(metadata["tuner_settings"])["lora.rank"] == 3
    assert build(Run, from_metadata(metadata), LoraConfig) == cfg


@pytest.mark.parametrize("metadata", [{}, {"tuner_settings": "{"}, {"tuner_settings": "[]"}])
def test_metadata_without_settings_is_one_clear_sentence(metadata):
    with pytest.raises(ValueError, match="^the (file holds no settings|settings in the file's metadata are damaged)"):
        from_metadata(metadata)


def test_every_shipped_setting_has_a_help_text_and_a_default_within_its_limits():
    for option in options(TrainConfig):
        assert option.label and option.help.endswith("."), option.key
        assert flat_values(build(TrainConfig, {option.key: option.default}))[option.key] == option.default


@pytest.mark.parametrize(
    "values, message",
    [
        ({"loss.t_min": 500, "loss.t_max": 500}, "loss: t_min (500) must be below t_max (500)"),
        ({"data.bucket_min": 1024, "data.bucket_max": 512}, "data: bucket_min (1024) is above bucket_max (512)"),
        ({"sample.every": 10}, "sample: every is 10, but there are no prompts: write one, or set every to 0"),
        ({"sample.height": 500}, "sample: height is 500 px, which is no multiple of 8, the side of a latent pixel; set one that is, or 0"),
        ({"validate_every": 10}, "validate_every is 10, but data.validation_folder is empty: name a folder, or set it to 0"),
        ({"data.batch": "two"}, "data.batch: 'two' is not a whole number"),
    ],
)
def test_shipped_settings_refuse_what_does_not_go_together(values, message):
    with pytest.raises(ValueError) as caught:
        build(TrainConfig, values)
    assert str(caught.value) == message


def test_the_home_of_nobody_is_a_path_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HOME", "/mine")
    assert (str(expanded("~/a")), str(expanded("b/~c")), str(expanded("~nobody-here/a"))) == ("/mine/a", "b/~c", "~nobody-here/a")
