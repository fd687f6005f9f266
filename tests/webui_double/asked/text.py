"""Captions and prompts, embeddings, what torch.load lets through, hypernetwork files."""

from __future__ import annotations

import collections
import random
from pathlib import Path
from typing import Any

import torch

from .tools import draw, loss_of, probe, put_embedding, same, width_of


def _literal(w: Any, text: str) -> Any:
    clip = w.model.cond_stage_model
    ids = clip.tokenize([text])[0]
    tokens = torch.tensor([[clip.id_start, *ids, *[clip.id_end] * (76 - len(ids))]])
    return clip.encode_with_transformers(tokens)


@probe
@torch.no_grad()
def t15_brackets(w: Any) -> Any:
    """Interpreted, unless escaped; `encode_with_transformers` takes all literally."""
    clip, literal = w.model.cond_stage_model, _literal(w, "a (red) ball")
    return {
        "plain": bool(torch.allclose(clip(["a (red) ball"]), literal, atol=1e-4)),
        "escaped": bool(torch.allclose(clip([r"a \(red\) ball"]), literal, atol=1e-4)),
        "like 1.1": bool(torch.allclose(clip(["a (red) ball"]), clip(["a (red:1.1) ball"]), atol=1e-5)),
        "finite": bool(clip(["a (red:1.3) ball"]).isfinite().all()),
    }


@probe
@torch.no_grad()
def t15_emphasis_setting(w: Any) -> Any:
    clip, found = w.model.cond_stage_model, {}
    literal = _literal(w, "a (red) ball")
    for name in ("Original", "No norm", "Ignore", "None"):
        w.shared.opts.data["emphasis"] = name
        states = clip(["a (red) ball"])
        found[name] = [bool(torch.allclose(states, literal, atol=1e-4)), bool(torch.allclose(states, clip(["a red ball"]), atol=1e-4))]
    return found


@probe
@torch.no_grad()
def chunks(w: Any) -> Any:
    """Lengths of states: BREAK and more than 75 tokens make new chunks, a comma near the end of one moves what follows."""
    clip = w.model.cond_stage_model
    texts = ["", "a ball", "a BREAK ball", "word " * 75, "word " * 76, "word " * 151, "word " * 70 + ", " + "other " * 6]
    rows = [clip.tokenize_line(text) for text in texts]
    filled = [[sum(t not in (clip.id_start, clip.id_end) for t in chunk.tokens) for chunk in row] for row, _ in rows]
    return {
        "filled": filled,
        "counts": [count for _, count in rows],
        "length": [clip([text]).shape[1] for text in texts],
        "together": clip(["a", "word " * 80]).shape[1],
    }


@probe
def parsed_prompts(w: Any) -> Any:
    texts = ["", "a (b) c", "a (b:1.25) [c]", "((a))", r"\(a\)", "(a", "a BREAK b", "(a BREAK b:1.5)", "a) b", "a: b", r"a\b", "[a:b:0.5]"]
    return [[[text, round(weight, 4)] for text, weight in w.prompt_parser.parse_prompt_attention(prompt)] for prompt in texts]


@probe
def tokens(w: Any) -> Any:
    clip = w.model.cond_stage_model
    return {"ids": clip.tokenize(["a red ball, Thing's 3", "  A   RED ball", "é ½"]), "marks": [clip.id_start, clip.id_end, clip.comma_token, clip.chunk_length],
            "lengths": w.sd_hijack.model_hijack.get_prompt_lengths("a ball"), "vocabulary": len(clip.tokenizer.get_vocab())}  # fmt: skip


@probe
@torch.no_grad()
def clip_skip(w: Any) -> Any:
    clip = w.model.cond_stage_model
    ids = torch.tensor([[clip.id_start, *[clip.id_end] * 76]])
    out, norm = clip.wrapped.transformer(input_ids=ids, output_hidden_states=True), clip.wrapped.transformer.text_model.final_layer_norm
    last = clip.encode_with_transformers(ids)
    w.shared.opts.data["CLIP_stop_at_last_layers"] = 2
    second = clip.encode_with_transformers(ids)
    layers = len(clip.wrapped.transformer.text_model.encoder.layers)
    return {
        "hidden": len(out.hidden_states) == layers + 1,
        "last": same(last, out.last_hidden_state),
        "of hidden": bool(torch.allclose(norm(out.hidden_states[-1]), last, atol=1e-6)),
        "second": bool(torch.allclose(second, norm(out.hidden_states[-2]), atol=1e-6)),
        "differs": not torch.allclose(last, second, atol=1e-3),
    }


