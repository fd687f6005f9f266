"""Pivotal tuning: what each stage trains and leaves alone, the files that it makes, and what goes on from them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lib_tuner.config import flat_values, from_metadata
from lib_tuner.events import Finished, Saved, Stepped
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.methods.embedding_file import read_embedding
from lib_tuner.methods.lora import LoRALayer
from lib_tuner.methods.lora_file import read_lora, write_lora
from lib_tuner.methods.metadata import Made
from lib_tuner.methods.pivotal import PivotalTuning
from lib_tuner.outlook import outlook, refuse
from lib_tuner.runs import Record, use_text
from lib_tuner.train import train

MADE = Made(step=2, epoch=0, started=0.0, finished=1.0, model_hash="ab" * 32, model_name="small")
KEY = "bundle_emb.thing.string_to_param.*"


@pytest.fixture
def values(small_run) -> dict[str, Any]:
    """Six steps, two of them for the word alone."""
    base = {key: value for key, value in small_run.items() if not key.startswith("lora.")}
    own = {"inversion_steps": 2, "words.vectors": 2, "words.init": "red", "layers.rank": 2, "layers.alpha": 2.0, "layers.save_dtype": "fp32"}
    return {**base, "method": "pivotal", "save_every": 0, **{f"pivotal.{key}": value for key, value in own.items()}}


def method_of(values: dict[str, Any]) -> PivotalTuning:
    return PivotalTuning(settings(values))


def run(values: dict[str, Any], until: int = 10**9) -> tuple[list[Any], dict[int, dict[str, torch.Tensor]], Any]:
    """A run, stopped after `until` steps: its events, all that the method has after each step, and the optimizer's last state by what it belongs to."""
    cfg, seen = settings(values), {}
    method, events, memory = PivotalTuning(cfg), [], {}
    before = method.before_step

    def watched(step: int, optimizer: Any) -> None:
        before(step, optimizer)
        names = {id(word.vectors): "word" for word in method.words.words}
        memory[step] = {names.get(id(p), "adapter"): {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}

    method.before_step = watched
    with closing(train(cfg, method, Standalone(cfg), stop=lambda: len(seen) >= until)) as going:
        for event in going:
            events.append(event)
            if isinstance(event, Stepped):
                seen[event.step] = {f"{a}.{b}": t for a, inner in method.state_dict().items() for b, t in inner.items()}
    return events, seen, memory


def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {"word" if key.startswith("word:") else "adapter" for key in a if not torch.equal(a[key], b[key])}


# ---- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "first", "second"), [
    ({}, {"word"}, {"word", "adapter"}), ({"continue_inversion": False}, {"word"}, {"adapter"}),
    ({"inversion_steps": 0}, {"word", "adapter"}, {"word", "adapter"}), ({"continue_inversion": False, "layers.max_norm": 1e-4, "words.norm": "keep"}, {"word"}, {"adapter"}),
    ({"continue_inversion": False, "layers.text_encoder": True}, {"word"}, {"adapter"}),
])  # fmt: skip
def test_each_stage_moves_its_own_and_leaves_the_rest_bit_for_bit(values, own, first, second):
    """With weight decay on, which would move what is only left without a gradient of its own."""
    _, seen, memory = run({**values, "optim.weight_decay": 0.5, **{f"pivotal.{key}": value for key, value in own.items()}})
    assert moved(seen[1], seen[2]) == first and moved(seen[3], seen[4]) == moved(seen[5], seen[6]) == second
    if own.get("inversion_steps") != 0:
        assert set(memory[1]) == {"word"}
        assert memory[2] == {}, "the second stage begins with nothing remembered of the first"
        assert set(memory[3]) == second and {float(state["step"]) for state in memory[5].values()} == {3.0}


def test_the_first_stage_computes_no_adapter(values, monkeypatch):
    steps: list[int] = []
    forward, before = LoRALayer.forward, PivotalTuning.before_step
    asked: dict[int, int] = {}
    monkeypatch.setattr(PivotalTuning, "before_step", lambda self, step, optimizer: (steps.append(step), before(self, step, optimizer))[1])
    monkeypatch.setattr(LoRALayer, "forward", lambda self, x: (asked.update({steps[-1]: asked.get(steps[-1], 0) + 1}), forward(self, x))[1])
    run(values)
    assert set(asked) == {2, 3, 4, 5} and min(asked.values()) > 50


