"""Pictures that explain an edit, drawn with Pillow."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

Colour: TypeAlias = tuple[int, int, int]
Bar: TypeAlias = tuple[str, float, str, Colour]
"""Label, value in 0..1, text behind the bar, colour."""
Chart: TypeAlias = tuple[str, Sequence[Bar]]
"""Heading and bars."""

INK, PAPER, GRID = (28, 32, 38), (250, 250, 247), (222, 222, 216)
GOOD, BAD, NEUTRAL = (46, 125, 90), (192, 66, 52), (74, 104, 152)
WARN, FAINT = (176, 112, 22), (110, 114, 120)

# All lengths are pixels.
TITLE_LINE = 24
TITLE_HEIGHT, HEADING_HEIGHT, BAR_HEIGHT, GAP = 46, 34, 20, 12
LABEL_WIDTH, VALUE_WIDTH = 190, 110
CELL = 192  # side of a picture in a sheet of pairs
CARD_WIDTH, CARD_HEIGHT = 2 * CELL + 28, CELL + 74
SECTION_HEIGHT = 38
VERDICT_LINE = 22
MANY_PAIRS = 24  # from which the sheet has four columns


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def to_image(picture: Image.Image) -> torch.Tensor:
    """PIL picture -> IMAGE tensor float32 [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def bar_charts(title: str, charts: Sequence[Chart], width: int = 760) -> torch.Tensor:
    """IMAGE [1, H, W, 3] of horizontal bar charts under one title.

    Values are clipped to the axis from 0 to 1; NaN has no bar. A long title takes several lines.
    """
    titles = _wrapped(title, width - 32, 18)
    top = TITLE_HEIGHT + TITLE_LINE * (len(titles) - 1)
    height = top
    for _, bars in charts:
        height += HEADING_HEIGHT + BAR_HEIGHT * len(bars) + GAP
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(titles):
        draw.text((16, 12 + TITLE_LINE * i), line, INK, _font(18))
    y = top
    for heading, bars in charts:
        draw.text((16, y + 8), heading, INK, _font(14))
        y += HEADING_HEIGHT
        _draw_bars(draw, bars, y, width - LABEL_WIDTH - VALUE_WIDTH)
        y += BAR_HEIGHT * len(bars) + GAP
    return to_image(picture)


def _draw_bars(draw: ImageDraw.ImageDraw, bars: Sequence[Bar], y: int, axis: int) -> None:
    """Draws bars from the height y on; axis: the length of the bar of value 1."""
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = LABEL_WIDTH + tick * axis
        draw.line((x, y, x, y + BAR_HEIGHT * len(bars)), GRID)
    for label, value, text, colour in bars:
        middle = y + BAR_HEIGHT // 2
        short = _fit(draw, label, LABEL_WIDTH - 24)
        draw.text((LABEL_WIDTH - 8, middle), short, INK, _font(12), anchor="rm")
        length = 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0) * axis
        end = LABEL_WIDTH + max(length, 1)
        draw.rectangle((LABEL_WIDTH, y + 4, end, y + BAR_HEIGHT - 4), colour)
        draw.text((LABEL_WIDTH + length + 6, middle), text, INK, _font(12), anchor="lm")
        y += BAR_HEIGHT


def _fit(draw: ImageDraw.ImageDraw, text: str, width: float, size: int = 12) -> str:
    """The text, cut with dots to `width` pixels."""
    while draw.textlength(text, _font(size)) > width and len(text) > 4:
        text = text[:-4] + "..."
    return text


class PairCard(NamedTuple):
    """Two thumbnails to compare, None while there is none, with a caption and a judgement."""

    heading: str
    caption: str
    before: Image.Image | None = None
    after: Image.Image | None = None
    judgement: str = ""
    colour: Colour = NEUTRAL


