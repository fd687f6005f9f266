"""Every method with every feature: each cell is tried here, or refused in one sentence before anything is loaded. README's table says the same.

A new method or a new feature: fill in its row or its column of `TABLE`, and README's table. Nothing is drawn or saved but for the averages' column, and the
model is shared, so that all cells take seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL_VAE
from PIL import Image
from torch import Tensor

from lib_tuner.data.batches import Batches, validation
from lib_tuner.events import Finished, Sampled, Started, Stepped, Validated
from lib_tuner.host import Components, LoadReport
from lib_tuner.methods import METHODS, settings
from lib_tuner.methods.metadata import Made
from lib_tuner.optim import make_optimizer
from lib_tuner.sd.clip import CLIPSizes, CLIPText
from lib_tuner.sd.files import read_tensors, save_checkpoint
from lib_tuner.sd.loss import generator_for
from lib_tuner.sd.schedule import Schedule
from lib_tuner.sd.text import TextEncoder
from lib_tuner.sd.unet import UNet, UNetSizes
from lib_tuner.sd.vae import VAE, Autoencoder
from lib_tuner.step import State, Step
from lib_tuner.train import train

SMALL = {"rank": 2, "alpha": 2, "blocks": "IN04, M00", "save_dtype": "fp32"}
OWN: dict[str, dict[str, Any]] = {  # what makes a method small, exact to compare, and its file fp32
    "lora": SMALL,
    "locon": {**SMALL, "conv_rank": 1, "conv_alpha": 1},
    "loha": SMALL,
    "lokr": {**SMALL, "factor": 4},
    "adalora": {**SMALL, "first_rank": 3, "orthogonal": 0.0, "share_from": 0.0, "share_every": 1},
    "textual_inversion": {"vectors": 2, "init": "red"},
    "pivotal": {"inversion_steps": 0, "words.vectors": 2, "words.init": "red", **{f"layers.{key}": value for key, value in SMALL.items()}},
    "dreambooth": {"blocks": "IN04, M00", "save_dtype": "fp32"},
    "hypernetwork": {"structure": "1, 1, 1"},
    "t2i_adapter": {"save_dtype": "fp32"},
    "controlnet": {"save_dtype": "fp32"},
}


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A cell that works: the check is run with these settings beside the feature's own."""

    own: dict[str, Any] = field(default_factory=dict)
    mark = "✓"


@dataclass(frozen=True)
class Refused:
    """A cell that makes no sense: these settings are refused in a sentence that begins so."""

    own: dict[str, Any]
    sentence: str
    mark = "–"


Cell = "Tried | Refused"
ADAPTERS = ("lora", "locon", "loha", "lokr", "adalora")
HINTED = ("t2i_adapter", "controlnet")


def everywhere(**but: Any) -> dict[str, Any]:
    """Tried with every method, but for those given."""
    return {**dict.fromkeys(METHODS, Tried()), **but}


def no_blocks(kind: str, why: str) -> Refused:
    return Refused({f"{kind}.blocks": "M00"}, f"{kind}.blocks: {why}")


def no_prior(kind: str, why: str) -> Refused:
    return Refused({"prior.weight": 1.0, "prior.prompt": "a cat"}, f"prior.weight: {why}")


def alone(kind: str) -> Refused:
    return Refused({"method": f"{kind}+textual_inversion"}, f"method: {kind} and textual_inversion are not trained at once; a word beside a LoRA, LoHa or LoKr is: method = pivotal")


