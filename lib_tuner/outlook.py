"""What a run would do, in plain words, before it starts; and what a person may want to mend first, each with the values that mend it.

Nothing here touches the model: pictures are looked at, the rest is arithmetic.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

from .config import flat_values
from .disk import expanded
from .data import class_pictures
from .data.batches import Batches
from .data.holes import Holes
from .data.problems import told
from .foreseen import Seen, Warning_, kept_on_disk, warnings
from .host import Forecast
from .methods import METHODS
from .optim import parse_betas, parse_lr
from .progress import duration
from .sd.files import glance
from .settings import TrainConfig
from .words import gigabytes, number_of


@dataclass(frozen=True)
class Outlook:
    """The plan of a run: sentences, warnings, and what is wrong with single pictures."""

    lines: list[str]
    warnings: list[Warning_] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def refuse(cfg: TrainConfig) -> None:
    """What can be seen to be wrong without looking at pictures or model. Raises ValueError, a line per problem, each beginning with its setting's key."""
    problems = []
    folders = (partial(_folder_there, cfg, "data.folder", True), partial(_folder_there, cfg, "data.validation_folder", False))
    names = () if cfg.resume else (partial(METHODS[cfg.method].check_new, cfg),)
    for check in (*names, partial(parse_lr, cfg.optim.lr), partial(parse_betas, cfg.optim.betas), *folders, *(partial(look, cfg) for look in (_model_there, _start_there, _output_writable))):
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def _folder_there(cfg: TrainConfig, key: str, needed: bool) -> None:
    folder = flat_values(cfg)[key]
    if needed and not folder.strip():
        raise ValueError(f"{key}: is empty; name the folder that holds the pictures")
    if folder and not expanded(folder).exists():
        raise ValueError(f"{key}: {folder!r} does not exist; name the folder that holds the pictures")


def _model_there(cfg: TrainConfig) -> None:
    """Of a file whose header can be read in no time also that it is a model."""
    if not cfg.checkpoint:
        return
    path = expanded(cfg.checkpoint)
    if not path.is_file():
        raise ValueError(f"checkpoint: {cfg.checkpoint!r} does not exist; give the path of an SD1.5 checkpoint (.safetensors or .ckpt)")
    try:
        glance(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"checkpoint: {error}") from error


def _start_there(cfg: TrainConfig) -> None:
    for key, file in METHODS[cfg.method].starts(cfg):
        if not expanded(file).is_file():
            advice = "name it where it lies now, or a copy of a save of this run under its name, since the state has what was learned" if cfg.resume else "name the file to start from, or leave it empty"
            raise ValueError(f"{key}: {file!r} does not exist; {advice}")


def _output_writable(cfg: TrainConfig) -> None:
    """A run makes its folder below: the nearest one that is there has to take it."""
    wanted = expanded(cfg.output).absolute()
    place = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"output: no folder can be made in {str(place)!r}; choose a folder that can be written")


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
    return Outlook([line for line in lines if line], warnings(Seen(cfg, forecast, batches, trigger)), told(batches.problems))


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
    of_each = 2 if batches.cfg.latent == "random" or batches.cfg.cache == "disk" else 1  # mean and deviation, or the one latent that is used
    size = sum(of_each * 4 * 4 * (w // 8) * (h // 8) for w, h in encoded)  # four channels, fp32
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
    free = "" if forecast.free is None else f", {gigabytes(forecast.free)} are free"
    return f"Needs about {gigabytes(forecast.need)} of memory{free}; runs on {forecast.note}."


def _drawn_first(count: int) -> str:
    return f"{number_of(count, 'class picture')} will be drawn first." if count else ""


def _disk(cfg: TrainConfig, forecast: Forecast) -> str:
    """Said of methods whose files are large."""
    if not forecast.state:
        return ""
    saves, states = kept_on_disk(cfg)
    return f"{number_of(saves, 'save')} of {gigabytes(forecast.file)} and {number_of(states, 'state')} of {gigabytes(forecast.state)} to resume from will lie on the disk."


# ---- words -----------------------------------------------------------------------------------------------------------


def _times(n: float) -> str:
    return f"{n:.1f} times" if n < 10 else f"{n:.0f} times"
