"""What we write today is what was written before, and what was written before is read as it was meant.

`golden/*.json` records every format (names, shapes, types, values and metadata of files, states to resume from); `golden/files` holds small files of an earlier
day. A format that changes on purpose: `UPDATE_GOLDEN=1 python -m pytest tests/test_golden.py` writes the records anew and adds files that are lacking; files that
are there stay, since they are what users have: whoever needs them to be read differently breaks a promise.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lib_tuner import checkpoint
from lib_tuner.config import METADATA_KEY, flat_values, from_metadata
from lib_tuner.host import Components
from lib_tuner.methods import METHODS, embedding_png, settings
from lib_tuner.methods.base import Method
from lib_tuner.methods.embedding_file import read_embedding
from lib_tuner.methods.hypernetwork_file import read_hypernetwork
from lib_tuner.methods.lora_file import read_lora
from lib_tuner.methods.metadata import Made
from lib_tuner.optim import EMA, make_optimizer
from lib_tuner.sd.clip import CLIPSizes, CLIPText
from lib_tuner.sd.files import save_checkpoint
from lib_tuner.sd.schedule import Schedule
from lib_tuner.sd.text import TextEncoder
from lib_tuner.sd.unet import UNet, UNetSizes
from lib_tuner.sd.vae import VAE, Autoencoder, VAESizes
from lib_tuner.step import State

FOLDER = Path(__file__).parent / "golden"
FILES = FOLDER / "files"
MADE = Made(step=7, epoch=1, started=0.0, finished=60.0, model_hash="ab" * 32, model_name="small")
SUMMARY = {"ss_num_train_images": 6, "ss_tag_frequency": {"pictures": {"red": 6}}, "ss_bucket_info": {"buckets": {"0": {"resolution": [64, 64], "count": 6}}}}
SMALL = {"rank": 1, "alpha": 1.0, "blocks": "M00", "feed_forward": False}
CASES: dict[str, dict[str, Any]] = {
    "lora": {**SMALL, "text_encoder": True},
    "locon": {**SMALL, "conv_rank": 1, "attention": False},
    "tucker": {"method": "locon", **SMALL, "conv_rank": 2, "tucker": True, "attention": False},
    "dora": {"method": "lora", **SMALL, "dora": True},
    "loha": SMALL,
    "lokr": {**SMALL, "factor": 4},
    "adalora": {**SMALL, "rank": 2, "first_rank": 3},
    "pivotal": {"words.vectors": 2, "words.init": "red", **{f"layers.{key}": value for key, value in SMALL.items()}},
    "textual_inversion": {"vectors": 2, "init": "red", "save_pt": True, "save_png": True},
    "hypernetwork": {"structure": "1, 0.5, 1", "activation": "relu", "layer_norm": True, "dropout": "0, 0.25, 0", "sizes": "32"},
    "t2i_adapter": {},
    "controlnet": {},
    "dreambooth": {"save": "both", "lora_rank": 1},
}
LORAS = ("lora", "locon", "tucker", "dora", "loha", "lokr", "adalora", "pivotal")
KOHYAS = {"algo", "conv_dim", "conv_alpha", "dora_wd", "use_tucker", "rs_lora", "factor"}  # arguments of the network that others read
MANY = 40  # tensors of a file from which on their names are recorded without their numbers, and all of them as one sum
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# ---- fixed weights ---------------------------------------------------------------------------------------------------


def fixed(shape: Iterable[int], number: int) -> Tensor:
    """Numbers between -1/3 and 1/3 of seven bits, the same in every precision and version."""
    shape = tuple(shape)
    return ((torch.arange(torch.Size(shape).numel()) * 37 + 11 * number) % 83 - 41).reshape(shape) / 128


def fill(params: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for number, p in enumerate(params):
            p.copy_(fixed(p.shape, number))


@pytest.fixture(scope="module")
def sd(tmp_path_factory) -> Components:
    """SD1.5's structure as small as it gets, of fixed numbers."""
    parts = UNet(UNetSizes((32, 32, 32, 32), context=32, heads=4)), CLIPText(CLIPSizes(32, layers=1, heads=4, inner=64)), VAE(VAESizes((32, 32, 32, 32)))
    unet, text, vae = (part.eval().requires_grad_(False) for part in parts)
    for part in (unet, text, vae):
        fill(part.state_dict().values())
    path = save_checkpoint(tmp_path_factory.mktemp("model") / "small.safetensors", unet.state_dict(), vae.state_dict(), text.state_dict(), {})
    return Components(unet, TextEncoder(text), Autoencoder(vae), Schedule.sd15(), ExitStack, "ab" * 32, "small", torch.device("cpu"), torch.float32, file=path)


