"""Names what to forget and what to keep."""

import contextlib
import functools
import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..unlearn.concepts import lists, notation, summary
from ..unlearn.errors import UnlearnError
from ..unlearn.host import embeddings, folders, progress
from ..unlearn.types import KINDS, ConceptSet
from .search_words import FAMILIES, WANTED
from .sockets import Concepts

NONE = lists.NONE


_EMBEDDING = re.compile(r"embedding\s*:\s*([^\s:,;|()<>\[\]]+)", re.IGNORECASE)
ENDINGS = (".txt", ".csv")


def list_files() -> list[str]:
    """Concept lists in ComfyUI's input folder, to choose from."""
    folder = Path(folder_paths.get_input_directory())
    found = []
    if folder.is_dir():
        found = [p.name for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.is_file()]
    return [NONE, *sorted(found)]


def file_path(name: str) -> Path:
    """Full path of a list in the input folder.

    Raises UnlearnError for one that is not there or lies outside of the folder.
    """
    plain, folder = folder_paths.annotated_filepath(name)  # 'x.txt [output]' and the like
    path = folders.inside(folder or folder_paths.get_input_directory(), plain.strip())
    if path.suffix.lower() not in ENDINGS or not folders.is_file(path):
        raise UnlearnError(
            f"There is no concept list '{notation.short(name)}' in ComfyUI's input folder; "
            "put a .txt or .csv there and choose it again."
        )
    return path


def _small_text(path: Path) -> str:
    """The text of a list that can hold names; '' for one that cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.stat().st_size <= lists.MAX_FILE_BYTES:
            return path.read_text(encoding="utf-8-sig")
    return ""


@functools.cache
def _in_presets() -> str:
    """What is in each preset, for a tooltip."""
    names = [name for name in lists.presets() if name != NONE]
    return ", ".join(summary.contents(n, lists.read_preset(n).concepts) for n in names)


class UnlearnConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UnlearnConcepts",
            display_name="Concepts to Forget",
            category="unlearn",
            description="Names what the model must forget and what it must keep. Connect it to an "
            "eraser such as ScaPre Solve.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "censor",
                "concept",
                *WANTED,
                *FAMILIES,
            ],
            inputs=[
                io.String.Input(
                    "forget",
                    multiline=True,
                    placeholder="FORGET: one per line, e.g. fox\ncat -> animal | kitten, kitty\n"
                    "van gogh",
                    tooltip="What to forget, one concept per line. Optional: '-> word' says what "
                    "to draw instead, '| word, word' adds other names of the same thing, '* 2' "
                    "erases it harder. Try first: 'name -> superclass', as in 'garbage truck -> "
                    "vehicle'.",
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    default="",
                    placeholder="KEEP: one per line, e.g. wolf\ndog",
                    tooltip="What must stay as it is, one per line. Above all name what looks or "
                    "sounds like a forgotten concept. Everyday words are kept anyway.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="object",
                    tooltip="What the forgotten concepts are. It decides which sentences are used "
                    "to erase them. A line may begin with 'object:', 'style:' or 'explicit:' to "
                    "differ from this choice.",
                ),
                Concepts.Input(
                    "more",
                    optional=True,
                    tooltip="Another Concepts to Forget node: both lists are used together.",
                ),
                io.Combo.Input(
                    "preset",
                    options=lists.presets(),
                    default=NONE,
                    optional=True,
                    tooltip="A list that comes with the pack and is forgotten as well: "
                    f"{_in_presets()}. After a run the node names what it forgets. The lists are "
                    "plain text in nodes/data/presets, which you can read and copy.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "file",
                    options=list_files(),
                    default=NONE,
                    optional=True,
                    tooltip="A list of your own from ComfyUI's input folder that is forgotten as "
                    "well: a .txt with lines as above ('keep: fox' keeps), or a .csv with the "
                    "columns name, superclass, aliases, weight, kind.",
                    advanced=True,
                ),
            ],
            outputs=[
                Concepts.Output("concepts", tooltip="Connect to an eraser such as ScaPre Solve."),
                io.String.Output(
                    "text",
                    tooltip="The forget list as it was understood, one concept per line with its "
                    "kind.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        file: str | None = NONE,
        preset: str | None = NONE,
        forget: str | None = None,
        keep: str | None = None,
        **inputs: Any,
    ) -> list[tuple[str, int, int]]:
        """Runs again when the chosen file or an embedding that is named has changed."""
        paths = [] if preset in (None, NONE) else [lists.PRESETS / f"{preset}.txt"]
        if file not in (None, NONE):
            with contextlib.suppress(UnlearnError):  # the node raises it when it runs
                paths.append(file_path(file))
        found = [(path, path.stat()) for path in paths if path.is_file()]
        said = " ".join([forget or "", keep or "", *map(_small_text, paths)])
        return [
            *((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in found),
            *embeddings.stamps(_EMBEDDING.findall(said)),
        ]

    @classmethod
    def execute(
        cls,
        forget: str,
        keep: str,
        kind: str,
        more: ConceptSet | None = None,
        preset: str | None = NONE,
        file: str | None = NONE,
    ) -> io.NodeOutput:
        sets = [] if more is None else [more]
        if preset not in (None, NONE):
            sets.append(lists.read_preset(preset, kind))
        if file not in (None, NONE):
            sets.append(lists.read(file_path(file), kind))
        if notation.has_lines(forget) or not sets:
            sets.insert(0, notation.parse(forget, keep, kind))
        else:
            sets[0] = notation.with_keep_lines(sets[0], keep)
        concepts = sets[0]
        for other in sets[1:]:
            concepts = notation.merge(concepts, other)
        node_id = getattr(cls.hidden, "unique_id", None)
        progress.say(summary.summary(concepts), node_id)
        return io.NodeOutput(concepts, notation.understood(concepts))
