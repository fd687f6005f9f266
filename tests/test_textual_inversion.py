"""Textual Inversion's own settings."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from lib_tuner.config import build
from lib_tuner.events import Finished
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.methods import METHODS, settings
from lib_tuner.methods.embedding_file import Embedding, read_embedding, write_embedding, write_embedding_png
from lib_tuner.methods.metadata import Made
from lib_tuner.methods.textual_inversion import TextualInversion, TextualInversionConfig, card, wanted_words
from lib_tuner.optim import EMA
from lib_tuner.settings import TrainConfig
from lib_tuner.train import train

MADE = Made(step=5, epoch=0, started=0.0, finished=1.0, model_hash="ab" * 32, model_name="small")


def method(name: str = "zorb", **own) -> TextualInversion:
    values = {"name": name, "method": "textual_inversion", "optim.lr": "0.005", **{f"textual_inversion.{k}": v for k, v in own.items()}}
    return TextualInversion(build(TrainConfig, values, TextualInversionConfig))


def without_lora(values):
    return {key: value for key, value in values.items() if not key.startswith("lora.")}


def run_of(values):
    cfg = settings(values)
    return list(train(cfg, METHODS[cfg.method](cfg), Standalone(cfg)))


def vectors(sd, **own) -> torch.Tensor:
    m = method(**own)
    with m.attached(sd):
        return m.words[0].vectors.detach().clone()


def test_initial_text_is_spread_over_the_vectors_as_in_the_webui(sd):
    table, (cat, dog) = sd.text.embedding.weight, sd.text.tokenizer.encode("cat dog")
    assert torch.equal(vectors(sd, vectors=4, init="cat dog"), table[[cat, cat, dog, dog]])
    assert torch.equal(vectors(sd, vectors=1, init="cat dog"), table[[cat]])


def test_an_empty_initial_text_starts_from_short_random_vectors(sd):
    v = vectors(sd, vectors=3, init="")
    typical = sd.text.embedding.weight.norm(dim=1).median()
    assert torch.allclose(v.norm(dim=1), typical * 0.01, rtol=0.05) and not torch.equal(v[0], v[1])


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_run_goes_on_from_an_embedding_file(sd, tmp_path, ending):
    saved = torch.randn(2, 48)
    file = write_embedding(tmp_path / f"old{ending}", Embedding("old", saved))
    assert torch.equal(vectors(sd, start=str(file)), saved)


def test_a_start_in_the_home_folder_is_found(sd, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = torch.randn(2, 48)
    write_embedding(tmp_path / "old.safetensors", Embedding("old", saved))
    assert torch.equal(vectors(sd, start="~/old.safetensors"), saved) and torch.equal(vectors(sd, embeddings="a | 2 | cat | ~/old.safetensors"), saved)


def test_an_embedding_of_another_width_is_refused(sd, tmp_path):
    file = write_embedding(tmp_path / "wide.safetensors", Embedding("wide", torch.randn(1, 768)))
    with pytest.raises(ValueError, match="768"):
        vectors(sd, start=str(file))


def test_several_words_are_read_from_the_settings():
    words = wanted_words(TextualInversionConfig(vectors=2, init="a", embeddings="red-hat | 3 | hat; coat\nshoe|1"), "run")
    assert [(w.name, w.vectors, w.init) for w in words] == [("red-hat", 3, "hat"), ("coat", 2, "a"), ("shoe", 1, "a")]


@pytest.mark.parametrize(("text", "sentence"), [("a | 99 | b", "1 to 75"), ("a | x | b", "1 to 75"), ("a; a", "same name"), ("a/b", "contains '/'"), ("w" * 240, "is too long for a file")])
def test_words_that_cannot_be_learned_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        method(embeddings=text)


@pytest.mark.parametrize("kind", ["textual_inversion", "pivotal"])
def test_a_template_that_teaches_no_word_is_refused(kind, tmp_path):
    values = {"method": kind, "name": "zorb", "data.folder": "x"}
    (file := tmp_path / "mine.txt").write_text("a photo of Zorb\n")
    with pytest.raises(ValueError, match=r"^data.template: 'none' has neither \[name\] nor \[filewords\], so no picture would teach zorb"):
        settings({**values, "data.template": "none"})
    for template in ("", "subject", "hypernetwork", str(file), "gone.txt"):
        settings({**values, "data.template": template})
    settings({**values, "method": "lora", "data.template": "none"})


def test_the_word_works_anywhere_in_the_prompt_and_nowhere_else(sd):
    m = method(vectors=2, init="cat")
    plain = sd.text(["a dog on a mat"])
    with m.attached(sd):
        m.words[0].vectors.data.normal_()
        assert torch.equal(sd.text(["a dog on a mat"]), plain)
        states = sd.text(["zorb on a mat", "on a mat (zorb), x"])
        m.words[0].vectors.data.normal_()
        again = sd.text(["zorb on a mat", "on a mat (zorb), x"])
    assert not torch.equal(states[0], again[0]) and not torch.equal(states[1], again[1])
    assert torch.equal(states[1, :4], again[1, :4])  # causal: what stands before the word is as it was


def test_norm_control(sd):
    for kind in ("off", "keep", "prior"):
        m = method(vectors=2, init="cat dog", norm=kind)
        with m.attached(sd):
            word = m.words[0]
            first = word.lengths.clone()
            word.vectors.data.mul_(3)
            m.after_step(1)
            now = word.vectors.detach().norm(dim=1, keepdim=True)
            wanted = {"off": 3 * first, "keep": first, "prior": 3 * first + 0.5 * (word.typical - 3 * first)}[kind]  # λ = 100 lr = 0.5
        assert torch.allclose(now, wanted, rtol=1e-4)


@pytest.mark.parametrize("average", [{"optim.ema": 0.99}, {"optim.name": "adamw_schedulefree"}], ids=["ema", "schedule-free"])
@pytest.mark.parametrize("kind", ["textual_inversion", "pivotal"])
def test_a_saved_average_has_the_length_that_is_kept(small_run, kind, average):
    """Vectors of one length that turn have a shorter mean."""
    if average.get("optim.name"):
        pytest.importorskip("schedulefree")
    own = {"textual_inversion.norm": "keep", "textual_inversion.init": "red"} if kind == "textual_inversion" else {
        "pivotal.words.norm": "keep", "pivotal.words.init": "red", "pivotal.inversion_steps": 0, "pivotal.continue_lr": 1.0, "pivotal.layers.blocks": "M00", "pivotal.save_bundle": "separate"}  # fmt: skip
    values = {key: value for key, value in small_run.items() if not key.startswith("lora.")}
    cfg = settings({**values, "method": kind, "name": "zorb", "steps": 12, "save_every": 0, "optim.lr": "1.0", **average, **own})
    with closing(train(cfg, METHODS[kind](cfg), host := Standalone(cfg))) as events:
        *_, finished = events
    learned = read_embedding(finished.files[-1]).vectors
    usual = host.model.text.embedding.weight[host.model.text.tokenizer.encode("red")].norm()
    torch.testing.assert_close(learned.norm(dim=1), usual.expand(4).detach().float(), rtol=1e-5, atol=0)


def test_numbers_that_are_none_leave_the_last_average_at_its_length(sd):
    m = method(vectors=2, init="cat dog", norm="keep")
    with m.attached(sd) as groups:
        (word,), ema = m.words, EMA(groups[0]["params"], 0.9)
        ema.average[0].mul_(0.5)
        with ema.swapped():
            kept = m.snapshot()["zorb"]["vectors"]
        assert torch.allclose(kept.norm(dim=1), word.lengths.flatten())


def test_files_beside_the_safetensors_hold_the_same(sd, tmp_path):
    m = method(vectors=2, init="cat", save_pt=True, save_png=True)
    with m.attached(sd):
        m.words[0].vectors.data.normal_()
        files, trained = m.export(tmp_path / "zorb", {}, MADE), m.words[0].vectors.detach().clone()
    assert [f.suffix for f in files] == [".safetensors", ".pt", ".png"]
    for file in files:
        assert torch.allclose(read_embedding(file).vectors, trained, atol=1e-6) and read_embedding(file).name == "zorb"


def test_the_optimizers_state_is_the_one_that_the_webui_goes_on_with(small_run):
    """It trains NAME.pt, makes an AdamW of the one embedding that it has loaded, and takes the state of NAME.pt.optim where the checksum is the embedding's."""
    events = run_of({**without_lora(small_run), "method": "textual_inversion", "save_optimizer": True, "textual_inversion.embeddings": "zorb | 2\nblip | 3", "optim.lr": "1e-2"})
    folder = next(event for event in events if isinstance(event, Finished)).files[0].parent
    for word, count in (("zorb", 2), ("blip", 3)):
        vec, said = read_embedding(folder / f"{word}.safetensors").vectors, torch.load(folder / f"{word}.pt.optim", weights_only=True)
        r = 0
        for v in vec.reshape(-1) * 100:  # its `Embedding.checksum`
            r = (r * 281 ^ int(v) * 997) & 0xFFFFFFFF
        assert said["hash"] == f"{r & 0xFFFF:04x}"
        optimizer = torch.optim.AdamW([torch.nn.Parameter(vec)], lr=1.0, weight_decay=0.0)
        optimizer.load_state_dict(said["optimizer_state_dict"])
        (state,) = optimizer.state.values()
        assert state["exp_avg"].shape == (count, vec.shape[1]) and float(state["step"]) == 6 and state["exp_avg"].abs().sum() > 0
    assert len(list(folder.glob("*.optim"))) == len(list(folder.glob("*.safetensors")))


def test_triggers_are_the_words():
    assert method().triggers() == "zorb" and (several := method(embeddings="a;b c").triggers()) == "a b c" and several.each == ("a", "b c")


@pytest.mark.webui_versions
@pytest.mark.parametrize(("word", "model"), [("猫", "small"), ("кот", "small"), ("zorb", "我的模型")])
def test_a_picture_is_saved_of_a_word_or_a_model_in_any_letters(tmp_path, word, model):
    file = write_embedding_png(tmp_path / "a.png", (saved := Embedding(word, torch.randn(2, 48), 5, "ab" * 32, model)), card(saved))
    read = read_embedding(file)
    assert (read.name, read.model_name) == (word, model) and torch.equal(read.vectors, saved.vectors)
