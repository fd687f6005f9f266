"""Saved files on a model: what they change is what LyCORIS and the formulas say, and afterwards nothing is left of them."""

from __future__ import annotations

import pytest
import torch
from conftest import write_random
from tool_files import CROSS, FAMILIES, SHAPES, TEXT, lora, lycoris, modules_of

from lib_tuner.compare.applied import Use, applied, kind_of_file, replaced
from lib_tuner.methods.base import parts
from lib_tuner.methods.embedding_file import Embedding, write_embedding
from lib_tuner.methods.hypernetwork_file import HypernetworkFile, Structure, write_hypernetwork
from lib_tuner.methods.lora_file import write_lora
from lib_tuner.sd.files import read_tensors, write_tensors
from lib_tuner.sd.model import load_model
from lib_tuner.sd.names import block_name


def weights(sd) -> dict:
    roots = parts(sd)
    return {(part, path): roots[part].get_submodule(path).weight.detach().clone() for part, path in SHAPES}


def everything(sd) -> list[torch.Tensor]:
    return [tensor.clone() for root in parts(sd).values() for tensor in root.state_dict().values()]


def embedding(path, width: int = 48):
    write_embedding(path, Embedding(path.stem, torch.ones(2, width)))
    return path


def hypernetwork(path):
    generator = torch.Generator().manual_seed(1)
    structure = Structure((1, 1), "linear", False, False, (0.0, 0.0), "Normal")
    pair = tuple({"linear.0.weight": torch.randn(48, 48, generator=generator), "linear.0.bias": torch.randn(48, generator=generator)} for _ in range(2))
    return write_hypernetwork(path, HypernetworkFile(structure, {48: pair}, path.stem, 1, "", ""))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_every_family_is_in_the_weights_and_out_again(sd, tmp_path, family):
    file, before, whole = lora(tmp_path / "a.safetensors", family), weights(sd), everything(sd)
    with applied(sd, [Use(file, 0.5)]):
        for module, factors in modules_of(family).items():
            torch.testing.assert_close(weights(sd)[module] - before[module], 0.5 * lycoris(factors, SHAPES[module]), rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, everything(sd), whole))


