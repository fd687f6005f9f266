"""The model that tests share: a test that leaves anything in it gets the next one a new model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

TRACES = {
    "a value": lambda unet: unet.out[2].weight.data.add_(1),
    "a parameter": lambda unet: setattr(unet.out[2], "weight", nn.Parameter(unet.out[2].weight.detach().clone(), False)),
    "a flag": lambda unet: unet.out[2].weight.requires_grad_(True),
    "a precision": lambda unet: unet.to(torch.bfloat16),
    "a mode": lambda unet: unet.train(),
    "a setting": lambda unet: setattr(unet, "checkpointing", True),
    "a hook": lambda unet: unet.out[2].register_forward_hook(lambda *_: None),
    "another forward": lambda unet: setattr(unet.out[2], "forward", lambda x: x),
    "a module": lambda unet: unet.add_module("more", nn.Identity()),
}


def test_what_nobody_touched_is_shared(untouched):
    assert untouched.parts()[0] is untouched.parts()[0]


@pytest.mark.parametrize("trace", TRACES)
def test_what_a_test_left_something_in_is_made_anew(untouched, trace):
    before = untouched.parts()[0]
    TRACES[trace](before)
    after = untouched.parts()[0]
    assert after is not before and after is untouched.parts()[0]


def test_every_test_draws_the_same_random_numbers(untouched):
    untouched.parts()
    first = torch.rand(3)
    untouched.parts()
    assert torch.equal(torch.rand(3), first)