CLASS_PICTURES = {"data.class_folder": "class", "data.class_weight": 0.25}
TABLE: dict[str, dict[str, Any]] = {
    "masks": everywhere(),
    "blocks": everywhere(
        textual_inversion=no_blocks("textual_inversion", "a word is learned in the text encoder's input"), hypernetwork=no_blocks("hypernetwork", "its networks are shared by all"),
        t2i_adapter=no_blocks("t2i_adapter", "the network beside the UNet learns as a whole"), controlnet=no_blocks("controlnet", "the network beside the UNet learns as a whole"),
    ),
    "validation": everywhere(),
    "EMA": everywhere(),
    "a word beside": everywhere(
        lora=Tried({"pivotal.adapter": "lora"}), locon=Tried({"pivotal.adapter": "lora", "pivotal.layers.conv_rank": 1}), loha=Tried({"pivotal.adapter": "loha"}),
        lokr=Tried({"pivotal.adapter": "lokr"}), textual_inversion=Tried({"pivotal.words.embeddings": "zorb | 2 | red; blip | 1 | cat"}),
        **{kind: alone(kind) for kind in ("adalora", "dreambooth", "hypernetwork", *HINTED)},
    ),
    "accumulation": everywhere(),
    "class pictures": everywhere(textual_inversion=Refused(CLASS_PICTURES, "data.class_folder: a word leaves the model as it is")),
    "frozen prior": everywhere(
        textual_inversion=no_prior("textual_inversion", "a word leaves the model as it is"), **{kind: no_prior(kind, "without its hint the model is the frozen one") for kind in HINTED},
    ),
    "inpainting": everywhere(),  # tried in test_inpaint, for every method there is
}  # fmt: skip


def cells(feature: str) -> list[str]:
    return [kind for kind, cell in TABLE[feature].items() if isinstance(cell, Tried)]


def test_every_method_has_a_cell_of_every_feature():
    """`everywhere` fills in what is not said, so each method has to be known here by its own settings too."""
    assert {feature: row.keys() ^ METHODS.keys() for feature, row in TABLE.items()} == {feature: set() for feature in TABLE}
    assert OWN.keys() == METHODS.keys()


@pytest.mark.parametrize(("feature", "kind"), [(feature, kind) for feature, row in TABLE.items() for kind, cell in row.items() if isinstance(cell, Refused)])
def test_what_makes_no_sense_is_refused_in_one_sentence(feature, kind):
    """From the settings alone: there is no model, no folder, no file."""
    cell = TABLE[feature][kind]
    with pytest.raises(ValueError, match=f"^{re.escape(cell.sentence)}") as caught:
        settings({"method": kind, "data.folder": "nowhere", "checkpoint": "nowhere.safetensors", **cell.own})
    assert "\n" not in str(caught.value)


def test_readmes_table_says_what_the_cells_do():
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in readme_table()]
    features, found = rows[0][1:], {row[0].strip("`"): row[1:] for row in rows[2:]}
    assert features == list(TABLE)
    assert found == {kind: [TABLE[feature][kind].mark for feature in TABLE] for kind in METHODS}


def readme_table() -> list[str]:
    """The lines of the table whose first cell is `method \\ feature`."""
    lines = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| method \\ feature |"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return lines[start:end]


# ---- what all cells share --------------------------------------------------------------------------------------------


class Here:
    """A host that has one model, shared by all tests; what is drawn is a prediction, kept in `drawn`."""

    folds = False

    def __init__(self, sd: Components):
        self.sd, self.drawn = sd, []

    @contextmanager
    def exclusive(self) -> Iterator[Components]:
        yield self.sd

    @torch.no_grad()
    def generate(self, requests: list) -> list[Image.Image]:
        self.drawn.append(predict(self.sd))
        return [Image.new("RGB", (8, 8)) for _ in requests]

    def reload(self, path: Path) -> LoadReport:
        return LoadReport(path, 1, 1)

    def interrupted(self) -> bool:
        return False


