"""Writes what the nodes say of themselves into locales/en/nodeDefs.json.

`python3 dev.py tool write_english_texts`, after a name or a tooltip has changed. A test says when
the file is stale.
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

FILE = ROOT / "locales" / "en" / "nodeDefs.json"


def lines(value, depth=0):
    """JSON of nested dicts, with a line for each input or output."""
    if depth == 3 or not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    inner = "  " * (depth + 1)
    parts = [f"{inner}{json.dumps(k)}: {lines(v, depth + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(parts) + "\n" + "  " * depth + "}" if parts else "{}"


def without_variants(entry):
    """The entry without the inputs of single variants, which the host reads from the schema.

    So a new variant stays one file.
    """
    kept = {k: v for k, v in entry["inputs"].items() if not k.startswith("variant_")}
    return {**entry, "inputs": kept}


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    nodes = pack.module("nodes").NODES
    from testbed.texts import english

    schemas = [node.define_schema() for node in nodes]
    texts = {s.node_id: without_variants(english(s)) for s in schemas}
    FILE.write_text(lines(texts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
