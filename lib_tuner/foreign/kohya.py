"""Settings of kohya's trainer: a configuration (--config_file), the JSON of bmaltais' GUI, and the `ss_*` metadata of a trained file.

Where a key is silent its default there holds, not ours: rank 4, alpha 1, 1600 steps, no buckets, and the text encoder is trained too.
Names, defaults, meanings: kohya-ss/sd-scripts 48d368f (library/train_util.py, train_network.py, networks/lora.py), bmaltais/kohya_ss
(kohya_gui/lora_gui.py), LyCORIS 3.3 (lycoris/kohya.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from ..sd.names import BLOCKS17, BLOCKS26
from .draft import Draft, is_on, number

Raw = Mapping[str, Any]

NETWORK = {"network_module", "network_dim", "network_alpha", "network_args", "network_weights", "unet_lr", "network_train_unet_only"}
EMBEDDING = {"token_string", "init_word", "num_vectors_per_token"}
GUI = {"LoRA_type", "max_resolution", "lr_warmup", "model_list"}  # of its JSON; the TOML that it makes of it for the trainer has none of them
SURE = NETWORK | EMBEDDING | {  # names that only kohya's trainer has
    "pretrained_model_name_or_path", "train_data_dir", "LoRA_type", "train_batch_size", "max_train_steps", "max_train_epochs", "text_encoder_lr",
    "lr_scheduler", "optimizer_type", "output_name", "max_resolution", "dataset_config", "caption_extension",
}  # fmt: skip

_SAME = {
    "train_data_dir": "data.folder", "reg_data_dir": "data.class_folder", "output_dir": "output", "output_name": "name", "token_string": "name",
    "train_batch_size": "data.batch", "gradient_accumulation_steps": "optim.accumulate", "max_grad_norm": "optim.clip", "seed": "seed",
    "clip_skip": "clip_skip", "save_every_n_steps": "save_every", "sample_every_n_steps": "sample.every",
    "enable_bucket": "data.buckets", "min_bucket_reso": "data.bucket_min", "max_bucket_reso": "data.bucket_max", "bucket_reso_steps": "data.bucket_step",
    "shuffle_caption": "data.shuffle_tags", "keep_tokens": "data.keep_tags", "enable_wildcard": "data.wildcards", "token_warmup_min": "data.token_warmup_min",
    "caption_dropout_rate": "data.caption_dropout", "caption_tag_dropout_rate": "data.tag_dropout", "prior_loss_weight": "data.class_weight",
    "lr_scheduler_num_cycles": "optim.cycles", "lr_scheduler_power": "optim.power", "lr_scheduler_min_lr_ratio": "optim.floor",
    "noise_offset": "loss.noise_offset", "adaptive_noise_scale": "loss.adaptive_offset", "multires_noise_iterations": "loss.pyramid",
    "multires_noise_discount": "loss.pyramid_discount", "ip_noise_gamma": "loss.input_perturbation", "min_snr_gamma": "loss.min_snr",
    "debiased_estimation_loss": "loss.debiased", "zero_terminal_snr": "loss.zero_terminal_snr", "huber_c": "loss.huber_c",
    "huber_schedule": "loss.huber_schedule", "min_timestep": "loss.t_min", "max_timestep": "loss.t_max",
    "network_dropout": ".dropout", "scale_weight_norms": ".max_norm", "network_weights": ".start", "weights": ".start",
    "num_vectors_per_token": ".vectors", "init_word": ".init",
}  # fmt: skip
_SAMPLERS = {"ddim": "ddim", "euler_a": "euler_a", "k_euler_a": "euler_a", "dpmsolver++": "dpmpp_2m"}
_SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine", "cosine_with_min_lr": "cosine",
    "cosine_with_restarts": "restarts", "polynomial": "polynomial",
}  # fmt: skip
_CHOICES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "lr_scheduler": ("optim.schedule", _SCHEDULES),
    "loss_type": ("loss.kind", {"l2": "mse", "l1": "l1", "huber": "huber", "smooth_l1": "smooth_l1"}),
    "mixed_precision": ("memory.precision", {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}),
    "save_precision": (".save_dtype", {"float": "fp32", "fp16": "fp16", "bf16": "bf16"}),
    "gradient_checkpointing": ("memory.checkpointing", {"true": "on"}),
    "v_parameterization": ("loss.prediction", {"true": "v"}),
    "flip_aug": ("data.flip", {"true": "all", "false": "off"}),
    "bucket_no_upscale": ("data.upscale", {"true": False, "false": True}),
    "use_object_template": ("data.template", {"true": "subject"}),
    "use_style_template": ("data.template", {"true": "style"}),
    "save_model_as": (".save_pt", {"pt": True}),
    "sample_sampler": ("sample.sampler", _SAMPLERS),
    "log_with": ("tensorboard", {"tensorboard": True, "all": True}),
}
_NETWORK_ARGS = {
    "conv_dim": ".conv_rank", "conv_alpha": ".conv_alpha", "dropout": ".dropout", "rank_dropout": ".rank_dropout", "module_dropout": ".module_dropout",
    "loraplus_lr_ratio": ".up_lr_ratio", "use_tucker": ".tucker", "rs_lora": ".rank_stabilized", "factor": ".factor",
    "full_matrix": ".full_matrix", "decompose_both": ".decompose_both",
}  # fmt: skip
# a name there -> ours, and what that package takes by itself where we would not; what is paged is a matter of memory only
_OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}), "pagedadamw": ("adamw", {}), "pagedadamw32bit": ("adamw", {}),
    "adamw8bit": ("adamw8bit", {}), "pagedadamw8bit": ("adamw8bit", {}),
    "lion": ("lion", {"betas": "0.9, 0.99", "weight_decay": 0.0}), "adafactor": ("adafactor", {"weight_decay": 0.0}),
    "prodigy": ("prodigy", {"weight_decay": 0.0}), "adamwschedulefree": ("adamw_schedulefree", {"weight_decay": 0.0}),
}  # fmt: skip
_LYCORIS_PRESETS: dict[str, tuple[str, ...]] = {"full": (), "attn-mlp": (".conv_rank",), "attn-only": (".conv_rank", ".feed_forward", ".projections")}

_FAMILIES = {
    "sdxl": "SDXL", "v2": "Stable Diffusion 2", "flux1_checkbox": "FLUX.1", "sd3_checkbox": "Stable Diffusion 3", "lumina_checkbox": "Lumina",
    "hunyuan_image_checkbox": "HunyuanImage", "anima_checkbox": "Anima",
}  # fmt: skip
# no effect on what is trained: the machine, logging, saved states, credentials (which are never shown), what our own way makes needless,
# and the fields that the GUI keeps for other models
_IDLE = re.compile(
    r"async_upload|cache_info|config_file|cpu_offload_checkpointing|(ddp|deepspeed|dynamo)\w*|debug_dataset|dim_from_weights|disable_mmap\w*"
    r"|extra_accelerate_launch_args|full_path|gpu_ids|highvram|huggingface_\w+|initial_(epoch|step)|log_(config|prefix|tracker\w*)|logging_dir|low_?v?ram"
    r"|main_process_port|max_data_loader_n_workers|max_token_length|mem_eff_\w+|metadata_\w+|model_list|multi_gpu|no_(half_vae|metadata|token_padding)"
    r"|noise_offset_type|num_(cpu_threads_per_process|machines|processes)|output_config|persistent_data_loader_workers|resume_from_huggingface"
    r"|sample_at_first|save_last_n_\w+_state|save_model_as|save_state\w*|sdpa|skip_(cache_check|until_initial_step)|tokenizer_cache_dir|torch_compile"
    r"|training_preset|use_(safetensors|wandb)|v2|vae_batch_size|wandb_\w+|xformers"
    r"|(ae|anima|apply_t5|attn_mode|blocks_to_swap|cache_text_encoder|clip_[lg]|discrete_flow|double_|enable_all_linear|flux1|ggpo|guidance_scale)\w*"
    r"|(hunyuan|img_|in_dims|logit_|lumina|mode_scale|model_prediction_type|model_type|pos_emb_|save_clip|save_t5|sd3|sdxl|show_timesteps|single_)\w*"
    r"|(split_|t5xxl|text_encoder_batch_size|timestep_sampling|train_(blocks|double|single|t5xxl|lora_ggpo)|txt_|weighting_scheme)\w*"
)


def refuse_other_models(raw: Raw, name: str) -> None:
    """Raises ValueError where the settings are for another model than SD1.x."""
    found = [family for key, family in _FAMILIES.items() if is_on(raw.get(key))]
    found += re.findall(r"networks\.\w+_(flux|sd3|lumina|hunyuan_image|anima)", str(raw.get("network_module")))
    version = str(raw.get("base_model_version") or "sd_v1")
    if found or not version.startswith(("sd_v1", "None")):
        raise ValueError(f"{name} holds settings for {(found or [repr(version[:40])])[0]}; the Tuner trains Stable Diffusion 1.5 only")


def of_config(raw: Raw, methods: Mapping[str, Any], called: Callable[[str], str] = str) -> Draft:
    """The settings under the trainer's own names; `called`: as the file calls them."""
    draft = Draft({"enable_bucket": False, **raw}, _kind(raw, methods), called)
    rules = [_steps, _warmup, _optimizer, _resolution, _saving, _checkpoint, _captions, _masks, _cache, _samples]
    for rule in rules + ([_network, _rates] if raw.keys() & NETWORK else [_rate, _name]):
        rule(draft)
    draft.put_rest(_SAME, _CHOICES, _IDLE)
    if "optim.name" not in draft.values:
        draft.miss_rates()  # a rate means something for its own optimizer only: 1.0 for those that adapt it
    return draft


