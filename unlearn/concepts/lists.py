"""Concept lists as files: the artist's own .txt and .csv files, and the presets of the pack.

A .txt holds what one types into the node: one forget line per line, `keep: text` for what must
stay, # for comments. A .csv has a first line with at least `name`, and any of superclass, aliases
(separated by ; or |), weight and kind (object, style, explicit, or keep).
"""

import csv
import io
from pathlib import Path

from ..errors import UnlearnError
from ..types import KINDS, Concept, ConceptSet
from . import DATA, notation, pasted
from .lines import WEIGHT

NONE = "none"
PRESETS = DATA / "presets"
MAX_FILE_BYTES = 16 * 2**20
_COLUMNS = ("name", "superclass", "aliases", "weight", "kind")


def presets() -> list[str]:
    """Names of the presets that come with the pack, to choose from."""
    return [NONE, *sorted(path.stem for path in PRESETS.glob("*.txt"))]


def read_preset(name: str, kind: str = "object") -> ConceptSet:
    """The ConceptSet of a preset; raises UnlearnError where there is none of that name."""
    if name not in presets() or name == NONE:
        raise UnlearnError(f"There is no preset '{notation.short(name)}'; choose one of the list.")
    return read(PRESETS / f"{name}.txt", kind)


def read(path: str | Path, kind: str = "object") -> ConceptSet:
    """The ConceptSet of a .txt or .csv file.

    kind: of concepts whose line names none. Raises UnlearnError on a file that cannot be read as
    text, and on a line that cannot be used.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        if path.suffix.lower() == ".csv":
            return _from_csv(text, kind)
        return notation.parse(text, kind=kind)
    except csv.Error:
        raise UnlearnError(
            f"The concept list '{path.name}' has a cell that is no CSV; "
            "open it in a table program and save it again."
        ) from None
    except UnlearnError as error:
        raise UnlearnError(f"In the concept list '{path.name}': {error}") from None


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():  # a device would never end
            raise OSError
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise UnlearnError(
                f"The concept list '{path.name}' is larger than {MAX_FILE_BYTES // 2**20} MB; "
                "split it."
            )
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnlearnError(
            f"The concept list '{path.name}' is no UTF-8 text; "
            "save it as plain text or CSV in UTF-8."
        ) from None
    except OSError:
        raise UnlearnError(
            f"The concept list '{path.name}' cannot be read; "
            "put it into ComfyUI's input folder again."
        ) from None


def _from_csv(text: str, kind: str) -> ConceptSet:
    concepts, keep = [], []
    for number, row in enumerate(_table(text), 2):
        row_kind = (row.get("kind") or kind).casefold()
        name = row.get("name", "")
        if not name:
            raise UnlearnError(f"row {number} has no name.")
        if row_kind == "keep":
            keep.append(pasted.name_of(name))
            continue
        if row_kind not in KINDS:
            raise UnlearnError(
                f"row {number} has the kind '{notation.short(row_kind)}'; "
                f"use {', '.join(KINDS)} or keep."
            )
        concepts.append(_concept(row, row_kind, number))
    return notation.checked(ConceptSet(tuple(concepts), tuple(dict.fromkeys(keep))))


def _table(text: str) -> list[dict[str, str]]:
    """The rows of a table as dicts, with cleaned cells and column names in lower case."""
    # The cells keep their spaces here: where tabs separate them, the first may be empty.
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        raise UnlearnError("it is empty.")
    delimiter = max(",;\t", key=lines[0].count)
    reader = csv.DictReader(
        io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True
    )
    columns = [(column or "").strip().casefold() for column in reader.fieldnames or ()]
    if "name" not in columns:
        raise UnlearnError(
            f"its first line names no column 'name'; the columns are {', '.join(_COLUMNS)}."
        )
    reader.fieldnames = columns
    rows = []
    for row in reader:
        # Cells beyond the last column come as a list and are left out.
        cells = {name: cell for name, cell in row.items() if isinstance(cell, str) or cell is None}
        rows.append({name: notation.clean(cell or "") for name, cell in cells.items()})
    return rows


def _concept(row: dict[str, str], kind: str, number: int) -> Concept:
    """The concept of a row; raises UnlearnError where a cell holds more than a name."""
    aliases = row.get("aliases", "").replace("|", ";").split(";")
    return Concept(
        _name(row["name"], number),
        kind,
        _name(row.get("superclass", ""), number),
        tuple(name for name in (_name(alias, number) for alias in aliases) if name),
        _weight(row.get("weight", ""), number),
    )


def _name(cell: str, number: int) -> str:
    if not cell.strip():
        return ""
    if "->" in cell or "|" in cell or WEIGHT.search(cell):
        raise UnlearnError(f"row {number} has '->', '|' or '* number' within a name; take it out.")
    try:
        return pasted.name_of(cell)
    except UnlearnError as error:
        raise UnlearnError(f"row {number}: {error}") from None


def _weight(text: str, number: int) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= notation.MAX_WEIGHT:
        raise UnlearnError(
            f"row {number} has the weight '{notation.short(text)}'; "
            f"use a number above 0 and up to {notation.MAX_WEIGHT}."
        )
    return weight
