"""How well the embedded model draws what a prompt says, by the judge; every part with its 95% interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.pictures import from_pixels
from ..sd.model import load_model
from ..sd.sample import guided, sample
from .judge import Judge, interval
from .world import ATTRIBUTES, FULL_PHRASES, Scenes, caption, draw, random_scenes

TINY = Path(__file__).with_name("tiny-sd15.safetensors")
CFG, STEPS = 3.0, 20


@torch.no_grad()
def draw_prompts(sd: Any, prompts: list[str], seed: int, cfg: float = CFG, steps: int = STEPS) -> Tensor:
    """Pictures (B, 3, 64, 64) of prompts by DDIM; picture i starts from the noise of generator (seed, i)."""
    generators = [torch.Generator().manual_seed(seed * 100_003 + i) for i in range(len(prompts))]
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    pictures = []
    for i in range(0, len(prompts), 50):
        part = slice(i, i + 50)
        denoise = guided(sd.unet, sd.text(prompts[part]), sd.text([""]), cfg)
        pictures.append(sd.vae.decode(sample(denoise, noise[part], sd.schedule, steps, "ddim", generators[part])))
    return torch.cat(pictures).clamp(-1, 1)


def evaluate(path: Path | None = None, count: int = 200, seed: int = 11, judge: Judge | None = None) -> dict[str, Any]:
    """The report: per attribute the part of `count` random prompts whose picture shows it, on drawings, on reconstructions and on generated pictures.

    `colourfulness` is the generated pictures' mean saturation over that of drawings of the same scenes: washed-out pictures are far below 1.
    """
    sd, judge = load_model(path or TINY), judge or Judge.load()
    scenes = random_scenes(count, torch.Generator().manual_seed(seed))
    prompts = [caption(scenes.words(i), FULL_PHRASES[i % len(FULL_PHRASES)]) for i in range(count)]
    drawn = draw(scenes, torch.Generator().manual_seed(seed + 1))
    made = draw_prompts(sd, prompts, seed)
    rebuilt = sd.vae.decode(sd.vae.encode(drawn)[0]).clamp(-1, 1)
    return {
        "count": count,
        **{name: scores(judge, pixels, scenes) for name, pixels in (("drawn", drawn), ("reconstructed", rebuilt), ("generated", made))},
        "kinds": {name: kinds(judge, made, scenes, name) for name in ("shape", "colour")},
        "colourfulness": float(saturation(made) / saturation(drawn)),
        "psnr": float(10 * torch.log10(4 / ((rebuilt - drawn) ** 2).mean())),
    }


def scores(judge: Judge, pixels: Tensor, scenes: Scenes) -> dict[str, list[float]]:
    """Per attribute [part, low, high]; fills are judged where they can be seen."""
    logits, result = judge(pixels), {}
    for name in ATTRIBUTES:
        right = logits[name].argmax(1) == getattr(scenes, name)
        right = (right[scenes.fill_shows()] if name == "fill" else right).float()
        result[name] = [float(right.mean()), *interval(float(right.mean()), len(right))]
    return result


def kinds(judge: Judge, pixels: Tensor, scenes: Scenes, name: str) -> list[int]:
    """[different words seen, different words asked for]."""
    return [len(judge(pixels)[name].argmax(1).unique()), len(getattr(scenes, name).unique())]


def saturation(pixels: Tensor) -> Tensor:
    """Mean distance of the strongest to the weakest of R, G, B over the pixels."""
    return (pixels.amax(1) - pixels.amin(1)).mean()


def sheet(path: Path | None = None, seed: int = 12, columns: int = 8, rows: int = 4) -> Image.Image:
    """Pictures of random prompts, each under the prompt's words; not chosen."""
    sd, side, line = load_model(path or TINY), 128, 30
    scenes = random_scenes(columns * rows, torch.Generator().manual_seed(seed))
    words = [scenes.words(i) for i in range(len(scenes))]
    made = draw_prompts(sd, [caption(w, 0) for w in words], seed)
    page = Image.new("RGB", (columns * side, rows * (side + line)), "white")
    pen = ImageDraw.Draw(page)
    for i, (pixels, w) in enumerate(zip(made, words)):
        x, y = i % columns * side, i // columns * (side + line)
        page.paste(from_pixels(pixels).resize((side - 4, side - 4), Image.Resampling.NEAREST), (x + 2, y))
        pen.text((x + 4, y + side - 2), f"{w['size']} {w['colour']} {w['fill']}\n{w['shape']} on {w['background']}", fill="black")
    return page


def format_report(report: dict[str, Any]) -> str:
    """The report as a small table."""
    lines = [f"n = {report['count']}, reconstruction {report['psnr']:.1f} dB, colourfulness {report['colourfulness']:.2f}, kinds {report['kinds']}"]
    for name in ATTRIBUTES:
        cells = [f"{kind} {100 * report[kind][name][0]:.0f}% [{100 * report[kind][name][1]:.0f}, {100 * report[kind][name][2]:.0f}]"
                 for kind in ("drawn", "reconstructed", "generated")]
        lines.append(f"{name:<11}" + "  ".join(cells))
    return "\n".join(lines)