def predict(sd: Components) -> Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    return sd.unet(x, torch.tensor([400]), sd.text(["a zorb, red"]))


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Components:
    torch.manual_seed(0)
    parts = UNet(UNetSizes((32, 32, 96, 96), context=16, heads=4)), CLIPText(CLIPSizes(16, layers=1, heads=2, inner=32)), VAE(SMALL_VAE)
    unet, text, vae = (part.eval().requires_grad_(False) for part in parts)
    path = save_checkpoint(tmp_path_factory.mktemp("model") / "small.safetensors", unet.state_dict(), vae.state_dict(), text.state_dict(), {})
    return Components(unet, TextEncoder(text), Autoencoder(vae), Schedule.sd15(), ExitStack, "ab" * 32, "small", torch.device("cpu"), torch.float32, file=path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """`pictures`: one whose left half is hidden by its alpha channel, one by a mask file; `twins`: the same twice; `class` and `held`: one each."""
    root = tmp_path_factory.mktemp("folders")
    half = Image.new("L", (64, 64), 255)
    half.paste(0, (0, 0, 32, 64))
    for folder, numbers in {"pictures": (1, 2), "twins": (3, 3), "class": (4,), "held": (5,)}.items():
        (root / folder).mkdir()
        for i, number in enumerate(numbers):
            picture = coloured(number)
            if (folder, i) == ("pictures", 0):
                picture.putalpha(half)
            picture.save(root / folder / f"{i}.png")
            (root / folder / f"{i}.txt").write_text("a thing, red" if folder != "class" else "a dog", encoding="utf-8")
    half.save(root / "pictures" / "1.mask.png")
    return root


def coloured(number: int) -> Image.Image:
    base = Image.radial_gradient("L").resize((64, 64))
    return Image.merge("RGB", [base.point(lambda v, k=k: (v * number * (k + 2)) % 256) for k in range(3)])


def values_of(kind: str, folders: Path, **more: Any) -> dict[str, Any]:
    """Settings of a small run; keys with `__` for the dot; folders are named below `folders`."""
    more = {key.replace("__", "."): value for key, value in more.items()}
    values = {
        "name": "zorb", "method": kind, "data.folder": "pictures", "data.resolution": 64, "data.bucket_min": 64, "data.bucket_step": 8, "data.batch": 2, "data.latent": "deterministic",
        "data.cache": "disk", "data.cache_folder": "cache", "optim.lr": "1e-2", "optim.weight_decay": 0.0, "optim.clip": 0.0, "prior.drift": "off", "save_every": 0,
        **{f"{kind}.{key}": value for key, value in OWN[kind].items()}, **more,
    }  # fmt: skip
    return {key: str(folders / value) if key.endswith("folder") else value for key, value in values.items()}


class Learning:
    """A method attached to the model, its weights moved off their start so that every gradient counts, and a step with all that belongs to it."""

    def __init__(self, sd: Components, kind: str, folders: Path, moved: bool = True, **more: Any):
        self.cfg = settings(values_of(kind, folders, **more))
        self.sd, self.method = sd, METHODS[kind](self.cfg)
        self.groups = self.method.attach(sd)
        self.params = [p.requires_grad_() for group in self.groups for p in group["params"]]
        with torch.no_grad():
            for i, p in enumerate(self.params if moved else ()):
                p += (0.5 if kind == "adalora" else 0.1) * torch.randn(p.shape, generator=generator_for(1, i, "test"))  # adalora's change has three factors
        self.method.follow()
        self.step = Step(self.cfg, sd, State(self.method, make_optimizer(self.cfg.optim, self.groups)), Batches(self.cfg.data, sd, 0, self.method.triggers(), hints=self.method.hints))
        self.method.before_step(0, self.step.state.optimizer)

    def gradients(self) -> list[Tensor]:
        self.step.state.optimizer.zero_grad()
        self.step._backward(0)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.params]

    def batch(self) -> Any:
        return self.step.batches.at(0)


@pytest.fixture
def learn(sd, folders) -> Iterator[Callable[..., Learning]]:
    with ExitStack() as stack:
        last: list[Learning] = []

        def make(kind: str, **more: Any) -> Learning:
            while last:
                last.pop().method.detach()
            last.append(Learning(sd, kind, folders, **more))
            return last[-1]

        stack.callback(lambda: [one.method.detach() for one in last])
        yield make


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


# ---- masks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bent(Schedule):
    """Other targets in the left three columns of a latent, all of which the masks hide."""

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        target = super().target(x0, noise, t).clone()
        target[..., :3] += 1.0
        return target


@pytest.mark.parametrize("kind", cells("masks"))
def test_what_a_mask_hides_changes_no_gradient(learn, kind):
    """One picture has its mask in its alpha channel, the other in a file."""
    one = learn(kind, data__masks=True, data__mask_floor=0.0)
    batch, straight = one.batch(), one.step.schedule
    assert not batch.mask[..., :3].any() and batch.mask[..., 5:].all() and len(batch) == 2

    def unmasked() -> Tensor:
        with torch.no_grad():
            return one.step.loss(replace(batch, mask=None))

    hidden, open_ = one.gradients(), unmasked()
    one.step.schedule = Bent(**vars(straight))
    assert same(hidden, one.gradients()) and any(g.any() for g in hidden)
    assert not torch.allclose(unmasked(), open_, rtol=1e-2)