def _kind(raw: Raw, methods: Mapping[str, Any]) -> str:
    if any(is_on(raw.get(key)) for key in EMBEDDING):
        return "textual_inversion"
    algo = str(arguments(raw.get("network_args")).get("algo")).lower()
    algo = "lora" if algo == "locon" else algo  # its convolutions have settings of their own there too
    return algo if algo in methods else "lora" if raw.keys() & NETWORK else "dreambooth"


def arguments(value: Any) -> dict[str, str]:
    """`["a=1", "b=2,3"]`, or the same as one text with blanks or commas between, as a table."""
    if isinstance(value, Mapping):
        return {str(key): str(content) for key, content in value.items()}
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value or "")
    return dict(re.findall(r"([A-Za-z_]\w*)=(.*?)(?=[,\s]+[A-Za-z_]\w*=|\s*$)", text.replace('"', "")))


# ---- rules: each takes its keys out of the draft ---------------------------------------------------------------------


def _steps(draft: Draft) -> None:
    """Epochs depend on the number of pictures: they are missed, and steps beside them are taken though kohya would overrule them."""
    steps, epochs, epoch = draft.take("max_train_steps"), draft.take("max_train_epochs"), draft.take("epoch")
    draft.miss("max_train_epochs", epochs)
    if is_on(steps):
        draft.put("steps", steps, "max_train_steps")
    elif not is_on(epochs) and is_on(epoch):
        draft.miss("epoch", epoch)
    elif not is_on(epochs):
        draft.put("steps", 1600, "max_train_steps")


