"""How the Tuner enters the WebUI: tab, settings, axes, routes; once, after every Reload UI too, and not where the host is open to the network."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from conftest import until
from fastapi.testclient import TestClient
from PIL import Image
from tool_files import lora

from lib_tuner.config import options, to_toml
from lib_tuner.hosts import extension
from lib_tuner.methods import settings
from lib_tuner.settings import TrainConfig
from lib_tuner.ui import webui_page

ROOT = Path(__file__).resolve().parent.parent
OURS = {"X-Tuner": "test"}
AXES = ["[Tuner] Run step", "[Tuner] LoRA", "[Tuner] LoRA weight", "[Tuner] Embedding"]


def starting(folder: Path, **how: Any) -> Any:
    from webui_double.start import started

    extension.jobs_of.cache_clear()
    return started(folder, extensions={"tuner": ROOT}, page=True, **how)


@pytest.fixture(scope="module")
def double(tmp_path_factory) -> Any:
    with starting(tmp_path_factory.mktemp("extension")) as made:
        yield made


def texts(double: Any) -> str:
    """What the page says in HTML, the Tuner's tab included."""
    return " ".join(str(block.value) for block in double.modules.shared.demo.blocks.values() if isinstance(block, gr.HTML))


def tab_of(double: Any) -> Any:
    return next(tab for tab in double.modules.shared.demo.tabs if tab[1] == "Tuner")


def client_of(double: Any, **how: Any) -> TestClient:
    return TestClient(double.app, base_url="http://127.0.0.1", **how)


def axes_of(double: Any) -> list[Any]:
    plot = next(data.module for data in double.modules.scripts.scripts_data if data.script_class.__module__ == "xyz_grid.py")
    return [option for option in plot.axis_options if option.label.startswith("[Tuner]")]


# ---- what is there ---------------------------------------------------------------------------------------------------


def test_the_host_gets_tab_settings_axes_and_routes_each_once(double):
    assert double.errors == []
    assert tab_of(double)[2] == "tuner" and "tuner-live" in texts(double)
    assert [option.label for option in axes_of(double)] == AXES
    assert {"tuner_memory_pin", "tuner_preset", "tuner_output"} <= double.modules.shared.opts.data_labels.keys()
    assert client_of(double).get("/tuner/api/status").json()["now"] is None


def test_settings_that_the_host_decides_are_not_in_the_form(double):
    shown = {block.elem_id for block in double.modules.shared.demo.blocks.values() if getattr(block, "elem_id", None)}
    assert "tuner-f-webui-styles" in shown and "tuner-f-optim-lr" in shown
    assert not {f"tuner-f-{key.replace('.', '-')}" for key in extension.DECIDED} & shown


def test_reload_ui_draws_the_tab_anew_and_keeps_queue_and_run(double, data_folder):
    client = client_of(double)
    wanted = {"name": "enduring", "data.folder": str(data_folder), "steps": 400, "data.resolution": 64, "data.bucket_min": 64, "lora.rank": 2, "save_every": 0}
    assert client.post("/tuner/api/runs", json={"settings": wanted}, headers=OURS).status_code == 200
    going = until(lambda: (now := client.get("/tuner/api/status").json()["now"]) and now["step"] > 2 and now)
    before = tab_of(double)
    double.reload_ui()
    again = client_of(double)
    later = until(lambda: (now := again.get("/tuner/api/status").json()["now"]) and now["step"] > going["step"] + 3 and now)
    assert later["id"] == going["id"] and later["state"] == "running" and tab_of(double) is not before
    assert [option.label for option in axes_of(double)] == AXES and double.errors == []
    again.post("/tuner/api/do/stop", headers=OURS)
    assert until(lambda: (now := again.get("/tuner/api/status").json()["now"])["state"] == "stopped" and now)["files"]


