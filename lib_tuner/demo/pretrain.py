"""Makes the embedded model and its judge from nothing: `python3 -m lib_tuner.demo.pretrain` in the Tuner's environment.

Resumable: states lie in `--work`, and the same command goes on from there. The shipped files were made on 2026-11-20 on two shared CPU cores with the seeds
in the phases below, in under two hours: VAE 800 steps, 8 minutes, 24.9 dB on the last training batches; UNet and text encoder 2700 steps of 64 at 0.85 to
0.95 s, 45 minutes, noise loss 0.053, then 3500 at 0.7 to 1.0 s, 41 minutes, 0.039; judge 1100 steps, 13 minutes. Shapes are learned last: 58% were right
after the 2700 steps, 83% after 1000 more, 99% at the end. `unet` was shortened three times in its constant part (6500, 3800, 3200, 2700), so a
run from nothing differs slightly in the learning rates between its steps 780 and 1000. `decoder`, a second training of the decoder on fixed latents, was not
part of it. Figures: `benchmarks/2026-11-20-tiny-sd15.json`.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from ..sd.files import save_checkpoint
from ..sd.vae import VAE
from . import phase
from .evaluate import TINY, evaluate, format_report, sheet
from .judge import FILE as JUDGE_FILE
from .judge import Judge, judge_loss
from .phase import Phase
from .pretrain_unet import TEXT, UNET, latents, new_model, unet_loss
from .pretrain_vae import decoder_loss, new_vae, pictures, vae_loss, whiten

LATENTS = 24_576
VAE_PHASE = Phase("vae", steps=800, lr=6e-4, warmup=60, hold=0.4, decay=0.99, weight_decay=1e-4)
DECODER_PHASE = Phase("decoder", steps=500, lr=5e-4, warmup=60, hold=0.3, decay=0.99, weight_decay=1e-4, seed=1)
JUDGE_PHASE = Phase("judge", steps=1100, lr=2e-3, warmup=50, hold=0.2, decay=0.99)
UNET_PHASES = (Phase("unet", steps=2700, lr=1.5e-3, warmup=150, hold=0.3, decay=0.999),
               Phase("refine", steps=3500, lr=1.2e-3, warmup=150, hold=0.3, decay=0.999, seed=1))


def make_vae(work: Path) -> VAE:
    """The trained VAE with whitened latents, before its decoder's second training; kept in a file."""
    vae, path = new_vae(seed=0), work / "vae-white.pt"
    if path.exists():
        vae.load_state_dict(torch.load(path, weights_only=True))
        return vae.eval().requires_grad_(False)
    phase.run(VAE_PHASE, vae, vae_loss(vae, VAE_PHASE.steps), work)
    whiten(vae, pictures(2048, torch.Generator().manual_seed(7)))
    torch.save(vae.state_dict(), path)
    return vae


def make_judge(work: Path, vae: VAE) -> Judge:
    """The classifier, trained on drawings before and after the VAE."""
    def through(pixels: Tensor) -> Tensor:
        return vae.decode(vae.encode(pixels)[0])

    judge = Judge()
    phase.run(JUDGE_PHASE, judge, judge_loss(judge, through), work)
    judge.save(JUDGE_FILE)
    return judge


def write(vae: VAE, model: torch.nn.ModuleDict, path: Path = TINY) -> None:
    """The shipped file, fp16, with the head counts that no shape tells."""
    metadata = {"tuner_unet_heads": str(UNET.heads), "tuner_text_heads": str(TEXT.heads), "modelspec.title": "tiny-sd15: a drawn world"}
    save_checkpoint(path, model["unet"].state_dict(), vae.state_dict(), model["text"].state_dict(), metadata, torch.float16)


def main() -> None:
    """Runs the parts that are asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/pretrain"), help="folder of resumable states")
    parser.add_argument("--parts", nargs="+", default=["unet", "judge", "write", "evaluate"], help="also: decoder")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    vae, model = make_vae(args.work), new_model(seed=0)
    if "unet" in args.parts:
        scenes, z = latents(vae, LATENTS, 1, args.work / "latents.pt")
        for part in UNET_PHASES:
            phase.run(part, model, unet_loss(model, scenes, z, part.steps), args.work)
    if "decoder" in args.parts:
        phase.run(DECODER_PHASE, vae.decoder, decoder_loss(vae), args.work)
    if "judge" in args.parts:
        make_judge(args.work, vae)
    if "write" in args.parts:
        write(vae, model)
    if "evaluate" in args.parts:
        report = evaluate()
        (args.work / "tiny-sd15.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        sheet().save(args.work / "tiny-sd15.png")
        logging.getLogger(__name__).info(format_report(report))


if __name__ == "__main__":
    main()
