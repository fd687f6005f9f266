"""The routes of crops in an open folder. Pictures are named by numbers; the only path is where an export goes."""

from __future__ import annotations

from typing import List

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from ..config import build
from ..data.crop_file import Crop
from ..data.crop_names import ExportConfig
from ..data.crop_plan import CropConfig
from ..data.crop_view import frame_of
from ..dataset_crops import FolderCrops, crop_fields
from ..datasets import Datasets, Scope
from .answers import answer, file_answer, found
from .bodies import Done
from .dataset_bodies import Approved, ApproveOrder, ChangedCrops, CropExport, CropField, CropOrder, CropRows, CropSettings, CropsOfRows, CropSummary, CropUndo, FindCrops, Job, RowCrops, ScopedCrops, TakenBack

ROWS = 500  # whose crops are given at once


def add_crops(router: APIRouter, sets: Datasets) -> None:
    """Adds them below `data`, and crops to each folder that is opened."""
    sets.joining.add(FolderCrops.of)
    _add_reading(router, sets)
    _add_changing(router, sets)
    _add_work(router, sets)


def _config(order: CropOrder) -> CropConfig:
    return build(CropConfig, order.crop)


def _scope(order: ScopedCrops) -> Scope:
    return Scope(None if order.rows is None else tuple(order.rows), order.filter)


def _add_reading(router: APIRouter, sets: Datasets) -> None:
    @router.get("/data/crops/fields", response_model=List[CropField], summary="The settings of cropping and of saving crops")
    def fields() -> Response:
        return answer(crop_fields)

    @router.post("/data/crops/check", response_model=Done, summary="Whether these settings can be; nothing is done")
    def check(order: CropSettings) -> Response:
        return answer(lambda: {"answer": bool(_config(order) and build(ExportConfig, order.export))})

    @router.post("/data/{folder}/crops/read", response_model=CropsOfRows, summary="The crops of pictures, with what is needed to draw and drag them")
    def read(folder: str, order: CropRows) -> Response:
        return answer(lambda: FolderCrops.of(sets[folder]).read(order.rows[:ROWS], _config(order)))

    @router.post("/data/{folder}/crops/summary", response_model=CropSummary, summary="How many pictures have crops, and what is wrong with them")
    def summary(folder: str, order: CropOrder) -> Response:
        return answer(lambda: FolderCrops.of(sets[folder]).summary(_config(order)))


def _add_changing(router: APIRouter, sets: Datasets) -> None:
    @router.post("/data/{folder}/crops/change", response_model=ChangedCrops, summary="Set the crops of one picture")
    def change(folder: str, order: RowCrops) -> Response:
        return answer(lambda: FolderCrops.of(sets[folder]).change(order.row, [Crop(frame_of(c.x, c.y, c.zoom), c.target, c.state) for c in order.crops], _config(order), order.was))

    @router.post("/data/{folder}/crops/approve", response_model=Approved, summary="Approve the crops of pictures")
    def approve(folder: str, order: ApproveOrder) -> Response:
        return answer(lambda: FolderCrops.of(sets[folder]).approve(_scope(order), _config(order), order.was))

    @router.post("/data/{folder}/crops/undo", response_model=TakenBack, summary="Take back what was last done to crops")
    def undo(folder: str, order: CropUndo) -> Response:
        return answer(lambda: FolderCrops.of(sets[folder]).undo(order.number, _config(order)))


def _add_work(router: APIRouter, sets: Datasets) -> None:
    @router.post("/data/{folder}/crops/find", response_model=Job, summary="Find crops; long work")
    def find(folder: str, order: FindCrops) -> Response:
        return answer(lambda: FolderCrops.of(sets[folder]).find(_scope(order), _config(order), order.again))

    @router.post("/data/{folder}/crops/export", response_model=Job, summary="Write crops to a folder or a ZIP; long work")
    def export(folder: str, order: CropExport) -> Response:
        return answer(lambda: FolderCrops.of(sets[folder]).export(_scope(order), _config(order), build(ExportConfig, order.export), order.out, order.zip))

    @router.get("/data/{folder}/crops/zip", response_class=FileResponse, responses={200: {"content": {"application/zip": {}}}}, summary="Download the ZIP that the last export of this folder has made")
    def made(folder: str) -> Response:
        path = found(lambda: FolderCrops.of(sets[folder]).made_zip())
        return file_answer(path, media_type="application/zip")