def test_loras_add_up_and_blocks_have_weights_of_their_own(sd, tmp_path):
    a, b = lora(tmp_path / "a.safetensors", seed=1), lora(tmp_path / "b.safetensors", "loha", seed=2)
    before, (first, second) = weights(sd), (modules_of(seed=1), modules_of("loha", seed=2))
    with applied(sd, [Use(a, 2, "OUT04=0.25, BASE=0"), Use(b, -1)]):
        for module, weight in weights(sd).items():
            mine = {CROSS: 0.25, TEXT: 0.0}.get(module, 1.0)
            assert module != CROSS or block_name(module[1]) == "OUT04"
            expected = 2 * mine * lycoris(first[module], SHAPES[module]) - lycoris(second[module], SHAPES[module])
            torch.testing.assert_close(weight - before[module], expected, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_a_word_and_a_lora_brings_its_words(sd, tmp_path):
    plain = sd.text(["a photo of thing on a wall"])
    with applied(sd, [Use(embedding(tmp_path / "thing.pt"))]):
        as_named = sd.text(["a photo of thing on a wall"])
    assert not torch.equal(plain, as_named)
    with applied(sd, [Use(embedding(tmp_path / "thing.pt"), word="zork")]):
        assert torch.equal(sd.text(["a photo of thing on a wall"]), plain)
        assert torch.equal(sd.text(["a photo of zork on a wall"]), as_named)
    assert torch.equal(sd.text(["a photo of zork on a wall"]), sd.text(["a photo of zork on a wall"])) and not sd.text.words()


def test_a_hypernetwork_adds_its_strength(sd, tmp_path):
    """context + strength * f(context) before keys and values (modules/hypernetworks/hypernetwork.py, `HypernetworkModule.forward`)."""
    module = sd.unet.get_submodule("output_blocks.4.1.transformer_blocks.0.attn2")
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(2))
    path, plain = hypernetwork(tmp_path / "h.pt"), module.to_k(x)
    state = torch.load(path)[48][0]
    with torch.no_grad(), applied(sd, [Use(path, 0.3)]):
        expected = torch.nn.functional.linear(x + 0.3 * torch.nn.functional.linear(x, state["linear.0.weight"], state["linear.0.bias"]), module.to_k.weight)
        torch.testing.assert_close(module.to_k(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(module.to_k(x), plain)


def test_what_cannot_be_applied_is_a_sentence_and_changes_nothing(sd, tmp_path, checkpoint_file):
    wide = write_lora(tmp_path / "wide.safetensors", {CROSS: {"lora_up.weight": torch.ones(320, 2), "lora_down.weight": torch.ones(2, 768)}}, {}, torch.float32)
    good, whole = lora(tmp_path / "good.safetensors"), everything(sd)
    for path, said in ((wide, "does not fit"), (tmp_path / "gone.safetensors", "is not there any more"), (checkpoint_file, "choose a LoRA, an embedding or a hypernetwork"),
                       (embedding(tmp_path / "wide.pt", 768), "768")):  # fmt: skip
        with pytest.raises(ValueError, match=said), applied(sd, [Use(good), Use(path)]):
            pass
        assert all(map(torch.equal, everything(sd), whole))
    assert kind_of_file(good) == "lora"


def test_the_weights_are_back_after_an_error(sd, tmp_path):
    whole = everything(sd)
    with pytest.raises(RuntimeError), applied(sd, [Use(lora(tmp_path / "a.safetensors"))]):
        raise RuntimeError
    assert all(map(torch.equal, everything(sd), whole))


def test_a_checkpoint_takes_the_place_of_unet_and_text_encoder_and_is_out_again(sd, tmp_path):
    file, whole = write_random(tmp_path / "b.safetensors", seed=5), everything(sd)
    vae, before = sd.vae.vae.state_dict(), [tensor.clone() for tensor in sd.vae.vae.state_dict().values()]
    with pytest.raises(RuntimeError, match="on purpose"), replaced(sd, file):
        other = load_model(file)
        assert all(map(torch.equal, everything(sd), everything(other))) and not all(map(torch.equal, everything(sd), whole))
        raise RuntimeError("on purpose")
    assert all(map(torch.equal, everything(sd), whole)) and all(map(torch.equal, vae.values(), before))


def test_a_checkpoint_in_half_precision_is_rounded_and_only_what_differs_is_kept_aside(sd, checkpoint_file, tmp_path):
    tensors, key = read_tensors(checkpoint_file)[0], "model.diffusion_model.out.2.bias"
    halves = write_tensors(tmp_path / "half.safetensors", {**tensors, key: torch.full_like(tensors[key], 0.1).half()})
    p, writes = sd.unet.get_parameter("out.2.bias"), sum(p._version for root in parts(sd).values() for p in root.parameters())
    with replaced(sd, halves):
        assert p.dtype == torch.float32 and p.eq(torch.tensor(0.1).half().float()).all()
        assert sum(p._version for root in parts(sd).values() for p in root.parameters()) == writes + 1


def test_a_checkpoint_of_another_kind_is_one_sentence_before_anything_is_changed(sd, inpainting_file, tmp_path):
    versions = [p._version for root in parts(sd).values() for p in root.parameters()]
    with pytest.raises(ValueError, match="nine.safetensors has no input_blocks.0.0.weight of this model's shape"), replaced(sd, inpainting_file):
        pass
    with pytest.raises(ValueError, match="gone.safetensors is not there any more"), replaced(sd, tmp_path / "gone.safetensors"):
        pass
    assert versions == [p._version for root in parts(sd).values() for p in root.parameters()]
