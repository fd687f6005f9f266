"""What the routes of the data-set panel take and give. Written in the types that pydantic 1 (the WebUI's) and 2 both read."""

from typing import Any, Dict, List, Optional

from pydantic import BaseModel, Field


class Folder(BaseModel):
    folder: str = Field(description="The path of a folder on the machine of the program")


class OpenedFolder(BaseModel):
    """A folder that is open."""

    id: str
    folder: str
    name: str
    pictures: int
    version: int = Field(description="Goes up with each change")
    editable: bool
    reason: str = Field(description="Why it is not editable")
    problems: Dict[str, int] = Field(description="How many things of each kind are wrong")
    told: List[str] = Field(description="The first of them as sentences")
    undo: Optional[Dict[str, Any]] = Field(description="What would be taken back")
    redo: Optional[Dict[str, Any]] = Field(description="What would be done again")


class Found(BaseModel):
    rows: List[int]
    version: int
    hints: List[str] = Field([], description="Where there are no rows: sentences that say why that may be")


class Rows(BaseModel):
    rows: List[int] = Field(description="Numbers of pictures")


class RowDetails(BaseModel):
    """A picture and its caption."""

    row: int
    name: str
    place: str = Field(description="Its path in the folder")
    text: str
    tags: List[str]
    is_text: bool = Field(description="Whether the caption is sentences")
    lines: int
    tokens: int = Field(description="CLIP's tokens of its longest line")
    crop: str
    troubles: List[str]


class TagCounts(BaseModel):
    tags: List[Any] = Field(description="[tag, in how many captions], the most frequent first")
    distinct: int
    version: int


class EditOrder(BaseModel):
    """An edit and the pictures that it is for: `rows`, or what `filter` names, or all."""

    name: str = Field(description="One of the edits of `data/edits`")
    args: Dict[str, Any] = {}
    rows: Optional[List[int]] = None
    filter: str = ""
    was: Optional[str] = Field(default=None, description="The caption before somebody typed another one (write): refused where it is different now")


class StepOrder(BaseModel):
    number: Optional[int] = Field(default=None, description="What is meant, by its number in the history; refused where it is not the next")
    partly: bool = Field(default=True, description="Whether files that were changed since may be left as they are; else that is asked, and nothing is done")


class ScopeOrder(BaseModel):
    rows: Optional[List[int]] = None
    filter: str = ""


class Preview(BaseModel):
    plan: str = Field(description="For `apply`")
    changes: int
    total: int
    emptied: int = Field(description="Captions that lose all their words")
    samples: List[Any] = Field(description="{name, before, after}")
    told: List[str]


class PlanOrder(BaseModel):
    plan: str


class Changed(BaseModel):
    entry: Optional[Dict[str, Any]] = Field(description="What was done; null where nothing was to be changed")
    told: str = Field("", description="Which files an undo or redo has left as they are")
    ask: str = Field("", description="The question, where that was to be asked first")
    version: int
    pictures: int
    undo: Optional[Dict[str, Any]]
    redo: Optional[Dict[str, Any]]


class WorkStatus(BaseModel):
    job: Optional[Dict[str, Any]] = Field(description="name, state (running, stopping, done, stopped, failed), done, total, left (seconds), error, result")


class TaggerList(BaseModel):
    taggers: List[Any] = Field(description="{name, general, character, source, here, embedded, kept}: thresholds; whether it is on this machine, needs no file, has seen pictures of this folder; {name, words, kept}: a model that describes pictures")
    error: str = Field(description="Why WD14 models cannot run here, or nothing")


class ScoreOrder(ScopeOrder):
    """Pictures for taggers; in the mode skip those alone that have no caption."""

    taggers: List[str] = Field(description="Names of the list, or paths of .onnx files")
    mode: str = "skip"


class ChosenTagger(BaseModel):
    name: str
    general: Optional[float] = Field(default=None, description="The threshold; nothing: the tagger's own")
    character: Optional[float] = Field(default=None, description="That of names of characters; nothing: the same")


class TagPlanOrder(ScopeOrder):
    """What is to be written: taggers, thresholds, rules and what happens to captions that are there."""

    taggers: List[ChosenTagger]
    mode: str = Field(default="skip", description="skip, merge, prepend, append or replace")
    agreement: str = "any"
    rating: str = "none"
    most: int = 0
    exclude: str = ""
    always: str = ""
    underscores: bool = False
    escape: bool = False


class TagPreview(Preview):
    unscored: int = Field(description="Pictures that these taggers have not seen")
    came: List[Any] = Field(description="[tag, in how many pictures] that the preview before had not")
    went: List[Any] = Field(description="[tag, in how many pictures] that it had")


