"""The routes of the page and of scripts: status, orders, queue, history, files. Bodies and answers are JSON, a refusal is {"error": sentence}.

What changes something is a POST with the header `X-Tuner`, which no other site's page can send without being asked by the browser first (CSRF).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image

from .. import runs
from ..data.pictures import BROKEN
from ..jobs import Jobs

PREFIX = "/tuner/api"
THUMBNAIL = 1024  # px, the largest side that is asked for
Action = Callable[[dict[str, Any]], Any]


def nobody(request: Request) -> None:
    """The guard of a program that has a door of its own."""


def own_page(request: Request) -> None:
    """Refuses a POST that another site's page could have sent."""
    if request.method != "GET" and "x-tuner" not in request.headers:
        raise HTTPException(403, "The header X-Tuner is missing.")


def make_router(jobs: Jobs, guard: Callable[[Request], None] = nobody) -> APIRouter:
    """All routes; `guard` raises HTTPException for whoever may not use them."""
    router = APIRouter(prefix=PREFIX, dependencies=[Depends(guard), Depends(own_page)])
    _add_status(router, jobs)
    _add_actions(router, jobs)
    _add_runs(router, jobs)
    return router


def make_app(jobs: Jobs, static: list[Path]) -> FastAPI:
    """An application of the routes, with the page's scripts and style under `/tuner/static/`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(make_router(jobs))
    files = {path.name: path for path in static}

    @app.get("/tuner/static/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(files[name], headers={"Cache-Control": "no-cache"})

    return app


def _add_status(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/status")
    def status(run: str = "", points: int = 0) -> Response:
        return JSONResponse(jobs.status(run, max(0, points)))

    @router.get("/history")
    def history() -> Response:
        return JSONResponse(jobs.history())


def _add_actions(router: APIRouter, jobs: Jobs) -> None:
    actions: dict[str, Action] = {
        "pause": lambda body: jobs.pause(),
        "stop": lambda body: jobs.stop(),
        "save": lambda body: jobs.order(save=True),
        "sample": lambda body: jobs.order(sample=True, prompts=str(body["prompts"]) if "prompts" in body else None),
        "prompts": lambda body: jobs.order(prompts=str(body.get("prompts", ""))),
        "resume": lambda body: jobs.resume(str(body.get("id"))),
        "move": lambda body: jobs.move(str(body.get("id")), -1 if str(body.get("by")).startswith("-") else 1),
        "remove": lambda body: jobs.remove(str(body.get("id"))),
        "start": lambda body: jobs.start_queue(),
        "hold": lambda body: jobs.hold_queue(),
    }

    @router.post("/do/{action}")
    def act(action: str, body: dict = Body(default={})) -> Response:
        return _done(actions, action, body)


def _add_runs(router: APIRouter, jobs: Jobs) -> None:
    @router.get("/runs/{run}")
    def details(run: str) -> Response:
        return _answer(lambda: jobs.details(run))

    @router.get("/runs/{run}/files/{name:path}")
    def file(run: str, name: str, size: int = Query(0, ge=0, le=THUMBNAIL)) -> Response:
        path = _found(lambda: runs.inside(jobs.folder_of(run), name))
        return thumbnail(path, size) if size else FileResponse(path, filename=path.name)

    @router.get("/runs/{run}/training/{index}")
    def training(run: str, index: int, size: int = Query(256, ge=16, le=THUMBNAIL)) -> Response:
        pictures = _found(lambda: runs.read_record(jobs.folder_of(run)).pictures)
        if not 0 <= index < len(pictures):
            raise HTTPException(404, "There is no such training picture.")
        return thumbnail(Path(pictures[index]), size)

    @router.post("/runs/{run}/{action}")
    def act(run: str, action: str, body: dict = Body(default={})) -> Response:
        folder, name = _found(lambda: jobs.folder_of(run)), str(body.get("name", ""))
        actions: dict[str, Action] = {
            "note": lambda body: runs.note(folder, str(body.get("text", ""))),
            "rename": lambda body: runs.rename_file(folder, name, str(body.get("to", ""))).name,
            "delete-file": lambda body: runs.delete_file(folder, name),
            "delete": lambda body: jobs.delete_run(folder),
            "resume": lambda body: jobs.resume_run(folder).id,
        }
        return _done(actions, action, body)


def _done(actions: dict[str, Action], action: str, body: dict[str, Any]) -> Response:
    if action not in actions:
        raise HTTPException(404, f"There is no action {action!r}.")
    return _answer(lambda: {"answer": actions[action](body)})


def _answer(make: Callable[[], Any]) -> Response:
    """What `make` returns, or its one sentence with status 400."""
    try:
        return JSONResponse(make())
    except (ValueError, OSError) as error:
        return JSONResponse({"error": str(error)}, 400)


def _found(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, OSError) as error:
        raise HTTPException(404, str(error)) from error


def thumbnail(path: Path, size: int) -> Response:
    """A picture, its longer side at most `size` px. A picture that is gone or broken is 404."""
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (size, size))  # JPEG alone: decodes at a fraction of the size
            shown = picture.convert("RGBA" if picture.mode in ("RGBA", "LA", "P") else "RGB")
            shown.thumbnail((size, size))
            content = io.BytesIO()
            shown.save(content, "PNG")
    except BROKEN as error:
        raise HTTPException(404, f"{path.name} cannot be shown.") from error
    headers = {"Cache-Control": "max-age=60", "Content-Disposition": f"inline; filename*=utf-8''{quote(path.stem)}.png"}
    return Response(content.getvalue(), media_type="image/png", headers=headers)
