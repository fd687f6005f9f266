"""Captions to states: chunks as the WebUI makes them, clip skip, and embeddings spliced in by name."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from lib_tuner.sd.clip import CLIPSizes, CLIPText
from lib_tuner.sd.names import text_to_diffusers
from lib_tuner.sd.text import CHUNK, TextEncoder, gather_rows

WIDTH, BOS, EOS = 32, 98, 99


class Letters:
    """A tokenizer whose ids can be read: a to z are 1 to 26, the comma 40, a bracket 41; spaces divide."""

    bos, eos = BOS, EOS

    def encode(self, text):
        return [{",": 40, "(": 41, ")": 42}.get(c, ord(c) - 96) for c in text.lower() if c != " "]


@pytest.fixture
def clip():
    torch.manual_seed(0)
    return CLIPText(CLIPSizes(width=WIDTH, layers=3, heads=4, inner=64, vocabulary=100)).requires_grad_(False)


@pytest.fixture
def text(clip):
    return TextEncoder(clip, Letters())


def chunks(text, caption):
    """The ids between begin and end of each chunk, without padding."""
    rows = text.ids([caption])[0].tolist()
    assert all(len(row) == 77 and row[0] == BOS and row[-1] == EOS for row in rows)
    return [[i for i in row[1:-1] if i != EOS] for row in rows]


# ---- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_states_are_those_of_transformers_at_every_clip_skip(clip, skip):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, eos_token_id=EOS, bos_token_id=BOS)).eval()
    prefix = "text_model." if any(k.startswith("text_model.") for k in theirs.state_dict()) else ""
    theirs.load_state_dict(text_to_diffusers(clip.state_dict(), prefix))
    text = TextEncoder(clip, Letters(), clip_skip=skip)
    long = "abc, def " * 20
    ids = text.ids(["a cat", long])
    assert ids.shape == (2, 2, 77)
    norm = theirs.text_model.final_layer_norm if prefix else theirs.final_layer_norm
    with torch.no_grad():
        hidden = theirs(ids.flatten(0, 1), output_hidden_states=True).hidden_states[-skip]
        want = norm(hidden).reshape(2, 154, WIDTH)
        got = text(["a cat", long])
    assert (got - want).norm() / want.norm() < 1e-5
    CLIPText.from_state({"text_model." + k.removeprefix("text_model."): v for k, v in theirs.state_dict().items() if "position_ids" not in k}, 4)


def test_a_caption_does_not_depend_on_its_batch_but_for_its_empty_chunks(text):
    long, short = "abcde" * 40, "a cat"
    together, alone = text([short, long]), text([short])
    assert together.shape == (2, 3 * 77, WIDTH) and alone.shape == (1, 77, WIDTH)
    empty = text([""])
    torch.testing.assert_close(together[:1], torch.cat([alone, empty, empty], dim=1))
    torch.testing.assert_close(together[1:], text([long]))


# ---- chunks ----------------------------------------------------------------------------------------------------------

A = [1]


@pytest.mark.parametrize("caption, want", [
    ("", [[]]),
    ("a" * 75, [A * 75]),
    ("a" * 76, [A * 75, A]),
    ("a" * 150, [A * 75, A * 75]),
    ("a" * 74 + ",", [A * 74 + [40]]),
    ("a" * 75 + ",", [A * 75, [40]]),
    ("a" * 75 + "," + "b" * 75, [A * 75, [40] + [2] * 74, [2]]),  # a comma that begins a chunk is not remembered
    ("a" * 55 + "," + "b" * 19, [A * 55 + [40] + [2] * 19]),
    ("a" * 55 + "," + "b" * 20, [A * 55 + [40], [2] * 20]),  # 20 before the end: the rest moves on
    ("a" * 54 + "," + "b" * 21, [A * 54 + [40] + [2] * 20, [2]]),  # 21 before the end: too far back
    ("a" * 74 + "," + "bb", [A * 74 + [40], [2, 2]]),
    ("a" * 60 + ",b" * 10, [(A * 60 + [40, 2] * 7 + [40]), [2, 40, 2, 40, 2]]),
    ("(a) ((b))", [[41, 1, 42, 41, 41, 2, 42, 42]]),  # brackets are literal
])  # fmt: skip
def test_captions_are_cut_as_the_webui_cuts_them(text, caption, want):
    assert chunks(text, caption) == want


def test_the_rest_of_a_chunk_is_end_tokens(text):
    assert text.ids(["ab"])[0, 0].tolist() == [BOS, 1, 2] + [EOS] * 74


# ---- splice ----------------------------------------------------------------------------------------------------------


def rows(n, start=0.0, **kwargs):
    return (torch.arange(n * WIDTH, dtype=torch.float32).reshape(n, WIDTH) / 100 + start).requires_grad_(kwargs.get("grad", False))


def embedded(text, caption):
    """What enters the first layer for a caption, less the positions."""
    caught = []
    handle = text.transformer.text_model.embeddings.token_embedding.register_forward_hook(lambda m, args, out: caught.append(out))
    text([caption])
    handle.remove()
    return torch.cat(list(caught[0]))


@pytest.mark.parametrize("caption, before", [("xyz", 0), ("ab xyz", 2), ("a, xyz b", 2), ("a" * 72 + "xyz", 72)])
def test_a_name_anywhere_in_a_caption_becomes_its_vectors(text, clip, caption, before):
    param, weight = rows(3), clip.text_model.embeddings.token_embedding.weight
    with text.splice("XYZ", param):
        got = embedded(text, caption)
        torch.testing.assert_close(got[1 + before : 4 + before], param)
        torch.testing.assert_close(got[1 : 1 + before], weight[text.tokens(caption)[:before]])
        assert text.tokens(caption)[before : before + 3] == [100, 101, 102]
    assert text.tokens(caption)[before] == 24


def test_a_number_of_vectors_other_than_the_names_tokens_shifts_what_follows(text):
    with text.splice("xyz", rows(1)):
        assert text.tokens("a xyz b xyz") == [1, 100, 2, 100]
    with text.splice("x", rows(5)):
        assert text.tokens("a x b") == [1, 100, 101, 102, 103, 104, 2] and text.token_count("a x b") == 7


@pytest.mark.parametrize("before, n, want", [
    (73, 3, [73, 3]),  # does not fit: the whole embedding moves on
    (72, 3, [75]),
    (70, 75, [70, 75]),
])  # fmt: skip
def test_an_embedding_is_never_divided_over_chunks(text, before, n, want):
    with text.splice("x", rows(n)):
        assert [len(chunk) for chunk in chunks(text, "a" * before + "x")] == want


def test_a_comma_of_an_earlier_chunk_is_forgotten(text):
    with text.splice("x", rows(10)):
        got = chunks(text, "a" * 60 + "," + "b" * 10 + "x" + "c" * 70)
    assert got == [A * 60 + [40] + [2] * 10, list(range(100, 110)) + [3] * 65, [3] * 5]


def test_the_comma_rule_moves_an_embedding_whole(text):
    with text.splice("x", rows(4)):
        assert chunks(text, "a" * 60 + ", x" + "b" * 20) == [A * 60 + [40], [100, 101, 102, 103] + [2] * 20]


def test_several_embeddings_at_once_and_the_longest_name_wins(text):
    with text.splice("xy", rows(2)), text.splice("xyz", rows(1, 5.0)), text.splice("q", rows(1, 9.0)):
        assert text.tokens("xy xyz q xx") == [100, 101, 102, 103, 24, 24]
        torch.testing.assert_close(embedded(text, "xy xyz q")[1:5], torch.cat([rows(2), rows(1, 5.0), rows(1, 9.0)]))
    assert text.tokens("xy q") == [24, 25, 17]


def test_gradients_reach_the_vectors_through_the_frozen_encoder(text, clip):
    first, second = rows(2, grad=True), rows(1, 1.0, grad=True)
    with text.splice("xy", first), text.splice("q", second):
        text(["a xy b", "q " * 80]).square().sum().backward()
    assert first.grad.abs().sum(dim=1).min() > 0 and second.grad.abs().min() > 0
    assert all(p.grad is None for p in clip.parameters())


def test_a_spliced_word_gives_the_states_of_the_same_vectors_in_the_table(text, clip):
    weight = clip.text_model.embeddings.token_embedding.weight
    plain = text(["a fox b"])
    with text.splice("q", weight[[6, 15, 24]].clone()):
        torch.testing.assert_close(text(["a q b"]), plain)


def test_vectors_of_another_precision_are_cast_and_keep_their_gradient(text, clip):
    clip.bfloat16()
    param = rows(1, grad=True)
    with text.splice("q", param):
        out = text(["q"])
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and param.grad.dtype == torch.float32


def test_the_encoder_is_untouched_afterwards_also_after_an_error(text, clip):
    before = text(["a q"])
    modules = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in clip.named_modules()}
    with pytest.raises(RuntimeError, match="stop"), text.splice("q", rows(1)), text.splice("z", rows(2)):
        raise RuntimeError("stop")
    assert modules == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in clip.named_modules()}
    assert torch.equal(before, text(["a q"])) and text.tokens("q") == [17]


def test_splices_may_end_in_any_order(text):
    one, two = text.splice("q", rows(1)), text.splice("z", rows(2, 3.0))
    one.__enter__(), two.__enter__()
    one.__exit__(None, None, None)
    torch.testing.assert_close(embedded(text, "q z")[2:4], rows(2, 3.0))
    two.__exit__(None, None, None)
    assert not text.embedding._forward_hooks and not text.embedding._forward_pre_hooks


@pytest.mark.parametrize("name, param, words", [
    ("q", rows(1), "'q' is active already"), ("Q", rows(1), "'q' is active already"), ("  ", rows(1), "has no letters"),
    ("z", torch.zeros(1, 8), r"shape \(1, 8\) do not fit"), ("z", torch.zeros(WIDTH), "do not fit"), ("z", torch.zeros(76, WIDTH), "do not fit"),
    ("z", torch.zeros(0, WIDTH), "do not fit"),
])  # fmt: skip
def test_a_splice_that_cannot_be_is_refused_and_changes_nothing(text, name, param, words):
    with ExitStack() as stack:
        stack.enter_context(text.splice("q", rows(1)))
        with pytest.raises(ValueError, match=words):
            stack.enter_context(text.splice(name, param))
        assert text.tokens("q") == [100]
    assert not text.embedding._forward_hooks


def test_a_captured_step_may_change_the_vectors_without_new_hooks(text):
    param, ids = rows(1), None
    with text.splice("q", param):
        ids = text.ids(["a q"])
        before = text.encode(ids)
        param.add_(1.0)
        assert not torch.allclose(before, text.encode(ids))


def test_any_embedding_module_can_gather_rows():
    table = nn.Embedding(10, 4)
    new = torch.full((2, 4), 7.0)
    handles = gather_rows(table, lambda: new)
    out = table(torch.tensor([[3, 10, 11, 9]]))
    assert torch.equal(out[0, 1:3], new) and torch.equal(out[0, [0, 3]], table.weight[[3, 9]])
    for handle in handles:
        handle.remove()
    with pytest.raises(IndexError):
        table(torch.tensor([10]))


# ---- words -----------------------------------------------------------------------------------------------------------
