"""State of somebody else's model that is changed for a while and put back: each kind is a context manager of its own."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_MISSING = object()


@contextmanager
def attributes(target: Any, **values: Any) -> Iterator[None]:
    """Sets attributes of one object; those that were not its own are gone afterwards."""
    own = {name: _own(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in own.items():
            if value is _MISSING:
                delattr(target, name)
            else:
                setattr(target, name, value)


def _own(target: Any, name: str) -> Any:
    """The object's own attribute, also where torch keeps it: in a module's table of buffers."""
    return vars(target).get(name, vars(target).get("_buffers", {}).get(name, _MISSING))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient and every module is in eval mode; flags and gradients are then as they were, parameter by parameter."""
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    model.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        for p, wanted, grad in flags:
            p.requires_grad_(wanted)
            p.grad = grad
        for module, mode in modes:
            module.training = mode


@contextmanager
def without_members(root: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Modules of these names are out of the tree, wherever they hang: the host may leave its hypernetworks in the attentions that they last
    changed, where what looks for layers to train would meet them."""
    taken = [(module, name, module._modules.pop(name)) for module in list(root.modules()) for name in names if name in module._modules]
    try:
        yield
    finally:
        for module, name, member in taken:
            module._modules.setdefault(name, member)


@contextmanager
def random_state() -> Iterator[None]:
    """The random numbers of torch (all devices) and Python go on afterwards where they were."""
    cpu, python = torch.get_rng_state(), random.getstate()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)


@contextmanager
def checkpointing(modules: Iterable[nn.Module], on: bool) -> Iterator[None]:
    """The gradient checkpointing of ldm's blocks off, and where `on` torch's in its place.

    ldm's own function differentiates by a block's inputs and its own parameters alone, so that what hooks add gets no gradient, without a word
    (ldm/modules/diffusionmodules/util.py, CheckpointFunction). torch's non-reentrant one takes all that is used.
    """
    with ExitStack() as stack:
        for module in modules:
            for flag in ("checkpoint", "use_checkpoint"):
                if isinstance(vars(module).get(flag), bool):
                    stack.enter_context(attributes(module, **{flag: False}))
                    if on and hasattr(module, "_forward"):
                        stack.enter_context(attributes(module, _forward=_checkpointed(module._forward)))
        yield


def _checkpointed(forward: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    def run(*args: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)

    return run
