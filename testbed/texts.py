"""What the nodes say of themselves, as ComfyUI's frontend looks it up."""

from comfy_api.latest import io


def by_option(tips):
    """One tooltip for an input that several options of a dynamic combo have.

    The frontend knows only one key for all of them.
    """
    same = set(tips.values())
    return (
        same.pop()
        if len(same) == 1
        else "\n".join(f"{option}: {tip}" for option, tip in tips.items())
    )


def inputs(schema):
    """Key, name and tooltip of each input, as the frontend looks them up.

    Nested ids come as `outer.inner`, and a dot becomes _.
    """
    for i in schema.inputs:
        yield i.id, i.display_name or i.id, i.tooltip
        if isinstance(i, io.Autogrow.Input):
            yield from (
                (f"{i.id}_{name}", name, i.template.input.tooltip) for name in i.template.names
            )
        elif isinstance(i, io.DynamicCombo.Input):
            tips = {}
            for option in i.options:
                for inner in option.inputs:
                    tips.setdefault(inner.id, {})[option.key] = inner.tooltip
            yield from ((f"{i.id}_{name}", name, by_option(said)) for name, said in tips.items())


def english(schema):
    """A node's entry in locales/en/nodeDefs.json, as its schema says it."""
    outputs = (
        (str(n), o.display_name or o.io_type, o.tooltip) for n, o in enumerate(schema.outputs)
    )

    def entry(rows):
        return {key: {"name": name, "tooltip": tooltip} for key, name, tooltip in rows}

    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": entry(inputs(schema)),
        "outputs": entry(outputs),
    }
