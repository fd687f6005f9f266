"""The tables of the page's words: each holds every text that a person sees, and nothing else.

A new text: write it in English where it belongs, run `python -m pytest tests/test_localization.py`, paste the lines that it prints into
localizations/en.json and zh_CN.json, and translate the latter. Keys are sorted, {0}, {1}, ... stand for values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from strings_of_code import sentences

from lib_tuner import presets
from lib_tuner.compare.cells import KINDS
from lib_tuner.config import options
from lib_tuner.data.crop_names import ExportConfig
from lib_tuner.data.crop_plan import CropConfig
from lib_tuner.data.edits import OPERATIONS, Edit
from lib_tuner.methods import METHODS
from lib_tuner.methods.hypernetwork_file import ACTIVATIONS, INITS
from lib_tuner.settings import TrainConfig
from lib_tuner.tools.catalogue import TOOLS
from lib_tuner.tools.inspect_file import ABOUT, FACTS
from lib_tuner.ui import page, webui_page
from lib_tuner.ui.form import SECTIONS, help_of, label_of

TABLES = {path.stem: path for path in page.LANGUAGES.glob("*.json")}
SAME = frozenset((  # terms that the field writes in English everywhere
    "[Tuner] LoRA", "{0} kB", "{0} MB", "{0} GB",
))  # fmt: skip
TERMS = frozenset((  # choices that are names: they are in no table
    "adamw", "adamw8bit", "lion", "adafactor", "prodigy", "adamw_schedulefree", "mse", "huber", "smooth_l1", "l1", "snr", "rex", "eps", "v",
    "ddim", "euler_a", "dpmpp_2m", "fp32", "bf16", "fp16", "LoRA", "Textual Inversion", "TensorBoard", "EMA", "LoCon", "LoHa", "LoKr", "AdaLoRA", "DoRA", "rsLoRA",
    "lora", "loha", "lokr", "kohya", "ldm", "diffusers", "peft", "UNet", "VAE",
    "DreamBooth", "Hypernetwork", "T2I-Adapter", "ControlNet", *set(ACTIVATIONS) - {"linear", "sigmoid"}, *INITS,
))  # fmt: skip
GRADIO = ("Loading", "Drop File Here", "- or -", "or", "Click to Upload", "Click to upload or drop files", "File upload")  # gradio's own words
SYMBOLS = re.compile(r"[^A-Za-z]*")


# ---- texts of the page -----------------------------------------------------------------------------------------------


class Texts(HTMLParser):
    """Text nodes and attributes that are read, of a piece of HTML."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("aria-label", "placeholder", "title", "alt") and value]

    def handle_data(self, data: str) -> None:
        self.found.append(data.strip())


def shared(kind: type, **more: Any) -> Any:
    jobs = SimpleNamespace(history=lambda: [])
    return kind(jobs, lambda cfg: None, Path("nowhere"), {}, [("embedded small model", "")], **more)


def of_components(blocks: gr.Blocks) -> Iterator[str]:
    for block in blocks.blocks.values():
        if "tuner-hidden" in (getattr(block.parent, "elem_classes", None) or []):
            continue
        yield from (getattr(block, name, None) or "" for name in ("label", "info", "placeholder") if getattr(block, "show_label", True))
        if isinstance(block, gr.HTML):
            yield from Texts(str(block.value or "")).found
        elif isinstance(block, gr.Button):
            yield str(block.value)
        elif isinstance(block, gr.Dropdown):
            yield from (choice[0] if isinstance(choice, tuple) else choice for choice in block.choices)


def of_gradio() -> Iterator[str]:
    yield from of_components(page.blocks(shared(page.Shared)))
    yield from of_components(webui_page.tab(shared(webui_page.WebUIShared)))
    yield from GRADIO
    for _, label, help, *_ in webui_page.settings_rows():
        yield from (label, f"({help})")  # as the WebUI's Settings tab writes them


def of_settings() -> Iterator[str]:
    for option in [*options(TrainConfig), *(o for name, method in METHODS.items() for o in options(method.Config, name))]:
        if option.key != "resume":
            yield from (label_of(option), help_of(option), *map(str, option.choices or ()))
    yield from SECTIONS.values()
    for method in METHODS.values():
        yield from (method.label, *method.refuses.values())


