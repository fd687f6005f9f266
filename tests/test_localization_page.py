"""The page in Chinese, in a real browser on both gradios: no English word is left, what is sent stays English, and the choice changes it at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from browsing import Page, browser, clear, expect, own_script, server, train  # noqa: F401

from lib_tuner.methods import METHODS
from lib_tuner.tools.catalogue import TOOLS
from lib_tuner.ui import page as ui

TABLE = json.loads((ui.LANGUAGES / "zh_CN.json").read_text(encoding="utf-8"))
# what stays in Latin letters: names of things, units, ...
TERMS = set("""
    LoRA LoRA+ Textual Inversion alpha Alpha rank token transformer query key value output UNet IN OUT BASE all up VAE EMA Beta Epsilon Huber SNR Min-SNR min sqrt gamma
    Adam AdamW px txt safetensors ckpt toml json pt png optim CSV CLIP TensorBoard kohya WebUI LoCon SD GPU CPU RAM bf fp cpu cuda mps auto float bfloat
    epoch feed-forward DPM++ SDE Karras v-prediction CFG Channels-last channels-last prediction NAME name filewords kB MB GB Pillow English embedding JSON parquet lora left right text
    DoRA LoHa LoKr AdaLoRA rsLoRA CP LyCORIS Tucker DreamBooth
    Hypernetwork LayerNorm Normal swish Hardswish linear
    I-Adapter ControlNet Canny diffusers pth SVD
