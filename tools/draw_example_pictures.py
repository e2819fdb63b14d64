"""`dev.py tool draw_example_pictures`: draws the picture that ComfyUI shows for each workflow.

It runs each example workflow on the emoji world, or on the sprite world where it prunes, with a
prompt that shows something forgotten. The sheet holds two of the pictures that the workflow saved,
large. Workflows of families that no small world has are shown by another's sheet.
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
        path = graphs.path(name).with_suffix(".jpg")
        example_pictures.retitled(name).save(path, quality=92)


def _draw(names, plans):
    for task in {id(t): t for t in map(example_pictures.task_of, names)}.values():
        task.world.expand(BASE / "models" / "checkpoints")
    with Server("--disable-metadata", leaves=example_pictures.SAVED) as server:
        for name in names:
            start = time.time()
            plan = plans[name]
            (pictures,) = example_pictures.runs(server, name, plan.gone[:1])
            path = graphs.path(name).with_suffix(".jpg")
            sheet = example_pictures.sheet(plan.title, plan.gone[0], pictures)
            sheet.save(path, quality=92)
            print(f"{path}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
