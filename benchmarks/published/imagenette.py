"""`dev.py bench imagenette`: erases ten Imagenette classes, judged by ResNet-50's top-1 label.

DATA/imagenette.csv has the columns case_number, prompt, class, evaluation_seed (published: 500 rows
for each class). forgot: percent of pictures of the erased classes that still show their class.
kept: the same of the other classes. '--forget' names the erased classes, as in the published table
of five and five; by default all ten are erased.
"""

from .real import (
    UnlearnError,
    beside,
    concepts,
    csv_of,
    finish,
    load,
    mean,
    out_folder,
    parser,
    pictures,
    rows,
    told,
)


def accuracy(look, same, paths, chosen):
    """class -> percent of its pictures that are seen as it."""
    hits = {}
    for row, label in zip(chosen, look(paths), strict=True):
        hits.setdefault(row.group, []).append(100 * same(label, row.group))
    return {name: mean(h) for name, h in hits.items()}


def split(table, erased):
    """{classes, forgot, kept, overall}; overall is the published harmonic mean."""
    gone = mean(v for name, v in table.items() if name.casefold() in erased)
    kept = mean(v for name, v in table.items() if name.casefold() not in erased)
    overall = (
        None
        if gone is None or kept is None
        else 2 * (100 - gone) * kept / max(100 - gone + kept, 1e-9)
    )
    return {"classes": table, "forgot": gone, "kept": kept, "overall": overall}


def body():
    given = parser(__doc__, "imagenette.csv", "all classes of the file by default").parse_args()
    chosen = rows(csv_of(given.data, "imagenette"), ("class",), given.limit)
    from . import judges

    look = judges.classifier(given.judge_weights)
    names = list(dict.fromkeys(row.group for row in chosen))
    if strange := [
        n for n in names if not any(judges.same_class(label, n) for label in look.labels)
    ]:
        raise UnlearnError(
            f"The class '{strange[0]}' is none that ResNet-50 knows; use ImageNet's names in the "
            "column 'class'."
        )
    wanted, loaded, out = (
        concepts(given, names),
        load(given.checkpoint),
        out_folder(given, "imagenette"),
    )
    before, after, patch = pictures(loaded, chosen, wanted, given, out)
    erased = {n.casefold() for c in wanted.concepts for n in c.names}
    found = {
        when: split(accuracy(look, judges.same_class, paths, chosen), erased)
        if paths is not None
        else None
        for when, paths in (("before", before), ("after", after))
    }
    then = found["after"] or {"classes": {}, "forgot": None, "kept": None, "overall": None}
    lines = {
        name: (value, then["classes"].get(name))
        for name, value in found["before"]["classes"].items()
    }
    for line, what in (("average", "forgot"), ("kept", "kept"), ("overall", "overall")):
        if found["before"][what] is not None:
            lines[line] = (found["before"][what], then[what])
    beside(lines, "imagenette")
    finish("imagenette", given, loaded, [patch], found, out, len(chosen))


def main():
    told(body)


if __name__ == "__main__":
    main()
