"""LoRA files: kohya's names, which AUTOMATIC1111's WebUI and every other host read.

A key is `<module>.<part>`: the module is everything before the first dot, the part says which factor it is (`lora_down.weight`). The parts of one
module belong together; of which family they are (LoRA, LoHa, LoKr ...) is not decided here, so every method that adds to weights reads and writes
through this file. Formats: the WebUI's extensions-builtin/Lora (networks.py, network_*.py) and kohya-ss sd-scripts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..sd.files import read_header, read_tensors, write_tensors
from ..sd.inpaint import FIRST, INPUTS, LATENT
from ..sd.kinds import describe, kind_of
from ..sd.names import BLOCKS26, block_name, kohya_key, module_path
from .factors import UnknownFamily, shape_of

Module = tuple[str, str]  # (part of the model, path in it): ("unet", "input_blocks.1.1.proj_in")
_BUNDLE = "bundle_emb"  # embeddings inside a LoRA file, which the WebUI registers with it
_VOCABULARY = ("text", "text_model.embeddings.token_embedding")

# The sets of parts of which the WebUI takes a module when one of them is complete (network_lora.py, network_hada.py, ...).
_COMPLETE = tuple(
    frozenset(parts.split())
    for parts in (
        "lora_up.weight lora_down.weight",
        "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        "lokr_w1 lokr_w2",
        "lokr_w1 lokr_w2_a lokr_w2_b",
        "lokr_w1_a lokr_w1_b lokr_w2",
        "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
        "weight on_input",
        "diff",
        "w_norm b_norm",
        "a1.weight a2.weight b1.weight b2.weight alpha",
        "oft_blocks",
        "oft_diag",
    )
)
_RANK_PARTS = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # their first axis is the rank


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA's modules by (part, path), each with its factors in the file's precision."""

    path: Path
    modules: dict[Module, dict[str, Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)  # name -> (n, C), bundled by pivotal tuning

    @property
    def ranks(self) -> dict[Module, int]:
        """The rank of each module that has one."""
        return {module: rank for module, parts in self.modules.items() if (rank := _rank(parts))}

    @property
    def alphas(self) -> dict[Module, float]:
        """The alpha of each module that has a rank; where the file has none the scale is 1, so alpha is the rank."""
        return {module: float(self.modules[module]["alpha"]) if "alpha" in self.modules[module] else float(rank) for module, rank in self.ranks.items()}

    def __str__(self) -> str:
        parts = Counter(part for part, _ in self.modules)
        return f"{parts['unet']} UNet and {parts['text']} text encoder modules, rank {_span(self.ranks)}, alpha {_span(self.alphas)}"


def _rank(parts: Mapping[str, Tensor]) -> int:
    return next((parts[name].shape[0] for name in _RANK_PARTS if name in parts), 0)


def _span(values: Mapping[Module, float]) -> str:
    low, high = min(values.values(), default=0), max(values.values(), default=0)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_lora(path: str | Path) -> LoraFile:
    """Reads a LoRA for SD1.x in kohya's spelling or in the original layer names with underscores.

    Raises ValueError or OSError, one sentence: no LoRA, diffusers' spelling, made for another model, layers that SD1.5 does not have, factors of different ranks.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    _refuse_other_files(path, tensors)
    _refuse_other_models(path, tensors, metadata)
    modules: dict[Module, dict[str, Tensor]] = {}
    unknown, incomplete = [], []
    for key, parts in _grouped(tensors).items():
        if (module := _module(key)) is None:
            unknown.append(key)
        elif not _complete(parts):
            incomplete.append(key)
        else:
            modules.setdefault(module, {}).update(parts)
    if unknown:
        raise ValueError(f"{path.name} has weights for layers that Stable Diffusion 1.5 does not have ({_some(unknown)}); it was made for another model.")
    if incomplete:
        raise ValueError(f"{path.name} is incomplete: it lacks a factor of {_some(incomplete)}; download it again.")
    check_factors(path, modules)
    return LoraFile(path, modules, metadata, _bundled(tensors))


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts of each module, under the module's name in the file."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, part = key.partition(".")
        if module != _BUNDLE:
            found.setdefault(module, {})[part] = tensor
    return found


def _module(key: str) -> Module | None:
    try:
        return module_path(key)
    except ValueError:
        return None


def _complete(parts: Mapping[str, Tensor]) -> bool:
    return any(needed <= parts.keys() for needed in _COMPLETE)


def _bundled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`bundle_emb.<name>.string_to_param.*` or `bundle_emb.<name>.<any key>`: the word's vectors (n, C)."""
    found = {key.split(".")[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{_BUNDLE}.") and key.count(".") > 1 and tensor.ndim in (1, 2)}
    return {name: tensor if tensor.ndim == 2 else tensor[None] for name, tensor in found.items()}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _refuse_other_files(path: Path, tensors: Mapping[str, Tensor]) -> None:
    kind = kind_of({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    if kind != "lora":
        raise ValueError(f"{path.name} is {describe(kind)}, not a LoRA; choose a LoRA's .safetensors file.")
    if not any(key.startswith(("lora_unet_", "lora_te")) for key in tensors):
        names = _some([key for key in tensors if not key.startswith(_BUNDLE)])
        raise ValueError(f"{path.name} is a LoRA in another spelling ({names}), as diffusers or peft write it; convert it to kohya's names.")


def _refuse_other_models(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    version = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    widths = {tensor.shape[1] for key, tensor in tensors.items() if key.endswith(("attn2_to_k.lora_down.weight", "attn2_to_v.lora_down.weight"))}
    if "sdxl" in version or "-xl-" in version or 2048 in widths or any(key.startswith("lora_te2_") or "_transformer_blocks_1_" in key for key in tensors):
        found = "Stable Diffusion XL"
    elif metadata.get("ss_v2") == "True" or "stable-diffusion-v2" in version or 1024 in widths:
        found = "Stable Diffusion 2"
    else:
        return
    raise ValueError(f"{path.name} is a LoRA for {found}; Stable Diffusion 1.5 cannot use it.")


def check_fits(lora: LoraFile, shapes: Mapping[Module, Iterable[int]]) -> None:
    """Raises ValueError where a module is not in the model or has another size; `shapes`: the weight's, (out, in) or (out, in, kh, kw)."""
    for module, parts in lora.modules.items():
        if module not in shapes:
            raise ValueError(f"{lora.path.name} trains {module[1]}, which this model does not have.")
        if not _fits(module, parts, tuple(shapes[module])):
            sizes = " instead of ".join("x".join(map(str, shape)) for shape in (shape_of(module, parts), tuple(shapes[module])))
            raise ValueError(f"{lora.path.name} does not fit this model: its {module[1]} is for a layer of {sizes}; use one trained on a model of this width.")


def _fits(module: Module, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    try:
        own = shape_of(module, parts)
    except UnknownFamily:
        return True  # its name alone can be looked at
    except ValueError:
        return False
    return own[:2] == shape[:2] and (own[2:] or (1, 1)) == (shape[2:] or (1, 1))  # a 1x1 convolution is a Linear to the WebUI


def check_factors(path: Path, modules: Mapping[Module, Mapping[str, Tensor]]) -> None:
    """Raises ValueError for a module whose factors do not fit each other."""
    for module, parts in modules.items():
        try:
            shape_of(module, parts)
        except UnknownFamily:
            continue  # its names alone are known
        except ValueError as error:
            raise ValueError(f"{path.name} is damaged: {module[1]} {error}; download it again.") from None


def _filled_up(module: Module, shapes: Mapping[Module, Iterable[int]]) -> tuple[int, ...]:
    """The shape of the change that the WebUI takes for a module: of an inpainting model's first convolution that of four channels, which it fills up with zeros."""
    shape = tuple(shapes[module])
    return (shape[0], LATENT, *shape[2:]) if module == ("unet", FIRST) and shape[1] == INPUTS else shape


def count_host_keys(path: str | Path, shapes: Mapping[Module, Iterable[int]] | None = None) -> tuple[int, int]:
    """(modules and words that the WebUI takes, all modules and words) of a LoRA file, read back from the disk.

    The WebUI takes a module whose name is a layer's and whose parts are complete, and a word of its text encoder's width; the others it leaves out
    without a word. `shapes` as in `check_fits`.
    """
    tensors, _ = read_tensors(path)
    modules = [(_module(key), parts) for key, parts in _grouped(tensors).items()]
    taken = [parts for module, parts in modules if module and _complete(parts) and (shapes is None or module in shapes and _fits(module, parts, _filled_up(module, shapes)))]
    words, table = _bundled(tensors), (shapes or {}).get(_VOCABULARY)
    fitting = [name for name, vectors in words.items() if table is None or vectors.shape[1] == tuple(table)[1]]
    return len(taken) + len(fitting), len(modules) + len(words)


def ranks_of_blocks(path: str | Path) -> dict[str, int]:
    """The ranks of a file added up over the layers of each block, in the order of `BLOCKS26`; {} where all layers have the same, or there are none.

    Reads the header alone. Raises ValueError or OSError for a file that cannot be read.
    """
    shapes, _ = read_header(path)
    ranks = {module: shape[0] for key, shape in shapes.items() if key.partition(".")[2] in _RANK_PARTS and (module := _module(key))}
    if len(set(ranks.values())) < 2:
        return {}
    sums: Counter[str] = Counter()
    for (_, place), rank in ranks.items():
        sums[block_name(place)] += rank
    return {block: sums[block] for block in BLOCKS26 if block in sums}


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_lora(path: str | Path, modules: Mapping[Module, Mapping[str, Tensor]], metadata: Mapping[str, str], dtype: torch.dtype = torch.float16,
               embeddings: Mapping[str, Tensor] | None = None) -> Path:
    """Writes a .safetensors file in kohya's spelling, atomically, its hashes in the metadata (`sshs_*`) so that the WebUI need not compute them.

    Factors become `dtype`; alpha stays float32, since alpha over the rank scales everything. `embeddings`: words with their vectors (n, C) that the WebUI
    knows as long as the LoRA is in use, kept in float32. Raises ValueError, OSError.
    """
    path, words = Path(path), {}
    factors = {f"{kohya_key(place, part)}.{name}": tensor for (part, place), parts in modules.items() for name, tensor in parts.items()}
    for name, vectors in (embeddings or {}).items():
        if "." in name:
            raise ValueError(f"{path.name}: the word {name!r} cannot be put into the file, since the WebUI reads its name up to the first dot; choose one without.")
        words[f"{_BUNDLE}.{name}.string_to_param.*"] = vectors
    return write_factors(path, {**factors, **words} if factors else {}, metadata, dtype)


def write_factors(path: str | Path, factors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype = torch.float16) -> Path:
    """As `write_lora`, of factors that have their names in the file already."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path.name}: a LoRA is written as .safetensors, not as {path.suffix or 'a file without ending'}.")
    tensors = {key: _stored(key.rpartition(".")[2], tensor, dtype) for key, tensor in factors.items()}
    if not tensors:
        raise ValueError(f"{path.name}: there is nothing to save, no module was trained.")
    broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{path.name} was not saved: NaN or numbers too large for {str(dtype).partition('.')[2]} in {_some(broken)}; use an earlier save.")
    return write_tensors(path, tensors, {**metadata, **_hashes(tensors, metadata)})


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kind = (torch.float32 if name in ("alpha", "*") else dtype) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind, copy=True).contiguous()  # a copy: modules may share one alpha, which safetensors refuses


def _hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """kohya's `precalculate_safetensors_hashes`: of all behind the header, and of 64 KiB at 1 MiB of a file with the `ss_*` metadata alone."""
    from safetensors.torch import save

    content = memoryview(save(dict(tensors), {key: value for key, value in metadata.items() if key.startswith("ss_")}))
    behind = 8 + int.from_bytes(content[:8], "little")
    legacy = hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {"sshs_model_hash": hashlib.sha256(content[behind:]).hexdigest(), "sshs_legacy_hash": legacy}
