"""The standalone page: the tabs, their scripts and style, behind one door, served by uvicorn."""

from __future__ import annotations

import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..comparisons import Comparisons
from ..datasets import Datasets
from ..demo.run import lora_settings, write_data
from ..demo.tagger import DemoTagger
from ..host import Host
from ..jobs import Jobs
from ..settings import TrainConfig
from ..toolbox import OwnFolders, Toolbox
from ..web.auth import Door
from ..web.routes import BUNDLE, make_app
from .compare_tab import CompareTab
from .compat import OLD, private, unhurried
from .dataset_tab import DatasetTab
from .tools_tab import ToolsTab, switch
from .train_tab import Shared, TrainTab

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT / "javascript"
STYLE = ROOT / "style.css"
LANGUAGES = ROOT / "localizations"  # tables of the page's words, where the WebUI looks for them too
TITLE = "Tuner"
MODELS = ("models/Stable-diffusion", "models")  # folders below the working directory in which checkpoints are looked for
HIDDEN = ("webui.",)  # the WebUI's own samples
SMALLEST = 500e6  # bytes; a file below is no full SD1.5


@dataclass(frozen=True)
class Address:
    """Where the page is served, and to whom; `login`: user and password."""

    host: str = "127.0.0.1"
    port: int = 7870
    login: tuple[str, str] | None = None


# ---- the page --------------------------------------------------------------------------------------------------------


def blocks(shared: Shared) -> gr.Blocks:
    """The page as gradio has it."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        switch()
        tab = TrainTab(shared)
        DatasetTab()
        CompareTab()
        ToolsTab()
        page.load(tab.refresh, inputs=None, outputs=tab.refreshed, **private())
    return page


def head(base: str = "") -> str:
    """What a page loads beside gradio's own: our style and scripts, these as one file. `base`: where `/tuner` is.

    The current gradio puts them in when the page is there already, and a browser runs what is put in as it comes: several files in any order.
    """
    return f'<link rel="stylesheet" href="{base}/tuner/static/{STYLE.name}"><script defer src="{base}/tuner/static/{BUNDLE}"></script>'


def script_files() -> list[Path]:
    """Our scripts in the order in which the WebUI loads them."""
    return sorted(SCRIPTS.glob("*.js"))


def static_files() -> list[Path]:
    """All that a page asks for under `/tuner/static/`."""
    return [*script_files(), STYLE, *sorted(LANGUAGES.glob("*.json"))]


def application(shared: Shared, login: tuple[str, str] | None = None) -> Any:
    """The whole as an ASGI application: routes, static files, page, and the door in front of it all."""
    app = make_app(shared.jobs, static_files(), shared.tools, shared.sets, shared.comparisons)
    return Door(gr.mount_gradio_app(app, unhurried(blocks(shared)), path="/", **mount_options()), login)


def mount_options() -> dict[str, Any]:
    """What mounting takes in the current gradio; the old one has it in `Blocks`."""
    if OLD:
        return {}
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # nothing is fetched from elsewhere
    return {"theme": theme, "head": head(), "ssr_mode": False, "footer_links": [], "show_error": True}


# ---- what it starts with ---------------------------------------------------------------------------------------------


def demo_values(home: Path) -> dict[str, Any]:
    """The form at the first start: a robot for the embedded model to learn, from pictures that are drawn here."""
    folder = home / "demo-data"
    if not (folder / "data" / "robot").is_dir():
        write_data(folder / "data")
    prompts = "a pink robot on a navy background\na purple robot on a mint background\na red star on a white background"
    shown = {"name": "my-robot", "output": str(home), "save_every": 160, "sample.every": 60, "sample.prompts": prompts, "sample.steps": 12, "sample.cfg": 3.0, "data.cache": "disk"}
    return {**lora_settings(folder), **shown}


def checkpoints(folders: list[Path]) -> list[tuple[str, str]]:
    """Model files to choose from, as (name, path); the embedded one first."""
    found = [path.resolve() for folder in folders if folder.is_dir() for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".ckpt")]
    large = dict.fromkeys(path for path in found if path.is_file() and path.stat().st_size > SMALLEST)  # each once: one folder lies in another
    return [("embedded small model", ""), *((path.name, str(path)) for path in large)]


def own_values(home: Path, checkpoint: str) -> dict[str, Any]:
    """The form for a real model: everything at its default but where things lie."""
    return {"checkpoint": checkpoint, "output": str(home), "loss.min_snr": 5.0} if checkpoint else demo_values(home)


# ---- serving ---------------------------------------------------------------------------------------------------------


def serve(hosts: Callable[[TrainConfig], Host], home: Path, address: Address, checkpoint: str = "", opened: Callable[[str], None] = lambda url: None) -> int:
    """Serves the page until Ctrl-C; the run that is going is then saved and found again. Raises ValueError where the port is taken."""
    import uvicorn

    folders = [Path(name) for name in MODELS]
    models = checkpoints(folders)
    checkpoint = checkpoint and str(Path(checkpoint).resolve())
    if checkpoint and checkpoint not in [path for _, path in models]:
        models.append((Path(checkpoint).name, checkpoint))
    own = OwnFolders(home, (Path(checkpoint),) if checkpoint else ())
    with closing(listen(address)) as listening, running(Jobs(home, hosts)) as jobs, closing(Toolbox(own, home, jobs.outputs)) as tools, closing(Datasets({"demo": DemoTagger})) as sets, closing(Comparisons(jobs, tools)) as comparisons:
        app = application(Shared(jobs, hosts, home, own_values(home, checkpoint), models, hidden=HIDDEN, tools=tools, sets=sets, comparisons=comparisons), address.login)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        url = f"http://{'127.0.0.1' if address.host == '0.0.0.0' else address.host}:{listening.getsockname()[1]}/"
        opened(url)
        settle()
        with ending():
            server.run(sockets=[listening])
    return 0


def settle() -> None:
    """What the program has loaded stays to its end: the collections with which runs give their memory back, 0.2 s each, need not look through it."""
    gc.collect()
    gc.freeze()


@contextmanager
def ending() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the page and nothing else: uvicorn sends itself the signal again when it has ended, and what comes after has to save a run."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("The page is closed.\n")
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def running(jobs: Jobs) -> Iterator[Jobs]:
    """The queue while the program lasts; what is going at its end is paused."""
    try:
        yield jobs
    finally:
        if jobs.current and jobs.current.state == "running":
            sys.stderr.write("Saving the run that is going; it goes on with a click when the page is started again.\n")
        jobs.close()


def listen(address: Address) -> socket.socket:
    """Bound before anything is loaded, so that a taken port is said at once."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.host, address.port))
        listening.listen(128)  # a browser that is early waits instead of being refused
    except OSError as error:
        listening.close()
        raise ValueError(f"The page cannot be served at {address.host}:{address.port} ({error.strerror}); choose another with --port.") from error
    return listening
