"""The routes of the tagger: the list of models, scoring as long work, and previews from kept scores."""

from __future__ import annotations

from typing import Any, Dict

from fastapi import APIRouter
from fastapi.responses import Response

from ..data.tag_rules import Rules
from ..dataset_tags import Chosen, FolderTagging, TagOrder
from ..datasets import Datasets, Scope
from .answers import answer
from .dataset_bodies import LackingOrder, LackingTags, ScoreOrder, TaggerList, TagPlanOrder, TagPreview


def add_tags(router: APIRouter, sets: Datasets) -> None:
    """Adds them below `data/{folder}`."""

    def tagging(folder: str) -> FolderTagging:
        return FolderTagging.of(sets[folder], sets.taggers)

    @router.get("/data/{folder}/taggers", response_model=TaggerList, summary="The taggers there are")
    def taggers(folder: str) -> Response:
        return answer(lambda: tagging(folder).list())

    @router.post("/data/{folder}/tags/score", response_model=Dict[str, Any], summary="Let taggers score pictures; a job, and no caption is written")
    def score(folder: str, order: ScoreOrder) -> Response:
        return answer(lambda: tagging(folder).score(order.taggers, _scope(order), order.mode))

    @router.post("/data/{folder}/tags/plan", response_model=TagPreview, summary="What tagging would write, by kept scores; nothing is written")
    def plan(folder: str, order: TagPlanOrder) -> Response:
        return answer(lambda: tagging(folder).plan(_order(order), _scope(order)))

    @router.post("/data/{folder}/tags/lacking", response_model=LackingTags, summary="The tags that reach the thresholds and a caption lacks")
    def lacking(folder: str, order: LackingOrder) -> Response:
        return answer(lambda: {"tags": tagging(folder).lacking(_order(order), order.row)})


def _scope(order: Any) -> Scope:
    return Scope(None if order.rows is None else tuple(order.rows), order.filter)


def _order(order: TagPlanOrder) -> TagOrder:
    rules = Rules(order.rating, order.most, (order.exclude,), (order.always,), not order.underscores, order.escape, order.agreement)
    return TagOrder(tuple(Chosen(one.name, one.general, one.character) for one in order.taggers), rules, order.mode)
