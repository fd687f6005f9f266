"""process_images: what it reads, writes, changes and leaves behind."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import torch

from .tools import alone, draw, error_of, lora_on_to_q, probe, put_embedding, same, to_q, width_of, wish


@probe
def t7_conditions_are_kept_by_their_text(w: Any) -> Any:
    """An embedding that changed is not seen by the same prompt, unless the caches are one's own."""
    db, found = w.sd_hijack.model_hijack.embedding_db, {}
    put_embedding(w, "word", torch.zeros(1, width_of(w)))
    db.load_textual_inversion_embeddings(force_reload=True)
    first = draw(w, "a word").images[0]
    db.word_embeddings["word"].vec.copy_(torch.linspace(-3, 3, width_of(w))[None])  # what is the same everywhere, a norm takes away
    found["same prompt"] = same(first, draw(w, "a word").images[0])
    p = wish(w, "a word")
    p.cached_c, p.cached_uc = [None, None], [None, None]
    found["own caches"] = same(first, w.processing.process_images(p).images[0])
    found["again with the shared"] = same(first, draw(w, "a word").images[0])
    return found


@probe
def t7_where_the_caches_are(w: Any) -> Any:
    cls, sub = w.processing.StableDiffusionProcessing, w.processing.StableDiffusionProcessingTxt2Img
    p = wish(w)
    shared = [p.cached_c is cls.cached_c, p.cached_uc is cls.cached_uc, p.cached_hr_c is sub.cached_hr_c]
    w.processing.process_images(p)
    filled = [cls.cached_c[0] is not None, cls.cached_uc[0] is not None]
    p.close()
    return {
        "shared": shared,
        "filled": filled,
        "after close": cls.cached_c[0] is not None,
        "own of the subclass": [name for name in ("cached_c", "cached_hr_c") if name in vars(sub)],
    }


@probe
def t7_what_makes_them_anew(w: Any) -> Any:
    """Changes after which the conditions of the same prompt are computed again."""
    cls, found = w.processing.StableDiffusionProcessing, {}
    draw(w, "a ball")
    changes: dict[str, dict[str, Any]] = {
        "nothing": {},
        "seed": {"seed": 9},
        "steps": {"steps": 3},
        "width": {"width": 128},
        "cfg": {"cfg_scale": 1.5},
        "clip skip": {"override_settings": {"CLIP_stop_at_last_layers": 2}},
        "emphasis": {"override_settings": {"emphasis": "Ignore"}},
    }
    for name, change in changes.items():
        cls.cached_c, cls.cached_uc = [None, None], [None, None]
        draw(w, "a ball")
        before = cls.cached_c[1]
        draw(w, "a ball", **change)
        found[name] = cls.cached_c[1] is not before
    return found


@probe
def t8_random_numbers(w: Any) -> Any:
    """A picture seeds everybody's random numbers with its own seed."""
    torch.manual_seed(123)
    before = torch.get_rng_state()
    draw(w, seed=7)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    return {"changed": not same(before, after), "as seeded": same(torch.get_rng_state(), after), "seed": torch.initial_seed()}


@probe
def t8_job_counters(w: Any) -> Any:
    s, found = w.shared.state, {}
    for name, wishes in (("one", {}), ("two", {"n_iter": 2}), ("two at once", {"batch_size": 2})):
        s.job_count, s.job_no = 40, 11
        images = draw(w, **wishes).images
        found[name] = [s.job_count, s.job_no, s.sampling_step, s.sampling_steps, len(images)]
    s.job_count = -1
    draw(w)
    found["unset"] = [s.job_count]
    return {**found, "job": s.job}


@probe
def t8_hires(w: Any) -> Any:
    """The second pass counts as a job of its own."""
    s = w.shared.state
    s.job_count, s.job_no, s.processing_has_refined_job_count = -1, 0, False
    image = draw(w, enable_hr=True, hr_scale=2.0, hr_upscaler="Latent", denoising_strength=0.7, hr_second_pass_steps=2).images[0]
    cls = w.processing.StableDiffusionProcessingTxt2Img
    return {"size": list(image.size), "jobs": [s.job_count, s.job_no], "refined": s.processing_has_refined_job_count, "cache": cls.cached_hr_c[0] is not None}


@probe
def hires_by_a_pixel_upscaler(w: Any) -> Any:
    return {
        "size": list(draw(w, enable_hr=True, hr_scale=2.0, hr_upscaler="Lanczos", denoising_strength=0.5).images[0].size),
        "unknown": error_of(lambda: draw(w, enable_hr=True, hr_upscaler="none such")),
        "names": sorted({u.name for u in w.shared.sd_upscalers} & {"None", "Lanczos", "Nearest"}),
        "latent": sorted(w.shared.latent_upscale_modes),
    }


