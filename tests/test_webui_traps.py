"""The traps of training inside the WebUI, T1 to T21 of its recorded contract: where a naive trainer falls in, and that this one does not.

Each test first shows the trap (what a trainer that does not know of it would get), then that a run here is not caught.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_hosts import PROMPT, WORD, _at_step, difference, last, of_method, run, same, trained, values  # noqa: F401
from torch import nn
from worlds import REAL, WORLDS, digest, world_of

from lib_tuner.events import Finished, Sampled, Saved, Stepped
from lib_tuner.host import GenerateRequest
from lib_tuner.hosts import ldm
from lib_tuner.methods import METHODS, settings


@pytest.fixture(scope="module", params=[name for name in WORLDS if name != "standalone"])
def world(request, tmp_path_factory) -> Any:
    with world_of(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made

def unet_of(world) -> nn.Module:
    return world.model.model.diffusion_model


def forward(sd: Any) -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    with sd.autocast():
        return sd.unet(x, torch.tensor([500]), sd.text(["a thing"])).float()


def close(world, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    bound = 2e-2 if world.half else 1e-5
    torch.testing.assert_close(ours.float(), theirs.float(), atol=bound, rtol=bound)


def layers_with_gradient(method: Any) -> int:
    return sum(layer.up.grad is not None for layer in method.layers.values())


def unguarded(world, cfg) -> Any:
    """The model as a naive trainer takes it: what is loaded, as it is."""
    from contextlib import ExitStack

    host = world.host({})
    host.cfg = cfg
    with ExitStack() as stack:
        return host._components(stack, world.model)


@pytest.fixture
def lora(world, values) -> str:
    """A LoRA of its own that the host knows, by its name."""
    events = run(world, {**values, "name": "baked", "optim.lr": "2e-2", "sample.every": 0, "save_every": 0})
    saved = last(events, Saved)
    return saved.names[saved.paths[0].name]


@pytest.fixture
def restored(world):
    """Puts back what a test has changed of the host on purpose."""
    undo: list[Any] = []
    yield undo
    for step in reversed(undo):
        step()


@contextmanager
def option(opts: Any, name: str, value: Any):
    """One of the host's options as if a person had set it; not set at all afterwards, if it was not."""
    had, before = name in opts.data, opts.data.get(name)
    opts.data[name] = value
    try:
        yield
    finally:
        if had:
            opts.data[name] = before
        else:
            del opts.data[name]


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.half
def test_t01_ldms_checkpointing_eats_the_gradients_of_adapters(world, values):
    """1.10 turns the checkpointing off by itself; that 1.9.4 has it on is recorded (webui_double: checkpointing_switches)."""
    cfg, before = settings({**values, "lora.text_encoder": False}), switches(world)
    naive = METHODS["lora"](cfg)
    with naive.attached(unguarded(world, cfg)):
        loss = forward(unguarded(world, cfg)).sum()
        if loss.requires_grad:
            loss.backward()
        inside = [layer for (part, path), layer in naive.layers.items() if ".transformer_blocks." in path]
        assert inside and any(layer.up.grad is not None for layer in inside) != any(before), "the trap is not there"
    for p in world.model.parameters():
        p.grad = None
    ours, host = METHODS["lora"](cfg), world.host({**values, "lora.text_encoder": False})
    with host.exclusive() as sd, ours.attached(sd):
        forward(sd).sum().backward()
        assert layers_with_gradient(ours) == len(ours.layers) > 100
    assert switches(world) == before  # and on again


def switches(world) -> list[bool]:
    """Of the host's own checkpointing, in the order of the modules."""
    found = [getattr(module, "checkpoint", None) for module in unet_of(world).modules()]
    return [on for on in found if isinstance(on, bool)]


def test_t11_flags_and_gradients_of_the_hosts_parameters_are_put_back(world, values):
    some = [p for p in unet_of(world).parameters()][:4]
    some[0].requires_grad_(False)
    some[1].grad = torch.ones_like(some[1])  # the host's own trainer leaves such
    try:
        before = world.snapshot()
        run(world, values, each=_at_step(2, lambda host: _no_gradient(host)))
        assert difference(before, world.snapshot()) == {} and some[1].grad.eq(1).all()
    finally:
        some[0].requires_grad_(True)
        some[1].grad = None


