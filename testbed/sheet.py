"""Sheets of before/after pairs of the sprite world, as the README shows them."""

from PIL import Image, ImageDraw, ImageFont

from testbed.worlds.evaluate import judge_picture


def save(shots, pictures, rights, path):
    """Writes a sheet of before/after pairs, forgotten ones first, with what the judge made of each.

    shots: (caption, whether it is forgotten). pictures: the PIL pictures before, and those after.
    rights: for each picture [(whether the label is forgotten, whether the judge saw it)].
    """
    cell, columns, head = (300, 128), 4, 36
    sections = [
        ("Forgotten", [k for k, (_, gone) in enumerate(shots) if gone]),
        ("Kept", [k for k, (_, gone) in enumerate(shots) if not gone]),
    ]
    height = sum(head + cell[1] * -(-len(ks) // columns) for _, ks in sections)
    sheet = Image.new("RGB", (cell[0] * columns + 16, height + 16), (250, 250, 247))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    y = 8
    for title, ks in sections:
        draw.text(
            (12, y + 6),
            f"{title}: before > after, same seed",
            (28, 32, 38),
            ImageFont.load_default(18),
        )
        y += head
        for j, k in enumerate(ks):
            x0, y0 = 12 + cell[0] * (j % columns), y + cell[1] * (j // columns)
            for when in (0, 1):
                big = pictures[when][k].resize(
                    (pictures[when][k].width * 72 // 64, 72), Image.NEAREST
                )
                if big.width > 136:
                    big = big.resize((136, 68), Image.NEAREST)
                sheet.paste(big, (x0 + when * 144, y0))
                good = all(there != (gone and when == 1) for gone, there in rights[when][k])
                draw.text(
                    (x0 + when * 144, y0 + 92),
                    "as it should be" if good else "not as it should be",
                    (46, 125, 90) if good else (192, 66, 52),
                    ImageFont.load_default(11),
                )
            draw.text((x0, y0 + 75), shots[k][0], (28, 32, 38), font)
        y += cell[1] * -(-len(ks) // columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def of_studio(studio, plan, gone, model, path, seed=900, steps=12):
    """Saves such a sheet of captions drawn by a Studio, unedited and with the edited `model`.

    gone: names of the forgotten objects and styles.
    """
    looks, pictures, rights = [], [], []
    for which in (None, model):
        drawn = studio.draw(plan, seed, which, steps=steps)
        looks = [judge_picture(studio.judge, p, c) for p, c in zip(drawn, plan, strict=True)]
        arrays = [(p.movedim(0, -1).numpy() * 255).round().astype("uint8") for p in drawn]
        pictures.append(
            [
                Image.fromarray(a).resize((a.shape[1] * 8, a.shape[0] * 8), Image.NEAREST)
                for a in arrays
            ]
        )
        rights.append(
            [
                [(c.style in gone, x.style == c.style)]
                if c.style
                else [(c.name in gone, x.names[0] == c.name)]
                for c, x in zip(plan, looks, strict=True)
            ]
        )
    save([(c.text, c.name in gone or c.style in gone) for c in plan], pictures, rights, path)