@probe
def t8_hypernetworks_and_loras(w: Any) -> Any:
    """A picture empties both lists, unless extra networks are disabled for it."""
    found = {}
    lora_on_to_q(w)
    for name, disabled in (("disabled", True), ("plain", False)):
        w.shared.loaded_hypernetworks = [w.hypernetwork.Hypernetwork(name="own", enable_sizes=[], layer_structure=[1, 1])]
        w.networks.load_networks(["one"], [1.0], [1.0], [None])
        draw(w, disable_extra_networks=disabled)
        found[name] = [len(w.shared.loaded_hypernetworks), len(w.networks.loaded_networks)]
    draw(w, "a ball <lora:one:1>", disable_extra_networks=True)
    return {**found, "named but disabled": len(w.networks.loaded_networks)}


@probe
def t10_interrupted(w: Any) -> Any:
    """Set before: no picture. Set meanwhile: one, as far as it came."""
    s, found = w.shared.state, {}
    s.interrupted = True
    found["before"] = len(draw(w).images)
    found["stays"] = s.interrupted
    s.interrupted, s.skipped = False, True
    found["skipped before"] = [len(draw(w).images), s.skipped]
    s.skipped = False

    calls: list[int] = []

    def stop(params: Any) -> None:
        calls.append(params.sampling_step)
        s.interrupted = True

    w.script_callbacks.on_cfg_denoiser(stop)
    try:
        found["meanwhile"] = [len(draw(w, steps=4, n_iter=3).images), len(calls)]
    finally:
        w.script_callbacks.remove_callbacks_for_function(stop)
    s.interrupted, s.stopping_generation = False, True
    found["stopping"] = len(draw(w, n_iter=2).images)
    s.stopping_generation = False
    return found


@probe
def callbacks_while_drawing(w: Any) -> Any:
    """Called at each step; what they raise does not stop the picture."""
    seen: list[Any] = []

    def look(params: Any) -> None:
        seen.append([params.sampling_step, params.total_sampling_steps, list(params.x.shape), params.text_cond.shape[1], params.text_uncond.shape[1]])
        raise RuntimeError("of a callback")

    w.script_callbacks.on_cfg_denoiser(look)
    try:
        images = len(draw(w, "word " * 80, steps=3).images)
    finally:
        w.script_callbacks.remove_callbacks_for_function(look)
    return {"images": images, "seen": seen}


@probe
def files_written(w: Any) -> Any:
    """params.txt always; pictures only where wanted."""
    params = Path(w.paths.data_path) / "params.txt"
    params.unlink(missing_ok=True)
    processed = draw(w, "a red ball", negative_prompt="bad", outpath_samples=str(w.folder / "samples"), outpath_grids=str(w.folder / "grids"))
    quiet = [(w.folder / name).exists() for name in ("samples", "grids")]
    text = params.read_text(encoding="utf-8").splitlines()
    info = processed.images[0].info.get("parameters", "")
    draw(w, outpath_samples=str(w.folder / "samples"), outpath_grids=str(w.folder / "grids"), do_not_save_samples=False, do_not_save_grid=False, n_iter=2)
    saved = [len(list((w.folder / name).rglob("*.png"))) for name in ("samples", "grids")]
    return {"quiet": quiet, "params": text[:2], "keys": [part.split(":")[0] for part in text[2].split(", ")][:8], "info": info.splitlines()[:2], "saved": saved,
            "processed": [type(processed).__name__, processed.seed, processed.all_seeds, processed.all_prompts, processed.index_of_first_image]}  # fmt: skip


@probe
def pictures_and_grids(w: Any) -> Any:
    """The grid comes first where there are several and it is not unwanted."""
    found = {}
    for name, wishes in (("one", {"do_not_save_grid": False}), ("two", {"n_iter": 2, "do_not_save_grid": False}), ("without", {"n_iter": 2})):
        processed = draw(w, outpath_grids=str(w.folder), **wishes)
        found[name] = [len(processed.images), processed.index_of_first_image, list(processed.images[0].size)]
    return {**found, "modes": processed.images[0].mode, "seeds": processed.all_seeds}


@probe
def drawing_again(w: Any) -> Any:
    """The same wish gives the same picture; seed, prompt and sampler make another."""
    first = draw(w).images[0]
    names = {"again": {}, "seed": {"seed": 8}, "prompt": {"prompt": "a stone"}, "ancestral": {"sampler_name": "Euler a", "steps": 3}}
    found = {name: same(first, draw(w, **wishes).images[0]) for name, wishes in names.items()}
    batch = draw(w, batch_size=2).images
    return {**found, "gradients": any(p.grad is not None for p in w.model.parameters()), "batch": len(batch)}


@probe
def hooks_take_part(w: Any) -> Any:
    plain = draw(w).images[0]
    hook = to_q(w).register_forward_hook(lambda m, args, out: out * 0 + 1)
    other = draw(w).images[0]
    hook.remove()
    return {"changed": not same(plain, other), "back": same(plain, draw(w).images[0])}


