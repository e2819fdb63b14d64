"""One edited text encoder in two UNets that share it: do both forget?

The sprite and the glyph world have the same CLIP-L, and a UNet of the same width each. The CLIP is
edited once, for four objects of each world, and no UNet is edited. Both then draw the protocol
`forget 4` of bench peers with it. Last line with --json: one JSON object.
"""

import argparse
import json

import torch

from testbed import pack
from testbed.worlds import catalogue
from testbed.worlds.studio import studio

from ..peers import Erased, protocols, scores

solver = pack.module("unlearn.closed_form.text_encoder")
parts = pack.module("unlearn.files.encoder_parts")
identity = pack.module("unlearn.host.clip_identity")
types = pack.module("unlearn.types")
WORLDS = ("sprites", "glyphs")
COUNT = 4  # objects of each world


def concepts(worlds):
    """The ConceptSet of four objects of each world, with all other objects and styles kept."""
    sets = [protocols.concepts(world, world.order[:COUNT]) for world in worlds]
    forgotten = tuple(concept for found in sets for concept in found.concepts)
    return types.ConceptSet(forgotten, tuple(name for found in sets for name in found.keep))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--pictures", type=int, default=16, help="of forgotten things per world")
    given = parser.parse_args()
    worlds = [catalogue.get(name) for name in WORLDS]
    pack.load()
    studios = [studio(name) for name in WORLDS]
    known = {identity.identity(one.clip, ["a photo of a fox"]) for one in studios}
    if len(known) > 1:
        raise SystemExit("the worlds' text encoders differ, so none can be shared")
    clip = studios[0].clip
    with torch.inference_mode():
        patch, said = solver.solve(clip, concepts(worlds))
        edited = parts.apply(clip, parts.of_encoder(patch))
    print(said, flush=True)
    table = {}
    for name, world, one in zip(WORLDS, worlds, studios, strict=True):
        protocol = protocols.objects(world, COUNT, given.pictures)
        before = protocols.draw(one, protocol)
        after = protocols.draw(one, protocol, Erased(one.model, 0, clip=edited))
        found = scores.rates(before.marks, after.marks)
        table[name] = {column: figure[0] for column, figure in found.items()}
        print(f"{name}: {table[name]}", flush=True)
    if given.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