def test_a_run_asked_for_by_a_script_is_usable_in_a_prompt_and_on_the_axes(double, data_folder):
    client = client_of(double)
    wanted = {"name": "asked", "data": {"folder": str(data_folder), "resolution": 64, "bucket_min": 64}, "steps": 4, "save_every": 2, "optim.lr": "2e-2",
              "lora": {"rank": 2}}  # fmt: skip
    client.post("/tuner/api/runs", json={"settings": wanted}, headers=OURS)
    now = until(lambda: (now := client.get("/tuner/api/status").json()["now"]) and now["name"] == "asked" and now["state"] == "done" and now)
    assert [file["use"].split(":")[1] for file in now["files"]] == ["asked", "asked-001-000002"]
    pictures = [double.txt2img(f"a ball <lora:{name}:1>").tobytes() for name in ("asked", "asked-001-000002")]
    assert len({double.txt2img("a ball").tobytes(), *pictures}) == 3
    run_step, lora, weight, _ = axes_of(double)
    p = SimpleNamespace(prompt="a ball")
    run_step.apply(p, "asked-001 2", [])
    assert p.prompt == "a ball <lora:asked-001-000002:1>"
    lora.apply(p, "asked", [])
    weight.apply(p, 0.5, [])
    assert p.prompt == "a ball <lora:asked:0.5>" and "asked-001 end" in run_step.choices()
    first = SimpleNamespace(prompt="a ball")
    weight.apply(first, 0.25, [])  # the weight's axis comes first
    run_step.apply(first, "asked-001 end", [])
    assert first.prompt == "a ball <lora:asked:0.25>"
    with pytest.raises(ValueError, match="is no save"):
        run_step.confirm(p, ["asked-001 7"])
    run = client.get("/tuner/api/runs").json()[0]["id"]
    assert client.post(f"/tuner/api/runs/{run}/delete", headers=OURS).status_code == 200
    lora_dir = Path(double.modules.shared.cmd_opts.lora_dir)
    assert (lora_dir / "asked.safetensors").is_file() and not (lora_dir / "asked-001-000002.safetensors").exists()


# ---- settings --------------------------------------------------------------------------------------------------------


def test_what_a_person_has_changed_among_the_hosts_training_settings_is_where_ours_start(double):
    opts, w = double.modules.shared.opts, SimpleNamespace(shared=double.modules.shared, paths=double.modules.paths)
    known = {o.key: o.default for o in options(TrainConfig)}
    extension.add_settings(w)
    assert opts.data_labels["tuner_memory_pin"].default is False and opts.data_labels["tuner_csv_every"].default == known["csv_every"]
    changed = {"pin_memory": True, "unload_models_when_training": True, "training_write_csv_every": 50}
    before = {key: opts.data.get(key) for key in changed}
    opts.data.update(changed)
    try:
        extension.add_settings(w)
        found = {key: opts.data_labels[extension.option_name(key)].default for key in ("memory.pin", "memory.offload", "csv_every", "save_optimizer")}
        assert found == {"memory.pin": True, "memory.offload": True, "csv_every": 50, "save_optimizer": False}
    finally:
        opts.data.update(before)
        extension.add_settings(w)


def test_an_output_folder_in_the_home_of_nobody_is_a_folder_of_that_name(double):
    w = SimpleNamespace(shared=SimpleNamespace(opts=SimpleNamespace(data={"tuner_output": "~nobody-here/tuner"})), paths=double.modules.paths)
    assert extension.home_of(w) == Path.cwd() / "~nobody-here" / "tuner"


def test_the_form_starts_with_the_settings_tab(double, tmp_path):
    opts, w = double.modules.shared.opts, SimpleNamespace(shared=double.modules.shared, paths=double.modules.paths)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.toml").write_text("version = 1\nsteps = 77\n")
    opts.data.update({"tuner_csv_every": 5, "tuner_preset": "mine"})
    try:
        values = extension.start_values(w, tmp_path)
        assert (values["csv_every"], values["steps"], values["output"]) == (5, 77, str(tmp_path))
        opts.data["tuner_preset"] = "gone"
        assert "steps" not in extension.start_values(w, tmp_path)
    finally:
        opts.data.update({"tuner_csv_every": 1, "tuner_preset": ""})


