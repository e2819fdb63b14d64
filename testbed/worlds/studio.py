"""A shipped world, ready to draw."""

import os
from pathlib import Path

from testbed import pack

from . import catalogue

BASE = Path(os.environ.get("UNLEARN_BASE", ".host/base"))


def studio(name="sprites", clip_skip=None):
    """The shipped world of that name, loaded by the stock loader's function."""
    pack.load()
    return catalogue.get(name).studio(BASE / "models" / "checkpoints", clip_skip)
