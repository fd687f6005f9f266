"""WD14 models by name: fetched from the hub once, or files of one's own.

A fetched model lies in `<folder>/<name>/<revision>/` as model.onnx, selected_tags.csv and SHA256SUMS: the hashes of the first download, which every later use is
checked by (`sha256sum -c` reads them too). Nobody publishes hashes to compare the first one with but the hub itself, whose answer names that of a large file.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import meant
from ..disk import atomic, expanded
from .tag_list import read_tags
from .tag_rules import USUAL_THRESHOLD, Thresholds
from .tagger import ModelFiles, digest_of

HUB = "https://huggingface.co"  # HF_ENDPOINT names another, as for the hub's own programs
OWNER, MODEL, TAGS, SUMS = "SmilingWolf", "model.onnx", "selected_tags.csv", "SHA256SUMS"
TIMEOUT = 30.0  # seconds without a byte
_LEAST = {MODEL: 1024, TAGS: 16}  # bytes; anything shorter is a message
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_UNPUBLISHED = ""
_AUTHOR, _DTE = "the model's author", "dataset-tag-editor"

Told = Callable[[str, int, int], None]  # a file's name, bytes done, bytes of all or 0


class Cancelled(ValueError):
    """A download that was stopped."""


def _equal(value: float, source: str) -> Thresholds:
    return Thresholds(value, value, source)


# the thresholds where precision equals recall, which authors publish: model cards and their commits, shirayu/img2tags' readme,
# and interrogator_names.py of toshiaki1729/stable-diffusion-webui-dataset-tag-editor
MODELS: dict[str, Thresholds] = {
    "wd-v1-4-vit-tagger": _equal(USUAL_THRESHOLD, _UNPUBLISHED),
    "wd-v1-4-convnext-tagger": _equal(USUAL_THRESHOLD, _UNPUBLISHED),
    "wd-v1-4-vit-tagger-v2": _equal(0.3537, _AUTHOR),
    "wd-v1-4-convnext-tagger-v2": _equal(0.3685, _AUTHOR),
    "wd-v1-4-convnextv2-tagger-v2": _equal(0.3710, "img2tags"),
    "wd-v1-4-swinv2-tagger-v2": _equal(0.3771, _AUTHOR),
    "wd-v1-4-moat-tagger-v2": _equal(0.3771, _AUTHOR),
    "wd-vit-tagger-v3": _equal(0.2614, _DTE),
    "wd-convnext-tagger-v3": _equal(0.2682, _DTE),
    "wd-swinv2-tagger-v3": _equal(0.2653, _DTE),
    "wd-vit-large-tagger-v3": _equal(USUAL_THRESHOLD, _UNPUBLISHED),
    "wd-eva02-large-tagger-v3": _equal(0.5296, _AUTHOR),
}


def default_folder() -> Path:
    """Where fetched models lie unless another place is given: in the user's cache, so that the WebUI and the command line share them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lib_tuner" / "taggers"


def find(name: str, folder: Path, told: Told = lambda *_: None, stop: Callable[[], bool] = lambda: False) -> ModelFiles:
    """The files of a model: `name` is one of MODELS (with @revision for another than main), an .onnx file, or the folder of one.

    What is not there is fetched, and `told` of how far that is. Raises ValueError for a name that there is not, a file that is no longer what was
    downloaded, and `Cancelled`; OSError where the hub cannot be reached or the disk not written.
    """
    path = expanded(name)
    if path.suffix.lower() == ".onnx" or path.is_dir():
        return _local(path)
    known, _, revision = name.partition("@")
    if known not in MODELS:
        raise ValueError(f"There is no model {known!r}{meant(known, MODELS)} (an .onnx file does too; by name there are {', '.join(MODELS)})")
    revision = revision or "main"
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", revision):
        raise ValueError(f"{revision!r} is no revision; name a branch, a tag or a commit of the model, such as main.")
    place = folder / known / revision
    for file in (TAGS, MODEL):  # the small one first: where it fails, the large one would too
        if not (place / file).is_file():
            _fetch(f"{_hub()}/{OWNER}/{known}/resolve/{revision}/{file}", place / file, told, stop)
    return ModelFiles(name, place / MODEL, place / TAGS, MODELS[known], _checked(place))


def is_here(name: str, folder: Path) -> bool:
    """Whether a model of MODELS was fetched before."""
    return all((folder / name / "main" / file).is_file() for file in (TAGS, MODEL))


def list_of(name: str, folder: Path) -> Path:
    """The list of tags of a model of MODELS that was fetched before."""
    return folder / name / "main" / TAGS


