"""The training settings that the WebUI writes beside a run: `settings-*.json` of 1.9.4, and the older text of `key: value` lines.

Keys: modules/textual_inversion/saving_settings.py and the parameters of train_embedding, which the older text listed as they were.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from .draft import Draft, is_on, number

SURE = {"learn_rate", "embedding_name", "hypernetwork_name", "data_root", "template_file", "template_filename", "latent_sampling_method", "gradient_step"}
_TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_LINE = re.compile(r"^[ \t]*(\w+)[ \t]*:[ \t]*(.*?)[ \t]*$", re.MULTILINE)

_SAME = {
    "steps": "steps", "batch_size": "data.batch", "gradient_step": "optim.accumulate", "data_root": "data.folder",
    "latent_sampling_method": "data.latent", "shuffle_tags": "data.shuffle_tags", "tag_drop_out": "data.tag_dropout", "use_weight": "data.masks",
    "create_image_every": "sample.every", "save_embedding_every": "save_every", "save_hypernetwork_every": "save_every",
    "activation_func": ".activation", "weight_init": ".init", "add_layer_norm": ".layer_norm",
    "num_vectors_per_token": ".vectors", "save_image_with_stored_embedding": ".save_png", "preview_prompt": "sample.prompts",
    "preview_negative_prompt": "sample.negative", "preview_steps": "sample.steps", "preview_cfg_scale": "sample.cfg", "preview_seed": "sample.seed",
    "preview_width": "sample.width", "preview_height": "sample.height",
}  # fmt: skip
_SAMPLERS = {"ddim": "ddim", "euler a": "euler_a", "dpm++ 2m": "dpmpp_2m", "dpm++ 2m karras": "dpmpp_2m"}
_CHOICES = {"preview_sampler_name": ("sample.sampler", _SAMPLERS), "preview_sampler_index": ("sample.sampler", _SAMPLERS)}
# the log directory is the finished run's own; a preview's prompt is there only where the previews followed the txt2img tab
_IDLE = re.compile(r"datetime|log_directory|num_of_dataset_images|id_task|preview_from_txt2img")


def read_lines(text: str) -> dict[str, str]:
    """The last value of every key of `key: value` lines: the WebUI appended one run's block to the next."""
    return dict(_LINE.findall(text))


def of_webui(raw: Mapping[str, Any]) -> Draft:
    """An embedding's settings, or a hypernetwork's. The WebUI squeezes every picture into one shape, so there are no buckets."""
    kind, name = ("hypernetwork", "hypernetwork_name") if is_on(raw.get("hypernetwork_name")) else ("textual_inversion", "embedding_name")
    draft = Draft(raw, kind)
    draft.put("data.buckets", False, "varsize")
    for rule in (_size, _rate, _clip, _template, _networks):
        rule(draft)
    if str(draft.raw.get("preview_seed")) == "-1":
        draft.take("preview_seed")  # a new one each time
    draft.put_rest({**_SAME, name: "name"}, _CHOICES, _IDLE)
    return draft


def _size(draft: Draft) -> None:
    width, height = draft.take("training_width"), draft.take("training_height")
    if number(width) == number(height):
        draft.put("data.resolution", width, "training_width")
    else:
        draft.miss("training_width x training_height", f"{width} x {height}")


def _rate(draft: Draft) -> None:
    text = str(draft.take("learn_rate", ""))
    try:
        kept = _schedule(text)
    except ValueError:
        kept = []
    if any(number(part.partition(":")[0]) for part in kept):
        draft.put("optim.lr", ", ".join(kept), "learn_rate", text)
    else:
        draft.miss("learn_rate", text)


def _schedule(text: str) -> list[str]:
    """`0.005:100, 1e-3` without what the WebUI passes over in silence (learn_schedule.py): empty parts, steps gone by, what follows a last rate."""
    kept, last = [], 0
    for rate, _, until in (part.strip().partition(":") for part in text.split(",") if part.strip()):
        if (number(rate) or 0) < 0 or number(rate) is None:
            raise ValueError(f"{rate} is no rate")
        if until.strip() in ("", "-1"):
            return [*kept, rate.strip()]
        if int(until) > last:
            last = int(until)
            kept.append(f"{rate.strip()}:{last}")
    return kept


def _networks(draft: Draft) -> None:
    """A hypernetwork's, as far as the WebUI writes them down."""
    layers = draft.take("layer_structure")
    if layers is not None:
        text = layers if isinstance(layers, str) else json.dumps(layers)
        draft.put(".structure", text.strip("[] "), "layer_structure", text)


def _clip(draft: Draft) -> None:
    """The norm is ours too; clipping single values is not. The WebUI's default is neither."""
    mode, value = str(draft.take("clip_grad_mode", "disabled")), draft.take("clip_grad_value")
    if mode == "norm" and number(value) is not None:
        draft.put("optim.clip", value, "clip_grad_value")
    elif is_on(mode):
        draft.miss("clip_grad_mode", f"{mode} {value}")
    else:
        draft.put("optim.clip", 0.0, "clip_grad_mode", mode)


def _template(draft: Draft) -> None:
    """One of the WebUI's own templates is shipped under the same name; another is read where it lies."""
    path = str(draft.take("template_file", draft.take("template_filename", "")))
    stem = PureWindowsPath(path).stem  # takes both slashes
    if os.path.isfile(_TEMPLATES / f"{stem}.txt"):
        draft.put("data.template", stem, "template_file", path)
    elif os.path.isfile(path):  # pathlib's raises where a name is too long
        draft.put("data.template", path, "template_file")
    else:
        draft.miss("template_file", path)