def method_of(name: str, **more: Any) -> Method:
    own = dict(CASES[name])
    kind = own.pop("method", name)
    return METHODS[kind](settings({"name": "zorb", "method": kind, "trigger": "zorb", "data.folder": "pictures", **{f"{kind}.{key}": value for key, value in own.items()}, **more}))


# ---- records ---------------------------------------------------------------------------------------------------------


def check(name: str, found: Any, stays: bool = False) -> None:
    """Compares with `golden/NAME.json`, or writes it; one that `stays` only where it is lacking."""
    path, text = FOLDER / f"{name}.json", json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if UPDATE and not (stays and path.exists()):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(path.read_text(encoding="utf-8"))


def record(path: Path) -> dict[str, Any]:
    """What a file holds."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {"tensors": tensors_of({key: file.get_tensor(key) for key in file.keys()}), "metadata": {key: fact(key, value) for key, value in sorted(file.metadata().items())}}
    if path.suffix == ".pt":
        return content(torch.load(path, weights_only=True))
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return {"chunk": content(embedding_png.from_text(picture.text[embedding_png.CHUNK])), "pixels": content(embedding_png.extract(picture)), "height": picture.height}
    return json.loads(path.read_text(encoding="utf-8"))


def tensors_of(tensors: Mapping[str, Tensor]) -> Any:
    lines = {key: shown(tensor) for key, tensor in sorted(tensors.items())}
    if len(lines) <= MANY:
        return lines
    kinds = sorted({re.sub(r"\d+", "*", key) for key in lines})
    return {"names": kinds, "count": len(lines), "sum": hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]}


def shown(tensor: Tensor) -> str:
    """Type, shape and the values, a few as they are, more as a checksum."""
    kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if tensor.numel() <= 4:
        return f"{kind} = {tensor.tolist()}"
    return f"{kind} {hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()[:12]}"


def fact(key: str, value: str) -> Any:
    """A value of the metadata; of what grows with our settings the part that others read, and nothing that is a hash."""
    if key == METADATA_KEY:
        return {name: json.loads(value)[name] for name in ("name", "method", "trigger")}
    if key == "ss_network_args":
        return {name: one for name, one in json.loads(value).items() if name in KOHYAS}
    return "…" if "hash" in key or "session" in key else value


def content(value: Any) -> Any:
    """A pickle's content with its types."""
    if isinstance(value, Tensor):
        return shown(value.contiguous())
    if isinstance(value, Mapping):
        return {f"{type(key).__name__} {key}": fact(key, one) if key == METADATA_KEY else content(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(content, value)]
    return value


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.fixture
def attached(sd) -> Iterator[Callable[[Method], list]]:
    """Attaches methods with fixed weights, and detaches them all."""
    with ExitStack() as stack:
        def attach(method: Method) -> list[dict[str, Any]]:
            stack.callback(method.detach)
            groups = method.attach(sd)
            if method.kind == "dreambooth":  # one change that has a rank of one, so that the difference is nothing but it
                weight = next(w.master for w in method.weights if w.place == ("unet", "middle_block.1.proj_in.weight"))
                weight.data += change_of_dreambooth()
            else:
                fill(p for group in groups for p in group["params"])
            method.follow()
            return groups

        yield attach


def change_of_dreambooth() -> Tensor:
    return torch.outer(fixed([32], 1), fixed([32], 2))[:, :, None, None]


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_written_as_before(attached, tmp_path, name):
    method = method_of(name)
    attached(method)
    if name == "adalora":
        for layer in method.layers.values():
            layer.alive[1] = False
    files = method.export(tmp_path / "zorb", SUMMARY, MADE)
    records = {path.name: record(path) for path in sorted(tmp_path.iterdir())}
    if name == "dreambooth":  # of a product only the product is fixed
        check_change(load_file(files[1]))
        records[files[1].name]["tensors"] = {key: text.rpartition("]")[0] + "]" for key, text in records[files[1].name]["tensors"].items()}
    check(name, records)
    keep(name, files)


def check_change(tensors: Mapping[str, Tensor]) -> None:
    """The DreamBooth's one change, as kohya reads it."""
    up, down, alpha = (tensors[f"lora_unet_mid_block_attentions_0_proj_in.{part}"].float() for part in ("lora_up.weight", "lora_down.weight", "alpha"))
    assert len(tensors) == 3 and alpha == len(down) == 1
    torch.testing.assert_close(up.flatten(1) @ down.flatten(1), change_of_dreambooth()[:, :, 0, 0], rtol=2e-3, atol=1e-5)


def keep(name: str, files: Iterable[Path]) -> None:
    """Small files stay for those who come later to read."""
    for path in files if UPDATE else ():
        target = FILES / f"{name}{path.suffix}"
        if path.stat().st_size < 20_000 and not target.exists():
            FILES.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())


