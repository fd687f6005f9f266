"""On which device, in which precision and with which memory measures a run goes."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..methods import METHODS
from ..methods.base import Costs
from ..sd.attention import kept_bytes
from ..sd.files import place_of, read_header
from ..sd.inpaint import FIRST, INPUTS
from ..sd.products import tiles_bytes
from ..settings import TrainConfig
from ..step import has_bf16, slow_attention

SMALL = 200e6  # bytes of a checkpoint below which a model is small: bf16 then costs more than it saves (measured on CPUs)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Bytes that a LoRA's forward pass at SD1.5's widths adds per latent pixel and sample in 2-byte precision. Measured on 2026-11-20 (CPU, rank 16):
# 0.31e6 at 256 px and 0.27e6 at 512 px; what autograd keeps of it is 0.24e6 and 0.23e6, with checkpointing 0.013e6; in fp32 all is twice that.
ACTIVATIONS = 0.33e6
CHECKPOINTED = 0.9  # part of the activations that checkpointing saves, by the same measurement
SIZES = {"unet": 859520964, "vae": 83653863, "text": 123060480}  # parameters of SD1.5's networks
WIDTH = 320  # of its UNet's first level


@dataclass(frozen=True)
class Plan:
    """What `auto` settings came to, and why in words."""

    device: torch.device
    dtype: torch.dtype
    checkpointing: bool
    channels_last: bool
    note: str
    need: float = 0.0  # bytes
    free: float | None = None  # bytes of the device, None where it cannot be asked
    small: bool = False
    costs: Costs = Costs()
    inpainting: bool | None = None  # None: its header does not tell
    products: bool = False  # attention as products (sd.attention), for which memory decides nothing: the numbers are others
    keep: bool = False  # with its probabilities kept, which changes no number
    tiles: bool = False  # convolutions over many pixels in tiles (sd.products): other numbers, so free memory, which a resumed run finds changed, decides nothing
    idle_gpu: bool = False  # there is a card that this PyTorch cannot use


def plan_for(cfg: TrainConfig, checkpoint: Path) -> Plan:
    """Chooses what the settings leave open. Raises ValueError for what the machine has not."""
    device = _device(cfg.memory.device)
    small = checkpoint.is_file() and checkpoint.stat().st_size < SMALL
    dtype = _dtype(cfg.memory.precision, device, small)
    sizes, width, shapes = _size(checkpoint)
    method = METHODS[cfg.method](cfg)
    activations, costs = activation_bytes(cfg, width, dtype), method.costs(sizes, shapes, dtype, device.type)
    need, free = activations + sum(sizes.values()) * dtype.itemsize + costs.device, _free_bytes(device)
    more, has = tiles_bytes((cfg.data.resolution / 8) ** 2), _all_bytes()
    tiles = device.type == "cpu" and dtype == torch.float32 and not small and method.freezes and (has is None or need + more <= 0.6 * has)
    need += more * tiles
    tight = not small and free is not None and need > 0.9 * free
    checkpointing = {"on": True, "off": False, "auto": tight}[cfg.memory.checkpointing]
    # on CPUs channels-last costs 5 to 30% in fp32 and gives nothing in bf16, and sd.products wants the weights as they lie in the file
    channels_last = {"on": True, "off": False, "auto": not small and device.type != "cpu"}[cfg.memory.channels_last]
    note = f"{device}, {str(dtype).removeprefix('torch.')}" + ", gradient checkpointing" * checkpointing + ", channels-last" * channels_last
    need -= activations * CHECKPOINTED * checkpointing
    products, kept = dtype == torch.bfloat16 and slow_attention(device), _passes(cfg) * kept_bytes((cfg.data.resolution / 8) ** 2, cfg.data.batch)
    keep = products and not checkpointing and (free is None or need + kept <= 0.9 * free)
    return Plan(device, dtype, checkpointing, channels_last, note, need + kept * keep, free, small, costs, reads_nine(shapes), products, keep, tiles, _idle_gpu(device))


def activation_bytes(cfg: TrainConfig, width: int, dtype: torch.dtype) -> float:
    """What a step's forward passes add without checkpointing, in a UNet whose first level has `width` channels."""
    return _passes(cfg) * ACTIVATIONS / 2 * width / WIDTH * (cfg.data.resolution / 8) ** 2 * cfg.data.batch * dtype.itemsize


def _passes(cfg: TrainConfig) -> int:
    """Forward passes whose activations are there at once: the frozen prior brings a second one."""
    return 2 if cfg.prior.weight else 1


def reads_nine(shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Whether a UNet of these tensors is an inpainting model's; None where they are not known."""
    first = next((shape for name, shape in shapes.items() if name.endswith(f"{FIRST}.weight")), None)
    return None if first is None else first[1] == INPUTS


def _size(checkpoint: Path) -> tuple[dict[str, int], int, Mapping[str, tuple[int, ...]]]:
    """Parameters of each part, first width and shapes of a checkpoint; those of SD1.5, and no shapes, where its header does not tell."""
    try:
        shapes, _ = read_header(checkpoint)
        places = [(place[0], math.prod(shape)) for key, shape in shapes.items() if (place := place_of(key))]
        return {part: sum(n for p, n in places if p == part) for part in SIZES}, shapes["model.diffusion_model.input_blocks.0.0.weight"][0], shapes
    except (OSError, ValueError, KeyError):  # another kind of file; what is wrong with it is said where it is loaded
        return SIZES, WIDTH, {}


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"memory.device: {name!r} is no device to train on; write auto, cpu, cuda, cuda:1 or mps.")
    if device.type == "cuda" and not torch.cuda.is_available() or device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"memory.device: this machine or its torch has no {device.type}; write auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"memory.device: {name!r}, but this machine has {torch.cuda.device_count()} GPU(s), counted from 0; write another number or auto.")
    return device


def _idle_gpu(device: torch.device) -> bool:
    """Whether a run on the CPU leaves an NVIDIA card idle for want of CUDA in PyTorch, as in the build that pip installs on Windows."""
    return device.type == "cpu" and torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi") is not None


def _dtype(name: str, device: torch.device, small: bool) -> torch.dtype:
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if has_bf16(device) else torch.float16
        return torch.bfloat16 if has_bf16(device) and not small else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise ValueError("memory.precision: a CPU does not train in fp16; choose bf16, fp32 or auto.")
    return DTYPES[name]


def gpu_free(device: torch.device) -> int:
    """Free memory of an NVIDIA or AMD card in bytes. torch 2.1 takes no device without a number, and such a one is the WebUI's."""
    return torch.cuda.mem_get_info(torch.cuda.current_device() if device.index is None else device.index)[0]


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of the device, None where it cannot be asked."""
    if device.type == "cuda":
        return gpu_free(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _all_bytes() -> int | None:
    """Memory of this machine, None where it cannot be asked."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # AttributeError: on Windows
        return None