def _no_gradient(host: Any) -> None:
    assert not [p for p in host._sd.unet.parameters() if p.requires_grad]


def test_t17_the_words_vectors_get_gradients_through_the_hosts_text_encoder(world, values):
    saved = last(run(world, of_method(values, {**WORD, "sample.every": 0, "save_every": 2, "textual_inversion.vectors": 1})), Saved)
    from safetensors.torch import load_file

    first, final = (load_file(path)["emb_params"] for path in (saved.paths[0].with_name("thing-000002.safetensors"), saved.paths[0]))
    assert torch.isfinite(final).all() and not torch.equal(first, final)


def test_t19_residuals_added_by_hooks_learn(world, values):
    """What a T2I-Adapter does: something is added to the output of four input blocks."""
    with world.host(values).exclusive() as sd:
        residuals, handles = [], []
        for block in (sd.unet.input_blocks[i] for i in (2, 5, 8, 11)):
            residuals.append(nn.Parameter(torch.zeros(1)))
            handles.append(block.register_forward_hook(lambda module, args, out, r=residuals[-1]: out + r.to(out.dtype)))
        forward(sd).sum().backward()
        for handle in handles:
            handle.remove()
        assert all(r.grad is not None for r in residuals)


def test_t21_at_64_px_the_middle_attention_has_no_gradient_and_that_is_no_fault(world, values):
    cfg = settings(values)
    method = METHODS["lora"](cfg)
    with world.host(values).exclusive() as sd, method.attached(sd):
        forward(sd).sum().backward()
        middle = [layer for (part, path), layer in method.layers.items() if path.startswith("middle_block.1.") and path.endswith(("attn1.to_q", "attn1.to_k"))]
        assert middle and not any(layer.up.grad is not None and layer.up.grad.any() for layer in middle)
    assert last(run(world, values), Finished).reason == "done"


# ---- LoRA of earlier pictures ----------------------------------------------------------------------------------------


def test_t02_a_lora_left_in_the_weights_is_taken_out_for_the_run_and_put_back(world, values, lora):
    world.picture()
    clean, plain = digest(_weight(world)), world.picture()
    learned = trained(run(world, {**values, "sample.every": 0}))
    world.picture(f"{PROMPT} <lora:{lora}:1>")
    assert digest(_weight(world)) != clean, "the trap is not there"
    before = world.snapshot()
    with world.host(values).exclusive():
        assert digest(_weight(world)) == clean
    assert difference(before, world.snapshot()) == {}
    assert same(trained(run(world, {**values, "sample.every": 0})), learned)
    assert np.array_equal(world.picture(), plain)


def _weight(world) -> torch.Tensor:
    return unet_of(world).input_blocks[1][1].transformer_blocks[0].attn2.to_k.weight


def test_t03_restoring_it_makes_no_parameter_part_of_a_graph(world, values, lora):
    world.picture(f"{PROMPT} <lora:{lora}:1>")
    with world.host(values).exclusive() as sd:
        assert torch.is_grad_enabled() and all(p.is_leaf for p in world.model.parameters())
        forward(sd)
    assert all(p.is_leaf for p in world.model.parameters())
    world.picture()
    assert all(p.is_leaf for p in world.model.parameters())


def test_t04_no_copy_of_old_weights_waits_to_overwrite_new_ones(world, values, lora):
    world.picture(f"{PROMPT} <lora:{lora}:1>")
    layers = list(world.model.network_layer_mapping.values())
    assert any(getattr(layer, "network_weights_backup", None) is not None for layer in layers), "the trap is not there"
    with world.host(values).exclusive():
        assert not [layer for layer in layers if getattr(layer, "network_weights_backup", None) is not None or getattr(layer, "network_bias_backup", None) is not None]
    world.picture()


