"""Pictures that explain an edit, drawn with Pillow."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GRID = (28, 32, 38), (250, 250, 247), (222, 222, 216)
GOOD, BAD, NEUTRAL = (46, 125, 90), (192, 66, 52), (74, 104, 152)


def _font(size):
    return ImageFont.load_default(size)


def to_image(picture):
    """PIL picture -> IMAGE tensor float32 [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def bar_charts(title, charts, width=760):
    """IMAGE of horizontal bar charts under one title.

    charts: list of (heading, rows); a row is (label, value in 0..1, text, colour). Values are clipped to the axis.
    """
    line, head, left, right = 20, 34, 190, 110
    height = 46 + sum(head + line * len(rows) + 12 for _, rows in charts)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((16, 12), title, INK, _font(18))
    y = 46
    for heading, rows in charts:
        draw.text((16, y + 8), heading, INK, _font(14))
        y += head
        for tick in (0, 0.25, 0.5, 0.75, 1):
            x = left + tick * (width - left - right)
            draw.line((x, y, x, y + line * len(rows)), GRID)
        for label, value, text, colour in rows:
            draw.text((left - 8, y + line // 2), _fit(draw, label, left - 24), INK, _font(12), anchor="rm")
            span = min(max(value, 0), 1) * (width - left - right)
            draw.rectangle((left, y + 4, left + max(span, 1), y + line - 4), colour)
            draw.text((left + span + 6, y + line // 2), text, INK, _font(12), anchor="lm")
            y += line
        y += 12
    return to_image(picture)


def _fit(draw, text, width):
    """The text, cut with dots to `width` pixels."""
    while draw.textlength(text, _font(12)) > width and len(text) > 4:
        text = text[:-4] + "..."
    return text
