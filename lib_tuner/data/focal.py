"""Where the subject of a picture is: a face, else where there is most detail, else the middle.

Faces need OpenCV, which is optional: a YuNet model (.onnx) where a file is given, else the cascades that come with it. Detail needs nothing but torch:
gradient energy and entropy on a thumbnail of 256 px, a few milliseconds. Axes: H W pixels of the thumbnail, Y X its cells of 8 x 8 px. Points and boxes that
are handed out are fractions of the picture, so they hold for it at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .crop import Box, Point

if TYPE_CHECKING:
    from torch import Tensor

WAYS = ("auto", "face", "detail", "centre")
THUMB, CELL = 256, 8  # px: the thumbnail's longer side, a cell of the map
FACES = 640  # px: the longer side of what a face is looked for in; smaller ones are no subject
SURE = 0.8  # YuNet's own score of a face from which on it counts; the WebUI's 0.9 misses half-turned ones
MARGIN = 0.3  # of a face's sides, for hair and chin, which detectors leave out
_SMALLEST = 0.05  # of the shorter side, as in the WebUI: a cascade sees faces in any texture if it may be small
_CAMERA = (0.4, 0.4, 0.8)  # see `_where_subjects_are`
_SPREAD = 5  # cells: the window of the entropy, 40 px of the thumbnail
# Neither eyes, which are no face and come first in the WebUI, nor frontalface_default: of the 28 sample pictures of scikit-image and scikit-learn it sees
# faces in a flower, coins and a cell, the three here in the astronaut alone.
_CASCADES = ("haarcascade_frontalface_alt2.xml", "haarcascade_frontalface_alt.xml", "haarcascade_profileface.xml")

Detector = Callable[[Image.Image], Sequence[Box]]  # an RGB picture -> boxes of faces in its pixels


@dataclass(frozen=True)
class Focus:
    """What a crop is to be about: a point, the boxes of subjects (faces without margin; none where detail was looked for), and how it was found."""

    point: Point = (0.5, 0.5)
    subjects: tuple[Box, ...] = ()
    found: str = "centre"


def find(picture: Image.Image, way: str = "auto", detector: Detector | None = None) -> Focus:
    """Where the subject of an upright picture is. `face` falls back to the middle, `auto` to detail. Raises ValueError for a way that there is not."""
    if way not in WAYS:
        raise ValueError(f"There is no way {way!r} to find a subject; choose one of {', '.join(WAYS)}.")
    if way == "face" and detector is None:
        raise ValueError("Faces need the package opencv-python-headless: install it, or choose auto or detail.")
    faces = _faces(picture, detector) if detector and way in ("auto", "face") else ()
    if faces:
        left, top, right, bottom = max(faces, key=_area)
        return Focus(((left + right) / 2, top + (bottom - top) / 3), faces, "face")  # near the brow, as the WebUI does
    return Focus(detail(picture), (), "detail") if way in ("auto", "detail") else Focus()


# ---- faces -----------------------------------------------------------------------------------------------------------


def _faces(picture: Image.Image, detector: Detector) -> tuple[Box, ...]:
    image = _thumbnail(picture, FACES)
    (w, h), found = image.size, []
    for left, top, right, bottom in detector(image):
        box = max(0.0, left / w), max(0.0, top / h), min(1.0, right / w), min(1.0, bottom / h)  # YuNet's boxes may reach outside
        if box[0] < box[2] and box[1] < box[3]:
            found.append(box)
    return tuple(sorted(found, key=_area, reverse=True))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def face_detector(model: str | Path = "") -> Detector | None:
    """YuNet where a model file is named, else the cascades of OpenCV; None where there is no OpenCV, or one without cascades.

    Raises ValueError for a model that is not there or that OpenCV cannot read, or where one is named and OpenCV is missing.
    """
    if model and not Path(model).is_file():
        raise ValueError(f"{model} is no file; name a YuNet model such as face_detection_yunet_2023mar.onnx.")
    try:
        import cv2
    except ImportError:
        if model:
            raise ValueError("A face model needs the package opencv-python-headless: install it, or leave the model out.") from None
        return None
    return _yunet(cv2, Path(model)) if model else _cascades(cv2)


def _yunet(cv2: Any, model: Path) -> Detector:
    try:
        net = cv2.FaceDetectorYN.create(str(model), "", (FACES, FACES), SURE, 0.3, 5000)
    except (cv2.error, AttributeError) as error:  # AttributeError: an OpenCV before 4.5.4
        raise ValueError(f"{model} cannot be read as a YuNet model by OpenCV {cv2.__version__}; the file of 2023 needs 4.8, that of 2022 an older one.") from error

    def detect(image: Image.Image) -> list[Box]:
        net.setInputSize(image.size)
        found = net.detect(_pixels(image, bgr=True))[1]  # None, or rows of x, y, w, h, five points, score
        return [(x, y, x + w, y + h) for x, y, w, h in ([float(v) for v in row[:4]] for row in (found if found is not None else ()))]

    return detect


def _cascades(cv2: Any) -> Detector | None:
    if not hasattr(cv2, "CascadeClassifier"):  # OpenCV 5 has moved them out
        return None
    folder = Path(cv2.data.haarcascades)
    nets = [net for net in (cv2.CascadeClassifier(str(folder / name)) for name in _CASCADES if (folder / name).is_file()) if not net.empty()]

    def detect(image: Image.Image) -> list[Box]:
        gray, least = _pixels(image.convert("L")), max(20, int(_SMALLEST * min(image.size)))
        for net in nets:
            found = net.detectMultiScale(gray, scaleFactor=1.1, minNeighbors=7, minSize=(least, least))
            if len(found):  # an array, whose truth is an error from two faces on: where the WebUI's fallback ends
                return [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in found]
        return []

    return detect if nets else None


def _pixels(image: Image.Image, bgr: bool = False) -> Any:
    """(H, W) or (H, W, 3) bytes; YuNet has learned blue before red."""
    import numpy

    array = numpy.asarray(image)
    return numpy.ascontiguousarray(array[:, :, ::-1]) if bgr else array


# ---- detail ----------------------------------------------------------------------------------------------------------


def detail(picture: Image.Image) -> Point:
    """The point with most detail around it: the mean of the map within the window, a third of the shorter side, that holds most of it."""
    from torch.nn.functional import avg_pool2d

    image = _thumbnail(picture, THUMB)
    rest = interest(image)
    rest = rest * _where_subjects_are(*rest.shape)  # (Y, X)
    side = max(1, min(rest.shape) // 3) // 2 * 2 + 1
    held = avg_pool2d(rest[None, None], side, 1, side // 2)[0, 0]  # what is outside counts as nothing
    if float(held.max()) <= 0:  # one colour: no place is better
        return 0.5, 0.5
    y, x = divmod(int(held.argmax()), held.shape[1])
    rows, columns = (slice(max(0, at - side // 2), at + side // 2 + 1) for at in (y, x))
    near = rest[rows, columns]
    down, right = _mean(near.sum(1)) + rows.start, _mean(near.sum(0)) + columns.start
    return min(1.0, (right + 0.5) * CELL / image.width), min(1.0, (down + 0.5) * CELL / image.height)


def _where_subjects_are(rows: int, columns: int) -> Tensor:
    """(Y, X): 1 two fifths from the top in the middle, falling with the square of the distance: people aim at the middle and leave less room above a head
    than below it, and a caption or watermark is at the bottom. Weak enough that a subject at the edge wins over an even background."""
    import torch

    height, across, down = _CAMERA
    y, x = (torch.arange(rows) + 0.5) / rows - height, (torch.arange(columns) + 0.5) / columns - 0.5
    return (1 - down * (y / (1 - height)) ** 2)[:, None] * (1 - across * (2 * x) ** 2)


def _mean(weights: Tensor) -> float:
    """The mean place of weights along their axis."""
    import torch

    return float((weights * torch.arange(len(weights))).sum() / weights.sum())


def interest(image: Image.Image) -> Tensor:
    """(Y, X) in [0, 1]: how much more gradient energy and entropy a cell has than is usual in this picture, so that an even texture has none.

    Energy is the mean of |gx| + |gy| (Sobel) over a cell, entropy that of `entropy`; each less its median, over its largest value. The median, since a
    background is the larger part; a mean of both, since energy alone goes for one hard edge and entropy alone for noise.
    """
    from torch.nn.functional import avg_pool2d

    from .conditions import sobel

    levels = _levels(image)  # (H, W) of 0 to 255
    down, right = sobel(levels[None].float())
    energy = avg_pool2d((down.abs() + right.abs())[None], CELL)[0, 0]
    return (_above_usual(energy) + _above_usual(entropy(levels))) / 2


def _above_usual(x: Tensor) -> Tensor:
    x = (x - x.median()).clamp(min=0)
    return x / x.max().clamp(min=1e-6)


def entropy(levels: Tensor) -> Tensor:
    """(Y, X): -sum p log2 p, in bits, of the 256 levels of grey in the 40 x 40 px around each cell of (H, W), fewer at the edges.

    Shannon's; the WebUI's image_entropy is -log2 p0 - log2 p1 of a dithered picture, which is largest for what is almost flat.
    """
    import torch

    rows, columns = levels.shape[0] // CELL, levels.shape[1] // CELL
    cells = levels[: rows * CELL, : columns * CELL].long().view(rows, CELL, columns, CELL).permute(0, 2, 1, 3).reshape(rows * columns, -1)  # (Y X, 64)
    counts = torch.zeros(rows * columns, 256).scatter_add_(1, cells, torch.ones(cells.shape))
    counts = _band(rows) @ counts.view(rows, -1)  # sums over neighbours as products: five times faster than pooling 256 planes
    counts = _band(columns) @ counts.view(rows, columns, 256)  # (Y, X, 256)
    total = counts.sum(2)
    return total.log2() - (counts * counts.clamp(min=1).log2()).sum(2) / total  # -sum c/n log2 c/n


def _band(count: int) -> Tensor:
    """(count, count): 1 where two cells are in one window."""
    import torch

    at = torch.arange(count)
    return ((at[:, None] - at).abs() <= _SPREAD // 2).float()


def _levels(image: Image.Image) -> Tensor:
    import torch

    gray = image.convert("L")
    return torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8).view(gray.height, gray.width)


def _thumbnail(picture: Image.Image, longest: int) -> Image.Image:
    """RGB, its longer side as given unless it is shorter, both whole cells at least."""
    w, h = picture.size
    scale = min(1.0, longest / max(w, h))
    size = max(CELL, round(w * scale)), max(CELL, round(h * scale))
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR, reducing_gap=2.0)
