"""What a run reports, in order: Started, then Stepped and now and then Sampled, Saved, Validated, Warned, and Finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Preparing:
    """Something long before the first step or between two: `done` of `total` of what `text` names; total 0 where that is not counted."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Started:
    """The run goes from update `start` to update `steps`; its files are in `folder`. `pictures`: a few of those it learns from."""

    start: int
    steps: int
    folder: Path
    pictures: tuple[Path, ...] = ()
    model: str = ""  # the name of what is trained on


@dataclass(frozen=True)
class Stepped:
    """Update `step` is done. `loss` is a 0-dim tensor of its own: reading it waits for the device, so read it rarely."""

    step: int
    loss: Tensor
    lr: float


@dataclass(frozen=True)
class Sampled:
    """Pictures (PIL) after update `step`, and the files they were written to."""

    step: int
    images: list[Any]
    paths: list[Path]


@dataclass(frozen=True)
class Saved:
    """Files written after update `step`; `report` says how the host reads them, `names` under which name it offers each (by file name)."""

    step: int
    paths: list[Path]
    report: str
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Validated:
    """Fixed-noise loss on held-out pictures after update `step`."""

    step: int
    loss: float


@dataclass(frozen=True)
class Drifted:
    """How far predictions for prompts without the trigger word have moved from the frozen model's after update `step`: 0 not at all (metrics.prior_drift)."""

    step: int
    drift: float


@dataclass(frozen=True)
class Warned:
    """Something the user should know; the run goes on."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The run ended after update `step`, because of `reason`: done, stopped, or nan."""

    step: int
    reason: str
    files: list[Path]


Event = Union[Preparing, Started, Stepped, Sampled, Saved, Validated, Drifted, Warned, Finished]
