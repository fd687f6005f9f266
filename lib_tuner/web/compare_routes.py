"""The routes of the comparison: what can be chosen, a plan, the grid that is drawn, its pictures, two runs beside each other, and the save that is kept."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, Response

from ..compare.cells import Axis
from ..comparisons import Comparisons, GridOrder
from ..keeping import Best, side_by_side
from .answers import answer, file_answer, found
from .bodies import Done
from .compare_bodies import CellDetails, Cells, Earlier, GridBody, GridName, GridPlan, GridStatus, Kept, KeepOrder, Offered, RunOrder, TwoRuns
from .dataset_bodies import Job

GRID = Query("", description="the grid's name; empty: the one that is shown")


def add_compare(router: APIRouter, comparisons: Comparisons) -> None:
    """Adds them below `compare`."""
    _add_choosing(router, comparisons)
    _add_drawing(router, comparisons)
    _add_pictures(router, comparisons)
    _add_runs(router, comparisons)


def _order(body: GridBody) -> GridOrder:
    values = {name: getattr(body, name) for name in ("prompt", "negative", "width", "height", "steps", "cfg", "sampler", "seed", "clip_skip", "run", "checkpoint")}
    files = tuple((file.name, file.weight, file.blocks) for file in body.files)
    return GridOrder(**values, files=files, axes={name: Axis(axis.kind, axis.text) for name, axis in body.axes.items() if axis.kind})


def _add_choosing(router: APIRouter, comparisons: Comparisons) -> None:
    @router.get("/compare", response_model=Offered, summary="The axes, files, samplers and runs there are")
    def about() -> Response:
        return answer(comparisons.about)

    @router.post("/compare/suggest", response_model=GridBody, summary="A first order for a run: its saves beside each other")
    def suggest(order: RunOrder) -> Response:
        return answer(lambda: comparisons.suggested(order.run))

    @router.post("/compare/plan", response_model=GridPlan, summary="What would be drawn, and how long it would take")
    def plan(body: GridBody) -> Response:
        return answer(lambda: comparisons.plan(_order(body)))


def _add_drawing(router: APIRouter, comparisons: Comparisons) -> None:
    @router.post("/compare/start", response_model=Job, summary="Draw a grid; long work")
    def start(body: GridBody) -> Response:
        return answer(lambda: comparisons.start(_order(body), body.sure))

    @router.post("/compare/again", response_model=Job, summary="Draw some cells once more; long work")
    def again(order: Cells) -> Response:
        return answer(lambda: comparisons.again(order.cells, order.grid))

    @router.post("/compare/stop", response_model=Done, summary="Stop after the picture that is being drawn")
    def stop() -> Response:
        return answer(lambda: {"answer": comparisons.stop()})

    @router.get("/compare/grids", response_model=Earlier, summary="The grids that were drawn, the latest first")
    def grids() -> Response:
        return answer(lambda: {"grids": comparisons.earlier()})

    @router.post("/compare/open", response_model=Done, summary="Show an earlier grid again")
    def open_grid(body: GridName) -> Response:
        return answer(lambda: {"answer": comparisons.open(body.name)["name"]})

    @router.get("/compare/status", response_model=GridStatus, summary="How far the grid is")
    def status(known: int = Query(-1, description="the version that is known")) -> Response:
        return answer(lambda: comparisons.status(known))


def _add_pictures(router: APIRouter, comparisons: Comparisons) -> None:
    @router.get("/compare/cells/{index}", response_class=FileResponse, summary="The picture of a cell, with its settings in it")
    def cell(index: int, grid: str = GRID) -> Response:
        path = found(lambda: comparisons.cell(index, grid))
        return file_answer(path, content_disposition_type="inline", headers={"Cache-Control": "no-cache"})

    @router.get("/compare/cells/{index}/about", response_model=CellDetails, summary="What a cell was drawn with")
    def details(index: int, grid: str = GRID) -> Response:
        return answer(lambda: comparisons.cell_details(index, grid))

    @router.get("/compare/grid", response_class=FileResponse, summary="The whole grid as one picture, with its settings in it")
    def sheet(grid: str = GRID) -> Response:
        path = found(lambda: comparisons.sheet(grid))
        return file_answer(path, f"{path.parent.name}.png", headers={"Cache-Control": "no-cache"})


def _add_runs(router: APIRouter, comparisons: Comparisons) -> None:
    @router.get("/compare/runs", response_model=TwoRuns, summary="Two runs: settings that differ, and their curves")
    def two(a: str = Query(), b: str = Query()) -> Response:
        return answer(lambda: side_by_side(comparisons.jobs.details(a), comparisons.jobs.details(b)))

    @router.post("/compare/numbers", response_model=Job, summary="Measure a run's saves; long work, whose result are the numbers and the suggested step")
    def measure(order: RunOrder) -> Response:
        return answer(lambda: comparisons.measure(order.run))

    @router.post("/compare/keep", response_model=Kept, summary="Make a save the run's final file, with its card; the others stay or go to the run's trash")
    def keep_one(order: KeepOrder) -> Response:
        def make() -> dict[str, Any]:
            shown = None if order.cell is None else comparisons.cell(order.cell, order.grid)
            return comparisons.keep(order.run, Best(order.file, order.name, order.words, order.weight, order.notes, shown, order.others))

        return answer(make)
