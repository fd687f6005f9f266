"""The routes of the page and of scripts: status, orders, queue, history, files. Bodies and answers are JSON, a refusal is {"error": sentence}.

What changes something is a POST with the header `X-Tuner`, which no other site's page can send without being asked by the browser first (CSRF).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, List
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response

from .. import runs
from ..comparisons import Comparisons
from ..config import flatten
from ..data import pictures
from ..datasets import Datasets
from ..jobs import Jobs
from ..methods import settings
from ..outlook import refuse
from ..toolbox import Toolbox
from .answers import Answer, answer, file_answer, found
from .bodies import REFUSALS, Added, Change, Done, Order, QueueAction, RunAction, RunDetails, RunRow, Status, Wanted
from .compare_routes import add_compare
from .dataset_routes import add_datasets
from .limits import Limited
from .tool_routes import add_tools

PREFIX = "/tuner/api"
BUNDLE = "tuner-all.js"  # all scripts as one file
THUMBNAIL = 1024  # px, the largest side that is asked for


def nobody(request: Request) -> None:
    """The guard of a program that has a door of its own."""


def own_page(request: Request) -> None:
    """Refuses a POST that another site's page could have sent."""
    if request.method != "GET" and "x-tuner" not in request.headers:
        raise HTTPException(403, "The header X-Tuner is missing: send it with any text.")


def make_router(jobs: Jobs, guard: Callable[[Request], None] = nobody, tools: Toolbox | None = None, sets: Datasets | None = None,
                comparisons: Comparisons | None = None) -> APIRouter:  # fmt: skip
    """All routes, those of the tools, of data folders and of comparisons where there are some; `guard` raises HTTPException for whoever may not use them."""
    router = APIRouter(prefix=PREFIX, route_class=Limited, dependencies=[Depends(guard), Depends(own_page)], tags=["Tuner"], responses=REFUSALS)
    _add_queue(router, jobs)
    _add_runs(router, jobs)
    _add_files(router, jobs)
    if tools:
        add_tools(router, tools)
    if sets is not None:
        add_datasets(router, sets)
    if comparisons is not None:
        add_compare(router, comparisons)
    return router


def make_app(jobs: Jobs, static: list[Path], tools: Toolbox | None = None, sets: Datasets | None = None, comparisons: Comparisons | None = None) -> FastAPI:
    """An application of the routes, with the page's scripts (each, and all as one file, in the order of `static`) and style under `/tuner/static/`."""
    app = FastAPI(title="The Tuner", docs_url="/tuner/docs", redoc_url=None, openapi_url="/tuner/openapi.json")
    app.include_router(make_router(jobs, tools=tools, sets=sets, comparisons=comparisons))
    files = {path.name: path for path in static}

    @app.get("/tuner/static/" + BUNDLE, include_in_schema=False)
    def scripts() -> Response:
        whole = b"\n;\n".join(path.read_bytes() for path in static if path.suffix == ".js")
        return Response(whole, media_type="text/javascript; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @app.get("/tuner/static/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(files[name], headers={"Cache-Control": "no-cache"})

    return app


def _add_queue(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/status", response_model=Status, summary="The queue and the run that is going, or has last gone")
    def status(part: str = Query("", description="the part of the run whose points are known"), points: int = Query(0, description="how many of them are")) -> Response:
        return Answer(jobs.status(part, max(0, points)))

    @router.post("/runs", response_model=Added, summary="Start: puts a run at the end of the queue")
    def start(wanted: Wanted) -> Response:
        def add() -> dict[str, str]:
            values = {"output": str(jobs.home), **flatten(wanted.settings)}
            refuse(settings(values))
            return {"id": jobs.add(values).id}

        return answer(add)

    actions: dict[str, Callable[[Order], Any]] = {
        "pause": lambda order: jobs.pause(),
        "stop": lambda order: jobs.stop(),
        "save": lambda order: jobs.order(save=True),
        "sample": lambda order: jobs.order(sample=True, prompts=order.prompts),
        "prompts": lambda order: jobs.order(prompts=order.prompts or ""),
        "resume": lambda order: jobs.resume(order.id),
        "move": lambda order: jobs.move(order.id, -1 if order.by < 0 else 1),
        "remove": lambda order: jobs.remove(order.id),
        "start": lambda order: jobs.start_queue(),
        "hold": lambda order: jobs.hold_queue(),
    }

    @router.post("/do/{action}", response_model=Done, summary="Order something of the run that is going, or of the queue")
    def act(action: QueueAction, order: Order = Body(default=Order())) -> Response:
        return answer(lambda: {"answer": actions[action](order)})


def _add_runs(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/runs", response_model=List[RunRow], summary="All runs on the disk, the newest first")
    def listing() -> Response:
        return answer(jobs.history)

    @router.get("/runs/{run}", response_model=RunDetails, summary="One run with its points, samples, files and settings")
    def details(run: str) -> Response:
        return answer(lambda: jobs.details(run))

    @router.post("/runs/{run}/{action}", response_model=Done, summary="Change a run: its note, its files, or go on with it")
    def act(run: str, action: RunAction, change: Change = Body(default=Change())) -> Response:
        folder = found(lambda: jobs.folder_of(run))
        actions: dict[str, Callable[[], Any]] = {
            "note": lambda: runs.note(folder, change.text),
            "rename": lambda: _changed(jobs, folder, runs.rename_file(folder, change.name, change.to).name),
            "delete-file": lambda: _changed(jobs, folder, runs.delete_file(folder, change.name)),
            "delete": lambda: jobs.delete_run(folder),
            "resume": lambda: jobs.resume_run(folder).id,
        }
        return answer(lambda: {"answer": actions[action]()})


def _add_files(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/runs/{run}/files/{name:path}", response_class=FileResponse, summary="Download a file of a run; `size`: a picture, at most so large")
    def file(run: str, name: str, size: int = Query(0, ge=0, le=THUMBNAIL)) -> Response:
        path = found(lambda: runs.inside(jobs.folder_of(run), name))
        return thumbnail(path, size) if size else file_answer(path)

    @router.get("/runs/{run}/training/{index}", response_class=FileResponse, summary="One of the pictures that a run learns from")
    def training(run: str, index: int, size: int = Query(256, ge=16, le=THUMBNAIL)) -> Response:
        learned = found(lambda: runs.read_record(jobs.folder_of(run)).pictures)
        if not 0 <= index < len(learned):
            raise HTTPException(404, "There is no such training picture.")
        return thumbnail(Path(learned[index]), size)


def _changed(jobs: Jobs, folder: Path, result: Any) -> Any:
    jobs.files_changed(folder)
    return result


def thumbnail(path: Path, size: int) -> Response:
    """A picture, its longer side at most `size` px. A picture that is gone or broken is 404."""
    try:
        content = io.BytesIO()
        pictures.small(path.read_bytes(), size).save(content, "PNG")
    except (ValueError, OSError) as error:
        raise HTTPException(404, f"{path.name} cannot be shown.") from error
    name = quote(path.stem, errors="replace")  # it may be bytes that are no text
    headers = {"Cache-Control": "max-age=60", "Content-Disposition": f"inline; filename*=utf-8''{name}.png"}
    return Response(content.getvalue(), media_type="image/png", headers=headers)
