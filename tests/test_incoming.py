"""A picture of the WebUI's gallery becomes one to learn from."""

from __future__ import annotations

import pytest
from PIL import Image

from lib_tuner.data.incoming import prompt_of, save_with_caption


def drawn(text: str | None = None) -> Image.Image:
    picture = Image.new("RGB", (8, 8), "red")
    if text is not None:
        picture.info["parameters"] = text
    return picture


@pytest.mark.parametrize(("text", "prompt"), [
    ("a cat\nNegative prompt: ugly\nSteps: 20, Sampler: DDIM", "a cat"),
    ("a cat,\na house <lora:style:0.8>\nSteps: 20, Sampler: DDIM", "a cat, a house"),
    ("only a prompt", "only a prompt"), ("", ""), ("<lora:style:1>", ""), (None, ""),
])  # fmt: skip
def test_the_prompt_is_found(text, prompt):
    assert prompt_of(drawn(text)) == prompt


def test_pictures_get_the_next_free_name_and_their_prompt_as_caption(tmp_path):
    (tmp_path / "taken-0001.txt").write_text("somebody's")
    first, second = save_with_caption(drawn("a cat\nSteps: 2"), tmp_path), save_with_caption(drawn(), tmp_path)
    assert [path.name for path in (first, second)] == ["taken-0002.png", "taken-0003.png"]
    assert first.with_suffix(".txt").read_text() == "a cat" and not second.with_suffix(".txt").exists()
    assert (tmp_path / "taken-0001.txt").read_text() == "somebody's" and Image.open(first).size == (8, 8)
