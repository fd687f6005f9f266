"""The measurement of how hints are followed: a hint that is followed scores, one that is not scores as chance does, and a run of it ends with a report."""

from __future__ import annotations

import pytest
import torch

from lib_tuner.data.pictures import from_pixels
from lib_tuner.demo import followed
from lib_tuner.demo.judge import Judge
from lib_tuner.demo.world import draw, random_scenes
from lib_tuner.hosts.standalone import Standalone


class Obedient:
    """A host that draws what the hint is of, or always the first of those pictures; counts what it is asked under."""

    def __init__(self, obeys: bool):
        generator = torch.Generator().manual_seed(7001)
        self.pictures, self.obeys, self.hints = [from_pixels(p) for p in draw(random_scenes(followed.JUDGED, generator), generator)], obeys, []

    def generate(self, requests):
        return [self.pictures[request.seed - 500] if self.obeys else self.pictures[0] for request in requests]

    def begin(self, batch):
        self.hints.append(batch.hint)


def test_who_follows_scores_and_who_does_not_scores_as_chance_does(tmp_path):
    task, judge = followed.Follower("t2i_adapter", tmp_path), Judge.load()
    good, bad = Obedient(True), Obedient(False)
    assert min(part for part, _, _ in task.score(good, good, judge).values()) > 0.95
    for name, (part, low, high) in task.score(bad, None, judge).items():
        assert low < followed.chance(name) < high and part < 0.5
    assert sum(map(len, good.hints)) == followed.JUDGED and bad.hints == []


@pytest.mark.parametrize("kind", followed.TASKS)
def test_a_measurement_trains_and_reports(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(followed, "LEARNED", 8)
    monkeypatch.setattr(followed, "JUDGED", 2)
    report = followed.measure(kind, tmp_path, Standalone, steps=1)
    assert report["steps"] == 1 and report["pictures"] == 2 and report["with_hint"].keys() == report["without"].keys() == report["chance"].keys()
    assert len(report["loss"]) == 2 and report["seconds"] > 0 and list(tmp_path.glob(f"runs/*/follow-{kind}.safetensors"))
