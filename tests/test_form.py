"""Settings as widgets and back, and the sentences of `build` at the fields they belong to. On the gradio that is installed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")

from lib_tuner import presets  # noqa: E402
from lib_tuner.config import options  # noqa: E402
from lib_tuner.hosts.standalone import Standalone  # noqa: E402
from lib_tuner.jobs import Jobs  # noqa: E402
from lib_tuner.methods import METHODS, settings  # noqa: E402
from lib_tuner.settings import TrainConfig  # noqa: E402
from lib_tuner.ui.form import ESSENTIALS, Form, problems_by_key  # noqa: E402
from lib_tuner.ui.train_tab import Shared, TrainTab  # noqa: E402

ALL = [o for o in options(TrainConfig)] + [o for name, m in METHODS.items() for o in options(m.Config, name)]


def drawn(values: dict, **more) -> Form:
    with gr.Blocks():
        form = Form(values, [("embedded small model", ""), ("real.safetensors", "/models/real.safetensors")], **more)
        form.essentials()
        form.everything()
    return form


def filled(form: Form, **change) -> dict:
    """What a handler gets: each widget's value, some of them changed."""
    return {widget: change.get(key, widget.value) for key, widget in form.widgets.items()}


def test_every_setting_is_a_widget_with_its_label_and_help():
    form = drawn({})
    assert set(form.widgets) == {o.key for o in ALL} - {"resume"}
    for option in ALL:
        if option.key != "resume":
            widget = form.widgets[option.key]
            assert widget.label.startswith(option.label) and widget.info.startswith(option.help) and (not option.unit or option.unit in widget.label)
    assert len({w.elem_id for w in form.widgets.values()}) == len(form.widgets)


def test_the_form_as_drawn_gives_the_defaults():
    form = drawn({})
    assert settings(form.values(filled(form))) == settings({})


@pytest.mark.parametrize("method", METHODS)
def test_any_settings_survive_the_form(method):
    values = {"method": method, "checkpoint": "/models/real.safetensors", "steps": 77, "optim.lr": "1e-3:10, 1e-4", "loss.debiased": True, "data.flip": "safe", "loss.min_snr": 5.0, "sample.prompts": "a\nb", "sample.every": 7}
    form = drawn(values)
    assert settings(form.values(filled(form))) == settings(values)
    shown = drawn({}).updates(values)  # the same through an update of widgets that are there
    assert {u["value"] for w, u in shown.items() if "value" in u and w.elem_id == "tuner-f-method"} == {METHODS[method].label}


def test_only_the_chosen_methods_settings_are_read_and_shown():
    form = drawn({"method": "lora"})
    values = form.values(filled(form, method="Textual Inversion"))
    assert not [key for key in values if key.startswith("lora.")] and values["method"] == "textual_inversion"
    visible = form.visible("textual_inversion")
    assert {u["visible"] for g, u in visible.items() if g in form.groups["lora"]} == {False} and {u["visible"] for g, u in visible.items() if g in form.groups["textual_inversion"]} == {True}


def test_the_essentials_are_about_ten():
    assert {"method", "name", "data.folder", "trigger", "steps", "optim.lr", "data.resolution", "data.batch", "sample.prompts"} <= ESSENTIALS and len(ESSENTIALS) <= 12


def test_what_the_host_decides_is_no_widget():
    assert "checkpoint" not in drawn({}, hidden=("checkpoint",)).widgets


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"steps": -1}, "steps", "is outside"), ({"optim.ema": 2}, "optim.ema", "is outside"), ({"lora.rank": ""}, "lora.rank", "is empty; write a whole number"),
        ({"name": "../x"}, "name", "cannot be a file's name"), ({"sample.every": 5}, "sample.every", "there are no prompts"), ({"lora.blocks": "X1"}, "lora.blocks", "is no block"),
        ({"data.bucket_min": 2000, "data.bucket_max": 100}, "data.bucket_min", "is above"), ({"loss.t_min": 900, "loss.t_max": 10}, "loss.t_min", "must be below"),
        ({"validate_every": 5}, "validate_every", "data.validation_folder is empty"),
    ],
)  # fmt: skip
def test_the_sentence_of_a_bad_value_is_found_at_its_field(change, key, words):
    with pytest.raises(ValueError) as caught:
        settings(change)
    marked, rest = problems_by_key(str(caught.value), [o.key for o in ALL])
    assert list(marked) == [key] and words in marked[key] and rest == []


def test_two_models_of_one_name_are_told_apart():
    paths = ["/m/a/model.safetensors", "/m/b/model.safetensors"]
    with gr.Blocks():
        form = Form({"checkpoint": paths[0]}, [("model.safetensors", path) for path in paths])
        form.essentials()
    assert form.value("checkpoint", form.widgets["checkpoint"].value) == paths[0] and form.value("checkpoint", paths[1]) == paths[1]


# ---- the tab's handlers


@pytest.fixture
def tab(tmp_path):
    jobs = Jobs(tmp_path / "out", Standalone)
    jobs.hold_queue()
    with gr.Blocks():
        made = TrainTab(Shared(jobs, Standalone, tmp_path / "out", {}))
    yield made
    jobs.close()