def test_t20_the_module_tree_and_its_names_stay_as_they_are(world, values, lora):
    keys, names = list(world.model.state_dict()), {name: id(layer) for name, layer in world.model.network_layer_mapping.items()}
    seen = []

    def look(host: Any) -> None:
        seen.append((list(world.model.state_dict()) == keys, all(layer.network_layer_name == name for name, layer in world.model.network_layer_mapping.items())))

    other = world.picture(f"{PROMPT} <lora:{lora}:1>")
    run(world, values, each=_at_step(2, look))
    assert seen == [(True, True)] and {name: id(layer) for name, layer in world.model.network_layer_mapping.items()} == names
    assert np.array_equal(world.picture(f"{PROMPT} <lora:{lora}:1>"), other)


def test_a_lora_that_was_trained_anew_under_its_name_is_what_the_next_picture_shows(world, values):
    """The extension reads the new file, and leaves the old one in the weights: name and weight are those of the picture before."""
    prompt, named = f"{PROMPT} <lora:again:1>", {**values, "name": "again", "optim.lr": "2e-2", "save_every": 0}
    run(world, named)
    first = world.picture(prompt)
    second = run(world, {**named, "seed": 1, "optim.lr": "1e-2"})
    live = np.asarray(last(second, Sampled).images[0].convert("RGB")).astype(int)
    assert last(second, Saved).names["again.safetensors"] == "again"
    assert np.abs(first - live).max() > 2 and np.array_equal(world.picture(prompt), live)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_t05_what_is_saved_is_read_by_the_hosts_safe_reader(world, values, tmp_path):
    naive = tmp_path / "naive.pt"
    torch.save({"string_to_param": {"*": torch.zeros(1, 8)}}, naive)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
        assert torch.load(naive) is None, "the trap is not there"
    saved = last(run(world, of_method(values, {**WORD, "sample.every": 0, "textual_inversion.save_pt": True, "save_optimizer": True})), Saved)
    pt, optim = saved.paths[0].with_suffix(".pt"), saved.paths[0].with_suffix(".pt.optim")
    assert torch.load(pt)["string_to_param"]["*"].shape[0] == 2
    assert "optimizer_state_dict" in torch.load(optim)


# ---- previews --------------------------------------------------------------------------------------------------------


def test_t06_a_checkpoint_that_is_chosen_meanwhile_does_not_come_under_the_run(world, values):
    shared, model = world.w.shared, world.model
    name = model.sd_checkpoint_info.name
    chosen, other = shared.opts.data["sd_model_checkpoint"], next(info for info in world.w.sd_models.checkpoints_list.values() if info.name != name)
    learned = trained(run(world, values))
    try:
        events = run(world, values, each=_at_step(1, lambda host: shared.opts.data.__setitem__("sd_model_checkpoint", other.title)))
        assert last(events, Finished).reason == "done" and world.model is model and same(trained(events), learned)
        assert shared.opts.data["sd_model_checkpoint"] == other.title  # the choice stands, and the next picture loads it
        world.picture()
        assert world.model.sd_checkpoint_info.name == other.name
    finally:
        shared.opts.data["sd_model_checkpoint"] = chosen
        world.picture()
    assert world.model.sd_checkpoint_info.name == name


def test_t07_conditions_that_were_cached_by_their_text_are_not_used_again(world, values):
    prompt = "a red star of fresh on a white background"
    events = run(world, of_method(values, {**WORD, "name": "fresh", "optim.lr": "1.0", "sample.prompts": prompt, "sample.every": 2}))
    samples = [np.asarray(event.images[0].convert("RGB")).astype(int) for event in events if isinstance(event, Sampled)]
    assert np.abs(samples[0] - samples[-1]).max() > 2  # each sample shows the word as it is then
    assert np.array_equal(world.picture(prompt), samples[-1]) or world.half


def test_t08_a_preview_leaves_random_numbers_and_counters(world, values):
    drawn = []

    def each(event: Any, host: Any) -> None:
        if isinstance(event, Stepped) and event.step == 2:
            before = (digest(torch.get_rng_state()), host.w.shared.state.job_no)
            host.generate([GenerateRequest(PROMPT, width=64, height=64, steps=2, seed=5)])
            drawn.append((before, (digest(torch.get_rng_state()), host.w.shared.state.job_no)))

    run(world, values, each=each)
    assert len(drawn) == 1 and drawn[0][0] == drawn[0][1]


