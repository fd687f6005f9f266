"""`bench methods`: every method has a row, what is measured is kept and not measured again, and the tables say what the rows say."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from lib_tuner import bench_methods
from lib_tuner.bench_methods import LEARNS, Report, costs, table
from lib_tuner.bench_worker import Ours, Side
from lib_tuner.data.pictures import from_pixels
from lib_tuner.demo import learned, run
from lib_tuner.demo.run import Rest, kinds
from lib_tuner.demo.world import draw, random_scenes
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS


def test_every_method_learns_something_in_the_table():
    assert {task.method for task in learned.TASKS.values()} | set(LEARNS) >= set(METHODS)


def test_what_is_kept_is_the_worst_of_prompts_diversity_and_saturation():
    before = Rest(0.9, 8.0, 0.4)
    assert Rest(0.9, 8.0, 0.4).kept(before) == 1 and Rest(0.95, 9.0, 0.5).kept(before) == 1
    assert [Rest(*after).kept(before) for after in ((0.45, 8.0, 0.4), (0.9, 2.0, 0.4), (0.9, 8.0, 0.1))] == [0.5, 0.25, 0.25]


def test_kinds_count_what_is_seen_often():
    assert kinds(["star"] * 8) == 1 and kinds(["star", "moon"] * 4) == pytest.approx(2)
    assert kinds(["star"] * 3 + ["moon"]) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


@pytest.mark.parametrize("name", learned.TASKS)
def test_the_settings_of_every_row_are_allowed(name, tmp_path):
    (tmp_path / "data" / "class").mkdir(parents=True)
    (tmp_path / "data" / "class" / "0.txt").write_text("a star")
    cfg = learned.settings(learned.TASKS[name], tmp_path, 3)
    assert cfg.seed == 3 and cfg.method == learned.TASKS[name].method and cfg.steps >= 200
    assert METHODS[cfg.method](cfg).triggers()


def test_a_row_is_learned_on_the_seeds_prompts_and_judged_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "JUDGED", 4)
    monkeypatch.setattr(learned, "JUDGED", 4)
    monkeypatch.setattr(run, "random_scenes", lambda count, generator: random_scenes(min(count, 8), generator))
    monkeypatch.setattr(run, "drawn", (drawn := Drawn()).drawn)
    row = learned.measure("pivotal", 2, tmp_path, Standalone, {"steps": 2, "pivotal.inversion_steps": 1})
    assert (row["task"], row["seed"], row["steps"], row["pictures"]) == ("pivotal", 2, 2, 4)
    assert row["before"] == row["after"] == 0 and row["kept"] == row["right"] == row["kinds"] == row["saturation"] == 1  # the same pictures came both times
    assert all(learned.WORD in prompt for prompt in drawn.asked[0]) and drawn.asked[0] == drawn.asked[2] and drawn.asked[1] == drawn.asked[3]
    assert list(tmp_path.glob(f"runs/*/{learned.WORD}.safetensors"))


class Drawn:
    """Stands in for the sampler: the same drawings for every prompt; keeps what was asked."""

    def __init__(self):
        self.asked = []

    def drawn(self, host, prompts, seed):
        generator = torch.Generator().manual_seed(1)
        self.asked.append(prompts)
        return [from_pixels(pixels) for pixels in draw(random_scenes(len(prompts), generator), generator)]


# ---- costs


@pytest.mark.parametrize("method", ["lora", "dreambooth", "textual_inversion"])
def test_our_side_tells_parameters_and_the_saved_files_size(method, checkpoint_file, tmp_path):
    bench_methods.draw_pictures(tmp_path / "pictures", 64, 1)
    side = Ours(Side("ours", method, 64, "fp32", checkpoint_file, tmp_path), Standalone)
    side.run(0, 1)
    count, size = side.parameters(), side.saved()
    files = [path for path in tmp_path.glob("runs/*/*") if path.suffix in (".safetensors", ".pt")]
    assert size == sum(path.stat().st_size for path in files) > 2 * count > 0  # fp16, or fp32 in an embedding
    assert not list(tmp_path.glob("runs/*/state/*"))


class FakeChild:
    """A child that takes twice as long where it is not the one beside."""

    def __init__(self, side, host):
        self.side, self.seconds = side, []

    def answer(self):
        assert (self.side.folder / "pictures" / "0.png").is_file()

    def turn(self, count, warm_up=False):
        self.seconds += [] if warm_up else [1.0 if self.side.task == "lora" else 2.0]

    def ask(self, method, *arguments):
        return {"peak": 4.0, "dtype": "bfloat16", "parameters": 7_000_000, "saved": 14_000_000}[method]

    def end(self):
        pass


def test_costs_are_those_of_turns_taken_with_lora_and_are_kept_at_once(tmp_path):
    report = Report(tmp_path / "report.json")
    costs(["loha", "lora"], tmp_path / "x", None, report, SimpleNamespace(line=lambda text: None, show=lambda text: None), FakeChild)
    rows = json.loads((tmp_path / "report.json").read_text())["costs"]
    assert [(row["task"], row["ratio"], row["repeats"]) for row in rows] == [("loha", 2.0, 3), ("lora", 1.0, 3)]
    again = Report(tmp_path / "report.json")
    assert again.has("costs", "loha") and not again.has("costs", "lokr") and not again.has("learned", "loha", 1)
    assert "| loha | 7 M | 14 MB | 2.00 | 1.00 |" in table(again.rows)


# ---- the command


def command(tmp_path, **values):
    return Namespace(**{"report": str(tmp_path / "r.json"), "seeds": 2, "only": ["lora", "controlnet"], "no_costs": True, **values})


def test_the_command_goes_on_where_it_was_stopped_and_pools_the_seeds(tmp_path, monkeypatch, capsys):
    made = []

    def measure(name, seed, folder, host):
        made.append((name, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        hinted = {"hint": "colour", "with_hint": {"colour": [0.5, 0, 1]}, "without": {"colour": [0.125, 0, 1]}, "chance": {"colour": 0.125}}
        return {"task": name, "seed": seed, "pictures": 48, "steps": 5, **({"before": 0.0, "after": 0.5 * seed, "kept": 0.7 + 0.1 * seed} if name == "lora" else hinted)}

    monkeypatch.setattr(learned, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        bench_methods.main(command(tmp_path), None)
    assert bench_methods.main(command(tmp_path), None) == 0
    assert made == [("lora", 1), ("controlnet", 1), ("lora", 2), ("lora", 2), ("controlnet", 2)]
    text = capsys.readouterr().out
    assert "| lora | 5 | 2 | 0% | 75% [65%, 83%] | 85% (80% to 90%) |" in text
    assert "| controlnet | colour | 5 | 2 | colour | 50% [40%, 60%] | 12% | 12% |" in text


@pytest.mark.parametrize("values, said", [({"only": ["lorra"]}, "--only lorra: there is no such row"), ({}, "is no report of `bench methods`")])
def test_a_wrong_row_or_report_is_one_sentence(values, said, tmp_path):
    (tmp_path / "r.json").write_text("[1]")
    with pytest.raises(ValueError, match=said):
        bench_methods.main(command(tmp_path, **values), None)
