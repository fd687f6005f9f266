"""txt2img: what is wished for, and process_images, which draws it. Awkward as the real one: it may load another model first, seeds everybody's random
numbers, counts up the job, and keeps what prompts meant by their text (T6 to T8 of the contract)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from . import devices, extra_networks, images, paths, sd_hijack, sd_models, sd_samplers, sd_unet, sd_vae, shared
from .rng import ImageRNG
from .sd_schedulers import Levels

VERSION = "v1.9.4"


class StableDiffusionProcessing:
    """What is wished for. The caches are the class's: all pictures share them, unless one sets its own."""

    wishes: dict[str, Any] = {
        **dict.fromkeys("outpath_samples outpath_grids styles sampler_name scheduler tiling denoising_strength override_settings".split()),
        **dict.fromkeys("do_not_save_samples do_not_save_grid do_not_reload_embeddings disable_extra_networks".split(), False),
        **dict.fromkeys(("prompt", "negative_prompt"), ""), **dict.fromkeys(("batch_size", "n_iter"), 1), **dict.fromkeys(("width", "height"), 512),
        "seed": -1, "steps": 50, "cfg_scale": 7.0, "override_settings_restore_afterwards": True,
    }  # fmt: skip
    cached_c, cached_uc = [None, None], [None, None]  # what it was made from, the states

    def __init__(self, sd_model: Any = None, **wishes: Any):
        unknown = wishes.keys() - self.wishes.keys()
        if unknown:
            raise TypeError(f"No such wishes: {', '.join(sorted(unknown))}")
        vars(self).update(self.wishes | wishes)
        self.styles, self.override_settings = self.styles or [], self.override_settings or {}

    @property
    def sd_model(self) -> Any:
        """Always the model that is loaded: what is given is ignored."""
        return shared.sd_model

    @sd_model.setter
    def sd_model(self, given: Any) -> None:
        pass

    def close(self) -> None:
        """The shared caches stay."""

    def states(self, cache: list[Any], texts: list[str], networks: Any) -> Tensor:
        """What the text encoder makes of prompts; computed again where something changed that it is known to depend on. Embeddings are not among that."""
        opts, model = shared.opts, self.sd_model
        key = (texts, self.steps, self.width, self.height, model.sd_checkpoint_info, opts.CLIP_stop_at_last_layers, opts.emphasis, networks)
        if cache[0] != key:
            cache[:] = key, model.cond_stage_model(texts)
        return cache[1]


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """With a second pass at a larger size, where that is on."""

    wishes = StableDiffusionProcessing.wishes | {
        "enable_hr": False, "hr_scale": 2.0, "hr_upscaler": None, "hr_second_pass_steps": 0, "denoising_strength": 0.75,
    }  # fmt: skip
    cached_hr_c, cached_hr_uc = [None, None], [None, None]


@dataclass
class Processed:
    """What was drawn; where there is a grid, it is the first picture."""

    images: list[Image.Image]
    seed: int
    all_seeds: list[int]
    all_prompts: list[str]
    all_negative_prompts: list[str]
    infotexts: list[str]
    index_of_first_image: int = 0


