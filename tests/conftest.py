"""Fixtures shared by all kinds of test. `dev.py test` sets the host's folder; a bare pytest uses the unpacked one."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(os.environ.get("UNLEARN_HOST", ROOT / ".host" / "ComfyUI"))
BASE = Path(os.environ.get("UNLEARN_BASE", ROOT / ".host" / "base"))
for folder in (str(ROOT), str(HOST)):
    if folder not in sys.path:
        sys.path.insert(0, folder)


@pytest.fixture(scope="session")
def checkpoint():
    """Path of the sprite world's checkpoint in the test host's models folder."""
    from world.checkpoint import expand

    return expand(BASE / "models" / "checkpoints")


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """(MODEL, CLIP, VAE) of the sprite world, loaded once by the stock loader's own function; tests must leave it as it is."""
    import pack

    pack.load()
    import comfy.sd
    import torch

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]


@pytest.fixture(autouse=True)
def _inference_mode(request):
    """Host and reliability tests run as ComfyUI runs nodes: in inference mode."""
    if not {"host", "reliability"} & set(Path(request.node.path).relative_to(ROOT).parts):
        yield
        return
    import torch

    with torch.inference_mode():
        yield
