"""Which ComfyUI is tested, and what an old one is told.

The tested one is pinned, another is tested when it is named, and an old one gets one line that says
what to do.
"""

import re
from pathlib import Path

import loading
import pytest

from testbed import pack

ROOT = Path(__file__).resolve().parents[2]

# Each case changes the host in the process to what an older ComfyUI has, loads the pack with the
# host's loader, and changes everything back.
OLD = """
import contextlib, types
import comfy.weight_adapter, comfy_api.latest, comfyui_version
from unittest import mock

def without(module, name):
    kept = getattr(module, name)
    @contextlib.contextmanager
    def change():
        delattr(module, name)
        try:
            yield
        finally:
            setattr(module, name, kept)
    return change

io = comfy_api.latest.io
version = lambda v: lambda: mock.patch.object(comfyui_version, "__version__", v)
gone = lambda name: lambda: mock.patch.dict(sys.modules, {name: None})
bare = types.ModuleType("comfy_api.latest")
cases = {
    "as it is": contextlib.nullcontext,
    "0.22.0": version("0.22.0"),
    "0.100.1": version("0.100.1"),
    "v0.23.0-dev": version("v0.23.0-dev"),
    "1.0": version("1.0"),
    "nightly": version("nightly"), "no version": gone("comfyui_version"),
    "0.21.9": version("0.21.9"), "0.3.75": version("0.3.75"),
    "no io": lambda: mock.patch.dict(sys.modules, {"comfy_api.latest": bare}),
    "no V3": gone("comfy_api.latest"),
    "no DynamicCombo": without(io, "DynamicCombo"),
    "no Autogrow": without(io, "Autogrow"),
    "no Hidden": without(io, "Hidden"),
    "no adapters": without(comfy.weight_adapter, "WeightAdapterBase"),
}
found = {}
for name, change in cases.items():
    with change():
        found[name] = load(args_of_test[0])
print(json.dumps(found))
"""
NEW, TOO_OLD = (
    ("as it is", "0.22.0", "0.100.1", "v0.23.0-dev", "1.0", "nightly", "no version"),
    ("0.21.9", "0.3.75"),
)
LACKING = ("no io", "no V3", "no DynamicCombo", "no Autogrow", "no Hidden", "no adapters")


@pytest.fixture(scope="module")
def found():
    return loading.run(OLD, ROOT)


@pytest.mark.parametrize("case", NEW)
def test_a_host_that_is_new_enough_gets_all_nodes(found, case, tally):
    done, nodes, said = found[case]
    assert (
        done
        and nodes == sorted(n.__name__ for n in pack.module("nodes").NODES)
        and not any("Unlearn" in line for line in said)
    )
    tally("cells")


@pytest.mark.parametrize("case", (*TOO_OLD, *LACKING))
def test_an_old_host_gets_no_node_and_one_line(found, case, tally):
    """For packs that do not load the host logs a traceback of its own.

    What it says of ours is one line that says what to do.
    """
    done, nodes, said = found[case]
    lines = [line for line in said if not line.startswith("Traceback")]
    assert not done and nodes == [] and len(lines) == 1
    version = case if case in TOO_OLD else r"\d+\.\d+\.\d+ \(.*\)"
    says = rf"ComfyUI-Unlearn needs ComfyUI 0\.22 or newer and found {version}; "
    says += r"update ComfyUI and start it again\."
    assert re.search(rf": {says}$", lines[0]) and "\n" not in lines[0].strip()
    tally("cells")


def test_the_tested_host_is_pinned_and_the_oldest_is_said_once():
    dev = (ROOT / "dev.py").read_text(encoding="utf-8")
    tested = re.search(r'^HOST_COMFYUI = "([\d.]+)"', dev, re.M)[1]
    assert re.search(r'^HOST_SHA256 = "[0-9a-f]{64}"', dev, re.M) and re.search(
        r'^TORCH = \("torch==', dev, re.M
    )
    readme, project = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "pyproject.toml")
    )
    oldest = re.search(r'^requires-comfyui = "(.+)"', project, re.M)[1]
    assert tuple(map(int, re.fullmatch(r">=(\d+)\.(\d+)\.0", oldest).groups())) == pack.load().NEEDS
    assert f"{oldest.removeprefix('>=').removesuffix('.0')} or newer; tested on {tested}" in readme


def test_this_run_tests_the_host_that_was_named():
    import comfy.sd
    import comfyui_version

    assert Path(comfy.sd.__file__).resolve().is_relative_to(loading.HOST.resolve())
    assert Path(comfyui_version.__file__).resolve().parent == loading.HOST.resolve()
