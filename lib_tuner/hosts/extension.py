"""How the Tuner enters the WebUI: tab, settings, axes of the XYZ plot, routes. `w` is the host's modules as hosts/a1111.py hands them in.

The host runs scripts/tuner.py again at every Reload UI, and with it `register`; this package stays imported, so the queue and a run that goes stay too.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import runs
from ..compare import axes
from ..comparisons import Comparisons
from ..disk import expanded
from ..datasets import Datasets
from ..demo.tagger import DemoTagger
from ..host import SAMPLERS, Captioner, Host
from ..jobs import Jobs
from ..methods import METHODS
from ..progress import sentence
from ..settings import TrainConfig
from ..toolbox import Folders, Toolbox
from ..ui import webui_page
from ..web.auth import Guard
from ..web.routes import PREFIX, make_router
from .job import DECIDED, JOB
from .published import published_as, renew_card, sweep

LOG = logging.getLogger("lib_tuner")
KEY = secrets.token_urlsafe(24)  # of this process: whoever has the page has it
SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "tuner.py"


Captioners = Callable[[], Mapping[str, Captioner]]


def register(w: Any, make_host: Callable[[TrainConfig], Host], make_folders: Callable[[], Folders], make_captioners: Captioners) -> None:
    """Puts the callbacks of all parts into the host's lists."""
    components: dict[str, Any] = {}
    ours = {
        "after_component": lambda component, **more: _seen(w, components, component, more.get("elem_id")),
        "ui_settings": lambda: add_settings(w),
        "before_ui": lambda: add_axes(w),
        "ui_tabs": lambda: tabs(w, make_host, components),
        "app_started": lambda demo, app: add_routes(w, make_host, make_folders, make_captioners, app),
        "on_reload": lambda: _go_on(w.shared.state),
    }
    for event, callback in ours.items():
        _add(w.script_callbacks, event, callback)


def _add(callbacks: Any, event: str, callback: Callable[..., Any]) -> None:
    """As `on_<event>` does, but told which file it is for: to find that out, the host inspects the whole stack, 40 ms for each callback."""
    try:
        callbacks.add_callback(callbacks.callback_map[f"callbacks_{event}"], callback, category=event, filename=str(SCRIPT))
    except (AttributeError, KeyError, TypeError):  # before 1.9
        getattr(callbacks, f"on_{event.replace('on_reload', 'before_reload')}")(callback)


def _go_on(state: Any) -> None:
    """Reload UI interrupts whatever goes, but a run need not end for it: where its step was too long to notice, it finds nothing."""
    if state.job.startswith(JOB):
        state.interrupted = False


# ---- the queue, which outlives a Reload UI ---------------------------------------------------------------------------


@lru_cache(maxsize=None)
def jobs_of(home: Path, make_host: Callable[[TrainConfig], Host]) -> Jobs:
    """The one queue of an output folder. Raises ValueError where another program has that folder."""
    return Jobs(home, make_host, changed=lambda folder: sweep(home))


@lru_cache(maxsize=None)
def tools_of(jobs: Jobs, make_folders: Callable[[], Folders]) -> Toolbox:
    """The tools beside a queue."""
    return Toolbox(make_folders(), jobs.home, jobs.outputs)


@lru_cache(maxsize=None)
def sets_of(jobs: Jobs, make_captioners: Captioners) -> Datasets:
    """The data folders that are open beside a queue."""
    return Datasets({"demo": DemoTagger}, make_captioners())


def home_of(w: Any) -> Path:
    """The output folder that the settings name."""
    return expanded(w.shared.opts.data.get("tuner_output") or Path(w.paths.data_path) / "outputs" / "tuner").resolve()


@lru_cache(maxsize=None)
def comparisons_of(jobs: Jobs, make_folders: Callable[[], Folders]) -> Comparisons:
    """The comparisons beside a queue; a save that is kept is published as a run's own files are."""

    def published(cfg: TrainConfig, path: Path) -> None:
        jobs.hosts(cfg).reload(path)
        renew_card(path, jobs.home)

    return Comparisons(jobs, tools_of(jobs, make_folders), published=published, decided=DECIDED)


# ---- the tab ---------------------------------------------------------------------------------------------------------


def _seen(w: Any, components: dict[str, Any], component: Any, name: str | None) -> None:
    """Keeps the fields of the txt2img tab, and puts our button beside the galleries' own."""
    if name in webui_page.WANTED:
        components[name] = component
    for tab in ("txt2img", "img2img"):
        if name == f"{tab}_send_to_extras":
            components[f"{tab}_to_tuner"] = webui_page.send_button(tab)


def tabs(w: Any, make_host: Callable[[TrainConfig], Host], components: dict[str, Any]) -> list[tuple[Any, str, str]]:
    """The Tuner's tab, or the sentence that says why there is none."""
    try:
        if is_open(w):
            raise ValueError(OPEN)
        home = home_of(w)
        jobs = jobs_of(home, make_host)
        shared = webui_page.WebUIShared(
            jobs, make_host, home, start_values(w, home), hidden=DECIDED, key=KEY, api=PREFIX.lstrip("/"), components=components, picture=w.picture,
            samplers=[sampler.name for sampler in w.samplers()],
        )  # fmt: skip
        return [(webui_page.tab(shared), "Tuner", "tuner")]
    except (ValueError, OSError) as error:
        return [(webui_page.notice(sentence(error)), "Tuner", "tuner")]


def start_values(w: Any, home: Path) -> dict[str, Any]:
    """What the form starts with: the Tuner's section of the Settings tab."""
    values = {key: w.shared.opts.data.get(option_name(key)) for key in webui_page.SETTINGS}
    return {"output": str(home), "loss.min_snr": 5.0, **{key: value for key, value in values.items() if value is not None and key != "output"},
            **webui_page.kept_preset(home, w.shared.opts.data.get("tuner_preset", ""))}  # fmt: skip


