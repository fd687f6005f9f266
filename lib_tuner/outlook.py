"""What a run would do, in plain words, before it starts; and what a person may want to mend first, each with the values that mend it.

Nothing here touches the model: pictures are looked at, the rest is arithmetic.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .checkpoint import KEPT as STATES
from .config import flat_values, options
from .data import class_pictures
from .data.batches import Batches
from .data.holes import Holes
from .data.prompts import mentions, template_lines
from .host import Forecast
from .methods import METHODS
from .optim import parse_betas, parse_lr
from .progress import duration
from .sd.files import read_header
from .sd.tokenizer import Tokenizer
from .settings import InpaintConfig, OptimConfig, TrainConfig
from .words import number_of

USUAL = {  # learning rates at which a method is usually trained with AdamW on SD1.5 (kohya's, the WebUI's and diffusers' guides)
    "lora": (1e-5, 1e-3), "locon": (1e-5, 1e-3), "loha": (1e-5, 1e-3), "lokr": (1e-5, 1e-3), "adalora": (5e-5, 5e-3), "textual_inversion": (1e-4, 2e-2),
    "dreambooth": (5e-7, 1e-5), "pivotal": (1e-5, 1e-3), "hypernetwork": (1e-6, 1e-4),
    "t2i_adapter": (1e-6, 1e-4), "controlnet": (1e-6, 1e-4),
}
SMALL_MODEL = 20  # the embedded model learns at rates this many times higher
NARROWEST, NARROWEST_SMALL = 320, 64  # widths of SD1.5's and the embedded model's first level; a rank above cannot add anything
KNOWN = 40000  # the vocabulary is sorted by how often a word is met: `cat` is 2368, `robot` 8797, but the trainers' rare words (sks, ohwx) are above 48000
SHOWN = 8  # problems


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
class Outlook:
    """The plan of a run: sentences, warnings, and what is wrong with single pictures."""

    lines: list[str]
    warnings: list[Warning_] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def refuse(cfg: TrainConfig) -> None:
    """What can be seen to be wrong without looking at pictures or model. Raises ValueError, a line per problem, each beginning with its setting's key."""
    problems = []
    for check in (lambda: parse_lr(cfg.optim.lr), lambda: parse_betas(cfg.optim.betas), lambda: _folder_there(cfg), lambda: _model_there(cfg)):
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def _folder_there(cfg: TrainConfig) -> None:
    if not cfg.data.folder.strip():
        raise ValueError("data.folder: is empty; name the folder that holds the pictures")
    if not Path(cfg.data.folder).expanduser().exists():
        raise ValueError(f"data.folder: {cfg.data.folder!r} does not exist; name the folder that holds the pictures")


def _model_there(cfg: TrainConfig) -> None:
    if cfg.checkpoint and not Path(cfg.checkpoint).expanduser().is_file():
        raise ValueError(f"checkpoint: {cfg.checkpoint!r} does not exist; give the path of an SD1.5 checkpoint (.safetensors or .ckpt)")


def outlook(cfg: TrainConfig, forecast: Forecast, seconds: float | None = None) -> Outlook:
    """The plan of the settings. `seconds` per step where a run of the same kind was measured. Raises ValueError for data that cannot be trained on."""
    refuse(cfg)
    method = METHODS[cfg.method](cfg)
    trigger, undrawn = method.triggers(), [] if cfg.resume else class_pictures.missing(cfg)
    data = replace(cfg.data, class_folder="") if len(undrawn) == cfg.prior.pictures > 0 else cfg.data  # there is no class picture yet
    batches = Batches(data, SimpleNamespace(vae=SimpleNamespace(factor=8, cache_key="")), cfg.seed, trigger, hints=method.hints,
                      holes=Holes(cfg.inpaint, cfg.seed) if forecast.inpainting else None)  # fmt: skip
    seen = (_pictures(batches), _drawn_first(len(undrawn)), _buckets(batches), _masks(batches))
    lines = [*seen, _length(cfg, batches), _stages(cfg), _time(cfg, seconds), _memory(forecast), _disk(cfg, forecast)]
    told = (_captions(batches), _untaught(cfg, batches, trigger), _rate(cfg, forecast), _prodigy(cfg), _warmup(cfg), _unused(cfg), _text_rate(cfg), _text_stays(cfg), _no_share(cfg), 
            _rank(cfg, forecast), _known_word(cfg, trigger, forecast), _timesteps(cfg), _no_samples(cfg), _no_masks(cfg, forecast))  # fmt: skip
    warnings = [w for w in (*told, _no_room(cfg, forecast), _no_disk(cfg, forecast)) if w]
    problems = [str(p) for p in batches.problems]
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return Outlook([line for line in lines if line], warnings, problems[:SHOWN] + more)