# ---- blocks ----------------------------------------------------------------------------------------------------------

PLACES = {"IN04": "input_blocks.4.", "M00": "middle_block.", "OUT03": "output_blocks.3.", "OUT04": "output_blocks.4."}


def trained(one: Learning) -> dict[str, list[Tensor]]:
    """What learns beside or in the place of each of the UNet's modules."""
    if one.method.kind == "dreambooth":
        return {w.place[1]: [w.master] for w in one.method.weights}
    return {path: list(layer.parameters()) for (_, path), layer in getattr(one.method, "adapter", one.method).layers.items()}


@pytest.mark.parametrize("kind", cells("blocks"))
def test_blocks_that_are_left_out_stay_and_the_others_learn_at_their_rates(sd, learn, kind):
    """AdamW's first step is as long as its learning rate, 0.01."""
    head, before = f"{kind}.layers" if kind == "pivotal" else kind, {name: t.clone() for name, t in sd.unet.state_dict().items()}
    one = learn(kind, **{f"{head}.blocks": ", ".join(PLACES), f"{head}.block_rates": "M00=0.5, OUT03=0"}, **{f"{kind}.share_every": 1000} if kind == "adalora" else {})
    started = {name: [p.detach().clone() for p in parts] for name, parts in trained(one).items()}
    was = {name: t.clone() for name, t in sd.unet.state_dict().items()}
    one.step(0)
    far = {block: [max(float((p.detach() - q).abs().max()) for p, q in zip(parts, started[name])) for name, parts in trained(one).items() if name.startswith(place)] for block, place in PLACES.items()}
    assert [len(far["OUT03"]), sum(map(len, far.values()))] == [0, len(started)]  # there is nothing else
    assert {block: pytest.approx(max(of, default=0.0), rel=1e-2) for block, of in far.items()} == {"IN04": 0.01, "M00": 0.005, "OUT03": 0.0, "OUT04": 0.01}
    now, own = sd.unet.state_dict(), trained(one).keys() if kind == "dreambooth" else set()
    assert {name for name in now if not torch.equal(now[name], was[name])} == own and all(torch.equal(now[name], before[name]) for name in now.keys() - own)


@pytest.mark.parametrize("kind", (*ADAPTERS, "pivotal"))
def test_blocks_have_ranks_of_their_own(learn, kind):
    head = f"{kind}.layers" if kind == "pivotal" else kind
    one = learn(kind, moved=False, **{f"{head}.blocks": "IN04, M00", f"{head}.block_ranks": "M00=1"})
    layers = [(path, layer.rank) for (_, path), layer in getattr(one.method, "adapter", one.method).layers.items() if ".transformer_blocks." in path]
    large, small = (3, 2) if kind == "adalora" else (2, 1)  # its first ranks are half as large again
    assert {rank for path, rank in layers if path.startswith("middle_block.")} == {small} and {rank for path, rank in layers if path.startswith("input_blocks.4.")} == {large}


# ---- averages, and held-out pictures ---------------------------------------------------------------------------------


class Run:
    """A run up to two updates: its events, the trained weights after each, its last state and its files."""

    def __init__(self, sd: Components, kind: str, folders: Path, output: Path, until: int = 2, **more: Any):
        self.cfg = settings(values_of(kind, folders, steps=2, optim__ema=0.9, data__batch=1, output=str(output), **more))
        self.host, self.method, self.begun = Here(sd), spying(METHODS[kind])(self.cfg), None
        self.events, self.weights, self.state = [], {}, {}
        for event in train(self.cfg, self.method, self.host, stop=lambda: until in self.weights):
            self.events.append(event)
            if isinstance(event, (Started, Stepped)):
                step = event.start if isinstance(event, Started) else event.step
                self.weights[step] = [p.detach().clone() for group in self.method.groups for p in group["params"]]
                self.state = self.method.state_dict()
            if isinstance(event, Sampled):
                self.begun = self.method.begun
        self.files = {path.name: read_tensors(path)[0] for path in self.of(Finished).files}

    def of(self, kind: type) -> Any:
        """The last event of a kind."""
        return [event for event in self.events if isinstance(event, kind)][-1]


