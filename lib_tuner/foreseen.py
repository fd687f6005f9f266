"""What a person may want to mend before a run starts, each with the values that mend it. A new warning: a function of what is seen, and its place in WARNINGS.

Nothing here touches the model: pictures are looked at, the rest is arithmetic.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import KEPT as STATES
from .config import flat_values, options
from .disk import expanded
from .data.batches import Batches
from .data.prompts import mentions, template_lines
from .host import Forecast
from .methods import METHODS
from .optim import parse_lr
from .sd.files import read_header
from .sd.tokenizer import Tokenizer
from .settings import InpaintConfig, OptimConfig, TrainConfig
from .words import gigabytes, number_of

USUAL = {  # learning rates at which a method is usually trained with AdamW on SD1.5 (kohya's, the WebUI's and diffusers' guides)
    "lora": (1e-5, 1e-3), "locon": (1e-5, 1e-3), "loha": (1e-5, 1e-3), "lokr": (1e-5, 1e-3), "adalora": (5e-5, 5e-3), "textual_inversion": (1e-4, 2e-2),
    "dreambooth": (5e-7, 1e-5), "pivotal": (1e-5, 1e-3), "hypernetwork": (1e-6, 1e-4),
    "t2i_adapter": (1e-6, 1e-4), "controlnet": (1e-6, 1e-4),
}
SMALL_MODEL = 20  # the embedded model learns at rates this many times higher
NARROWEST, NARROWEST_SMALL = 320, 64  # widths of SD1.5's and the embedded model's first level; a rank above cannot add anything
KNOWN = 40000  # the vocabulary is sorted by how often a word is met: `cat` is 2368, `robot` 8797, but the trainers' rare words (sks, ohwx) are above 48000
FEWEST = 256  # px of a side, below which a full-size model draws hardly anything
SIZED = ("data.resolution", "data.bucket_min", "data.bucket_max", "data.bucket_step", "optim.betas", "sample.steps", "sample.cfg")  # the embedded model has others


@dataclass(frozen=True)
class Fix:
    """One click that mends: what it is called, and the settings it makes."""

    label: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Warning_:
    """Something a person may want to know before the run starts."""

    text: str
    fix: Fix | None = None


@dataclass(frozen=True)
class Seen:
    """What is known of a run before it starts."""

    cfg: TrainConfig
    forecast: Forecast
    batches: Batches
    trigger: str


def warnings(run: Seen) -> list[Warning_]:
    """All there are, in the order in which they matter."""
    return [warning for look in WARNINGS if (warning := look(run))]


def kept_on_disk(cfg: TrainConfig) -> tuple[int, int]:
    """The saves and states that lie on the disk at the end."""
    saves = 1 + ((cfg.steps - 1) // cfg.save_every if cfg.save_every else 0)
    return min(saves, cfg.keep_last or saves), min(saves, STATES)


def _idle_gpu(run: Seen) -> Warning_ | None:
    if not run.forecast.idle_gpu:
        return None
    return Warning_("This machine has an NVIDIA card, but its PyTorch computes on the CPU alone, which is many times slower: the README says how to install one that uses it.")


def _few_pixels(run: Seen) -> Warning_ | None:
    """The form starts with settings for the embedded model, whose pictures have 64 px."""
    usual, given = flat_values(TrainConfig()), flat_values(run.cfg)
    if run.forecast.small or run.cfg.data.resolution >= FEWEST:
        return None
    changed = {key: usual[key] for key in SIZED if given[key] != usual[key]}
    text = f"{run.cfg.data.resolution} px is far less than the 512 px of SD1.5, which draws little at this size; other settings are the embedded model's too, maybe."
    return Warning_(text, Fix("Set them as usual", {**changed, **_drawn_class(run.cfg)}))


def _drawn_class(cfg: TrainConfig) -> dict[str, Any]:
    """Away with the drawn class pictures of a first run, which say nothing of another subject."""
    return {"data.class_folder": ""} if "demo-data" in Path(cfg.data.class_folder).parts else {}


def _captions(run: Seen) -> Warning_ | None:
    without = [item for item in run.batches.items if not item.is_class and not item.caption]
    if not without or run.batches.cfg.template:
        return None
    text = f"{number_of(len(without), 'picture')} without a caption: all that is in them is learned as one thing."
    return Warning_(text, Fix("Use the template “a photo of [name]”", {"data.template": "subject"}))


def _rate(run: Seen) -> Warning_ | None:
    low, high = USUAL.get(run.cfg.method, (0.0, float("inf")))
    if run.cfg.optim.name in ("prodigy", "adamw_schedulefree", "adafactor"):  # these have ranges of their own
        return None
    low, high = (low * SMALL_MODEL, high * SMALL_MODEL) if run.forecast.small else (low, high)
    rate = max(value for value, _ in parse_lr(run.cfg.optim.lr))
    if low <= rate <= high:
        return None
    usual = f"{low:g}" if rate < low else f"{high:g}"
    what = "learns hardly anything" if rate < low else "tends to break the picture"
    text = f"A learning rate of {rate:g} {what}: {METHODS[run.cfg.method].label} is usually trained at {low:g} to {high:g}."
    return Warning_(text, Fix(f"Set it to {usual}", {"optim.lr": usual}))


def _untaught(run: Seen) -> Warning_ | None:
    """A word that is learned has to be in the prompts, whose template leaves that to the captions."""
    template = run.cfg.data.template
    if not METHODS[run.cfg.method].learns_words or not template or any("[name]" in line or mentions(line, run.trigger) for line in template_lines(template)):
        return None
    without = [item for item in run.batches.items if not item.is_class and "[name]" not in item.caption and not mentions(item.caption, run.trigger)]
    if not without:
        return None
    text = f"{number_of(len(without), 'picture')} without the word that is learned in the caption, and the template has no [name]: they do not teach it."
    return Warning_(text, Fix("Use the template “a photo of [name]”", {"data.template": "subject"}))


def _other_trigger(run: Seen) -> Warning_ | None:
    """A method that learns words puts these into the captions, and no other."""
    given, words = run.cfg.trigger.strip(), getattr(run.trigger, "each", ())
    if not METHODS[run.cfg.method].learns_words or not given or given.lower() in (word.lower() for word in (*words, run.trigger)):
        return None
    text = f"The trigger word “{given}” is not used: {METHODS[run.cfg.method].label} puts the word that it learns into the captions, “{run.trigger}”."
    return Warning_(text, Fix("Leave it empty", {"trigger": ""}))


def _prodigy(run: Seen) -> Warning_ | None:
    rate = max(value for value, _ in parse_lr(run.cfg.optim.lr))
    if run.cfg.optim.name != "prodigy" or 0.1 <= rate <= 2:
        return None
    return Warning_(f"Prodigy finds the learning rate itself: yours, {rate:g}, only multiplies what it finds, and is usually 1.", Fix("Set it to 1", {"optim.lr": "1"}))


def _lion(run: Seen) -> Warning_ | None:
    """Its paper (2302.06675) and lion-pytorch have 0.99 where Adam has 0.999; a recipe of kohya's leaves it at that."""
    if run.cfg.optim.name != "lion" or run.cfg.optim.betas != OptimConfig().betas:
        return None
    return Warning_("Lion looks back at fewer steps than AdamW: its betas are usually 0.9, 0.99.", Fix("Set them to 0.9, 0.99", {"optim.betas": "0.9, 0.99"}))


