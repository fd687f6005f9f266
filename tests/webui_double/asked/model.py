"""The model object: what it is made of, its gradients, its noise levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .tools import adapters, alone, blocks, draw, error_of, gradients, latents, loss_of, probe, same, to_q, without_checkpointing


@probe
def classes(w: Any) -> Any:
    m = w.model
    parts = [m, m.model, m.model.diffusion_model, m.first_stage_model, m.cond_stage_model, m.cond_stage_model.wrapped]
    embedding = m.cond_stage_model.wrapped.transformer.text_model.embeddings.token_embedding
    return [type(part).__name__ for part in [*parts, embedding, embedding.wrapped]]


@probe
def keys_of_state_dict(w: Any) -> Any:
    """The exported keys, and what of the file's is missing or new once the host's two wrappers are taken out of the names."""
    keys = {key.replace("cond_stage_model.wrapped.", "cond_stage_model.").replace("token_embedding.wrapped.", "token_embedding.") for key in w.model.state_dict()}
    file = set(w.sd_models.read_state_dict(w.model.sd_checkpoint_info.filename))
    counts = [sum(key.startswith(prefix) for key in keys) for prefix in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")]
    extra = sorted(key for key in keys - file if "." in key)
    return {"counts": counts, "missing": sorted(file - keys), "extra": extra, "wrapped": any(".token_embedding.wrapped.weight" in key for key in w.model.state_dict())}


@probe
def fresh_flags(w: Any) -> Any:
    m = w.model
    trainable = [sorted({p.requires_grad for p in part.parameters()}) for part in (m.model, m.first_stage_model, m.cond_stage_model)]
    names = ("training", "is_sd1", "is_sd2", "is_sdxl", "lowvram", "parameterization", "first_stage_key", "cond_stage_key")
    return {"trainable": trainable, "key": m.model.conditioning_key, "scale": round(float(m.scale_factor), 5), **{name: getattr(m, name) for name in names}}


@probe
def modes_in_a_job(w: Any) -> Any:
    return {"grad": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled(), "inference tensors": any(p.is_inference() for p in w.model.parameters())}


@probe
def precisions(w: Any) -> Any:
    d = w.devices
    names = [str(value) for value in (d.dtype, d.dtype_unet, d.dtype_vae, d.dtype_inference)]
    return {"dtypes": names, "upcast": d.unet_needs_upcast, "autocast": type(d.autocast()).__name__, "device": str(d.device), "shared": str(w.shared.device)}


@probe
def checkpointing_switches(w: Any) -> Any:
    found = blocks(w.model)
    return {"blocks": len(found), "on": sum(getattr(module, flag) for module, flag in found), "names": sorted({type(m).__name__ + "." + flag for m, flag in found}),
            "without _forward": [type(module).__name__ for module, _ in found if not hasattr(module, "_forward")]}  # fmt: skip


@probe
def t1_adapters_get_no_gradient(w: Any) -> Any:
    with adapters(w.model) as made:
        loss = loss_of(w.model, ["a ball"])
        loss.backward()
        return {"loss wants one": loss.requires_grad, **gradients(made)}


@probe
def t1_frozen_unet(w: Any) -> Any:
    w.model.requires_grad_(False)
    with adapters(w.model) as made:
        plain = error_of(lambda: loss_of(w.model, ["a ball"]).backward())
        with_states = error_of(lambda: loss_of(w.model, ["a ball"], cond_grad=True).backward())
        return {"plain": plain, "with states": with_states, **gradients(made)}


@probe
def t1_switched_off(w: Any) -> Any:
    w.model.requires_grad_(False)
    without_checkpointing(w.model)
    with adapters(w.model) as made:
        loss_of(w.model, ["a ball"]).backward()
        return gradients(made)


@probe
def t1_torch_checkpoint_in_its_place(w: Any) -> Any:
    """_forward of an instance may be replaced."""
    from torch.utils.checkpoint import checkpoint

    w.model.requires_grad_(False)
    without_checkpointing(w.model)
    parts = [module for module, _ in blocks(w.model) if hasattr(module, "_forward")]
    for module in parts:
        module._forward = lambda *args, own=module._forward: checkpoint(own, *args, use_reentrant=False)
    try:
        with adapters(w.model) as made:
            loss_of(w.model, ["a ball"]).backward()
            return gradients(made)
    finally:
        for module in parts:
            del module._forward


@probe
def t1_hosts_own_checkpoint(w: Any) -> Any:
    """sd_hijack_checkpoint: with a trainable UNet, and with all of it frozen."""
    found = {}
    without_checkpointing(w.model)
    w.sd_hijack_checkpoint.add()
    try:
        for name, trainable in (("trainable", True), ("frozen", False)):
            w.model.model.requires_grad_(trainable)
            with adapters(w.model) as made:
                error = error_of(lambda: loss_of(w.model, ["a ball"]).backward())
                found[name] = {"error": bool(error), **gradients(made)}
        return found
    finally:
        w.sd_hijack_checkpoint.remove()


@probe
def t1_hypernetworks(w: Any) -> Any:
    found = {}
    sizes = sorted({module.to_k.in_features for module in w.model.model.modules() if hasattr(module, "to_k")})
    for name in ("on", "off"):
        network = w.hypernetwork.Hypernetwork(name="own", enable_sizes=sizes, layer_structure=[1, 2, 1], activation_func="linear", weight_init="Normal")
        network.train()
        w.shared.loaded_hypernetworks = [network]
        if name == "off":
            without_checkpointing(w.model)
        loss_of(w.model, ["a ball"]).backward()
        found[name] = gradients(network.weights())
    w.shared.loaded_hypernetworks = []
    return found


@probe
def t11_gradients_of_the_unet(w: Any) -> Any:
    """A backward pass leaves a gradient on every parameter of the UNet."""
    loss_of(w.model, ["a ball"]).backward()
    parameters = list(w.model.model.diffusion_model.parameters())
    return {"with": sum(p.grad is not None for p in parameters), "of": len(parameters)}


@probe
def t21_one_token_at_64_px(w: Any) -> Any:
    """Layers whose gradient is exactly 0 there: the middle's self-attention over one token."""
    without_checkpointing(w.model)
    found = {}
    for size in (8, 16):
        w.model.zero_grad(set_to_none=True)
        loss_of(w.model, ["a ball"], size=size).backward()
        named = w.model.model.diffusion_model.named_parameters()
        found[str(8 * size)] = [name for name, p in named if "attn" in name and ".to_" in name and name.endswith("weight") and float(p.grad.abs().max()) == 0]
    return found


