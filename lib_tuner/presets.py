"""Where to start from: values for what is to be learned (goal) and how long it may take (pace), and presets of one's own as TOML files.

The values are for SD1.5; they are what the field usually takes, not the optimum of any data set. Where a number is one peer's, it is named:
TT sd-webui-traintrain, KO kohya sd-scripts, A1 the WebUI's own trainer, DB sd_dreambooth_extension, CL cloneofsimo/lora.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import flatten, meant, read_toml, toml_text
from .disk import atomic
from .settings import TrainConfig

LEFT_OUT = (  # what names a place on one machine, or one run: not part of a preset; nor are the methods' `start` files and folders of hints
    "name", "data.folder", "data.class_folder", "data.validation_folder", "data.cache_folder", "output", "resume", "checkpoint",
)  # fmt: skip
_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")  # what TOML reads without quotes

Values = Mapping[str, Mapping[str, Any]]  # method -> {dotted key: value}


@dataclass(frozen=True)
class Goal:
    """What is to be learned: how to caption the pictures for it, and each method's values."""

    name: str
    label: str
    advice: str
    values: Values


@dataclass(frozen=True)
class Pace:
    """How long the run may take, and each method's values."""

    name: str
    label: str
    help: str
    values: Values


def _lora(rank: int, text: bool, flip: str, dropout: float, **more: Any) -> dict[str, Any]:
    """Alpha is half the rank (TT: 16 / 8). min-SNR 5 is TT's default and what its paper found (2303.09556). The first tag, usually the trigger, stays."""
    common = {"loss.min_snr": 5.0, "data.shuffle_tags": True, "data.keep_tags": 1, "data.caption_dropout": dropout, "data.flip": flip}
    return {"lora.rank": rank, "lora.alpha": rank / 2, "lora.text_encoder": text, **common, **{f"lora.{key}": value for key, value in more.items()}}