def test_rates_of_the_stages(values):
    """Each stage has schedule and warm-up to itself, and the word its own rate in both."""
    method = method_of({**values, "steps": 30, "pivotal.inversion_steps": 10, "optim.lr": "1e-3", "optim.schedule": "linear", "optim.warmup": 5,
                        "pivotal.inversion_lr": 0.02, "pivotal.continue_lr": 0.0005})  # fmt: skip
    rates = [method.lr_at(step) for step in range(30)]
    assert rates[0] == rates[10] == 0 and rates[5] == pytest.approx(0.02) and rates[15] == pytest.approx(1e-3)
    assert rates[9] == pytest.approx(0.02 / 5) and rates[29] == pytest.approx(1e-3 / 15)
    stepwise = method_of({**values, "steps": 30, "pivotal.inversion_steps": 10, "optim.lr": "1e-3:12, 1e-4"})
    assert [stepwise.lr_at(step) for step in (10, 11, 12)] == [1e-3, 1e-3, 1e-4]


def test_groups_get_the_rates_of_their_stage(values, sd):
    method = method_of({**values, "optim.lr": "1e-3", "optim.text_lr": 1e-4, "pivotal.layers.text_encoder": True, "pivotal.continue_lr": 0.0005, "pivotal.layers.up_lr_ratio": 4.0})
    with method.attached(sd) as groups:
        optimizer = torch.optim.SGD([{**group, "lr": 1.0} for group in groups])
        method.before_step(0, optimizer)
        assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0, 0.0, 0.0, 0.0, 0.0]
        assert [p.requires_grad for group in optimizer.param_groups for p in group["params"][:1]] == [True, False, False, False, False]
        method.before_step(2, optimizer)
        assert [group["lr_scale"] for group in optimizer.param_groups] == pytest.approx([0.5, 1.0, 4.0, 0.1, 0.4])
        assert all(p.requires_grad for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("target", [0.0, 0.4])
def test_the_norm_prior_is_cloneofsimos(values, sd, target):
    """e <- e / |e| (|e| + λ (target - |e|)), λ = min(1, 100 lr), after each step that moves the word; by itself the length of the model's own words."""
    method = method_of({**values, "pivotal.inversion_lr": 0.004, "pivotal.continue_inversion": False, "pivotal.words.norm_target": target})
    with method.attached(sd):
        vectors = method.words.words[0].vectors
        vectors.data *= torch.tensor([[3.0], [0.2]])
        before = vectors.detach().double()
        norm = before.norm(dim=1, keepdim=True)
        wanted = target or float(sd.text.embedding.weight[::12].norm(dim=1).median())
        method.after_step(2)
        assert torch.allclose(vectors.double(), before / norm * (norm + 0.4 * (wanted - norm)), rtol=1e-4, atol=1e-7)
        left = vectors.detach().clone()
        method.after_step(3)
        assert torch.equal(vectors, left)


def test_the_word_s_states_are_kept_once_it_is_settled(values, sd):
    for own, settled in (({"continue_inversion": False}, True), ({}, False), ({"continue_inversion": False, "layers.text_encoder": True}, False)):
        method = method_of({**values, **{f"pivotal.{key}": value for key, value in own.items()}})
        assert method.trains_text
        with method.attached(sd) as groups:
            optimizer = torch.optim.SGD([{**group, "lr": 1.0} for group in groups])
            method.before_step(1, optimizer)
            assert method.trains_text
            method.before_step(2, optimizer)
            assert method.trains_text != settled


@pytest.mark.parametrize("until", [1, 2, 4])
def test_a_resumed_run_is_the_same_run(values, until):
    """Stopped in the first stage, at its end and in the second."""
    values = {**values, "optim.ema": 0.9}
    whole, _, _ = run(values)
    part, _, _ = run(values, until)
    rest, _, _ = run({**values, "resume": str(part[-1].files[0].parent)})
    assert (part[-1].reason, rest[-1].reason) == ("stopped", "done")
    first, second = (load_file(next(e for e in events if isinstance(e, Finished)).files[0]) for events in (whole, rest))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- files -----------------------------------------------------------------------------------------------------------


def saved(values: dict[str, Any], kind: str) -> Saved:
    events, _, _ = run({**values, "steps": 3, "pivotal.save_bundle": kind})
    return next(event for event in events if isinstance(event, Saved))


@pytest.mark.parametrize("kind", ["bundled", "separate", "both"])
def test_the_files_hold_what_was_learned_and_are_read_back(values, kind):
    found = saved(values, kind)
    lora, *words = found.paths
    tensors = load_file(lora)
    assert (KEY in tensors) == (kind != "separate") and [path.name for path in words] == ["thing.pt"] * (kind != "bundled")
    assert all(key == KEY or key.startswith("lora_unet_") for key in tensors)
    if kind != "separate":
        assert tensors[KEY].shape == (2, 48) and tensors[KEY].dtype == torch.float32
        assert torch.equal(read_lora(lora).embeddings["thing"], tensors[KEY])
    if kind == "both":
        assert torch.equal(read_embedding(words[0]).vectors, tensors[KEY])
    counts = [int(word) for word in found.report.split() if word.isdigit()]
    modules = len({key.partition(".")[0] for key in tensors if key != KEY})
    assert counts[:2] == [modules + (kind != "separate")] * 2 and counts[2:] == [2, 2] * len(words)
    assert use_text(Record(method="pivotal", words="thing"), lora) == "<lora:thing:0.8> thing"
    assert [use_text(Record(method="pivotal", words="thing"), path) for path in words] == ["thing"] * len(words)


def test_metadata_and_card_are_a_loras_and_the_settings_the_runs(values, sd, tmp_path):
    chosen = {**values, "pivotal.words.embeddings": "zorb | 2 | red", "pivotal.save_bundle": "separate"}
    method = method_of(chosen)
    with method.attached(sd):
        files = method.export(tmp_path / "thing-000002", {"ss_num_train_images": 6}, MADE)
    assert [path.name for path in files] == ["thing-000002.safetensors", "zorb-000002.safetensors"]
    with safe_open(str(files[0]), "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_module"], metadata["ss_network_dim"], metadata["ss_num_train_images"]) == ("networks.lora", "2", "6")
    assert metadata["modelspec.trigger_phrase"] == "zorb" and metadata["sshs_model_hash"]
    for path in files:
        with safe_open(str(path), "pt") as file:
            again = settings(from_metadata(file.metadata()))
        assert {key: value for key, value in flat_values(again).items() if key.startswith("pivotal.")} == {
            key: value for key, value in flat_values(method.cfg).items() if key.startswith("pivotal.")
        }
    assert '"activation text": "zorb"' in files[0].with_suffix(".json").read_text()
    assert [PivotalTuning.file_kind(path) for path in files] == ["lora", "textual_inversion"]
    assert [PivotalTuning.file_kind(tmp_path / name) for name in ("gone.safetensors", "gone.pt")] == ["lora", "textual_inversion"]


