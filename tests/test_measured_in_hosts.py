"""What a run measures beside its steps, on every host: also where the model is in half precision and its layers are computed under autocast."""

from __future__ import annotations

import math
from typing import Any

import pytest
from test_hosts import run, values, world  # noqa: F401 (fixtures)

from lib_tuner.events import Drifted, Finished, Validated


@pytest.mark.half
def test_validation_loss_and_drift_are_measured_with_the_text_encoder_trained(world, values, data_folder, tmp_path):  # noqa: F811
    held = tmp_path / "held"
    held.mkdir()
    for file in (data_folder / "0.png", data_folder / "0.txt"):
        file.rename(held / file.name)
    given: dict[str, Any] = {**values, "steps": 1, "save_every": 0, "sample.every": 0, "optim.lr": "1e-2", "data.validation_folder": str(held), "validate_every": 1, "prior.drift": "on"}
    events = run(world, given)
    losses, drifts = ([value for event in events if isinstance(event, kind) for value in vars(event).values() if isinstance(value, float)] for kind in (Validated, Drifted))
    assert len(losses) == 2 and all(math.isfinite(loss) and 0 < loss < 10 for loss in losses) and losses[0] != losses[1]
    assert drifts[0] == 0 < drifts[-1] < 1 and events[-1].reason == "done" and isinstance(events[-1], Finished)
