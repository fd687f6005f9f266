"""Starts the double in this process, and takes it away again.

with started(tmp_path) as double:
    picture = double.txt2img("a ball", steps=4)
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from .core.clean import HOST, clean_process
from .core.weights import put, put_small

IMPORTED = (
    "call_queue deepbooru devices errors extra_networks hashes images infotext_utils initialize interrogate lowvram modelloader paths paths_internal patches processing progress prompt_parser safe "
    "script_callbacks scripts sd_hijack sd_hijack_checkpoint sd_hijack_optimizations sd_models sd_samplers "
    "sd_schedulers sd_unet sd_vae shared shared_items shared_state ui"
).split()
FIRST, SECOND = "first", "second"  # the checkpoints there are by default; the second has a config of its own


@contextmanager
def started(
    folder: Path, checkpoints: Mapping[str, Path] | None = None, half: bool = False, flags: Mapping[str, Any] = {}, extensions: Mapping[str, Path] = {},
    page: bool = False,
) -> Iterator[Double]:  # fmt: skip
    """A host with its data below `folder`, its page built and its first model loaded.

    `checkpoints`: names and files, of which a .yaml beside the file comes along: a model with a yaml of its own is loaded into a new object, others into
    the object that is there. `half`: in fp16, as on a GPU. `flags`: of the command line. `extensions`: names and folders, loaded as the host does.
    `page`: the page is made in gradio, with the fields of the drawing tabs of which extensions are told.
    """
    with clean_process():
        paths = importlib.import_module("modules.paths_internal")
        paths.lay_out(folder)
        models = Path(paths.models_path) / "Stable-diffusion"
        _put_checkpoints(models, checkpoints)
        for name, source in extensions.items():
            (Path(paths.extensions_dir) / name).symlink_to(source, target_is_directory=True)
        importlib.import_module("modules.shared_cmd_options").parse({"no_half": not half, **flags})
        yield Double(folder, _modules(), page)


def _put_checkpoints(models: Path, checkpoints: Mapping[str, Path] | None) -> None:
    if checkpoints is None:
        put_small(models / f"{FIRST}.safetensors", 1)
        put_small(models / f"{SECOND}.safetensors", 2)
        (models / f"{SECOND}.yaml").write_text("# a config of its own\n", encoding="utf-8")
    for name, source in (checkpoints or {}).items():
        put(models / (name + source.suffix), source)
        if source.with_suffix(".yaml").is_file():
            put(models / f"{name}.yaml", source.with_suffix(".yaml"))


def _modules() -> SimpleNamespace:
    found = {name: importlib.import_module(f"modules.{name}") for name in IMPORTED}
    found["textual_inversion"] = importlib.import_module("modules.textual_inversion.textual_inversion")
    found["hypernetwork"] = importlib.import_module("modules.hypernetworks.hypernetwork")
    found["networks"] = importlib.import_module("networks")
    return SimpleNamespace(**found)


class Double:
    """A running host: `modules` are its modules by name (with `textual_inversion`, `hypernetwork` and `networks`), `model` the model of now."""

    def __init__(self, folder: Path, modules: SimpleNamespace, page: bool = False):
        self.folder, self.modules = folder, modules
        self.data = Path(modules.paths.data_path)
        self._app: Any = None
        modules.scripts.host_scripts, modules.ui.with_gradio = str(HOST / "scripts"), page
        modules.initialize.initialize()
        self._build_page()
        _ = self.model

    @property
    def model(self) -> Any:
        """The model of now; loads it where there is none."""
        return self.modules.shared.sd_model

    @property
    def errors(self) -> list[BaseException]:
        """What was reported and not raised, the last five."""
        return [record["error"] for record in self.modules.errors.exception_records]

    @property
    def app(self) -> Any:
        """The FastAPI application, made when something asks for it; None where FastAPI is not installed."""
        if self._app is None and importlib.util.find_spec("fastapi"):
            from fastapi import FastAPI

            self._app = FastAPI()
            self.modules.progress.setup_progress_api(self._app)
        return self._app

    def _build_page(self) -> None:
        m = self.modules
        m.script_callbacks.before_ui_callback()
        m.shared.demo = m.ui.create_ui()
        if m.script_callbacks.ordered_callbacks("app_started"):
            self._app = None
            m.script_callbacks.app_started_callback(m.shared.demo, self.app)

    # ---- what a person does ------------------------------------------------------------------------------------------

    def process(self, prompt: str = "", negative: str = "", **wishes: Any) -> Any:
        """Draws as the API does, in its turn, and returns the host's `Processed`; `wishes` are fields of StableDiffusionProcessingTxt2Img."""
        m = self.modules
        wishes = {"seed": 1, "steps": 4, "width": 64, "height": 64, "sampler_name": "DDIM", "do_not_save_samples": True, "do_not_save_grid": True, **wishes}
        task = m.progress.create_task_id("txt2img")
        m.progress.add_task_to_queue(task)
        with m.call_queue.queue_lock:
            p = m.processing.StableDiffusionProcessingTxt2Img(prompt=prompt, negative_prompt=negative, **wishes)
            p.is_api = True
            m.shared.state.begin(job="scripts_txt2img")
            try:
                m.progress.start_task(task)
                processed = m.processing.process_images(p)
                m.progress.finish_task(task)
            finally:
                p.close()
                m.shared.state.end()
        return processed

    def txt2img(self, prompt: str = "", negative: str = "", **wishes: Any) -> Image.Image:
        """One picture, 64 px and 4 steps of DDIM unless told otherwise."""
        return self.process(prompt, negative, **wishes).images[0]

    def select_checkpoint(self, name: str) -> None:
        """As the list at the top of the page does: the setting changes at once, the model in its turn."""
        m = self.modules
        info = m.sd_models.get_closet_checkpoint_match(name)
        if info is None:
            raise ValueError(f"There is no checkpoint {name!r}: {', '.join(m.sd_models.checkpoints_list)}.")
        m.shared.opts.set("sd_model_checkpoint", info.title)

    def add_checkpoint(self, name: str, seed: int, own_config: bool = False) -> Any:
        """One more small model with weights of its own; without a config of its own it is loaded into the object of the first."""
        m = self.modules
        path = put_small(Path(m.sd_models.model_path) / f"{name}.safetensors", seed)
        if own_config:
            path.with_suffix(".yaml").write_text("# a config of its own\n", encoding="utf-8")
        m.shared.refresh_checkpoints()
        return m.sd_models.get_closet_checkpoint_match(name)

    def interrupt(self) -> None:
        """The Interrupt button, and /sdapi/v1/interrupt: at once, whoever has the lock."""
        self.modules.shared.state.interrupt()

    def reload_ui(self) -> None:
        """Reload UI: interrupts what goes, and runs all scripts again; modules that they import stay. The model stays, and nobody is told of it again."""
        m = self.modules
        m.shared.state.request_restart()
        m.shared.state.wait_for_server_command(0)
        m.shared.demo.server.should_exit = True
        m.shared.demo.close()
        m.script_callbacks.app_reload_callback()
        m.script_callbacks.script_unloaded_callback()
        m.initialize.initialize_rest()
        self._build_page()