@probe
def gradient_through_the_prompt(w: Any) -> Any:
    """The vectors of a registered embedding get a gradient: plain, with emphasis, beyond 75 tokens, with clip skip."""
    found, db = {}, w.sd_hijack.model_hijack.embedding_db
    vec = torch.zeros(2, width_of(w), requires_grad=True)
    embedding = w.textual_inversion.Embedding(vec, "zorkword")
    embedding.vectors, embedding.shape = 2, width_of(w)
    db.register_embedding(embedding, w.model)
    for name, text, skip in (("plain", "a zorkword", 1), ("weight", "a (zorkword:1.2)", 1), ("long", "word " * 80 + "zorkword", 1), ("skip", "a zorkword", 2)):
        w.shared.opts.data["CLIP_stop_at_last_layers"] = skip
        vec.grad = None
        w.model.cond_stage_model([text]).pow(2).sum().backward()
        found[name] = bool(vec.grad is not None and vec.grad.abs().sum() > 0)
    count = db.find_embedding_at_position(w.model.cond_stage_model.tokenize(["zorkword"])[0], 0)[1]
    db.register_embedding_by_name(None, w.model, "zorkword")
    return {**found, "tokens": count, "gone": "zorkword" not in db.word_embeddings and not any(e.name == "zorkword" for row in db.ids_lookup.values() for _, e in row)}


@probe
@torch.no_grad()
def t16_embeddings_in_captions(w: Any) -> Any:
    """Any installed name is replaced, the longest first; the bare look-up inside takes the tokens."""
    clip, db = w.model.cond_stage_model, w.sd_hijack.model_hijack.embedding_db
    plain = clip(["a red ball"])
    put_embedding(w, "red", torch.ones(1, width_of(w)))
    put_embedding(w, "red ball", torch.ones(3, width_of(w)))
    db.load_textual_inversion_embeddings(force_reload=True)
    chunk = clip.tokenize_line("a red ball, a red thing")[0][0]
    literal = _literal(w, "a red ball")
    return {"changed": not torch.allclose(clip(["a red ball"]), plain, atol=1e-4), "fixes": [[fix.offset, fix.embedding.name] for fix in chunk.fixes],
            "literal": bool(torch.allclose(literal, plain, atol=1e-5)), "inside a word": len(clip.tokenize_line("reddish")[0][0].fixes)}  # fmt: skip


@probe
def embedding_files(w: Any) -> Any:
    """Names, shapes, what is put aside, and what does not load at all."""
    from safetensors.torch import save_file

    db, width, folder = w.sd_hijack.model_hijack.embedding_db, width_of(w), Path(w.shared.cmd_opts.embeddings_dir)
    legacy = {"_use_new_zipfile_serialization": False}
    put_embedding(w, "plain", torch.ones(2, width))
    put_embedding(w, "wide", torch.ones(2, width + 1))
    put_embedding(w, "halved", torch.ones(2, width).half())
    save_file({"anything": torch.ones(width)}, str(folder / "flat.safetensors"))
    save_file({"a": torch.ones(1, width), "b": torch.ones(1, width)}, str(folder / "two.safetensors"))
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.ones(1, width)},
        "name": "another",
        "step": 12,
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": "x",
    }
    torch.save(content, folder / "zip.pt")
    torch.save(content, folder / "old.pt", **legacy)
    torch.save({**content, "string_to_param": {"a": torch.ones(1, width), "b": torch.ones(1, width)}}, folder / "params.pt", **legacy)
    (folder / "below").mkdir()
    put_embedding(w, "below/deep", torch.ones(1, width))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "note.txt").write_text("x")
    db.load_textual_inversion_embeddings(force_reload=True)
    words = {
        name: [e.vec.shape[0], str(e.vec.dtype), e.vectors, e.shape == width, e.step, e.sd_checkpoint, e.vec.requires_grad]
        for name, e in sorted(db.word_embeddings.items())
    }
    return {"words": words, "order": list(db.word_embeddings), "aside": sorted(db.skipped_embeddings), "expected": db.expected_shape == width,
            "hash": len(db.word_embeddings["plain"].shorthash or "")}  # fmt: skip


