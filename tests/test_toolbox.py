"""The tools for the page and for scripts: forms made of the command line's own arguments, files to choose from, and the one job with its end."""

from __future__ import annotations

import argparse
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from conftest import until
from safetensors.torch import load_file, save_file
from tool_files import SHAPES, lora, modules_of, plain, run, slim  # noqa: F401 (slim is a fixture)

from lib_tuner.methods.lora_file import read_lora
from lib_tuner.sd.files import write_tensors
from lib_tuner.toolbox import OwnFolders, Toolbox
from lib_tuner.tools.arguments import OUT
from lib_tuner.tools.catalogue import TOOLS
from lib_tuner.tools.command import Made, Tool
from lib_tuner.tools.command_line import Parser
from lib_tuner.tools.shelves import Shelf, scan
from lib_tuner.tools.weights import Planned, write_weights

pytestmark = pytest.mark.webui_versions  # the tools run inside the WebUI's environment, too


class Own(OwnFolders):
    """The program's folders, and what the host was told."""

    def __init__(self, home: Path):
        super().__init__(home)
        object.__setattr__(self, "heard", [])

    def shelves(self) -> list[Shelf]:
        return [Shelf(self.home / "loras", "lora"), Shelf(self.home / "mixed")]

    def made(self, path: Path, kind: str, replaced: bool) -> None:
        self.heard.append((path.name, kind, replaced))


@pytest.fixture
def tools(tmp_path) -> Toolbox:
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "loras").mkdir(exist_ok=True)
        lora(tmp_path / "loras" / f"{name}.safetensors", seed=10 * i)
    box = Toolbox(Own(tmp_path), tmp_path, lambda: [])
    yield box
    box.close()


def ended(tools: Toolbox, state: str = "done") -> dict:
    until(lambda: tools.status()["state"] not in ("running", "stopping"))
    assert tools.status()["state"] == state, tools.status()
    return tools.status()


BOTH = {"loras": [{"file": "cat.safetensors", "weight": 0.5}, {"file": "dog.safetensors", "unet": -1.5, "text_encoder": 2}]}


# ---- one declaration -------------------------------------------------------------------------------------------------


def actions_of(tool: Tool) -> dict[str, argparse.Action]:
    """The command line as argparse has it."""
    parser = Parser(tool.name, tool.text, tool.example)
    for argument in tool.arguments:
        argument.add(parser)
    return {action.dest: action for action in parser._actions if action.dest != "help"}


@pytest.mark.parametrize("name", TOOLS)
def test_the_form_has_every_argument_of_the_command_line_with_its_words_choices_and_default(tools, name):
    fields = {field["key"]: field for form in tools.forms() if form["name"] == name for field in form["fields"]}
    actions = actions_of(TOOLS[name])
    assert fields.keys() == actions.keys() and len(fields) > 3
    for key, field in fields.items():
        action = actions[key]
        assert field["label"] and action.help.replace("%%", "%").startswith(field["help"])
        assert tuple(field["choices"]) == tuple(action.choices or ())
        shown = {"": (None, 0, 0.0), False: (False,)}.get(field["value"], (field["value"],))
        assert action.default in shown or action.default == [], (key, action.default, field["value"])
        assert field["required"] == (action.required and field["kind"] != "out" and field["kind"] != "loras"), key


@pytest.mark.parametrize("name", TOOLS)
def test_form_and_command_line_refuse_the_same_numbers(name):
    for argument in TOOLS[name].arguments:
        if argument.kind != "number":
            continue
        action = actions_of(TOOLS[name])[argument.key]
        for text in ("-1", "0", "0.5", "1", "1.5", "16", "4096", "4097", "nan", "inf", "many"):
            answers = []
            for read in (action.type, lambda text: argument.read(text, Path)):
                try:
                    answers.append(read(text))
                except (argparse.ArgumentTypeError, ValueError) as error:
                    answers.append(str(error))
            assert answers[0] == answers[1], (argument.key, text, answers)