def _warmup(draft: Draft) -> None:
    """Steps, or a part of the run's steps: in percent, or below 1."""
    for name, key in (("lr_warmup_steps", "optim.warmup"), ("token_warmup_step", "data.token_warmup")):
        text = str(draft.take(name, 0)).strip()
        whole = 100 if text.endswith("%") else 1
        amount, steps = number(text.rstrip("%")), number(draft.values.get("steps"))
        if amount is None or whole == 1 and not 0 < amount < 1:
            draft.put(key, text, name)
        elif steps:
            draft.put(key, int(min(amount / whole, 1) * steps), name, text)
        else:
            draft.miss(name, text)


def _optimizer(draft: Draft) -> None:
    old = "AdamW8bit" if is_on(draft.take("use_8bit_adam")) else "Lion" if is_on(draft.take("use_lion_optimizer")) else "AdamW"
    name, given = str(draft.take("optimizer_type", old)), arguments(draft.take("optimizer_args"))
    ours, own = _OPTIMIZERS.get(name.rpartition(".")[2].lower(), ("", {}))
    if not ours:
        draft.miss("optimizer_type", name)
    for key, value in {"name": ours, **own}.items() if ours else ():
        draft.put(f"optim.{key}", value, "optimizer_type", name)
    if ours == "adafactor":
        given.setdefault("relative_step", "True")  # kohya's default, where it sets the rate itself; ours does not
    for key, value in given.items():
        _optimizer_argument(draft, key, value)