# ---- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "open_"), [
    ({"listen": True}, True), ({"share": True}, True), ({"server_name": "0.0.0.0"}, True), ({"listen": True, "gradio_auth": "ann:secret"}, False),
    ({"listen": True, "enable_insecure_extension_access": True}, False), ({}, False),
])  # fmt: skip
def test_a_host_that_the_network_reaches_without_a_login_is_refused(flags, open_):
    names = ("listen", "share", "ngrok", "server_name", "gradio_auth", "gradio_auth_path", "enable_insecure_extension_access")
    options_ = SimpleNamespace(**{name: flags.get(name) for name in names})
    assert extension.is_open(SimpleNamespace(shared=SimpleNamespace(cmd_opts=options_))) is open_


# ---- from other tabs ---------------------------------------------------------------------------------------------------


def made_tab(home: Path, **more: Any) -> webui_page.WebUITab:
    shared = webui_page.WebUIShared(SimpleNamespace(history=lambda: []), None, home, {}, **more)
    with gr.Blocks():
        return webui_page.WebUITab(shared)


def test_samples_get_the_settings_of_the_txt2img_tab(tmp_path):
    shown = {"txt2img_prompt": "a cat\nin a hat", "txt2img_steps": 7, "txt2img_seed": -1, "txt2img_sampling": "DPM++ SDE", "txt2img_scheduler": "Automatic",
             "txt2img_styles": ["one", "two"], "txt2img_hr_scale": 2.0, webui_page.HIRES: False}  # fmt: skip
    with gr.Blocks():
        components = {name: gr.Textbox() for name in shown}
    tab = made_tab(tmp_path, components=components)
    answer = tab.samples_taken({component: shown[name] for name, component in components.items()})
    got = {key: answer[widget]["value"] for key, widget in tab.form.widgets.items() if widget in answer}
    assert got["sample.prompts"] == "a cat in a hat" and got["sample.steps"] == 7 and got["sample.seed"] == 1
    assert (got["webui.sampler"], got["webui.scheduler"], got["webui.styles"], got["webui.hires_scale"]) == ("DPM++ SDE", "", "one, two", 0.0)


def test_a_gallerys_picture_goes_into_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gr, "Info", lambda text: None)
    picture = Image.new("RGB", (8, 8))
    picture.info["parameters"] = "a cat\nSteps: 2"
    tab = made_tab(tmp_path, picture=lambda shown: {"first": None, "second": picture}[shown])
    folder, _ = tab.picture_taken(["first", "second"], 1, "")
    assert folder == str(tmp_path / "pictures") and (tmp_path / "pictures" / "taken-0001.txt").read_text() == "a cat"
    assert "no picture" in tab.picture_taken([], 0, "x")[1]


# ---- installing --------------------------------------------------------------------------------------------------------


