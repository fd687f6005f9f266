"""The Lora extension's state, and what it does to layers. It rewrites weights in place, in whatever grad mode the forward is that notices a new list, and
goes back by copies of the weights that it made once (T2 to T4 of the contract)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import network
from network_names import layer_name
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from modules import errors, sd_hijack, sd_models, shared
from modules.textual_inversion import textual_inversion

available_networks: dict[str, network.NetworkOnDisk] = {}
available_network_aliases: dict[str, network.NetworkOnDisk] = {}
forbidden_network_aliases: dict[str, int] = {}
loaded_networks: list[network.Network] = []
networks_in_memory: dict[str, network.Network] = {}
originals: Any = None  # the classes' own functions: lora_patches.Replaced


def name_layers(sd_model: Any) -> None:
    """Gives all modules of UNet and text encoder their names."""
    mapping = {}
    for root in (sd_model.model, getattr(sd_model.cond_stage_model, "wrapped", sd_model.cond_stage_model)):
        for path, module in root.named_modules():
            module.network_layer_name = path.replace(".", "_")
            mapping[module.network_layer_name] = module
    sd_model.network_layer_mapping = mapping


# ---- files -----------------------------------------------------------------------------------------------------------


def list_available_networks() -> None:
    """Reads the folders. An alias that two files have is forbidden, and means the last of them."""
    for table in (available_networks, available_network_aliases, forbidden_network_aliases):
        table.clear()
    forbidden_network_aliases.update(dict.fromkeys(("none", "Addams"), 1))
    folders = [Path(shared.cmd_opts.lora_dir), Path(shared.cmd_opts.lyco_dir_backcompat)]
    for path in sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in (".pt", ".ckpt", ".safetensors")):
        try:
            entry = network.NetworkOnDisk(path.stem, str(path))
            alias = entry.alias
        except (OSError, ValueError, SafetensorError) as error:
            errors.display(error, f"the metadata of {path}")
            continue
        if alias != path.stem and alias in available_network_aliases:
            forbidden_network_aliases[alias.lower()] = 1
        available_networks[path.stem] = entry
        available_network_aliases.update(dict.fromkeys((path.stem, alias), entry))


def _on_disk(name: str) -> network.NetworkOnDisk | None:
    return (available_networks if name.lower() in forbidden_network_aliases else available_network_aliases).get(name)


def load_network(name: str, network_on_disk: network.NetworkOnDisk) -> network.Network:
    """Reads a file. Keys of no layer are left out without a word; raises AssertionError for a layer's parts of no kind."""
    net = network.Network(name, network_on_disk, os.path.getmtime(network_on_disk.filename))
    mapping, parts, words = shared.sd_model.network_layer_mapping, {}, {}
    for key, tensor in sd_models.read_state_dict(network_on_disk.filename).items():
        prefix, _, part = key.partition(".")
        if prefix == "bundle_emb":
            word, _, part = part.partition(".")
            words.setdefault(word, {})[part] = tensor.clone()
        elif layer_name(prefix) in mapping:
            parts.setdefault(layer_name(prefix), {})[part] = tensor.clone()  # the file may be written over in place
    net.modules = {layer: network.NetworkModule(net, layer, found) for layer, found in parts.items()}
    net.bundle_embeddings = {word: _embedding(word, found) for word, found in words.items()}
    return net


def _embedding(word: str, found: dict[str, Tensor]) -> Any:
    vectors = found.get("string_to_param.*", next(iter(found.values()))).float()
    embedding = textual_inversion.Embedding(vectors, word)
    embedding.vectors, embedding.shape = vectors.shape
    return embedding


