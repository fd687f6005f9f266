"""A saved file read by the host's own readers, and how much of it they take: what they do not know they leave out without a word."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from ..host import LoadReport
from ..methods.checkpoint_file import is_whole
from ..methods.control_file import FORMATS, count_control
from ..methods.embedding_file import read_embedding
from ..methods.hypernetwork import attentions
from ..methods.hypernetwork_file import count_parts
from ..methods.lora_file import count_host_keys
from ..sd.files import read_header
from .kept import attributes


def read_back(w: Any, path: Path, method: str) -> LoadReport:
    """How the host reads the file; where it refuses it, nothing is taken and the note says why."""
    if method == "textual_inversion":
        return _embedding(w, path)
    if is_whole(path):
        return _checkpoint(w, path)
    if method == "hypernetwork":
        return _hypernetwork(w, path)
    if method in FORMATS:
        taken, total = count_control(path, method, w.shared.sd_model.model.diffusion_model)
        return LoadReport(path, taken, total, path.stem, "counted by the rules of the ControlNet extension, which itself reads the file when it is chosen there")
    if w.networks is None:  # the Lora extension is off: by its recorded rules
        return LoadReport(path, *count_host_keys(path), path.stem)
    return _lora(w, path)


def _lora(w: Any, path: Path) -> LoadReport:
    keys = read_header(path)[0]
    words = {key.split(".")[1] for key in keys if key.startswith("bundle_emb.")}
    total = len({key.partition(".")[0] for key in keys} - {"bundle_emb"}) + len(words)
    try:
        found = w.networks.load_network(path.stem, w.networks.network.NetworkOnDisk(path.stem, str(path)))
    except Exception as error:  # whatever the extension raises for a file it does not take
        return LoadReport(path, 0, total, path.stem, f"the WebUI's Lora extension refuses it: {error}")
    db = w.sd_hijack.model_hijack.embedding_db
    width = db.expected_shape if db.expected_shape != -1 else db.get_expected_shape()
    fitting = [word for word, embedding in getattr(found, "bundle_embeddings", {}).items() if embedding.shape == width]
    hidden = sorted(word for word in words if getattr(db.word_embeddings.get(word), "filename", None))  # out of the folder
    note = f"the WebUI has an embedding called {', '.join(hidden)} already and uses that one instead of the word in this file: delete or rename it" if hidden else ""
    return LoadReport(path, len(found.modules) + len(fitting), total, path.stem, note)


def _hypernetwork(w: Any, path: Path) -> LoadReport:
    """By the host's own loader, which knows a file by its name in the list alone and says what is wrong in its log alone."""
    total = count_parts(path, set())[1]
    with attributes(w.shared, hypernetworks={path.stem: str(path)}):
        found = w.hypernetwork.load_hypernetwork(path.stem)
    if found is None:
        return LoadReport(path, 0, total, path.stem, "the WebUI refuses it: its log says why")
    there = {module.to_k.weight.shape[1] for _, module in attentions(w.shared.sd_model.model.diffusion_model)}
    return LoadReport(path, 2 * len(found.layers.keys() & there), total, path.stem)


def _checkpoint(w: Any, path: Path) -> LoadReport:
    """Its tensors under the names that the host gives them, against those of the model that is loaded, which has this one's structure."""
    total = len(read_header(path)[0])
    try:
        read = w.sd_models.read_state_dict
        found = read(str(path), map_location="cpu") if "map_location" in signature(read).parameters else read(str(path))
    except Exception as error:  # whatever the host raises for a file it does not take
        return LoadReport(path, 0, total, path.stem, f"the WebUI refuses it: {error}")
    model = w.sd_models.model_data.sd_model
    has = {**dict(model.named_buffers()), **model.state_dict()}  # transformers from 4.31 on keep the position ids out of the state
    own = {key.replace(".wrapped.", "."): tensor.shape for key, tensor in has.items()}  # hijacked modules are wrapped
    return LoadReport(path, sum(own.get(key) == tensor.shape for key, tensor in found.items()), total, path.stem)


def _embedding(w: Any, path: Path) -> LoadReport:
    """The database is asked in a copy of its own, so that the embeddings in use stay as they are."""
    db = w.sd_hijack.model_hijack.embedding_db
    own = type(db)()
    own.expected_shape = db.expected_shape if db.expected_shape != -1 else db.get_expected_shape()
    total = len(read_embedding(path).vectors)
    try:
        own.load_from_file(str(path), path.name)
    except Exception as error:  # as above
        return LoadReport(path, 0, total, path.stem, f"the WebUI refuses it: {error}")
    found = next(iter(own.word_embeddings.values()), None)
    return LoadReport(path, 0 if found is None else int(found.vec.shape[0]), total, path.stem)
