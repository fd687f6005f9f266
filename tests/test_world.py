"""The drawn world, the judge, the shipped model, and the demo on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib_tuner.demo import run
from lib_tuner.demo.evaluate import evaluate, scores
from lib_tuner.demo.judge import Judge, interval
from lib_tuner.demo.phase import Phase
from lib_tuner.demo.pretrain_vae import new_vae, pictures, whiten
from lib_tuner.demo.world import ATTRIBUTES, COLOURS, HELD_OUT_FILLS, HELD_OUT_SHAPES, PHRASES, caption, draw, random_scenes
from lib_tuner.sd.tokenizer import Tokenizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawings_are_a_function_of_scene_and_seed():
    scenes = random_scenes(16, generator(), held_out=True)
    assert torch.equal(draw(scenes, generator(1)), draw(scenes, generator(1))) and not torch.equal(draw(scenes, generator(1)), draw(scenes, generator(2)))


def test_the_centre_of_a_solid_square_has_the_colour_asked_for_and_the_corner_that_of_the_background():
    scenes = random_scenes(8, generator()).fixed(shape="square", fill="solid", place="center", size="large", background="white")
    pixels = (draw(scenes, generator()) + 1) / 2
    for i, picture in enumerate(pixels):
        wanted = torch.tensor(COLOURS[scenes.words(i)["colour"]]) / 255
        assert torch.allclose(picture[:, 32, 32], wanted, atol=0.08) and float(picture[:, 0, 0].min()) > 0.85


def test_what_is_held_out_is_in_no_ordinary_scene():
    scenes = random_scenes(4000, generator())
    seen = {name: {scenes.words(i)[name] for i in range(4000)} for name in ("shape", "fill")}
    assert seen["shape"] == set(ATTRIBUTES["shape"]) - set(HELD_OUT_SHAPES) and seen["fill"] == set(ATTRIBUTES["fill"]) - set(HELD_OUT_FILLS)


def test_captions_fit_the_short_context_of_the_pre_training():
    tokenizer, scenes = Tokenizer(), random_scenes(60, generator())
    assert max(len(tokenizer.encode(caption(scenes.words(i), i % len(PHRASES)))) for i in range(60)) + 2 <= 24


def test_the_vae_starts_as_block_averages_and_whitening_changes_no_picture():
    vae, x = new_vae(0), pictures(8, generator(3))
    with torch.no_grad():
        before = vae.decode(vae.encode(x)[0])
        averages = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 8), scale_factor=8)
        assert float(((before - averages) ** 2).mean()) < 0.01
        whiten(vae, pictures(48, generator(4)))
        z = vae.encode(pictures(48, generator(4)))[0] * 0.18215
        assert torch.allclose(vae.decode(vae.encode(x)[0]), before, atol=1e-2)
    flat = z.movedim(1, -1).flatten(0, 2)
    assert torch.allclose(torch.cov(flat.T), torch.eye(4), atol=0.2) and float(flat.mean(0).abs().max()) < 0.1


def test_a_phase_warms_up_holds_and_ends_low():
    phase = Phase("x", steps=100, lr=1.0, warmup=10, hold=0.3)
    assert [phase.rate(0), phase.rate(9), phase.rate(30)] == [0.1, 1.0, 1.0] and 0.01 < phase.rate(99) < 0.02


def test_wilsons_interval_is_the_textbooks():
    low, high = interval(0.9, 200)
    assert (round(low, 3), round(high, 3)) == (0.851, 0.934)


def test_the_judge_is_right_on_drawings():
    scenes = random_scenes(600, generator(9), held_out=True)
    parts = scores(Judge.load(), draw(scenes, generator(10)), scenes)
    assert min(part for part, _, _ in parts.values()) >= 0.97, parts


def test_a_fill_is_said_to_show_where_the_drawing_has_it():
    scenes = random_scenes(400, generator(3), held_out=True).fixed(fill="outlined")
    apart = (draw(scenes, generator(4)) - draw(scenes.fixed(fill="solid"), generator(4))).abs().sum(1)
    pixels = (apart > 0.3).sum((1, 2))
    hidden = ~scenes.fill_shows()
    assert hidden.any() and float(pixels[hidden].float().median()) <= 4 and int(pixels[~hidden].min()) > 4
    assert scenes.fixed(fill="striped").fill_shows().all()


def test_the_shipped_model_draws_what_the_prompt_says():
    report = evaluate(count=48)
    made = {name: report["generated"][name][0] for name in ATTRIBUTES}
    wanted = {"shape": 0.91, "colour": 0.95, "background": 0.95, "fill": 0.84, "size": 0.89}  # what the README states, less what 48 prompts can miss by chance
    assert all(made[name] >= least for name, least in wanted.items()), made
    assert report["kinds"]["colour"][0] == report["kinds"]["colour"][1] and report["kinds"]["shape"][0] == report["kinds"]["shape"][1]
    assert 0.9 < report["colourfulness"] < 1.15


@pytest.fixture
def demo(monkeypatch):
    """The demo as far as its folders: `demo(out)` ends where it would draw."""
    monkeypatch.setattr(run, "write_data", lambda folder: (_ for _ in ()).throw(InterruptedError))

    def began(out: object) -> None:
        with pytest.raises(InterruptedError):
            run.main(SimpleNamespace(out=str(out), json=True), None)

    return began


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_demo_leaves_what_else_is_in_its_folder_and_takes_its_own_away(tmp_path, demo):
    mine = ["data/cat.png", "other/deep.txt", "runs/my-cat/state.pt", "words.txt"]
    put(tmp_path, *mine)
    demo(tmp_path)
    assert set(files(tmp_path)) == {*mine, "demo-files/made-by-the-demo.txt"}
    put(tmp_path / "demo-files", "data/moon/000.png", "runs/lora-1/x", "notes.txt")
    demo(tmp_path)
    assert set(files(tmp_path)) == {*mine, "demo-files/made-by-the-demo.txt", "demo-files/notes.txt"}


def test_the_demo_deletes_nothing_in_a_folder_that_it_has_not_made(tmp_path, demo, capsys):
    put(tmp_path, "demo-files/data/cat.png")
    with pytest.raises(ValueError, match=r"demo-files is there and not of the demo, .*another folder with --out\.$"):
        run.main(SimpleNamespace(out=str(tmp_path), json=True), None)
    assert files(tmp_path) == ["demo-files/data/cat.png"]


@pytest.mark.skipif(os.name == "nt", reason="another variable names the home there")
def test_the_demos_folder_may_be_named_from_home(tmp_path, demo, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    demo("~/shown")
    assert (tmp_path / "shown" / "demo-files").is_dir()


@pytest.mark.filterwarnings("ignore")
def test_the_demo_learns_both_subjects_and_keeps_the_rest(tmp_path):
    command = [sys.executable, "-m", "lib_tuner", "demo", "--no-venv", "--json", "--out", str(tmp_path / "demo")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}  # as a user starts it
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["embedding"]["before"] < 0.2 and report["embedding"]["after"] >= 0.9
    seen = interval(report["lora"]["after"], run.JUDGED)  # a CPU without bf16 instructions learns from other roundings: 0.79 instead of 0.90
    assert report["lora"]["before"] < 0.1 and seen[1] >= 0.85 and report["lora"]["kept"] >= 0.8
    assert all((tmp_path / "demo" / name).is_file() for name in ("embedding.safetensors", "lora.safetensors", "grid.png"))