@probe
def override_settings(w: Any) -> Any:
    """Back afterwards, if the setting was among the saved ones; on a fresh installation it is not, and the override STAYS."""
    opts, found = w.shared.opts, {}
    opts.data.pop("CLIP_stop_at_last_layers", None)
    p = wish(w, override_settings={"CLIP_stop_at_last_layers": 2})
    w.processing.process_images(p)
    found["not among them"] = [opts.CLIP_stop_at_last_layers, "CLIP_stop_at_last_layers" in opts.data]
    opts.data["CLIP_stop_at_last_layers"] = 1
    w.processing.process_images(wish(w, override_settings={"CLIP_stop_at_last_layers": 2}))
    found["among them"] = opts.CLIP_stop_at_last_layers
    w.processing.process_images(wish(w, override_settings={"CLIP_stop_at_last_layers": 2}, override_settings_restore_afterwards=False))
    found["not to be restored"] = opts.CLIP_stop_at_last_layers
    p = wish(w, override_settings={"sd_model_checkpoint": "nothing like it"})
    w.processing.process_images(p)
    return {**found, "unknown checkpoint": list(p.override_settings), "unknown setting": error_of(lambda: draw(w, override_settings={"no such setting": 1}))}


@probe
def fresh_settings(w: Any) -> Any:
    """Without a config.json only what was set since is in `data`; the rest comes from the defaults."""
    opts, names = (
        w.shared.opts,
        ("unload_models_when_training", "CLIP_stop_at_last_layers", "sd_vae", "emphasis", "randn_source", "save_optimizer_state", "training_write_csv_every"),
    )
    return {
        "in data": [name for name in names if name in opts.data],
        "by attribute": [getattr(opts, name) for name in names],
        "defaults": [opts.get_default(name) for name in names],
        "checkpoint": "sd_model_checkpoint" in opts.data,
        "hash": "sd_checkpoint_hash" in opts.data,
        "unknown": [opts.get_default("none such"), error_of(lambda: opts.none_such)],
    }


def _drawn_while_chosen(w: Any, override: bool) -> Any:
    """A person chooses another checkpoint while a job has the lock and draws."""
    m, info = w.model, w.sd_models.get_closet_checkpoint_match("second.safetensors")
    title = m.sd_checkpoint_info.title
    chooser = threading.Thread(target=lambda: w.shared.opts.set("sd_model_checkpoint", info.title))
    with w.call_queue.queue_lock:
        chooser.start()
        time.sleep(0.3)
        at_once = [w.shared.opts.sd_model_checkpoint == info.title, w.model is m, chooser.is_alive()]
        draw(w, override_settings={"sd_model_checkpoint": title} if override else {})
        kept = [w.sd_models.model_data.sd_model is m, next(m.parameters()).device.type, w.shared.opts.sd_model_checkpoint == info.title]
    chooser.join(30)
    return {"at once": at_once, "after the picture": kept, "at the end": w.model.sd_checkpoint_info is info}


@alone
def t6_another_checkpoint_is_chosen(w: Any) -> Any:
    return _drawn_while_chosen(w, override=False)


@alone
def t6_with_an_override(w: Any) -> Any:
    return _drawn_while_chosen(w, override=True)


@probe
def t6_same_config_within_a_picture(w: Any) -> Any:
    """The object stays, its weights are another checkpoint's: `shared.sd_model is m` does not notice."""
    m, before = w.model, to_q(w).weight.detach().clone()
    info = w.sd_models.get_closet_checkpoint_match("third.safetensors")
    w.shared.opts.data["sd_model_checkpoint"] = info.title
    draw(w)
    return {"same object": w.model is m, "weights": same(to_q(w).weight.detach(), before), "info": m.sd_checkpoint_info is info}


@probe
def given_model_is_ignored(w: Any) -> Any:
    p = w.processing.StableDiffusionProcessingTxt2Img(sd_model=None, prompt="a")
    p.sd_model = "another"
    return {"model": p.sd_model is w.model, "sampler": p.sampler_name, "steps": p.steps, "scheduler": p.scheduler, "size": [p.width, p.height], "seed": p.seed,
            "override": p.override_settings, "hr": [p.enable_hr, p.hr_scale, p.denoising_strength]}  # fmt: skip


@probe
def samplers_and_schedules(w: Any) -> Any:
    s = w.sd_samplers
    return {
        "samplers": [known.name for known in s.all_samplers],
        "visible": s.visible_sampler_names() == [known.name for known in s.visible_samplers()],
        "schedules": [[known.name, known.label] for known in w.sd_schedulers.schedulers],
        "map": s.samplers_map.get("ddim"),
        "unknown": error_of(lambda: draw(w, sampler_name="none such")),
    }


@probe
def previews_of_the_progress(w: Any) -> Any:
    s = w.shared.state
    image = draw(w).images[0]
    before = s.id_live_preview
    s.assign_current_image(image)
    return {"counted": s.id_live_preview - before, "kept": s.current_image is image}


@probe
def styles(w: Any) -> Any:
    p = wish(w, "a ball", styles=["none such"])
    processed = w.processing.process_images(p)
    return {"prompt": processed.all_prompts, "known": hasattr(w.shared.prompt_styles, "styles")}
