"""What a saved file says about itself: kohya's `ss_*`, Stability's `modelspec.*`, our settings, and the WebUI's card beside a LoRA.

All values are text; those that the WebUI reads as JSON start with a brace (its modules/sd_models.py). Key names and spellings of values:
kohya-ss sd-scripts, train_network.py and library/sai_model_spec.py. Apart from times, the same settings and data give the same values.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..config import METADATA_KEY, flat_values, to_metadata
from ..disk import atomic
from ..settings import DataConfig, LossConfig, OptimConfig, TrainConfig

Summary = Mapping[str, Any]  # of the data, `Batches.summary()`: what goes into the file has kohya's names (`ss_…`); any may be absent

_OPTIMIZERS = {  # as kohya writes them: the class's full name
    "adamw": "torch.optim.adamw.AdamW",
    "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "lion": "lion_pytorch.lion_pytorch.Lion",
    "adafactor": "transformers.optimization.Adafactor",
    "prodigy": "prodigyopt.prodigy.Prodigy",
    "adamw_schedulefree": "schedulefree.adamw_schedulefree.AdamWScheduleFree",
}


_LYCORIS = {"conv_rank": "conv_dim", "dora": "dora_wd", "tucker": "use_tucker", "rank_stabilized": "rs_lora"}  # kohya's and LyCORIS's names in ss_network_args


@dataclass(frozen=True)
class Made:
    """What is known of a file only when it is saved; times in seconds since 1970."""

    step: int
    epoch: int
    started: float
    finished: float
    model_hash: str = ""  # sha256 of the checkpoint
    model_name: str = ""
    prediction: str = "eps"


def lora_metadata(cfg: TrainConfig, summary: Summary, made: Made, modules: Iterable[tuple[str, str]] = (), run: TrainConfig | None = None) -> dict[str, str]:
    """The metadata of a LoRA file; `modules`: the (part, path) of those trained, `run`: the run's settings where `cfg` holds those of its adapter."""
    return _as_text({**_run(cfg, summary, made), **_network(cfg, {part for part, _ in modules}), **_modelspec(cfg, made, "lora")}) | _settings(run or cfg)


def checkpoint_metadata(cfg: TrainConfig, summary: Summary, made: Made) -> dict[str, str]:
    """The metadata of a whole checkpoint."""
    return _as_text({**_run(cfg, summary, made), **_modelspec(cfg, made, "")}) | _settings(cfg)


def embedding_metadata(cfg: TrainConfig, summary: Summary, made: Made, name: str = "", run: TrainConfig | None = None) -> dict[str, str]:
    """The metadata of an embedding file; `name` is the word it stands for (default: the run's name), `run` as above."""
    own = {"modelspec.title": name or cfg.name, "modelspec.trigger_phrase": name or cfg.name, "ss_output_name": name or cfg.name}
    return _as_text({**_run(cfg, summary, made), **_modelspec(cfg, made, "textual-inversion"), **own}) | _settings(run or cfg)


def settings_metadata(cfg: TrainConfig) -> dict[str, str]:
    """Our settings alone, for a file that has no place for more."""
    return _settings(cfg)


def control_metadata(cfg: TrainConfig, summary: Summary, made: Made, kind: str) -> dict[str, str]:
    """The metadata of a T2I-Adapter's or ControlNet's file."""
    return _as_text({**_run(cfg, summary, made), **_modelspec(cfg, made, kind.replace("_", "-"))}) | _settings(cfg)


def write_card(path: str | Path, trigger: str, *, weight: float = 0.0, description: str = "", notes: str = "") -> Path:
    """Writes `<name>.json` beside a LoRA file, from which the WebUI's card takes the words and the weight that a click puts into the prompt.

    What somebody has already filled in there stays; weight 0 is the WebUI's own default. Raises ValueError where the file there is damaged, OSError.
    """
    path = Path(path).with_suffix(".json")
    fields = {"description": description, "sd version": "SD1", "activation text": trigger, "preferred weight": weight, "negative text": "", "notes": notes}
    kept = {key: value for key, value in _read_card(path).items() if value or key not in fields}
    if trigger not in str(kept.get("activation text")):
        kept.pop("activation text", None)  # of an earlier file of this name
    card = {**fields, **kept}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(card, indent=4, ensure_ascii=False), encoding="utf-8")
    return path


