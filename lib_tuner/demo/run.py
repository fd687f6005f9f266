"""The demo: one embedding and one LoRA of new subjects, trained and judged before and after, in a few minutes on two CPU cores.

The embedding is a combination of known parts, a purple striped moon; the LoRA a subject that the model has never drawn, a robot.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..config import build
from ..data.pictures import from_pixels, to_pixels
from ..disk import expanded
from ..events import Event, Finished, Stepped
from ..host import GenerateRequest, Host
from ..methods import METHODS
from ..progress import Status, duration
from ..recorders import csv
from ..settings import TrainConfig
from ..train import train
from .evaluate import saturation
from .judge import Judge
from .world import PHRASES as WORLD_PHRASES
from .world import Scenes, caption, draw, random_scenes

MOON = {"shape": "moon", "colour": "purple", "fill": "striped"}
JUDGED, STEPS = 48, 12  # pictures per score, and the sampler's steps: DDIM with 10 draws what it draws with 40
ASKED = ("shape", "colour", "background", "fill")  # what the judge compares with the prompt, where the prompt names it
ORDINARY = (0, 5, 2, 4, 7, 10, 11, 8)  # phrases of ordinary pictures, which name much or little: what is kept has to be kept in all of them
PHRASES = ("a {name} on a {background} background", "{name}, {background} background", "a picture of a {name} on a {background} background")

OWN, MARK = "demo-files", "made-by-the-demo.txt"  # the folder of the demo's pictures and runs, and the file in it by which it is known to be the demo's
_MARKED = "The Tuner's demo made this folder; the next demo makes data and runs in it anew.\n"

HostClass = Callable[[TrainConfig], Host]
Judged = TypeVar("Judged")


@dataclass(frozen=True)
class Subject:
    """What is learned: how a prompt names it (`{colour}` and the like may stand in it), and what the judge then has to see."""

    name: str
    wanted: dict[str, str]


@dataclass(frozen=True)
class Rest:
    """What ordinary prompts give: the part of what they name that the judge sees, 0..1, and how diverse the pictures are.

    `kinds` is the effective number of shapes seen (the exponential of their entropy), `saturation` that of `evaluate`: a model that draws one thing for
    everything has few kinds, one whose pictures are washed out little saturation.
    """

    right: float
    kinds: float
    saturation: float

    def kept(self, before: Rest) -> float:
        """How much is kept of what was `before`: the worst of what prompts name, diversity and saturation, at most 1."""
        return min(1.0, self.right / before.right, self.kinds / before.kinds, self.saturation / before.saturation)


SUBJECTS = {"embedding": Subject("embedding", MOON), "lora": Subject("{colour} robot", {"shape": "robot"})}


def main(args: Namespace, host_class: HostClass) -> int:
    """Runs the demo, writes embedding.safetensors, lora.safetensors, grid.png and report.json into `args.out`, and prints the report."""
    began = time.monotonic()
    torch.set_num_threads(1)  # this model's tensors are too small to share: two threads take as long as one, and twice as long where cores are shared
    out = expanded(args.out)
    own = own_folder(out)
    write_data(own / "data")
    judge, bar = Judge.load(), Bar(sys.stderr)
    subjects = {"embedding": embedding_settings(own), "lora": lora_settings(own)}
    report, rows = {}, [training_row(own / "data")]
    for kind, values in subjects.items():
        cfg = build(TrainConfig, values, METHODS[values["method"]].Config)
        report[kind], pictures = one(kind, cfg, host_class(cfg), judge, bar)
        rows += pictures
        shutil.copyfile(next((own / "runs").glob(f"{kind}-*")) / f"{kind}.safetensors", out / f"{kind}.safetensors")
    grid(rows).save(out / "grid.png")
    report["seconds"] = round(time.monotonic() - began, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    bar.done()
    sys.stdout.write(json.dumps(report) + "\n" if args.json else summary(report, out))
    return 0


def own_folder(out: Path) -> Path:
    """The folder below `out` that holds the demo's pictures and runs, without those of an earlier demo. Raises ValueError where somebody else made it."""
    own = out / OWN
    if own.is_file() or own.is_dir() and not (own / MARK).is_file() and any(own.iterdir()):
        raise ValueError(f"{own} is there and not of the demo, which would delete what is in it: move it away, or choose another folder with --out.")
    own.mkdir(parents=True, exist_ok=True)
    (own / MARK).write_text(_MARKED, encoding="utf-8")
    for name in ("data", "runs"):
        if (own / name).exists():
            shutil.rmtree(own / name)
    (own / "runs").mkdir()
    return own


