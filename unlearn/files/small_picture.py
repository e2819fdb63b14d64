"""A small picture of before and after, as a text that stands in a patch file's metadata.

It is for the eye alone. So a picture that is damaged, too large or of another kind is left out, and
the patch loads all the same.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

SIDE = 256  # pixels; each picture fits into a square of this side
GAP = 4  # pixels between the two
LARGEST = 64 * 1024  # letters of the text
QUALITIES = (90, 80, 65, 50, 30)  # of JPEG, tried in this order until the text is short enough
FORMAT = "JPEG"


def encoded(pictures: Sequence[torch.Tensor]) -> str:
    """The first picture of each IMAGE [n, h, w, 3 or more] side by side, '' without any."""
    shown = [_thumbnail(picture[0]) for picture in pictures]
    if not shown:
        return ""
    width = sum(picture.width for picture in shown) + GAP * (len(shown) - 1)
    sheet = Image.new("RGB", (width, max(picture.height for picture in shown)), (255, 255, 255))
    x = 0
    for picture in shown:
        sheet.paste(picture, (x, 0))
        x += picture.width + GAP
    for quality in QUALITIES:
        buffer = io.BytesIO()
        sheet.save(buffer, FORMAT, quality=quality)
        text = base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= LARGEST:
            return text
    return ""


def _thumbnail(picture: torch.Tensor) -> Image.Image:
    """A picture [h, w, 3 or more] in [0, 1] that fits into SIDE; smaller ones are enlarged."""
    pixels = (picture[..., :3].detach().float().cpu().clamp(0, 1) * 255).round()
    found = Image.fromarray(pixels.to(torch.uint8).numpy())
    scale = SIDE / max(found.size)
    size = tuple(max(1, round(scale * side)) for side in found.size)
    return found.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def decoded(text: str) -> torch.Tensor | None:
    """The IMAGE float32 [1, h, w, 3] of a text, None where it is none of ours."""
    if not text or len(text) > LARGEST:
        return None
    try:
        data = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(data), formats=(FORMAT,)) as found:
            # The declared size is looked at before any pixel is made.
            if found.width > 2 * SIDE + GAP or found.height > SIDE or found.mode != "RGB":
                return None
            pixels = np.asarray(found, np.float32) / 255
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return torch.from_numpy(pixels)[None]
