"""What a run resumes from, in one safetensors file per save; the folder of a run; which of its saves stay.

A state is any nest of dicts, lists and tuples with tensors, numbers, strings, bools and None at its ends. Its tensors lie in
`state/state-<step>.safetensors` bit for bit, with their strides: a fused optimizer walks weight and average by their memory, so an average that
came back in another layout would be another one. The tree around them is JSON, packed into a tensor of bytes, since a file's header holds 100 MB at most and a
large data set has more; a checksum covers both. Small tensors are joined: a LoRA's state has thousands, and safetensors takes its time for each.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor

from .sd.files import write_tensors

VERSION = 3
READ = ("1", "2", "3")  # 1 had the tree in the header, 2 each tensor by itself
SMALL = 1 << 18  # bytes of a tensor that is joined to others
TREE = "tree"
KEPT = 2  # states of a run: the newest, and one in case a disk loses it
_NAME = re.compile(r"state-(\d+)\.safetensors")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_ADVICE = {"ENOSPC": "make room", "EDQUOT": "make room", "EFBIG": "choose a disk that takes files of this size"}


class _Damaged(Exception):
    """Says in a few words why a state cannot be read."""


@dataclass(frozen=True)
class Loaded:
    """A state as it was saved (tensors on the CPU), and a note for each newer one that could not be read."""

    step: int
    state: dict
    path: Path
    notes: tuple[str, ...] = ()


# ---- states ----------------------------------------------------------------------------------------------------------


def save(folder: str | Path, step: int, state: Mapping) -> Path:
    """Writes `folder/state/state-<step>.safetensors` so that a kill at any moment leaves a readable state; of the others the newest before it stays.

    Returns when the file is on the disk. Raises ValueError for what a state cannot hold, OSError where the folder takes no file; then the last state stays.
    """
    path = Path(folder) / "state" / f"state-{step}.safetensors"
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, tensors, set(), "state")
    tensors, joined = _join(tensors)
    tree = json.dumps({"step": step, "state": packed, "joined": joined}).encode()
    metadata = {"tuner_state": str(VERSION), "crc32": str(_crc32(tree, tensors))}
    _write(path, {**tensors, TREE: torch.frombuffer(bytearray(zlib.compress(tree, 1)), dtype=torch.uint8)}, metadata)
    others = [p for p in _states(folder) if p != path]
    # a state of a later step is one that load() had to skip, or the run would be past it
    keep = [p for p in others if _step(p) < step][: KEPT - 1]
    for old in set(others) - set(keep):
        old.unlink(missing_ok=True)
    return path


def load(folder: str | Path) -> Loaded:
    """The newest state of the run in `folder` that can be read.

    Raises FileNotFoundError where there is none, ValueError where none can be read or where a newer Tuner wrote it.
    """
    paths = _states(folder)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no saved state (state/state-<step>.safetensors); name the folder of a run that has saved one.")
    notes: list[str] = []
    for path in paths:
        try:
            step, state = _read(path)
        except _Damaged as error:
            notes.append(f"{path} is skipped, because {error}.")
        else:
            return Loaded(step, state, path, tuple(notes))
    raise ValueError(f"{folder} has no state that can be read, so the run has to be started anew: " + " ".join(notes))


def newest_step(folder: str | Path) -> int:
    """The step of the newest saved state, without reading it; 0 where there is none."""
    return max(map(_step, _states(folder)), default=0)


def _states(folder: str | Path) -> list[Path]:
    """The states of a run, newest first."""
    return sorted((p for p in (Path(folder) / "state").glob("state-*") if _NAME.fullmatch(p.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    from safetensors import SafetensorError

    try:
        for left in path.parent.glob(".state-*.part"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)
        write_tensors(path, tensors, metadata)
        _sync(path.parent)
        _sync(path.parent.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(_unwritten(path, error)) from error


def _unwritten(path: Path, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number is None:  # safetensors gives the number of the system's error in its text alone
        found = re.search(r"(?:code: |os error )(\d+)", str(error))  # in 0.4, in 0.8
        if not found:
            return f"The run's state could not be written: {error}"
        number = int(found[1])
    advice = _ADVICE.get(errno.errorcode.get(number, ""), "make it writable or choose another folder")
    return f"{path.parent} did not take the run's state ({os.strerror(number)}): {advice}, then resume the run."


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable; Windows does that by itself."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that sync by themselves
            raise
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[int, dict]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            _check_version(path, metadata.get("tuner_state"))
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # a mapped file could not be deleted on Windows
    except (OSError, SafetensorError) as error:
        raise _Damaged(f"it cannot be read ({error})") from error
    tree = _tree(metadata, tensors)
    if metadata.get("crc32") != str(_crc32(tree, tensors)):
        raise _Damaged("its content does not match its checksum")
    saved = json.loads(tree)
    return saved["step"], _unpack(saved["state"], {**tensors, **_apart(tensors, saved.get("joined", {}))})


def _tree(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> bytes:
    """The JSON of the tree, whose bytes are no longer among the tensors then."""
    if metadata["tuner_state"] == "1":
        return metadata.get("tree", "").encode()
    try:
        return zlib.decompress(tensors.pop(TREE).numpy().tobytes())
    except (KeyError, zlib.error) as error:
        raise _Damaged("its content does not match its checksum") from error


def _check_version(path: Path, version: str | None) -> None:
    if version is None:
        raise _Damaged("it is not a run's state")
    if version not in READ:
        raise ValueError(f"{path} is a state of version {version}, and this Tuner reads version {' or '.join(READ)}; resume the run with the Tuner that saved it.")


def _crc32(tree: bytes, tensors: Mapping[str, Tensor]) -> int:
    crc = zlib.crc32(tree)
    for key, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{key} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def _join(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list]]:
    """The same with the small ones of each type in one (n,), and which these are: by its name their names and shapes in its order."""
    whole, parts = {}, defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.nbytes > SMALL:
            whole[name] = tensor
        else:
            parts[f"joined {tensor.dtype}"].append((name, tensor))
    whole.update((name, torch.cat([tensor.reshape(-1) for _, tensor in group])) for name, group in parts.items())
    return whole, {name: [[key, list(tensor.shape)] for key, tensor in group] for name, group in parts.items()}


def _apart(tensors: Mapping[str, Tensor], joined: Mapping[str, list]) -> dict[str, Tensor]:
    """The tensors that `_join` has joined, each with memory of its own."""
    found: dict[str, Tensor] = {}
    for name, group in joined.items():
        pieces = tensors[name].split([math.prod(shape) for _, shape in group])
        found.update((key, piece.reshape(shape).clone()) for (key, shape), piece in zip(group, pieces))
    return found


# ---- the tree --------------------------------------------------------------------------------------------------------


def _pack(value: Any, tensors: dict[str, Tensor], stored: set[int], where: str) -> Any:
    """`value` as JSON; its tensors go into `tensors` under their number. What JSON lacks is an object with one tag: dict, tuple, float, tensor."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        return _pack_tensor(value, tensors, stored, where)
    if isinstance(value, (list, tuple)):
        items = [_pack(v, tensors, stored, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pack_key = {}
        return {"dict": [[_pack(k, pack_key, stored, f"a key of {where}"), _pack(v, tensors, stored, f"{where}[{k!r}]")] for k, v in value.items()]}
    raise ValueError(f"{where} is of type {type(value).__name__}, which a run's state cannot hold; save it as tensors, numbers, strings or lists of them.")


def _pack_tensor(tensor: Tensor, tensors: dict[str, Tensor], stored: set[int], where: str) -> dict:
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        raise ValueError(f"{where} is a {tensor.layout} tensor of {tensor.dtype}, which a run's state cannot hold; save it as a plain one.")
    tensor, name = tensor.detach().cpu(), str(len(tensors))
    memory = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))  # (..) in the order it lies in memory
    node: dict[str, Any] = {"tensor": name}
    if memory.is_contiguous() and tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
        node |= {"shape": list(tensor.shape), "strides": list(tensor.stride())}
    else:
        memory = tensor.contiguous()
    address = memory.untyped_storage().data_ptr()
    tensors[name] = memory.clone() if address in stored else memory  # safetensors refuses tensors that share memory
    stored.add(address)
    return node


