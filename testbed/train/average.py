"""Averages the weights of two sprite worlds, one of which was trained on from the other.

    python3 dev.py tool train_average OUT A B --share 0.5

Training on with a focus improves some objects and worsens others. The average can have both.
"""

import argparse
from pathlib import Path

from ..worlds.checkpoint import planted, read_compact, recipe, write_compact


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("out", "first", "second"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    given = parser.parse_args()
    a, b = read_compact(given.first), read_compact(given.second)
    mixed = {k: a[k].float().lerp(b[k].float(), given.share) for k in a}
    write_compact(
        given.out, mixed, read_compact(given.first, "judge."), recipe(given), planted(given.first)
    )


if __name__ == "__main__":
    main()
