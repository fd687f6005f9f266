"""The host around the model: queue, jobs, progress, callbacks, scripts, settings."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .tools import alone, draw, error_of, lora_on_to_q, probe, same, to_q


@alone
def t9_lock_in_order(w: Any) -> Any:
    lock, order = w.call_queue.queue_lock, []
    threads = [threading.Thread(target=lambda i=i: _held(lock, order, i)) for i in range(4)]
    with lock:
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        waiting = len(order)
    for thread in threads:
        thread.join(10)
    return {"waiting": waiting, "order": order}


def _held(lock: Any, order: list[int], i: int) -> None:
    with lock:
        order.append(i)
        time.sleep(0.01)


@alone
def t9_not_reentrant(w: Any) -> Any:
    lock = w.call_queue.queue_lock
    with lock:
        again = lock.acquire(False)
        done: list[int] = []
        thread = threading.Thread(target=w.call_queue.wrap_queued_call(lambda: done.append(1)))
        thread.start()
        thread.join(0.3)
        inside = len(done)
    thread.join(10)
    return {"again": again, "queued meanwhile": inside, "afterwards": len(done), "free": lock.acquire(False) and lock.release() is None}


@probe
def t10_state(w: Any) -> Any:
    """What begin clears, what end leaves; on an object of its own."""
    s = w.shared_state.State()
    names = (
        "skipped",
        "interrupted",
        "stopping_generation",
        "job",
        "job_no",
        "job_count",
        "sampling_step",
        "sampling_steps",
        "textinfo",
        "current_image",
        "id_live_preview",
    )

    def values() -> list[Any]:
        return [getattr(s, name) for name in names]

    found = {"fresh": values()}
    s.interrupt()
    s.skip()
    s.stop_generating()
    s.job_no, s.textinfo, s.sampling_steps = 5, "text", 7
    s.begin(job="own")
    found["begun"] = values()
    s.interrupt()
    s.nextjob()
    s.end()
    found["ended"] = values()
    s.request_restart()
    return {
        **found,
        "restart": [s.interrupted, s.server_command, s.need_restart],
        "dict": sorted(s.dict()),
        "timestamp": len(s.job_timestamp),
        "started": s.time_start is not None,
    }


@alone
def jobs_of_the_page(w: Any) -> Any:
    """wrap_gradio_gpu_call: the task's way through the lists, and what the outputs have to be."""
    seen: dict[str, Any] = {}
    task = w.progress.create_task_id("own")

    def fn(*args: Any) -> Any:
        seen["inside"] = [w.progress.current_task == task, task in w.progress.pending_tasks, w.shared.state.job == task, w.call_queue.queue_lock.acquire(False)]
        w.shared.state.interrupted = True
        return "a", "text"

    out = w.call_queue.wrap_gradio_gpu_call(fn, extra_outputs=["x"])(task)
    seen["out"] = [len(out), out[0], out[1].startswith("text"), len(out[1]) > 4]
    seen["after"] = [w.progress.current_task, task in w.progress.finished_tasks, w.shared.state.job, w.shared.state.job_count, w.shared.state.interrupted]
    seen["recorded"] = [result for name, result in w.progress.recorded_results if name == task] == [("a", "text")]
    seen["name"] = [task.startswith("task(own-"), task.endswith(")"), len(task)]
    return seen


@alone
def failing_jobs_of_the_page(w: Any) -> Any:
    wrap = w.call_queue.wrap_gradio_gpu_call

    def broken(*args: Any) -> Any:
        raise ValueError("a <word>")

    out = wrap(broken, extra_outputs=["x", "y"])("task(own-1)")
    none = error_of(lambda: wrap(lambda *args: ("a", None))("task(own-2)"))
    state: dict[str, Any] = {}

    def generator(*args: Any) -> Any:
        state["running"] = [w.call_queue.queue_lock.acquire(False), w.progress.current_task]
        w.call_queue.queue_lock.release()
        yield "text"

    generated = wrap(generator)("task(own-3)")
    return {
        "error": [*out[:2], "ValueError" in out[2], "&lt;word&gt;" in out[2]],
        "ended": [w.shared.state.job, w.progress.current_task, "task(own-1)" in w.progress.finished_tasks],
        "last is None": none,
        "generator": [len(generated), *state["running"]],
        "free": w.call_queue.queue_lock.acquire(False) and w.call_queue.queue_lock.release() is None,
    }