def of_crops() -> Iterator[str]:
    for option in (o for kind in (CropConfig, ExportConfig) for o in options(kind)):
        yield from (option.label, option.help)


def of_axes() -> Iterator[str]:
    for kind in KINDS.values():
        yield from (kind.label, kind.help)


def of_edits() -> Iterator[str]:
    for operation in OPERATIONS.values():
        yield from (Edit.kind_of(argument)[1] for argument in operation.arguments())


def of_presets() -> Iterator[str]:
    for goal in presets.GOALS.values():
        yield from (goal.label, goal.advice)
    for pace in presets.PACES.values():
        yield from (pace.label, pace.help)


def of_tools() -> Iterator[str]:
    for tool in TOOLS.values():
        yield from (tool.label, tool.text, word(tool.step))
        for argument in tool.arguments:
            yield from (argument.label, argument.help, argument.empty, *argument.choices)
    yield from map(word, (*FACTS, *ABOUT, "date"))


def word(name: str) -> str:
    """As the page writes a name out of a report."""
    return name[0].upper() + name[1:]


# ---- texts of the scripts --------------------------------------------------------------------------------------------

LITERAL = r'"((?:[^"\\\n]|\\.)*)"'
PLACES = (rf"\bt\({LITERAL}", rf'\btuner\.count\([^"\n]*, {LITERAL}, "', rf'\btuner\.count\([^"\n]*, "[^"\n]*", {LITERAL}', rf"\blabel: {LITERAL}", rf'\["\w+", {LITERAL}, \(run\)', rf'\bbutton\("\w*", {LITERAL}', rf"\bjoined\(text, {LITERAL}", rf'"[^"]*[\u4e00-\u9fff][^"]*": {LITERAL}')
STATES = re.compile(r"const STATES = \{(.*?)\n    \};", re.DOTALL)
NOT_WORDS = re.compile(r"[A-Z]\w*|Content-Type|X-Tuner|[\w-]+(/[\w-]+)+|.*[<#\[].*|(GET|POST)|[A-Z]\w+(,\s*[A-Z]\w+)*")


def scripts() -> str:
    return "\n".join(re.sub(r"^\s*//.*|\s// .*", "", line) for path in page.script_files() for line in path.read_text(encoding="utf-8").splitlines())


def of_scripts() -> Iterator[str]:
    code = scripts()
    for place in PLACES:
        yield from (json.loads(f'"{found}"') for found in re.findall(place, code))
    yield from re.findall(rf": {LITERAL}", STATES.search(code)[1])


# ---- all of them -----------------------------------------------------------------------------------------------------

COLLECTORS: dict[str, Callable[[], Any]] = {
    "gradio": of_gradio, "settings": of_settings, "crops": of_crops, "axes": of_axes, "edits": of_edits, "presets": of_presets, "tools": of_tools, "scripts": of_scripts, "sentences": sentences,
}  # fmt: skip


@lru_cache(maxsize=None)
def collected(kind: str) -> tuple[str, ...]:
    return tuple(COLLECTORS[kind]())


@lru_cache(maxsize=None)
def wanted() -> dict[str, str]:
    """{text: where it comes from}."""
    found: dict[str, str] = {}
    for kind in COLLECTORS:
        for text in collected(kind):
            if text and text not in TERMS and (kind == "scripts" or not SYMBOLS.fullmatch(text)):
                found.setdefault(text, kind)
    return found


@lru_cache(maxsize=None)
def table(name: str) -> dict[str, str]:
    return json.loads(TABLES[name].read_text(encoding="utf-8"))


def holes(text: str) -> list[str]:
    return sorted(set(re.findall(r"\{\d\}", text)))


def pasted(keys: list[str], value: Callable[[str], str]) -> str:
    return "\n".join(f"  {json.dumps(key, ensure_ascii=False)}: {json.dumps(value(key), ensure_ascii=False)}," for key in sorted(keys))


