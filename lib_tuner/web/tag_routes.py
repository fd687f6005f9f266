"""The routes of the tagger and of the host's captioners: the list of models, long work, and previews from what is kept."""

from __future__ import annotations

from typing import Any, Dict

from fastapi import APIRouter, Query
from fastapi.responses import Response

from ..data.tag_rules import Rules
from ..dataset_captions import FolderCaptions
from ..dataset_tags import Chosen, FolderTagging, TagOrder
from ..datasets import Datasets, Scope
from .answers import answer
from .dataset_bodies import CaptionOrder, CaptionPreview, LackingOrder, LackingTags, ScoreOrder, SuggestedTags, TaggerList, TagPlanOrder, TagPreview


def add_tags(router: APIRouter, sets: Datasets) -> None:
    """Adds them below `data/{folder}`."""

    def tagging(folder: str) -> FolderTagging:
        return FolderTagging.of(sets[folder], sets.taggers)

    def captions(folder: str) -> FolderCaptions:
        return FolderCaptions.of(sets[folder], sets.captioners)

    @router.get("/data/{folder}/taggers", response_model=TaggerList, summary="The taggers there are")
    def taggers(folder: str) -> Response:
        return answer(lambda: {**(found := tagging(folder).list()), "taggers": [*found["taggers"], *captions(folder).list()]})

    @router.post("/data/{folder}/tags/score", response_model=Dict[str, Any], summary="Let taggers score pictures; a job, and no caption is written")
    def score(folder: str, order: ScoreOrder) -> Response:
        return answer(lambda: tagging(folder).score(order.taggers, _scope(order), order.mode))

    @router.post("/data/{folder}/tags/plan", response_model=TagPreview, summary="What tagging would write, by kept scores; nothing is written")
    def plan(folder: str, order: TagPlanOrder) -> Response:
        return answer(lambda: tagging(folder).plan(_order(order), _scope(order)))

    @router.post("/data/{folder}/tags/lacking", response_model=LackingTags, summary="The tags that reach the thresholds and a caption lacks")
    def lacking(folder: str, order: LackingOrder) -> Response:
        return answer(lambda: {"tags": tagging(folder).lacking(_order(order), order.row)})

    @router.get("/data/{folder}/suggest", response_model=SuggestedTags, summary="Tags that hold what somebody has typed")
    def suggest(folder: str, like: str = Query("", description="What was typed"), limit: int = Query(12, ge=1, le=100)) -> Response:
        return answer(lambda: {"tags": tagging(folder).suggest(like, limit)})

    @router.post("/data/{folder}/captions/make", response_model=Dict[str, Any], summary="Let a model of the WebUI describe pictures; a job, and no caption is written")
    def make_captions(folder: str, order: CaptionOrder) -> Response:
        return answer(lambda: captions(folder).make(order.captioner, _scope(order), order.mode))

    @router.post("/data/{folder}/captions/plan", response_model=CaptionPreview, summary="What would be written of kept descriptions; nothing is written")
    def plan_captions(folder: str, order: CaptionOrder) -> Response:
        return answer(lambda: captions(folder).plan(order.captioner, order.mode, _scope(order)))


def _scope(order: Any) -> Scope:
    return Scope(None if order.rows is None else tuple(order.rows), order.filter)


def _order(order: TagPlanOrder) -> TagOrder:
    rules = Rules(order.rating, order.most, (order.exclude,), (order.always,), not order.underscores, order.escape, order.agreement)
    return TagOrder(tuple(Chosen(one.name, one.general, one.character) for one in order.taggers), rules, order.mode)