def _local(path: Path) -> ModelFiles:
    """A model of one's own, with its list beside it; named as one of MODELS, it has that one's thresholds."""
    model = path / MODEL if path.is_dir() else path
    if not model.is_file():
        raise ValueError(f"{model} does not exist; name an .onnx file, or a folder with {MODEL} and {TAGS}.")
    tags = next((model.parent / name for name in (f"{model.stem}.csv", TAGS, "tags-selected.csv") if (model.parent / name).is_file()), None)
    if tags is None:
        raise ValueError(f"{model.name} has no list of tags beside it; put the {TAGS} of the model into {model.parent}.")
    name = model.parent.name if model.name == MODEL else model.stem
    return ModelFiles(name, model, tags, MODELS.get(name, Thresholds()))


def _checked(place: Path) -> str:
    """sha256 of the model, the one that was recorded. Raises ValueError where a file is another one."""
    recorded = _recorded(place)
    for file, digest in recorded.items():
        found = digest_of(place / file)
        if found != digest:
            raise ValueError(f"{place / file} is no longer the file that was downloaded (sha256 {found[:12]}… instead of {digest[:12]}…); "
                             "delete it, and it is fetched again.")
    return recorded.get(MODEL, "")


def _recorded(place: Path) -> dict[str, str]:
    try:
        lines = (place / SUMS).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    return {file: digest for digest, _, file in (line.partition("  ") for line in lines) if file in (MODEL, TAGS)}


# ---- the hub ---------------------------------------------------------------------------------------------------------


def _hub() -> str:
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to where a large file lies, and keeps what the hub says of it on the way."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.said |= {key.lower(): value for key, value in headers.items() if key.lower().startswith("x-linked-")}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, path: Path, told: Told, stop: Callable[[], bool]) -> None:
    """A file from the hub, whole and recorded, or not at all. Raises OSError, `Cancelled`."""
    redirects = _Redirects()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            with urllib.request.build_opener(redirects).open(urllib.request.Request(url, headers={"User-Agent": "lib_tuner"}), timeout=TIMEOUT) as answer:
                if answer.headers.get_content_type() == "text/html":
                    raise OSError("it answers with a page instead of the file")
                size = int(answer.headers.get("Content-Length") or redirects.said.get("x-linked-size") or 0)
                digest, done = _received(answer, temporary, size, lambda done: told(path.name, done, size), stop)
            if size and done != size:
                raise OSError(f"it ended after {done:,} of {size:,} bytes")
            _check_content(temporary, path.name)
            promised = _SHA256.fullmatch(redirects.said.get("x-linked-etag", ""))
            if promised and promised[1] != digest:
                raise OSError("what came is not what the hub announced (another sha256)")
            _record(path, digest)
    except Cancelled:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        raise OSError(f"{path.name} cannot be fetched from {url} ({_reason(error)}); "
                      f"try again later, or put {MODEL} and {TAGS} into a folder by other means and name that folder as the model.") from error


def _received(answer: Any, path: Path, size: int, told: Callable[[int], None], stop: Callable[[], bool]) -> tuple[str, int]:
    """Writes what comes, and returns its sha256 and length."""
    digest, done = hashlib.sha256(), 0
    with open(path, "wb") as file:
        while part := answer.read(1 << 18):
            if stop():
                raise Cancelled("The download was stopped; nothing of it was kept.")
            file.write(part)
            digest.update(part)
            done += len(part)
            told(done)
    return digest.hexdigest(), done


def _check_content(path: Path, name: str) -> None:
    """Raises OSError for what is no model or list of tags, whatever the server called it."""
    with open(path, "rb") as file:
        start = file.read(256).lstrip()
    if path.stat().st_size < _LEAST[name] or start.startswith((b"<", b"{", b"version https://git-lfs")):
        raise OSError("what came is a message, not the file")
    if name == TAGS:
        try:
            read_tags(path.read_bytes(), name)
        except ValueError as error:
            raise OSError(str(error).rstrip(".")) from error


def _record(path: Path, digest: str) -> None:
    sums = {**_recorded(path.parent), path.name: digest}
    with atomic(path.parent / SUMS) as temporary:
        temporary.write_text("".join(f"{digest}  {file}\n" for file, digest in sorted(sums.items())), encoding="ascii")


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answers {error.code} {error.reason}"
    inner = error.reason if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException) else error
    return (getattr(inner, "strerror", None) or str(inner) or type(inner).__name__).rstrip(".")
