"""What several probes need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def probe(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Marks a probe that runs as a job, with the host's lock held."""
    function.is_probe, function.alone = True, False
    return function


def alone(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Marks a probe that looks after the lock itself."""
    function.is_probe, function.alone = True, True
    return function


def width_of(w: Any) -> int:
    """Of the text encoder's states."""
    return w.model.cond_stage_model.encode_embedding_init_text(",", 1).shape[1]


def blocks(model: Any) -> list[tuple[nn.Module, str]]:
    """Modules with a switch of the original's checkpointing, and its name."""
    flags = ("checkpoint", "use_checkpoint")
    return [(module, flag) for module in model.model.modules() for flag in flags if isinstance(vars(module).get(flag), bool)]


def without_checkpointing(model: Any) -> None:
    for module, flag in blocks(model):
        setattr(module, flag, False)


def latents(pictures: int = 1, size: int = 8) -> Tensor:
    return torch.randn(pictures, 4, size, size, generator=torch.Generator().manual_seed(1))


def loss_of(model: Any, captions: list[str], cond_grad: bool = False, size: int = 8) -> Tensor:
    """The loss at one timestep, with states that may want a gradient."""
    with torch.no_grad():
        states = model.cond_stage_model(captions)
    x = latents(len(captions), size)
    return model.apply_model(x, torch.full((len(captions),), 500), states.requires_grad_(cond_grad)).float().pow(2).mean()


@contextmanager
def adapters(model: Any, ending: str = "to_q") -> Iterator[list[nn.Parameter]]:
    """A small trainable addition, by hook, on every Linear whose name ends so."""
    made, hooks = [], []
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith(ending):
            down, up = (nn.Parameter(0.1 * torch.ones(size)) for size in ((2, module.in_features), (module.out_features, 2)))
            made += [down, up]
            hooks.append(module.register_forward_hook(lambda m, args, out, down=down, up=up: out + args[0] @ down.T @ up.T))
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def gradients(parameters: list[nn.Parameter]) -> dict[str, Any]:
    """How many got none, and whether there is one that is not 0."""
    missing = sum(p.grad is None for p in parameters)
    return {"missing": missing, "of": len(parameters), "some": any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters)}


def error_of(run: Callable[[], Any]) -> str:
    """The exception's name with the words that matter of what it says, or "" where there is none."""
    try:
        run()
    except Exception as error:  # an answer
        known = ("in-place operation", "does not require grad", "graph interior", "does not require grad and does not have a grad_fn", "slice indices")
        return type(error).__name__ + "".join(f": {words}" for words in known if words in str(error))
    return ""


def draw(w: Any, prompt: str = "a ball", **wishes: Any) -> Any:
    """The host's Processed, of 64 px and 2 steps."""
    return w.processing.process_images(wish(w, prompt, **wishes))


def wish(w: Any, prompt: str = "a ball", **wishes: Any) -> Any:
    wishes = {
        "seed": 7,
        "steps": 2,
        "width": 64,
        "height": 64,
        "sampler_name": "DDIM",
        "cfg_scale": 3.0,
        "do_not_save_samples": True,
        "do_not_save_grid": True,
        **wishes,
    }
    return w.processing.StableDiffusionProcessingTxt2Img(sd_model=w.model, prompt=prompt, **wishes)


def same(first: Any, second: Any) -> bool:
    """Whether two pictures or tensors are the same."""
    if isinstance(first, Tensor):
        return bool(torch.equal(first, second))
    return first.tobytes() == second.tobytes()


def put_lora(w: Any, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A file where the host looks for LoRAs; its list is made anew."""
    from safetensors.torch import save_file

    path = Path(w.shared.cmd_opts.lora_dir) / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(path), metadata=metadata)
    w.networks.list_available_networks()
    return path


def put_embedding(w: Any, name: str, vectors: Tensor) -> Path:
    from safetensors.torch import save_file

    path = Path(w.shared.cmd_opts.embeddings_dir) / f"{name}.safetensors"
    beside = path.with_suffix(".part")  # the host maps the file into memory: written in place it would change what is loaded, or end the process
    save_file({"emb_params": vectors.contiguous()}, str(beside))
    os.replace(beside, path)
    return path


def to_q(w: Any) -> nn.Linear:
    return w.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_q


def lora_on_to_q(w: Any, name: str = "one", scale: float = 0.5) -> Path:
    layer = to_q(w)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    down = torch.linspace(-1, 3, layer.in_features).expand(2, -1)  # not the same everywhere: a norm comes before, whose values add up to 0
    return put_lora(w, name, {f"{key}.lora_up.weight": scale * torch.ones(layer.out_features, 2), f"{key}.lora_down.weight": down})


def layers_of(w: Any) -> list[nn.Module]:
    """What the Lora extension may rewrite."""
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention)
    return [module for module in w.model.network_layer_mapping.values() if isinstance(module, kinds)]