def load_networks(names: Sequence[str], te_multipliers: Sequence[float] | None = None, unet_multipliers: Sequence[float] | None = None,
                  dyn_dims: Sequence[Any] | None = None) -> None:  # fmt: skip
    """Makes these the loaded ones; what is not there or refused is said and left out. Without `dyn_dims` they are 1.0, which no rank can be cut to."""
    if any(_on_disk(name) is None for name in names):
        list_available_networks()
    kept = {**networks_in_memory, **{net.name: net for net in loaded_networks}}
    _put_words(loaded_networks, there=False)
    loaded_networks.clear()
    missing = []
    for i, name in enumerate(names):
        entry = _on_disk(name)
        net = _read(name, entry, kept.get(name)) if entry is not None else None
        if net is None:
            missing.append(name)
            continue
        net.te_multiplier, net.unet_multiplier, net.dyn_dim = (1.0 if given is None else given[i] for given in (te_multipliers, unet_multipliers, dyn_dims))
        loaded_networks.append(net)
        networks_in_memory[name] = net
    for name in list(networks_in_memory)[: max(len(networks_in_memory) - shared.opts.lora_in_memory_limit, 0)]:
        del networks_in_memory[name]
    _put_words(loaded_networks, there=True)
    if missing:
        sd_hijack.model_hijack.comments.append(f"These networks are not there: {', '.join(missing)}")


def _read(name: str, entry: network.NetworkOnDisk, kept: network.Network | None) -> network.Network | None:
    """What was read before, unless the file is newer."""
    if kept is not None and kept.mtime >= os.path.getmtime(entry.filename):
        return kept
    try:
        return load_network(name, entry)
    except Exception as error:  # whatever is wrong with the file
        errors.display(error, f"reading {entry.filename}")
        return None


def _put_words(nets: list[network.Network], there: bool) -> None:
    """Embeddings inside files are there as long as the file; one that the database has by itself stays."""
    db = sd_hijack.model_hijack.embedding_db
    for word, embedding in [pair for net in nets for pair in net.bundle_embeddings.items()]:
        if there and word not in db.word_embeddings:
            db.register_embedding(embedding, shared.sd_model)
        elif not there and db.word_embeddings.get(word) is embedding:
            db.register_embedding_by_name(None, shared.sd_model, word)
        embedding.loaded = there and db.word_embeddings.get(word) is embedding


# ---- layers ----------------------------------------------------------------------------------------------------------


def network_apply_weights(layer: nn.Module) -> None:
    """Writes the loaded networks into a layer where others are in it. Layers without a name and without a weight are left alone."""
    if getattr(layer, "network_layer_name", None) is None or getattr(layer, "weight", None) is None:
        return
    wish = tuple(net.wish for net in loaded_networks)
    if layer.bias is not None and getattr(layer, "network_bias_backup", None) is None:
        layer.network_bias_backup = layer.bias.clone()  # in grad mode it is part of a graph, as the host's is
    if wish == getattr(layer, "network_current_names", ()):
        return
    if getattr(layer, "network_weights_backup", None) is None:
        layer.network_weights_backup = layer.weight.clone()
    _write(layer, loaded_networks)
    layer.network_current_names = wish


def _write(layer: nn.Module, nets: Sequence[network.Network]) -> None:
    """The copies, with the networks on top; in place, and in the grad mode of the caller."""
    layer.weight.copy_(layer.network_weights_backup)
    if layer.bias is not None:
        layer.bias.copy_(layer.network_bias_backup)
    for weight, bias in _changes(layer, nets):
        layer.weight.copy_(layer.weight.float() + weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(layer.bias.float() + bias)


def _changes(layer: nn.Module, nets: Sequence[network.Network]) -> list[tuple[Tensor, Tensor | None]]:
    """One that does not fit the layer is left out without a word."""
    changes = []
    for module in (net.modules.get(layer.network_layer_name) for net in nets):
        if module is not None:
            with suppress(RuntimeError):
                changes.append(module.change(layer.weight))
    return changes


def network_reset_cached_weight(layer: nn.Module, *loading: Any) -> None:
    """Forgets the copies: what is in the weights now is what they are."""
    layer.network_current_names = ()
    layer.network_weights_backup = layer.network_bias_backup = None


def network_forward(layer: nn.Module, input: Tensor, original: Any) -> Tensor:
    """The setting `lora_functional`: what is in the weights is taken out, and the networks' part added to what the layer says."""
    if getattr(layer, "network_layer_name", None) is None:
        return original(layer, input)
    if getattr(layer, "network_current_names", ()):
        _write(layer, ())
        network_reset_cached_weight(layer)
    out = original(layer, input)
    for weight, _ in _changes(layer, loaded_networks):
        weight = weight.to(input.dtype)
        out = out + (F.linear(input, weight) if isinstance(layer, nn.Linear) else layer._conv_forward(input, weight, None))
    return out