def _optimizer_argument(draft: Draft, key: str, value: str) -> None:
    name = f"optimizer_args {key}"
    pair = [n for n in map(number, re.split(r"[,\s]+", value.strip("()[] "))) if n is not None and 0 <= n < 1]
    if key == "betas" and len(pair) == 2:
        draft.put("optim.betas", ", ".join(f"{n:g}" for n in pair), name, value)
    elif key in ("weight_decay", "eps"):
        draft.put(f"optim.{key}", value, name)
    elif key not in ("decouple", "use_bias_correction", "safeguard_warmup"):  # Prodigy's, which we decide
        draft.miss(name, value)


def _rates(draft: Draft) -> None:
    """unet_lr and text_encoder_lr win over learning_rate; a part of the model whose rate is 0 is not trained, and without flags both are."""
    base = draft.take("learning_rate", 2e-6)
    unet, text = draft.take("unet_lr"), draft.take("text_encoder_lr")
    text = text[0] if isinstance(text, (list, tuple)) else text
    unet_only, text_only = is_on(draft.take("network_train_unet_only")), is_on(draft.take("network_train_text_encoder_only"))
    trains_text = not unet_only and number(base if text is None else text) != 0
    draft.put(".text_encoder", trains_text, "text_encoder_lr", text)
    if text_only or number(unet) == 0:
        for part in (".attention", ".feed_forward", ".projections"):
            draft.put(part, False, "network_train_text_encoder_only", True)
        _put_rate(draft, "optim.lr", "text_encoder_lr", text, base)
    else:
        _put_rate(draft, "optim.lr", "unet_lr", unet, base)
        if trains_text:
            _put_rate(draft, "optim.text_lr", "text_encoder_lr", text, base)


def _put_rate(draft: Draft, key: str, name: str, value: Any, base: Any) -> None:
    """The part's own rate, or else the common one."""
    value, name = (base, "learning_rate") if value is None else (value, name)
    if (number(value) or 0) > 0:
        draft.put(key, value, name)
    else:
        draft.miss(name, value)


def _rate(draft: Draft) -> None:
    _put_rate(draft, "optim.lr", "learning_rate", draft.take("learning_rate"), 2e-6)
    if draft.kind == "dreambooth":
        _whole(draft)


def _whole(draft: Draft) -> None:
    """train_db.py trains the text encoder to the end, or until a step (-1: not at all); fine_tune.py where it is told to."""
    flag, until, rate = draft.take("train_text_encoder"), draft.take("stop_text_encoder_training"), draft.take("learning_rate_te")
    draft.put(".text_encoder", (number(until) or 0) >= 0 if flag is None else is_on(flag), "train_text_encoder", flag)
    if (number(until) or 0) > 0:
        draft.put(".text_until", until, "stop_text_encoder_training")
    if rate is not None:
        draft.put("optim.text_lr", rate, "learning_rate_te")


def _name(draft: Draft) -> None:
    """An embedding is called by the word that the captions hold, so its file has that name too."""
    if "token_string" in draft.raw and draft.raw["token_string"] != (name := draft.take("output_name")):
        draft.miss("output_name", name)