def pairs_sheet(
    title: str,
    verdict: str,
    colour: Colour,
    sections: Sequence[tuple[str, Sequence[PairCard]]],
) -> Image.Image:
    """PIL picture of before/after pairs: a coloured band with the verdict, then the sections.

    sections: heading and cards. A section without cards is left out. Where a concept has several
    cards, each concept begins a row of its own.
    """
    columns = _columns(sections)
    width = columns * CARD_WIDTH + 16
    words = _wrapped(verdict, width - 56, 16)
    band = 52 + VERDICT_LINE * len(words)
    rows = [_rows(cards, columns) for _, cards in sections]
    height = band + 12 + sum(SECTION_HEIGHT + len(r) * CARD_HEIGHT for r in rows if r)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, width, band), colour)
    draw.text((20, 12), title, PAPER, _font(20))
    for i, text in enumerate(words):
        draw.text((20, 42 + VERDICT_LINE * i), text, PAPER, _font(16))
    y = band + 10
    for (heading, _), of_section in zip(sections, rows, strict=True):
        if not of_section:
            continue
        draw.text((20, y + 6), heading, INK, _font(18))
        y += SECTION_HEIGHT
        for row in of_section:
            for column, card in enumerate(row):
                _draw_card(sheet, draw, card, 20 + CARD_WIDTH * column, y)
            y += CARD_HEIGHT
    return sheet


def _groups(cards: Sequence[PairCard]) -> list[list[PairCard]]:
    """The cards of each concept, where a concept has several; else all of them together."""
    groups = [list(group) for _, group in itertools.groupby(cards, lambda card: card.heading)]
    return groups if any(len(group) > 1 for group in groups) else [list(cards)]


def _rows(cards: Sequence[PairCard], columns: int) -> list[list[PairCard]]:
    """The cards in rows of so many columns; each concept that has several begins a row."""
    rows = []
    for group in _groups(cards):
        rows += [group[k : k + columns] for k in range(0, len(group), columns)]
    return rows


def _columns(sections: Sequence[tuple[str, Sequence[PairCard]]]) -> int:
    if sum(len(cards) for _, cards in sections) > MANY_PAIRS:
        return 4
    widest = max(len(group) for _, cards in sections for group in _groups(cards))
    return min(3, max(widest, 2))


def _draw_card(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, card: PairCard, x: int, y: int
) -> None:
    room = 2 * CELL - draw.textlength(card.judgement, _font(14)) - 12
    draw.text((x, y), _fit(draw, card.heading, room, 16), INK, _font(16))
    draw.text((x + 2 * CELL + 6, y + 2), card.judgement, card.colour, _font(14), anchor="ra")
    draw.text((x, y + 22), _fit(draw, card.caption, 2 * CELL), FAINT, _font(12))
    for i, (name, small) in enumerate((("before", card.before), ("after", card.after))):
        left, top = x + i * (CELL + 6), y + 42
        frame = card.colour if name == "after" and card.judgement else GRID
        draw.rectangle((left - 3, top - 3, left + CELL + 2, top + CELL + 2), frame)
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), PAPER)
        if small is not None:
            corner = (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2)
            sheet.paste(small, corner)
        right = left + draw.textlength(name, _font(12)) + 10
        draw.rectangle((left, top + CELL - 18, right, top + CELL - 1), PAPER)
        draw.text((left + 5, top + CELL - 16), name, INK, _font(12))


def strip(title: str, pictures: Sequence[tuple[str, Image.Image | None]]) -> Image.Image:
    """PIL picture of thumbnails in a row, each with a label below; None for one not drawn yet."""
    width = max(len(pictures) * (CELL + 8) + 32, 2 * CELL)
    sheet = Image.new("RGB", (width, TITLE_HEIGHT + CELL + 40), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((20, 12), title, INK, _font(18))
    for number, (label, small) in enumerate(pictures):
        left, top = 20 + number * (CELL + 8), TITLE_HEIGHT
        draw.rectangle((left - 1, top - 1, left + CELL, top + CELL), GRID)
        if small is not None:
            corner = (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2)
            sheet.paste(small, corner)
        draw.text((left + CELL // 2, top + CELL + 18), label, INK, _font(16), anchor="mm")
    return sheet


def thumbnail(picture: torch.Tensor | Image.Image) -> Image.Image:
    """A PIL picture that fits a cell of the sheet.

    picture: float [H, W, 3] in [0, 1] or a PIL picture. Small pictures are enlarged by whole
    factors without smoothing; large ones are scaled down smoothly.
    """
    if isinstance(picture, torch.Tensor):
        clean = torch.nan_to_num(picture.float()).clamp(0, 1)
        picture = Image.fromarray((clean * 255).round().byte().cpu().numpy())
    scale = CELL / max(picture.size)
    enlarge = scale >= 2
    factor = int(scale) if enlarge else scale
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    method = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
    return picture.resize(size, method)


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """The lines of a text, none wider than `width` pixels where it has spaces."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            longer = f"{lines[-1]} {word}".strip()
            if draw.textlength(longer, _font(size)) > width and lines[-1]:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines
