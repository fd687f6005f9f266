"""Reads the tensors of `torch.save` files without running what a pickle may contain.

`torch.load(weights_only=True)` refuses the harmless training records that real Stable Diffusion checkpoints carry, and which versions refuse what has
changed from torch to torch; so the pickle is read here with a table of what may occur, and torch itself only maps the raw numbers.
Container formats: torch/serialization.py (zip since 1.6; before that five pickles and the raw storages in one row).
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype).partition(".")[2]: dtype for dtype in _STORAGES.values()}
# Records of the training program, found in real checkpoints. Only their names are known here: nothing of these packages is imported.
_INERT = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.", "_codecs.", "pathlib.", "typing.", "argparse.", "datetime.", "collections.Counter.")
_DAMAGE = (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError, OverflowError, ImportError, struct.error, RuntimeError)


class UnsafePickle(ValueError):
    """The file would run code when loaded in the ordinary way; nothing of it was run."""


class _Unread(ValueError):
    """The file holds numbers of a kind that is not read."""


class Inert:
    """Stands for an object that is not read; takes whatever a pickle does to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _ParameterDict(dict):
    """Old embeddings keep their vectors in an nn.ParameterDict."""

    def __setstate__(self, state: Any) -> None:
        self.update(state.get("_parameters", {}))


class _Reader(pickle.Unpickler):
    """Unpickles data alone; `storage(persistent id)` gives the numbers of one storage as a flat tensor.

    Every function a pickle can call comes from `find_class`, and what that returns is new for each file, so a file cannot alter it for the next one.
    """

    def __init__(self, file: Any, storage: Callable[[tuple], Tensor]):
        super().__init__(file, encoding="latin1")
        self._storage = storage
        self._known: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            self._known[module, name] = self._find(module, name)
        return self._known[module, name]

    def _find(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch._utils" and name == "_rebuild_tensor_v3":  # of numbers that have no storage class of their own
            raise _Unread
        exact = {  # lambdas, since a pickle may put attributes on what it is given: on a method they would stay with the function, which all files share
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: self._tensor(*args),
            ("torch._utils", "_rebuild_tensor"): lambda *args: self._tensor(*args),
            ("torch._utils", "_rebuild_parameter"): lambda *args: self._parameter(*args),
            ("torch", "Size"): tuple,
            ("torch", "device"): lambda *args: ":".join(map(str, args)),
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "defaultdict"): lambda *args: {},
            ("torch.nn.modules.container", "ParameterDict"): type("ParameterDict", (_ParameterDict,), {}),
        }
        if (module, name) in exact:
            return exact[module, name]
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "dict", "list", "tuple", "int", "float", "bool", "str", "complex"):
            return {"set": set, "frozenset": frozenset, "dict": dict, "list": list, "tuple": tuple}.get(name, type(name, (Inert,), {}))
        if f"{module}.".startswith(_INERT) or f"{module}.{name}." in _INERT:
            return type(name, (Inert,), {})
        raise UnsafePickle(f"{module.replace('__builtin__', 'builtins')}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise pickle.UnpicklingError(f"unknown reference {str(pid)[:80]}")
        return self._storage(pid)

    def _tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
        if storage.is_meta:  # first pass over an old file: only its length matters
            return storage
        last = offset + sum((n - 1) * s for n, s in zip(size, stride))
        if offset < 0 or any(s < 0 for s in stride) or (0 not in size and last >= storage.numel()):
            raise pickle.UnpicklingError("a tensor reaches beyond its data")
        return storage.as_strided(size, stride, storage.storage_offset() + offset)

    def _parameter(self, tensor: Tensor, *rest: Any) -> Tensor:
        return tensor


def read_pickle(path: str | Path) -> Any:
    """What `torch.save` wrote: the object with its tensors on the CPU, numbers mapped from the file where they are aligned.

    Raises UnsafePickle, naming what the file would call, and ValueError where it is damaged or no such file.
    """
    path = Path(path)
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except UnsafePickle as refusal:
        raise UnsafePickle(f"{path.name} holds code besides weights (loading it would call {refusal}); nothing was run. Use a .safetensors file.") from None
    except _Unread:
        raise ValueError(f"{path.name} holds numbers in fp8 or another precision that is read from no such file; save it in fp16, or as .safetensors.") from None
    except (zipfile.BadZipFile, *_DAMAGE) as error:
        raise ValueError(f"{path.name} is damaged or no torch file ({str(error)[:120] or type(error).__name__}); download it again.") from error


def _read_zip(path: Path) -> Any:
    raw = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)  # private mapping: writing never reaches the file
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        index = next((name for name in entries if name.endswith("data.pkl") and name.count("/") < 2), None)
        if index is None:
            raise ValueError("it has no data.pkl")
        root = index[: -len("data.pkl")]
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        loaded: dict[str, Tensor] = {}

        def storage(pid: tuple) -> Tensor:
            _, dtype, key, _, count, *_ = pid
            if key not in loaded:
                loaded[key] = _view(raw, _start(archive, entries[f"{root}data/{key}"]), count, dtype)
            return loaded[key]

        return _Reader(io.BytesIO(archive.read(index)), storage).load()


def _start(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin; the central directory gives only the local header's place."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its tensors are compressed")
    file = archive.fp
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


def _view(raw: Tensor, start: int, count: int, dtype: torch.dtype) -> Tensor:
    width = torch.empty(0, dtype=dtype).element_size()
    if count < 0 or start + count * width > raw.numel():
        raise ValueError("its data ends early")
    data = raw[start : start + count * width]
    return (data if start % width == 0 else data.clone()).view(dtype)


def _read_legacy(path: Path) -> Any:
    """magic, protocol, system, object, keys: five pickles; then for each key its count as int64 and its bytes."""
    with path.open("rb") as file:
        if _Reader(file, _no_storage).load() != _LEGACY_MAGIC:
            raise ValueError("it is a pickle, but not of torch.save")
        _protocol, system = (_Reader(file, _no_storage).load() for _ in range(2))
        if system.get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        begin, dtypes = file.tell(), {}

        def skip(pid: tuple) -> Tensor:
            dtypes[pid[2]] = pid[1]
            return torch.empty(0, device="meta")

        _Reader(file, skip).load()  # the numbers lie behind the object: read it once to find them, once more with them
        keys = _Reader(file, _no_storage).load()
        raw = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        loaded, at = {}, file.tell()
        for key in keys:
            count = int(_view(raw, at, 8, torch.uint8).clone().view(torch.int64))
            loaded[key] = _view(raw, at + 8, count, dtypes[key])
            at += 8 + loaded[key].numel() * loaded[key].element_size()
        file.seek(begin)
        return _Reader(file, lambda pid: _legacy_view(loaded[pid[2]], pid)).load()


def _legacy_view(storage: Tensor, pid: tuple) -> Tensor:
    view = pid[5] if len(pid) > 5 else None
    return storage if view is None else storage[view[1] : view[1] + view[2]]


def _no_storage(pid: tuple) -> Tensor:
    raise pickle.UnpicklingError("a tensor where none belongs")
