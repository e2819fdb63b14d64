"""Shows a report under its node. Inside a blueprint the advice names what stands on its face.

A blueprint such as Erase Concepts is a subgraph: an artist sees one node with a few inputs. So
"'keep' of Concepts to Forget" is called "'keep' of Erase Concepts" there, and an input that is not
on the face is said to be inside.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..unlearn.host import progress

FACE = -10  # the id that a subgraph's own inputs have in its links
_ADVICE = re.compile(r"^(?:Next|Try): .*$", re.MULTILINE)


class Blueprint(NamedTuple):
    """A subgraph on the canvas: its title, and what of its nodes stands on its face.

    face: (node id as in a schema, input) -> what it is called there. types: ids of its nodes.
    """

    title: str
    face: Mapping[tuple[str, str], str]
    types: frozenset[str]


def tell(report: str, hidden: Any) -> str:
    """Shows a report under the running node; returns it as it is right where the node stands.

    hidden: the node's hidden inputs, with or without `extra_pnginfo`.
    """
    node_id = hidden.unique_id
    report = in_place(report, around(node_id, getattr(hidden, "extra_pnginfo", None)))
    progress.say(report, node_id)
    return report


def around(node_id: str | None, extra_pnginfo: Any) -> Blueprint | None:
    """The outermost blueprint that a node stands in, None where it stands in none.

    extra_pnginfo: what the page sends along; it may hold anything.
    """
    outer, inside, _ = str(node_id or "").partition(":")
    try:
        workflow = extra_pnginfo["workflow"]
        shown = next(n for n in workflow["nodes"] if str(n["id"]) == outer)
        found = next(s for s in workflow["definitions"]["subgraphs"] if s["id"] == shown["type"])
        return _read(shown, found) if inside else None
    except (TypeError, KeyError, IndexError, AttributeError, StopIteration):
        return None


def _read(shown: Mapping[str, Any], found: Mapping[str, Any]) -> Blueprint:
    """The Blueprint of a node on the canvas and the subgraph that it shows."""
    nodes = {node["id"]: node for node in found["nodes"]}
    face = {}
    for link in found["links"]:
        if link["origin_id"] == FACE and link["target_id"] in nodes:
            target, given = nodes[link["target_id"]], found["inputs"][link["origin_slot"]]
            name = str(target["inputs"][link["target_slot"]]["name"])
            face[target["type"], name.split(".")[-1]] = given.get("label") or given["name"]
    for inner, widget in (shown.get("properties") or {}).get("proxyWidgets") or ():
        for node in nodes.values():
            if str(node["id"]) == str(inner):
                face[node["type"], str(widget).split(".")[-1]] = str(widget)
    title = str(shown.get("title") or found["name"])
    return Blueprint(title, face, frozenset(node["type"] for node in nodes.values()))


def in_place(report: str, blueprint: Blueprint | None) -> str:
    """A report whose advice is right inside a blueprint, or as it was where there is none."""
    if blueprint is None:
        return report
    from . import NODES  # which imports every node, and these import this module

    schemas = [node.define_schema() for node in NODES]
    ids = {schema.display_name: schema.node_id for schema in schemas}
    titles = "|".join(re.escape(title) for title in sorted(ids, key=len, reverse=True))
    named = re.compile(rf"'(\w+)' of ({titles})")

    def called(match: re.Match[str]) -> str:
        setting, node = match.groups()
        if ids[node] not in blueprint.types:
            return match.group()
        label = blueprint.face.get((ids[node], setting))
        if label is None:
            return f"{match.group()} (inside {blueprint.title})"
        return f"'{label}' of {blueprint.title}"

    def advised(match: re.Match[str]) -> str:
        line = match.group()
        if line == CONNECT and "ApplyUnlearnPatch" in blueprint.types:
            return COMPARE
        return named.sub(called, line)

    return _ADVICE.sub(advised, report)


CONNECT = "Next: connect the patch to Apply Unlearn Patch."
COMPARE = "Next: compare pictures with the same seed."