def test_a_run_goes_on_from_a_lora_and_a_word(values, sd, tmp_path, monkeypatch):
    """From two files, or from one with the word inside; the adapter takes part in the first stage then, unmoved."""
    both = saved({**values, "name": "thing"}, "both").paths
    learned = load_file(both[0])
    monkeypatch.setenv("HOME", str(both[0].parent))
    for start in ({"pivotal.layers.start": f"~/{both[0].name}"}, {"pivotal.layers.start": str(both[0]), "pivotal.words.start": str(both[1])}):
        method = method_of({**values, **start, "pivotal.layers.max_norm": 1e-4})
        with method.attached(sd) as groups:
            optimizer = torch.optim.SGD([{**group, "lr": 1.0} for group in groups])
            method.before_step(0, optimizer)
            assert torch.equal(method.words.words[0].vectors, learned[KEY])
            target, layer = next(iter(method.adapter.layers.items()))
            assert torch.equal(layer.down, read_lora(both[0]).modules[target]["lora_down.weight"])
            inside = sd.unet.get_submodule(target[1])
            x = torch.randn(1, *layer.shape[1:2], *((4, 4) if layer.conv else ()))
            layer.up.data += 1
            unmoved = layer.up.detach().clone()
            method.after_step(1)
            assert torch.equal(layer.up, unmoved)
            assert not torch.equal(inside(x), torch.nn.functional.linear(x, inside.weight, inside.bias) if not layer.conv else inside._conv_forward(x, inside.weight, inside.bias))