# ---- the plan --------------------------------------------------------------------------------------------------------


def _pictures(batches: Batches) -> str:
    own = [item for item in batches.items if not item.is_class]
    captioned = sum(bool(item.caption) for item in own)
    classes = len(batches.items) - len(own)
    repeated = sum(item.repeats for item in own)
    text = f"{number_of(len(own), 'picture')}, {captioned} with a caption"
    text += f", shown {repeated} times per epoch" if repeated != len(own) else ""
    return text + (f"; {number_of(classes, 'class picture')} beside them." if classes else ".")


def _buckets(batches: Batches) -> str:
    sizes = batches.summary()["ss_bucket_info"]["buckets"].values()
    shown = [f"{size['resolution'][0]}x{size['resolution'][1]} ({size['count']})" for size in sorted(sizes, key=lambda s: -s["count"])]
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return f"{number_of(len(shown), 'bucket')}: {', '.join(shown[:5])}{more}."


def _masks(batches: Batches) -> str:
    """What an inpainting model's masks cost: each has a latent of its own."""
    if batches.holes is None:
        return ""
    encoded = batches.encoded
    if not encoded:
        return "An inpainting model: a new random mask for every example, each of which is encoded twice in its step, whole and without what the mask hides."
    size = sum(2 * 4 * 4 * (w // 8) * (h // 8) for w, h in encoded)  # mean and deviation of four channels, fp32
    times = batches.holes.cfg.variants + 1
    return f"An inpainting model: each view of a picture is encoded {times} times, whole and without what a random mask hides: {len(encoded)} latents, {size / 1e6:.1f} MB in the cache."


def _length(cfg: TrainConfig, batches: Batches) -> str:
    per_epoch = -(-batches.steps_per_epoch // cfg.optim.accumulate)
    epochs = cfg.steps / max(1, per_epoch)
    repeats = [item.repeats for item in batches.items if not item.is_class]
    seen = epochs * sum(repeats) / len(repeats)
    return f"{cfg.steps} steps, {per_epoch} per epoch: a picture is seen about {_times(seen)}."


def _stages(cfg: TrainConfig) -> str:
    first = getattr(cfg.settings, "inversion_steps", 0)
    return f"Up to step {first} the word alone is learned, then the adapter." if first else ""


def _time(cfg: TrainConfig, seconds: float | None) -> str:
    if seconds is None:
        return "How long it takes is measured on the first steps."
    return f"About {duration(seconds * cfg.steps)} ({seconds:.3g} s per step, as measured in an earlier run of this kind)."


def _memory(forecast: Forecast) -> str:
    free = "" if forecast.free is None else f", {_gigabytes(forecast.free)} are free"
    return f"Needs about {_gigabytes(forecast.need)} of memory{free}; runs on {forecast.note}."


def _drawn_first(count: int) -> str:
    return f"{number_of(count, 'class picture')} will be drawn first." if count else ""


def _disk(cfg: TrainConfig, forecast: Forecast) -> str:
    """Said of methods whose files are large."""
    if not forecast.state:
        return ""
    saves, states = _kept(cfg)
    return f"{number_of(saves, 'save')} of {_gigabytes(forecast.file)} and {number_of(states, 'state')} of {_gigabytes(forecast.state)} to resume from will lie on the disk."


def _kept(cfg: TrainConfig) -> tuple[int, int]:
    """The saves and states that lie on the disk at the end."""
    saves = 1 + ((cfg.steps - 1) // cfg.save_every if cfg.save_every else 0)
    return min(saves, cfg.keep_last or saves), min(saves, STATES)


# ---- warnings --------------------------------------------------------------------------------------------------------


def _captions(batches: Batches) -> Warning_ | None:
    without = [item for item in batches.items if not item.is_class and not item.caption]
    if not without or batches.cfg.template:
        return None
    text = f"{number_of(len(without), 'picture')} without a caption: all that is in them is learned as one thing."
    return Warning_(text, Fix("Use the template “a photo of [name]”", {"data.template": "subject"}))


def _rate(cfg: TrainConfig, forecast: Forecast) -> Warning_ | None:
    low, high = USUAL.get(cfg.method, (0.0, float("inf")))
    if cfg.optim.name in ("prodigy", "adamw_schedulefree", "adafactor"):  # these have ranges of their own
        return None
    low, high = (low * SMALL_MODEL, high * SMALL_MODEL) if forecast.small else (low, high)
    rate = max(value for value, _ in parse_lr(cfg.optim.lr))
    if low <= rate <= high:
        return None
    usual = f"{low:g}" if rate < low else f"{high:g}"
    what = "learns hardly anything" if rate < low else "tends to break the picture"
    text = f"A learning rate of {rate:g} {what}: {METHODS[cfg.method].label} is usually trained at {low:g} to {high:g}."
    return Warning_(text, Fix(f"Set it to {usual}", {"optim.lr": usual}))


def _untaught(cfg: TrainConfig, batches: Batches, trigger: str) -> Warning_ | None:
    """A word that is learned has to be in the prompts, whose template leaves that to the captions."""
    template = cfg.data.template
    if not METHODS[cfg.method].learns_words or not template or any("[name]" in line or mentions(line, trigger) for line in template_lines(template)):
        return None
    without = [item for item in batches.items if not item.is_class and "[name]" not in item.caption and not mentions(item.caption, trigger)]
    if not without:
        return None
    text = f"{number_of(len(without), 'picture')} without the word that is learned in the caption, and the template has no [name]: they do not teach it."
    return Warning_(text, Fix("Use the template “a photo of [name]”", {"data.template": "subject"}))


def _prodigy(cfg: TrainConfig) -> Warning_ | None:
    rate = max(value for value, _ in parse_lr(cfg.optim.lr))
    if cfg.optim.name != "prodigy" or 0.1 <= rate <= 2:
        return None
    return Warning_(f"Prodigy finds the learning rate itself: yours, {rate:g}, only multiplies what it finds, and is usually 1.", Fix("Set it to 1", {"optim.lr": "1"}))


def _warmup(cfg: TrainConfig) -> Warning_ | None:
    """Each stage of a run has a warm-up of its own."""
    first = getattr(cfg.settings, "inversion_steps", 0)
    steps = min(filter(None, (first, cfg.steps - first)), default=cfg.steps)
    if cfg.optim.warmup < steps:
        return None
    usual = steps // 10
    return Warning_(f"The warm-up takes {cfg.optim.warmup} steps, and there are {steps}: the learning rate is never reached.", Fix(f"Set the warm-up to {usual}", {"optim.warmup": usual}))


def _unused(cfg: TrainConfig) -> Warning_ | None:
    """Settings that an optimizer has no place for."""
    usual, labels = OptimConfig(), {option.key: option.label for option in options(OptimConfig)}
    given = [name for name in {"lion": ("eps",), "adafactor": ("betas", "eps")}.get(cfg.optim.name, ()) if getattr(cfg.optim, name) != getattr(usual, name)]
    if not given:
        return None
    text = f"The setting {labels[given[0]]} is not used by the optimizer {cfg.optim.name}."
    return Warning_(text, Fix("Set it as usual", {f"optim.{name}": getattr(usual, name) for name in given}))


def _text_rate(cfg: TrainConfig) -> Warning_ | None:
    """Of methods that train no text encoder; where it is only off, the rate may wait for it, as in the presets."""
    if not cfg.optim.text_lr or any(name.rpartition(".")[2] == "text_encoder" for name in flat_values(cfg.settings)):
        return None
    return Warning_(f"The text encoder's learning rate is not used: {METHODS[cfg.method].label} does not train the text encoder.", Fix("Set it to 0", {"optim.text_lr": 0.0}))


def _text_stays(cfg: TrainConfig) -> Warning_ | None:
    """Who goes on from a LoRA that has the text encoder may not expect that it learns no further."""
    own = flat_values(cfg.settings)
    part = "layers." if "layers.start" in own else ""  # of pivotal tuning
    if own.get(f"{part}text_encoder", True) or not own.get(f"{part}start"):
        return None
    with suppress(OSError, ValueError):  # what cannot be read, the run says
        if any(name.startswith("lora_te") for name in read_header(Path(own[f"{part}start"]).expanduser())[0]):
            fix = Fix("Train the text encoder too", {f"{cfg.method}.{part}text_encoder": True})
            return Warning_("The file to start from has the text encoder, which stays as it is there: it is switched off.", fix)
    return None


def _no_share(cfg: TrainConfig) -> Warning_ | None:
    if not cfg.data.class_folder or cfg.data.class_share:
        return None
    return Warning_("The class pictures are not used, since their share is 0.", Fix("Set it to one half", {"data.class_share": 0.5}))


def _rank(cfg: TrainConfig, forecast: Forecast) -> Warning_ | None:
    narrowest = NARROWEST_SMALL if forecast.small else NARROWEST
    own = flat_values(cfg.settings)
    high = {name: rank for name, rank in own.items() if name.rpartition(".")[2] in ("rank", "conv_rank") and rank > narrowest}
    if not high:
        return None
    usual = narrowest // 5 * 2
    text = f"Rank {max(high.values())} is above the width of the model's narrowest layers ({narrowest}): the file grows, what it can learn does not."
    fixed = {f"{cfg.method}.{name.replace('rank', part)}": float(usual) if part == "alpha" else usual for name in high for part in ("rank", "alpha")}
    return Warning_(text, Fix(f"Set the rank to {usual}", fixed))


def _known_word(cfg: TrainConfig, trigger: str, forecast: Forecast) -> Warning_ | None:
    """A trigger word of the vocabulary's frequent ones has a meaning already, which training would change."""
    first = next(iter(trigger.split()), "")
    if METHODS[cfg.method].learns_words or forecast.small or not first.isalpha():  # the embedded model knows few words, none of them rare
        return None
    tokens = Tokenizer().encode(first)
    if len(tokens) != 1 or tokens[0] >= KNOWN:
        return None
    rare = f"{first[:2]}x{first[2:]}q"
    changed = {"trigger": trigger.replace(first, rare, 1), "sample.prompts": re.sub(rf"\b{re.escape(first)}\b", rare, cfg.sample.prompts)}
    return Warning_(f"The trigger word “{first}” is one that the model knows already: what it means changes with the training.", Fix(f"Use “{rare}” instead", changed))


def _timesteps(cfg: TrainConfig) -> Warning_ | None:
    if cfg.method != "t2i_adapter" or cfg.loss.t_distribution != "uniform":
        return None
    text = "A T2I-Adapter is usually trained at the noisy timesteps, where the layout is decided (cubic)."
    return Warning_(text, Fix("Draw timesteps as cubic", {"loss.t_distribution": "cubic"}))


def _no_masks(cfg: TrainConfig, forecast: Forecast) -> Warning_ | None:
    if forecast.inpainting is not False or cfg.inpaint == InpaintConfig():
        return None
    usual = {f"inpaint.{name}": value for name, value in flat_values(InpaintConfig()).items()}
    return Warning_("The settings for inpainting models are not used: this model is an ordinary one, which is given no masks.", Fix("Set them as usual", usual))


def _no_samples(cfg: TrainConfig) -> Warning_ | None:
    if cfg.sample.every and cfg.sample.prompts.strip():
        return None
    every = max(1, cfg.steps // 10)
    prompts = cfg.sample.prompts.strip() or ("a picture of [name]" if cfg.trigger or METHODS[cfg.method].learns_words else "")
    fix = Fix(f"Draw a sample every {every} steps", {"sample.every": every, "sample.prompts": prompts}) if prompts else None
    return Warning_("No samples are drawn, so nothing shows how far the training is." + ("" if fix else " Write a sample prompt."), fix)


def _no_room(cfg: TrainConfig, forecast: Forecast) -> Warning_ | None:
    if forecast.free is None or forecast.need < forecast.free:
        return None
    smaller = max(256, cfg.data.resolution // 2 // 64 * 64)
    change = {"data.batch": 1} if cfg.data.batch > 1 else {"data.resolution": smaller}
    label = "Set the batch size to 1" if cfg.data.batch > 1 else f"Set the resolution to {smaller}"
    return Warning_("That is more memory than there is: the run will probably end at once.", Fix(label, change))


def _no_disk(cfg: TrainConfig, forecast: Forecast) -> Warning_ | None:
    """While a state is written, an older one still lies there."""
    saves, states = _kept(cfg)
    need = saves * forecast.file + (states + (states == STATES)) * forecast.state
    folder = next(p for p in (Path(cfg.output).expanduser().absolute(), *Path(cfg.output).expanduser().absolute().parents) if p.is_dir())
    if not forecast.state or need < shutil.disk_usage(folder).free:
        return None
    text = f"The saves need about {_gigabytes(need)}, and {_gigabytes(shutil.disk_usage(folder).free)} are free in {folder}: make room, or choose another output folder."
    return Warning_(text, Fix("Save at the end only", {"save_every": 0}) if cfg.save_every else None)


# ---- words -----------------------------------------------------------------------------------------------------------


def _times(n: float) -> str:
    return f"{n:.1f} times" if n < 10 else f"{n:.0f} times"


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB"