STATE = {"method": "lora", "lora.rank": 1, "lora.alpha": 1.0, "lora.blocks": "M00", "lora.attention": False, "lora.feed_forward": False}


@pytest.mark.parametrize("name", CASES)
def test_a_state_to_resume_from_has_the_names_and_the_order_of_before(attached, name):
    """The optimizer's averages have no names: they belong to weights by their order."""
    method = method_of(name)
    groups = [{"rate": group.get("lr_scale", 1.0), "shapes": [list(p.shape) for p in group["params"]]} for group in attached(method)]
    names = {f"{outer}/{inner}": list(t.shape) for outer, values in method.state_dict().items() for inner, t in values.items()}
    lines = [f"{name} {shape}" for name, shape in sorted(names.items())]
    short = {"count": len(lines), "names": sorted({re.sub(r"\d+", "*", name) for name in names}), "sum": digest(lines)} if len(lines) > MANY else {"names": lines}
    check(f"state-{name}", {**short, "groups": [{"rate": group["rate"], "count": len(group["shapes"]), "sum": digest(group["shapes"])} for group in groups]})


def digest(lines: Any) -> str:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16]


def state_of(attached, kept: bool) -> tuple[Method, State]:
    """A LoRA of two layers with averages, as it stands after an update if `kept`."""
    method = METHODS["lora"](settings({"name": "zorb", "data.folder": "pictures", "optim.ema": 0.5, **STATE}))
    groups = attached(method)
    params = [p for group in groups for p in group["params"]]
    state = State(method, make_optimizer(method.cfg.optim, groups), EMA(params, 0.5))
    if kept:
        fill(state.ema.average)
        for number, p in enumerate(params):
            p.grad = fixed(p.shape, number + 5)
        state.optimizer.step()
        fill(params)
    return method, state