def test_values_mean_what_the_command_line_means(tools, tmp_path):
    cat, out = tmp_path / "loras" / "cat.safetensors", tmp_path / "x.safetensors"
    for name, argv, values in (
        ("resize", [cat, "--rank", 8, "--energy", "0.9", "--dtype", "bf16", "-o", out], {"lora": "cat.safetensors", "rank": "8", "energy": 0.9, "dtype": "bf16", "out": str(out)}),
        ("join-loras", [f"{cat}:0.5", "-o", out, "--force"], {"loras": [{"file": str(cat), "weight": 0.5}], "out": str(out), "force": True}),
        ("scale", [cat, "--alpha", "-2", "-o", out], {"file": str(cat), "alpha": -2, "out": str(out)}),
        ("convert", [cat, "--names", "peft", "-o", out], {"file": "cat.safetensors", "names": "peft", "prune": False, "ema": "", "out": str(out)}),
        ("extract", [cat, cat, "--no-text", "--conv-rank", 4, "-o", out], {"base": str(cat), "tuned": str(cat), "no_text": True, "conv_rank": 4.0, "out": str(out)}),
    ):  # fmt: skip
        args, problems, missing = TOOLS[name].read(values, tools.find)
        assert (problems, missing) == ({}, []) and vars(args) == vars(TOOLS[name].parse([str(word) for word in argv]))


def test_what_is_wrong_is_said_at_its_field_and_what_is_missing_apart(tools):
    checked = tools.check("resize", {"lora": "none.safetensors", "rank": 0, "dtype": "fp8", "rnak": 1})
    assert {key: text.partition(" is ")[0] for key, text in checked["problems"].items() if key not in ("lora", "rnak")} == {"rank": "'0'", "dtype": "'fp8'"}
    assert "does not exist" in checked["problems"]["lora"] and "did you mean rank" in checked["problems"]["rnak"] and checked["missing"] == {}
    assert set(tools.check("merge-checkpoints", {"a": "cat.safetensors"})["missing"]) == {"b"} and set(tools.check("join-loras", {})["missing"]) == {"loras"}
    with pytest.raises(ValueError, match="loras: lora 1: weight is 'x', not a number"):
        tools.start("join-loras", {"loras": [{"file": "cat.safetensors", "weight": "x"}]})
    with pytest.raises(ValueError, match="There is no tool 'jion-loras'; did you mean join-loras"):
        tools.check("jion-loras", {})
    assert tools.status() is None


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_are_listed_once_with_their_kind_by_folder_or_header(tools, tmp_path, slim):
    mixed = tmp_path / "mixed"
    (mixed / "deep").mkdir(parents=True)
    (mixed / "deep" / "model.safetensors").write_bytes(slim.read_bytes())
    lora(mixed / "cat.safetensors", seed=5)
    save_file({"emb_params": torch.ones(2, 768)}, mixed / "word.safetensors")
    (mixed / "broken.safetensors").write_bytes(b"x")
    (mixed / "notes.txt").write_text("no weights")
    os.link(tmp_path / "loras" / "dog.safetensors", mixed / "linked.safetensors")
    run_ = tmp_path / "robot-001"
    (run_ / "state").mkdir(parents=True)
    (run_ / "settings.toml").write_text('name = "robot"\n')
    for path in (run_ / "robot.safetensors", run_ / "state" / "no.safetensors"):
        lora(path)
    tools.outputs = lambda: [tmp_path]
    found = {file["name"]: file["kind"] for file in tools.files()}
    assert found == {
        str(tmp_path / "loras" / "cat.safetensors"): "lora", "dog.safetensors": "lora", str(mixed / "cat.safetensors"): "lora", "model.safetensors": "checkpoint",
        "word.safetensors": "embedding", "broken.safetensors": "", "robot.safetensors": "lora",
    }  # fmt: skip
    assert tools.find("model.safetensors") == mixed / "deep" / "model.safetensors" and tools.find("nowhere/x.pt") == Path("nowhere/x.pt")
    assert tools.find("~nobody-here/x.pt") == Path("~nobody-here/x.pt")  # a file that is not there, as any other
    assert scan([Shelf(tmp_path / "none")]) == []


# ---- a job -----------------------------------------------------------------------------------------------------------