def test_a_bundled_word_of_another_width_is_refused(values, sd, tmp_path):
    parts = {"lora_up.weight": torch.zeros(32, 1), "lora_down.weight": torch.zeros(1, 32), "alpha": torch.tensor(1.0)}
    file = write_lora(tmp_path / "wide.safetensors", {("unet", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"): parts}, {}, embeddings={"thing": torch.randn(1, 768)})
    with pytest.raises(ValueError, match="width 768, but this model's text encoder has width 48"), method_of({**values, "pivotal.layers.start": str(file)}).attached(sd):
        pass
    assert not sd.text.words()


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "sentence"), [
    ({"pivotal.inversion_steps": 6}, "pivotal.inversion_steps: 6 leave nothing of the run's 6 steps"),
    ({"pivotal.inversion_steps": 0, "pivotal.continue_inversion": False}, "the word is never learned"),
    ({"optim.lr": "1e-3:2"}, "optim.lr: '1e-3:2' ends within the 2 steps in which the word alone is learned"),
    ({"optim.lr": "1e-3:2, 0"}, "optim.lr: '1e-3:2, 0' is 0 behind the 2 steps in which the word alone is learned"),
    ({"optim.lr": "1e-3:1, 0:9, 1e-3"}, "is 0 behind the 2 steps"),
    ({"optim.name": "prodigy"}, "optim.name: prodigy takes all weights for one"),
    ({"optim.name": "prodigy", "optim.lr": "1", "pivotal.inversion_steps": 0}, "pivotal.continue_lr: prodigy finds one learning rate"),
    ({"name": "my.cat"}, "up to its first dot, which would cut 'my.cat'"),
    ({"pivotal.adapter": "loha", "pivotal.layers.tucker": True}, "a LoHa has no setting tucker"),
    ({"pivotal.layers.factor": 4}, "a LoRA has no setting factor"),
    ({"pivotal.layers.blocks": "IN99"}, "'IN99' is no block"),
    ({"pivotal.words.embeddings": "a | 99"}, "1 to 75"),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(values, change, sentence):
    with pytest.raises(ValueError) as caught:
        (made := method_of({**values, **change})).check_new(made.cfg)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_rates_that_end_after_the_inversion_or_never_are_taken(values):
    for rate, more in (("1e-3:3", {}), ("1e-3:1, 1e-4", {}), ("1e-3:3, 0", {}), ("0:4, 1e-3", {}), ("1e-3:1", {"pivotal.inversion_steps": 0})):
        (made := method_of({**values, "optim.lr": rate, **more})).check_new(made.cfg)
    for rate in ("1e-3:2, 0", "1e-3:2"):  # of a run of before, which is resumed or compared
        refuse(settings({**values, "optim.lr": rate, "resume": values["output"]}))
        assert method_of({**values, "optim.lr": rate}).triggers()


def test_names_with_a_dot_can_be_saved_apart(values):
    assert method_of({**values, "name": "my.cat", "pivotal.save_bundle": "separate"}).triggers() == "my.cat"
    with pytest.raises(ValueError, match="up to the first dot"):
        write_lora(Path("nowhere.safetensors"), {("unet", "out.2"): {"diff": torch.zeros(1)}}, {}, embeddings={"my.cat": torch.zeros(1, 8)})


def test_the_plan_names_the_stages(values):
    found = outlook(settings({**values, "pivotal.layers.rank": 512, "pivotal.layers.alpha": 512.0}), Standalone(settings(values)).forecast())
    assert "Up to step 2 the word alone is learned, then the adapter." in found.lines
    fix = next(w.fix.values for w in found.warnings if "Rank 512" in w.text)
    assert fix.keys() == {"pivotal.layers.rank", "pivotal.layers.alpha"}
    settings({**values, **fix})


def test_words_inside_the_file_to_start_from_are_not_lost_without_a_word(values, sd, tmp_path):
    method = method_of({**values, "pivotal.words.embeddings": "thing | 1; second | 2"})
    with method.attached(sd):
        file = method.export(tmp_path / "thing", {}, MADE)[0]
    lora = {key: value for key, value in values.items() if not key.startswith("pivotal.")} | {"method": "lora", "lora.start": str(file)}
    with pytest.raises(ValueError, match=r"thing.safetensors has words inside .* \(second, thing\); go on with method = pivotal"), METHODS["lora"](settings(lora)).attached(sd):
        pass
    start = {**values, "name": "other", "pivotal.layers.start": str(file)}
    with pytest.raises(ValueError, match=r"has words inside .* \(second, thing\); give each a line in pivotal.words.embeddings"), method_of(start).attached(sd):
        pass
    with method_of({**start, "pivotal.words.embeddings": "other | 1; thing | 1; second | 2"}).attached(sd):
        pass
    with METHODS["lora"](settings({**lora, "resume": str(tmp_path)})).attached(sd):  # a run that an older version began goes on
        pass