def _network(draft: Draft) -> None:
    given, module = arguments(draft.take("network_args")), str(draft.take("network_module", "networks.lora"))
    rank, alpha = draft.take("network_dim", 4), draft.take("network_alpha", 1)
    alpha = rank if number(alpha) == 0 else alpha  # networks/lora.py: no alpha, no scaling
    draft.put(".rank", rank, "network_dim")
    draft.put(".alpha", alpha, "network_alpha")
    if module == "lycoris.kohya":
        _lycoris(draft, given, rank, alpha)
    elif module != "networks.lora":
        draft.miss("network_module", module)
    _blocks(draft, given, rank)
    _block_rates(draft, given)
    if number(given.get("conv_alpha")) == 0:
        given["conv_alpha"] = given.get("conv_dim", "1")
    for key, value in given.items():
        if key in _NETWORK_ARGS:
            draft.put(_NETWORK_ARGS[key], value, f"network_args {key}")
        elif key not in ("bypass_mode", "wd_on_output"):  # how LyCORIS computes the same, and what only DoRA reads
            draft.miss(f"network_args {key}", value)


def _lycoris(draft: Draft, given: dict[str, str], rank: Any, alpha: Any) -> None:
    """LyCORIS trains the convolutions too, with the network's rank and alpha where they have none of their own."""
    algo, preset = given.pop("algo", "lora").lower(), given.pop("preset", "full")
    if algo not in ("lora", "locon", draft.kind):
        draft.miss("network_args algo", algo)
    if preset not in _LYCORIS_PRESETS:
        draft.miss("network_args preset", preset)
    for key, default in (("conv_dim", rank), ("conv_alpha", alpha)):
        given[key] = given.get(key) or str(default)
    for key in _LYCORIS_PRESETS.get(preset, ()):
        given.pop("conv_dim", None)
        draft.put(key, 0 if key == ".conv_rank" else False, "network_args preset", preset)


def _blocks(draft: Draft, given: dict[str, str], rank: Any) -> None:
    """One rank for each of 12 blocks down, the middle and 12 up; 0: the block gets no layers."""
    text = given.pop("block_dims", "")
    ranks = [int(number(n) or 0) for n in re.findall(r"\d+", text)]
    if len(ranks) == len(BLOCKS26) - 1 and any(ranks):
        own = dict(zip(BLOCKS26[1:], ranks))
        differing = [f"{block}={r}" for block, r in own.items() if r and r != number(rank) and block in BLOCKS17]  # the others have no attention
        draft.put(".block_ranks", ", ".join(differing), "network_args block_dims", text)
        draft.put(".blocks", "all" if all(ranks) else ", ".join(block for block, r in own.items() if r), "network_args block_dims", text)
    else:
        draft.miss("network_args block_dims", text)


def _block_rates(draft: Draft, given: dict[str, str]) -> None:
    """How many times the learning rate 12 blocks down, the middle and 12 up learn at; up to the threshold a block gets no layers."""
    texts = {key: given.pop(key) for key in ("down_lr_weight", "mid_lr_weight", "up_lr_weight") if key in given}
    floor = number(given.pop("block_lr_zero_threshold", 0)) or 0.0
    rows = [[number(n) for n in texts[key].split(",")] if key in texts else [1.0] * count for key, count in (("down_lr_weight", 12), ("mid_lr_weight", 1), ("up_lr_weight", 12))]
    whole = [len(row) for row in rows] == [12, 1, 12] and not any(n is None for row in rows for n in row)
    for key, text in texts.items():
        if whole:
            draft.put(".block_rates", ", ".join(f"{n if n > floor else 0:g}" for row in rows for n in row), f"network_args {key}", text)
        else:  # a curve by name, such as sine
            draft.miss(f"network_args {key}", text)


