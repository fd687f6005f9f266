"""The families of adapters: their changes are LyCORIS's, their files go on where they stopped, and what no host can draw is refused."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib_tuner.methods import METHODS, settings
from lib_tuner.methods.base import LayerMethod, exactly
from lib_tuner.methods.blocks import block_rates
from lib_tuner.methods.lokr import factorization
from lib_tuner.methods.lora_file import read_lora, write_lora
from lib_tuner.methods.metadata import Made
from lib_tuner.sd.names import block_name

MADE = Made(step=1, epoch=0, started=0.0, finished=1.0)
FAMILIES = {
    "lora": {}, "tucker": {"method": "locon", "tucker": True}, "loha": {}, "lokr": {}, "lokr whole": {"method": "lokr", "full_matrix": True},
    "lokr low": {"method": "lokr", "decompose_both": True, "rank": 2}, "lokr by 8": {"method": "lokr", "factor": 8, "rank": 2},
}  # fmt: skip
MODULES = {"linear": lambda: nn.Linear(24, 40), "conv": lambda: nn.Conv2d(24, 40, 3, padding=1), "stride": lambda: nn.Conv2d(24, 40, 3, stride=2, padding=1), "one": lambda: nn.Conv2d(24, 40, 1)}


def method_of(name: str, **own) -> LayerMethod:
    kind = own.pop("method", name)
    given = {key if "." in key else f"{kind}.{key}": value for key, value in own.items()}
    return METHODS[kind](settings({"data.folder": "x", "method": kind, **given}))


def layer_of(name: str, module: nn.Module, rank: int = 4, alpha: float = 2.0):
    """A layer with no factor at 0."""
    own = {"rank": rank, **FAMILIES[name]}
    method = method_of(name, **own)
    layer = method.make(module.requires_grad_(False), own["rank"], alpha, torch.Generator().manual_seed(1))
    for p in layer.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    return layer


def lycoris_of(layer, module: nn.Module) -> torch.Tensor:
    """ΔW by LyCORIS's own functions, from the parts of the file."""
    functional = pytest.importorskip("lycoris.functional")
    t = layer.tensors()
    alpha = float(t["alpha"])
    if "lora_up.weight" in t:
        return functional.locon.diff_weight(t["lora_down.weight"], t["lora_up.weight"], t.get("lora_mid.weight"), gamma=alpha / len(t["lora_down.weight"]))
    if "hada_w1_a" in t:
        return functional.loha.diff_weight(t["hada_w1_b"], t["hada_w1_a"], t["hada_w2_b"], t["hada_w2_a"], None, None, gamma=alpha / len(t["hada_w1_b"]))
    parts = [t.get(f"lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")]
    return functional.lokr.diff_weight(*parts, None, gamma=alpha if parts[1] is not None or parts[4] is not None else 1.0)  # it divides by the rank itself


