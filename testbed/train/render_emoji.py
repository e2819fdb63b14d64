"""Makes the sheet of the emoji world from the vendors' vector drawings.

    python3 dev.py tool train_render_emoji FOLDER...

FOLDER: for each vendor of testbed/worlds/emoji one unpacked npm package @iconify-json/VENDOR, in
any order. It needs CairoSVG in .venv (`.venv/bin/pip install cairosvg`), which nothing else here
does. The same packages make the same bytes. The shipped sheet was made from noto 1.2.9, twemoji
1.2.5, fluent-emoji-flat 1.2.6, fluent-emoji-high-contrast 1.2.6 and emojione 1.2.3.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from ..worlds import emoji

BIG = 448  # pixels of a rendered drawing, before it is shrunk
INK = "#14141e"  # of drawings that have no colour of their own
# label -> names of its icon; the first that a vendor has is taken
ICONS = {
    "clown": ("clown-face",),
    "cowboy": ("cowboy-hat-face",),
    "robot": ("robot", "robot-face"),
    "smiley": ("slightly-smiling-face",),
    "policeman": ("police-officer",),
    "builder": ("construction-worker",),
    "person": ("bust-in-silhouette",),
    "cat": ("cat-face",),
    "dog": ("dog-face",),
    "tiger": ("tiger-face",),
    "animal": ("paw-prints",),
    "cheese": ("cheese-wedge",),
    "donut": ("doughnut",),
    "food": ("fork-and-knife-with-plate",),
    "car": ("automobile",),
    "building": ("office-building",),
    "vehicle": ("bus",),
    "football": ("soccer-ball",),
    "ball": ("pool-8-ball",),
    "medal": ("sports-medal",),
    "prize": ("wrapped-gift",),
    "instrument": ("saxophone",),
    "pickaxe": ("pick",),
    "brush": ("paintbrush",),
    "tool": ("wrench",),
    "atom": ("atom-symbol",),
    "radiation": ("radioactive",),
    "question mark": ("red-question-mark", "question-mark"),
    "exclamation mark": ("red-exclamation-mark", "exclamation-mark"),
    "symbol": ("recycling-symbol",),
}


def svg(icons, label):
    """The drawing of a label as an SVG text."""
    for name in ICONS.get(label, (label.replace(" ", "-"),)):
        while name in icons.get("aliases", {}):
            name = icons["aliases"][name]["parent"]
        if name in icons["icons"]:
            break
    else:
        raise SystemExit(f"render_emoji: {icons['prefix']} has no drawing of {label}.")
    icon = icons["icons"][name]
    box = [icon.get(k, icons.get(k, v)) for k, v in (("left", 0), ("top", 0))]
    box += [icon.get(k, icons.get(k, 16)) for k in ("width", "height")]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" width="{BIG}" height="{BIG}">'
        f"{icon['body'].replace('currentColor', INK)}</svg>"
    )


def large(text):
    """float32 [BIG, BIG, 4]: colours times alpha, and alpha."""
    import cairosvg

    png = cairosvg.svg2png(text.encode(), output_width=BIG, output_height=BIG)
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32) / 255
    return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)


def cropped(picture):
    """The square around what is drawn, so that every figure fills its tile."""
    rows, columns = np.where(picture[..., 3] > 0.05)
    side = int(max(np.ptp(rows), np.ptp(columns))) + 1
    y, x = (int(v.min() + v.max() + 1 - side) // 2 + side for v in (rows, columns))
    return np.pad(picture, ((side, side), (side, side), (0, 0)))[y : y + side, x : x + side]


def small(picture):
    """uint8 [FIGURE, FIGURE, 4], colours not multiplied with alpha."""
    size = (emoji.FIGURE, emoji.FIGURE)
    channels = [Image.fromarray(np.ascontiguousarray(c)) for c in np.moveaxis(picture, -1, 0)]
    shrunk = np.stack([np.asarray(c.resize(size, Image.Resampling.LANCZOS)) for c in channels], -1)
    alpha = shrunk[..., 3:].clip(0, 1)
    colour = np.where(alpha > 1 / 255, shrunk[..., :3] / np.maximum(alpha, 1 / 255), 0)
    return (np.concatenate([colour.clip(0, 1), alpha], -1) * 255).round().astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=emoji.SHEET)
    given = parser.parse_args()
    found = [json.loads((f / "icons.json").read_text(encoding="utf-8")) for f in given.folders]
    by_vendor = {icons["prefix"]: icons for icons in found}
    missing = [v for v in emoji.VENDORS if v not in by_vendor]
    if missing:
        sys.exit(f"render_emoji: no folder holds {', '.join(missing)}.")
    rows = []
    for vendor in emoji.VENDORS:
        tiles = [small(cropped(large(svg(by_vendor[vendor], n)))) for n in emoji.LABELS]
        rows.append(np.concatenate(tiles, 1))
    Image.fromarray(np.concatenate(rows)).save(given.out, optimize=True)
    print(f"{given.out}: {len(rows)} vendors, {len(emoji.LABELS)} drawings each")


if __name__ == "__main__":
    main()