def one(kind: str, cfg: TrainConfig, host: Host, judge: Judge, bar: Bar) -> tuple[dict[str, float], list[list[Image.Image]]]:
    """The report of one run, and pictures before and after it. An embedding leaves everything else as it is, so only the LoRA's `kept` is looked at."""
    look = [lambda: judged(host, judge, SUBJECTS[kind])] + ([lambda: rest(host, judge)] if kind == "lora" else [])
    before = [each() for each in look]
    after = trained(cfg, host, lambda: [each() for each in look], bar)
    report = {"before": round(before[0][0], 3), "after": round(after[0][0], 3)}
    return report | {"kept": round(b.kept(a), 3) for a, b in zip(before[1:], after[1:])}, [before[0][1], after[0][1]]


# ---- data


def write_data(folder: Path) -> None:
    """The training pictures with their captions: the moon, the robot, and ordinary pictures beside the robot's."""
    generator = torch.Generator().manual_seed(2026)
    moons = random_scenes(10, generator).fixed(**MOON)
    robots = random_scenes(24, generator).fixed(shape="robot", fill="solid", size="large")
    classes = random_scenes(192, generator)
    write_pictures(folder / "moon", moons, generator, lambda words, i: f"{words['background']} background")
    (folder / "moon.txt").write_text("".join(line.format(name="[name]", background="[filewords]").replace("] background", "]") + "\n" for line in PHRASES))
    write_pictures(folder / "robot", robots, generator, lambda words, i: caption(words, (5, 0, 7, 11)[i % 4]).replace("solid ", ""))
    write_pictures(folder / "class", classes, generator, lambda words, i: caption(words, ORDINARY[i % len(ORDINARY)]))


def write_pictures(folder: Path, scenes: Scenes, generator: torch.Generator, text: Callable[[dict[str, str], int], str]) -> None:
    """Draws scenes into PNG files with a caption file beside each."""
    folder.mkdir(parents=True)
    for i, pixels in enumerate(draw(scenes, generator)):
        from_pixels(pixels).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(text(scenes.words(i), i), encoding="utf-8")


def small(folder: Path, name: str) -> dict[str, Any]:
    """What both runs on the small model share."""
    return {
        "name": name, "output": str(folder / "runs"), "save_every": 0, "seed": 1, "loss.min_snr": 5.0, "data.resolution": 64, "data.bucket_min": 64,
        "data.bucket_step": 8, "data.batch": 8, "optim.betas": "0.9, 0.99",
    }


def embedding_settings(out: Path) -> dict[str, Any]:
    """A word of four vectors: with one or two the colour or the stripes are lost."""
    return {
        **small(out, "embedding"), "method": "textual_inversion", "steps": 240, "data.folder": str(out / "data" / "moon"), "data.template": str(out / "data" / "moon.txt"),
        "optim.lr": "6e-2", "optim.schedule": "cosine", "textual_inversion.vectors": 4, "textual_inversion.init": "a",
    }


def lora_settings(out: Path) -> dict[str, Any]:
    """Rank 8 on attention, feed-forward, projections and convolutions of the UNet; ordinary pictures among the examples prevent forgetting."""
    return {
        **small(out, "lora"), "method": "lora", "steps": 480, "data.folder": str(out / "data" / "robot"), "data.class_folder": str(out / "data" / "class"),
        "data.class_share": 0.15, "optim.lr": "4e-3", "optim.schedule": "cosine", "optim.warmup": 20, "lora.rank": 8, "lora.alpha": 8, "lora.conv_rank": 8,
        "lora.conv_alpha": 8, "trigger": "robot",
    }


# ---- training and judging


class Bar:
    """One progress line over both runs, with the time left."""

    def __init__(self, stream: Any):
        self.status, self.began, self.seconds = Status(stream), time.monotonic(), 0.0

    def show(self, events: Iterator[Event], name: str, steps: int) -> Iterator[Event]:
        began = time.monotonic()
        for event in events:
            if isinstance(event, Stepped) and self.status.due:
                left = (time.monotonic() - began) / event.step * (steps - event.step)
                self.status.show(f"{name}: step {event.step}/{steps}, loss {float(event.loss):.4f}, {duration(left)} left")
            yield event

    def done(self) -> None:
        self.status.clear()