def test_loras_are_joined_under_a_name_of_their_own(tools, tmp_path):
    checked = tools.check("join-loras", BOTH)
    assert (checked["out"], checked["folder"], checked["problems"], checked["exists"]) == ("cat-dog.safetensors", str(tmp_path / "tools"), {}, False)
    id = tools.start("join-loras", {**BOTH, "dtype": "fp32"})
    now = ended(tools)
    assert (now["id"], now["done"], now["total"], now["left"]) == (id, 5, 5, None)
    file = read_lora(tmp_path / "tools" / "cat-dog.safetensors")
    assert now["files"] == [{"path": str(file.path), "name": "cat-dog.safetensors", "bytes": file.path.stat().st_size}] and now["said"] == [str(file)]
    first, second = modules_of(seed=0), modules_of(seed=10)
    for module, shape in SHAPES.items():
        expected = 0.5 * plain(first[module], shape) + (-1.5 if module[0] == "unet" else 2.0) * plain(second[module], shape)
        torch.testing.assert_close(plain(file.modules[module], shape), expected, rtol=1e-4, atol=1e-5)
    assert tools.folders.heard == [("cat-dog.safetensors", "lora", False)]
    assert tools.check("join-loras", BOTH)["out"] == "cat-dog-2.safetensors"  # what is there stays
    assert "cat-dog.safetensors" in [file["name"] for file in tools.files()]


def test_an_input_is_never_replaced_and_another_file_only_where_it_is_ticked(tools, tmp_path):
    mine = tmp_path / "tools" / "mine.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    checked = tools.check("join-loras", {**BOTH, "out": "mine.safetensors"})
    assert checked["exists"] and "exists already; choose another name, or tick" in checked["problems"]["out"]
    with pytest.raises(ValueError, match="^out: .*exists already"):
        tools.start("join-loras", {**BOTH, "out": "mine.safetensors"})
    before = (tmp_path / "loras" / "cat.safetensors").read_bytes()
    for out in (tmp_path / "loras" / "cat.safetensors", tmp_path / "loras" / ".." / "loras" / "cat.safetensors"):
        with pytest.raises(ValueError, match="^out: .*one of the inputs"):
            tools.start("join-loras", {**BOTH, "out": str(out), "force": True})
    (tmp_path / "r.toml").write_text('[[lora]]\nfile = "loras/cat.safetensors"\n')
    with pytest.raises(ValueError, match="^out: .*one of the inputs"):  # named in a recipe alone
        tools.start("join-loras", {"recipe": str(tmp_path / "r.toml"), "out": str(tmp_path / "loras" / "cat.safetensors"), "force": True})
    tools.start("join-loras", {**BOTH, "out": "mine.safetensors", "force": True})
    ended(tools)
    assert mine.stat().st_size > 4 and tools.folders.heard == [("mine.safetensors", "lora", True)] and (tmp_path / "loras" / "cat.safetensors").read_bytes() == before


@pytest.mark.parametrize(("out", "words"), [("../x.safetensors", "leads out of"), ("a/../../x.safetensors", "leads out of"), ("/nowhere/at/all/x.safetensors", "is no folder"), ("x.ckpt", "must end in .safetensors")])
def test_no_name_leads_elsewhere(tools, out, words):
    assert words in tools.check("join-loras", {**BOTH, "out": out})["problems"]["out"]


def test_a_converted_folder_and_a_picture_have_places_of_their_own(tools, tmp_path):
    assert tools.check("convert", {"file": "cat.safetensors", "names": "peft"})["out"] == "cat-peft"
    tools.start("convert", {"file": "cat.safetensors", "names": "peft"})
    assert sorted(path.parent.name for path in map(Path, (file["path"] for file in ended(tools)["files"]))) == ["text_encoder", "text_encoder", "unet", "unet"]
    tools.start("inspect", {"file": "cat.safetensors", "picture": "blocks.png"})
    now = ended(tools)
    assert now["files"][0]["path"] == str(tmp_path / "tools" / "blocks.png") and now["report"]["is"].startswith("a LoRA") and now["report"]["ranks"] == {3: 5}
    assert tools.status(now["id"])["report"] is None and "exists already" in tools.check("inspect", {"file": "cat.safetensors", "picture": "blocks.png"})["problems"]["picture"]


def test_what_is_told_of_numbers_that_are_none_is_json(tools, tmp_path):
    write_tensors(tmp_path / "nan.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": torch.full((4, 4, 3, 3), float("nan"))}, {})
    tools.start("inspect", {"file": str(tmp_path / "nan.safetensors")})
    assert json.loads(json.dumps(ended(tools), allow_nan=False))["report"]["blocks"]["IN00"] is None


