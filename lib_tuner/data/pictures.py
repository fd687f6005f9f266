"""Opening a picture and making it exactly as large as its bucket.

Axes: w, h a picture's sides; W, H the sides of its bucket, all in pixels and width first, as in Pillow. Tensors are (channels, H, W).
"""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageCms, ImageFont

from .item import Item

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 16  # px; a shorter side has not even two latent pixels
LARGEST = 2 * 89_478_485  # px; Pillow refuses more as a decompression bomb (2 * Image.MAX_IMAGE_PIXELS as shipped)

# What Pillow raises on broken files, found by cutting and flipping bytes: PNG chunks raise SyntaxError, EXIF struct.error, ...
BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError)

_ORIENTATION = 0x0112
_SAMPLE_FORMAT, _UNSIGNED = 339, (1,)  # of a TIFF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Facts:
    """What is known of a picture without keeping its pixels: (w, h) upright, and how its alpha channel is used."""

    size: tuple[int, int]
    has_alpha: bool  # something of it is hidden
    transparent: bool  # nothing of it is visible
    animated: bool


@dataclass(frozen=True)
class View:
    """How a picture is shown to the model: its bucket (W, H), how far the crop is moved, and whether it is mirrored.

    `room`: pixels on each side that the crop can move by; the picture is enlarged for them, unless `upscale` is off.
    """

    bucket: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    room: int = 0
    upscale: bool = True
    flip: bool = False


