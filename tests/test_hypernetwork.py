"""Hypernetworks: the WebUI's files key for key, its structures and initialisations, safe reading, what attentions get, training and going on.

Tables of keys, deviations and defaults were read off the WebUI 1.9.4 (feee37d7) by making and loading hypernetworks there.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections import OrderedDict
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_methods import MADE, make, predict, row_of

from lib_tuner.events import Finished, Saved, Started, Stepped, Validated, Warned
from lib_tuner.foreign import read_settings
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.methods.hypernetwork import HypernetworkConfig, Network, WideDraws, _drawn, structure_of
from lib_tuner.methods.hypernetwork_file import ACTIVATIONS, HypernetworkFile, Structure, read_hypernetwork, write_hypernetwork
from lib_tuner.runs import use_text
from lib_tuner.sd.pickles import UnsafePickle
from lib_tuner.train import train

WIDTHS = [32, 48, 64, 96]  # of the small model: 48 is its text's


def hypernetwork(**own: Any) -> Any:
    return make({"method": "hypernetwork", **{f"hypernetwork.{name}": value for name, value in own.items()}})


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def file_of(structure: Structure, *widths: int, seed: int = 0) -> HypernetworkFile:
    g = torch.Generator().manual_seed(seed)
    pairs = {w: tuple({k: torch.randn(s, generator=g) * 0.2 for k, s in structure.shapes(w).items()} for _ in "kv") for w in widths}
    return HypernetworkFile(structure, pairs, "inside", 7, "cd" * 32, "other")


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own, weights",
    [
        ({}, {0: (16, 8), 1: (8, 16)}),
        ({"activation": "relu"}, {0: (16, 8), 2: (8, 16)}),
        ({"activation": "prelu"}, {0: (16, 8), 1: (1,), 2: (8, 16)}),
        ({"activation": "relu", "activate_output": True, "layer_norm": True}, {0: (16, 8), 2: (16,), 3: (8, 16), 5: (8,)}),
        ({"activation": "linear", "activate_output": True}, {0: (16, 8), 1: (8, 16)}),
        ({"structure": "1, 2, 2, 1", "activation": "swish", "dropout": "0, 0.05, 0.15, 0"}, {0: (16, 8), 3: (16, 16), 6: (8, 16)}),
        ({"structure": "1, 1.5, 1", "layer_norm": True, "dropout": "0, 0.1, 0"}, {0: (12, 8), 1: (12,), 3: (8, 12), 4: (8,)}),
        ({"structure": "1, 2, 2, 2, 1", "dropout": "0, 0.3, 0.3, 0, 0"}, {0: (16, 8), 2: (16, 16), 4: (16, 16), 5: (8, 16)}),
    ],
)
def test_weights_are_numbered_as_the_webui_numbers_them(own, weights):
    shapes = structure_of(HypernetworkConfig(**own)).shapes(8)
    assert {int(key.split(".")[1]): shape for key, shape in shapes.items() if key.endswith(".weight")} == weights
    biases = {int(key.split(".")[1]): shape for key, shape in shapes.items() if key.endswith(".bias")}
    assert biases == {number: shape[:1] for number, shape in weights.items() if shape != (1,)}


def test_a_saved_file_has_what_the_webui_saves(sd, tmp_path):
    method = hypernetwork(structure="1, 2, 2, 1", activation="swish", dropout="0, 0.1, 0.2, 0", init="KaimingNormal")
    with method.attached(sd):
        path, = method.export(tmp_path / "thing", {}, MADE)
    content = torch.load(path, weights_only=True)
    assert path.name == "thing.pt" and path.read_bytes()[:2] != b"PK"  # 1.9.4 refuses what new torch puts into the zip
    assert [key for key in content if isinstance(key, int)] == WIDTHS
    for key in WIDTHS:
        assert isinstance(content[key], tuple) and all(value.dtype == torch.float32 for part in content[key] for value in part.values())
    assert {key: value for key, value in content.items() if isinstance(key, str) and key != "tuner_settings"} == {
        "step": 2, "name": "thing", "layer_structure": [1, 2, 2, 1], "activation_func": "swish", "is_layer_norm": False, "weight_initialization": "KaimingNormal",
        "sd_checkpoint": "ab" * 5, "sd_checkpoint_name": "small", "activate_output": False, "use_dropout": True, "dropout_structure": [0, 0.1, 0.2, 0],
        "last_layer_dropout": True, "optional_info": None,
    }  # fmt: skip
    found = read_settings(path, METHODS)
    assert found.values["method"] == "hypernetwork" and found.values["hypernetwork.dropout"] == "0, 0.1, 0.2, 0"


def test_a_file_is_read_as_it_was_written(tmp_path):
    file = file_of(Structure((1, 1.5, 1), "tanh", True, True, (0, 0.25, 0), "XavierNormal"), 8, 12)
    again = read_hypernetwork(write_hypernetwork(tmp_path / "a.pt", file))
    assert (again.structure, again.name, again.step, again.model_hash, again.model_name) == (file.structure, "inside", 7, "cd" * 5, "other")
    for width, pair in file.pairs.items():
        assert all(torch.equal(again.pairs[width][i][key], value) for i in (0, 1) for key, value in pair[i].items())


@pytest.mark.parametrize(
    "said, structure, keys",
    [
        ({}, Structure(activate_output=True), "0 1"),
        ({"activation_func": "relu"}, Structure(activation="relu", activate_output=True), "0 2"),
        ({"activation_func": None, "use_dropout": True}, Structure(activate_output=True), "0 1"),
        ({"use_dropout": True, "last_layer_dropout": True}, Structure(dropout=(0, 0.3, 0), activate_output=True), "0 2"),
        ({"use_dropout": True, "layer_structure": [1, 2, 2, 1]}, Structure((1, 2, 2, 1), dropout=(0, 0.3, 0, 0), activate_output=True), "0 2 3"),
        ({"use_dropout": True, "dropout_structure": [0, 0, 0]}, Structure(activate_output=True), "0 1"),
        ({"dropout_structure": [0, 0.2, 0], "activate_output": False}, Structure(dropout=(0, 0.2, 0)), "0 2"),
    ],
)
def test_what_an_early_file_does_not_say_is_as_the_webui_takes_it(tmp_path, said, structure, keys):
    assert " ".join(sorted({key.split(".")[1] for key in structure.shapes(8)})) == keys
    pair = file_of(structure, 8).pairs[8]
    found = read_hypernetwork(saved(tmp_path / "early.pt", {8: pair, "step": 5, **said}))
    assert found.structure == structure and (found.name, found.step) == ("early", 5)


def test_the_first_files_names_are_read_and_what_they_hold_is_used(sd, tmp_path):
    g = torch.Generator().manual_seed(1)
    pair = tuple(OrderedDict((f"linear{i}.{kind}", torch.randn(shape, generator=g) * 0.1) for i, kind, shape in (
        (1, "weight", (96, 48)), (1, "bias", (96,)), (2, "weight", (48, 96)), (2, "bias", (48,)))) for _ in "kv")  # fmt: skip
    path = saved(tmp_path / "first.pt", {48: pair, "step": 3000, "name": "first"})
    method = hypernetwork(start=str(path))
    assert not method.identity_at_start
    with method.attached(sd):
        trained, again = predict(sd), torch.load(method.export(tmp_path / "more", {}, MADE)[0], weights_only=True)
    for _, module in sd.unet.named_modules():
        if hasattr(module, "to_k") and module.to_k.in_features == 48:
            for projection, w in zip((module.to_k, module.to_v), pair):
                def f(x, w=w, weight=projection.weight):
                    hidden = x @ w["linear1.weight"].T + w["linear1.bias"]
                    return (x + hidden @ w["linear2.weight"].T + w["linear2.bias"]) @ weight.T

                projection.forward = f
    assert torch.allclose(predict(sd), trained, rtol=1e-4, atol=1e-5)
    assert again["step"] == 3002 and [key for key in again if isinstance(key, int)] == [48]
    assert torch.equal(again[48][1]["linear.1.weight"], pair[1]["linear2.weight"])


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(sd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "evil.pt", {48: file_of(Structure(), 48).pairs[48], "optional_info": Evil()})
    with pytest.raises(UnsafePickle, match=r"^evil.pt holds code besides weights \(loading it would call (posix|nt).system\); nothing was run"):
        with hypernetwork(start=str(path)).attached(sd):
            pass
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UnsafePickle):
        read_hypernetwork(tmp_path / "plain.pt")
    assert not (tmp_path / "ran").exists()


def _changed(change: Any) -> dict[Any, Any]:
    content: dict[Any, Any] = {48: tuple(dict(weights) for weights in file_of(Structure(), 48).pairs[48])}
    change(content)
    return content


@pytest.mark.parametrize(
    "content, sentence",
    [
        ({"string_to_param": {"*": torch.zeros(2, 768)}}, "a.pt is a textual inversion embedding, not a hypernetwork; choose a hypernetwork's .pt file."),
        (_changed(lambda c: c.update(activation_func="softmax")), "activation: 'softmax' cannot be trained; there are linear, relu, "),
        (_changed(lambda c: c.update(layer_structure=[1, 3, 1])), "at width 48 its weights do not fit the structure 1, 3, 1 that it names: linear.0.bias"),
        (_changed(lambda c: c.update(layer_structure=[2, 1])), "structure: 2, 1 is not a row of widths that begins and ends with 1"),
        (_changed(lambda c: c.update(layer_structure="x")), "could not convert"),
        (_changed(lambda c: c[48][1].pop("linear.0.bias")), "do not fit the structure 1, 2, 1 that it names: linear.0.bias"),
        (_changed(lambda c: c[48][0]["linear.1.bias"].fill_(float("nan"))), "it holds NaN or infinite numbers, so its training failed"),
        (_changed(lambda c: c.update({64: c[48][:1]})), "width 64 has no pair of networks"),
    ],
)
def test_a_file_that_is_none_or_is_damaged_is_refused_with_the_reason(tmp_path, content, sentence):
    with pytest.raises(ValueError) as caught:
        read_hypernetwork(saved(tmp_path / "a.pt", content))
    assert sentence in str(caught.value) and str(caught.value).startswith("a.pt is ")


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own, sentence",
    [
        ({"structure": "1, 2"}, "structure: 1, 2 is not a row of widths that begins and ends with 1"),
        ({"structure": ""}, "structure:  is not a row"),
        ({"structure": "1; 2; 1"}, "structure: '1; 2; 1' is not numbers separated by commas"),
        ({"structure": "1, -2, 1"}, "structure: 1, -2, 1 is not a row"),
        ({"dropout": "0, 0.1"}, "dropout: 0, 0.1 does not fit the structure 1, 2, 1"),
        ({"dropout": "0.1, 0, 0"}, "dropout: 0.1, 0, 0 does not fit"),
        ({"dropout": "0, 1, 0"}, "dropout: 0, 1, 0 does not fit"),
        ({"sizes": "768 320"}, "sizes: '768 320' is not widths"),
        ({"activation": "sigmoid", "activate_output": True}, "zero_start: sigmoid of 0 is not 0 or has no slope"),
        ({"activation": "relu", "activate_output": True}, "zero_start: relu of 0 is not 0 or has no slope"),
        ({"activation": "softmax"}, "is not one of linear, relu"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason(own, sentence):
    with pytest.raises(ValueError) as caught:
        hypernetwork(**own)
    assert sentence in str(caught.value)


def test_what_cannot_start_at_zero_may_start_elsewhere():
    for own in ({"activation": "sigmoid"}, {"activate_output": True, "activation": "sigmoid", "layer_norm": True}, {"activate_output": True, "activation": "tanh"},
                {"activate_output": True, "activation": "relu", "zero_start": False}):  # fmt: skip
        assert hypernetwork(**own).settings


def test_sizes_are_those_of_the_model(sd, tmp_path):
    with (method := hypernetwork(sizes="48, 96")).attached(sd):
        assert list(method.pairs) == [48, 96]
    with pytest.raises(ValueError, match=r"^hypernetwork.sizes: no attention of this model has a context of width 768; it has 32, 48, 64, 96\.$"):
        hypernetwork(sizes="48, 768").attach(sd)
    with pytest.raises(ValueError, match=r"^hypernetwork.structure: 0.02 times a width of 32 leaves nothing that could learn; write a larger number\.$"):
        hypernetwork(structure="1, 0.02, 1").attach(sd)
    path = write_hypernetwork(tmp_path / "big.pt", file_of(Structure(), 768, 320))
    with pytest.raises(ValueError, match=r"^hypernetwork.start: big.pt is for contexts of width 320, 768, but this model has 32, 48, 64, 96; it was made for another model\.$"):
        hypernetwork(start=str(path)).attach(sd)
    mixed = write_hypernetwork(tmp_path / "mixed.pt", file_of(Structure(), 48, 1024))  # 1024 is Stable Diffusion 2's, which the WebUI's page offers too
    with (method := hypernetwork(start=str(mixed))).attached(sd):
        assert list(method.pairs) == [48]


# ---- the networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_starts_at_zero_and_learns_from_there(sd, activation):
    before, method = predict(sd), hypernetwork(activation=activation, sizes="48", init="KaimingNormal")  # Normal's numbers stay within the shrinking ones' threshold
    with method.attached(sd) as groups:
        assert torch.equal(predict(sd), before)
        method.begin(SimpleNamespace(indices=(0,)))
        loss = (predict(sd) ** 2).mean()
        last = method.pairs[48][1].linear[-1].weight
        assert torch.autograd.grad(loss, [last])[0].abs().sum() > 0 and len(groups) == 1
        last.data += 0.1
        assert not torch.equal(predict(sd), before)


@pytest.mark.parametrize(
    "init, first, last",  # deviations of Linear(320, 640) and Linear(640, 320) in the WebUI
    [("Normal", 0.01, 0.01), ("XavierUniform", 0.0456, 0.0456), ("XavierNormal", 0.0456, 0.0456), ("KaimingUniform", 0.0791, 0.0558), ("KaimingNormal", 0.0791, 0.0558)],
)
def test_weights_are_drawn_as_the_webui_draws_them(init, first, last):
    network = Network(320, Structure(layer_norm=True, init=init), WideDraws(0))
    network.draw(Structure(init=init), torch.Generator().manual_seed(0), zero=False)
    weights = network.state_dict()
    assert [round(float(weights[f"linear.{i}.weight"].std()), 4) for i in (0, 2)] == pytest.approx([first, last], rel=0.02)
    assert [float(weights[f"linear.{i}.weight"].std()) for i in (1, 3)] == pytest.approx([0.01] * 2, rel=0.15)
    assert not any(value.any() for key, value in weights.items() if key.endswith(".bias"))
    if init.endswith("Uniform"):
        assert float(_drawn(init, (640, 320), torch.Generator()).abs().max()) == pytest.approx(first * 3**0.5, rel=0.01)


def test_every_attention_gets_the_pair_of_its_width_for_keys_and_for_values(sd):
    method = hypernetwork(structure="1, 1", zero_start=False, init="XavierNormal")
    seen: dict[str, torch.Tensor] = {}
    blocks = {path: module for path, module in sd.unet.named_modules() if hasattr(module, "to_k")}
    with method.attached(sd):
        for path, module in blocks.items():
            for part in ("to_k", "to_v"):  # hooks run in the order of registration: this one sees what ours has made
                getattr(module, part).register_forward_pre_hook(lambda m, args, key=(path, part): seen.__setitem__(key, args[0]))
        contexts = {path: module.register_forward_pre_hook(lambda m, args, path=path: seen.__setitem__(path, args[1])) for path, module in blocks.items()}
        predict(sd)
        assert len(contexts) == 32 and all(module.to_k.in_features in method.pairs for module in blocks.values())
        for path, module in blocks.items():
            x, pair = seen[path], method.pairs[module.to_k.in_features]
            for i, part in enumerate(("to_k", "to_v")):
                linear = pair[i].linear[0]
                assert torch.allclose(seen[path, part], x + x @ linear.weight.T + linear.bias, atol=1e-5)


def test_dropout_is_each_samples_own_and_off_in_pictures(sd):
    method = hypernetwork(dropout="0, 0.5, 0", activation="rrelu", zero_start=False, init="XavierNormal")
    with method.attached(sd):
        method.train()
        network, x = method.pairs[48][0], torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))

        def at(indices: tuple[int, ...], place: str, x: torch.Tensor = x) -> torch.Tensor:
            method.begin(SimpleNamespace(indices=indices))
            return network(x, place)

        both = at((3, 8), "a")
        assert torch.equal(both, at((3, 8), "a")) and not torch.equal(both, at((3, 9), "a")) and not torch.equal(both, at((3, 8), "b"))
        assert torch.allclose(at((8,), "a", x[1:]), both[1:], atol=1e-6)  # whatever else is in the batch
        kept = network._random(network.linear[2], torch.ones(2, 400, 96), "c")
        assert set(kept.unique().tolist()) == {0.0, 2.0} and abs(float(kept.mean()) - 1) < 0.02
        slopes = -network._random(network.linear[1], -torch.ones(2, 400, 96), "d")
        assert 1 / 8 <= float(slopes.min()) < float(slopes.max()) <= 1 / 3
        method.train(False)
        expected = row_of({"layer_structure": [1, 2, 1], "activation_func": "linear", "is_layer_norm": False, "dropout_structure": [0, 0, 0], "activate_output": False},
                          48, {f"linear.{int(i > 0)}.{kind}": network.state_dict()[f"linear.{i}.{kind}"] for i in (0, 3) for kind in ("weight", "bias")})  # fmt: skip
        hidden = torch.nn.functional.leaky_relu(expected[0](x), (1 / 8 + 1 / 3) / 2)  # what RReLU is in eval mode
        assert torch.allclose(network(x, "a"), expected[1](hidden), atol=1e-5)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def values(small_run: dict) -> dict[str, Any]:
    kept = {key: value for key, value in small_run.items() if not key.startswith("lora.")}
    return {**kept, "method": "hypernetwork", "steps": 4, "save_every": 2, "hypernetwork.dropout": "0, 0.3, 0", "hypernetwork.activation": "relu", "optim.lr": "1e-3"}


def run(values: dict[str, Any], steps: int = 99) -> list[Any]:
    cfg, done = settings(values), [0]
    with closing(train(cfg, METHODS[cfg.method](cfg), Standalone(cfg), stop=lambda: done[0] >= steps)) as going:
        events = []
        for event in going:
            events.append(event)
            done[0] += isinstance(event, Stepped)
        return events


def last(events: list[Any], kind: type) -> Any:
    return [event for event in events if isinstance(event, kind)][-1]


def test_a_resumed_run_is_the_unbroken_one_with_dropout_too(values):
    whole = run({**values, "name": "whole"})
    first = run(values, steps=2)
    rest = run({**values, "resume": str(last(first, Started).folder)})
    assert (last(first, Finished).step, last(rest, Started).start) == (2, 2)
    contents = [torch.load(last(events, Saved).paths[0], weights_only=True) for events in (whole, rest)]
    assert all(torch.equal(contents[0][w][i][key], value) for w in WIDTHS for i in (0, 1) for key, value in contents[1][w][i].items())
    assert last(whole, Saved).report == "whole.pt: 8 of 8 parts are taken by the host"


def test_the_optimizer_beside_a_file_is_the_one_that_the_webui_goes_on_with(values):
    """It makes an optimizer of torch by that name over all weights in the file's order, and loads the state where the file's hash is the saved one."""
    path = last(run({**values, "save_optimizer": True, "optim.weight_decay": 0.25}), Saved).paths[0]
    content, beside = (torch.load(p, weights_only=True) for p in (path, path.with_name("thing.pt.optim")))
    assert beside.keys() == {"optimizer_name", "hash", "optimizer_state_dict"}
    assert beside["hash"] == hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    weights = [torch.nn.Parameter(value) for width in WIDTHS for part in content[width] for value in part.values()]
    optimizer = getattr(torch.optim, beside["optimizer_name"])(weights, lr=1.0)
    optimizer.load_state_dict(beside["optimizer_state_dict"])
    assert optimizer.param_groups[0]["weight_decay"] == 0.25
    assert all(optimizer.state[w]["exp_avg"].shape == w.shape and float(optimizer.state[w]["step"]) == 4 for w in weights)
    events = run({**values, "steps": 1, "name": "lion", "optim.name": "lion", "save_optimizer": True})
    lion = last(events, Saved).paths[0]
    assert "The WebUI cannot go on with lion" in last(events, Warned).text
    assert lion.is_file() and not lion.with_name("lion.pt.optim").exists()  # nothing that torch.optim has


def test_it_learns_on_the_embedded_model(values, data_folder):
    """On pictures of the same kind that it was not shown."""
    held = data_folder.parent / "held"
    held.mkdir()
    for path in data_folder.glob("[01].*"):
        path.rename(held / path.name)
    chosen = {**values, "checkpoint": "", "steps": 20, "save_every": 0, "optim.lr": "5e-3", "hypernetwork.dropout": "", "validate_every": 20}
    losses = [event.loss for event in run({**chosen, "data.validation_folder": str(held)}) if isinstance(event, Validated)]
    assert len(losses) == 2 and losses[1] < 0.97 * losses[0]


def test_a_run_says_how_its_file_is_used_and_how_much_memory_it_takes(values):
    record = SimpleNamespace(names={}, method="hypernetwork", words="zwx cat")
    assert use_text(record, Path("thing.pt")) == "<hypernet:thing:1> zwx cat"
    sd15 = {f"{i}.to_k.weight": (320, width) for i, width in enumerate((768, 320, 640, 1280, 768))}
    assert hypernetwork().own_parameters(sd15) == 21_939_840  # parameters of [1, 2, 1] at SD1.5's four sizes: peers.md, 2.4
    chosen = {key: value for key, value in values.items() if not key.startswith("hypernetwork.")}
    plain, ours = (Standalone(settings({**chosen, "method": method})).forecast().need for method in ("textual_inversion", "hypernetwork"))
    assert ours - plain == pytest.approx(20 * sum(2 * (4 * width**2 + 3 * width) for width in WIDTHS))
