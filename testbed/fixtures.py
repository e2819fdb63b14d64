"""Fixtures of the tests and of the benchmarks' own tests; their conftest.py files import them."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = Path(os.environ.get("UNLEARN_BASE", ROOT / ".host" / "base"))
IN_INFERENCE_MODE = {"host", "reliability"}  # folders of tests that run as ComfyUI runs nodes


@pytest.fixture(scope="session")
def checkpoint():
    """Path of the sprite world's checkpoint in the test host's models folder."""
    from testbed.worlds.checkpoint import expand

    return expand(BASE / "models" / "checkpoints")


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """(MODEL, CLIP, VAE) of the sprite world, loaded by the stock loader's own function.

    It is loaded once for all tests, so tests must leave it as it is.
    """
    from testbed import pack

    pack.load()
    import comfy.sd
    import torch

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]


@pytest.fixture(scope="module")
def states_on_disk(tmp_path_factory):
    """Sentences are encoded once for all tests of a file, as they are for an artist."""
    from testbed import pack

    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as m:
        for name in ("unlearn.closed_form.solve", "unlearn.analysis.forecast"):
            m.setattr(pack.module(name), "default_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def nothing_solved_before():
    """No test finds a patch that another one has solved."""
    from testbed import pack

    solved = sys.modules.get(f"{pack.PACKAGE}.unlearn.closed_form.solved")
    if solved is not None:
        solved.SESSION.clear()


@pytest.fixture(autouse=True)
def inference_mode(request):
    """Host and reliability tests run as ComfyUI runs nodes: in inference mode."""
    if not IN_INFERENCE_MODE & set(Path(request.node.path).relative_to(ROOT).parts):
        yield
        return
    import torch

    with torch.inference_mode():
        yield