def inspect(data: bytes) -> Facts:
    """Decodes a picture once and forgets its pixels. Raises ValueError, whose text says what is wrong with the file, for one that cannot be used."""
    if not data:
        raise ValueError("is an empty file (0 bytes)")
    try:
        image = _open(data)
        (w, h), turned = image.size, orientation_of(image) >= 5
        animated = image.format in ("GIF", "PNG", "WEBP") and bool(getattr(image, "is_animated", False))  # not a phone's MPO, a scanner's TIFF
        if w * h > LARGEST:
            raise Image.DecompressionBombError
        if min(w, h) >= SMALLEST:
            image.draft(None, (w // 8, h // 8))  # JPEG alone: still notices a cut file, at a fraction of the time
            image.load()
            if turns_itself(image):
                w, h = image.size
        least, most = alpha_of(image).getextrema() if carries_alpha(image) else (255, 255)
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {LARGEST // 10**6} megapixels; make it smaller") from None
    except BROKEN as error:
        raise ValueError(f"is no picture that Pillow can read ({_first_line(error)})") from error
    if min(w, h) < SMALLEST:
        raise ValueError(f"is {w} x {h} px; both sides need at least {SMALLEST}")
    return Facts((h, w) if turned else (w, h), least < 255, most == 0, animated)


def mask_size(data: bytes) -> tuple[int, int]:
    """(w, h) of a mask file after its EXIF orientation. Raises ValueError for one that cannot be read."""
    try:
        return _upright_gray(data).size
    except BROKEN as error:
        raise ValueError(f"is no mask that Pillow can read ({_first_line(error)})") from error


def load(item: Item, data: bytes, masks: bool = False, mask_data: bytes | None = None) -> tuple[Image.Image, Image.Image | None]:
    """The picture upright in sRGB, and its mask (mode L, same size, white where the loss counts) or None.

    Without masks a transparent background becomes white. With masks the mask file wins over the alpha channel; where the alpha channel is the mask,
    the colours below it stay as they were painted. A mask that hides everything is none.
    Raises ValueError for a picture that cannot be decoded.
    """
    try:
        image = _open(data)
        image.load()
        turn = UPRIGHT.get(orientation_of(image))
        rgb, alpha = to_srgb(image), alpha_of(image) if carries_alpha(image) else None
        if turn is not None:
            rgb, alpha = rgb.transpose(turn), alpha and alpha.transpose(turn)
        mask = _upright_gray(mask_data) if masks and mask_data else alpha if masks else None
    except BROKEN as error:
        raise ValueError(f"{item.path}: is no picture that Pillow can read ({_first_line(error)}).") from error
    if alpha is not None and mask is not alpha:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    if mask is not None and mask.size != rgb.size:
        mask = mask.resize(rgb.size, Image.Resampling.BILINEAR)
    return rgb, mask if mask is not None and mask.getextrema()[1] > 0 else None


def small(data: bytes, side: int) -> Image.Image:
    """A picture to look at: upright, in sRGB, its longer side at most `side` px; RGBA where parts of it are transparent, else RGB. Raises ValueError."""
    try:
        image = _open(data)
        if image.width * image.height > LARGEST:
            raise Image.DecompressionBombError
        turn, transparent = UPRIGHT.get(orientation_of(image)), carries_alpha(image)
        image.draft("RGB", (side, side))  # JPEG alone: decodes at a fraction of the size, not below what is asked for
        image.load()
        rgb = to_srgb(image)
        if transparent and (alpha := alpha_of(image)).getextrema()[0] < 255:
            rgb.putalpha(alpha)
        rgb.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return rgb if turn is None else rgb.transpose(turn)
    except Image.DecompressionBombError:
        raise ValueError(f"has more than {LARGEST // 10**6} megapixels; make it smaller") from None
    except BROKEN as error:
        raise ValueError(f"is no picture that Pillow can read ({_first_line(error)})") from error


def cover(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The size of a picture scaled so that it just covers the target: one side is the target's exactly, the other rounded half up and not shorter."""
    (w, h), (W, H) = size, target
    if W * h >= H * w:  # the picture is the taller one: its width fits
        return W, max(H, (2 * h * W + w) // (2 * w))
    return max(W, (2 * w * H + h) // (2 * h)), H


def placement(size: tuple[int, int], view: View) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """The size to scale a picture to, and the box (left, top, right, bottom) of exactly W x H px inside it."""
    W, H = view.bucket
    scaled = cover(size, (W + 2 * view.room, H + 2 * view.room))
    if view.room and not view.upscale and scaled[0] * scaled[1] > size[0] * size[1]:
        scaled = max(size, cover(size, view.bucket), key=lambda s: s[0] * s[1])  # no enlarging for room, only what covering the bucket takes
    left = min(max((scaled[0] - W) // 2 + view.shift[0], 0), scaled[0] - W)
    top = min(max((scaled[1] - H) // 2 + view.shift[1], 0), scaled[1] - H)
    return scaled, (left, top, left + W, top + H)


def fit(image: Image.Image, mask: Image.Image | None, view: View) -> tuple[Image.Image, Image.Image | None]:
    """Picture and mask scaled to cover the bucket, cropped to exactly W x H px, mirrored where the view says so."""
    scaled, box = placement(image.size, view)
    image = image.resize(scaled, Image.Resampling.LANCZOS, reducing_gap=3.0).crop(box)
    mask = mask and mask.resize(scaled, Image.Resampling.BILINEAR).crop(box)
    if view.flip:
        image, mask = (part and part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    return image, mask


def to_pixels(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1] of an RGB picture, (1, H, W) of a mask in [0, 1]; goes through bytes, so numpy is not needed."""
    import torch

    channels = len(image.getbands())
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    x = flat.view(image.height, image.width, channels).permute(2, 0, 1).float()  # (C, H, W)
    return x / 127.5 - 1 if channels == 3 else x / 255


def from_pixels(pixels: Tensor) -> Image.Image:
    """The RGB picture of (3, H, W) in [-1, 1], rounded; what lies outside is cut off."""
    import torch

    levels = ((pixels.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous()  # (H, W, 3)
    return Image.frombytes("RGB", (levels.shape[1], levels.shape[0]), bytes(levels.flatten().tolist()))


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in one, the left one in the right one's size."""
    sheet = Image.new("RGB", (2 * right.width, right.height))
    sheet.paste(left.resize(right.size), (0, 0))
    sheet.paste(right, (right.width, 0))
    return sheet


def to_latent_mask(mask: Image.Image, factor: int) -> Tensor:
    """(1, H / factor, W / factor): the mean over the pixels of each latent pixel, as kohya's masked loss resizes it (mode area)."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(to_pixels(mask)[None], factor)[0]


# ---- Pillow ----------------------------------------------------------------------------------------------------------


def _open(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `inspect` has a limit of its own
        return Image.open(io.BytesIO(data))


def turns_itself(image: Image.Image) -> bool:
    """Whether Pillow turns the picture upright as it loads it, so that its size is right only then; older versions leave the tag there."""
    return image.format == "TIFF"


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation that is left to do, 1 to 8; what else a file says (9, a text) turns nothing."""
    if turns_itself(image):
        return 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Corrupt EXIF data"
        try:
            value = image.getexif().get(_ORIENTATION)
        except BROKEN:
            return 1  # a camera's broken EXIF block is no reason to refuse its picture
    return int(value) if value in UPRIGHT else 1


def carries_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or ("transparency" in image.info and image.mode in ("1", "L", "P", "RGB"))


def alpha_of(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _upright_gray(data: bytes) -> Image.Image:
    image = _open(data)
    image.load()
    gray = to_srgb(image).convert("L")
    if carries_alpha(image):  # a mask saved with its black painted transparent
        gray = Image.composite(gray, Image.new("L", gray.size, 0), alpha_of(image))
    turn = UPRIGHT.get(orientation_of(image))
    return gray if turn is None else gray.transpose(turn)


def to_srgb(image: Image.Image) -> Image.Image:
    """RGB of any mode, alpha left aside; colours of an embedded profile are turned into sRGB's."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bit(image).convert("RGB")
    plain = image if image.mode in ("RGB", "CMYK", "L") else image.convert("RGBA").convert("RGB") if carries_alpha(image) else image.convert("RGB")
    profile = image.info.get("icc_profile")
    return (profile and _from_profile(plain, profile)) or plain.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats, as 8-bit L. Pillow's own conversion cuts everything above 255 off, or shifts, by version."""
    wide = image if image.mode in ("I", "F") else image.convert("I")
    low, top = wide.getextrema()
    if low < 0 and image.format == "TIFF" and image.mode == "I" and getattr(image, "tag_v2").get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED:
        return Image.frombytes("L", image.size, image.tobytes()[3 if sys.byteorder == "little" else 0 :: 4])  # Pillow has what is above 2^31 as negative
    if image.mode == "F":
        white = next((white for white in (1.0, 255.0, 65535.0) if _is_white(image, white)), top)
    else:
        white = 255 if image.mode == "I" and top <= 255 else max(65535, top)
    return wide.point(lambda v: v * (255 / white) + 0.5).convert("L")


def _is_white(image: Image.Image, white: float) -> bool:
    """Whether this is white in floats: none is above twice as much (sharpening), or most of what is not black is below (HDR, whose lights are cut off)."""
    levels = image.point(lambda v: v * (127 / white)).convert("L").histogram()  # nan is black here, and would be neither smallest nor largest
    return not levels[255] or sum(levels[128:]) <= sum(levels[1:]) / 2


def _from_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}.get(source.profile.xcolor_space.strip()) != image.mode:
            return None
        if "srgb" in (source.profile.profile_description or "").lower():
            return image.convert("RGB")
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, *BROKEN):  # ImportError: a Pillow built without LittleCMS
        return None


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split("<")[0].split()) or type(error).__name__  # Pillow names its BytesIO, which tells the user nothing
    return text[:120]


def writable(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """A text that can be written on a picture: Pillow's own bitmap letters, where there are no others, end with Latin-1."""
    return text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
