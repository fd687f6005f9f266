"""Every setting of a run, once: the form, the TOML file, the flags, the presets and the saved metadata are derived from these fields.

A method's own settings (rank, vectors, ...) live beside the method, in `METHODS[name].Config`; they form the section that carries the method's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from .config import opt, section

SAVE = re.compile(r"(.+)-(\d{6,})")  # the stem of a save in between: name and step


def check_final(name: str, key: str = "name") -> None:
    """Raises ValueError, beginning with the setting's key, where a final file of this name would be taken for a save, and so published and swept away as one: of new files alone, earlier ones are read."""
    if SAVE.fullmatch(name):
        raise ValueError(f"{key}: {name!r} ends as the saves of a run do, with - and a step of six or more digits; write _ in place of the last -")


@dataclass(frozen=True)
class DataConfig:
    """Which pictures and captions, and how a training example is made from them."""

    folder: str = opt("", "Data folder", "Folder with the pictures to learn from; captions are read from files beside them.", essential=True, kept=True)
    class_folder: str = opt("", "Class pictures", "Folder with pictures of the ordinary class (prior preservation); empty: none.", kept=True)
    class_weight: float = opt(1.0, "Class picture weight", "Weight of a class picture's loss against a subject picture's.", min=0.0, max=10.0, kept=True)
    class_share: float = opt(0.5, "Class picture share", "Part of every epoch that is class pictures.", min=0.0, max=0.95)
    validation_folder: str = opt("", "Held-out pictures", "Folder with pictures that are never trained on; their loss is the validation loss.")
    caption_from: str = opt("auto", "Captions from", "Where a picture's caption is read: beside it, its file name, its folder, or nowhere.",
                            choices=("auto", "file", "filename", "folder", "none"), kept=True)
    caption_extension: str = opt("txt,caption", "Caption extensions", "Endings of caption files, in order of preference.", kept=True)
    template: str = opt("", "Prompt template", "File (or name of a shipped template) of prompt lines with [name] and [filewords]; empty: the caption itself.")
    resolution: int = opt(512, "Resolution", "Side of a square training picture; buckets keep its area.", min=8, max=2048, unit="px", essential=True)
    batch: int = opt(1, "Batch size", "Pictures per forward pass.", min=1, max=256, essential=True)
    buckets: bool = opt(True, "Aspect buckets", "Keep the shape of pictures that are not square, in size groups of equal area.")
    bucket_step: int = opt(64, "Bucket step", "Sides of buckets are multiples of this.", min=8, max=256, unit="px")
    bucket_min: int = opt(256, "Shortest bucket side", "No bucket side is shorter.", min=8, max=2048, unit="px")
    bucket_max: int = opt(1024, "Longest bucket side", "No bucket side is longer.", min=8, max=4096, unit="px")
    upscale: bool = opt(True, "Enlarge small pictures", "Off: a picture smaller than the resolution gets a bucket of its own size.")
    repeats: int = opt(1, "Repeats", "How often a picture occurs per epoch, times the number in a kohya folder name (`10_name`).", min=1, max=10000, kept=True)
    flip: str = opt("off", "Mirror", "Mirror half of the examples; `safe` leaves pictures whose caption says left, right or text alone.", choices=("off", "safe", "all"))
    crop_jitter: int = opt(0, "Crop jitter", "How far the crop may move from the centre.", min=0, max=512, unit="px")
    crop_variants: int = opt(4, "Cached crops", "How many of the jittered crops of one picture are cached.", min=1, max=64)
    masks: bool = opt(False, "Masked loss", "Weigh the loss by a mask: `name.mask.png` or `mask/name.png`, else the picture's alpha channel.", kept=True)
    mask_floor: float = opt(0.1, "Unmasked weight", "Weight of what the mask hides.", min=0.0, max=1.0)
    cache: str = opt("memory", "Latent cache", "Encode pictures once and keep the latents in memory or on disk.", choices=("memory", "disk", "off"))
    cache_folder: str = opt("", "Cache folder", "Where a disk cache lies; empty: `.latents` in the data folder's parent.")
    latent: str = opt("once", "Latent sampling", "Draw a picture's latent once, take its mean, or draw it anew each time.", choices=("once", "deterministic", "random"))
    shuffle_tags: bool = opt(False, "Shuffle tags", "Comma-separated tags in a new order each time.")
    keep_tags: int = opt(0, "Keep first tags", "So many tags at the start stay in place and are never dropped.", min=0, max=75)
    tag_dropout: float = opt(0.0, "Tag dropout", "Probability that a tag is left out.", min=0.0, max=1.0)
    caption_dropout: float = opt(0.0, "Caption dropout", "Probability that the whole caption is left out.", min=0.0, max=1.0)
    token_warmup: int = opt(0, "Token warm-up", "Tags come in one after another over so many steps.", min=0, max=1000000, unit="steps")
    token_warmup_min: int = opt(1, "Tags at the start of the warm-up", "How many tags are there at step 0.", min=0, max=75)
    wildcards: bool = opt(False, "Wildcards", "Read {a|b} in captions as a choice, and one line of several as the caption.")

    def check(self) -> None:
        if self.bucket_min > self.bucket_max:
            raise ValueError(f"bucket_min ({self.bucket_min}) is above bucket_max ({self.bucket_max})")


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning rate and averaging."""

    name: str = opt("adamw", "Optimizer", "AdamW needs no further package; the others name theirs when chosen.",
                    choices=("adamw", "adamw8bit", "lion", "adafactor", "prodigy", "adamw_schedulefree"), kept=True)
    lr: str = opt("1e-4", "Learning rate", "A number, or steps as `0.05:10, 0.02:20, 0.005`.", essential=True)
    text_lr: float = opt(0.0, "Text encoder learning rate", "0: the same as the learning rate.", min=0.0, max=10.0)
    schedule: str = opt("constant", "Schedule", "How the learning rate changes over the run (not used with the step syntax).",
                        choices=("constant", "linear", "cosine", "restarts", "polynomial", "rex"))
    warmup: int = opt(0, "Warm-up", "Steps over which the learning rate rises from 0.", min=0, max=1000000, unit="steps")
    cycles: int = opt(1, "Restarts", "Cosine cycles of the schedule with restarts.", min=1, max=100)
    power: float = opt(1.0, "Polynomial power", "Exponent of the polynomial schedule.", min=0.1, max=10.0)
    floor: float = opt(0.0, "Lowest learning rate", "Part of the learning rate at which the schedule ends.", min=0.0, max=1.0)
    weight_decay: float = opt(0.01, "Weight decay", "Embeddings are never decayed.", min=0.0, max=1.0, kept=True)
    betas: str = opt("0.9, 0.999", "Betas", "Averages of the optimizer.", kept=True)
    eps: float = opt(1e-8, "Epsilon", "Added to the denominator.", min=0.0, max=1.0, kept=True)
    accumulate: int = opt(1, "Gradient accumulation", "Batches per update.", min=1, max=1024, kept=True)
    clip: float = opt(1.0, "Gradient clipping", "Longest gradient (norm), after unscaling; 0: off.", min=0.0, max=1000.0)
    ema: float = opt(0.0, "EMA", "Decay of an average of the weights that is sampled and saved; 0: off.", min=0.0, max=0.99999)


@dataclass(frozen=True)
class LossConfig:
    """What is minimised, and at which noise levels."""

    kind: str = opt("mse", "Loss", "Distance between prediction and target.", choices=("mse", "huber", "smooth_l1", "l1"))
    huber_c: float = opt(0.1, "Huber c", "Where Huber and smooth L1 turn from square to straight.", min=1e-4, max=10.0)
    huber_schedule: str = opt("snr", "Huber schedule", "How c depends on the timestep.", choices=("constant", "exponential", "snr"))
    min_snr: float = opt(0.0, "Min-SNR gamma", "Weighs timesteps by min(SNR, gamma)/SNR; 5 is usual, 0: off.", min=0.0, max=20.0)
    debiased: bool = opt(False, "Debiased estimation", "Weighs timesteps by 1/sqrt(SNR).")
    noise_offset: float = opt(0.0, "Noise offset", "Adds a random constant per channel to the noise.", min=0.0, max=1.0)
    adaptive_offset: float = opt(0.0, "Adaptive noise offset", "Adds this times the mean latent to the offset.", min=0.0, max=1.0)
    pyramid: int = opt(0, "Multires noise iterations", "Noise of so many coarser sizes is added; 0: off.", min=0, max=16)
    pyramid_discount: float = opt(0.3, "Multires discount", "Strength of each coarser size against the one before.", min=0.0, max=1.0)
    input_perturbation: float = opt(0.0, "Input perturbation", "Extra noise in the input that the target does not contain.", min=0.0, max=1.0)
    zero_terminal_snr: bool = opt(False, "Zero terminal SNR", "Rescales the schedule so that the last timestep is pure noise (v-prediction).")
    t_min: int = opt(0, "Lowest timestep", "No timestep below is trained.", min=0, max=999)
    t_max: int = opt(1000, "Timesteps end", "No timestep at or above is trained.", min=1, max=1000)
    t_distribution: str = opt("uniform", "Timestep distribution", "How timesteps are drawn.", choices=("uniform", "cubic", "sigmoid", "early", "late"))
    prediction: str = opt("auto", "Prediction", "What the model predicts; auto: what its file says.", choices=("auto", "eps", "v"))

    def check(self) -> None:
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min ({self.t_min}) must be below t_max ({self.t_max})")


@dataclass(frozen=True)
class InpaintConfig:
    """What an inpainting model learns to fill in; an ordinary model does not use it."""

    shape: str = opt("mixed", "Mask shapes", "What hides a part of the picture: rectangles, ellipses, thick lines, or each as often.", choices=("mixed", "rectangles", "ellipses", "lines"))
    whole: float = opt(0.25, "Whole picture hidden", "Part of the examples in which all is hidden, as in txt2img; inpainting models were made with a quarter.", min=0.0, max=1.0)
    smallest: float = opt(0.1, "Smallest mask", "Shortest side of a mask, as a part of the picture's.", min=0.0, max=1.0)
    largest: float = opt(1.0, "Largest mask", "Longest side of a mask, as a part of the picture's.", min=0.0, max=1.0)
    variants: int = opt(4, "Masks of a picture", "How many masks of each picture are cached, each with a latent of what it leaves; without a latent cache every mask is a new one.", min=1, max=64)
    outside: float = opt(1.0, "Weight of what is seen", "Weight of the loss where nothing is hidden; 1: the whole picture counts, as in diffusers; 0: what is hidden alone.", min=0.0, max=1.0)

    def check(self) -> None:
        if self.smallest > self.largest:
            raise ValueError(f"smallest ({self.smallest}) is above largest ({self.largest})")


@dataclass(frozen=True)
class PriorConfig:
    """What keeps the model from forgetting the ordinary class, and how that is measured."""

    prompt: str = opt("", "Class prompts", "Prompts of the ordinary class, one a line, such as `a photo of a cat`: for the frozen prior and for class pictures that are drawn.")
    weight: float = opt(0.0, "Frozen prior weight", "For the class prompts the frozen model's prediction is the target, with this weight; needs no class pictures; 0: off.", min=0.0, max=10.0)
    pictures: int = opt(0, "Class pictures to have", "What the folder of class pictures lacks of so many is drawn by the untouched model before the run, and kept; 0: none are drawn.", min=0, max=10000)
    batch: int = opt(4, "Class pictures at once", "How many are drawn before the next look at Stop.", min=1, max=64)
    negative: str = opt("", "Negative prompt of class pictures", "What the class pictures should not show.")
    steps: int = opt(25, "Steps of class pictures", "Steps of the sampler.", min=1, max=150)
    cfg: float = opt(7.0, "CFG scale of class pictures", "How strongly the prompt is followed.", min=1.0, max=30.0)
    sampler: str = opt("ddim", "Sampler of class pictures", "What draws the class pictures.", choices=("ddim", "euler_a", "dpmpp_2m"))
    seed: int = opt(1000, "Seed of class pictures", "Picture number n has this seed plus n.", min=0, max=2**31)
    drift: str = opt("auto", "Language drift", "Measures before the run, at saves and at the end how far predictions for other prompts moved; auto: with DreamBooth.", choices=("auto", "on", "off"))

    @property
    def prompts(self) -> list[str]:
        """The class prompts."""
        return [line.strip() for line in self.prompt.splitlines() if line.strip()]

    def check(self) -> None:
        for name, value in (("weight", self.weight), ("pictures", self.pictures)):
            if value and not self.prompts:
                raise ValueError(f"{name} is {value:g}, but there is no class prompt: write one, or set it to 0")


@dataclass(frozen=True)
class SampleConfig:
    """Pictures drawn during the run."""

    prompts: str = opt("", "Sample prompts", "One prompt a line; [name] is the trigger word; empty: no samples.", essential=True)
    negative: str = opt("", "Negative prompt", "What the samples should not show.")
    every: int = opt(0, "Sample every", "Steps between samples, including step 0; 0: never.", min=0, max=1000000, unit="steps")
    steps: int = opt(20, "Sampling steps", "Steps of the sampler.", min=1, max=150)
    cfg: float = opt(7.0, "CFG scale", "How strongly the prompt is followed.", min=1.0, max=30.0)
    sampler: str = opt("ddim", "Sampler", "Sampler of the previews.", choices=("ddim", "euler_a", "dpmpp_2m"))
    width: int = opt(0, "Width", "0: the training resolution.", min=0, max=2048, unit="px")
    height: int = opt(0, "Height", "0: the training resolution.", min=0, max=2048, unit="px")
    seed: int = opt(1, "Seed", "Seed of the samples.", min=0, max=2**32 - 1)

    def check(self) -> None:
        if self.every and not self.prompts.strip():
            raise ValueError(f"every is {self.every}, but there are no prompts: write one, or set every to 0")
        for name, side in (("width", self.width), ("height", self.height)):
            if side % 8:
                raise ValueError(f"{name} is {side} px, which is no multiple of 8, the side of a latent pixel; set one that is, or 0")


@dataclass(frozen=True)
class MemoryConfig:
    """Precision and how memory is saved."""

    precision: str = opt("auto", "Precision", "Precision of the frozen model; auto: bf16 where the machine has it, else fp16 on a GPU, fp32 on a CPU.",
                         choices=("auto", "fp32", "bf16", "fp16"))
    checkpointing: str = opt("auto", "Gradient checkpointing", "Computes activations twice to save memory; auto: when it would not fit.", choices=("auto", "on", "off"))
    channels_last: str = opt("auto", "Channels-last", "Memory layout of the convolutions; auto: where it pays.", choices=("auto", "on", "off"))
    device: str = opt("auto", "Device", "Where to train: auto, cpu, cuda, cuda:1, mps.")
    offload: bool = opt(False, "Free VAE and text encoder", "They lie in RAM while they are not used: less video memory, a little slower.")
    pin: bool = opt(False, "Pin memory", "Batches are copied to the GPU out of pinned memory: a little faster, needs more RAM.")


@dataclass(frozen=True)
class WebUIConfig:
    """How the WebUI draws the samples; without it, these are not used."""

    sampler: str = opt("", "WebUI sampler", "A sampler of the WebUI by its name, such as DPM++ SDE; empty: the sampler above.")
    scheduler: str = opt("", "WebUI schedule type", "Such as Karras; empty: the sampler's own.")
    styles: str = opt("", "Styles", "Styles of the WebUI that are put around every sample prompt, separated by commas.")
    hires_scale: float = opt(0.0, "Hires. fix", "Samples are enlarged so many times by a second pass; 0: off.", min=0.0, max=4.0)
    hires_upscaler: str = opt("Latent", "Hires. upscaler", "What enlarges them.")
    hires_denoise: float = opt(0.5, "Hires. denoising", "How much the second pass may change.", min=0.0, max=1.0)
    hires_steps: int = opt(0, "Hires. steps", "Steps of the second pass; 0: as many as in the first.", min=0, max=150)

    def check(self) -> None:
        if 0 < self.hires_scale < 1:
            raise ValueError(f"hires_scale is {self.hires_scale}, which would make the samples smaller: set it to 0 or above 1")


@dataclass(frozen=True)
class TrainConfig:
    """One run. `settings` holds the chosen method's own `Config`."""

    name: str = opt("my-tuning", "Name", "Name of the saved file and, for an embedding, the word in the prompt.", essential=True)
    method: str = opt("lora", "Method", "What is trained.", essential=True)
    trigger: str = opt("", "Trigger word", "Replaces [name] in templates, and is put before captions that lack it.", essential=True)
    checkpoint: str = opt("", "Model file", "An SD1.5 checkpoint (.safetensors, .ckpt); empty: the embedded small model.")
    output: str = opt("outputs", "Output folder", "The run's folder is made in it.")
    steps: int = opt(1000, "Steps", "Updates of the weights.", min=1, max=10000000, essential=True)
    seed: int = opt(0, "Seed", "Same seed, same run.", min=0, max=2**32 - 1)
    save_every: int = opt(500, "Save every", "Steps between saves; 0: only at the end.", min=0, max=1000000, unit="steps")
    keep_last: int = opt(0, "Keep last", "How many saves stay; 0: all.", min=0, max=1000)
    validate_every: int = opt(0, "Validate every", "Steps between validation losses; 0: never.", min=0, max=1000000, unit="steps")
    resume: str = opt("", "Resume", "A run folder to go on with.")
    tensorboard: bool = opt(False, "TensorBoard", "Also write losses and samples for TensorBoard, into `tensorboard` in the run's folder (needs its package).")
    csv_every: int = opt(1, "CSV every", "Steps between two rows of the losses' CSV file, from which the curve of a past run is drawn; 0: none.", min=0, max=1000000, unit="steps")
    settings_text: bool = opt(False, "Settings as text", "At each start, also write all settings into a dated text file in the run's folder.")
    save_optimizer: bool = opt(False, "Optimizer state beside saves", "Beside each saved embedding or hypernetwork NAME.pt.optim, with which the WebUI's own trainer can go on.")
    clip_skip: int = opt(1, "Clip skip", "Which of the text encoder's last layers is read; 1: the last.", min=1, max=12)
    data: DataConfig = section(DataConfig)
    optim: OptimConfig = section(OptimConfig)
    loss: LossConfig = section(LossConfig)
    inpaint: InpaintConfig = section(InpaintConfig)
    prior: PriorConfig = section(PriorConfig)
    sample: SampleConfig = section(SampleConfig)
    memory: MemoryConfig = section(MemoryConfig)
    webui: WebUIConfig = section(WebUIConfig)
    settings: Any = field(default=None)

    def check(self) -> None:
        bad = [c for c in self.name if c in '/\\:*?"<>|' or ord(c) < 32]
        if bad or not self.name.strip(". ") or len(self.name.encode()) > 200:
            raise ValueError(f"name: {self.name[:60]!r} cannot be a file's name: write at least one letter, at most 200, and none of / \\ : * ? \" < > |")
        if self.prior.pictures and not self.data.class_folder.strip():
            raise ValueError(f"prior.pictures is {self.prior.pictures}, but data.class_folder is empty: name the folder that the class pictures are kept in")
        if self.validate_every and not self.data.validation_folder:
            raise ValueError(f"validate_every is {self.validate_every}, but data.validation_folder is empty: name a folder, or set it to 0")
