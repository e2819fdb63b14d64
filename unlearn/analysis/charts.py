"""Pictures that explain an edit, drawn with Pillow."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GRID = (28, 32, 38), (250, 250, 247), (222, 222, 216)
GOOD, BAD, NEUTRAL = (46, 125, 90), (192, 66, 52), (74, 104, 152)
WARN, FAINT = (176, 112, 22), (110, 114, 120)


def _font(size):
    return ImageFont.load_default(size)


def to_image(picture):
    """PIL picture -> IMAGE tensor float32 [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def bar_charts(title, charts, width=760):
    """IMAGE of horizontal bar charts under one title.

    charts: list of (heading, rows); a row is (label, value in 0..1, text, colour). Values are clipped to the axis; NaN has no bar.
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
            draw.text(
                (left - 8, y + line // 2), _fit(draw, label, left - 24), INK, _font(12), anchor="rm"
            )
            span = (min(max(value, 0), 1) if value == value else 0) * (width - left - right)
            draw.rectangle((left, y + 4, left + max(span, 1), y + line - 4), colour)
            draw.text((left + span + 6, y + line // 2), text, INK, _font(12), anchor="lm")
            y += line
        y += 12
    return to_image(picture)


def _fit(draw, text, width, size=12):
    """The text, cut with dots to `width` pixels."""
    while draw.textlength(text, _font(size)) > width and len(text) > 4:
        text = text[:-4] + "..."
    return text


class Pair(NamedTuple):
    """Two thumbnails to compare, None while there is none; a heading, small print, and a judgement."""

    heading: str
    small: str
    before: Image.Image | None = None
    after: Image.Image | None = None
    said: str = ""
    colour: tuple[int, int, int] = NEUTRAL


CELL = 192  # side of a picture in a sheet of pairs


def pairs_sheet(title, verdict, colour, sections):
    """PIL picture of before/after pairs: a coloured band with the verdict, then each section (heading, list of Pair) in columns."""
    card, line = (2 * CELL + 28, CELL + 74), 22
    columns = (
        4
        if sum(len(p) for _, p in sections) > 24
        else min(3, max([len(p) for _, p in sections] + [2]))
    )
    width = columns * card[0] + 16
    words = _wrapped(verdict, width - 56, 16)
    band = 52 + line * len(words)
    rows = [-(-len(pairs) // columns) for _, pairs in sections]
    sheet = Image.new("RGB", (width, band + 12 + sum(38 + r * card[1] for r in rows if r)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, width, band), colour)
    draw.text((20, 12), title, PAPER, _font(20))
    for i, text in enumerate(words):
        draw.text((20, 42 + line * i), text, PAPER, _font(16))
    y = band + 10
    for (heading, pairs), r in zip(sections, rows, strict=True):
        if not pairs:
            continue
        draw.text((20, y + 6), heading, INK, _font(18))
        y += 38
        for k, pair in enumerate(pairs):
            _draw_pair(
                sheet, draw, pair, 20 + card[0] * (k % columns), y + card[1] * (k // columns)
            )
        y += r * card[1]
    return sheet


def _draw_pair(sheet, draw, pair, x, y):
    said = draw.textlength(pair.said, _font(14))
    draw.text((x, y), _fit(draw, pair.heading, 2 * CELL - said - 12, 16), INK, _font(16))
    draw.text((x + 2 * CELL + 6, y + 2), pair.said, pair.colour, _font(14), anchor="ra")
    draw.text((x, y + 22), _fit(draw, pair.small, 2 * CELL), FAINT, _font(12))
    for i, (name, small) in enumerate((("before", pair.before), ("after", pair.after))):
        left, top = x + i * (CELL + 6), y + 42
        frame = pair.colour if name == "after" and pair.said else GRID
        draw.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), frame)
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), PAPER)
        if small is not None:
            sheet.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
        draw.rectangle(
            (left, top + CELL - 18, left + draw.textlength(name, _font(12)) + 10, top + CELL - 1),
            PAPER,
        )
        draw.text((left + 5, top + CELL - 16), name, INK, _font(12))


def thumbnail(picture):
    """float [H, W, 3] in [0, 1], or a PIL picture -> PIL picture that fits a cell: small ones in whole pixels, large ones smoothly."""
    shown = picture
    if isinstance(picture, torch.Tensor):
        shown = Image.fromarray(
            (torch.nan_to_num(picture.float()).clamp(0, 1) * 255).round().byte().cpu().numpy()
        )
    scale = CELL / max(shown.size)
    size = [max(1, round(side * (int(scale) if scale >= 2 else scale))) for side in shown.size]
    return shown.resize(size, Image.NEAREST if scale >= 2 else Image.LANCZOS)


def _wrapped(text, width, size):
    """The lines of a text, none wider than `width` pixels where it has spaces."""
    draw, lines = ImageDraw.Draw(Image.new("RGB", (1, 1))), []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if draw.textlength(longer, _font(size)) > width and lines[-1]:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines
