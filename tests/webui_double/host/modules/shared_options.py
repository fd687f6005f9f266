"""The settings that an extension or the double itself asks for, by section, as a new installation has them."""

from __future__ import annotations

from .options import OptionInfo, options_section

DEFAULTS = {
    ("sd", "Stable Diffusion"): {
        "sd_model_checkpoint": None, "sd_checkpoints_limit": 1, "sd_checkpoint_cache": 0, "sd_unet": "Automatic", "emphasis": "Original",
        "comma_padding_backtrack": 20, "CLIP_stop_at_last_layers": 1, "randn_source": "GPU", "tiling": False,
    },
    ("vae", "VAE"): {"sd_vae": "Automatic"},
    ("optimizations", "Optimizations"): {"cross_attention_optimization": "Automatic", "token_merging_ratio": 0.0},
    ("compatibility", "Compatibility"): {"use_downcasted_alpha_bar": False},
    ("sampler-params", "Sampler parameters"): {"sd_noise_schedule": "Default"},
    ("training", "Training"): {
        "unload_models_when_training": False, "pin_memory": False, "save_optimizer_state": False, "save_training_settings_to_txt": True,
        "training_write_csv_every": 500, "training_enable_tensorboard": False,
    },
    ("interrogate", "Interrogate"): {
        "interrogate_keep_models_in_memory": False, "interrogate_return_ranks": False, "interrogate_clip_num_beams": 1, "interrogate_clip_min_length": 24,
        "interrogate_clip_max_length": 48, "interrogate_deepbooru_score_threshold": 0.5, "deepbooru_sort_alpha": True, "deepbooru_use_spaces": True,
        "deepbooru_escape": True, "deepbooru_filter_tags": "",
    },
    ("hidden", "Hidden"): {"sd_checkpoint_hash": ""},
}  # fmt: skip

options_templates = {
    key: known
    for section, defaults in DEFAULTS.items()
    for key, known in options_section(section, {key: OptionInfo(default, key) for key, default in defaults.items()}).items()
}