# ---- the tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_text_is_in_the_table(name):
    missing = [text for text in wanted() if text not in table(name)]
    assert not missing, f"paste into localizations/{name}.json{'' if name == 'en' else ', and translate'}:\n{pasted(missing, lambda key: key if name == 'en' else '')}"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_key_is_used(name):
    unused = [key for key in table(name) if key not in wanted()]
    assert not unused, f"delete from localizations/{name}.json:\n{pasted(unused, lambda key: table(name)[key])}"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_translation_has_the_values_of_its_key(name):
    wrong = {key: text for key, text in table(name).items() if holes(text) != holes(key)}
    assert not wrong, f"other placeholders than the key:\n{pasted(list(wrong), wrong.get)}"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_is_sorted_and_each_key_is_there_once(name):
    pairs = json.loads(TABLES[name].read_text(encoding="utf-8"), object_pairs_hook=list)
    assert [key for key, _ in pairs] == sorted({key for key, _ in pairs})


def test_english_is_the_key_itself():
    assert {key: text for key, text in table("en").items() if key != text} == {}


def test_nothing_is_left_in_english():
    chinese = table("zh_CN")
    left = [key for key, text in chinese.items() if not text.strip() or text == key and key not in SAME]
    assert not left, f"translate in localizations/zh_CN.json:\n{pasted(left, chinese.get)}"
    latin = [key for key, text in chinese.items() if re.search("[A-Za-z]{2}", key) and key not in SAME and not re.search("[\u3000-\u9fff]", text)]
    assert not latin, f"no Chinese letter in:\n{pasted(latin, chinese.get)}"


def test_chinese_marks_beside_chinese_letters():
    wrong = {key: text for key, text in table("zh_CN").items() if re.search(r"[\u4e00-\u9fff] ?[,;:?!](?= |$|[\u4e00-\u9fff])|[\u4e00-\u9fff]\.(?=$| )", text)}
    assert not wrong, f"write ，；：？！。 in:\n{pasted(list(wrong), wrong.get)}"


# ---- that the collectors are not blind -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "texts"), {
    "gradio": ("Show the plan", "Search settings", "How many settings are shown", "What is learned.", "Everything", "none", "Samples as in txt2img", "Loading…", "embedded small model"),
    "settings": ("Learning rate", "Resolution (px)", "Pictures per forward pass. (1 to 256)", "constant", "Steps between saves; 0: only at the end.", "Rank", "Several words", "Memory"),
    "crops": ("Overlap of tiles", "Of jpg and webp."),
    "edits": ("a whole number", "true or false"),
    "presets": ("Character or person", "Careful"),
    "tools": ("Join LoRAs", "Largest rank of a layer.", "as the input has it", "drop", "Vector norms", "Learning rate", "Writing tensor"),
    "scripts": ("Click to Upload", "Pause", "Queue", "Validation loss", "waiting", "finished", "ended: the loss was no number", "step {0} of {1}", "Send to txt2img", "; ", "{0} picture", "{0} pictures"),
    "sentences": (
        "Loading the model", "Encoding {0}", "Drawing {0} samples", "Drawing {0} sample", "Saving",  # events
        "{0} pictures, {1} with a caption.", "{0} buckets: {1} and {2} more.", "Set it to {0}", "Needs about {0} of memory; runs on {1}.",  # plan
        "{0} is outside [{1}, {2}]", "{0} is not one of {1}; did you mean {2}?", "t_min ({0}) must be below t_max ({1})", "{0} is not a whole number",  # checks
        "No run is going.", "has no caption", "is an empty file (0 bytes)", "a LoRA", "{0} learns nothing; give a rate above 0.",  # errors and problems
        "The settings of {0} are in the form.", "Kept as {0}.", "{0} exists already; choose another name.", "there is no preset named {0} in {1}",  # answers
        "Axis {0} ({1}) has no value; write some, or choose no axis there.",  # joined to others
        "make room on the disk", "check that the folder and its files are writable", "is neither UTF-8 nor UTF-16 and was read as Windows-1252; its bytes are kept",  # parts
    ),
}.items())  # fmt: skip
def test_known_texts_are_found(kind, texts):
    found = collected(kind)
    assert [text for text in texts if text not in found] == []


def test_no_sentence_of_the_scripts_escapes():
    """Whatever is written like words in the scripts goes through `tuner.t`."""
    literals, known = {json.loads(f'"{found}"') for found in re.findall(LITERAL, scripts())}, set(of_scripts())
    words = {text for text in literals if re.match(r"[A-Z][a-z]+[ .,:…]", text) or re.match(r"[a-z]+ \{\d\}|\{\d\} [a-z]", text)}
    assert sorted(text for text in words if text not in known and not NOT_WORDS.fullmatch(text)) == []
