"""`bench compare`: a run is made, measured and judged once, the rule is asked by the numbers alone, and the table says what the rows say."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
from test_bench_methods import Drawn

from lib_tuner import bench_compare
from lib_tuner.bench_compare import CASES, SEEDS, Case, Report, judgement, measure, settings, table
from lib_tuner.compare.suggest import Suggestion
from lib_tuner.demo import learned, run
from lib_tuner.demo.world import random_scenes
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task} {case.values.get('optim.lr', '')}")
def test_the_settings_of_every_case_are_allowed_and_can_be_measured(case, tmp_path):
    cfg = settings(case, tmp_path, 3)
    assert cfg.seed == 3 and METHODS[cfg.method].in_prompt and cfg.save_every * bench_compare.SAVES <= cfg.steps and bool(cfg.data.validation_folder) is case.held_out
    trigger = METHODS[cfg.method](cfg).triggers()
    captions = [file.read_text() for file in (tmp_path / "held" / ("moon" if cfg.method == "textual_inversion" else "robot")).glob("*.txt")]
    assert len(captions) == 8 and (cfg.method == "textual_inversion" or all(trigger in caption for caption in captions))


def test_the_cases_differ_in_method_and_rate_and_some_hold_nothing_out():
    assert len(CASES) >= 10 and len({learned.TASKS[case.task].method for case in CASES}) >= 6
    assert len({case.values.get("optim.lr") for case in CASES}) >= 5 and 0 < sum(case.held_out for case in CASES) < len(CASES)


@pytest.mark.parametrize("task", ["lora", "pivotal"])
def test_a_run_is_trained_measured_and_judged_at_every_save(task, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "JUDGED", 4)
    monkeypatch.setattr(run, "random_scenes", lambda count, generator: random_scenes(min(count, 8), generator))
    monkeypatch.setattr(run, "drawn", (drawn := Drawn()).drawn)
    monkeypatch.setattr(bench_compare, "SAVES", 2)
    more = {"steps": 2, "pivotal.inversion_steps": 1} if task == "pivotal" else {"steps": 2}
    row = measure(4, Case(task, {}, True), tmp_path, Standalone, more=more)
    assert (row["run"], row["seed"], row["steps"], [r["step"] for r in row["rows"]], list(row["scores"])) == (4, bench_compare.FIRST + 4, 2, [0, 1, 2], [1, 2])
    assert all(r["held_out"] for r in row["rows"]) and row["scores"][2] == {"seen": 0, "kept": 1, "score": 0}  # drawings came, and the same ones each time
    assert row["training"] > 0 and row["numbers"] > 0 and len(drawn.asked) == 1 + 2 * (len(SEEDS) + 1)


def made(number: int, scores: dict, suggested: int = 5, method: str = "lora", seconds: float = 1.1) -> dict:
    rows = [{"step": step, "files": ["a"] * bool(step), "loss": 0.1, "gain": 0.0, "drift": 0.0, "held_out": True, "more": {}} for step in (0, *scores)]
    found = {step: {"seen": score, "kept": 1.0, "score": score} for step, score in scores.items()}
    return {"run": number, "task": method, "method": method, "seed": number, "values": {}, "steps": 9, "training": 100.0, "numbers": seconds, "rows": rows, "scores": found}


@pytest.fixture
def rule(monkeypatch):
    """A rule that suggests step 5."""
    monkeypatch.setattr(bench_compare, "suggest", lambda rows: Suggestion(5, "Because."))


def test_a_suggestion_is_good_within_a_twentieth_of_the_best(rule):
    assert judgement(made(0, {5: 0.95, 9: 1.0}))["near"] and not judgement(made(0, {5: 0.94, 9: 1.0}))["near"]
    row = judgement(made(0, {5: 0.5, 9: 0.4}))
    assert (row["suggested"], row["best"], row["near"]) == (5, 5, True) and row["cost"] == pytest.approx(1.1 / 3 * 11 / 100, abs=1e-4)


def test_the_command_goes_on_where_it_was_stopped_and_counts(tmp_path, monkeypatch, capsys, rule):
    done = []

    def fake(number, case, folder, host, told):
        done.append(number)
        if len(done) == 2:
            raise KeyboardInterrupt
        return made(number, {5: 0.9, 9: 1.0 if number == 1 else 0.8}, method="lora" if number else "textual_inversion")

    monkeypatch.setattr(bench_compare, "measure", fake)
    args = Namespace(report=str(tmp_path / "r.json"), runs=4, json=False, grid=False)
    with pytest.raises(KeyboardInterrupt):
        bench_compare.main(args, None)
    assert bench_compare.main(args, None) == 0 and done == [0, 1, 1, 2, 3]
    text = capsys.readouterr().out
    assert "Within 5% of the best save in 3 of 4 runs (75%, 95% interval 30% to 95%)." in text and "The last save is that good in 1, the one with the least loss in 3." in text and "of a LoRA cost 4.0% of its training" in text
    assert "| 2 | lora | as in the demo | 5 | 0.90 | 9 | 1.00 | no | 4.0% |" in text
    assert bench_compare.main(Namespace(**{**vars(args), "json": True}), None) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "r.json").read_text()) and len(done) == 5
    monkeypatch.setattr(bench_compare, "suggest", lambda rows: Suggestion(9, "Now."))
    assert [row["suggested"] for row in Report(tmp_path / "r.json").rows] == [9] * 4  # what the rule says now


def test_a_wrong_report_is_one_sentence(tmp_path):
    (tmp_path / "r.json").write_text('{"runs": [1]}')
    with pytest.raises(ValueError, match="is no report of `bench compare`; name another file"):
        Report(tmp_path / "r.json")


def test_a_run_that_learned_nothing_is_shown_and_not_counted(rule):
    rows = [judgement(made(0, {5: 0.1, 9: 0.1})), judgement(made(1, {5: 0.9, 9: 0.8}))]
    assert "in 1 of 1 runs (100%" in table(rows) and "1 run learned nothing and is not counted" in table(rows) and "| 1 | lora |" in table(rows)
    assert "Within" not in table(rows[:1])


def test_where_no_step_is_suggested_none_is_good(monkeypatch):
    monkeypatch.setattr(bench_compare, "suggest", lambda rows: Suggestion(None, "Nothing was learned.", "underfitting"))
    row = judgement(made(0, {5: 0.9, 9: 0.8}))
    assert (row["suggested"], row["near"]) == (None, False) and "| none (underfitting) | 0.00 | 5 | 0.90 | no |" in table([row])


def test_no_runs_are_an_empty_table():
    assert table([]).count("\n") == 2


def test_one_run_in_full(tmp_path, monkeypatch):
    """A short one, judged on few pictures: the first saves know too little, and the numbers see that."""
    monkeypatch.setattr(run, "JUDGED", 16)
    for name, value in (("SEEDS", (0,)), ("SAVES", 4), ("FIRST", 1)):
        monkeypatch.setattr(bench_compare, name, value)
    row = judgement(measure(1, CASES[1], tmp_path, Standalone, more={"steps": 80, "data.batch": 4, "optim.schedule": "constant"}))
    scores = {int(step): found["score"] for step, found in row["scores"].items()}
    assert max(scores[20], scores[40]) < 0.6 < scores[80] and row["near"] and row["suggested"] == 80
