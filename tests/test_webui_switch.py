"""Grids along checkpoints inside the WebUI: each is loaded for its cells by the host's own means, and the user's model comes back however they end."""

from __future__ import annotations

import importlib
import json
import shutil
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_hosts import PROMPT, WHOLE, difference, last, of_method, run, values  # noqa: F401
from test_webui_traps import option
from worlds import DRAWN, REAL, SIZE, WORLDS, world_of

from lib_tuner.compare.applied import Use
from lib_tuner.compare.cells import Axis, Cell, Choice, Offer, plan_grid
from lib_tuner.compare.draw import Interrupted, Lost, draw
from lib_tuner.compare.numbers import FILE, numbers
from lib_tuner.events import Saved
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts import switched
from lib_tuner.measuring import saves_in
from lib_tuner.methods import settings
from lib_tuner.progress import sentence

REQUEST = GenerateRequest(PROMPT, width=SIZE, height=SIZE, steps=DRAWN, cfg=3.0, seed=3, plain=True)
OUT = "model.diffusion_model.out.2.bias"


@pytest.fixture(scope="module", params=[name for name in WORLDS if name not in ("standalone", "double-half")])
def world(request, tmp_path_factory) -> Any:
    with world_of(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


@pytest.fixture
def listed(world) -> Path:
    """A checkpoint of the host's list with a config of its own, so that it is loaded into a new object."""
    own = world.model.sd_checkpoint_info.filename
    return next(Path(i.filename) for i in world.w.sd_models.checkpoints_list.values() if i.filename != own and Path(i.filename).with_suffix(".yaml").is_file() and "inpaint" not in i.name)


@pytest.fixture
def unlisted(world, listed, tmp_path, monkeypatch) -> Path:
    """The same outside the host's folders and under its loaded model's config, as SD1.5's are: it is loaded into the object that is there."""
    if REAL:
        monkeypatch.setattr(importlib.import_module("modules.sd_models_config"), "config_default", world.model.used_config)
    path = tmp_path / "run" / listed.name  # by its bare name it is a file of the list
    path.parent.mkdir()
    return shutil.copyfile(listed, path)


@pytest.fixture(params=["listed", "unlisted"])
def other(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The files that the host is told to load, which draws random numbers by the way, as its slow way of building a model does."""
    told: list[str] = []
    monkeypatch.setattr(switched, "_load", lambda w, info, was=switched._load: (told.append(info.filename), torch.rand(1), was(w, info))[2])
    return told


@contextmanager
def chosen(world, path: Path):
    """As if the user had chosen it."""
    w, own, options = world.w, world.model.sd_checkpoint_info, dict(world.w.shared.opts.data)
    try:
        w.sd_models.reload_model_weights(info=w.sd_models.CheckpointInfo(str(path)))
        w.sd_models.checkpoint_aliases[w.shared.opts.sd_model_checkpoint] = world.model.sd_checkpoint_info
        yield
    finally:
        w.sd_models.list_models()
        w.sd_models.reload_model_weights(info=own)
        w.shared.opts.data.clear()
        w.shared.opts.data.update(options)


def hosts(world):
    host = world.host({})
    return lambda checkpoint: host.on(Path(checkpoint)) if checkpoint else host


def grid(world, *files: Path, uses: tuple[Use, ...] = (), text: str = "") -> Any:
    """Rows: two seeds, columns: these checkpoints."""
    offer = Offer(files=tuple(Choice(file, "checkpoint") for file in files))
    return plan_grid(Cell(REQUEST, uses), {"x": Axis("checkpoint", text or "; ".join(map(str, files)).replace("; ", ", ")), "y": Axis("seed", "3, 4")}, offer)


def pixels(drawn: Any) -> np.ndarray:
    assert drawn.picture is not None, drawn.error
    return np.asarray(drawn.picture.convert("RGB")).astype(int)


def state(world) -> dict[str, Any]:
    """All of the host; a model that was loaded anew is another object, its text encoder in a wrapper that may be in another mode, and of a file that was loaded the hash is known."""
    models = world.w.sd_models
    files = sorted(info.filename for info in models.checkpoints_list.values())
    return {**world.snapshot(), "cond_stage_model (module)": None, "model": world.model.sd_checkpoint_info.filename, "loaded": len(models.model_data.loaded_sd_models), "listed": files,
            "names of others": [name for name, info in models.checkpoint_aliases.items() if info.filename not in files]}  # fmt: skip


def test_each_checkpoint_is_loaded_once_and_draws_as_if_it_had_been_chosen(world, other, loads):
    own = Path(world.model.sd_checkpoint_info.filename)
    with chosen(world, other):
        expected = [world.picture(seed=seed) for seed in (3, 4)]
    mine = world.picture()
    world.w.shared.loaded_hypernetworks.append(SimpleNamespace(name="of the last picture"))
    before = state(world)
    plan = grid(world, other, own)
    drawn = {d.index: pixels(d) for d in draw(plan, hosts(world))}
    assert loads == [str(other), str(own)]
    assert [np.array_equal(drawn[plan.at(0, y)], expected[y]) for y in (0, 1)] == [True, True] and np.array_equal(drawn[plan.at(1, 0)], mine)
    assert np.abs(expected[0] - mine).max() > 2 and difference(before, state(world)) == {}
    world.w.shared.loaded_hypernetworks.clear()
    assert np.array_equal(world.picture(), mine)


@pytest.mark.parametrize("ending", ["error", "stopped", "interrupted"])
def test_the_users_model_comes_back_however_it_ends(world, other, ending, monkeypatch):
    w, mine = world.w, world.picture()
    before = state(world)
    with monkeypatch.context() as patch, nullcontext() if ending == "stopped" else pytest.raises((RuntimeError, Interrupted)):
        if ending == "error":
            patch.setattr(world.a1111.previews, "draw", lambda *given: (_ for _ in ()).throw(RuntimeError("on purpose")))
        elif ending == "interrupted":
            patch.setattr(world.a1111.previews, "draw", lambda *given, was=world.a1111.previews.draw: (w.shared.state.interrupt(), was(*given))[1])
        with closing(draw(grid(world, other), hosts(world))) as drawing:
            next(drawing)
            assert ending == "stopped" and world.model.sd_checkpoint_info.filename == str(other)
            assert w.shared.opts.data["sd_model_checkpoint"] == before["option sd_model_checkpoint"]
    assert difference(before, state(world)) == {} and np.array_equal(world.picture(), mine)


@pytest.mark.parametrize("ending", ["done", "stopped"])
def test_where_the_users_model_does_not_come_back_the_work_ends_with_that_sentence(world, other, ending, monkeypatch, caplog):
    w, own, told = world.w, world.model.sd_checkpoint_info, []

    def load(w: Any, info: Any, was: Any = switched._load) -> None:
        told.append(info.filename)
        if info is own:
            raise RuntimeError("no room\nfor it")
        was(w, info)

    monkeypatch.setattr(switched, "_load", load)
    try:
        with pytest.raises(Lost) as raised, closing(draw(grid(world, other, Path(own.filename)), hosts(world))) as drawing:
            next(drawing)
            if ending == "done":
                list(drawing)
        assert sentence(raised.value) == f"{own.model_name} could not be loaded again by the WebUI (no room): choose a checkpoint at the top of the page."
        assert told == [str(other), own.filename] and "could not load" in caplog.text
    finally:
        w.sd_models.reload_model_weights(info=own)


def test_what_is_no_checkpoint_of_its_kind_is_a_sentence_and_the_rest_is_drawn(world, other, tmp_path, loads):
    names = ("two", "cut", "wide", "gone", "lora", "nan")
    two, cut, wide, gone, lora, nan = files = [tmp_path / f"{name}.safetensors" for name in names]
    save_file({"cond_stage_model.model.ln_final.weight": torch.zeros(4)}, two)
    cut.write_bytes(other.read_bytes()[:5000])
    save_file({**load_file(other), OUT: torch.zeros(7)}, wide)
    save_file({**load_file(other), OUT: torch.full((4,), float("nan"))}, nan, {"tuner_unet_heads": "4", "tuner_text_heads": "4"})
    for file in (wide, nan) if other.with_suffix(".yaml").is_file() else ():
        shutil.copyfile(other.with_suffix(".yaml"), file.with_suffix(".yaml"))
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 1)}, lora)
    mine, before = world.picture(), state(world)
    plan = grid(world, *files, other)
    drawn = {d.index: d for d in draw(plan, hosts(world))}
    said = [drawn[plan.at(x, 0)].error for x in range(6)]
    assert "is a Stable Diffusion 2 model, not a full" in said[0] and "is cut off or damaged" in said[1] and "could not be loaded by the WebUI" in said[2]
    assert "is not there any more" in said[3] and "is a LoRA, not a full" in said[4]
    assert "got no picture, only NaN" in said[5] and [drawn[plan.at(6, y)].error for y in (0, 1)] == ["", ""]
    assert [Path(file).stem for file in loads][::2] == ["wide", "nan", other.stem]
    assert difference(before, state(world)) == {} and np.array_equal(world.picture(), mine)


def test_a_saved_adapter_is_put_on_the_checkpoint_and_taken_off_again(world, other, values):  # noqa: F811
    """Beside one that the last picture has left in the user's model, which is there afterwards."""
    saved = last(run(world, {**values, "name": "baked", "optim.lr": "2e-2", "sample.every": 0, "save_every": 0}), Saved)
    prompt = f"{PROMPT} <lora:{saved.names[saved.paths[0].name]}:1>"
    with chosen(world, other):
        plain, expected = world.picture(), world.picture(prompt)
    mine = world.picture(prompt)
    before = state(world)
    offer = Offer(files=(Choice(other, "checkpoint"), Choice(saved.paths[0])))
    plan = plan_grid(Cell(REQUEST), {"x": Axis("checkpoint", str(other)), "y": Axis("file", f"None, {saved.paths[0].stem}, None")}, offer)
    drawn = {d.index: pixels(d) for d in draw(plan, hosts(world))}
    assert np.array_equal(drawn[plan.at(0, 0)], plain) and np.abs(drawn[plan.at(0, 1)] - expected).max() <= 1 < np.abs(expected - plain).max()
    assert difference(before, state(world)) == {} and np.array_equal(world.picture(prompt), mine)
    world.picture()


def test_what_the_user_chooses_meanwhile_stands_and_its_list_may_be_read_anew(world, other, listed):
    w, opts = world.w, world.w.shared.opts
    own, title = opts.data["sd_model_checkpoint"], next(info.title for info in w.sd_models.checkpoints_list.values() if info.filename == str(listed))
    try:
        with closing(draw(grid(world, other), hosts(world))) as drawing:
            first = next(drawing)
            w.sd_models.list_models()
            opts.data["sd_model_checkpoint"] = title
            rest = list(drawing)
        assert first.picture and [d.error for d in rest] == [""]
        assert opts.data["sd_model_checkpoint"] == title and world.model.sd_checkpoint_info.title == own
    finally:
        opts.data["sd_model_checkpoint"] = own
        world.picture()


def test_what_the_user_chooses_within_a_picture_stands_and_the_settings_never_name_another(world, other, listed, tmp_path):
    w, opts, saved = world.w, world.w.shared.opts, []
    own, title = opts.data["sd_model_checkpoint"], next(info.title for info in w.sd_models.checkpoints_list.values() if info.filename == str(listed))

    def choose(*given: Any) -> None:
        opts.save(str(tmp_path / "config.json"))
        saved.append(json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["sd_model_checkpoint"])
        opts.data["sd_model_checkpoint"] = title

    host = hosts(world)(str(other))
    try:
        with host.exclusive() as sd:
            hook = sd.unet.register_forward_hook(choose)
            first = host.generate([REQUEST])[0]
            hook.remove()
            assert saved[0] == own and set(saved[1:]) == {title} and opts.data["sd_model_checkpoint"] == title
            assert np.array_equal(np.asarray(first), np.asarray(host.generate([REQUEST])[0]))
        assert opts.data["sd_model_checkpoint"] == title and world.model.sd_checkpoint_info.title == own
    finally:
        opts.data["sd_model_checkpoint"] = own
    world.picture()


@contextmanager
def several(world, limit: int):
    """As if its user had set that so many models are kept in memory; one again afterwards."""
    data = world.w.sd_models.model_data
    with option(world.w.shared.opts, "sd_checkpoints_limit", limit):
        try:
            yield data
        finally:
            for model in [m for m in data.loaded_sd_models if m is not data.sd_model]:
                data.loaded_sd_models.remove(model)
                world.w.sd_models.send_model_to_trash(model)


def known(world) -> list[bool]:
    """Whether the host knows its model's layers and text encoder as its own."""
    hijack = world.w.sd_hijack.model_hijack
    return [hijack.clip is world.model.cond_stage_model, any(layer is world.model.model.diffusion_model.out[2] for layer in hijack.layers)]


def test_where_the_host_keeps_several_models_in_memory_none_of_ours_stays(world, other):
    model = world.model
    with several(world, 2):
        before = state(world)
        drawn = list(draw(grid(world, other), hosts(world)))
        assert [d.error for d in drawn] == ["", ""] and difference(before, state(world)) == {} and world.model is model and known(world) == [True, True]


def test_a_model_in_memory_into_which_a_file_of_ours_was_put_is_not_left_under_its_name(world, unlisted, tmp_path):
    w, model, own = world.w, world.model, world.model.sd_checkpoint_info
    with several(world, 2) as data:
        with w.sd_models.SkipWritingToConfig():
            w.sd_models.reload_model_weights(info=w.sd_models.CheckpointInfo(str(shutil.copyfile(unlisted, tmp_path / "beside.safetensors"))))
            w.sd_models.reload_model_weights(info=own)
        w.sd_models.list_models()
        mine = world.picture()
        assert len(data.loaded_sd_models) == 2
        drawn = list(draw(grid(world, unlisted), hosts(world)))
        assert [d.error for d in drawn] == ["", ""] and data.loaded_sd_models == [model] and world.model is model
        assert np.array_equal(world.picture(), mine)


@pytest.mark.parametrize("beside", [False, True])
def test_after_a_failed_load_the_model_that_is_still_in_memory_is_taken(world, listed, tmp_path, beside):
    w, model, own, wide = world.w, world.model, world.model.sd_checkpoint_info, tmp_path / "wide.safetensors"
    save_file({**load_file(listed), OUT: torch.zeros(7)}, wide)
    shutil.copyfile(listed.with_suffix(".yaml"), wide.with_suffix(".yaml"))
    mine = world.picture()
    with several(world, 2) as data:
        if beside:
            with w.sd_models.SkipWritingToConfig():
                w.sd_models.reload_model_weights(info=next(i for i in w.sd_models.checkpoints_list.values() if i.filename == str(listed)))
                w.sd_models.reload_model_weights(info=own)
        drawn = list(draw(grid(world, wide), hosts(world)))
        assert "could not be loaded by the WebUI" in drawn[0].error
        assert data.loaded_sd_models == [model] and world.model is model and known(world) == [True, True]
    assert np.array_equal(world.picture(), mine)


def test_files_that_the_host_keeps_in_memory_are_those_of_its_user_and_it_makes_no_entry_of_ours(world, unlisted, monkeypatch):
    models = world.w.sd_models
    monkeypatch.setattr(models, "CheckpointInfo", lambda file: pytest.fail(f"the host keeps metadata of {file}"))
    with option(world.w.shared.opts, "sd_checkpoint_cache", 2):
        models.checkpoints_loaded["one of the user's"] = {}
        try:
            assert [d.error for d in draw(grid(world, unlisted), hosts(world))] == ["", ""] and dict(models.checkpoints_loaded) == {"one of the user's": {}}
        finally:
            models.checkpoints_loaded.clear()


def test_where_the_webui_moves_models_in_pieces_none_is_loaded_for_it(world, other, loads, monkeypatch):
    monkeypatch.setattr(world.model, "lowvram", True)
    assert all("--medvram" in d.error for d in draw(grid(world, other), hosts(world))) and loads == []


def test_the_loaded_checkpoint_is_not_read_for_its_own_cells(world, loads, monkeypatch):
    """It may be one without a VAE, which the host has from elsewhere."""
    monkeypatch.setattr(switched, "read_checkpoint", lambda path: (_ for _ in ()).throw(ValueError("no VAE")))
    assert [d.error for d in draw(grid(world, Path(world.model.sd_checkpoint_info.filename)), hosts(world))] == ["", ""] and loads == []


def test_a_model_that_somebody_else_loads_meanwhile_is_noticed(world, other):
    w, own = world.w, world.model.sd_checkpoint_info
    host = hosts(world)(str(other))
    with pytest.raises(ValueError, match="loaded another model"), host.exclusive():
        host.generate([REQUEST])
        with w.sd_models.SkipWritingToConfig():
            w.sd_models.reload_model_weights(info=own)
        host.generate([REQUEST])
    assert world.model.sd_checkpoint_info.filename == own.filename


def test_checkpoints_of_dreambooth_are_measured_on_the_loaded_model_as_the_models_that_they_are(world, values):  # noqa: F811
    w, given = world.w, of_method(values, {**WHOLE, "name": "measured", "trigger": "thing", "optim.lr": "1e-4", "dreambooth.save_dtype": "fp32", "save_every": 1, "sample.every": 0})
    saved = last(run(world, given), Saved)
    folder, cfg = saved.paths[0].parent, settings(given)
    mine, before = world.picture(), state(world)
    saves = saves_in(folder)
    rows = list(numbers(folder, cfg, saves, world.host(given)))
    assert [row.step for row in rows] == [0, 1, 2] and rows[0].drift == 0 < rows[1].drift and rows[2].loss != rows[0].loss
    assert difference(before, state(world)) == {} and np.array_equal(world.picture(), mine)
    (folder / FILE).unlink()
    for row, save in zip(rows[1:], saves):  # what the host itself makes of each
        alone = next(numbers(folder, cfg, [], world.host(given).on(save.files[0])))
        assert alone.loss == pytest.approx(row.loss, rel=1e-5) and alone.gain == pytest.approx(row.gain, abs=1e-5)
        (folder / FILE).unlink()
    assert w.shared.opts.data["sd_model_checkpoint"] == world.model.sd_checkpoint_info.title


def test_a_run_still_trains_what_is_loaded(world, other):
    with pytest.raises(ValueError, match="checkpoint: inside the WebUI"), world.host({"checkpoint": str(other)}).exclusive():
        pass
    assert settings({}).checkpoint == ""