def _warmup(run: Seen) -> Warning_ | None:
    """Each stage of a run has a warm-up of its own."""
    first = getattr(run.cfg.settings, "inversion_steps", 0)
    steps = min(filter(None, (first, run.cfg.steps - first)), default=run.cfg.steps)
    if run.cfg.optim.warmup < steps:
        return None
    usual = steps // 10
    return Warning_(f"The warm-up takes {run.cfg.optim.warmup} steps, and there are {steps}: the learning rate is never reached.", Fix(f"Set the warm-up to {usual}", {"optim.warmup": usual}))


def _unused(run: Seen) -> Warning_ | None:
    """Settings that an optimizer has no place for."""
    usual, labels = OptimConfig(), {option.key: option.label for option in options(OptimConfig)}
    given = [name for name in {"lion": ("eps",), "adafactor": ("betas", "eps")}.get(run.cfg.optim.name, ()) if getattr(run.cfg.optim, name) != getattr(usual, name)]
    if not given:
        return None
    text = f"The setting {labels[given[0]]} is not used by the optimizer {run.cfg.optim.name}."
    return Warning_(text, Fix("Set it as usual", {f"optim.{name}": getattr(usual, name) for name in given}))


def _text_rate(run: Seen) -> Warning_ | None:
    """Of methods that train no text encoder; where it is only off, the rate may wait for it, as in the presets."""
    if not run.cfg.optim.text_lr or any(name.rpartition(".")[2] == "text_encoder" for name in flat_values(run.cfg.settings)):
        return None
    return Warning_(f"The text encoder's learning rate is not used: {METHODS[run.cfg.method].label} does not train the text encoder.", Fix("Set it to 0", {"optim.text_lr": 0.0}))


def _text_stays(run: Seen) -> Warning_ | None:
    """Who goes on from a LoRA that has the text encoder may not expect that it learns no further."""
    own = flat_values(run.cfg.settings)
    part = "layers." if "layers.start" in own else ""  # of pivotal tuning
    if own.get(f"{part}text_encoder", True) or not own.get(f"{part}start"):
        return None
    with suppress(OSError, ValueError):  # what cannot be read, the run says
        if any(name.startswith("lora_te") for name in read_header(expanded(own[f"{part}start"]))[0]):
            fix = Fix("Train the text encoder too", {f"{run.cfg.method}.{part}text_encoder": True})
            return Warning_("The file to start from has the text encoder, which stays as it is there: it is switched off.", fix)
    return None