def _unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        tensor = tensors[node["tensor"]]
        return tensor.as_strided(node["shape"], node["strides"]) if "strides" in node else tensor
    if "float" in node:
        return float(node["float"])
    if "tuple" in node:
        return tuple(_unpack(item, tensors) for item in node["tuple"])
    return {_unpack(key, tensors): _unpack(value, tensors) for key, value in node["dict"]}


# ---- the folder of a run ---------------------------------------------------------------------------------------------

Files = Union[Path, Sequence[Path]]


def prune(saves: Sequence[Files], keep: int) -> list[Path]:
    """Deletes all but the last `keep` saves (0: all stay) with their cards (.json), pictures (.png) and descriptions (.yaml), and returns what was deleted.

    `saves` in the order they were written, each a file or the files of one step. Nothing that belongs to a save that stays is deleted.
    """
    if not keep:
        return []
    groups = [_with_sidecars([save] if isinstance(save, Path) else save) for save in saves]
    unique = list(dict.fromkeys(reversed(groups)))  # newest first; a step that was saved again after a resume counts once
    kept = {path for group in unique[:keep] for path in group}
    old = [path for group in reversed(unique[keep:]) for path in group if path not in kept and path.exists()]
    for path in old:
        _delete(path)
    return old


def _with_sidecars(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(p for path in paths for p in (path, *map(path.with_suffix, (".json", ".png", ".yaml")))))


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path}, a save that should go, cannot be deleted ({error.strerror}); delete it by hand or set keep_last to 0.") from error


def run_folder(output: str | Path, name: str) -> Path:
    """Makes `output/<name>-001`, or the number after the highest there is; characters that a file name cannot have become `_`.

    Two runs that start at once get two folders. Raises OSError where `output` takes no folder.
    """
    output, stem = Path(output), _safe(name)
    try:
        output.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name[len(stem) + 1 :]) for p in output.iterdir() if re.fullmatch(re.escape(stem) + r"-\d+", p.name)]
        return _make_next(output, stem, max(taken, default=0) + 1)
    except OSError as error:
        raise OSError(f"output: no folder can be made in {output} ({error.strerror}); choose a folder that can be written.") from error


def _make_next(output: Path, stem: str, number: int) -> Path:
    while True:
        folder = output / f"{stem}-{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _safe(name: str) -> str:
    cleaned = re.sub(r'[<>:"/\\|?*\x00-\x1f]+', "_", name).strip(" .")
    return cleaned[:60].rstrip(" .") or "run"