def trained(cfg: TrainConfig, host: Host, judge: Callable[[], Judged], bar: Bar) -> Judged:
    """Trains, and returns what `judge` finds with the live model at the end of the run."""
    last, method = None, METHODS[cfg.method](cfg)
    with closing(csv(bar.show(train(cfg, method, host), cfg.name, cfg.steps))) as events:
        for event in events:
            if isinstance(event, Finished):
                last = event
                method.train(False)
                result = judge()  # still attached: the run ends when its generator does
    if last is None or last.reason != "done":
        raise RuntimeError(f"The demo's run {cfg.name} ended early: {last.reason if last else 'no end'}.")
    return result


def judged(host: Host, judge: Judge, subject: Subject, seed: int = 0) -> tuple[float, list[Image.Image]]:
    """The part of `JUDGED` pictures in which the judge sees the subject, other prompts and noise with every seed, and the first eight pictures."""
    prompts = [PHRASES[i % len(PHRASES)].format(name=subject.name.format(**w), background=w["background"]) for i, w in enumerate(_words(seed))]
    pictures = drawn(host, prompts, seed=21 + 10_000 * seed)
    return sum(all(seen[k] == v for k, v in subject.wanted.items()) for seen in judge.words(pixels(pictures))) / JUDGED, pictures[:8]


def rest(host: Host, judge: Judge, seed: int = 0) -> Rest:
    """What `JUDGED` ordinary prompts give, which name much or little."""
    words, phrases = _words(seed), [ORDINARY[i % len(ORDINARY)] for i in range(JUDGED)]
    made = pixels(drawn(host, [caption(w, phrase) for w, phrase in zip(words, phrases)], seed=1021 + 10_000 * seed))
    shown = judge.words(made)
    right = [s[k] == w[k] for s, w, phrase in zip(shown, words, phrases) for k in ASKED if f"{{{k}}}" in WORLD_PHRASES[phrase]]
    return Rest(sum(right) / len(right), kinds([s["shape"] for s in shown]), float(saturation(made)))


def _words(seed: int) -> list[dict[str, str]]:
    """What the prompts of a seed name."""
    scenes = random_scenes(JUDGED, torch.Generator().manual_seed(5 + seed))
    return [scenes.words(i) for i in range(JUDGED)]


def kinds(seen: list[str]) -> float:
    """The effective number of different words: exp of the entropy of how often each was seen."""
    parts = [count / len(seen) for count in Counter(seen).values()]
    return math.exp(-sum(part * math.log(part) for part in parts))


def drawn(host: Host, prompts: list[str], seed: int) -> list[Image.Image]:
    """A picture of each prompt as the host draws it now."""
    return host.generate([GenerateRequest(prompt, width=64, height=64, steps=STEPS, cfg=3.0, seed=seed + i) for i, prompt in enumerate(prompts)])


def pixels(pictures: list[Image.Image]) -> Tensor:
    """(B, 3, 64, 64) in [-1, 1]."""
    return torch.stack([to_pixels(picture) for picture in pictures])


# ---- what is shown


def training_row(folder: Path) -> list[Image.Image]:
    """Four moons and four robots."""
    files = [*sorted((folder / "moon").glob("*.png"))[:4], *sorted((folder / "robot").glob("*.png"))[:4]]
    return [Image.open(file).convert("RGB") for file in files]


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of pictures, twice their size, with a label before each."""
    side, left = 128, 80
    sheet = Image.new("RGB", (left + side * 8, side * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (label, row) in enumerate(zip(("training", "before", "embedding", "before", "LoRA"), rows)):
        pen.text((8, y * side + side // 2 - 6), label, fill="black")
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left + x * side, y * side))
    return sheet


def summary(report: dict[str, Any], out: Path) -> str:
    """The report in words."""
    e, r = report["embedding"], report["lora"]
    return (
        f"embedding (purple striped moon): seen in {e['before']:.0%} of the pictures before, {e['after']:.0%} after\n"
        f"LoRA (robot): seen in {r['before']:.0%} before, {r['after']:.0%} after; keeps {r['kept']:.0%} of its score on everything else\n"
        f"{report['seconds']:.0f} s; files in {out}\n"
    )