def _no_share(run: Seen) -> Warning_ | None:
    if not run.cfg.data.class_folder or run.cfg.data.class_share:
        return None
    return Warning_("The class pictures are not used, since their share is 0.", Fix("Set it to one half", {"data.class_share": 0.5}))


def _rank(run: Seen) -> Warning_ | None:
    narrowest = NARROWEST_SMALL if run.forecast.small else NARROWEST
    own = flat_values(run.cfg.settings)
    high = {name: rank for name, rank in own.items() if name.rpartition(".")[2] in ("rank", "conv_rank") and rank > narrowest}
    if not high:
        return None
    usual = narrowest // 5 * 2
    text = f"Rank {max(high.values())} is above the width of the model's narrowest layers ({narrowest}): the file grows, what it can learn does not."
    fixed = {f"{run.cfg.method}.{name.replace('rank', part)}": float(usual) if part == "alpha" else usual for name in high for part in ("rank", "alpha")}
    return Warning_(text, Fix(f"Set the rank to {usual}", fixed))


def _known_word(run: Seen) -> Warning_ | None:
    """A trigger word of the vocabulary's frequent ones has a meaning already, which training would change."""
    first = next(iter(run.trigger.split()), "")
    if METHODS[run.cfg.method].learns_words or run.forecast.small or not first.isalpha():  # the embedded model knows few words, none of them rare
        return None
    tokens = Tokenizer().encode(first)
    if len(tokens) != 1 or tokens[0] >= KNOWN:
        return None
    rare = f"{first[:2]}x{first[2:]}q"
    changed = {"trigger": run.trigger.replace(first, rare, 1), "sample.prompts": re.sub(rf"\b{re.escape(first)}\b", rare, run.cfg.sample.prompts)}
    return Warning_(f"The trigger word “{first}” is one that the model knows already: what it means changes with the training.", Fix(f"Use “{rare}” instead", changed))


def _timesteps(run: Seen) -> Warning_ | None:
    if run.cfg.method != "t2i_adapter" or run.cfg.loss.t_distribution != "uniform":
        return None
    text = "A T2I-Adapter is usually trained at the noisy timesteps, where the layout is decided (cubic)."
    return Warning_(text, Fix("Draw timesteps as cubic", {"loss.t_distribution": "cubic"}))


def _no_masks(run: Seen) -> Warning_ | None:
    if run.forecast.inpainting is not False or run.cfg.inpaint == InpaintConfig():
        return None
    usual = {f"inpaint.{name}": value for name, value in flat_values(InpaintConfig()).items()}
    return Warning_("The settings for inpainting models are not used: this model is an ordinary one, which is given no masks.", Fix("Set them as usual", usual))


def _no_samples(run: Seen) -> Warning_ | None:
    if run.cfg.sample.every and run.cfg.sample.prompts.strip():
        return None
    every = max(1, run.cfg.steps // 10)
    prompts = run.cfg.sample.prompts.strip() or ("a picture of [name]" if run.cfg.trigger or METHODS[run.cfg.method].learns_words else "")
    fix = Fix(f"Draw a sample every {every} steps", {"sample.every": every, "sample.prompts": prompts}) if prompts else None
    return Warning_("No samples are drawn, so nothing shows how far the training is." + ("" if fix else " Write a sample prompt."), fix)


def _no_room(run: Seen) -> Warning_ | None:
    if run.forecast.free is None or run.forecast.need < run.forecast.free:
        return None
    smaller = max(256, run.cfg.data.resolution // 2 // 64 * 64)
    change = {"data.batch": 1} if run.cfg.data.batch > 1 else {"data.resolution": smaller}
    label = "Set the batch size to 1" if run.cfg.data.batch > 1 else f"Set the resolution to {smaller}"
    return Warning_("That is more memory than there is: the run will probably end at once.", Fix(label, change))


def _no_disk(run: Seen) -> Warning_ | None:
    """While a state is written, an older one still lies there."""
    saves, states = kept_on_disk(run.cfg)
    need = saves * run.forecast.file + (states + (states == STATES)) * run.forecast.state
    folder = next(p for p in (expanded(run.cfg.output).absolute(), *expanded(run.cfg.output).absolute().parents) if p.is_dir())
    if not run.forecast.state or need < shutil.disk_usage(folder).free:
        return None
    text = f"The saves need about {gigabytes(need)}, and {gigabytes(shutil.disk_usage(folder).free)} are free in {folder}: make room, or choose another output folder."
    return Warning_(text, Fix("Save at the end only", {"save_every": 0}) if run.cfg.save_every else None)


WARNINGS = (
    _few_pixels, _idle_gpu, _captions, _untaught, _other_trigger, _rate, _prodigy, _lion, _warmup, _unused, _text_rate,
    _text_stays, _no_share, _rank, _known_word, _timesteps, _no_samples, _no_masks, _no_room, _no_disk,
)
