"""Where `host/folders.py` and `files/safetensors_io.py` used to stand together."""

from ..host.folders import (  # noqa: F401
    ENDING, find, folders, inside, is_file, listed, new, new_in, stamp,
)  # fmt: skip
from .safetensors_io import DAMAGE, KEY, opened, reason, sweep, write  # noqa: F401
