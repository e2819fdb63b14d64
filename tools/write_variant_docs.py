"""Writes what the variants of ScaPre Solve say of themselves into the help page and the locale.

`python -m tools.write_variant_docs` fills the table between `<!-- variants:begin -->` and
`<!-- variants:end -->` of web/docs/ScaPreSolve.md, and the entries of the variants' inputs in
locales/en/nodeDefs.json. Both come from unlearn/closed_form/variants. A test says when they are
stale.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ.get("UNLEARN_HOST", ROOT / ".host" / "ComfyUI"))
for folder in (str(ROOT), str(HOST)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from testbed import pack  # noqa: E402

PAGE = ROOT / "web" / "docs" / "ScaPreSolve.md"
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"
BEGIN, END = "<!-- variants:begin -->", "<!-- variants:end -->"


def shown(value):
    """A default as the node shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}"


def table(variants):
    """The part of the help page between the two marks."""
    lines = []
    for name, variant in variants.items():
        lines += [
            "",
            f"**`{name}`** ({variant.reference}). {variant.description}",
            "",
            "| input | default | what it does |",
            "|---|---|---|",
        ]
        for setting, entry in variant.inputs.items():
            label = f"**{setting}**" + (" (advanced)" if entry.advanced else "")
            lines.append(f"| {label} | {shown(entry.default)} | {entry.tooltip} |")
    return "\n".join([*lines, ""])


def page(text, variants):
    """The help page with its table as the variants have it."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(variants)}\n{END}{after}"


def tooltips(variants):
    """One tooltip per setting. Where variants differ, each one's stands on a line of its own.

    The frontend knows only one text for all options of a combo that have an input of that name.
    """
    found = {}
    for name, variant in variants.items():
        for setting, entry in variant.inputs.items():
            found.setdefault(setting, {})[name] = entry.tooltip
    return {setting: by_variant(texts) for setting, texts in found.items()}


def by_variant(texts):
    """One tooltip from those of several variants."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def locale(text, variants):
    """The text of nodeDefs.json with the lines of the variants' inputs as the variants have them.

    All other lines stay as they are.
    """
    before, node = text.split('  "ScaPreSolve": {', 1)
    lines = node.splitlines(keepends=True)
    ours = [i for i, line in enumerate(lines) if line.startswith('      "variant_')]
    entries = []
    for setting, tooltip in tooltips(variants).items():
        entry = json.dumps({"name": setting, "tooltip": tooltip}, ensure_ascii=False)
        entries.append(f'      "variant_{setting}": {entry},\n')
    lines[ours[0] : ours[-1] + 1] = entries
    return before + '  "ScaPreSolve": {' + "".join(lines)


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    variants = pack.module("unlearn.closed_form.variants").variants()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), variants), encoding="utf-8")
    ENGLISH.write_text(locale(ENGLISH.read_text(encoding="utf-8"), variants), encoding="utf-8")


if __name__ == "__main__":
    main()
