"""The Lora extension: names and kinds of files, and what becomes of the weights."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from lib_tuner.sd.names import kohya_key

from .tools import draw, error_of, layers_of, lora_on_to_q, loss_of, probe, put_lora, same, to_q


def _load(w: Any, *names: str, weight: float = 1.0, dims: Any = None) -> None:
    n = len(names)
    w.networks.load_networks(list(names), [weight] * n, [weight] * n, [None] * n if dims is None else dims)


@torch.no_grad()
def _apply(w: Any) -> None:
    for layer in layers_of(w):
        w.networks.network_apply_weights(layer)


@probe
def t2_lora_stays_in_the_weights(w: Any) -> Any:
    """After the picture too, until the next forward with other networks; the recipe takes it out."""
    before = to_q(w).weight.detach().clone()
    lora_on_to_q(w)
    draw(w, "a ball <lora:one:1>")
    off = float((to_q(w).weight.detach() - before).abs().max())
    marks = [len(to_q(w).network_current_names), to_q(w).network_weights_backup is not None, [net.name for net in w.networks.loaded_networks]]
    w.networks.loaded_networks.clear()
    still = not same(to_q(w).weight.detach(), before)
    _apply(w)
    return {"off by": round(off, 3), "marks": marks, "still after clearing the list": still, "restored": same(to_q(w).weight.detach(), before)}


@probe
def t2_next_picture_takes_it_out(w: Any) -> Any:
    before = to_q(w).weight.detach().clone()
    lora_on_to_q(w)
    draw(w, "a ball <lora:one:1>")
    draw(w, "a ball", disable_extra_networks=True)
    kept = not same(to_q(w).weight.detach(), before)
    draw(w, "a ball")
    return {"disabled: kept": kept, "plain: restored": same(to_q(w).weight.detach(), before), "list": len(w.networks.loaded_networks)}


@probe
def t3_restoring_in_grad_mode(w: Any) -> Any:
    """With a trainable UNet it fails; with a frozen one biases become parts of a graph and a later backward pass dies."""
    lora_on_to_q(w)
    _load(w, "one")
    w.networks.network_apply_weights(nn.Linear(1, 1))
    trainable = error_of(lambda: loss_of(w.model, ["a ball"]).backward())
    w.networks.loaded_networks.clear()
    for layer in layers_of(w):
        w.networks.network_reset_cached_weight(layer)
    with torch.no_grad():
        loss_of(w.model, ["a ball"])
    return {"trainable": trainable}


@probe
def t3_backup_made_in_grad_mode(w: Any) -> Any:
    """The copy of a bias carries a graph where it was made with the UNet trainable."""
    for layer in layers_of(w):
        w.networks.network_reset_cached_weight(layer)
    loss_of(w.model, ["a ball"]).backward()
    copies = [layer.network_bias_backup for layer in layers_of(w) if getattr(layer, "network_bias_backup", None) is not None]
    in_graph = sum(copy.grad_fn is not None for copy in copies)
    lora_on_to_q(w)
    _load(w, "one")
    w.model.requires_grad_(False)
    error = error_of(lambda: loss_of(w.model, ["a ball"]))
    not_leaf = sum(layer.bias is not None and not layer.bias.is_leaf for layer in layers_of(w))
    later = error_of(lambda: loss_of(w.model, ["a ball"], cond_grad=True).backward())
    return {"in a graph": in_graph > 0, "error": error, "not leaves": not_leaf > 0, "of the copies": not_leaf == in_graph, "later": bool(later)}


@probe
def t4_backups_overwrite_trained_weights(w: Any) -> Any:
    """In-place training, then a LoRA on and off: the old weight and the old bias are back. Resetting the copies before and after helps."""
    found, layer = {}, w.model.model.diffusion_model.input_blocks[1][1].proj_in
    lora_on_to_q(w)
    for name, forget in (("plain", False), ("copies forgotten", True)):
        draw(w, "a ball <lora:one:1>")
        draw(w, "a ball")
        if forget:
            for each in layers_of(w):
                w.networks.network_reset_cached_weight(each)
        with torch.no_grad():
            for p in (layer.bias, layer.weight, to_q(w).weight):
                p.add_(1)
        trained = [layer.bias.detach().clone(), to_q(w).weight.detach().clone()]
        draw(w, "a ball <lora:one:1>")
        draw(w, "a ball")
        found[name] = {"bias kept": same(layer.bias.detach(), trained[0]), "weight kept": bool(torch.allclose(to_q(w).weight.detach(), trained[1]))}
    return found


@probe
def copies_at_the_first_forward(w: Any) -> Any:
    """Biases are copied without any LoRA, weights with the first one; loading weights forgets both."""
    for layer in layers_of(w):
        w.networks.network_reset_cached_weight(layer)
    with torch.no_grad():
        loss_of(w.model, ["a ball"])
    unet = [layer for layer in layers_of(w) if layer.network_layer_name.startswith("diffusion_model_")]

    def counts() -> list[bool]:
        biased = [layer for layer in unet if getattr(layer, "bias", None) is not None]
        return [all(layer.network_bias_backup is not None for layer in biased), any(layer.network_weights_backup is not None for layer in unet)]

    plain = counts()
    lora_on_to_q(w)
    draw(w, "<lora:one:1>")
    with_lora = [counts()[0], all(layer.network_weights_backup is not None for layer in unet)]
    w.networks.loaded_networks.clear()
    _apply(w)
    w.sd_models.reload_model_weights(forced_reload=True)
    return {"plain": plain, "with one": with_lora, "after loading weights": any(getattr(layer, "network_weights_backup", None) is not None for layer in unet)}


@probe
def names_of_layers(w: Any) -> Any:
    mapping = w.model.network_layer_mapping
    return {"to_q": to_q(w).network_layer_name, "mapped": mapping[to_q(w).network_layer_name] is to_q(w),
            "text": "transformer_text_model_encoder_layers_0_self_attn_q_proj" in mapping, "vae": any("decoder" in name for name in mapping),
            "layers": len(layers_of(w)) == sum(isinstance(m, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)) for root in
                                               (w.model.model, w.model.cond_stage_model.wrapped) for m in root.modules())}  # fmt: skip


def _parts(module: nn.Module, rank: int = 1) -> dict[str, Tensor]:
    out, inside, *size = module.weight.shape
    return {"lora_up.weight": torch.ones(out, rank, *[1] * len(size)), "lora_down.weight": torch.ones(rank, inside, *size)}


@probe
def keys_of_all_layers(w: Any) -> Any:
    """Both ways of naming reach every Linear and Conv2d of UNet and text encoder."""
    found, total = {}, 0
    unet = {path: m for path, m in w.model.model.diffusion_model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    text = {path: m for path, m in w.model.cond_stage_model.wrapped.transformer.named_modules() if isinstance(m, nn.Linear)}
    for way in ("diffusers", "original"):
        tensors = {}
        for path, module in unet.items():
            key = kohya_key(path, "unet") if way == "diffusers" else "lora_unet_" + path.replace(".", "_")
            tensors |= {f"{key}.{part}": value for part, value in _parts(module).items()}
        for path, module in text.items():
            key = ("lora_te_" if way == "diffusers" else "lora_te1_") + path.replace(".", "_")
            tensors |= {f"{key}.{part}": value for part, value in _parts(module).items()}
        path = put_lora(w, way, tensors)
        net = w.networks.load_network(way, w.networks.network.NetworkOnDisk(way, str(path)))
        total = len(unet) + len(text)
        found[way] = [len(net.modules), total]
    return {**found, "unet": len(unet)}


@probe
def unknown_keys(w: Any) -> Any:
    """Keys of no layer are left out without a word; parts of no kind make the whole file fail."""
    layer, ones = to_q(w), torch.ones
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    good = {f"{key}.lora_up.weight": ones(layer.out_features, 1), f"{key}.lora_down.weight": ones(1, layer.in_features)}
    path = put_lora(w, "some", {**good, "lora_unet_nothing_like_it.lora_up.weight": ones(2, 1), "lora_unet_nothing_like_it.lora_down.weight": ones(1, 2)})
    taken = len(w.networks.load_network("some", w.networks.network.NetworkOnDisk("some", str(path))).modules)
    found = {}
    for name, parts in {"odd": {"odd": ones(2)}, "lora_A": {"lora_A.weight": ones(1, 2), "lora_B.weight": ones(2, 1)}, "half": {"lora_up.weight": ones(2, 1)}}.items():
        path = put_lora(w, name, {**good, **{f"{key.replace('to_q', 'to_k')}.{part}": value for part, value in parts.items()}})
        found[name] = error_of(lambda path=path, name=name: w.networks.load_network(name, w.networks.network.NetworkOnDisk(name, str(path))))
    _load(w, "odd", "some")
    loaded = [net.name for net in w.networks.loaded_networks]
    w.networks.loaded_networks.clear()
    return {"taken": taken, "errors": found, "loaded": loaded, "no such": _missing(w)}


def _missing(w: Any) -> Any:
    w.sd_hijack.model_hijack.clear_comments()
    _load(w, "no such file")
    return [len(w.networks.loaded_networks), ["no such file" in comment for comment in w.sd_hijack.model_hijack.comments]]


def _made(layer: nn.Module) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """Kinds of parts with the change of the weight that they make by formula, for a Linear."""
    out, inside = layer.weight.shape
    g = torch.Generator().manual_seed(3)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    up, down, a1, b1, a2, b2 = r(out, 2), r(2, inside), r(out, 2), r(2, inside), r(out, 2), r(2, inside)
    w1, w2, w2a, w2b, ia3 = r(2, 2), r(out // 2, inside // 2), r(out // 2, 2), r(2, inside // 2), r(out)
    alpha = {"alpha": torch.tensor(1.0)}
    return {
        "lora": ({"lora_up.weight": up, "lora_down.weight": down}, up @ down),
        "lora alpha": ({"lora_up.weight": up, "lora_down.weight": down, **alpha}, up @ down / 2),
        "loha": ({"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, **alpha}, (a1 @ b1) * (a2 @ b2) / 2),
        "lokr": ({"lokr_w1": w1, "lokr_w2": w2, **alpha}, torch.kron(w1, w2)),
        "lokr low": ({"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b, **alpha}, torch.kron(w1, w2a @ w2b) / 2),
        "full": ({"diff": r(out, inside)}, torch.empty(0)),
        "ia3": ({"weight": ia3, "on_input": torch.tensor(False)}, layer.weight.detach() * ia3[:, None]),
    }


@probe
def kinds_by_formula(w: Any) -> Any:
    """The change of a Linear's weight at weight 0.5."""
    found = {}
    for name, (parts, change) in _made(to_q(w)).items():
        change = parts["diff"] if name == "full" else change
        before = to_q(w).weight.detach().clone()
        put_lora(w, "kind", {f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.{part}": value for part, value in parts.items()})
        w.networks.networks_in_memory.clear()
        _load(w, "kind", weight=0.5)
        _apply(w)
        found[name] = bool(torch.allclose(to_q(w).weight.detach() - before, 0.5 * change, atol=1e-4))
        w.networks.loaded_networks.clear()
        _apply(w)
    return found


@probe
def kinds_on_convolutions_and_norms(w: Any) -> Any:
    """3x3 with and without a core, biases, and norms."""
    found, ones = {}, torch.ones
    conv, norm = w.model.model.diffusion_model.input_blocks[1][0].in_layers[2], w.model.model.diffusion_model.input_blocks[1][0].in_layers[0]
    out, inside = conv.weight.shape[:2]
    up, down, mid = torch.randn(out, 2, 1, 1), torch.randn(2, inside, 3, 3), torch.randn(2, 2, 3, 3)
    flat = torch.randn(2, inside, 1, 1)
    cases = {
        "conv": (conv, "conv1", {"lora_up.weight": up, "lora_down.weight": down}, (up.flatten(1) @ down.flatten(1)).reshape(conv.weight.shape), None),
        "core": (conv, "conv1", {"lora_up.weight": up, "lora_down.weight": flat, "lora_mid.weight": mid},
                 torch.einsum("or,rshw,si->oihw", up.flatten(1), mid, flat.flatten(1)), None),
        "bias": (conv, "conv1", {"diff": ones(conv.weight.shape), "diff_b": ones(out)}, ones(conv.weight.shape), ones(out)),
        "norm": (norm, "norm1", {"w_norm": ones(norm.weight.shape), "b_norm": ones(norm.weight.shape)}, ones(norm.weight.shape), ones(norm.weight.shape)),
    }  # fmt: skip
    for name, (layer, short, parts, weight, bias) in cases.items():
        before = layer.weight.detach().clone(), layer.bias.detach().clone()
        put_lora(w, "kind", {f"lora_unet_down_blocks_0_resnets_0_{short}.{part}": value for part, value in parts.items()})
        w.networks.networks_in_memory.clear()
        _load(w, "kind")
        _apply(w)
        found[name] = [bool(torch.allclose(layer.weight.detach() - before[0], weight, atol=1e-4)),
                       bool(torch.allclose(layer.bias.detach() - before[1], torch.zeros(len(layer.bias)) if bias is None else bias, atol=1e-4))]  # fmt: skip
        w.networks.loaded_networks.clear()
        _apply(w)
        found[name] += [same(layer.weight.detach(), before[0]), same(layer.bias.detach(), before[1])]
    return found


@probe
def without_dyn_dims(w: Any) -> Any:
    lora_on_to_q(w)
    w.networks.load_networks(["one"], [1.0], [1.0])
    dim = w.networks.loaded_networks[0].dyn_dim
    error = error_of(lambda: _apply(w))
    w.networks.loaded_networks.clear()
    for layer in layers_of(w):
        w.networks.network_reset_cached_weight(layer)
    return {"dim": dim, "error": error}


@probe
def weights_in_prompts(w: Any) -> Any:
    """Text encoder, UNet, rank; by place and by name."""
    lora_on_to_q(w)
    found = {}
    for text in ("<lora:one>", "<lora:one:0.5>", "<lora:one:0.5:0.25>", "<lora:one:0.5:0.25:1>", "<lora:one:te=0.1:unet=0.2>", "<lora:one:1:dyn=1>", "<lyco:one:0.3>"):
        draw(w, text)
        found[text] = [[net.te_multiplier, net.unet_multiplier, net.dyn_dim] for net in w.networks.loaded_networks]
    return found


@probe
def aliases_and_versions(w: Any) -> Any:
    n = w.networks
    put_lora(w, "file-a", {"x": torch.ones(1)}, {"ss_output_name": "shown"})
    put_lora(w, "file-b", {"x": torch.ones(1)}, {"ss_v2": "True", "ss_output_name": "other"})
    put_lora(w, "file-c", {"x": torch.ones(1)}, {"ss_base_model_version": "sdxl_base_v1-0"})
    put_lora(w, "file-d", {"x": torch.ones(1)})
    plain = {"names": sorted(n.available_networks), "aliases": sorted(n.available_network_aliases), "forbidden": sorted(n.forbidden_network_aliases)}
    versions = {name: [entry.sd_version.name, entry.alias, entry.get_alias()] for name, entry in sorted(n.available_networks.items())}
    put_lora(w, "file-e", {"x": torch.ones(1)}, {"ss_output_name": "shown"})
    return {
        **plain,
        "versions": versions,
        "shared alias": [sorted(n.forbidden_network_aliases), n.available_networks["file-a"].get_alias(), n.available_network_aliases["shown"].name],
    }


@probe
def files_that_change(w: Any) -> Any:
    """A newer file is read again at the next picture, one with the same time is not; with the limit at 0 none stays in memory beyond those in use."""
    path, before, found = lora_on_to_q(w, scale=0.5), to_q(w).weight.detach().clone(), {}

    def drawn() -> float:
        draw(w, "<lora:one:1>")
        return round(float((to_q(w).weight.detach() - before).mean()), 2)

    os.utime(path, (10**9, 10**9))
    found["first"] = drawn()
    kept = list(w.networks.networks_in_memory)
    lora_on_to_q(w, scale=1.0)
    os.utime(path, (10**9, 10**9))
    found["same time"] = drawn()
    os.utime(path, (10**9 + 10, 10**9 + 10))
    found["newer"] = drawn()
    return {**found, "in memory": kept}


@probe
def the_same_network_again(w: Any) -> Any:
    """Names and weights decide whether layers are rewritten: a file read anew under the same name and weight is not applied."""
    path, before = lora_on_to_q(w, scale=0.5), to_q(w).weight.detach().clone()
    _load(w, "one")
    _apply(w)
    lora_on_to_q(w, scale=1.0)
    os.utime(path, (2 * 10**9, 2 * 10**9))
    w.networks.networks_in_memory.clear()
    w.networks.loaded_networks.clear()
    _load(w, "one")
    _apply(w)
    return {"change": round(float((to_q(w).weight.detach() - before).mean()), 2)}


@probe
def patched_classes(w: Any) -> Any:
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
    return {
        kind.__name__: [
            w.networks.originals.__dict__.get(f"{kind.__name__}_forward") is not kind.forward,
            f"{kind.__name__}_load_state_dict" in vars(w.networks.originals),
        ]
        for kind in kinds
    }


@probe
def bundled_embeddings(w: Any) -> Any:
    """Words inside a LoRA file are there as long as it is."""
    layer, width = to_q(w), w.model.cond_stage_model.encode_embedding_init_text(",", 1).shape[1]
    key, db = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", w.sd_hijack.model_hijack.embedding_db
    put_lora(w, "both", {f"{key}.lora_up.weight": torch.ones(layer.out_features, 1), f"{key}.lora_down.weight": torch.ones(1, layer.in_features),
                         "bundle_emb.wordone.string_to_param.*": torch.ones(2, width)})  # fmt: skip
    draw(w, "a wordone <lora:both:1>")
    there = {name: [e.vectors, getattr(e, "loaded", "")] for name, e in db.word_embeddings.items()}
    draw(w, "a wordone")
    return {"with": there, "without": list(db.word_embeddings)}


@probe
def old_way_by_setting(w: Any) -> Any:
    """lora_functional: nothing is written into the weights."""
    before = to_q(w).weight.detach().clone()
    lora_on_to_q(w)
    plain = draw(w, "a ball").images[0]
    written = draw(w, "a ball <lora:one:1>").images[0]
    draw(w, "a ball")
    w.shared.opts.data["lora_functional"] = True
    beside = draw(w, "a ball <lora:one:1>").images[0]
    return {"weights": same(to_q(w).weight.detach(), before), "took part": not same(plain, written) and not same(plain, beside)}