def spying(kind: type) -> type:
    class Spy(kind):
        begun = None

        def attach(self, sd: Components) -> list:
            self.groups = super().attach(sd)
            return self.groups

        def begin(self, batch: Any) -> None:
            self.begun = batch
            super().begin(batch)

    return Spy


@pytest.fixture(scope="module")
def runs_of(sd, folders, tmp_path_factory) -> Callable[[str], tuple[Run, Run, Run]]:
    """A method's run with an average, samples and held-out pictures; one without the latter two that ends after its first update; and that one gone on with."""
    made: dict[str, tuple[Run, Run, Run]] = {}

    def runs(kind: str) -> tuple[Run, Run, Run]:
        if kind not in made:
            output = tmp_path_factory.mktemp(kind)
            watched = {"sample.every": 2, "sample.prompts": "a zorb", "sample.steps": 1, "validate_every": 2, "data.validation_folder": "held"}
            first = Run(sd, kind, folders, output, until=1)
            made[kind] = Run(sd, kind, folders, output, **watched), first, Run(sd, kind, folders, output, resume=str(first.of(Started).folder))
        return made[kind]

    return runs


@contextmanager
def averaged(run: Run) -> Iterator[Any]:
    """The method as it is with the average of the run's weights, which is computed here: LDM's decay min(0.9, (1 + n) / (10 + n))."""
    average = run.weights[0]
    for n in (1, 2):
        decay = min(0.9, (1 + n) / (10 + n))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, run.weights[n])]
    method = METHODS[run.cfg.method](run.cfg)
    with method.attached(run.host.sd) as groups, torch.no_grad():
        method.load_state_dict(run.state)
        for p, value in zip((p for group in groups for p in group["params"]), average):
            p.copy_(value)
        method.follow()
        method.train(False)
        yield method


@pytest.mark.parametrize("kind", cells("EMA"))
def test_the_average_of_the_weights_is_saved_and_drawn_and_goes_on_after_a_resume(sd, runs_of, tmp_path, kind):
    run, _, rest = runs_of(kind)
    with averaged(run) as method:
        files = {path.name: read_tensors(path)[0] for path in method.export(tmp_path / "zorb", {}, Made(2, 0, 0.0, 1.0))}
        if run.begun:  # a hint of the samples
            method.begin(run.begun)
        torch.testing.assert_close(run.host.drawn[-1], predict(sd), rtol=1e-4, atol=1e-5)
    assert files.keys() == run.files.keys() == rest.files.keys() and rest.of(Started).start == 1
    for name, tensors in files.items():
        torch.testing.assert_close(run.files[name], tensors, rtol=1e-5, atol=1e-7)
        assert same(list(rest.files[name].values()), list(run.files[name].values()))
    assert not torch.allclose(run.host.drawn[0], run.host.drawn[-1], rtol=1e-3)  # at step 0, at the end


@pytest.mark.parametrize("kind", cells("validation"))
def test_the_validation_loss_is_the_formula_on_held_out_pictures_and_changes_nothing(sd, runs_of, kind):
    (run, first, rest), losses = runs_of(kind), []
    with averaged(run) as method:
        for batch in validation(run.cfg.data, sd, method.triggers(), method.hints):
            method.begin(batch)
            for t in (200, 400, 600, 800):
                noise = torch.stack([torch.randn(4, 8, 8, generator=generator_for(0, i, f"validation {t}")) for i in batch.indices])
                losses += error(sd, batch, noise, torch.full((len(batch),), t)).tolist()
    assert len(losses) == 4 and run.of(Validated).loss == pytest.approx(sum(losses) / 4, rel=1e-4)
    assert first.weights.keys() | rest.weights.keys() == {0, 1, 2} and not any(isinstance(event, Validated) for event in first.events + rest.events)
    assert all(same(run.weights[step], weights) for one in (first, rest) for step, weights in one.weights.items())