@alone
def progress_of_tasks(w: Any) -> Any:
    p, s = w.progress, w.shared.state

    def answer(task: str) -> Any:
        a = p.progressapi(p.ProgressRequest(id_task=task, live_preview=False))
        return [a.active, a.queued, a.completed, None if a.progress is None else round(a.progress, 3), a.textinfo, a.eta is not None]

    found = {"unknown": answer("task(x)")}
    p.add_task_to_queue("task(a)")
    p.add_task_to_queue("task(b)")
    found["queued"] = answer("task(b)")
    with w.call_queue.queue_lock:
        s.begin(job="task(a)")
        p.start_task("task(a)")
        found["started"] = answer("task(a)")
        s.job_count, s.job_no, s.textinfo = 10, 3, "epoch 1"
        found["counting"] = answer("task(a)")
        s.sampling_steps, s.sampling_step = 4, 2
        found["sampling"] = answer("task(a)")
        p.finish_task("task(a)")
        s.end()
    found["finished"] = answer("task(a)")
    s.sampling_steps = 0
    p.pending_tasks.pop("task(b)", None)
    return {**found, "kept": [len(p.finished_tasks) <= 16, p.recorded_results_limit]}


@alone
def order_of_callbacks(w: Any) -> Any:
    """At the start, by two scripts of one extension; a model may be loaded at any time."""
    return [entry for entry in w.log["order"] if "model_loaded" not in entry]


@alone
def fields_of_the_page(w: Any) -> Any:
    """What callbacks are told of the drawing tabs, by element id."""
    names = (
        "prompt neg_prompt styles sampling scheduler steps width height batch_count batch_size cfg_scale seed denoising_strength gallery send_to_extras send_to_img2img"
    )
    wanted = [f"{tab}_{name}" for tab in ("txt2img", "img2img") for name in names.split()]
    wanted += [f"txt2img_{name}" for name in ("hr", "hr-checkbox", "hr_upscaler", "hires_steps", "hr_scale", "upscale")]
    return {name: w.log["components"].get(name) for name in wanted if name != "txt2img_upscale"}


@alone
def scripts_while_they_load(w: Any) -> Any:
    """Each is a module of its file's name outside of sys.modules; the extension's folder is on sys.path only meanwhile."""
    loaded = w.log["loaded"]
    return {"loaded": [[entry["name"], entry["in sys.modules"], entry["on sys.path"], entry["basedir"]] for entry in loaded],
            "now": [loaded[0]["folder"] in sys.path, Path(w.scripts.basedir()) == Path(w.paths.script_path)]}  # fmt: skip


@alone
def callbacks_that_raise(w: Any) -> Any:
    seen: list[int] = []

    def bad(*args: Any) -> None:
        raise RuntimeError("of a callback")

    def good(*args: Any) -> None:
        seen.append(1)

    for fn in (bad, good):
        w.script_callbacks.on_model_loaded(fn)
        w.script_callbacks.on_ui_tabs(fn)
    try:
        error = error_of(lambda: w.script_callbacks.model_loaded_callback(w.model))
        names = [c.name.rsplit("/", 2)[-1] for c in w.script_callbacks.callback_map["callbacks_model_loaded"] if c.callback in (bad, good)]
    finally:
        for fn in (bad, good):
            w.script_callbacks.remove_callbacks_for_function(fn)
    left = sum(c.callback in (bad, good) for c in w.script_callbacks.callback_map["callbacks_ui_tabs"])
    return {"error": error, "called": len(seen), "names": names, "left": left}


@alone
def axes_of_the_plot(w: Any) -> Any:
    """Those that are added before the page is built are there, later ones are not."""
    data = [d for d in w.scripts.scripts_data if d.script_class.__module__ == "xyz_grid.py"]
    plot = data[0].module
    script = next(s for s in w.scripts.scripts_txt2img.scripts if type(s).__module__ == "xyz_grid.py")
    plot.axis_options.append(plot.AxisOption("[probe] later", str, lambda p, x, xs: None))
    known = [option.label for option in script.current_axis_options]
    plot.axis_options.pop()
    wanted = ("[probe] early", "[probe] later", "Seed", "Steps", "Sampler", "Checkpoint name", "Clip skip")
    fields = sorted(vars(plot.AxisOption("x", str, None)))
    return {"scripts": len(data), "known": [label for label in wanted if label in known], "in sys.modules": "xyz_grid.py" in sys.modules, "fields": fields}