def test_a_state_of_before_is_gone_on_with(attached, tmp_path):
    target = FILES / "state" / "state-7.safetensors"
    if UPDATE and not target.exists():
        checkpoint.save(FILES, 7, {"run": state_of(attached, True)[1].state_dict(), "nest": {"none": None, "pair": (1, 2.5), "never": float("inf"), 3: [True, "é"]}})
    loaded = checkpoint.load(FILES)
    assert loaded.step == 7 and loaded.state["nest"] == {"none": None, "pair": (1, 2.5), "never": float("inf"), 3: [True, "é"]} and not loaded.notes
    method, state = state_of(attached, False)
    params = [p for group in state.optimizer.param_groups for p in group["params"]]
    for p in (*params, *state.ema.average):
        p.data.zero_()
    state.load_state_dict(loaded.state["run"])
    for number, (p, average) in enumerate(zip(params, state.ema.average)):
        assert torch.equal(p, fixed(p.shape, number)) and torch.equal(average, fixed(p.shape, number))
        torch.testing.assert_close(state.optimizer.state[p]["exp_avg"], 0.1 * fixed(p.shape, number + 5))  # (1 - beta1) g
        torch.testing.assert_close(state.optimizer.state[p]["exp_avg_sq"], 0.001 * fixed(p.shape, number + 5).square())
    assert len(params) == 4 and state.ema.n == 0 and {int(state.optimizer.state[p]["step"]) for p in params} == {1}


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_there_is_a_file_of_every_format_that_is_small():
    names = [*(f"{name}.safetensors" for name in (*LORAS, "textual_inversion", "dreambooth")), "textual_inversion.pt", "textual_inversion.png", "hypernetwork.pt"]
    assert sorted(path.name for path in FILES.glob("*.*")) == sorted(names)
    sizes = [path.stat().st_size for path in FILES.rglob("*") if path.is_file()]
    assert max(sizes) < 20_000 and sum(sizes) < 200_000


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_of_before_is_read_and_gone_on_with(sd, name):
    path, kind = FILES / f"{name}.safetensors", CASES[name].get("method", name)
    file = read_lora(path)
    check(f"read-{name}", {f"{part} {place} {key}": shown(value) for (part, place), parts in sorted(file.modules.items()) for key, value in sorted(parts.items())}, stays=True)
    method = method_of(name, **{f"{kind}.layers.start" if kind == "pivotal" else f"{kind}.start": str(path)})
    with method.attached(sd):
        adapter = getattr(method, "adapter", method)
        assert adapter.layers.keys() == file.modules.keys()
        for target, layer in adapter.layers.items():
            parts = file.modules[target]
            if name == "adalora":  # its own factors are the decomposition of the file's
                product = parts["lora_up.weight"].float().flatten(1) @ parts["lora_down.weight"].float().flatten(1) * parts["alpha"] / len(parts["lora_down.weight"])
                torch.testing.assert_close(layer.delta_weight().flatten(1), product, rtol=1e-4, atol=1e-6)
            else:
                assert all(torch.equal(value.to(parts[key].dtype), parts[key]) for key, value in layer.tensors().items()) and layer.tensors().keys() == parts.keys()
        if kind == "pivotal":
            assert torch.equal(file.embeddings["zorb"], fixed((2, 32), 0)) and torch.equal(method.words.words[0].vectors, fixed((2, 32), 0))
    cfg = settings(from_metadata(file.metadata))
    own = {"method": kind, "name": "zorb", "trigger": "zorb", **{f"{kind}.{key}": value for key, value in CASES[name].items() if key != "method"}}
    assert {key: value for key, value in flat_values(cfg).items() if key in own} == own


def test_the_difference_of_a_dreambooth_of_before_is_read():
    (module, parts), = read_lora(FILES / "dreambooth.safetensors").modules.items()
    assert module == ("unet", "middle_block.1.proj_in")
    check_change({f"lora_unet_mid_block_attentions_0_proj_in.{key}": value for key, value in parts.items()})


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".png"])
def test_an_embedding_of_before_is_read(sd, ending):
    found = read_embedding(FILES / f"textual_inversion{ending}", 32)
    assert torch.equal(found.vectors, fixed((2, 32), 0)) and (found.step, found.model_hash, found.model_name) == (7, "ab" * 5, "small")
    assert found.name == ("zorb" if ending == ".png" else "textual_inversion")  # else the file's name is the word


def test_a_hypernetwork_of_before_is_read_and_gone_on_with(sd):
    path = FILES / "hypernetwork.pt"
    found = read_hypernetwork(path)
    how = found.structure
    assert (how.layers, how.activation, how.activate_output, how.layer_norm, how.dropout, how.init) == ((1.0, 0.5, 1.0), "relu", False, True, (0.0, 0.25, 0.0), "Normal")
    assert (found.name, found.step, found.model_hash, found.model_name) == ("zorb", 7, "ab" * 5, "small")
    with (method := METHODS["hypernetwork"](settings({"method": "hypernetwork", "data.folder": "x", "hypernetwork.start": str(path)}))).attached(sd) as groups:
        params = groups[0]["params"]
        assert len(params) == 16 and all(torch.equal(p, fixed(p.shape, number)) for number, p in enumerate(params)) and list(method.pairs) == [32]
