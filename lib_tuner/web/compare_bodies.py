"""What the routes of the comparison take and give. Written in the types that pydantic 1 (the WebUI's) and 2 both read."""

from typing import Any, Dict, List, Optional

from pydantic import BaseModel, Field


class AxisOrder(BaseModel):
    kind: str = Field(default="", description="One of the offered axes; empty: none")
    text: str = Field(default="", description="Its values, in the notation of the WebUI's X/Y/Z plot")


class FileOrder(BaseModel):
    name: str
    weight: float = Field(default=1.0, ge=-16, le=16)
    blocks: str = ""


class GridBody(BaseModel):
    """A grid: one picture's settings, the files on the model, and up to three axes."""

    prompt: str = ""
    negative: str = ""
    width: int = Field(default=512, ge=64, le=4096)
    height: int = Field(default=512, ge=64, le=4096)
    steps: int = Field(default=20, ge=1, le=150)
    cfg: float = Field(default=7.0, ge=1, le=30)
    sampler: str = "ddim"
    seed: int = Field(default=1, ge=0, le=2**32 - 1)
    clip_skip: int = Field(default=0, ge=0, le=12, description="0: as the run or the host has it")
    run: str = Field(default="", description="The run whose model is used; empty: the host's own")
    checkpoint: str = Field(default="", description="A checkpoint of the list, in the place of that one")
    files: List[FileOrder] = []
    axes: Dict[str, AxisOrder] = Field(default={}, description="By x, y, z")
    sure: bool = Field(default=False, description="Draw it even if it is much")


class GridPlan(BaseModel):
    """What would be drawn."""

    count: int
    shape: List[int] = Field(description="Columns, rows, planes")
    labels: Dict[str, List[str]]
    problems: List[str]
    failing: int = Field(description="Cells that cannot be drawn")
    seconds: Optional[float] = Field(description="How long it will take, where that is known")
    much: bool = Field(description="Whether `sure` is needed")


class Offered(BaseModel):
    """What can be chosen."""

    axes: List[Dict[str, Any]]
    files: List[Dict[str, Any]]
    samplers: List[str]
    runs: List[Dict[str, Any]]


class GridName(BaseModel):
    name: str


class Earlier(BaseModel):
    """The grids that were drawn, the latest first."""

    grids: List[Dict[str, Any]] = Field(description="Name, prompt, kinds of its axes, number of pictures")


class RunOrder(BaseModel):
    run: str


class Cells(BaseModel):
    cells: List[int] = Field(description="By index: plane, row, column")
    grid: str = Field(default="", description="The name of the grid that they are of; empty: the one that is shown")


class GridStatus(BaseModel):
    """The work that goes or was last, and the grid."""

    work: Optional[Dict[str, Any]]
    grid: Optional[Dict[str, Any]] = Field(description="Its cells only where the version is another than the known one")


class CellDetails(BaseModel):
    prompt: str
    text: str = Field(description="All settings, as the WebUI writes them")
    files: List[Dict[str, Any]]


class KeepOrder(BaseModel):
    """Which save of a run was the best, and what it is to be called and to say of itself."""

    run: str
    file: str
    name: str = Field(description="Without its ending")
    words: str = Field(default="", description="What a click on the card puts into the prompt")
    weight: float = Field(default=0.8, ge=0, le=16)
    notes: str = ""
    cell: Optional[int] = Field(default=None, description="The cell whose picture the card shows")
    grid: str = Field(default="", description="The name of the grid that it is of; empty: the one that is shown")
    others: str = Field(default="leave", description="leave, or trash: the run's other saves go to its folder `trash`")


class Kept(BaseModel):
    file: str
    trashed: int = Field(description="Files that went to the trash")


class TwoRuns(BaseModel):
    """Two runs beside each other."""

    settings: List[Any] = Field(description="[setting, of the first, of the second], those that differ")
    runs: List[Dict[str, Any]] = Field(description="Name, points and validations of each")
