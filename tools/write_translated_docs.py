"""Writes the help pages in Chinese and Japanese: web/docs/<node>/<language>.md.

`python3 dev.py tool write_translated_docs` takes the headings and their order from the English
page, inputs and outputs from locales/, and the rest from tools/help_words.json. A test says when a
page is stale.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOST = Path(os.environ.get("UNLEARN_HOST", ROOT / ".host" / "ComfyUI"))
for folder in (str(ROOT), str(HOST)):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from testbed import pack  # noqa: E402

DOCS = ROOT / "web" / "docs"
WORDS = json.loads((ROOT / "tools" / "help_words.json").read_text(encoding="utf-8"))
LANGUAGES = tuple(WORDS)
VARIANTS = "Settings of each variant"


def headings(text):
    """The second-level headings of a page, in order."""
    return re.findall(r"^## (.+)$", text, re.M)


def options(entry):
    """Inputs that the choices of an input bring along, each once."""
    found = {}
    for option in getattr(entry, "options", None) or []:
        for inner in getattr(option, "inputs", None) or []:
            found.setdefault(inner.id, inner)
    return found.values()


def line(entry, key, texts, indent=""):
    """An input or output as an item of a list: its name, its id, what it does."""
    known = texts.get(key, {})
    name = known.get("name", entry.display_name or entry.id)
    text = " ".join((known.get("tooltip") or entry.tooltip).split())
    shown = f"**{name}**" if name == entry.id else f"**{name}** (`{entry.id}`)"
    return f"{indent}- {shown}: {text}"


def inputs(schema, texts):
    """All inputs; those of a choice below it, where they have no section of their own."""
    out = []
    for entry in schema.inputs:
        out.append(line(entry, entry.id, texts))
        if entry.id != "variant":
            out += [line(i, f"{entry.id}_{i.id}", texts, "  ") for i in options(entry)]
    return out


def variants(schema, texts):
    (entry,) = [i for i in schema.inputs if i.id == "variant"]
    return [line(i, f"variant_{i.id}", texts) for i in options(entry)]


def outputs(schema, texts):
    return [line(entry, str(k), texts) for k, entry in enumerate(schema.outputs)]


def page(schema, language):
    """The help page of a node in a language."""
    words = WORDS[language]
    file = ROOT / "locales" / language / "nodeDefs.json"
    texts = json.loads(file.read_text(encoding="utf-8"))[schema.node_id]
    name = texts["display_name"]
    english = (DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")
    picture = f"![{words['picture'].format(name=name)}](pictures/{schema.node_id}.jpg)"
    parts = [f"# {name}", texts["description"], picture]
    made = {
        "Inputs": lambda: inputs(schema, texts["inputs"]),
        "Outputs": lambda: outputs(schema, texts["outputs"]),
        VARIANTS: lambda: variants(schema, texts["inputs"]),
    }
    for heading in headings(english):
        parts.append(f"## {words['headings'][heading]}")
        if heading in made:
            parts.append("\n".join(made[heading]()))
        else:
            parts.append(words["pages"][schema.node_id][heading])
    return "\n\n".join(parts) + "\n"


def pages():
    """Path -> text of every page."""
    schemas = [node.define_schema() for node in pack.module("nodes").NODES]
    return {
        DOCS / schema.node_id / f"{language}.md": page(schema, language)
        for schema in schemas
        for language in LANGUAGES
    }


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
