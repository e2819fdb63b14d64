"""Sheets of before/after pairs of a world, as the README shows them."""

from PIL import Image, ImageDraw, ImageFont

from testbed.worlds.evaluate import judge_picture

PAPER, INK, FAINT = (250, 250, 247), (28, 32, 38), (122, 126, 132)
GOOD, BAD = (46, 125, 90), (192, 66, 52)
SIDE = 128  # height of a picture
BETWEEN = 24  # pictures before and after
GAP = 24  # between two cells
CELL = (2 * SIDE + BETWEEN, SIDE + 46)
COLUMNS = 4
MARGIN = 28
HEAD = 58
OVER = 3  # how far a mark stands over its picture
MARKED = "the judge finds it as it should be"


def mark(good, size=22):
    """A round sign: a tick on green, or a cross on red."""
    n = 4 * size  # shrunk afterwards, for smooth edges
    sign = Image.new("RGBA", (n, n), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sign)
    draw.ellipse((0, 0, n - 1, n - 1), PAPER)
    rim = n // 11
    draw.ellipse((rim, rim, n - 1 - rim, n - 1 - rim), GOOD if good else BAD)

    def line(*points):
        places = [(x * n / 22, y * n / 22) for x, y in points]
        draw.line(places, PAPER, round(2.6 * n / 22), joint="curve")

    if good:
        line((6.2, 11.4), (9.6, 14.8), (15.8, 7.6))
    else:
        line((7.4, 7.4), (14.6, 14.6))
        line((14.6, 7.4), (7.4, 14.6))
    return sign.resize((size, size), Image.LANCZOS)


def rows(widths):
    """Cells of these widths, in columns, as rows of lists of (index, column)."""
    out, at = [[]], 0
    for i, width in enumerate(widths):
        if at + width > COLUMNS:
            out.append([])
            at = 0
        out[-1].append((i, at))
        at += width
    return out


def cell(shot, before, after, good):
    """One caption: the two pictures, a mark of the judge on each, and the text below."""
    wide = before.width * SIDE // before.height
    out = Image.new("RGB", (2 * wide + BETWEEN + OVER, CELL[1]), PAPER)
    draw = ImageDraw.Draw(out)
    for k, picture in enumerate((before, after)):
        x = k * (wide + BETWEEN)
        out.paste(picture.resize((wide, SIDE), Image.NEAREST), (x, 0))
        sign = mark(good[k])
        out.paste(sign, (x + wide - sign.width + OVER, SIDE - sign.height + OVER), sign)
    x, y = wide + BETWEEN / 2, SIDE / 2
    draw.polygon([(x - 4, y - 7), (x + 5, y), (x - 4, y + 7)], FAINT)
    draw.text((0, SIDE + 7), shot, INK, ImageFont.load_default(17))
    return out


def head(draw, y, title):
    """The title of a section, and what the marks mean."""
    font = ImageFont.load_default(26)
    draw.text((MARGIN, y), title, INK, font)
    x = MARGIN + draw.textlength(title, font) + 16
    draw.text((x, y + 10), "before and after, same seed", FAINT, ImageFont.load_default(17))


def save(shots, pictures, rights, path):
    """Writes a sheet of before/after pairs, forgotten ones first, with what the judge made of each.

    shots: (caption, whether it is forgotten). pictures: the PIL pictures before, and those after.
    rights: for each picture [(whether the label is forgotten, whether the judge saw it)].
    """
    sections = []
    for title, wanted in (("Forgotten", True), ("Kept", False)):
        ks = [k for k, (_, gone) in enumerate(shots) if gone == wanted]
        wide = [1 + (pictures[0][k].width > pictures[0][k].height) for k in ks]
        sections.append((title, ks, rows(wide)))
    height = sum(HEAD + CELL[1] * len(placed) for _, _, placed in sections)
    width = CELL[0] * COLUMNS + GAP * (COLUMNS - 1) + 2 * MARGIN
    sheet = Image.new("RGB", (width, height + 2 * MARGIN - 14), PAPER)
    draw, y = ImageDraw.Draw(sheet), MARGIN - 8
    sign, font = mark(True), ImageFont.load_default(17)
    x = round(width - MARGIN - draw.textlength(MARKED, font))
    draw.text((x, y + 10), MARKED, FAINT, font)
    sheet.paste(sign, (x - 30, y + 9), sign)
    for title, ks, placed in sections:
        head(draw, y, title)
        y += HEAD
        for row in placed:
            for i, column in row:
                k = ks[i]
                good = [
                    all(there != (gone and when == 1) for gone, there in rights[when][k])
                    for when in (0, 1)
                ]
                made = cell(shots[k][0], pictures[0][k], pictures[1][k], good)
                sheet.paste(made, (MARGIN + column * (CELL[0] + GAP), y))
            y += CELL[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def of_studio(studio, plan, gone, model, path, seed=900, steps=12):
    """Saves such a sheet of captions drawn by a Studio, unedited and with the edited `model`.

    gone: names of the forgotten objects and styles.
    """
    pictures, rights = [], []
    for which in (None, model):
        drawn = studio.draw(plan, seed, which, steps=steps)
        looks = [judge_picture(studio.judge, p, c) for p, c in zip(drawn, plan, strict=True)]
        arrays = [(p.movedim(0, -1).numpy() * 255).round().astype("uint8") for p in drawn]
        pictures.append([Image.fromarray(a) for a in arrays])
        rights.append(
            [
                [(c.style in gone, x.style == c.style)]
                if c.style
                else [(c.name in gone, x.names[0] == c.name)]
                for c, x in zip(plan, looks, strict=True)
            ]
        )
    save([(c.text, c.name in gone or c.style in gone) for c in plan], pictures, rights, path)
