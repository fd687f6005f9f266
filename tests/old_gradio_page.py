"""Serves the page on the WebUI's gradio, for the browser tests: `python old_gradio_page.py HOME`, in an environment of that gradio. Prints its address.

As in the WebUI, the scripts and the style are put into the head of gradio's page. That gradio serves any file below the working directory (CVE-2023-51449)
and so is never served to people: this runs on loopback, in an empty folder.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gradio as gr
import uvicorn
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response

from lib_tuner.comparisons import Comparisons
from lib_tuner.datasets import Datasets
from lib_tuner.demo.tagger import DemoTagger
from lib_tuner.hosts.standalone import Standalone
from lib_tuner.jobs import Jobs
from lib_tuner.toolbox import OwnFolders, Toolbox
from lib_tuner.ui import page
from lib_tuner.ui.compat import OLD
from lib_tuner.ui.train_tab import Shared
from lib_tuner.web.routes import make_app


class Colours:
    """In the place of the WebUI's BLIP, which this page is without: names the colour in the middle."""

    name = "BLIP 1"

    @contextmanager
    def at_work(self):
        yield lambda: lambda picture: "a picture whose middle is {:02x}{:02x}{:02x} all over".format(*picture.getpixel((picture.width // 2, picture.height // 2)))


async def with_head(request, call_next):
    answer = await call_next(request)
    if request.url.path != "/":
        return answer
    body = b"".join([part async for part in answer.body_iterator]).replace(b"</head>", page.head().encode() + b"</head>")
    headers = {key: value for key, value in answer.headers.items() if key != "content-length"}
    return Response(body, answer.status_code, headers)


def main(home: Path) -> None:
    assert OLD, gr.__version__
    with (
        closing(page.listen(page.Address(port=0))) as listening, page.running(Jobs(home, Standalone)) as jobs, closing(Toolbox(OwnFolders(home), home, jobs.outputs)) as tools,
        closing(Datasets({"demo": DemoTagger}, {"BLIP": Colours()})) as sets, closing(Comparisons(jobs, tools)) as comparisons,
        tempfile.TemporaryDirectory() as empty,
    ):  # fmt: skip
        os.chdir(empty)
        app = make_app(jobs, page.static_files(), tools, sets, comparisons)
        app.add_middleware(BaseHTTPMiddleware, dispatch=with_head)
        shared = Shared(jobs, Standalone, home, page.own_values(home, ""), page.checkpoints([]), hidden=page.HIDDEN, tools=tools)
        app = gr.mount_gradio_app(app, page.blocks(shared).queue(), path="/")
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
        page.settle()
        with page.ending():
            uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[listening])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