def test_t09_the_lock_is_held_for_the_whole_run_and_previews_do_not_ask_for_it_again(world, values):
    held = []
    run(world, values, each=lambda event, host: held.append(host.w.call_queue.queue_lock.acquire(False)) if isinstance(event, (Stepped, Sampled)) else None)
    assert len(held) > 4 and not any(held)


def test_t10_interrupt_stops_and_saves_and_skip_does_not(world, values):
    assert last(run(world, values, each=_at_step(1, lambda host: host.w.shared.state.skip())), Finished).reason == "done"
    events = run(world, values, each=_at_step(3, lambda host: host.w.shared.state.interrupt()))
    assert (last(events, Finished).reason, last(events, Saved).step) == ("stopped", 3)
    assert not world.w.shared.state.interrupted  # the next picture is not interrupted


@pytest.mark.skipif(REAL, reason="would draw the real page anew: test_webui_page.py does it by the button")
def test_t10_reload_ui_does_not_end_a_run(world, values):
    def reload(host: Any) -> None:
        host.w.shared.state.request_restart()

    try:
        assert last(run(world, values, each=_at_step(2, reload)), Finished).reason == "done"
    finally:
        world.w.shared.state.wait_for_server_command(0.01)


# ---- the model -------------------------------------------------------------------------------------------------------


def test_t12_a_model_that_was_exchanged_under_the_run_is_noticed(world, values):
    data, model = world.w.sd_models.model_data, world.model
    try:
        with pytest.raises(ValueError, match="loaded another model"):
            run(world, values, each=_at_step(2, lambda host: setattr(data, "sd_model", nn.Module())))
    finally:
        data.sd_model = model
    info = model.sd_checkpoint_info
    try:
        with pytest.raises(ValueError, match="loaded another model"):  # the weights of another file in the same object
            run(world, {**values, "sample.every": 0}, each=_at_step(2, lambda host: setattr(model, "sd_checkpoint_info", type("Info", (), {}))))
    finally:
        model.sd_checkpoint_info = info
    host = world.host(values)
    with host.exclusive():
        pass
    assert host._model is None and host._sd is None and host._checkpoint is None  # nothing holds a model that may be another one next time


@pytest.mark.half
def test_t13_adapters_are_fp32_whatever_the_host_computes_in(world, values):
    cfg = settings(values)
    method = METHODS["lora"](cfg)
    with world.host(values).exclusive() as sd, method.attached(sd):
        assert {p.dtype for layer in method.layers.values() for p in layer.parameters()} == {torch.float32}
        assert sd.dtype == next(unet_of(world).parameters()).dtype
        assert torch.isfinite(forward(sd)).all()


@pytest.mark.parametrize(("change", "words"), [
    ({"lowvram": True}, "--medvram"), ({"is_sdxl": True}, "SDXL"), ({"is_sd2": True}, "SD2"), ({"forge_objects": object()}, "Forge"),
    ({"is_sd1": False}, "SD1.5's kind"),
])  # fmt: skip
def test_t14_what_cannot_be_trained_is_refused_before_anything_is_touched(world, values, change, words, restored):
    model, own = world.model, {}
    for name, value in change.items():
        had, own[name] = name in vars(model), vars(model).get(name)
        restored.append(lambda name=name, had=had: setattr(model, name, own[name]) if had else delattr(model, name))
        setattr(model, name, value)
    before = world.snapshot()
    with pytest.raises(ValueError, match=words):
        run(world, values)
    assert difference(before, world.snapshot()) == {}


def test_t14_fp8_weights_and_unets_of_other_inputs_are_refused(world):
    with pytest.raises(ValueError, match="no model loaded"):
        ldm.refuse(None)
    conditioning = world.model.model.conditioning_key
    try:
        world.model.model.conditioning_key = "hybrid"
        with pytest.raises(ValueError, match="its UNet reads 4 channels, hybrid"):
            ldm.refuse(world.model)
    finally:
        world.model.model.conditioning_key = conditioning
    weight = _weight(world)
    data = weight.data
    try:
        weight.data = data.to(torch.float8_e4m3fn)
        with pytest.raises(ValueError, match="fp8"):
            ldm.refuse(world.model)
    finally:
        weight.data = data


