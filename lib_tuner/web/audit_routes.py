"""The routes of checks and advice."""

from __future__ import annotations

from typing import Any, Dict

from fastapi import APIRouter
from fastapi.responses import Response

from ..dataset_audit import AuditOrder, FolderAudit
from ..datasets import Datasets, Scope
from .answers import answer
from .dataset_bodies import AuditFound, CheckOrder


def add_audit(router: APIRouter, sets: Datasets) -> None:
    """Adds them below `data/{folder}`."""

    @router.get("/data/{folder}/audit", response_model=AuditFound, summary="What the last check found")
    def found(folder: str) -> Response:
        return answer(lambda: {"audit": FolderAudit.of(sets[folder]).result})

    @router.post("/data/{folder}/audit", response_model=Dict[str, Any], summary="Check pictures and captions; a job, and nothing is written")
    def check(folder: str, order: CheckOrder) -> Response:
        scope = Scope(None if order.rows is None else tuple(order.rows), order.filter)
        return answer(lambda: FolderAudit.of(sets[folder]).begin(AuditOrder(order.goal, order.trigger.strip(), order.size), scope))