def noised(batch: Any, noise: Tensor, t: Tensor) -> Tensor:
    """Ho et al. 2006.11239 with SD1.5's betas."""
    a = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)[t].float()[:, None, None, None]
    return a.sqrt() * batch.latents + (1 - a).sqrt() * noise


def error(sd: Components, batch: Any, noise: Tensor, t: Tensor) -> Tensor:
    """(B,): how far what the model says is from the noise."""
    return (sd.unet(noised(batch, noise, t), t, sd.text(batch.captions)) - noise).square().mean((1, 2, 3))


def drawn(batch: Any) -> tuple[Tensor, Tensor]:
    """Noise and timesteps of a training batch, each sample's own."""
    t = torch.stack([torch.rand((), generator=generator_for(0, i, "t")) for i in batch.indices]).mul(1000).long()
    return torch.stack([torch.randn(4, 8, 8, generator=generator_for(0, i, "noise")) for i in batch.indices]), t


# ---- a word beside an adapter, accumulation, priors ------------------------------------------------------------------


@pytest.mark.parametrize("kind", cells("a word beside"))
def test_a_word_and_an_adapter_learn_of_one_loss_each_at_its_rate(learn, kind):
    """AdamW's first step by its formula: p - lr g / (|g| + eps)."""
    one = learn("pivotal", **TABLE["a word beside"][kind].own, **{"pivotal.words.norm": "off", "pivotal.continue_lr": 1e-3})
    words = [word.vectors for word in one.method.words.words]
    assert len(words) == (2 if kind == "textual_inversion" else 1) and kind in ("textual_inversion", "pivotal", "locon", one.method.adapter.kind)
    assert kind != "locon" or any(layer.conv and layer.down.shape[2] == 3 for layer in one.method.adapter.layers.values())
    before, grads = [p.detach().clone() for p in one.params], one.gradients()
    one.step(0)
    for p, was, g in zip(one.params, before, grads):
        lr = 1e-3 if any(p is word for word in words) else 1e-2
        torch.testing.assert_close(p.detach(), was - lr * g / (g.abs() + 1e-8), rtol=1e-3, atol=1e-4)
    moved = [not torch.equal(p, was) for p, was in zip(one.params, before)]
    assert all(moved[: len(words)]) and sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("kind", cells("accumulation"))
def test_two_batches_of_one_are_a_batch_of_two(learn, kind):
    whole, halves = (learn(kind, data__folder="twins", data__batch=size, optim__accumulate=2 // size).gradients() for size in (2, 1))
    a, b = (torch.cat([g.flatten() for g in gradients]) for gradients in (whole, halves))
    assert a.any() and (a - b).norm() < 1e-3 * a.norm()


@pytest.mark.parametrize("kind", cells("class pictures"))
def test_class_pictures_are_learned_with_their_weight_and_their_own_captions(sd, learn, kind):
    one = learn(kind, **CLASS_PICTURES)
    batch = next(batch for batch in map(one.step.batches.at, range(20)) if len({item.is_class for item in batch.items}) == 2)
    own = [item.is_class for item in batch.items].index(True)
    assert batch.captions[own] == "a dog" and "thing" in batch.captions[1 - own]
    with torch.no_grad():
        loss, each = one.step.loss(batch), error(sd, batch, *drawn(batch))
    assert each[own] > 0 and torch.allclose(loss, 0.25 * each[own] + each[1 - own], rtol=1e-4)


@pytest.mark.parametrize("kind", cells("frozen prior"))
def test_the_frozen_prior_is_the_distance_to_what_the_untouched_model_says_of_the_class(sd, learn, kind):
    one = learn(kind, prior__weight=2.0, prior__prompt="a cat")
    batch = one.batch()
    noise, t = drawn(batch)
    with torch.no_grad():
        loss, each = one.step.loss(batch), error(sd, batch, noise, t)
        now = sd.unet(noised(batch, noise, t), t, sd.text(["a cat"] * 2))
        one.method.detach()
        apart = (now - sd.unet(noised(batch, noise, t), t, sd.text(["a cat"] * 2))).square().mean((1, 2, 3))
    assert float(apart.sum()) > 1e-4 and float(loss - each.sum()) == pytest.approx(2 * float(apart.sum()), rel=2e-2)