class CaptionOrder(ScopeOrder):
    """Pictures for a model that describes them; in the mode skip those alone that have no caption."""

    captioner: str = Field(description="One of the list of taggers that has `words`")
    mode: str = Field(default="skip", description="skip, merge, prepend, append or replace")


class CaptionPreview(Preview):
    unscored: int = Field(description="Pictures that the model has not described")


class LackingOrder(TagPlanOrder):
    row: int


class LackingTags(BaseModel):
    tags: List[Any] = Field(description="[tag, score], the highest first")


class SuggestedTags(BaseModel):
    tags: List[Any] = Field(description="[tag, in how many captions]: the folder's own, then with null those of the taggers' lists")


class CheckOrder(ScopeOrder):
    """What is checked, and for what."""

    goal: str = Field(default="", description="What is to be learned, or nothing")
    trigger: str = ""
    size: int = Field(default=512, description="px")


class AuditFound(BaseModel):
    audit: Optional[Dict[str, Any]] = Field(description="kinds, advice, groups of pictures that look alike, steps; null before the first check")


# ---- crops


class CropOrder(BaseModel):
    crop: Dict[str, Any] = Field({}, description="How pictures are cropped: size, focus, enlarge, faces, split, split_below, overlap; `data/crops/fields` explains them")


class CropRows(CropOrder):
    rows: List[int] = Field(description="Numbers of pictures")


class ScopedCrops(CropOrder):
    """For these rows, or those that `filter` names, or all."""

    rows: Optional[List[int]] = None
    filter: str = ""


class ApproveOrder(ScopedCrops):
    was: Optional[str] = Field(None, description="The mark of the crops that somebody saw, for an order of one picture: refused where they are others now")


class FindCrops(ScopedCrops):
    again: bool = Field(False, description="Also where a person has set crops")


class CropExport(ScopedCrops):
    export: Dict[str, Any] = Field({}, description="How crops are written: form, quality, filter, background, name, flat, existing, captions, masks, mirror")
    out: str = Field("", description="A path on the machine of the program; nothing: beside the folder, under a name that is free")
    zip: bool = False


class CropSettings(CropOrder):
    export: Dict[str, Any] = Field({}, description="As in `CropExport`")


class CropUndo(CropOrder):
    number: int = Field(description="What is meant, as `undo` names it; refused where it is not the last")


class CropFrame(BaseModel):
    """The centre of a frame in fractions of the upright picture, and how often it fits into the largest one."""

    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0
    target: str = Field("", description="A size of its own")
    state: str = Field("adjusted", description="auto, adjusted or approved")


class RowCrops(CropOrder):
    row: int
    crops: List[CropFrame] = Field(description="All crops of the picture; none takes them away")
    was: Optional[str] = Field(None, description="The mark of the crops that somebody saw before: refused where they are others now")


class CropsOfRow(BaseModel):
    """The crops of one picture."""

    row: int
    state: str = Field(description="none, auto, adjusted, approved or stale")
    mark: str = Field(description="Of these crops, for `was`; empty for none")
    size: Optional[List[int]] = Field(description="Of the picture, upright")
    found: str
    crops: List[Any] = Field(description="{x, y, zoom, target, state, fixed, frame: sides of the largest frame in fractions, size: px of the result, times: by how much the largest frame is enlarged}")
    troubles: List[str]
    told: List[str]


class ChangedCrops(CropsOfRow):
    undo: Optional[Dict[str, Any]] = Field(description="As in `crops/summary`")
    version: int


class CropsOfRows(BaseModel):
    crops: List[CropsOfRow]
    version: int


class CropSummary(BaseModel):
    pictures: int
    states: Dict[str, int]
    troubles: Dict[str, int]
    undo: Optional[Dict[str, Any]] = Field(description="What would be taken back: number, name (find, change, approve), pictures")
    version: int
    zip: str = Field(description="Name of the ZIP that `crops/zip` gives; empty without one")


class TakenBack(CropSummary):
    rows: List[int] = Field(description="Pictures whose crops are as before")


class CropField(BaseModel):
    """One setting, as the page has it."""

    key: str
    of: str = Field(description="crop or export")
    kind: str = Field(description="text, number, flag or choice")
    label: str
    help: str
    choices: List[str]
    value: Any = Field(description="The default, as a field shows it")


class Approved(CropSummary):
    approved: int


class Job(BaseModel):
    """Long work that has begun; `job` of the folder tells how far it is."""

    name: str
    state: str
    done: int
    total: int
    left: Optional[float]
    error: str
    result: Any = None
