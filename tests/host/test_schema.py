"""What the artist reads on the nodes: tooltips, help pages, one entry point."""

import ast
import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from testbed import pack

NODES = pack.module("nodes").NODES
ROOT = Path(__file__).resolve().parents[2]


def flat(inputs):
    for i in inputs:
        yield i
        for option in getattr(i, "options", None) or []:
            if hasattr(option, "inputs"):
                yield from option.inputs


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.__name__)
def test_everything_has_a_tooltip_and_a_help_page(node):
    schema = node.define_schema()
    assert (
        schema.node_id == node.__name__ and schema.description and "forget" in schema.search_aliases
    )
    for entry in (*flat(schema.inputs), *schema.outputs):
        assert entry.tooltip and len(entry.tooltip) > 20, (schema.node_id, entry.id)
    page = ROOT / "web" / "docs" / f"{schema.node_id}.md"
    assert page.is_file() and all(
        i.id in page.read_text(encoding="utf-8") for i in flat(schema.inputs)
    ), page.name
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    with Image.open(page.parent / picture) as seen:
        assert seen.width >= 400


def test_the_entry_point_lists_the_nodes():
    async def listed():
        return await (await pack.load().comfy_entrypoint()).get_node_list()

    with ThreadPoolExecutor(1) as other:  # in this thread a browser test's loop may still run
        assert other.submit(asyncio.run, listed()).result() == NODES


def test_a_scanner_that_only_reads_the_source_finds_every_node():
    """ComfyUI-Manager and others look for a ComfyNode class whose schema has a literal node_id."""
    found = set()
    for path in (ROOT / "nodes").glob("*.py"):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.ClassDef) and any(
                ast.unparse(base) == "io.ComfyNode" for base in part.bases
            ):
                calls = [
                    c
                    for c in ast.walk(part)
                    if isinstance(c, ast.Call) and ast.unparse(c.func) == "io.Schema"
                ]
                found |= {
                    k.value.value
                    for c in calls
                    for k in c.keywords
                    if k.arg == "node_id" and isinstance(k.value, ast.Constant)
                }
    assert found == {n.__name__ for n in NODES}


# What saved workflows may hold. This file, run as a script, writes it.
KNOWN = Path(__file__).with_name("inputs.json")
# Inputs whose choices come from folders or from ComfyUI.
OTHERS = ("preset", "file", "name", "sampler", "scheduler")


def signature(node):
    """{inputs: [[id, type, options or what each choice brings]], outputs: [id]}.

    The order is that in which workflows store their values.
    """
    schema = node.define_schema()

    def choices(entry):
        found = getattr(entry, "options", None) or []
        if all(isinstance(o, str) for o in found):
            return [] if entry.id in OTHERS else list(found)
        return {o.key: [[i.id, i.io_type] for i in o.inputs] for o in found}

    return {
        "inputs": [[i.id, i.io_type, choices(i)] for i in schema.inputs],
        "outputs": [[o.id, o.io_type] for o in schema.outputs],
    }


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.__name__)
def test_workflows_saved_before_still_fit(node):
    """Values are stored by position, so inputs and outputs may only be added at the end.

    They are never removed, renamed, moved, or put into a choice.
    """
    known, now = (
        json.loads(KNOWN.read_text(encoding="utf-8")).get(node.__name__),
        json.loads(json.dumps(signature(node))),
    )
    if known is None:
        pytest.skip("No workflow holds this node yet; run this file as a script before a release.")
    for part in ("inputs", "outputs"):
        assert len(now[part]) >= len(known[part])
        for old, new in zip(known[part], now[part], strict=False):
            assert new[:2] == old[:2]
            if part == "inputs" and isinstance(old[2], dict):
                assert all(new[2].get(key) == inputs for key, inputs in old[2].items())
            elif part == "inputs":
                assert set(old[2]) <= set(new[2])


def test_no_node_was_taken_away():
    assert set(json.loads(KNOWN.read_text(encoding="utf-8"))) <= {n.__name__ for n in NODES}


if __name__ == "__main__":
    rows = [f"{json.dumps(n.__name__)}: {json.dumps(signature(n))}" for n in NODES]
    KNOWN.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