# ---- a wish ----------------------------------------------------------------------------------------------------------


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Draws what is wished for; raises for unknown settings, samplers and upscalers."""
    with _overridden(p), torch.no_grad():
        sd_models.reload_model_weights()
        sd_vae.reload_vae_weights()
        model = p.sd_model
        sd_models.apply_token_merging(model, shared.opts.token_merging_ratio)
        try:
            return _draw_all(p, model)
        finally:
            sd_models.apply_token_merging(model, 0)


@contextmanager
def _overridden(p: StableDiffusionProcessing) -> Iterator[None]:
    """The settings of this wish alone. Only one that had been set before is put back: on a fresh installation the override stays."""
    wanted, data = p.override_settings, shared.opts.data
    checkpoint = wanted.get("sd_model_checkpoint")
    if checkpoint is not None and sd_models.get_closet_checkpoint_match(checkpoint) is None:
        del wanted["sd_model_checkpoint"]
    before = [(key, data[key]) for key in wanted if key in data]
    try:
        for key, value in wanted.items():
            shared.opts.set(key, value, is_api=True, run_callbacks=False)
        yield
    finally:
        for key, value in before if p.override_settings_restore_afterwards else ():
            setattr(shared.opts, key, value)


def _draw_all(p: StableDiffusionProcessing, model: Any) -> Processed:
    state, hijack = shared.state, sd_hijack.model_hijack
    sampler = sd_samplers.sampler_of(p.sampler_name)
    upscale = _upscaler(p) if getattr(p, "enable_hr", False) else None
    hijack.apply_circular(bool(shared.opts.tiling if p.tiling is None else p.tiling))
    hijack.clear_comments()
    model.alphas_cumprod = _noise_levels(model.alphas_cumprod_original)
    if not p.do_not_reload_embeddings:
        hijack.embedding_db.load_textual_inversion_embeddings()
    sd_unet.apply_unet()  # the one that is chosen, whatever somebody has put in meanwhile
    if p.seed in (None, -1):
        p.seed = random.randrange(2**32)
    count = p.n_iter * p.batch_size
    prompt = shared.prompt_styles.apply_styles_to_prompt(p.prompt, p.styles)
    negative = shared.prompt_styles.apply_negative_styles_to_prompt(p.negative_prompt, p.styles)
    seeds = [int(p.seed) + i for i in range(count)]
    infos = [_infotext(p, model, sampler, prompt, negative, seed) for seed in seeds]
    Path(paths.data_path, "params.txt").write_text(infos[0], encoding="utf-8")
    state.job_count = p.n_iter if state.job_count == -1 else state.job_count
    if upscale is not None and not state.processing_has_refined_job_count:
        state.job_count, state.processing_has_refined_job_count = 2 * state.job_count, True
    drawn: list[Image.Image] = []
    for first in range(0, count, p.batch_size):
        state.skipped = False
        if any((state.stopping_generation, state.interrupted)):
            break
        if p.n_iter > 1:
            state.job = f"Batch {first // p.batch_size + 1} out of {p.n_iter}"
        drawn += _draw_batch(p, model, sampler, upscale, [prompt] * p.batch_size, [negative] * p.batch_size, seeds[first : first + p.batch_size])
        state.nextjob()
    for image, info, seed in zip(drawn, infos, seeds):
        image.info["parameters"] = info
        if not p.do_not_save_samples:
            images.save_image(image, p.outpath_samples, "", seed, prompt, "png", info=info)
    grid = _grid(p, drawn, infos[0]) if len(drawn) > 1 and not p.do_not_save_grid else []
    return Processed(grid + drawn, int(p.seed), seeds, [prompt] * count, [negative] * count, infos, len(grid))


def _grid(p: StableDiffusionProcessing, drawn: list[Image.Image], info: str) -> list[Image.Image]:
    grid = images.image_grid(drawn)
    grid.info["parameters"] = info
    images.save_image(grid, p.outpath_grids, "grid", int(p.seed), p.prompt, "png", info=info, grid=True)
    return [grid]


def _infotext(p: StableDiffusionProcessing, model: Any, sampler: Any, prompt: str, negative: str, seed: int) -> str:
    said = {
        "Steps": p.steps, "Sampler": sampler.name, "Schedule type": p.scheduler, "CFG scale": p.cfg_scale, "Seed": seed, "Size": f"{p.width}x{p.height}",
        "Model hash": model.sd_model_hash, "Model": model.sd_checkpoint_info.model_name, "Clip skip": skip if (skip := shared.opts.CLIP_stop_at_last_layers) > 1 else None,
        "Hires upscale": p.hr_scale if getattr(p, "enable_hr", False) else None, "Version": VERSION,
    }  # fmt: skip
    lines = [prompt, f"Negative prompt: {negative}" if negative else "", ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None)]
    return "\n".join(line for i, line in enumerate(lines) if line or i == 0)


# ---- a batch ---------------------------------------------------------------------------------------------------------


def _draw_batch(p: StableDiffusionProcessing, model: Any, sampler: Any, upscale: Any, prompts: list[str], negatives: list[str],
                seeds: list[int]) -> list[Image.Image]:  # fmt: skip
    texts, networks = extra_networks.parse_prompts(prompts)
    if not p.disable_extra_networks:
        extra_networks.activate(p, networks)
    noise = ImageRNG((4, p.height // 8, p.width // 8), seeds)
    with devices.autocast():
        wanted, unwanted = p.states(p.cached_c, texts, networks), p.states(p.cached_uc, negatives, networks)
        start = noise.first()  # before the conditioning, which draws from everybody's random numbers
        guess = sd_samplers.Guided(model, wanted, unwanted, p.cfg_scale, Levels(model.alphas_cumprod), txt2img_image_conditioning(model, start, p.width, p.height))
        latents = sd_samplers.sample(sampler, p.scheduler, p.steps, guess, noise.next, start)
        if upscale is not None and not shared.state.interrupted:
            shared.state.nextjob()
            latents = upscale(latents)
            # of a latent's enlargement in the size of the first pass: the host's mistake, by which an inpainting model fails there
            side = (p.width, p.height) if p.hr_upscaler in (None, *shared.latent_upscale_modes) else (8 * latents.shape[3], 8 * latents.shape[2])
            guess.beside = txt2img_image_conditioning(model, latents, *side)
            noise = ImageRNG(latents.shape[1:], seeds)
            guess.wanted, guess.unwanted = p.states(p.cached_hr_c, texts, networks), p.states(p.cached_hr_uc, negatives, networks)
            steps = p.hr_second_pass_steps or p.steps
            latents = sd_samplers.sample(sampler, p.scheduler, steps, guess, noise.next, noise.first(), start=latents, strength=p.denoising_strength)
    return _pictures(_decode(model, latents))


def txt2img_image_conditioning(sd_model: Any, x: Tensor, width: int, height: int) -> Tensor:
    """What an inpainting model is given beside latents x: a mask of ones over a grey picture, of whose latent a sample is drawn."""
    if sd_model.model.conditioning_key not in ("hybrid", "concat"):
        return x.new_zeros(len(x), 5, 1, 1)
    grey = torch.full((len(x), 3, height, width), 0.5, device=devices.device, dtype=devices.dtype_vae) * 2 - 1
    latent = torch.cat([sd_model.get_first_stage_encoding(sd_model.encode_first_stage(each[None])) for each in grey])
    return F.pad(latent, (0, 0, 0, 0, 1, 0), value=1.0).to(x.dtype)


def _decode(model: Any, latents: Tensor) -> Tensor:
    found = model.decode_first_stage(latents.to(devices.dtype_vae)).float()
    devices.test_for_nans(found, "VAE")
    return found


def _pictures(pixels: Tensor) -> list[Image.Image]:
    """Of values from -1 to 1 (B, 3, H, W)."""
    bytes_ = pixels.add(1).mul(127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(each) for each in bytes_]


def _noise_levels(original: Tensor) -> Tensor:
    """As the settings want them: rounded by half precision, or stretched until nothing is left of the picture at the end (2305.08891, algorithm 1)."""
    if shared.opts.use_downcasted_alpha_bar:
        return original.half()
    if shared.opts.sd_noise_schedule != "Zero Terminal SNR":
        return original
    root = original.sqrt()
    stretched = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return stretched.square().clamp(min=1e-7)  # 0 itself is an endless noise level


# ---- the second pass -------------------------------------------------------------------------------------------------


def _upscaler(p: StableDiffusionProcessing) -> Any:
    """From latents to larger ones: as such, or by way of the picture; raises Exception for an upscaler that is not there."""
    size = [round(side * p.hr_scale) // 8 for side in (p.height, p.width)]
    mode = shared.latent_upscale_modes.get(p.hr_upscaler or "Latent")
    if mode is not None:
        return lambda latents: F.interpolate(latents, size=size, mode=mode["mode"], antialias=mode["antialias"])
    if p.hr_upscaler not in [known.name for known in shared.sd_upscalers]:
        raise Exception(f"There is no upscaler {p.hr_upscaler!r}.")  # as bare as the host's
    resampling = Image.Resampling.NEAREST if p.hr_upscaler == "Nearest" else Image.Resampling.LANCZOS

    def by_pixels(latents: Tensor) -> Tensor:
        model = p.sd_model
        larger = [picture.resize((8 * size[1], 8 * size[0]), resampling) for picture in _pictures(_decode(model, latents))]
        pixels = torch.from_numpy(np.stack([np.asarray(each) for each in larger])).permute(0, 3, 1, 2).to(devices.device, devices.dtype_vae)
        return model.get_first_stage_encoding(model.encode_first_stage(pixels / 127.5 - 1)).float()

    return by_pixels
