"""`dev.py bench artists`: erases artists' styles from a real checkpoint, judged by CLIP.

DATA/artists.csv has the columns case_number, prompt, artist, evaluation_seed.
- CLIP_a: 100 times the cosine of a picture and the artist's name, ViT-B/32;
- FSR: percent of pictures, seed by seed, whose CLIP_a fell;
- accuracy: percent of pictures whose own artist is the nearest of all artists in the file;
- H_a: CLIP_a of the kept artists less that of the erased. '--forget' names the erased ones, and the
  others are kept.
"""

from .real import (
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

SENTENCE = "a painting in the style of {}"


def measured(judge, paths, chosen, names):
    """(CLIP_a of each picture [n], whether its artist is the nearest [n])."""
    seen, own = judge.pictures(paths), [names.index(row.group) for row in chosen]
    near = (seen @ judge.texts([SENTENCE.format(n) for n in names]).T).argmax(1).tolist()
    return (100 * (seen * judge.texts(names)[own]).sum(1)).tolist(), [
        a == b for a, b in zip(near, own, strict=True)
    ]


def summed(scores, right, chosen, which):
    def pick(values):
        return [v for v, row in zip(values, chosen, strict=True) if which(row)]

    return {"clip": mean(pick(scores)), "accuracy": mean(100 * r for r in pick(right))}


def body():
    p = parser(__doc__, "artists.csv", "all artists of the file by default")
    p.add_argument(
        "--clip", default="ViT-B-32-quickgelu", help="open_clip's name of the judge's architecture"
    )
    given = p.parse_args()
    chosen = rows(csv_of(given.data, "artists"), ("artist", "class"), given.limit)
    from . import judges

    judge = judges.Clip(given.judge_weights, given.clip)
    names = list(dict.fromkeys(row.group for row in chosen))
    wanted, loaded, out = (
        concepts(given, names, "style"),
        load(given.checkpoint),
        out_folder(given, "artists"),
    )
    before, after, patch = pictures(loaded, chosen, wanted, given, out)
    erased = {n.casefold() for c in wanted.concepts for n in c.names}
    gone, scores, found = lambda row: row.group.casefold() in erased, {}, {}
    for when, paths in (("before", before), ("after", after)):
        if paths is None:
            continue
        scores[when], right = measured(judge, paths, chosen, names)
        found[when] = {
            "erased": summed(scores[when], right, chosen, gone),
            "kept": summed(scores[when], right, chosen, lambda r: not gone(r)),
        }
        found[when]["artists"] = {
            n: summed(scores[when], right, chosen, lambda r, n=n: r.group == n) for n in names
        }
        kept, lost = found[when]["kept"]["clip"], found[when]["erased"]["clip"]
        found[when]["h_a"] = None if kept is None or lost is None else kept - lost
    if after is not None:
        pairs = [
            (b, a)
            for b, a, row in zip(scores["before"], scores["after"], chosen, strict=True)
            if gone(row)
        ]
        found["fsr"] = mean(100.0 * (a < b) for b, a in pairs)

    def value(*way):
        return tuple(get(found.get(when), *way) for when in ("before", "after"))

    lines = {
        "CLIP_a": value("erased", "clip"),
        "FSR": (None, found.get("fsr")),
        "accuracy": value("erased", "accuracy"),
    }
    if any(not gone(row) for row in chosen):
        lines |= {
            "kept CLIP_a": value("kept", "clip"),
            "kept accuracy": value("kept", "accuracy"),
            "H_a": value("h_a"),
        }
    beside(lines | {n: value("artists", n, "clip") for n in names}, "artists")
    finish("artists", given, loaded, [patch], found, out, len(chosen))


def get(table, *way):
    for key in way:
        table = table[key] if table is not None else None
    return table


def main():
    told(body)


if __name__ == "__main__":
    main()
