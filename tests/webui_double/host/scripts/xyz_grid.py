"""The XYZ plot, as far as its axes: others add theirs to `axis_options` before the page is built."""

# without postponed annotations: dataclasses would look the module up, and a script is in no list of modules
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modules import scripts, sd_models, sd_samplers


@dataclass
class AxisOption:
    """`apply` puts one of an axis's values into a wish for a picture."""

    label: str
    type: Callable[[str], Any]
    apply: Callable[[Any, Any, Any], Any]
    format_value: Callable[[Any, Any, Any], str] = lambda p, option, x: f"{option.label}: {x}"
    confirm: Callable[[Any, Any], Any] | None = None
    cost: float = 0.0
    choices: Callable[[], list[str]] | None = None
    prepare: Callable[[Any], Any] | None = None


def field(name):
    return lambda p, x, xs: setattr(p, name, x)


def setting(name):
    return lambda p, x, xs: p.override_settings.__setitem__(name, x)


axis_options = [
    AxisOption("Nothing", str, lambda p, x, xs: None),
    AxisOption("Seed", int, field("seed")),
    AxisOption("Steps", int, field("steps")),
    AxisOption("CFG Scale", float, field("cfg_scale")),
    AxisOption("Sampler", str, field("sampler_name"), choices=sd_samplers.visible_sampler_names),
    AxisOption("Checkpoint name", str, setting("sd_model_checkpoint"), cost=1.0, choices=lambda: sorted(sd_models.checkpoints_list)),
    AxisOption("Clip skip", int, setting("CLIP_stop_at_last_layers")),
]


class Script(scripts.Script):
    def title(self):
        return "X/Y/Z plot"

    def ui(self, is_img2img):
        self.current_axis_options = [*axis_options]  # an axis that comes later is not among them
        return []
