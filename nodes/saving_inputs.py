"""The input of nodes that save a file under a name: what to do where the name is taken."""

from comfy_api.latest import io

from ..unlearn.host import saved_files


def existing_input() -> io.Input:
    """Input `existing`: one of `saved_files.EXISTING`, optional, with the default 'replace'."""
    return io.Combo.Input(
        "existing",
        options=list(saved_files.EXISTING),
        default="replace",
        optional=True,
        tooltip="What to do where there is a file of that name: replace it, or keep it and count "
        "up, as Save Image does (name_00002). The node says which file it wrote.",
    )