def test_a_device_that_knows_no_autocast_has_none_to_switch_off():
    """As Apple's to older torch: `meta` is such a one to all."""
    with exactly(torch.device("meta")):
        pass
    with torch.autocast("cpu", torch.bfloat16), exactly(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_a_start_for_another_width_is_refused_by_name(sd, tmp_path, kind):
    place, wide = ("unet", "middle_block.1.proj_in"), nn.Conv2d(960, 960, 1)
    file = write_lora(tmp_path / "wide.safetensors", {place: layer_of(kind, wide).tensors()}, {})
    with pytest.raises(ValueError, match=r"wide.safetensors does not fit this model: its middle_block.1.proj_in is for a layer of 960x960"), method_of(kind, start=str(file)).attached(sd):
        pass


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_change_is_lycoris_s_and_the_output_the_change_s(name, kind):
    module = MODULES[kind]()
    layer, x = layer_of(name, module), torch.randn(2, 24, 6, 5) if kind != "linear" else torch.randn(2, 7, 24)
    delta = layer.delta_weight()
    torch.testing.assert_close(lycoris_of(layer, module).reshape(delta.shape), delta, rtol=1e-4, atol=1e-5)
    changed = MODULES[kind]()
    changed.load_state_dict({"weight": module.weight + delta.detach(), "bias": module.bias})
    torch.testing.assert_close(module(x) + layer.effect(module, x), changed(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_the_change(name, kind):
    """Of what is written out for memory or speed, beside autograd through the whole weight."""
    module = MODULES[kind]().double()
    layer = layer_of(name, module).double()
    x = (torch.randn(2, 24, 6, 5) if kind != "linear" else torch.randn(2, 7, 24)).double().requires_grad_()
    params = list(layer.parameters())
    found = torch.autograd.grad(layer(x).sin().sum(), [x, *params])
    expected = torch.autograd.grad(layer.apply_weight(x, layer.delta_weight()).sin().sum(), [x, *params])
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_loha_keeps_nothing_as_large_as_a_weight():
    kept = []
    layer = layer_of("loha", nn.Linear(24, 40))
    x = torch.randn(2, 3, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        y = layer(x)
    y.sum().backward()
    assert kept and max(kept) < 24 * 40 and layer.w2_a.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["loha", "lokr"])
def test_under_autocast_factors_stay_in_fp32(name):
    layer, x = layer_of(name, nn.Linear(24, 40)), torch.randn(2, 3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and all(p.grad.dtype == torch.float32 for p in layer.parameters())
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.1)


@pytest.mark.parametrize("size, factor", [(320, -1), (320, 8), (768, 6), (1280, 16), (128, 4), (77, 4), (10240, 8), (97, -1)])
def test_factors_of_a_size_are_lycoris_s(size, factor):
    lycoris = pytest.importorskip("lycoris.functional")
    assert factorization(size, factor) == lycoris.factorization(size, factor)


# ---- which modules ---------------------------------------------------------------------------------------------------


def test_locon_takes_all_278_and_with_the_outer_layers_282(sd):
    counts = []
    for outer in (False, True):
        method = method_of("locon", rank=2, outer=outer)
        with method.attached(sd):
            counts.append(len(method.layers))
            new = {path for _, path in method.layers}
    assert counts == [278, 282] and {"input_blocks.0.0", "out.2", "time_embed.0", "time_embed.2"} <= new


# ---- DoRA ------------------------------------------------------------------------------------------------------------


def test_lengths_are_learned_apart_from_directions(sd):
    """With nothing but lengths changed, every column of the weight is scaled."""
    method = method_of("lora", rank=2, alpha=2, dora=True, blocks="M00")
    with method.attached(sd):
        (target, layer), *_ = method.layers.items()
        module = sd.unet.get_submodule(target[1])
        assert layer.magnitude.shape == (1, module.weight.shape[1], *module.weight.shape[2:])
        layer.magnitude.data *= 1.5
        torch.testing.assert_close(layer.change(module.weight), 0.5 * module.weight, rtol=1e-4, atol=1e-6)
        trained = {id(p) for group in method.groups() for p in group["params"]}
        assert id(layer.magnitude) in trained


@pytest.mark.parametrize("own", [{"rank": 4, "alpha": 2}, {"alpha": 16, "conv_rank": 4}, {"alpha": 16, "block_ranks": "M00=4"}, {"alpha": 16, "rank_stabilized": True}])
def test_a_dora_that_the_webui_draws_wrongly_is_refused(own):
    with pytest.raises(ValueError, match="dora: "):
        method_of("lora", dora=True, **own)


# ---- rsLoRA ----------------------------------------------------------------------------------------------------------


def test_rank_stabilized_is_alpha_by_the_root_of_the_rank_and_the_file_says_so(sd, tmp_path):
    method = method_of("lora", rank=4, alpha=3.0, rank_stabilized=True, blocks="M00")
    with method.attached(sd):
        assert {layer.scale for layer in method.layers.values()} == {3.0 / math.sqrt(4)}
        file = read_lora(method.export(tmp_path / "x", {}, MADE)[0])
    assert set(file.alphas.values()) == {6.0}  # which a reader divides by the rank


# ---- files -----------------------------------------------------------------------------------------------------------

STARTS = {**{name: {**own, "conv_rank": 2, "rank": own.get("rank", 3)} for name, own in FAMILIES.items()},
          "dora": {"method": "lora", "rank": 3, "alpha": 3, "dora": True}}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_a_file_goes_on_where_it_stopped_whatever_ranks_are_set(sd, tmp_path, name):
    own = {"save_dtype": "fp32", "blocks": "M00, OUT02", **STARTS[name]}
    first = method_of(name, **own)
    with first.attached(sd):
        for layer in first.layers.values():
            for p in layer.parameters():
                p.data += 0.1 * torch.randn(p.shape)
        changes = {target: layer.delta_weight().detach().clone() for target, layer in first.layers.items()}
        lengths = {target: layer.magnitude for target, layer in first.layers.items()}
        path = first.export(tmp_path / "x", {}, MADE)[0]
    other = method_of(name, method=first.kind, rank=5, start=str(path))
    with other.attached(sd):
        assert other.layers.keys() == changes.keys()
        for target, layer in other.layers.items():
            torch.testing.assert_close(layer.delta_weight(), changes[target])
            assert (layer.magnitude is None) == (lengths[target] is None)
            if layer.magnitude is not None:
                assert torch.equal(layer.magnitude, lengths[target])
        assert all(p.requires_grad for layer in other.layers.values() for p in layer.parameters())


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_a_block_of_a_file_at_rate_0_takes_part_and_stays(sd, tmp_path, kind):
    """Neither a gradient, a limit of norms nor the sharing out of ranks moves it."""
    with (first := method_of("lora", rank=3, blocks="M00, OUT03", save_dtype="fp32")).attached(sd):
        for layer in first.layers.values():
            layer.up.data += 0.1
        path = first.export(tmp_path / "x", {}, MADE)[0]
    own = {"rank": 2, "first_rank": 3, "share_from": 0.0, "share_until": 0.0} if kind == "adalora" else {"max_norm": 1e-4}
    method, x = method_of(kind, start=str(path), block_rates="M00=0", **own), torch.randn(1, 4, 8, 8)
    with method.attached(sd) as groups:
        mine = {target: [p.detach().clone() for p in layer.parameters()] for target, layer in method.layers.items()}
        trained = [p for group in groups for p in group["params"]]
        sd.unet(x, torch.tensor([400]), sd.text(["a"])).square().mean().backward()
        torch.optim.AdamW(trained, lr=1e-2).step()
        method.after_step(1)
        moved = {block_name(path): False for _, path in mine} | {block_name(path): True for (part, path), layer in method.layers.items() if not all(map(torch.equal, mine[part, path], layer.parameters()))}
        assert moved == {"M00": False, "OUT03": True} and all(p.grad is None for target, layer in method.layers.items() if block_name(target[1]) == "M00" for p in layer.parameters())
        assert all(layer.delta_weight().any() for layer in method.layers.values())


def test_blocks_that_would_lose_layers_of_a_start_are_refused(sd, tmp_path):
    with (first := method_of("lora", rank=2, blocks="M00, OUT03, IN04")).attached(sd):
        path = first.export(tmp_path / "x", {}, MADE)[0]
    with pytest.raises(ValueError, match=r"blocks: the file in start has layers in IN04, OUT03 too, .*choose these blocks as well") as caught:
        with method_of("lora", start=str(path), blocks="M00").attached(sd):
            pass
    assert "\n" not in str(caught.value) and not any(m._forward_hooks for m in sd.unet.modules())
    with method_of("lora", start=str(path), blocks="M00, OUT03, IN04, IN05").attached(sd):
        pass


def test_rates_of_blocks_as_names_and_as_the_rows_that_users_know():
    assert block_rates("m00=0.5, OUT03 = 0,") == {"M00": 0.5, "OUT03": 0.0} and block_rates("") == {}
    row = [i / 4 for i in range(26)]
    names = [("BASE", 0.0)] + [(f"IN{i:02}", row[1 + i]) for i in range(12)] + [("M00", row[13])] + [(f"OUT{i:02}", row[14 + i]) for i in range(12)]
    assert block_rates(", ".join(map(str, row))) == dict(names) and block_rates(",".join(map(str, row[1:]))) == dict(names[1:])
    few = block_rates(",".join(map(str, range(17))))
    assert list(few) == "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11".split() and list(few.values()) == list(range(17))


@pytest.mark.parametrize(("own", "sentence"), [
    ({"block_rates": "1, 2, 3"}, "block_rates: 3 numbers are no row of block weights"), ({"block_rates": "M00=-1"}, "block_rates: 'M00=-1' is not a block"),
    ({"block_rates": "M00=nan"}, "block_rates: 'M00=nan' is not a block"), ({"block_rates": "M99=1"}, "block_rates: 'M99=1' is not a block"),
    ({"block_rates": "BASE=0.5"}, "block_rates: BASE is the text encoder"), ({"block_ranks": "BASE=2"}, "block_ranks: BASE is the text encoder"), ({"blocks": "BASE, M00"}, "blocks: BASE is the text"),
    ({"blocks": "M00", "block_rates": "OUT03=2"}, "block_rates: OUT03 is not among"), ({"blocks": "M00", "block_ranks": "OUT03=2"}, "block_ranks: OUT03 is not among"),
    ({"block_ranks": "IN03=2"}, "block_ranks: IN03 has no attention"), ({"text_encoder": True, "block_rates": "BASE=0"}, "block_rates: BASE=0 leaves the text encoder as it is"),
    ({"blocks": "M00", "block_rates": "M00=0"}, "block_rates: with 0 for every block"), ({"start": "x.safetensors", "block_ranks": "M00=2"}, "block_ranks: the file in start says"),
])  # fmt: skip
def test_what_would_be_left_aside_without_a_word_is_refused(own, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        method_of("lora", **own)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind, parts", [("loha", "lora"), ("lokr", "lora"), ("lora", "loha"), ("loha", "lokr")])
def test_a_file_of_another_family_is_one_sentence(sd, tmp_path, kind, parts):
    with method_of(parts, rank=2, blocks="M00").attached(sd):
        pass
    other = method_of(parts, rank=2, blocks="M00")
    with other.attached(sd):
        path = other.export(tmp_path / "x", {}, MADE)[0]
    with pytest.raises(ValueError, match=f"is no {METHODS[kind].label} \\(it has .*cannot be trained on as one"):
        method_of(kind, start=str(path)).attached(sd).__enter__()


def test_a_dora_with_a_length_per_output_channel_is_refused(sd, tmp_path):
    layer = {"lora_down.weight": torch.zeros(2, 96, 1, 1), "lora_up.weight": torch.zeros(96, 2, 1, 1), "dora_scale": torch.ones(96, 1, 1, 1), "alpha": torch.tensor(2.0)}
    path = write_lora(tmp_path / "x.safetensors", {("unet", "middle_block.1.proj_in"): layer}, {})
    with pytest.raises(ValueError, match="per output channel"):
        method_of("lora", start=str(path)).attached(sd).__enter__()


def test_module_dropout_skips_whole_samples_of_every_family():
    for name in FAMILIES:
        module = nn.Linear(24, 40)
        layer = layer_of(name, module)
        method = method_of("lora")
        layer.skip, layer.draws, layer.name = 0.5, method._draws, "a"
        layer.draws.indices = tuple(range(16))
        layer.train()
        x = torch.randn(1, 3, 24).expand(16, -1, -1)
        y = layer(x)
        full = layer.eval()(x)
        skipped = [bool((row == 0).all()) for row in y]
        assert 2 < sum(skipped) < 14
        for row, want, gone in zip(y, full, skipped):
            torch.testing.assert_close(row, want * (not gone))


def test_metadata_names_the_family_as_kohya_does(sd, tmp_path):
    import json

    for kind, own, module, algo in (("lora", {}, "networks.lora", None), ("loha", {}, "lycoris.kohya", "loha"), ("lokr", {"factor": 4}, "lycoris.kohya", "lokr"),
                                    ("lora", {"dora": True}, "lycoris.kohya", "lora")):  # fmt: skip
        method = method_of(kind, blocks="M00", **{"rank": 2, "alpha": 2, **own})
        with method.attached(sd):
            metadata = read_lora(method.export(tmp_path / "x", {}, MADE)[0]).metadata
        arguments = json.loads(metadata["ss_network_args"])
        assert (metadata["ss_network_module"], arguments.get("algo")) == (module, algo) and metadata["ss_network_dim"] == "2"
    assert arguments["dora_wd"] is True


def test_a_batch_of_one_is_no_special_case(sd):
    """LoRA on a convolution of another family than Linear: shapes of samples are told apart from channels."""
    for name in ("loha", "lokr", "lora"):
        method = method_of(name, rank=2, conv_rank=2)
        with method.attached(sd):
            method.begin(SimpleNamespace(indices=(0,)))
            y = sd.unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), sd.text(["a"]))
            assert y.shape == (1, 4, 8, 8)
