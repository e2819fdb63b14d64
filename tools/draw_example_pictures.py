"""`dev.py tool draw_example_pictures`: draws the picture that ComfyUI shows for each workflow.

It runs each example workflow on the emoji world, or on the sprite world where it prunes. A sheet
holds what the workflow's own Save Image nodes saved: first prompts with forgotten concepts, then
prompts with kept ones. Workflows of families that no small world has are shown by another's sheet.
"""

import argparse
import time

from testbed import example_pictures, graphs
from testbed.server import BASE, Server


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="example workflows, all by default")
    plans = example_pictures.plans()
    given = parser.parse_args().names or [*plans, *graphs.FAMILIES]
    names = [name for name in given if name in plans]
    if names:
        _draw(names, plans)
    for name in set(given) - set(names):
        example_pictures.retitled(name).save(graphs.FOLDER / f"{name}.jpg", quality=92)


def _draw(names, plans):
    for task in {id(t): t for t in map(example_pictures.task_of, names)}.values():
        task.world.expand(BASE / "models" / "checkpoints")
    with Server("--disable-metadata", leaves=example_pictures.SAVED) as server:
        for name in names:
            start = time.time()
            _, gone, kept, title = plans[name]
            prompts = (*gone, *kept)
            pictures = example_pictures.runs(server, name, prompts)
            shots = list(zip(prompts, pictures, strict=True))
            path = graphs.FOLDER / f"{name}.jpg"
            sheet = example_pictures.sheet(title, shots[: len(gone)], shots[len(gone) :])
            sheet.save(path, quality=92)
            print(f"{path}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
