"""Concept lists as files: the artist's own .txt and .csv from ComfyUI's input folder, and the presets that come with the pack.

A .txt is what one types into the node: a forget line per line, `keep: text` for what must stay, # for comments. A .csv has a head line
with at least `name`, and any of superclass, aliases (parted by ; or |), weight and kind (object, style, explicit, or keep).
"""

import csv
import io
from pathlib import Path

from ..errors import UnlearnError
from ..types import KINDS, Concept, ConceptSet
from . import notation

NONE = "none"
PRESETS = Path(__file__).parents[2] / "nodes" / "data" / "presets"
LARGEST = 16 * 2**20  # bytes
_COLUMNS = ("name", "superclass", "aliases", "weight", "kind")


def presets():
    """Names of the presets that come with the pack, to choose from."""
    return [NONE, *sorted(p.stem for p in PRESETS.glob("*.txt"))]


def read_preset(name, kind="object"):
    """ConceptSet of a preset by its name."""
    if name not in presets() or name == NONE:
        raise UnlearnError(f"There is no preset '{notation.short(name)}'; choose one of the list.")
    return read(PRESETS / f"{name}.txt", kind)


def read(path, kind="object"):
    """ConceptSet of a .txt or .csv file; raises UnlearnError on a file that cannot be read as text or a line that cannot be used."""
    path = Path(path)
    try:
        if not path.is_file():  # a device would never end
            raise OSError
        with open(path, "rb") as f:
            raw = f.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise UnlearnError(
                f"The concept list '{path.name}' is larger than {LARGEST // 2**20} MB; split it."
            )
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnlearnError(
            f"The concept list '{path.name}' is no UTF-8 text; save it as plain text or CSV in UTF-8."
        ) from None
    except OSError:
        raise UnlearnError(
            f"The concept list '{path.name}' cannot be read; put it into ComfyUI's input folder again."
        ) from None
    try:
        return _from_csv(text, kind) if path.suffix.lower() == ".csv" else _from_text(text, kind)
    except csv.Error:
        raise UnlearnError(
            f"The concept list '{path.name}' has a cell that is no CSV; open it in a table program and save it again."
        ) from None
    except UnlearnError as error:
        raise UnlearnError(f"In the concept list '{path.name}': {error}") from None


def _from_text(text, kind):
    forget, keep = [], []
    for line in text.splitlines():
        head, colon, rest = line.partition(":")
        if colon and head.strip().casefold() == "keep":
            keep.append(rest)
        else:
            forget.append(line)
    return notation.parse("\n".join(forget), "\n".join(keep), kind)


def _from_csv(text, kind):
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise UnlearnError("it is empty.")
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.DictReader(
        io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True
    )
    columns = [(c or "").strip().casefold() for c in reader.fieldnames]
    if "name" not in columns:
        raise UnlearnError(
            f"its first line names no column 'name'; the columns are {', '.join(_COLUMNS)}."
        )
    reader.fieldnames = columns
    concepts, keep = [], []
    for number, row in enumerate(reader, 2):
        row = {
            k: notation.clean(v or "") for k, v in row.items() if isinstance(v, str) or v is None
        }
        chosen = (row.get("kind") or kind).casefold()
        if not row.get("name"):
            raise UnlearnError(f"row {number} has no name.")
        if chosen == "keep":
            keep.append(row["name"])
        elif chosen not in KINDS:
            raise UnlearnError(
                f"row {number} has the kind '{notation.short(chosen)}'; use {', '.join(KINDS)} or keep."
            )
        else:
            aliases = tuple(
                a
                for a in (
                    notation.clean(x) for x in row.get("aliases", "").replace("|", ";").split(";")
                )
                if a
            )
            concept = Concept(
                row["name"],
                chosen,
                row.get("superclass", ""),
                aliases,
                _weight(row.get("weight", ""), number),
            )
            concepts.append(_plain(concept, number))
    return notation.checked(ConceptSet(tuple(concepts), tuple(dict.fromkeys(keep))))


def _plain(concept, number):
    """The concept itself; raises UnlearnError where its line, as nodes and files write it down, would be read as another."""
    try:
        same = notation.parse_concept(notation.format_concept(concept)) == concept
    except UnlearnError:
        same = False
    if not same:
        raise UnlearnError(
            f"row {number} has '->', '|', ',' or '* number' within a name; take it out."
        )
    return concept


def _weight(text, number):
    try:
        weight = float(text or 1)
    except ValueError:
        weight = 0
    if not 0 < weight <= 100:
        raise UnlearnError(
            f"row {number} has the weight '{notation.short(text)}'; use a number above 0 and up to 100."
        )
    return weight