def _resolution(draft: Draft) -> None:
    """A side, or width and height: with buckets only their area counts; without, a shape that is not square has no counterpart."""
    value = draft.take("resolution")
    sides = [int(number(n) or 0) for n in re.findall(r"\d+(?:\.\d+)?", str(value or ""))]
    if len(sides) == 1 or (len(sides) == 2 and sides[0] == sides[1]):
        draft.put("data.resolution", sides[0], "resolution", value)
    elif len(sides) == 2 and is_on(draft.raw.get("enable_bucket")):
        draft.put("data.resolution", isqrt(sides[0] * sides[1]) // 8 * 8, "resolution", value)
    else:
        draft.miss("resolution", value)


def _saving(draft: Draft) -> None:
    """kohya keeps what was saved in the last n steps, we keep the last n saves."""
    every, last = number(draft.raw.get("save_every_n_steps")), draft.take("save_last_n_steps")
    if every and number(last):
        draft.put("keep_last", int(number(last) // every) + 1, "save_last_n_steps", last)
    else:
        draft.miss("save_last_n_steps", last)


def _checkpoint(draft: Draft) -> None:
    """A file; a name on Hugging Face or a diffusers folder is none that we read."""
    value = str(draft.take("pretrained_model_name_or_path", ""))
    if value.lower().endswith((".safetensors", ".ckpt", ".pt")):
        draft.put("checkpoint", value, "pretrained_model_name_or_path")
    else:
        draft.miss("pretrained_model_name_or_path", value)


def _captions(draft: Draft) -> None:
    ending = str(draft.take("caption_extension", draft.take("caption_extention", ""))).strip().lstrip(".")
    if ending == "none-use-foldername":  # an ending that no file has, by which people make kohya take the folder's name
        draft.put("data.caption_from", "folder", "caption_extension", ending)
    elif ending:
        draft.put("data.caption_extension", ending, "caption_extension")


def _masks(draft: Draft) -> None:
    """kohya's masks leave nothing of what they hide."""
    if is_on(draft.take("masked_loss")) | is_on(draft.take("alpha_mask")):
        draft.put("data.masks", True, "masked_loss")
        draft.put("data.mask_floor", 0.0, "masked_loss", True)


def _cache(draft: Draft) -> None:
    in_memory, on_disk = draft.take("cache_latents"), draft.take("cache_latents_to_disk")
    if in_memory is not None or on_disk is not None:
        draft.put("data.cache", "disk" if is_on(on_disk) else "memory" if is_on(in_memory) else "off", "cache_latents", in_memory)


# ---- sample prompts --------------------------------------------------------------------------------------------------

_PROMPT_OPTIONS = {"n": "sample.negative", "w": "sample.width", "h": "sample.height", "d": "sample.seed", "s": "sample.steps", "l": "sample.cfg"}


def _samples(draft: Draft) -> None:
    """A file of prompts, or in the GUI's JSON the prompts themselves. An option that all prompts share is ours too."""
    value = str(draft.take("sample_prompts", ""))
    lines = [line.strip().split(" --") for line in _prompt_lines(value) if line.strip() and not line.startswith("#")]
    if not lines:
        draft.miss("sample_prompts", value)
        return
    draft.put("sample.prompts", "\n".join(parts[0].strip() for parts in lines), "sample_prompts", value)
    given = [dict(part.strip().split(" ", 1) for part in parts[1:] if " " in part.strip()) for parts in lines]
    for letter in dict.fromkeys(letter for line in given for letter in line):
        different = list(dict.fromkeys(line.get(letter, "") for line in given))
        if len(different) == 1 and letter in _PROMPT_OPTIONS:
            draft.put(_PROMPT_OPTIONS[letter], different[0], f"sample_prompts --{letter}")
        else:
            draft.miss(f"sample_prompts --{letter}", " | ".join(different))


def _prompt_lines(value: str) -> list[str]:
    """The lines of the file that the value names, or of the value; none of a file that is not there or no text."""
    if "\n" in value or not value.lower().endswith((".txt", ".toml", ".json")):
        return value.splitlines()
    try:
        return Path(value).read_text(encoding="utf-8-sig").splitlines() if value.lower().endswith(".txt") else []
    except (OSError, ValueError):
        return []
