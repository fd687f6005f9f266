"""What comes from other tabs of the page."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

from PIL import Image

sys.modules.setdefault(f"{__package__}.generation_parameters_copypaste", sys.modules[__name__])  # its name before 1.8


def image_from_url_text(filedata: Any) -> Image.Image | None:
    """The picture that a field of gradio holds: the first of a gallery, a file's, or a data URL's."""
    while isinstance(filedata, (list, tuple)):
        filedata = filedata[0] if filedata else None
    if isinstance(filedata, dict):
        filedata = filedata["name"]
    if not filedata:
        return None
    head, comma, body = filedata.partition(",")
    inline = comma and head.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(body)) if inline else filedata)