# ---- settings --------------------------------------------------------------------------------------------------------


def option_name(key: str) -> str:
    """A setting's name among the host's: `memory.pin` is `tuner_memory_pin`."""
    return "tuner_" + key.replace(".", "_")


def add_settings(w: Any) -> None:
    """The Tuner's section; what a person has changed among the host's own training settings is where ours start."""
    opts = w.shared.opts
    for key, label, help, default, component, arguments in webui_page.settings_rows():
        theirs = webui_page.SETTINGS.get(key)
        value = opts.data.get(theirs) if theirs else None
        changed = value is not None and value != opts.get_default(theirs)
        info = w.shared.OptionInfo(value if changed else default, label, component, arguments, section=("tuner", "Tuner"))
        opts.add_option(option_name(key), info.info(help).needs_reload_ui())


# ---- XYZ plot --------------------------------------------------------------------------------------------------------


def saves_of(home: Path) -> list[axes.Save]:
    """All that the host can use by name, by run and step."""
    found = []
    for source, target in published_as(home).items():
        method, step = METHODS.get(runs.known_record(source.parent).method), runs.step_of(source)
        kind = method.file_kind(source) if method else ""
        if kind and not METHODS[kind].in_prompt:
            continue  # chosen elsewhere; for checkpoints the plot has an axis of its own
        found.append(axes.Save(target.stem, source.parent.name, step, kind))
    return axes.in_order(found)


def add_axes(w: Any) -> None:
    """Our axes in the host's XYZ plot, each once: its script is loaded anew at Reload UI, or it is not."""
    plot = next((data.module for data in w.scripts.scripts_data if data.script_class.__module__ in ("xyz_grid.py", "scripts.xyz_grid", "xy_grid.py")), None)
    if plot is None:
        return
    there = {option.label for option in plot.axis_options}
    plot.axis_options.extend(option for option in _axes(w, plot) if option.label not in there)


def _axes(w: Any, plot: Any) -> list[Any]:
    def saves(kind: str = "") -> list[axes.Save]:
        named = {"textual_inversion": "words", "hypernetwork": "hypernetworks"}
        return [save for save in saves_of(home_of(w)) if not kind or named.get(save.kind, "lora") == kind]

    def names(kind: str) -> list[str]:
        return [save.name for save in saves(kind)]

    def run_step(p: Any, x: str, xs: Any) -> None:
        p.prompt = axes.with_save(p.prompt, axes.parse_label(x, saves()), saves(), getattr(p, "tuner_weight", "1"))

    def lora(p: Any, x: str, xs: Any) -> None:
        p.prompt = axes.with_lora(p.prompt, x, [*names("lora"), x], getattr(p, "tuner_weight", "1"))

    def weight(p: Any, x: float, xs: Any) -> None:
        p.tuner_weight = f"{x:g}"  # for a LoRA that another axis puts in afterwards
        if "<lora:" in p.prompt:
            p.prompt = axes.with_weight(p.prompt, x, names("lora"))

    def embedding(p: Any, x: str, xs: Any) -> None:
        p.prompt = axes.with_word(p.prompt, x, [*names("words"), x])

    def known(p: Any, xs: list[str]) -> None:
        for x in xs:
            axes.parse_label(x, saves())

    return [
        plot.AxisOption("[Tuner] Run step", str, run_step, confirm=known, choices=lambda: [save.label for save in saves()]),
        plot.AxisOption("[Tuner] LoRA", str, lora, choices=lambda: [axes.NONE, *names("lora")]),
        plot.AxisOption("[Tuner] LoRA weight", float, weight),
        plot.AxisOption("[Tuner] Embedding", str, embedding, choices=lambda: [axes.NONE, *names("words")]),
    ]


# ---- routes ----------------------------------------------------------------------------------------------------------

OPEN = (
    "This WebUI can be reached from other machines and asks for no login, so the Tuner, which reads and writes files, is off: "
    "start the WebUI with --gradio-auth user:password, or without --listen."
)


def is_open(w: Any) -> bool:
    """Whether anybody in the network could train here. The host's own switch for such a machine counts as consent."""
    options = w.shared.cmd_opts
    reachable = any(getattr(options, name, None) for name in ("share", "listen", "ngrok", "server_name"))
    return bool(reachable and not logins(options) and not getattr(options, "enable_insecure_extension_access", False))


def logins(options: Any) -> bool:
    """Whether the page asks for user and password."""
    return bool(options.gradio_auth or getattr(options, "gradio_auth_path", None))


def add_routes(w: Any, make_host: Callable[[TrainConfig], Host], make_folders: Callable[[], Folders], make_captioners: Captioners, app: Any) -> None:
    """Our routes in the host's application. Its login does not cover them, so they look for it themselves."""
    options = w.shared.cmd_opts
    guard = Guard(KEY, [tuple(pair.split(":", 1)) for pair in (options.api_auth or "").split(",") if ":" in pair], logins(options), app, OPEN if is_open(w) else "")
    try:
        jobs = jobs_of(home_of(w), make_host)
        comparisons = comparisons_of(jobs, make_folders)
        comparisons.samplers = lambda: [*SAMPLERS, *(sampler.name for sampler in w.samplers())]
        comparisons.own = lambda: {"clip_skip": w.shared.opts.CLIP_stop_at_last_layers}
        app.include_router(make_router(jobs, guard.admit, tools_of(jobs, make_folders), sets_of(jobs, make_captioners), comparisons))
    except ValueError as error:  # the tab says it
        LOG.warning("%s", error)
