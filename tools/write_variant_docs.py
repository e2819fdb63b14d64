"""Writes what the variants of ScaPre Solve say of themselves into the node's help page.

`python3 dev.py tool write_variant_docs` fills the table between `<!-- variants:begin -->` and
`<!-- variants:end -->` of web/docs/ScaPreSolve.md from unlearn/closed_form/variants. A test says
when it is stale.
"""

import argparse
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


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    variants = pack.module("unlearn.closed_form.variants").variants()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), variants), encoding="utf-8")


if __name__ == "__main__":
    main()