def test_install_installs_nothing():
    source = (ROOT / "install.py").read_text()
    imported = {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
    assert imported == {"importlib.util"} and "pip" not in source.replace("pillow", "")
    done = subprocess.run([sys.executable, str(ROOT / "install.py")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_install_says_what_is_missing():
    code = f"import runpy, sys, importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == 'einops' else f(n); runpy.run_path({str(ROOT / 'install.py')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "lacks einops" in done.stdout


# ---- the tools ---------------------------------------------------------------------------------------------------------


def test_what_a_tool_makes_lies_where_the_host_looks_and_is_in_its_lists_at_once(double):
    client, m = client_of(double), double.modules
    lora_dir = Path(m.shared.cmd_opts.lora_dir)
    for i, name in enumerate(("one", "two")):
        lora(lora_dir / f"{name}.safetensors", seed=i)
    kinds = {file["name"]: file["kind"] for file in client.get("/tuner/api/tools/files").json()}
    assert (kinds["one.safetensors"], kinds["first.safetensors"]) == ("lora", "checkpoint")

    def make(tool: str, **values: Any) -> dict:
        assert client.post(f"/tuner/api/tools/{tool}/start", json={"values": values}, headers=OURS).status_code == 200
        return until(lambda: (job := client.get("/tuner/api/tools/job").json()["job"])["state"] not in ("running", "stopping") and job)

    joined = make("join-loras", loras=[{"file": "one.safetensors"}, {"file": "two.safetensors", "weight": 0.5}])
    assert joined["state"] == "done" and joined["files"][0]["path"] == str(lora_dir / "one-two.safetensors") and "one-two" in m.networks.available_networks
    chosen = m.shared.opts.data.get("sd_model_checkpoint")
    merged = make("merge-checkpoints", a="first.safetensors", b="second.safetensors", weight=0.3)
    assert merged["state"] == "done" and Path(merged["files"][0]["path"]).parent == Path(m.sd_models.model_path)
    assert "first-second.safetensors" in m.sd_models.checkpoints_list and m.shared.opts.data.get("sd_model_checkpoint") == chosen
    double.reload_ui()  # the last job is found again, by whoever opens the page then
    assert client_of(double).get("/tuner/api/tools/job").json()["job"]["id"] == merged["id"] and "tuner-tools-root" in texts(double)


def test_a_lora_that_is_replaced_is_the_new_one_in_the_next_picture(double):
    client, m = client_of(double), double.modules
    lora_dir = Path(m.shared.cmd_opts.lora_dir)
    lora(lora_dir / "weak.safetensors")
    pictures = []
    for alpha in (0.1, 3.0):
        client.post("/tuner/api/tools/scale/start", json={"values": {"file": "weak.safetensors", "alpha": alpha, "out": "scaled.safetensors", "force": True}}, headers=OURS)
        assert until(lambda: (job := client.get("/tuner/api/tools/job").json()["job"])["state"] not in ("running", "stopping") and job)["state"] == "done"
        pictures.append(double.txt2img("a ball <lora:scaled:1>").tobytes())
    assert pictures[0] != pictures[1] and double.errors == []


# ---- comparisons -----------------------------------------------------------------------------------------------------


def cell_of(double: Any, **order: Any) -> Image.Image:
    """The one picture of a grid, as a script gets it."""
    client = client_of(double)
    order = {"prompt": "a red star", "width": 64, "height": 64, "steps": 2, "cfg": 3.0, "seed": 3, **order}
    assert client.post("/tuner/api/compare/start", json=order, headers=OURS).status_code == 200
    until(lambda: client.get("/tuner/api/compare/status").json()["work"]["state"] not in ("running", "stopping"), 60)
    assert client.get("/tuner/api/compare/status").json()["work"]["state"] == "done"
    return Image.open(io.BytesIO(client.get("/tuner/api/compare/cells/0").content))


def test_a_comparison_without_a_run_is_what_txt2img_draws_with_the_clip_skip_that_is_set(double):
    opts = double.modules.shared.opts
    skip = opts.data.get("CLIP_stop_at_last_layers", 1)
    opts.data["CLIP_stop_at_last_layers"] = 2
    try:
        theirs, ours = double.process("a red star", seed=3, steps=2, cfg_scale=3.0).images[0], cell_of(double)
    finally:
        opts.data["CLIP_stop_at_last_layers"] = skip
    assert ours.tobytes() == theirs.tobytes() and ours.text["parameters"] == theirs.info["parameters"]
    assert "Sampler: DDIM" in ours.text["parameters"] and "Clip skip: 2" in ours.text["parameters"]


def test_a_comparison_on_a_runs_model_has_its_clip_skip_and_the_size_that_was_asked_for(double):
    client = client_of(double)
    folder = Path(extension.home_of(double.modules)) / "large-001"
    folder.mkdir(parents=True)
    (folder / "settings.toml").write_text(to_toml(settings({"name": "large", "clip_skip": 2, "webui.hires_scale": 2.0, "webui.hires_upscaler": "Latent", "webui.sampler": "DPM++ SDE", "webui.scheduler": "Exponential"})))
    lora(folder / "large.safetensors")
    run = next(row["id"] for row in client.get("/tuner/api/runs").json() if row["folder"] == str(folder))
    ours = cell_of(double, run=run, sampler="dpmpp_2m")
    assert ours.size == (64, 64) and "Hires" not in ours.text["parameters"]
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in ours.text["parameters"] and "Clip skip: 2" in ours.text["parameters"]