# ---- settings that bend training -------------------------------------------------------------------------------------


def test_t15_token_merging_tiling_and_clip_skip_of_the_pictures_do_not_bend_the_training(world, values, restored):
    w, opts = world.w, world.w.shared.opts
    learned = trained(run(world, values))
    restored += [lambda: w.sd_models.apply_token_merging(world.model, 0),
                 lambda: w.sd_hijack.model_hijack.apply_circular(False)]  # fmt: skip
    w.sd_hijack.model_hijack.apply_circular(True)
    w.sd_models.apply_token_merging(world.model, 0.5)
    with option(opts, "CLIP_stop_at_last_layers", 2):
        before = world.snapshot()
        assert same(trained(run(world, {**values, "sample.every": 0})), learned)
        assert difference(before, world.snapshot()) == {}


def test_t15_samples_are_tiled_where_the_hosts_option_says_so_and_the_training_between_them_is_not(world, values, restored):
    values = {**values, "steps": 2, "sample.every": 1}
    hijack, plain = world.w.sd_hijack.model_hijack, run(world, values)
    restored.append(lambda: hijack.apply_circular(False))
    with option(world.w.shared.opts, "tiling", True):
        world.picture()
        assert hijack.circular_enabled, "the trap is not there"
        hijack.apply_circular(False)
        seen: list[bool] = []
        tiled = run(world, values, each=lambda event, host: seen.append(hijack.circular_enabled))
    assert same(trained(tiled), trained(plain)) and not any(seen)
    assert not np.array_equal(*(np.asarray(last(events, Sampled).images[0]) for events in (tiled, plain)))


