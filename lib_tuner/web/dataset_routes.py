"""The routes of the data-set panel. Folders are opened by their path and then named by an id; pictures are named by numbers."""

from __future__ import annotations

from typing import Any, List

from fastapi import APIRouter, Body, Query
from fastapi.responses import JSONResponse, Response

from ..data.edits import Edit
from ..data.thumbnails import media_type
from ..datasets import Datasets, Scope, operations
from .answers import answer, found
from .audit_routes import add_audit
from .bodies import Done
from .crop_routes import add_crops
from .dataset_bodies import Changed, EditOrder, Folder, Found, OpenedFolder, PlanOrder, Preview, RowDetails, Rows, ScopeOrder, StepOrder, TagCounts, WorkStatus
from .tag_routes import add_tags

ROWS = 500  # whose details are given at once


def add_datasets(router: APIRouter, sets: Datasets) -> None:
    """Adds them below `data`."""
    _add_reading(router, sets)
    _add_pictures(router, sets)
    _add_editing(router, sets)
    _add_work(router, sets)
    add_tags(router, sets)
    add_audit(router, sets)
    add_crops(router, sets)


def scope_of(order: EditOrder | ScopeOrder) -> Scope:
    return Scope(None if order.rows is None else tuple(order.rows), order.filter)


def _add_reading(router: APIRouter, sets: Datasets) -> None:
    @router.get("/data/edits", response_model=List[Any], summary="The edits there are, and what each takes")
    def edits() -> Response:
        return JSONResponse(operations())

    @router.post("/data/open", response_model=OpenedFolder, summary="Open a folder of pictures")
    def open_(body: Folder) -> Response:
        return answer(lambda: sets.open(body.folder).about())

    @router.get("/data/{folder}", response_model=OpenedFolder, summary="An open folder")
    def about(folder: str) -> Response:
        return answer(lambda: sets[folder].about())

    @router.post("/data/{folder}/read", response_model=OpenedFolder, summary="Read a folder anew")
    def read(folder: str) -> Response:
        return answer(lambda: sets[folder].read())

    @router.post("/data/{folder}/close", response_model=Done, summary="Let a folder go")
    def close(folder: str) -> Response:
        return answer(lambda: {"answer": sets.close([folder])})

    @router.get("/data/{folder}/rows", response_model=Found, summary="Pictures that a filter names")
    def rows(folder: str, filter: str = Query("", description="A line of the filter language; nothing: all")) -> Response:
        return answer(lambda: sets[folder].found(filter))

    @router.get("/data/{folder}/tags", response_model=TagCounts, summary="Tags and their counts")
    def tags(folder: str, filter: str = "", like: str = Query("", description="Part of their names"), limit: int = Query(500, ge=1, le=20000)) -> Response:
        return answer(lambda: sets[folder].tags(filter, like, limit))

    @router.get("/data/{folder}/history", response_model=List[Any], summary="What was done, the newest first")
    def history(folder: str) -> Response:
        return answer(lambda: sets[folder].history())


def _add_pictures(router: APIRouter, sets: Datasets) -> None:
    @router.post("/data/{folder}/details", response_model=List[RowDetails], summary="Pictures and their captions")
    def details(folder: str, body: Rows) -> Response:
        return answer(lambda: sets[folder].details(body.rows[:ROWS]))

    @router.get("/data/{folder}/pictures/{row}", response_class=Response, responses={200: {"content": {"image/jpeg": {}, "image/png": {}}}}, summary="A picture in small")
    def picture(folder: str, row: int, side: int = Query(256, ge=1, le=4096, description="px of its longer side, rounded up")) -> Response:
        data = found(lambda: sets[folder].thumbnail(row, side))
        return Response(data, media_type=media_type(data), headers={"Cache-Control": "private, max-age=60"})


def _add_editing(router: APIRouter, sets: Datasets) -> None:
    @router.post("/data/{folder}/plan", response_model=Preview, summary="What an edit would change; nothing is written")
    def plan(folder: str, order: EditOrder) -> Response:
        return answer(lambda: sets[folder].plan(Edit(order.name, order.args), scope_of(order)))

    @router.post("/data/{folder}/apply", response_model=Changed, summary="Carry out what was looked at")
    def apply(folder: str, order: PlanOrder) -> Response:
        return answer(lambda: sets[folder].apply(order.plan))

    @router.post("/data/{folder}/edit", response_model=Changed, summary="Carry out an edit at once")
    def edit(folder: str, order: EditOrder) -> Response:
        return answer(lambda: sets[folder].edit(Edit(order.name, order.args), scope_of(order), order.was))

    @router.post("/data/{folder}/delete", response_model=Changed, summary="Move pictures and their captions to the folder's trash")
    def delete(folder: str, order: ScopeOrder) -> Response:
        return answer(lambda: sets[folder].delete(scope_of(order)))

    @router.post("/data/{folder}/undo", response_model=Changed, summary="Take the last edit back")
    def undo(folder: str, order: StepOrder = Body(default=StepOrder())) -> Response:
        return answer(lambda: sets[folder].undo(order.number, order.partly))

    @router.post("/data/{folder}/redo", response_model=Changed, summary="Do again what was taken back last")
    def redo(folder: str, order: StepOrder = Body(default=StepOrder())) -> Response:
        return answer(lambda: sets[folder].redo(order.number, order.partly))


def _add_work(router: APIRouter, sets: Datasets) -> None:
    @router.get("/data/{folder}/job", response_model=WorkStatus, summary="The long work that is going in a folder, or was last")
    def work(folder: str) -> Response:
        return answer(lambda: {"job": sets[folder].work()})

    @router.post("/data/{folder}/job/stop", response_model=WorkStatus, summary="Ask the work that is going to end")
    def stop(folder: str) -> Response:
        return answer(lambda: {"job": sets[folder].stop()})