def answer(updates: dict, tab: TrainTab) -> dict:
    return json.loads(updates[tab.reply])


def test_train_puts_a_run_into_the_queue_and_refuses_what_cannot_run(tab, small_run):
    values = {**small_run, "output": str(tab.shared.home)}
    tab.form = filled_form = drawn(values)
    bad = json.loads(tab.start(filled(filled_form, **{"data.folder": "nowhere", "optim.lr": "fast", "steps": 5}))[tab.reply])
    assert sorted(bad["problems"]) == ["tuner-f-data-folder", "tuner-f-optim-lr"] and tab.shared.jobs.status()["queue"] == []
    good = json.loads(tab.start(filled(filled_form))[tab.reply])
    assert [e["id"] for e in tab.shared.jobs.status()["queue"]] == [good["added"]]


def test_the_plan_is_told_with_its_fixes(tab, small_run):
    tab.form = drawn({**small_run, "optim.lr": "0.1"})
    plan = json.loads(tab.plan(filled(tab.form))[tab.reply])["plan"]
    assert plan["lines"][0] == "6 pictures, 6 with a caption." and any(w["fix"] and "optim.lr" in w["fix"]["values"] for w in plan["warnings"])


def test_a_name_that_is_no_text_is_told_in_the_plan(tab, small_run, unreadable_name):
    name = unreadable_name(Path(small_run["data.folder"]) / "0.png")
    name.write_bytes(b"no picture")
    tab.form = drawn(small_run)
    said = tab.plan(filled(tab.form))[tab.reply]
    assert said.encode() and any(name.name in str(problem) for problem in json.loads(said)["plan"]["problems"])


def test_what_differs_from_the_first_form_is_kept_and_put_back(tab, small_run):
    tab.form = drawn(small_run)
    assert answer(tab.check(filled(tab.form)), tab)["form"] == {}
    typed = {"steps": 77, "method": "LoHa", "loss.debiased": True, "optim.lr": "fast"}
    assert answer(tab.check(filled(tab.form, **typed)), tab)["form"] == {**typed, "method": "loha"}  # bad values too
    back = tab.ordered({tab.order: json.dumps({"kept": {**typed, "method": "loha"}})})
    assert {key: back[tab.form.widgets[key]]["value"] for key in typed} == typed and answer(back, tab)["restored"]
    first = tab.ordered({tab.order: json.dumps({"afresh": True})})
    assert {key: first[widget]["value"] for key, widget in tab.form.widgets.items()} == {key: widget.value for key, widget in tab.form.widgets.items()}


@pytest.mark.parametrize("kept", [[], "x", {"method": "gone"}, {"loss.kind": 3}, {"steps": "many"}, {"steps": True}, {"loss.debiased": "yes"}, {"name": None}, {"no.such": 1}])
def test_what_a_widget_cannot_show_is_not_put_back(tab, kept):
    assert tab.form.fitting(kept) == {}


def test_presets_fill_the_form_and_advise(tab):
    updates = tab.preset_chosen({tab.goal: presets.GOALS["style"].label, tab.pace: presets.PACES["careful"].label, tab.form.widgets["method"]: "LoRA"})
    assert updates[tab.advice].startswith("<p>") and tab.form.widgets["steps"] in updates


def test_a_preset_follows_the_method(tab):
    chosen = {tab.goal: "none", tab.pace: presets.PACES["fast"].label}
    rates = {label: tab.preset_chosen({**chosen, tab.form.widgets["method"]: label})[tab.form.widgets["optim.lr"]]["value"] for label in ("LoRA", "Textual Inversion")}
    assert rates["LoRA"] != rates["Textual Inversion"]


def test_nothing_is_chosen_that_nobody_chose(tab):
    assert tab.past.value is None and tab.own.value is None


def test_own_presets_are_kept_loaded_and_deleted(tab, small_run):
    tab.form = drawn({**small_run, "lora.rank": 5})
    assert "Kept as mine" in answer(tab.keep({**filled(tab.form), tab.own_name: "mine"}), tab)["said"]
    loaded = tab.own_chosen({tab.own: "mine"})
    assert loaded[tab.form.widgets["lora.rank"]]["value"] == 5 and tab.form.widgets["data.folder"] not in loaded
    assert "cannot be" in answer(tab.keep({**filled(tab.form), tab.own_name: "../x"}), tab)["general"][0]
    tab.drop({tab.own: "mine"})
    assert answer(tab.own_chosen({tab.own: "mine"}), tab)["general"]


def test_a_file_of_settings_is_read_and_says_what_it_lacked(tab, tmp_path):
    file = tmp_path / "kohya.toml"
    file.write_text('network_module = "networks.lora"\nnetwork_dim = 24\nlearning_rate = 2e-4\nunknown_thing = 7\n')
    updates = tab.file_given({tab.file: str(file)})
    assert updates[tab.form.widgets["lora.rank"]]["value"] == 24 and "unknown_thing" in answer(updates, tab)["said"]
    file.write_text("not settings at all")
    assert answer(tab.file_given({tab.file: str(file)}), tab)["general"]