def test_a_network_in_the_place_of_the_unet_takes_no_part_in_a_run_with_samples(world, values, restored):
    """TensorRT and the like: each picture of the host's puts the chosen one in."""
    values = {**values, "steps": 2, "sample.every": 1}
    unets, learned = world.w.sd_unet, trained(run(world, values))

    class Other(unets.SdUnet):
        def forward(self, x: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
            return torch.zeros_like(x)

    class Option(unets.SdUnetOption):
        model_name, label = "none of them", "other"

        def create_unet(self) -> Any:
            return Other()

    unets.unet_options.append(Option())
    restored += [unets.unet_options.clear, lambda: unets.apply_unet("None")]
    with option(world.w.shared.opts, "sd_unet", "other"):
        world.picture()
        assert unets.current_unet is not None, "the trap is not there"
        inside: list[Any] = []
        events = run(world, values, each=lambda event, host: inside.append(unets.current_unet) if isinstance(event, (Stepped, Sampled)) else None)
        assert same(trained(events), learned) and set(inside) == {None} and type(unets.current_unet) is Other


@pytest.mark.half
def test_t15_a_caption_is_read_letter_by_letter(world, values):
    text = ["a (red) ball, [blue] sky BREAK and a house"]
    host = world.model.cond_stage_model
    with world.host(values).exclusive() as sd, torch.no_grad():
        literal = sd.text(text)
        interpreted, escaped = (host(t) for t in (text, ["a \\(red\\) ball"]))
        assert literal.shape != interpreted.shape or not torch.allclose(literal, interpreted, atol=1e-3), "the trap is not there"
        close(world, sd.text(["a (red) ball"]), escaped)


@pytest.mark.half
@pytest.mark.parametrize("skip", [1, 2])
@pytest.mark.parametrize("caption", ["", "a red star on a white background", "a red star, " * 40])
def test_captions_become_the_hosts_own_states(world, values, caption, skip):
    opts = world.w.shared.opts
    with world.host({**values, "clip_skip": skip}).exclusive() as sd, torch.no_grad():
        with option(opts, "CLIP_stop_at_last_layers", skip):
            theirs = world.model.cond_stage_model([caption])
        close(world, sd.text([caption]), theirs)


@pytest.mark.half
def test_latents_are_the_hosts_own(world, values):
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with world.host(values).exclusive() as sd, torch.no_grad():
        mean, std = sd.vae.encode(pixels)
        weight = next(world.model.first_stage_model.parameters())
        theirs = world.model.encode_first_stage(pixels.to(weight.dtype))
        close(world, mean, theirs.mean * world.model.scale_factor)
        close(world, std, theirs.std * world.model.scale_factor)
        close(world, sd.vae.decode(mean), world.model.decode_first_stage(mean.to(weight.dtype)))


def test_t16_an_embedding_whose_name_is_in_a_caption_is_not_put_into_the_training(world, values):
    w, db = world.w, world.w.sd_hijack.model_hijack.embedding_db
    learned = trained(run(world, values))
    width = world.model.cond_stage_model.wrapped.transformer.text_model.embeddings.token_embedding.wrapped.weight.shape[1]
    embedding = w.textual_inversion.Embedding(torch.ones(1, width), "round")  # every caption of the test's pictures ends in it
    embedding.vectors, embedding.shape = 1, width
    db.register_embedding(embedding, world.model)
    try:
        with torch.no_grad():
            host = world.model.cond_stage_model
            assert not torch.allclose(host(["a round thing"]), ldm.HostText(world.model, 1)(["a round thing"]).to(host(["a"]).dtype)), "the trap is not there"
        assert same(trained(run(world, values)), learned)
        assert db.word_embeddings["round"] is embedding
    finally:
        db.register_embedding_by_name(None, world.model, "round")


def test_t18_the_schedule_is_the_models_whatever_a_picture_has_made_of_it(world, values):
    model = world.model
    learned, original = trained(run(world, values)), model.alphas_cumprod
    try:
        model.alphas_cumprod = original.half().float() * 0.9
        with world.host(values).exclusive() as sd:
            assert torch.equal(sd.schedule.alphas_cumprod, original.float())
        changed = {**values, "sample.every": 0}
        assert same(trained(run(world, changed)), learned)
    finally:
        model.alphas_cumprod = original


def test_hypernetworks_of_earlier_pictures_take_no_part(world, values):
    class Loud:
        name, multiplier, layers = "loud", 1.0, {}

    learned = trained(run(world, values))
    shared, before = world.w.shared, world.w.shared.loaded_hypernetworks
    shared.loaded_hypernetworks = [Loud()]
    try:
        with world.host(values).exclusive():
            assert shared.loaded_hypernetworks == []
        assert [h.name for h in shared.loaded_hypernetworks] == ["loud"]
    finally:
        shared.loaded_hypernetworks = before
    assert same(trained(run(world, values)), learned)


def test_what_a_hypernetwork_leaves_in_the_model_is_not_trained(world, values):
    """Where no optimisation of attention is on, the host hangs its networks into the attentions that they change: they look like layers of the model."""
    learned = trained(run(world, values))
    own = {"method": "hypernetwork", "name": "left", "sample.every": 0, "save_every": 0, "steps": 2}
    saved = last(run(world, of_method(values, own)), Saved)
    try:
        world.w.sd_hijack.apply_optimizations("None")
        world.picture(f"{PROMPT} <hypernet:{saved.names['left.pt']}:1>")
        world.w.sd_hijack.apply_optimizations()
        assert [path for path, _ in unet_of(world).named_modules() if path.endswith(".hyper_k")], "the trap is not there"
        before = world.snapshot()
        assert same(trained(run(world, values)), learned)
        assert difference(before, world.snapshot()) == {}
    finally:
        world.w.sd_hijack.apply_optimizations()
        for module in list(unet_of(world).modules()):
            for part in ("hyper_k", "hyper_v"):
                module._modules.pop(part, None)
        world.picture()


def test_every_attention_of_the_host_learns_the_same(world, values):
    """The host replaces its attention by the one that is chosen in its settings; none need be undone for a run."""
    hijack, values = world.w.sd_hijack, {**values, "sample.every": 0, "steps": 2}
    learned, tried = trained(run(world, values)), []
    try:
        for optimizer in hijack.optimizers:
            hijack.apply_optimizations(optimizer.title())
            tried.append(optimizer.name)
            other = trained(run(world, values))
            worst = max((learned[key].float() - other[key].float()).abs().max().item() for key in learned)
            assert worst < 2e-3, (optimizer.name, worst)
    finally:
        hijack.apply_optimizations()
    assert len(tried) >= 4, tried