def _read_card(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} beside the LoRA is no JSON ({error}); it was left as it is: correct or delete it.") from None
    if not isinstance(card, dict):
        raise ValueError(f"{path.name} beside the LoRA is not a card of the WebUI; it was left as it is: rename or delete it.")
    return card


# ---- kohya's ss_* ----------------------------------------------------------------------------------------------------


def _run(cfg: TrainConfig, summary: Summary, made: Made) -> dict[str, Any]:
    return {
        "ss_session_id": int(hashlib.sha256(_settings(cfg)[METADATA_KEY].encode()).hexdigest()[:8], 16),
        "ss_training_started_at": made.started,
        "ss_training_finished_at": made.finished,
        "ss_output_name": cfg.name,
        "ss_steps": made.step,
        "ss_epoch": made.epoch,
        "ss_max_train_steps": cfg.steps,
        "ss_seed": cfg.seed,
        "ss_v2": False,
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": made.model_name or None,
        "ss_new_sd_model_hash": made.model_hash or None,
        "ss_clip_skip": cfg.clip_skip if cfg.clip_skip > 1 else None,  # the card hides None, kohya's word for the last layer
        "ss_mixed_precision": {"fp32": "no"}.get(cfg.memory.precision, cfg.memory.precision),
        "ss_gradient_checkpointing": cfg.memory.checkpointing == "on",
        **_optim(cfg.optim),
        **_loss(cfg.loss),
        **_data(cfg.data),
        **_pictures(cfg, summary),
    }


def _optim(optim: OptimConfig) -> dict[str, Any]:
    names = {"restarts": "cosine_with_restarts"}
    return {
        "ss_learning_rate": optim.lr,
        "ss_lr_scheduler": "piecewise_constant" if ":" in optim.lr else names.get(optim.schedule, optim.schedule),
        "ss_lr_warmup_steps": optim.warmup,
        "ss_optimizer": f"{_OPTIMIZERS[optim.name]}(weight_decay={optim.weight_decay:g},betas=({optim.betas}),eps={optim.eps:g})",
        "ss_gradient_accumulation_steps": optim.accumulate,
        "ss_max_grad_norm": optim.clip,
    }


def _loss(loss: LossConfig) -> dict[str, Any]:
    return {
        "ss_loss_type": {"mse": "l2"}.get(loss.kind, loss.kind),
        "ss_huber_schedule": loss.huber_schedule,
        "ss_huber_c": loss.huber_c,
        "ss_min_snr_gamma": loss.min_snr or None,
        "ss_debiased_estimation": loss.debiased,
        "ss_noise_offset": loss.noise_offset or None,
        "ss_adaptive_noise_scale": loss.adaptive_offset or None,
        "ss_multires_noise_iterations": loss.pyramid or None,
        "ss_multires_noise_discount": loss.pyramid_discount,
        "ss_ip_noise_gamma": loss.input_perturbation or None,
        "ss_zero_terminal_snr": loss.zero_terminal_snr,
    }


def _data(data: DataConfig) -> dict[str, Any]:
    return {
        "ss_resolution": f"({data.resolution}, {data.resolution})",
        "ss_batch_size_per_device": data.batch,
        "ss_enable_bucket": data.buckets,
        "ss_bucket_no_upscale": not data.upscale,
        "ss_min_bucket_reso": data.bucket_min,
        "ss_max_bucket_reso": data.bucket_max,
        "ss_flip_aug": data.flip != "off",
        "ss_color_aug": False,
        "ss_random_crop": data.crop_jitter > 0,
        "ss_cache_latents": data.cache != "off",
        "ss_shuffle_caption": data.shuffle_tags,
        "ss_keep_tokens": data.keep_tags,
        "ss_caption_dropout_rate": data.caption_dropout,
        "ss_caption_tag_dropout_rate": data.tag_dropout,
        "ss_prior_loss_weight": data.class_weight,
    }


