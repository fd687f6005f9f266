"""The routes of the tools: what they ask, the files there are, recipes, and the one job that goes."""

from __future__ import annotations

from typing import Any, List

from fastapi import APIRouter, Body, HTTPException, Query
from fastapi.responses import FileResponse, JSONResponse, Response

from ..toolbox import Toolbox
from .answers import Answer, answer, file_answer
from .bodies import Added, Checked, Done, JobStatus, KnownFile, RecipeFile, RecipeRows, ToolForm, ToolValues


def add_tools(router: APIRouter, tools: Toolbox) -> None:
    """Adds them below `tools`."""

    @router.get("/tools", response_model=List[ToolForm], summary="The tools, and what each asks")
    def forms() -> Response:
        return JSONResponse(tools.forms())

    @router.get("/tools/files", response_model=List[KnownFile], summary="The files there are to choose from")
    def files() -> Response:
        return answer(tools.files)

    @router.get("/tools/job", response_model=JobStatus, summary="The tool that is at work, or was last")
    def job(known: str = Query("", description="the job whose report is known already")) -> Response:
        return Answer({"job": tools.status(known)})

    @router.post("/tools/job/stop", response_model=Done, summary="Stop the tool that is at work; nothing half-written stays")
    def stop() -> Response:
        return answer(lambda: {"answer": tools.stop()})

    @router.get("/tools/job/files/{index}", response_class=FileResponse, summary="Download a file that the last tool has made")
    def file(index: int) -> Response:
        try:
            path = tools.file(index)
        except ValueError as error:
            raise HTTPException(404, str(error)) from error
        return file_answer(path)

    @router.post("/tools/recipes/read", response_model=Done, summary="The rows of a recipe")
    def read(recipe: RecipeFile) -> Response:
        return answer(lambda: {"answer": tools.read_recipe(recipe.file)})

    @router.post("/tools/recipes/save", response_model=Done, summary="Keep LoRAs and weights as a recipe")
    def save(recipe: RecipeRows) -> Response:
        return answer(lambda: {"answer": str(tools.save_recipe(recipe.name, recipe.loras))})

    @router.post("/tools/{name}/check", response_model=Checked, summary="What would come of these values; nothing is done yet")
    def check(name: str, body: ToolValues = Body(default=ToolValues())) -> Response:
        return answer(lambda: tools.check(name, body.values))

    @router.post("/tools/{name}/start", response_model=Added, summary="Set a tool to work")
    def start(name: str, body: ToolValues) -> Response:
        def begin() -> dict[str, Any]:
            return {"id": tools.start(name, body.values)}

        return answer(begin)