@alone
def own_settings(w: Any) -> Any:
    opts, info = w.shared.opts, w.shared.OptionInfo(3, "of a probe", section=("probe", "Probe")).info("a hint").needs_reload_ui()
    changes: list[int] = []
    opts.add_option("probe_setting", info)
    try:
        found = {"default": [opts.probe_setting, opts.data["probe_setting"], opts.get_default("probe_setting")], "hint": "a hint" in info.comment_after}
        opts.onchange("probe_setting", lambda: changes.append(opts.probe_setting), call=False)
        found["set"] = [
            opts.set("probe_setting", 5),
            opts.set("probe_setting", 5),
            opts.probe_setting,
            opts.set("probe_setting", 6, run_callbacks=False),
            list(changes),
        ]
        opts.probe_setting = 8
        found["attribute"] = opts.data["probe_setting"]
        opts.onchange("probe_setting", lambda: 1 / 0, call=False)
        found["failing"] = [opts.set("probe_setting", 9), opts.probe_setting]
        opts.save(str(w.folder / "config.json"))
        found["saved"] = "probe_setting" in (w.folder / "config.json").read_text(encoding="utf-8")
        opts.not_a_setting = 1
        found["ordinary attribute"] = [opts.not_a_setting, "not_a_setting" in opts.data]
        found["unknown"] = error_of(lambda: opts.set("none such", 1))
        return found
    finally:
        opts.data_labels.pop("probe_setting", None)
        vars(opts).pop("not_a_setting", None)


@probe
def writing_to_the_config(w: Any) -> Any:
    """Loading a model names it in the settings, unless one is told not to."""
    info = w.sd_models.get_closet_checkpoint_match("third.safetensors")
    title = w.shared.opts.sd_model_checkpoint
    with w.sd_models.SkipWritingToConfig():
        w.sd_models.reload_model_weights(info=info)
    skipped = w.shared.opts.sd_model_checkpoint == title
    w.sd_models.reload_model_weights(info=w.sd_models.get_closet_checkpoint_match("first.safetensors"))
    w.sd_models.reload_model_weights(info=info)
    return {"skipped": skipped, "written": w.shared.opts.sd_model_checkpoint == info.title}


@probe
def folders(w: Any) -> Any:
    o, data = w.shared.cmd_opts, Path(w.paths.data_path)
    named = {
        "embeddings": o.embeddings_dir,
        "loras": o.lora_dir,
        "hypernetworks": o.hypernetwork_dir,
        "lyco": o.lyco_dir_backcompat,
        "config": w.shared.config_filename,
    }
    found = {name: Path(path).resolve().relative_to(data.resolve()).as_posix() for name, path in named.items()}
    flags = ("listen", "share", "ngrok", "server_name", "gradio_auth", "gradio_auth_path", "api_auth", "nowebui", "no_half_vae", "medvram", "lowvram", "precision",
             "enable_insecure_extension_access", "disable_extension_access", "no_prompt_history", "subpath", "ckpt_dir", "no_hashing")  # fmt: skip
    return {
        **found,
        "flags": {flag: getattr(o, flag, "absent") for flag in flags},
        "models": Path(w.paths.models_path).relative_to(data).as_posix(),
        "hide": w.shared.hide_dirs,
    }


@probe
def extra_networks_of_prompts(w: Any) -> Any:
    prompts, data = w.extra_networks.parse_prompts(["a <lora:x:0.5:te=1> b <hypernet:h>", "c <lora:y:1>"])
    rows = {name: [[params.items, params.positional, params.named] for params in found] for name, found in data.items()}
    return {"prompts": prompts, "data": rows, "registered": sorted(w.extra_networks.extra_network_registry), "aliases": sorted(w.extra_networks.extra_network_aliases)}


@probe
def pictures_of_the_page(w: Any) -> Any:
    import base64
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (3, 2)).save(data, format="png")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    read = w.infotext_utils.image_from_url_text
    return {"none": read(None), "empty": read([]), "one": list(read(url).size), "first of several": list(read([url, url]).size),
            "old name": sys.modules.get("modules.generation_parameters_copypaste") is w.infotext_utils}  # fmt: skip


@probe
def one_picture_is_one_model(w: Any) -> Any:
    draw(w)
    m = w.sd_models.model_data
    return {
        "loaded": len(m.loaded_sd_models),
        "current": m.sd_model is w.model,
        "once": m.was_loaded_at_least_once,
        "empty prompt": hasattr(w.model, "cond_stage_model_empty_prompt"),
    }