@probe
def embedding_reload(w: Any) -> Any:
    """Noticed by the folder's time only; a reload makes new objects."""
    import os

    db, width, folder = w.sd_hijack.model_hijack.embedding_db, width_of(w), Path(w.shared.cmd_opts.embeddings_dir)
    put_embedding(w, "word", torch.zeros(1, width))
    os.utime(folder, (1, 10**9))
    db.load_textual_inversion_embeddings(force_reload=True)
    first, found = db.word_embeddings["word"], {}

    def value() -> float:
        return float(db.word_embeddings["word"].vec[0, 0])

    put_embedding(w, "word", torch.ones(1, width))
    os.utime(folder, (1, 10**9))
    db.load_textual_inversion_embeddings()
    found["replaced"] = [value(), db.word_embeddings["word"] is first]
    db.load_textual_inversion_embeddings(force_reload=True)
    found["forced"] = [value(), db.word_embeddings["word"] is first]
    put_embedding(w, "other", torch.zeros(1, width))
    os.utime(folder, (1, 10**9 + 5))
    db.load_textual_inversion_embeddings()
    found["folder changed"] = sorted(db.word_embeddings)
    return found


@probe
def t8_embeddings_before_a_picture(w: Any) -> Any:
    """Drawing reads the folder where it has changed, unless told not to."""
    import os

    db, found, folder = w.sd_hijack.model_hijack.embedding_db, {}, Path(w.shared.cmd_opts.embeddings_dir)
    for i, keep in enumerate((True, False)):
        put_embedding(w, f"word{i}", torch.zeros(1, width_of(w)))
        os.utime(folder, (1, 2 * 10**9 + i))
        draw(w, do_not_reload_embeddings=keep)
        found["kept" if keep else "read"] = sorted(db.word_embeddings)
    return found


@probe
def a_live_embedding(w: Any) -> Any:
    """Registered by hand it is not among the files: a forced reload drops it, and so does a model."""
    db, vec = w.sd_hijack.model_hijack.embedding_db, torch.zeros(1, width_of(w))
    embedding = w.textual_inversion.Embedding(vec, "live")
    fresh = [embedding.vectors, embedding.shape, embedding.shorthash]
    embedding.vectors, embedding.shape = 1, width_of(w)
    db.register_embedding(embedding, w.model)
    there = db.word_embeddings.get("live") is embedding
    db.load_textual_inversion_embeddings(force_reload=True)
    return {"fresh": fresh, "there": there, "after a reload": "live" in db.word_embeddings}


@probe
def a_database_of_ones_own(w: Any) -> Any:
    """For reading a file back without touching the one in use."""
    db = type(w.sd_hijack.model_hijack.embedding_db)()
    path = put_embedding(w, "own", torch.ones(2, width_of(w)))
    db.expected_shape = db.get_expected_shape()
    db.load_from_file(str(path), path.name)
    return {"words": list(db.word_embeddings), "in use": "own" in w.sd_hijack.model_hijack.embedding_db.word_embeddings, "shape": db.expected_shape == width_of(w)}


@probe
def init_text(w: Any) -> Any:
    clip = w.model.cond_stage_model
    return [list(clip.encode_embedding_init_text(text, n).shape[:-1]) for text, n in (("*", 1), ("a red ball", 1), ("a red ball", 5))]


class _Own:
    pass


