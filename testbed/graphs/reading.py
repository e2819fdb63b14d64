"""Example workflows as graphs: the UI format opened to the API format, filled, and spoken to."""

import json

MUTED = 2  # LiteGraph's mode "never"


def to_api(workflow, muted=False):
    """UI format (version 0.4) -> API format {id: {class_type, inputs, _meta}}, without notes.

    A node of a subgraph gets the id `outer:inner`, as the frontend does it. Muted nodes are left
    out unless `muted` is True.
    """
    inside = _subgraphs(workflow)
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def origin(link):
        node, slot = links[link]
        if node not in inside:
            return [str(node), slot]
        (source,) = [k for k in inside[node]["links"] if _ends_at(k, OUTPUTS, slot)]
        return [f"{node}:{source['origin_id']}", source["origin_slot"]]

    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote") or (node["mode"] == MUTED and not muted):
            continue
        if node["id"] in inside:
            graph |= _opened(node, inside[node["id"]], origin)
        else:
            graph[str(node["id"])] = _as_api(node, origin)
    return graph


INPUTS, OUTPUTS = -10, -20  # ids of the two ends of a subgraph among its links


def _subgraphs(workflow):
    """Node id -> the subgraph that the node stands for."""
    known = {d["id"]: d for d in workflow.get("definitions", {}).get("subgraphs", ())}
    return {n["id"]: known[n["type"]] for n in workflow["nodes"] if n["type"] in known}


def _ends_at(link, node, slot):
    return (link["target_id"], link["target_slot"]) == (node, slot)


def _opened(outer, subgraph, origin):
    """The nodes in a subgraph, in API format. Its inputs bring what the outer node has there."""
    links = {link["id"]: link for link in subgraph["links"]}
    values = _widgets(outer)
    prefix = outer["id"]

    def given(link):
        link = links[link]
        if link["origin_id"] != INPUTS:
            return [f"{prefix}:{link['origin_id']}", link["origin_slot"]]
        entry = outer["inputs"][link["origin_slot"]]
        if entry.get("link") is not None:
            return origin(entry["link"])
        return values.get(entry["name"])

    return {f"{prefix}:{node['id']}": _as_api(node, given) for node in subgraph["nodes"]}


def _widgets(node):
    """Input -> value of the widgets of a node. A seed is followed by its control_after_generate."""
    values, found = list(node.get("widgets_values", [])), {}
    for entry in node.get("inputs", []):
        if "widget" in entry and values:
            found[entry["name"]] = values.pop(0)
            if entry["name"] in SEEDS and values and values[0] in CONTROLS:
                values.pop(0)
    return found


SEEDS, CONTROLS = ("seed", "noise_seed"), ("fixed", "increment", "decrement", "randomize")


def _as_api(node, given):
    """A node in API format; `given` says what a link brings, None for nothing."""
    inputs = _widgets(node)
    for entry in node.get("inputs", []):
        if entry.get("link") is not None and (brought := given(entry["link"])) is not None:
            inputs[entry["name"]] = brought
    return {
        "class_type": node["type"],
        "inputs": inputs,
        "_meta": {"title": node.get("title", node["type"])},
    }


def filled(workflow, graph):
    """A UI-format workflow with the values of an API graph of the same nodes and inputs.

    The list of models to download is left out.
    """
    workflow = json.loads(json.dumps(workflow))
    for node in workflow["nodes"]:
        if str(node["id"]) in graph:
            _fill(workflow, node, graph[str(node["id"])])
    for outer, subgraph in _subgraphs(workflow).items():
        for node in subgraph["nodes"]:
            _fill(subgraph, node, graph[f"{outer}:{node['id']}"])
        (host,) = [n for n in workflow["nodes"] if n["id"] == outer]
        _fill_face(host, subgraph, graph)
    return workflow


def _fill(workflow, node, given):
    node.get("properties", {}).pop("models", None)
    if not node.get("widgets_values"):
        return
    inputs = {k: v for k, v in given["inputs"].items() if not isinstance(v, list)}
    known = {entry["name"] for entry in node["inputs"] if "widget" in entry}
    for name in reversed([name for name in inputs if name not in known]):
        add_widget(workflow, node, name)
    values, at = node["widgets_values"], 0
    for entry in node["inputs"]:
        if "widget" in entry:
            values[at] = inputs.get(entry["name"], values[at])
            more = values[at + 1 : at + 2] and values[at + 1] in CONTROLS
            at += 1 + bool(entry["name"] in SEEDS and more)


def _fill_face(outer, subgraph, graph):
    """Gives the widgets on the face of a subgraph the values of the inputs that they go to."""
    shown = [k for k, entry in enumerate(outer["inputs"]) if "widget" in entry]
    for at, slot in enumerate(shown):
        for link in subgraph["links"]:
            if (link["origin_id"], link["origin_slot"]) == (INPUTS, slot):
                (node,) = [n for n in subgraph["nodes"] if n["id"] == link["target_id"]]
                name = node["inputs"][link["target_slot"]]["name"]
                value = graph[f"{outer['id']}:{node['id']}"]["inputs"][name]
                if not isinstance(value, list):
                    outer["widgets_values"][at] = value


def add_widget(workflow, node, name):
    """Gives a node of a UI-format workflow the widget `outer.inner`, first below `outer`.

    The frontend makes such widgets when the choice `outer` is changed.
    """
    outer, _, inner = name.rpartition(".")
    places = [k for k, entry in enumerate(node["inputs"]) if entry["name"] == outer]
    if not places:
        raise KeyError(f"'{node['type']}' has no widget {name} in the workflow")
    (place,) = places
    before = [entry["name"] for entry in node["inputs"][: place + 1] if "widget" in entry]
    seeds = sum(n in ("seed", "noise_seed") for n in before)
    node["widgets_values"].insert(len(before) + seeds, None)
    entry = {"localized_name": inner, "name": name, "widget": {"name": name}, "link": None}
    node["inputs"].insert(place + 1, entry)
    for link in workflow["links"]:
        inner = isinstance(link, dict)  # in a subgraph
        end, slot = ("target_id", "target_slot") if inner else (3, 4)
        if link[end] == node["id"] and link[slot] > place:
            link[slot] += 1


def titled(graph, title):
    """Id of the one node with this title."""
    found = [i for i, n in graph.items() if n["_meta"]["title"] == title]
    if len(found) != 1:
        raise KeyError(f"{len(found)} nodes are titled '{title}'")
    return found[0]


def put(graph, title, **values):
    """Sets input values of the node with this title."""
    graph[titled(graph, title)]["inputs"].update(values)
    return graph


def say(graph, text):
    """Sets the text of the node with the title Prompt."""
    node = graph[titled(graph, "Prompt")]
    return put(graph, "Prompt", **{"value" if "value" in node["inputs"] else "text": text})