""".split())
CHOICES = set("adamw lion adafactor prodigy adamw_schedulefree mse huber smooth_l1 snr rex eps ddim euler_a dpmpp_2m fp32 fp16 bf16".split())
OWN = set("robot my outputs demo data home tmp caption a pink purple red star on navy mint white background fast".split())  # what the form is filled with here
# text nodes, attributes and drop-downs that can be seen, without code, settings' keys and what a person typed
SEEN = """(root) => {
    const raw = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").get, found = [];
    const walker = document.createTreeWalker(document.querySelector(root), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const at = walker.currentNode.parentElement;
        if (at.checkVisibility() && !at.closest("code, pre, script, style, textarea, footer, .tuner-language, .tuner-notes table, .tuner-run-name, th[scope=row], .tuner-entry")) found.push(walker.currentNode.data);
    }
    for (const e of document.querySelectorAll(`${root} *`)) {
        if (!e.checkVisibility() || e.closest("footer, .tuner-language")) continue;
        for (const name of ["placeholder", "title", "aria-label", "alt"]) if (e.getAttribute(name)) found.push(e.getAttribute(name));
        if (e.matches("input[autocomplete=off]")) found.push(raw.call(e));
    }
    return found;
}"""


class Named(Page):
    """A page of a browser that speaks a language."""

    def __init__(self, browser: Any, server: Any, locale: str, script: str = ""):  # noqa: F811
        def new_context(**more: Any) -> Any:
            context = browser.new_context(locale=locale, **more)
            if script:
                context.add_init_script(script)
            return context

        super().__init__(SimpleNamespace(new_context=new_context), server)

    def seen(self, root: str = "body") -> list[str]:
        return self.page.evaluate(SEEN, root)

    def english(self, *own: str, root: str = "body") -> dict[str, str]:
        """The English words that are seen, each with the text that it is in."""
        # gradio's own "processing | 0.1s" is there while an answer is waited for, its "common.complete" for a moment after it
        self.holds("![...document.querySelectorAll('.progress-text, .meta-text, .meta-text-center')].some((e) => e.checkVisibility())")
        allowed = {word.lower() for word in [*TERMS, *CHOICES, *OWN, *own]}
        found = {}
        for text in self.seen(root):
            for word in re.findall(r"[A-Za-z][A-Za-z_+-]*[A-Za-z+]", re.sub(r"common\.complete|\S*/\S*|`[^`]*`|\S+\.(safetensors|png|txt|json|toml|pt)\b|\[name]|robot-\w+", "", text)):
                if word.lower() not in allowed:
                    found[word] = text.strip()
        return found

    def choose(self, language: str) -> None:
        self.page.click(f".tuner-language [data-language={language}]")
        self.holds(f"document.documentElement.lang.startsWith('{language[:2]}')")


@pytest.fixture
def chinese(browser, server) -> Iterator[Named]:  # noqa: F811
    made = Named(browser, server, "zh-CN")
    yield made
    clear(made)
    made.context.close()
    assert made.errors == []


# ---- no English is left ----------------------------------------------------------------------------------------------


def test_form_tabs_and_plan_are_chinese(chinese):
    chinese.sees("#tuner-tab-run", "训练")
    chinese.unfold()
    chinese.click("#tuner-plan-button")
    chinese.sees("#tuner-plan", "24 张图片，其中 24 张有标注")
    assert chinese.english() == {}
    assert len([text for text in chinese.seen() if re.search("[\u4e00-\u9fff]", text)]) > 250
    for tab in ("queue", "history"):
        chinese.click(f"#tuner-tab-{tab}")
        assert chinese.english("robot", root="#tuner-live") == {}


@own_script
def test_the_tools_are_chinese(chinese):
    chinese.click("#tuner-view-tools")
    for name in TOOLS:
        chinese.page.evaluate("(name) => { tuner.tools.kept[name] = {}; }", name)  # not what an earlier test has asked of it
        chinese.click(f"[data-tool={name}]")
        chinese.page.evaluate("document.querySelectorAll('#tuner-toolbox details').forEach((more) => { more.open = true; })")
        chinese.click("#tuner-tool-start")
        chinese.sees(".tuner-tool-message", "请先修正上面的问题")
        assert chinese.english("file", "weight", "unet", "text_encoder", "kohya", "ldm", "peft", "Clamp", "LoRA", root="#tuner-toolbox") == {}
    chinese.choose("en")
    chinese.sees("[data-tool=inspect]", "Look into a file")
    assert [text for text in chinese.seen("#tuner-toolbox") if re.search("[\u3000-\u9fff]", text)] == []


def test_the_other_method_and_a_presets_advice_are_chinese(chinese):
    assert chinese.pick("#tuner-goal", 1) == "角色或人物"
    chinese.sees("#tuner-advice", "标注应当可以改变的内容")
    assert chinese.pick("#tuner-f-method", list(METHODS).index("textual_inversion")) == "Textual Inversion"
    chinese.sees("#tuner-f-textual_inversion-vectors", "向量数")
    chinese.unfold()
    assert chinese.english("person") == {}


def test_what_is_wrong_is_said_in_chinese(chinese):
    chinese.fill(steps=-5, optim__lr="fast")
    chinese.sees("#tuner-f-steps .tuner-error", "-5 超出范围 [1, 10000000]")
    chinese.click("#tuner-train-button")
    chinese.sees("#tuner-plan", "请先修正以下问题")
    chinese.sees("#tuner-plan .tuner-link", "步数")
    assert chinese.english() == {}


def test_warnings_and_their_fixes_are_chinese(chinese):
    chinese.fill(optim__lr="0.9", trigger="")
    chinese.click("#tuner-plan-button")
    chinese.sees("#tuner-plan .tuner-warnings", "学习率 0.9 容易使画面崩坏")
    chinese.sees("#tuner-plan .tuner-warnings button", "改为 0.02")
    assert chinese.english() == {}


@own_script
def test_a_run_its_files_and_the_history_are_chinese(chinese):
    chinese.unfold()
    train(chinese, "robot-zh", steps=4, sample__every=2)
    chinese.sees("#tuner-panel-run .tuner-state[data-state=done]", "已完成")
    chinese.sees("#tuner-panel-run .tuner-file-list", "个部分中的")
    assert chinese.english("lora", "robot-zh") == {}
    chinese.click("#tuner-tab-history")
    chinese.page.locator("#tuner-panel-history tr", has_text="robot-zh").get_by_role("button", name="robot-zh").click()
    chinese.sees(".tuner-detail", "删除这次训练")
    assert chinese.english("lora", "robot-zh") == {}


@own_script
def test_a_failed_run_says_why_in_chinese(chinese, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    train(chinese, "robot-no", data__folder=tmp_path / "pictures")
    chinese.sees("#tuner-panel-run .tuner-state[data-state=failed]", "失败")
    chinese.sees(".tuner-failed p", "中没有可用于训练的图片：a.png 不是 Pillow 能读取的图片")
    chinese.click("#tuner-tab-queue")
    assert chinese.english("folder", "cannot", "identify", "image", "file", root="#tuner-panel-queue") == {}


# ---- sentences of the server -----------------------------------------------------------------------------------------


@own_script
def test_every_sentence_is_said_with_its_values(chinese):
    """Each key, filled with values, comes out as its own translation with these values, whatever other keys it is like."""
    table = {key: text for key, text in TABLE.items() if "{0}" in key}
    values = [f"v{n}.7" for n in range(10)]
    said = chinese.page.evaluate("(sentences) => sentences.map(tuner.said)", [filled(key, values) for key in table])
    assert {key: (got, filled(text, values)) for (key, text), got in zip(table.items(), said) if got != filled(text, values)} == {}


SAID = {
    "optim.lr: 'fast' in 'fast' is not a rate or rate:step, such as 1e-4 or 0.05:10.": "optim.lr：'fast' 中的 'fast' 不是学习率，也不是 rate:step 的写法，例如 1e-4 或 0.05:10。",
    "my cat.png has no caption.": "my cat.png 没有标注。",
    "a.parquet row 3 has no caption.": "a.parquet 第 3 行没有标注。",
    "data.folder: '/tmp/x' holds no picture to train on: a.png is an empty file (0 bytes).": "data.folder：'/tmp/x' 中没有可用于训练的图片：a.png 是空文件（0 字节）。",
    "a.safetensors: 277 of 277 parts are taken by the host; a.pt: 1 of 1 parts are taken by the host":
        "a.safetensors：程序读取了 277 个部分中的 277 个；a.pt：程序读取了 1 个部分中的 1 个",
    "cat-b.safetensors: 277 of 277 parts are taken by the host": "cat-b.safetensors：程序读取了 277 个部分中的 277 个",
    "my cat.pt: 3 of 4 parts are taken by the host; 1 part the host does not know":
        "my cat.pt：程序读取了 4 个部分中的 3 个；1 part the host does not know",
    "Axis Y: 999 is no number from 1 to 30; it is left out.\nAxis Y (CFG scale) has no value; write some, or choose no axis there.":
        "坐标轴 Y：999 不是 1 到 30 之间的数值；已略去。\n坐标轴 Y（提示词引导系数（CFG））没有值；请填写，或不选择坐标轴。",
    "Axis X: 'nose' is no save of a run that is known here; it is left out.": "坐标轴 X：这里没有 'nose'（训练的存档）；已略去。",
    "data.template: there is no file 'x'; name a file, or one of none, object, style.": "data.template：没有文件 'x'；请指定一个文件，或从 none, object, style 中选择。",
    "truncate: limit is to be a whole number.": "truncate：limit 应为整数。",
    "a b.txt is neither UTF-8 nor UTF-16 and was read as Windows-1252; its bytes are kept.": "a b.txt 既不是 UTF-8 也不是 UTF-16，已按 Windows-1252 读取；其字节保持不变。",
    "The journal in /x/y cannot be written (No space left on device), so nothing was changed; make room on the disk.":
        "无法写入 /x/y 中的日志（No space left on device），因此没有更改任何内容；请腾出磁盘空间。",
    "No run is going. There is no such file.": "没有正在进行的训练。没有这个文件。",
    "steps: -5 is outside [1, 10]\nsteps: 1.5 is not a whole number": "steps：-5 超出范围 [1, 10]\nsteps：1.5 不是整数",
    "cat is paused, so there is nothing to resume.": "cat 的状态是“已暂停”，没有可以继续的内容。",
    "Needs about 3.1 GB of memory; runs on cuda, bfloat16, gradient checkpointing, channels-last.": "约需 3.1 GB 内存；运行于 cuda，bfloat16，梯度检查点，channels-last 布局。",
    "x.safetensors is a Flux model, not a LoRA; choose a LoRA's .safetensors file.": "x.safetensors 是“Flux 模型”，不是 LoRA；请选择 LoRA 的 .safetensors 文件。",
    "The queue cannot be written down (There was not enough memory: choose a smaller batch or resolution, turn gradient checkpointing on, or close other programs.): "
    "make room, or it is lost when the program ends.":
        "无法写入队列（内存不足：请减小批次大小或分辨率，开启梯度检查点，或关闭其他程序。）：请腾出空间，否则程序结束后队列会丢失。",
    "Something that nobody has translated. It stays.": "Something that nobody has translated. It stays.",
    "The settings of my file are in the form.": "已把 my file 的设置填入表单。",
}  # fmt: skip


@own_script
def test_joined_sentences_are_said_part_by_part(chinese):
    said = chinese.page.evaluate("(sentences) => sentences.map(tuner.said)", list(SAID))
    assert dict(zip(SAID, said)) == SAID


# (sentence, the field at which it stands): with labels for keys, in English and in Chinese
LABELLED = {
    ("validate_every is 10, but data.validation_folder is empty: name a folder, or set it to 0", "validate_every"):
        ("is 10, but “Held-out pictures” is empty: name a folder, or set it to 0", "为 10，但“验证图片”为空：请指定文件夹，或设为 0"),
    ("every is 10, but there are no prompts: write one, or set every to 0", "sample-every"):
        ("is 10, but there are no prompts: write one, or set “Sample every (steps)” to 0", "为 10，但没有提示词：请写一个，或把“样图间隔（步）”设为 0"),
    ("blocks: 'FOO' is no block; there are BASE, IN00 to IN11, M00 and OUT00 to OUT11, or write all", "lora-blocks"):
        ("'FOO' is no block; there are BASE, IN00 to IN11, M00 and OUT00 to OUT11, or write all", "'FOO' 不是分层名称；可用 BASE、IN00 到 IN11、M00 和 OUT00 到 OUT11，或写 all"),
    ("BASE is the text encoder, which is not trained: turn text_encoder on, or leave BASE out", "lora-blocks"):
        ("BASE is the text encoder, which is not trained: turn “Text encoder” on, or leave BASE out", "BASE 是文本编码器，而它不参与训练：请打开“文本编码器”，或去掉 BASE"),
    ("data.folder: '/tmp/data.cache' holds no picture to train on: a.png is an empty file (0 bytes).", ""):
        ("Data folder: '/tmp/data.cache' holds no picture to train on: a.png is an empty file (0 bytes).", "数据文件夹：'/tmp/data.cache' 中没有可用于训练的图片：a.png 是空文件（0 字节）。"),
}  # fmt: skip


@own_script
def test_settings_are_named_by_their_labels_and_not_at_their_own_field(chinese):
    said = "(all) => all.map(([text, id]) => tuner.saidOfSettings(text, id && `tuner-f-${id}`))"
    assert dict(zip(LABELLED, chinese.page.evaluate(said, list(LABELLED)))) == {case: zh for case, (_, zh) in LABELLED.items()}
    chinese.choose("en")
    assert dict(zip(LABELLED, chinese.page.evaluate(said, list(LABELLED)))) == {case: en for case, (en, _) in LABELLED.items()}


def filled(text: str, values: list[str]) -> str:
    return re.sub(r"\{(\d)\}", lambda hole: values[int(hole[1])], text)


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_the_choice_changes_all_at_once_and_keeps_what_was_typed(chinese):
    chinese.fill(name="robot-kept", steps="-7")
    chinese.sees("#tuner-f-steps .tuner-error", "超出范围")
    chinese.click("#tuner-tab-history")
    chinese.choose("en")
    chinese.sees("#tuner-tab-history[aria-selected=true]", "History")
    chinese.sees("#tuner-f-steps .tuner-error", "-7 is outside [1, 10000000]")
    chinese.sees("#tuner-train-button", "Train")
    chinese.unfold()
    left = [text for text in chinese.seen() if re.search("[\u3000-\u9fff]", text)]
    assert left == [] and chinese.field("name").input_value() == "robot-kept"
    expect(chinese.page.locator("#tuner-f-optim-schedule input")).to_have_value("cosine")
    chinese.choose("zh_CN")
    chinese.sees("#tuner-f-steps .tuner-error", "-7 超出范围")
    assert chinese.english("kept") == {} and chinese.field("steps").input_value() == "-7"


def test_the_choice_is_kept_and_goes_before_the_browsers_language(browser, server):  # noqa: F811
    page = Named(browser, server, "en-GB")
    page.sees("#tuner-tab-run", "Run")
    page.choose("zh_CN")
    page.open()
    page.sees("#tuner-tab-run", "训练")
    assert page.english() == {}
    page.choose("en")
    page.open()
    page.sees("#tuner-tab-run", "Run")
    page.context.close()
    assert page.errors == []


@own_script
def test_a_prompt_that_is_being_written_outlives_the_choice(chinese):
    train(chinese, "robot-prompt", steps=500)
    chinese.at_step(1)
    chinese.page.fill("#tuner-panel-run .tuner-prompts textarea", "a green robot")
    chinese.choose("en")
    chinese.sees("#tuner-panel-run .tuner-state", "running")
    assert chinese.page.input_value("#tuner-panel-run .tuner-prompts textarea") == "a green robot"
    assert chinese.page.evaluate("window.tuner.points.length") >= 1


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_a_choice_with_a_chinese_name_is_sent_as_the_programs_word(chinese):
    chinese.unfold()
    assert chinese.pick("#tuner-f-optim-schedule", 1) == "线性"
    expect(chinese.page.locator("#tuner-f-optim-schedule input")).to_have_value("线性")
    chinese.page.click("#tuner-f-data-flip input")  # opened and left without a choice
    chinese.page.keyboard.press("Escape")
    chinese.page.keyboard.press("Tab")
    expect(chinese.page.locator("#tuner-f-checkpoint input")).to_have_value("内置小模型")
    chinese.page.focus("#tuner-f-checkpoint input")  # typed into, and as before in the end
    for key in ("End", "x", "Backspace", "Tab"):
        chinese.page.keyboard.press(key)
    train(chinese, "robot-sent", steps=1)
    chinese.sees("#tuner-panel-run .tuner-state[data-state=done]", "已完成")
    run = next(run for run in chinese.page.evaluate("fetch('tuner/api/runs').then((r) => r.json())") if run["name"] == "robot-sent")
    sent = chinese.page.evaluate("(id) => fetch(`tuner/api/runs/${id}`).then((r) => r.json())", run["id"])["settings"]
    assert (sent["optim.schedule"], sent["data.flip"], sent["data.cache"], sent["checkpoint"], sent["method"]) == ("linear", "off", "disk", "", "lora")


@own_script
def test_where_no_table_comes_the_page_is_english(browser, server):  # noqa: F811
    def new_context(**more: Any) -> Any:
        context = browser.new_context(locale="zh-CN", **more)
        context.add_init_script("const after = AbortSignal.timeout; AbortSignal.timeout = () => after.call(AbortSignal, 300);")
        context.route("**/zh_CN.json", lambda route: None)  # asked for, and never answered
        return context

    page = Page(SimpleNamespace(new_context=new_context), server)
    page.sees("#tuner-tab-run", "Run")
    page.sees("#tuner-train-button", "Train")
    page.context.close()
    assert page.errors == []


def test_settings_are_found_by_either_language(chinese):
    for words in ("学习率调度", "learning rate changes"):
        chinese.page.fill(".tuner-search", words)
        expect(chinese.field("optim.schedule")).to_be_visible()
        expect(chinese.field("steps")).to_be_hidden()


def test_in_the_webui_its_own_table_is_used_and_no_choice_is_shown(browser, server):  # noqa: F811
    page = Named(browser, server, "en-GB", f"window.localization = {json.dumps(TABLE)};")
    page.sees("#tuner-tab-run", "训练")
    page.click("#tuner-plan-button")
    page.sees("#tuner-plan", "24 张图片，其中 24 张有标注")
    expect(page.page.locator(".tuner-language")).to_have_count(0)
    page.sees("#tuner-train-button", "Train")  # what gradio draws is the WebUI's to translate
    page.context.close()
    assert page.errors == []