class Slow:
    """A tool whose tensors are made one by one, each when the test lets it."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)

    def tool(self) -> Tool:
        def run(args, told):
            def make() -> torch.Tensor:
                assert self.gate.acquire(timeout=60)
                return torch.ones(8)

            write_weights(args.out, {f"t{i}": Planned((8,), torch.float32, make) for i in range(4)}, {}, told)
            return Made((args.out,))

        force = next(a for a in TOOLS["scale"].arguments if a.key == "force")
        return Tool("slow", "Slow", "Takes its time.", "", (OUT, force), run, lambda args: "slow", makes="lora")


@pytest.fixture
def slow(monkeypatch) -> Slow:
    made = Slow()
    monkeypatch.setitem(TOOLS, "slow", made.tool())
    return made


def test_a_job_says_how_far_it_is_and_is_the_only_one(tools, slow):
    tools.start("slow", {})
    with pytest.raises(ValueError, match=r"at work already \(slow\)"):
        tools.start("join-loras", BOTH)
    for _ in range(2):
        slow.gate.release()
    until(lambda: tools.status()["done"] == 2)
    now = tools.status()
    assert (now["state"], now["total"]) == ("running", 4) and 0 < now["left"] < 10 and now["files"] == []
    for _ in range(2):
        slow.gate.release()
    assert ended(tools)["files"][0]["name"] == "slow.safetensors"


def test_a_stopped_job_leaves_nothing_half_written(tools, slow, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "slow.safetensors").write_bytes(b"before")
    tools.start("slow", {"out": "slow.safetensors", "force": True})
    slow.gate.release()
    until(lambda: tools.status()["done"] == 1)
    tools.stop()
    assert tools.status()["state"] == "stopping"
    slow.gate.release()
    ended(tools, "stopped")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "tools").iterdir()] == [("slow.safetensors", b"before")] and tools.folders.heard == []
    with pytest.raises(ValueError, match="No tool is at work"):
        tools.stop()
    tools.start("join-loras", BOTH)  # and the next one goes
    ended(tools)


def test_the_end_of_the_program_ends_the_job(tools, slow, tmp_path):
    tools.start("slow", {})
    until(lambda: (tmp_path / "tools").is_dir() and list((tmp_path / "tools").iterdir()))
    closing = threading.Thread(target=tools.close)
    closing.start()
    until(lambda: tools.status()["state"] == "stopping")
    slow.gate.release()
    closing.join(60)
    assert tools.status()["state"] == "stopped" and not list((tmp_path / "tools").iterdir())


def test_a_failed_job_says_why_in_one_sentence(tools, tmp_path, slim, monkeypatch):
    tools.start("merge-lora", {"checkpoint": "cat.safetensors", "loras": BOTH["loras"]})
    now = ended(tools, "failed")
    assert now["error"] == "cat.safetensors is a LoRA, not a Stable Diffusion 1.5 checkpoint." and now["detail"] == "" and now["files"] == []
    monkeypatch.setattr("lib_tuner.tools.join_loras.join", lambda *args: 1 / 0)
    tools.start("join-loras", BOTH)
    now = ended(tools, "failed")
    assert "ZeroDivisionError" in now["error"] and "Traceback" in now["detail"] and not list((tmp_path / "tools").iterdir())


def test_a_host_that_does_not_list_the_file_does_not_lose_it(tools, tmp_path, monkeypatch):
    monkeypatch.setattr(Own, "made", lambda *args: 1 / 0)
    tools.start("join-loras", BOTH)
    assert "press the refresh button" in ended(tools)["said"][-1] and (tmp_path / "tools" / "cat-dog.safetensors").is_file()


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_a_recipe_is_kept_once_and_loaded_as_it_was(tools, tmp_path):
    path = tools.save_recipe("cat and 狗", BOTH["loras"])
    assert path == tmp_path / "recipes" / "cat and 狗.toml" and [file["name"] for file in tools.files() if file["kind"] == "recipe"] == [path.name]
    assert tools.read_recipe(path.name) == [{"file": "cat.safetensors", "unet": 0.5, "text_encoder": 0.5}, {"file": "dog.safetensors", "unet": -1.5, "text_encoder": 2.0}]
    assert run("join-loras", "--recipe", path, "-o", tmp_path / "x.safetensors") == 0  # the command line reads it, too
    tools.start("join-loras", BOTH)
    ended(tools)
    a, b = load_file(tmp_path / "x.safetensors"), load_file(tmp_path / "tools" / "cat-dog.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    for name, rows, words in (("cat and 狗", BOTH["loras"], "exists already"), ("../x", BOTH["loras"], "cannot be"), ("x", [], "no LoRA"), ("x", [{"file": "a", "wieght": 1}], "did you mean weight")):
        with pytest.raises((ValueError, FileExistsError), match=words):
            tools.save_recipe(name, rows)
