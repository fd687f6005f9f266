"""Token ids: those of open_clip and of transformers, without importing open_clip."""

import json
import subprocess
import sys

import pytest

from lib_tuner.sd.tokenizer import BOS, EOS, VOCABULARY, Tokenizer, write_clip_folder

TRICKY = [
    "",
    "a",
    "a photo of a cat",
    "A PHOTO of a CaT",
    "  many   spaces\tand\ttabs ",
    "line one\nline two\r\nline three",
    "it's the dog's, they're we've I'm he'll she'd don't",
    "1girl, 2boys, 1234567890, 3.14, v1-5",
    "(masterpiece:1.3), [bad], ((very)), {x|y}",
    "\\(literal\\) <lora:x:1> BREAK AND",
    "naïve café Ünïcödé Straße Ελλάδα Привет",
    "日本語のテキスト 中文 한국어",
    "emoji 😀👩‍👩‍👧🏳️‍🌈 ☀️",
    ":3 ^_^ (╯°□°)╯ >_< o_o \\m/",
    "supercalifragilisticexpialidocious " + "a" * 200,
    "x" * 77,
    "tag_with_underscores, another_one",
    "!!!???...,,,;;;:::",
    "C++ C# 50% $100 @user #tag",
    "²³½ ⅷ ٣",
    "İstanbul",
    "a,b,c , d",
    "'s 't 're",
    "end.",
    "mixed123abc456",
    "“curly” ‘quotes’ – — …",
    "\u200bzero\u200dwidth",
    "ﬁ ligature",
]
REPAIRED = {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0xFB01: "fi"}  # open_clip's ftfy makes these plain; transformers 5 does not


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip_folder(tmp_path_factory.mktemp("clip"), {"hidden_size": 64, "num_attention_heads": 4})


@pytest.fixture(scope="module")
def theirs(folder):
    return pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("text", TRICKY)
def test_ids_are_those_of_transformers(tokenizer, theirs, text):
    assert tokenizer.encode(text) == theirs(text.translate(REPAIRED), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text, plain", [("salt &amp; pepper", "salt & pepper"), ("&lt;b&gt;", "<b>"), ("&amp;amp;", "&"), ("x &quot;y&quot;", 'x "y"')])
def test_html_entities_are_read_as_open_clip_reads_them(tokenizer, theirs, text, plain):
    assert tokenizer.encode(text) == theirs(plain, add_special_tokens=False)["input_ids"]


def test_known_ids(tokenizer):
    """As in OpenAI's release: `a photo of a cat` is 320 1125 539 320 2368, a comma 267."""
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode(",") == [267] and (tokenizer.bos, tokenizer.eos) == (BOS, EOS) == (49406, 49407)


def test_decoding_gives_the_words_in_lower_case(tokenizer):
    assert tokenizer.decode(tokenizer.encode("A Photo of Ünïcödé 😀, 7")) == "a photo of ünïcödé 😀, 7"


def test_importing_costs_nothing_and_encoding_imports_neither_open_clip_nor_torchvision():
    code = (
        "import sys, os; from lib_tuner.sd.tokenizer import Tokenizer; t = Tokenizer(); "
        "assert not {'torch', 'open_clip', 'ftfy', 'regex', 'gradio'} & {m.split('.')[0] for m in sys.modules}; "
        "assert t.encode('a cat') == [320, 2368]; "
        "assert not {'torchvision', 'open_clip', 'timm'} & {m.split('.')[0] for m in sys.modules}; assert 'TOKENIZERS_PARALLELISM' not in os.environ"
    )
    environment = {k: v for k, v in __import__("os").environ.items() if k != "TOKENIZERS_PARALLELISM"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_missing_open_clip_is_said_with_the_remedy(monkeypatch):
    from lib_tuner.sd import tokenizer as module

    module._open_clip_tokenizer.cache_clear()
    module._open_clips_own.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        Tokenizer().encode("a")


def test_the_clip_folder_has_the_whole_vocabulary_and_the_given_sizes(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == VOCABULARY == 49408 and sorted(vocabulary.values()) == list(range(49408))
    assert vocabulary["<|startoftext|>"] == BOS and vocabulary["<|endoftext|>"] == EOS and vocabulary["cat</w>"] == 2368
    assert len((folder / "merges.txt").read_text(encoding="utf-8").splitlines()) == 1 + 48894
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"], config["vocab_size"]) == (64, 4, 49408)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "merges.txt", "vocab.json"]
