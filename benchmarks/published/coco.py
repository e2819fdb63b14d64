"""`dev.py bench coco`: what an edit does to everything else, by CLIP and FID on COCO captions.

DATA/coco.csv has the columns case_number, prompt, evaluation_seed (published: 30,000 rows, or
1,000). DATA/images holds the photographs.
- CLIP: 100 times the cosine of a picture and its caption, ViT-B/32;
- FID: distance of the pictures to the photographs;
- FID-SD: distance of the edited model's pictures to the unedited model's.

'--forget' or '--edit patch:FILE' has to say what is erased.
"""

from pathlib import Path

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


def body():
    p = parser(
        __doc__, "coco.csv and the folder images", "has to be given with --edit scapre or fia"
    )
    p.add_argument(
        "--clip", default="ViT-B-32-quickgelu", help="open_clip's name of the judge's architecture"
    )
    p.add_argument("--fid-weights", type=Path, help="torch-fidelity's file of Inception")
    p.add_argument("--no-fid", action="store_true", help="CLIP score alone")
    given = p.parse_args()
    chosen = rows(csv_of(given.data, "coco"), (), given.limit)
    from . import judges

    judge, real, distance = judges.Clip(given.judge_weights, given.clip), [], None
    if not given.no_fid:
        distance, real = judges.fid(given.fid_weights), judges.images_in(given.data / "images")
        if not real:
            raise UnlearnError(
                f"'--data' {given.data} has no photographs in its folder images, which FID needs; "
                "put them there, or use --no-fid."
            )
    wanted = concepts(given) if given.forget else None
    loaded, out = load(given.checkpoint), out_folder(given, "coco")
    before, after, patch = pictures(loaded, chosen, wanted, given, out)
    found = {}
    for when, paths in (("before", before), ("after", after)):
        if paths is not None:
            found[when] = {
                "clip": mean(judge.scores(paths, [row.prompt for row in chosen]).tolist())
            }
            found[when]["fid"] = distance(real, paths) if distance is not None else None
    if after is not None and distance is not None:
        found["fid_sd"] = distance(before, after)

    def value(what):
        return tuple(found[when][what] if when in found else None for when in ("before", "after"))

    beside(
        {"CLIP": value("clip"), "FID": value("fid"), "FID-SD": (None, found.get("fid_sd"))}, "coco"
    )
    finish("coco", given, loaded, [patch], found, out, len(chosen))


def main():
    told(body)


if __name__ == "__main__":
    main()
