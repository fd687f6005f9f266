"""The XYZ plot, as far as its axes: others add theirs to `axis_options` before the page is built."""

from types import SimpleNamespace

from modules import scripts, sd_models, sd_samplers


class AxisOption(SimpleNamespace):
    """`apply` puts one of an axis's values into a wish for a picture."""

    def __init__(self, label, type, apply, format_value=lambda p, option, x: f"{option.label}: {x}", confirm=None, cost=0.0, choices=None, prepare=None):
        super().__init__(label=label, type=type, apply=apply, format_value=format_value, confirm=confirm, cost=cost, choices=choices, prepare=prepare)


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