def _contents() -> dict[str, Any]:
    import numpy

    adam = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    adam.param_groups[0]["params"][0].sum().backward()
    adam.step()
    return {
        "tensor": torch.ones(2),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "fp16": torch.ones(2).half(),
        "bool": torch.ones(2).bool(),
        "fp64": torch.ones(2).double(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "ordered": collections.OrderedDict(a=torch.ones(1)),
        "adamw": adam.state_dict(),
        "torch rng": torch.get_rng_state(),
        "python rng": random.getstate(),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "dtype fp16": torch.float16,
        "defaultdict": collections.defaultdict(list),
        "path": Path("x"),
        "set": {1, 2},
        "numpy scalar": numpy.float64(1.0),
        "own class": _Own(),
        "parameters": torch.nn.ParameterDict({"*": torch.ones(1)}),
        "plain": {"a": [1, 2.0, "b", None, (True, b"x")]},
    }


@probe
def t5_torch_load(w: Any) -> Any:
    """What comes back of each content: itself, None, or an error; in the old format and in the one that torch writes today."""
    found: dict[str, list[str]] = {}
    for name, content in _contents().items():
        found[name] = []
        for zipped in (False, True):
            path = w.folder / f"{name}-{zipped}.pt"
            torch.save({"x": content}, path, _use_new_zipfile_serialization=zipped)
            error = ""
            try:
                loaded = torch.load(path, map_location="cpu")
            except Exception as problem:  # an answer
                error = type(problem).__name__
            found[name].append(error or ("None" if loaded is None else "loaded"))
    return found


@probe
def t5_stripped_zip(w: Any) -> Any:
    """A zip with nothing but data.pkl, version and data/* is taken."""
    import zipfile

    torch.save({"x": torch.ones(2)}, w.folder / "full.pt")
    with zipfile.ZipFile(w.folder / "full.pt") as full, zipfile.ZipFile(w.folder / "less.pt", "w") as less:
        kept = [name for name in full.namelist() if name.split("/", 1)[1] in ("data.pkl", "version") or name.split("/", 1)[1].startswith("data/")]
        for name in kept:
            less.writestr(name, full.read(name))
    loaded = torch.load(w.folder / "less.pt")
    return {"full": torch.load(w.folder / "full.pt") is None, "less": loaded is not None and bool(loaded["x"].sum() == 2), "replaced": torch.load is w.safe.load}


@probe
def hypernetwork_files(w: Any) -> Any:
    """Only the old format is read; the name comes from the file's content."""
    folder, width = Path(w.shared.cmd_opts.hypernetwork_dir), width_of(w)
    network = w.hypernetwork.Hypernetwork(
        name="inside", enable_sizes=[width], layer_structure=[1, 2, 1], activation_func="relu", weight_init="Normal", add_layer_norm=True
    )
    network.save(str(folder / "zip.pt"))
    real = torch.save
    torch.save = lambda content, path: real(content, path, _use_new_zipfile_serialization=False)
    try:
        network.save(str(folder / "old.pt"))
    finally:
        torch.save = real
    w.shared.reload_hypernetworks()
    w.hypernetwork.load_hypernetworks(["zip", "old", "none such"], [1.0, 0.5, 1.0])
    loaded = w.shared.loaded_hypernetworks
    content = torch.load(folder / "old.pt", map_location="cpu")
    return {
        "listed": sorted(w.shared.hypernetworks),
        "loaded": [n.name for n in loaded],
        "multiplier": [m.multiplier for n in loaded for pair in n.layers.values() for m in pair],
        "keys": sorted(str(key) if not isinstance(key, int) else "size" for key in content),
        "layers": sorted(content[width][0]),
        "trainable": [p.requires_grad for p in network.weights()].count(True),
        "weights": len(network.weights()),
    }


@probe
def hypernetwork_multiplier(w: Any) -> Any:
    """Counts in eval mode only."""
    width = width_of(w)
    network = w.hypernetwork.Hypernetwork(name="own", enable_sizes=[width], layer_structure=[1, 1], weight_init="XavierNormal").set_multiplier(0.0)
    module, x = network.layers[width][0], torch.ones(1, width)
    evaluated = same(module(x), x)
    network.train()
    return {"eval": evaluated, "train": same(module(x), x), "wanted": all(p.requires_grad for p in network.weights())}


@probe
@torch.no_grad()
def hypernetworks_take_part(w: Any) -> Any:
    """Whatever attention is on; by the width of the context."""
    network = w.hypernetwork.Hypernetwork(name="own", enable_sizes=[width_of(w)], layer_structure=[1, 1], weight_init="XavierNormal")
    found = {}
    for name in ("Automatic", "None"):
        w.sd_hijack.apply_optimizations(name)
        w.shared.loaded_hypernetworks = []
        plain = loss_of(w.model, ["a ball"])
        w.shared.loaded_hypernetworks = [network]
        found[name] = bool((loss_of(w.model, ["a ball"]) - plain).abs() > 1e-6)
    w.shared.loaded_hypernetworks = []
    w.sd_hijack.apply_optimizations()
    left = [name for name, module in w.model.named_modules() if name.endswith(("hyper_k", "hyper_v"))]
    for module in w.model.modules():
        for name in ("hyper_k", "hyper_v"):
            if name in module._modules:
                del module._modules[name]
    return {**found, "left in the tree": bool(left)}