def _pictures(cfg: TrainConfig, summary: Summary) -> dict[str, Any]:
    """What the WebUI's card shows of the data: dictionaries become JSON."""
    found = {"ss_total_batch_size": cfg.data.batch * cfg.optim.accumulate, **{key: value for key, value in summary.items() if key.startswith("ss_")}}
    if batches := summary.get("ss_num_batches_per_epoch", 0):
        found["ss_num_epochs"] = math.ceil(cfg.steps * cfg.optim.accumulate / batches)
    return found


def _network(cfg: TrainConfig, parts: set[str]) -> dict[str, Any]:
    """`parts`: the parts of the model ("unet", "text") that were trained; a part that was not has no learning rate."""
    own = dict(flat_values(cfg.settings)) if cfg.settings is not None else {}
    if "lora_rank" in own:  # of a method that is no LoRA, and is saved as one
        own["rank"] = own.pop("lora_rank")
    known = {"ss_network_dim": "rank", "ss_network_alpha": "alpha", "ss_network_dropout": "dropout", "ss_scale_weight_norms": "max_norm"}
    found = {key: own.pop(name) or None for key, name in known.items() if name in own}
    lycoris = cfg.method in ("loha", "lokr") or own.get("dora") or own.get("tucker")  # what kohya trains by its module of that name
    algo = {"algo": {"locon": "lora"}.get(cfg.method, cfg.method)} if lycoris else {}
    return {
        "ss_network_module": "lycoris.kohya" if lycoris else "networks.lora",
        **found,
        "ss_network_args": {**algo, **{_LYCORIS.get(name, name): _local(value) for name, value in own.items()}},
        "ss_unet_lr": cfg.optim.lr if "unet" in parts else None,
        "ss_text_encoder_lr": (cfg.optim.text_lr or cfg.optim.lr) if "text" in parts else None,
    }


# ---- modelspec and settings ------------------------------------------------------------------------------------------


def _modelspec(cfg: TrainConfig, made: Made, kind: str) -> dict[str, Any]:
    """The fields of https://github.com/Stability-AI/ModelSpec 1.0.1 that are known."""
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"stable-diffusion-v1/{kind}".rstrip("/"),
        "implementation": "diffusers" if kind == "lora" else "https://github.com/Stability-AI/generative-models",
        "title": cfg.name,
        "resolution": f"{cfg.data.resolution}x{cfg.data.resolution}",
        "date": datetime.fromtimestamp(int(made.finished), timezone.utc).isoformat(),
        "prediction_type": "v" if made.prediction == "v" else "epsilon",
        "trigger_phrase": cfg.trigger,
        "timestep_range": f"{cfg.loss.t_min},{cfg.loss.t_max}" if (cfg.loss.t_min, cfg.loss.t_max) != (0, 1000) else "",
        "encoder_layer": str(cfg.clip_skip) if cfg.clip_skip > 1 else "",
    }
    return {f"modelspec.{key}": value for key, value in spec.items() if value}


def _settings(cfg: TrainConfig) -> dict[str, str]:
    """Our settings as `config.from_metadata` reads them; of places on this machine only the last name, since such files are given to others.

    `resume` is left empty: a file says the same whether its run was interrupted or not.
    """
    values = json.loads(to_metadata(replace(cfg, resume=""))[METADATA_KEY])
    return {METADATA_KEY: json.dumps({key: _local(value) for key, value in values.items()}, ensure_ascii=False)}


def _local(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if "\n" not in value and _is_place(value):
        return _last_name(value)
    parts = re.split(r"(\s*[|;\n]\s*)", value)  # lines, and what a line of several words has: `name | vectors | initial text | file`
    return "".join(_last_name(part.strip()) if _is_place(part.strip()) else part for part in parts)


def _is_place(text: str) -> bool:
    return text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _last_name(folder: Any) -> str:
    text = str(folder)
    return PureWindowsPath(text).name or text  # takes both slashes


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in values.items()}
