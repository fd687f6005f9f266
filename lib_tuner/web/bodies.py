"""What the routes take and give, as the OpenAPI page shows it. Written in the types that pydantic 1 (the WebUI's) and 2 both read."""

from typing import Any, Dict, List, Literal, Optional

from pydantic import BaseModel, Field

QueueAction = Literal["pause", "stop", "save", "sample", "prompts", "resume", "move", "remove", "start", "hold"]
RunAction = Literal["note", "rename", "delete-file", "delete", "resume"]


class Wanted(BaseModel):
    """A run to start."""

    settings: Dict[str, Any] = Field(description="Settings by their keys, such as `optim.lr`, flat or nested; what is left out has its default")


class Added(BaseModel):
    id: str = Field(description="The entry in the queue")


class Order(BaseModel):
    """What an action needs beside its name."""

    id: str = Field("", description="The entry: resume, move, remove")
    by: int = Field(0, description="move: -1 earlier, 1 later")
    prompts: Optional[str] = Field(None, description="sample, prompts: one prompt a line")


class Change(BaseModel):
    """What a change of a run needs beside its name."""

    name: str = Field("", description="The file: rename, delete-file")
    to: str = Field("", description="rename: the new name without its ending")
    text: str = Field("", description="note: the text")


class Done(BaseModel):
    answer: Any = None


class Refusal(BaseModel):
    """Why something was not done, and what to do."""

    error: str


class Entry(BaseModel):
    """A run in the queue."""

    id: str
    name: str
    method: str
    steps: int
    step: int
    state: str = Field(description="waiting, running, pausing, stopping, paused, done, stopped, nan or failed")
    error: str
    run: str = Field(description="The run on the disk; empty before its folder is made")


class Status(BaseModel):
    held: bool = Field(description="Whether nothing new is started")
    trouble: str = Field(description="Why the queue cannot be written down, if so")
    queue: List[Entry]
    now: Optional[Dict[str, Any]] = Field(description="The entry that goes or has last gone, with step, part, points [step, loss, learning rate], samples, files, speed and memory")


class RunRow(BaseModel):
    """A run on the disk."""

    id: str
    folder: str
    name: str
    method: str
    data: str
    model: str
    state: str
    step: int
    steps: int
    started: float = Field(description="Seconds since 1970")
    seconds: float
    loss: Optional[float]
    validation: Optional[float]
    best: Optional[float]
    notes: str
    error: str
    resumable: bool


class RunDetails(RunRow):
    points: List[Any] = Field(description="[step, loss, learning rate]")
    validations: List[Any] = Field(description="[step, loss]")
    drifts: List[Any] = Field(description="[step, language drift]")
    samples: List[Any]
    files: List[Any] = Field(description="name, bytes, step, use (what to write into the prompt), report (how the host reads it)")
    settings: Dict[str, Any]
    words: str
    prompts: str
    training: List[int]


class Field_(BaseModel):
    """One thing that a tool asks, as the command line has it too."""

    key: str
    kind: str = Field(description="file, loras, recipe, out, picture, flag, choice or number")
    label: str
    help: str
    required: bool
    choices: List[str]
    empty: str = Field(description="What it means where nothing is given")
    of: List[str] = Field(description="Kinds of files that fit")
    only: str = Field(description="It has a meaning for an input of this kind alone")
    more: bool = Field(description="It is seldom needed")
    low: Optional[float] = Field(description="Of a number: the least")
    high: Optional[float]
    value: Any = Field(description="The default, as a field shows it")


class ToolForm(BaseModel):
    name: str
    label: str
    text: str
    step: str
    fields: List[Field_]


class KnownFile(BaseModel):
    name: str = Field(description="What it may be called in values, as well as by its path")
    path: str
    kind: str = Field(description="checkpoint, lora, embedding, hypernetwork, control, vae, recipe, or empty")
    bytes: int


class ToolValues(BaseModel):
    values: Dict[str, Any] = Field({}, description="By the fields' keys; `loras` is a list of {file, weight} or {file, unet, text_encoder}; what is left out has its default")


class Checked(BaseModel):
    problems: Dict[str, str] = Field(description="What is wrong, by field")
    missing: Dict[str, str] = Field(description="What has not been given yet")
    out: str = Field(description="The name that the output gets where none is given")
    folder: str = Field(description="Where the output goes")
    exists: bool = Field(description="Whether a file of that name is there; it stays, unless `force` says otherwise")


class ToolJob(BaseModel):
    id: str
    tool: str
    state: str = Field(description="running, stopping, done, stopped or failed")
    step: str = Field(description="What is counted")
    done: int
    total: int
    left: Optional[float] = Field(description="Seconds")
    seconds: float
    error: str
    detail: str
    values: Dict[str, Any]
    kind: str
    files: List[Any] = Field(description="path, name, bytes")
    said: List[str]
    report: Optional[Dict[str, Any]] = Field(description="What inspect has found")


class JobStatus(BaseModel):
    job: Optional[ToolJob]


class RecipeFile(BaseModel):
    file: str = Field(description="Its name among the files, or its path")


class RecipeRows(BaseModel):
    name: str
    loras: List[Dict[str, Any]]


REFUSALS: Dict[Any, Dict[str, Any]] = {400: {"model": Refusal, "description": "What is wrong, and what to do"}}