def _families(lora: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A LoRA's values for the other families too, whose ranks mean something else: a LoHa's counts squared, a LoKr's is that of one factor alone."""
    own = {
        "locon": {"conv_rank": 8, "conv_alpha": 4.0},
        "loha": {"rank": 8, "alpha": 4.0},
        "lokr": {"rank": 8, "alpha": 8.0},
        "adalora": {"alpha": 12.0, "rank": 8, "first_rank": 12},  # peft's ranks
    }  # fmt: skip
    found = {"lora": lora}
    for kind, values in own.items():
        taken = {key.replace("lora.", f"{kind}."): value for key, value in lora.items()}
        chosen = {f"{kind}.{name}": value for name, value in values.items()} if "lora.rank" in lora else {}
        found[kind] = {**taken, **chosen}
    return found


def _embedding(vectors: int, init: str, template: str, flip: str) -> dict[str, Any]:
    """Starts from a word of the class, as the paper does (2208.01618); without caption dropout, since an empty caption does not train the word."""
    own = {"textual_inversion.vectors": vectors, "textual_inversion.init": init}
    return {**own, "data.template": template, "data.flip": flip, "data.shuffle_tags": True, "data.tag_dropout": 0.1}


def _hypernetwork(lora: dict[str, Any]) -> dict[str, Any]:
    """Of a LoRA's values those that are no method's own. Its networks act at full strength, so a quarter of the rate and twice the steps (A1: 1e-5)."""
    values = {key: value for key, value in lora.items() if not key.startswith("lora.") and key != "optim.text_lr"}
    if "steps" in values:
        return {**values, "steps": 2 * values["steps"], "optim.lr": f"{float(values['optim.lr']) / 4:g}"}
    return {**values, "hypernetwork.structure": "1, 2, 1", "hypernetwork.activation": "swish"}


def _pivotal(lora: dict[str, Any], vectors: int, init: str) -> dict[str, Any]:
    """A LoRA's values, and a word of few vectors, since what it cannot say the adapter can."""
    return {**{key.replace("lora.", "pivotal.layers."): value for key, value in lora.items()}, "pivotal.words.vectors": vectors, "pivotal.words.init": init}


def _inverted(lora: dict[str, Any], steps: int, rate: float) -> dict[str, Any]:
    """A LoRA's values behind so many steps for the word alone, at an embedding's rate."""
    return {**lora, "steps": lora["steps"] + steps, "pivotal.inversion_steps": steps, "pivotal.inversion_lr": rate}


def _hinted(flip: str) -> dict[str, dict[str, Any]]:
    """What follows a hint: T2I-Adapter with its authors' timesteps, ControlNet with half of the prompts left out (2302.05543, 3.3), so that the hint has to say it."""
    return {"t2i_adapter": {"loss.t_distribution": "cubic", "data.flip": flip}, "controlnet": {"data.caption_dropout": 0.5, "data.flip": flip}}


CLASSES = {  # class prompts of a goal, for which the model should go on drawing what it draws
    "character": "a photo of a person\na portrait of a woman\na portrait of a man", "style": "a painting\na photo\nan illustration", "pose": "a photo of a person",
    "clothing": "a photo of a person wearing clothes\nclothes", "object": "a photo of an object",
}  # fmt: skip


def _whole(lora: dict[str, Any], classes: str) -> dict[str, Any]:
    """DreamBooth's values: the data as for a LoRA, and the frozen model's predictions for the class as prior (weight 1: the paper's, 2208.12242)."""
    common = {key: value for key, value in lora.items() if not key.startswith("lora.")}
    return {**common, "dreambooth.text_encoder": lora["lora.text_encoder"], "prior.weight": 1.0, "prior.prompt": classes}


def _goal(name: str, label: str, advice: str, lora: dict[str, Any], embedding: dict[str, Any]) -> Goal:
    word = {key: embedding[f"textual_inversion.{key}"] for key in ("vectors", "init")}
    pivotal = _pivotal(lora, min(4, word["vectors"]), word["init"])
    others = {"textual_inversion": embedding, "pivotal": pivotal, "dreambooth": _whole(lora, CLASSES[name]), "hypernetwork": _hypernetwork(lora), **_hinted(lora["data.flip"])}
    return Goal(name, label, advice, {**_families(lora), **others})


GOALS: dict[str, Goal] = {goal.name: goal for goal in (
    _goal("character", "Character or person",
          "Caption what should stay changeable: clothes, pose, expression, background, framing. "
          "Leave out what belongs to the character in every picture (hair and eye colour, ears, scars): what no word explains goes into the trigger word. "
          "This rule is folklore, widely followed and disputed in its details; compare both ways on your pictures. "
          "Mirroring is off, since a parting, a scar or an eye patch has its side.",
          _lora(16, True, "off", 0.05), _embedding(6, "person", "subject_filewords", "off")),
    _goal("style", "Style",
          "Caption the content of every picture fully: who and what is in it, where, doing what. "
          "Leave out words for medium, artist, style and quality, so that the look goes into the trigger word. "
          "If one person or background is in more than half of the pictures it is learned as part of the style (a rule of thumb): vary it.",
          _lora(32, False, "safe", 0.1, conv_rank=8, conv_alpha=4.0),  # convolutions carry texture and brush stroke; the text encoder matters least here
          _embedding(8, "painting", "style_filewords", "safe")),
    _goal("pose", "Pose or composition",
          "Caption who is shown, clothes and background, and leave out the words for the pose itself and the view that belongs to it. "
          "Take many different persons and places, else they are learned with the pose. "
          "Where the side matters, write left or right into the caption: such pictures are not mirrored.",
          _lora(8, False, "safe", 0.05),  # a pose is few degrees of freedom: a small rank leaves less room for the persons (rule of thumb)
          _embedding(4, "pose", "subject_filewords", "safe")),
    _goal("clothing", "Clothing or outfit",
          "Caption the wearer (hair, eyes, body), pose and background, and leave out the parts of the outfit that should always come along. "
          "Parts that come and go, such as a hat, get a tag of their own where they are seen. "
          "Several wearers keep one face from being learned with the clothes.",
          _lora(16, True, "safe", 0.05), _embedding(4, "clothes", "subject_filewords", "safe")),
    _goal("object", "Object",
          "Caption the surroundings, the light and the angle, and leave out what the object always looks like. "
          "Keep the word of its kind (mug, car) in the captions if new variants are wanted; folklore says to drop it for one exact thing. "
          "Write text into the caption where lettering is seen: such pictures are not mirrored.",
          _lora(16, True, "safe", 0.05), _embedding(4, "object", "subject_filewords", "safe")),
)}  # fmt: skip


def _run(steps: int, lr: str, schedule: str, warmup: int, save_every: int, batch: int) -> dict[str, Any]:
    return {"steps": steps, "optim.lr": lr, "optim.schedule": schedule, "optim.warmup": warmup, "save_every": save_every, "data.batch": batch}


# both papers' 1e-5; from nothing they took days on several GPUs, so these are for going on from a file, or for a first look
HINTED = {"fast": (2000, "2e-5", "constant", 100, 500, 2), "balanced": (10000, "1e-5", "constant", 500, 1000, 4), "careful": (30000, "1e-5", "cosine", 500, 2000, 4)}


def _pace(name: str, label: str, help: str, lora: dict[str, Any], embedding: dict[str, Any], whole: dict[str, Any]) -> Pace:
    pivotal = _inverted(lora, embedding["steps"] // 4, float(embedding["optim.lr"]))
    hinted = _run(*HINTED[name])
    others = {"textual_inversion": embedding, "pivotal": pivotal, "dreambooth": {**whole, "keep_last": 2}, "hypernetwork": _hypernetwork(lora), "t2i_adapter": hinted, "controlnet": hinted}
    return Pace(name, label, help, {**_families(lora), **others})


# DreamBooth: 2e-6 for 1600 steps is KO's, 5e-6 the paper's and diffusers'; a save in between is 2 GB and its state more, so there are few
# LoRA: 1e-4 is KO's and TT's rate, half of it for the text encoder DB's; embeddings: 5e-3 is A1's rate, 2e-3 and 1e-3 lie on the way to CL's 5e-4
PACES: dict[str, Pace] = {pace.name: pace for pace in (
    _pace("fast", "Fast", "A first look: shows whether data and captions work. Often a bit over- or undercooked.",
          {**_run(600, "2e-4", "cosine", 30, 150, 2), "optim.text_lr": 1e-4}, _run(1000, "5e-3", "constant", 0, 250, 1), _run(800, "5e-6", "constant", 0, 0, 1)),
    _pace("balanced", "Balanced", "For most data sets of 15 to 60 pictures.",
          {**_run(1500, "1e-4", "cosine", 75, 250, 2), "optim.text_lr": 5e-5}, _run(3000, "2e-3", "cosine", 100, 500, 2), _run(1600, "2e-6", "constant", 50, 800, 1)),
    _pace("careful", "Careful", "Half the rate, twice the steps: closer to the pictures, and more saved steps to choose the best from.",
          {**_run(3000, "5e-5", "cosine", 150, 250, 2), "optim.text_lr": 2.5e-5}, _run(6000, "1e-3", "cosine", 200, 500, 2), _run(3200, "1e-6", "constant", 100, 800, 1)),
)}  # fmt: skip


def preset_values(goal: str, pace: str, method: str) -> dict[str, Any]:
    """The flat values of a goal and a pace for a method; an empty goal or pace is none. Raises ValueError for names there are not."""
    chosen = [_named(table, kind, name).values for table, kind, name in ((GOALS, "goal", goal), (PACES, "pace", pace)) if name]
    if any(method not in values for values in chosen):
        raise ValueError(f"method: there are no presets for {method!r}; there are some for {', '.join(chosen[0])}")
    return {key: value for values in chosen for key, value in values[method].items()}


def _named(table: Mapping[str, Any], kind: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"{kind}: there is no {name!r}; there are {', '.join(table)}{meant(name, table)}")
    return table[name]


# ---- one's own -------------------------------------------------------------------------------------------------------


def save_own(folder: str | Path, name: str, values: Mapping[str, Any]) -> Path:
    """Writes the settings, nested or with dotted keys, as the preset `NAME.toml` of a folder, in place of one of that name.

    What names a place or one run (`LEFT_OUT`, and the methods' `start` and `hints`) is not written. Raises ValueError for a name that cannot be a file's
    and for what is no setting, OSError.
    """
    path, text = _file(folder, name), _text(flatten(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def own_presets(folder: str | Path) -> list[str]:
    """The names of the presets in a folder, sorted; none where there is no such folder."""
    return sorted(path.stem for path in Path(folder).glob("*.toml") if path.is_file())


def read_own(folder: str | Path, name: str) -> dict[str, Any]:
    """The flat values of a preset. Raises ValueError where there is none of that name or its file is damaged."""
    return read_toml(_existing(folder, name))


def delete_own(folder: str | Path, name: str) -> None:
    """Deletes a preset. Raises ValueError where there is none of that name, OSError."""
    _existing(folder, name).unlink()


def _file(folder: str | Path, name: str) -> Path:
    TrainConfig(name=name).check()  # the one rule for what can be a file's name; without slashes it stays in the folder
    return Path(folder) / f"{name}.toml"


def _existing(folder: str | Path, name: str) -> Path:
    path = _file(folder, name)
    if not path.is_file():
        raise ValueError(f"there is no preset named {name!r} in {folder}{meant(name, own_presets(folder))}")
    return path


def _text(values: Mapping[str, Any]) -> str:
    """The values that a preset keeps, as a TOML file."""
    kept = {key: value for key, value in values.items() if key not in LEFT_OUT and not key.endswith((".start", ".hints", ".sample_hints", ".depth_model"))}
    for key, value in kept.items():
        if not _KEY.fullmatch(key) or not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"{key}: {value!r:.60} cannot be kept in a preset; a setting is true or false, a number or text")
    return toml_text(kept)