@alone
def zz_reload_of_the_page(w: Any) -> Any:
    """Scripts run again, modules that they import stay, and nobody is told of the model that is there."""
    m, before, cached = w.model, len(w.log["order"]), w.log["module"]
    w.shared.state.interrupted = False
    w.reload_ui()
    plots = [option.label for d in w.scripts.scripts_data if d.script_class.__module__ == "xyz_grid.py" for option in d.module.axis_options]
    return {"order": w.log["order"][before:], "same model": w.model is m, "module stays": w.log["module"] is cached, "axes": plots.count("[probe] early"),
            "interrupted": w.shared.state.interrupted, "optimization": w.sd_hijack.current_optimizer.name}  # fmt: skip


@alone
def t12_switch_that_is_not_written_into_the_settings(w: Any) -> Any:
    """The hash of the file is, all the same."""
    info, chosen = w.sd_models.get_closet_checkpoint_match("third.safetensors"), w.shared.opts.sd_model_checkpoint
    with w.call_queue.queue_lock, w.sd_models.SkipWritingToConfig():
        new = w.sd_models.reload_model_weights(info=info)
    return {"info": new.sd_checkpoint_info is info, "setting": w.shared.opts.sd_model_checkpoint == chosen, "hash": w.shared.opts.data["sd_checkpoint_hash"] == info.sha256}


@alone
def t12_lists_of_the_last_picture(w: Any) -> Any:
    """Another config empties them, since the host encodes an empty prompt with the new model."""
    lora_on_to_q(w)
    w.networks.load_networks(["one"], [1.0], [1.0], [None])
    w.shared.loaded_hypernetworks.append(SimpleNamespace(name="another"))
    found = []
    for name in ("first", "second"):
        with w.call_queue.queue_lock:
            w.sd_models.reload_model_weights(info=w.sd_models.get_closet_checkpoint_match(f"{name}.safetensors"), forced_reload=name == "first")
        found.append([len(w.networks.loaded_networks), len(w.shared.loaded_hypernetworks)])
    return found


@alone
def t12_files_that_cannot_be_loaded(w: Any) -> Any:
    """One that cannot be read leaves the model without its wrappers, until it is reloaded by force; one of other shapes leaves it as it was, but out of the list.

    Where it has a config of its own there is no model left, and a reload fails too.
    """
    from safetensors.torch import load_file, save_file

    model, own, weight = w.model, w.model.sd_checkpoint_info, to_q(w).weight.detach().clone()
    damaged, other = w.folder / "damaged.safetensors", w.folder / "other.safetensors"
    damaged.write_bytes(bytes(64))
    tensors = load_file(w.sd_models.get_closet_checkpoint_match("third.safetensors").filename)
    save_file({**tensors, "model.diffusion_model.out.2.bias": torch.zeros(7)}, str(other))
    found = {}
    for file in (damaged, other):
        info = w.sd_models.CheckpointInfo(str(file))
        listed = info.title in w.sd_models.checkpoints_list
        with w.call_queue.queue_lock, w.sd_models.SkipWritingToConfig():
            raised = bool(error_of(lambda: w.sd_models.reload_model_weights(info=info)))
            state = [w.model is model, model.sd_checkpoint_info is own, type(model.cond_stage_model).__name__, len(w.sd_models.model_data.loaded_sd_models)]
            w.sd_models.reload_model_weights(info=own, forced_reload=True)
        mended = [type(model.cond_stage_model).__name__, len(w.sd_models.model_data.loaded_sd_models), same(to_q(w).weight.detach(), weight)]
        found[file.stem] = {"listed before": listed, "raised": raised, "state": state, "mended": mended}
    shutil.copyfile(Path(w.sd_models.get_closet_checkpoint_match("second.safetensors").filename).with_suffix(".yaml"), other.with_suffix(".yaml"))
    info, data = w.sd_models.CheckpointInfo(str(other)), w.sd_models.model_data
    with w.call_queue.queue_lock, w.sd_models.SkipWritingToConfig():
        raised = bool(error_of(lambda: w.sd_models.reload_model_weights(info=info)))
        left, again = [data.sd_model is None, len(data.loaded_sd_models)], error_of(lambda: w.sd_models.reload_model_weights(info=own))
        w.sd_models.load_model(own)
    found["other config"] = {"raised": raised, "left": left, "reload": again, "loaded": [data.sd_model.sd_checkpoint_info is own, len(data.loaded_sd_models)]}
    w.sd_models.list_models()
    return found