@probe
def t19_residuals(w: Any) -> Any:
    """Widths and scales at the end of each level, where adapters add."""
    unet, shapes, hooks = w.model.model.diffusion_model, {}, []
    for i in (2, 5, 8, 11):
        hooks.append(unet.input_blocks[i].register_forward_hook(lambda m, args, out, i=i: shapes.__setitem__(i, list(out.shape))))
    with torch.no_grad():
        loss_of(w.model, ["a ball"], size=16)
    for hook in hooks:
        hook.remove()
    first = unet.input_blocks[0][0].weight.shape[0]
    return {str(i): [shape[1] == unet.input_blocks[i][0].out_channels, shape[1] >= first, 16 // shape[2]] for i, shape in shapes.items()}


@probe
def t20_a_layer_of_ones_own(w: Any) -> Any:
    layer = nn.Linear(3, 3)
    layer(torch.ones(1, 3))
    return {"marks": sorted(name for name in vars(layer) if name.startswith("network_"))}


@probe
def t17_latents(w: Any) -> Any:
    m, x = w.model, torch.zeros(1, 3, 64, 64, requires_grad=True)
    posterior = m.encode_first_stage(x)
    latent = m.get_first_stage_encoding(posterior)
    scaled = m.get_first_stage_encoding(posterior.mean)
    return {
        "class": type(posterior).__name__,
        "gradient": posterior.mean.requires_grad,
        "shape": list(latent.shape),
        "has": [hasattr(posterior, n) for n in ("mean", "std", "logvar", "sample", "mode")],
        "mode": same(posterior.mode(), posterior.mean),
        "drawn": not same(latent, scaled),
        "scaled": bool(torch.allclose(scaled, posterior.mean * m.scale_factor)),
        "decoded": list(m.decode_first_stage(latent).shape),
        "decoded gradient": m.decode_first_stage(latent).requires_grad,
        "direct gradient": m.first_stage_model.encode(x).mean.requires_grad,
    }


@probe
def training_step_of_the_original(w: Any) -> Any:
    m = w.model
    with torch.no_grad():
        states = m.cond_stage_model(["a ball", "a long text, " * 30])
    loss, details = m.forward(latents(2), states)
    return {"states": states.shape[1], "loss": list(loss.shape), "details": sorted(details), "wanted": loss.requires_grad}


@probe
def t18_noise_levels(w: Any) -> Any:
    """`alphas_cumprod` is what the last picture wanted; the other buffers and the original stay."""
    m, found = w.model, {}

    def levels() -> Any:
        return [str(m.alphas_cumprod.dtype), same(m.alphas_cumprod, m.alphas_cumprod_original), bool(m.alphas_cumprod[-1] < 1e-6),
                bool(torch.allclose(m.sqrt_alphas_cumprod**2, m.alphas_cumprod_original, atol=1e-6)), str(m.alphas_cumprod_original.dtype)]  # fmt: skip

    found["fresh"] = levels()
    draw(w, override_settings={"use_downcasted_alpha_bar": True})
    found["downcast"] = levels()
    w.shared.opts.data["use_downcasted_alpha_bar"] = False
    w.shared.opts.data["sd_noise_schedule"] = "Zero Terminal SNR"
    draw(w)
    found["zero"] = levels()
    w.shared.opts.data["sd_noise_schedule"] = "Default"
    draw(w)
    found["again"] = levels()
    return {**found, "buffer": "alphas_cumprod" in dict(m.named_buffers()), "original is a buffer": "alphas_cumprod_original" in dict(m.named_buffers())}


@probe
def attention_optimizations(w: Any) -> Any:
    """In their order, the one that is on, and what is there when it is taken off."""
    import ldm.modules.attention

    h, cls = w.sd_hijack, ldm.modules.attention.CrossAttention
    on = h.current_optimizer.name
    chosen = cls.forward
    h.undo_optimizations()
    plain = cls.forward is w.hypernetwork.attention_CrossAttention_forward
    h.apply_optimizations()
    return {
        "known": [optimizer.name for optimizer in h.optimizers],
        "on": on,
        "plain": plain,
        "back": cls.forward is chosen,
        "method": h.model_hijack.optimization_method,
    }


@probe
def optimizations_agree(w: Any) -> Any:
    found = {}
    x, t = latents(), torch.tensor([500])
    with torch.no_grad():
        states = w.model.cond_stage_model(["a ball"])
        w.sd_hijack.undo_optimizations()
        plain = w.model.apply_model(x, t, states)
        for optimizer in w.sd_hijack.optimizers:
            w.sd_hijack.apply_optimizations(optimizer.title())
            found[optimizer.name] = bool(torch.allclose(w.model.apply_model(x, t, states), plain, atol=1e-3))
    w.sd_hijack.apply_optimizations()
    return found


@probe
def hooks_see_the_attention(w: Any) -> Any:
    """to_q, to_k, to_v and to_out are called as modules."""
    seen: list[str] = []
    hooks = [module.register_forward_hook(lambda m, args, out, name=name: seen.append(name))
             for name, module in w.model.model.diffusion_model.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]  # fmt: skip
    with torch.no_grad():
        loss_of(w.model, ["a ball"])
    for hook in hooks:
        hook.remove()
    return {"called": len(seen), "modules": len(hooks)}


@probe
def t15_token_merging(w: Any) -> Any:
    """Applied it changes what the UNet says, after a picture it is off; whatever was on before."""
    m, x, t = w.model, latents(size=16), torch.tensor([500])
    with torch.no_grad():
        states = m.cond_stage_model(["a ball"])
        plain = m.apply_model(x, t, states)
        w.sd_models.apply_token_merging(m, 0.5)
        changed = not torch.allclose(m.apply_model(x, t, states), plain, atol=1e-4)
        applied = m.applied_token_merged_ratio
        draw(w)
        after = m.applied_token_merged_ratio
        back = torch.allclose(m.apply_model(x, t, states), plain, atol=1e-5)
    return {"changed": changed, "applied": applied, "after a picture": after, "back": bool(back)}


@probe
def t15_tiling(w: Any) -> Any:
    """A tiled picture leaves the convolutions circular until the next one."""
    hijack = w.sd_hijack.model_hijack
    plain = [module for module in w.model.modules() if type(module) is nn.Conv2d]
    draw(w, tiling=True)
    on = [hijack.circular_enabled, sum(module.padding_mode == "circular" for module in plain) == len(plain)]
    draw(w)
    off = [hijack.circular_enabled, any(module.padding_mode == "circular" for module in plain)]
    return {"after a tiled one": on, "after the next": off}


@alone
def t12_switch_to_another_config(w: Any) -> Any:
    """A new object; the old one has no weights any more."""
    old = w.model
    info = w.sd_models.get_closet_checkpoint_match("second.safetensors")
    with w.call_queue.queue_lock:
        new = w.sd_models.reload_model_weights(info=info)
    return {"same object": new is old, "current": w.shared.sd_model is new, "old": sorted({p.device.type for p in old.parameters()}),
            "loaded": len(w.sd_models.model_data.loaded_sd_models), "setting": w.shared.opts.sd_model_checkpoint == info.title,
            "switches": sum(getattr(module, flag) for module, flag in blocks(new)) == len(blocks(new))}  # fmt: skip


@alone
def t12_switch_within_one_config(w: Any) -> Any:
    """The same object with other weights: `is` does not tell."""
    old, weight = w.model, to_q(w).weight.detach().clone()
    w.model.model.requires_grad_(False)
    info = w.sd_models.get_closet_checkpoint_match("third.safetensors")
    with w.call_queue.queue_lock:
        new = w.sd_models.reload_model_weights(info=info)
    return {"same object": new is old, "other weights": not same(to_q(w).weight.detach(), weight), "info": new.sd_checkpoint_info is info,
            "device": next(new.parameters()).device.type, "flags stay": not any(p.requires_grad for p in new.model.parameters())}  # fmt: skip


@probe
def t12_forced_reload(w: Any) -> Any:
    """Brings the file's weights back into the same object, and nothing else."""
    old, before = w.model, to_q(w).weight.detach().clone()
    w.model.model.requires_grad_(False)
    without_checkpointing(w.model)
    with torch.no_grad():
        to_q(w).weight.add_(1)
    same_parameter = to_q(w).weight
    new = w.sd_models.reload_model_weights(forced_reload=True)
    return {"same object": new is old, "weights": same(to_q(w).weight.detach(), before), "same parameter": to_q(w).weight is same_parameter,
            "switches": sum(getattr(module, flag) for module, flag in blocks(new)), "trainable": any(p.requires_grad for p in new.model.parameters())}  # fmt: skip


@probe
def checkpoint_names(w: Any) -> Any:
    info = w.model.sd_checkpoint_info
    found = w.sd_models.get_closet_checkpoint_match
    by = [info.title, info.name, info.model_name, info.shorthash, info.sha256, info.name_for_extra, "first"]
    return {"name": info.name, "model_name": info.model_name, "title": info.title == f"{info.name} [{info.shorthash}]", "short": info.shorthash == info.sha256[:10],
            "found": [found(name) is info for name in by], "unknown": found("nothing like it") is None, "hash": w.model.sd_model_hash == info.shorthash,
            "file": w.model.sd_model_checkpoint == info.filename, "listed": info.title in w.sd_models.checkpoints_list,
            "alias": w.sd_models.checkpoint_aliases.get(info.title) is info}  # fmt: skip


@probe
def undone_and_redone_hijack(w: Any) -> Any:
    m, hijack = w.model, w.sd_hijack.model_hijack
    hijack.undo_hijack(m)
    bare = [type(m.cond_stage_model).__name__, type(m.cond_stage_model.transformer.text_model.embeddings.token_embedding).__name__]
    hijack.hijack(m)
    return {"bare": bare, "again": type(m.cond_stage_model).__name__, "mapping stays": hasattr(m, "network_layer_mapping")}


@probe
def another_unet(w: Any) -> Any:
    """While one is set, the model's own is not called."""
    calls = []

    class Other(w.sd_unet.SdUnet):
        def forward(self, x: Any, timesteps: Any, context: Any, *args: Any, **more: Any) -> Any:
            calls.append(list(x.shape))
            return torch.zeros_like(x)

    class Option(w.sd_unet.SdUnetOption):
        model_name, label = "none of them", "other"

        def create_unet(self) -> Any:
            return Other()

    w.sd_unet.unet_options.append(Option())
    try:
        before = w.sd_unet.current_unet is None
        w.sd_unet.apply_unet("other")
        set_, out = w.sd_unet.current_unet_option.label, loss_of(w.model, ["a ball"])
        w.sd_unet.apply_unet("None")
        return {"before": before, "set": set_, "calls": len(calls), "zero": float(out) == 0, "after": w.sd_unet.current_unet is None}
    finally:
        w.sd_unet.apply_unet("None")
        w.sd_unet.unet_options.clear()
