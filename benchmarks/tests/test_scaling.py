"""The scaling benchmark measures, adds to what it measured before, and draws."""

import json
import sys

import pytest
from PIL import Image

from benchmarks.scale import scaling


def run(monkeypatch, out, *more):
    monkeypatch.setattr(sys, "argv", ["scaling", "--out", str(out), "--small", *more])
    scaling.main()
    return json.loads((out / "scaling.json").read_text())


def test_true_shapes_are_those_the_pack_finds():
    assert scaling.cross_widths("SD1.5") == (
        [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320],
        768,
    )
    rows, d = scaling.cross_widths("SDXL")
    assert len(rows) == 70 and sum(rows) * 2 == 166400 and d == 2048


@pytest.mark.world
@pytest.mark.slow
def test_every_part_measures_and_draws(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "BASE", {"prompts": 1, "window": 2, "concepts": 1})
    monkeypatch.setattr(scaling, "SWEEPS", {"prompts": (1, 2)})
    run(monkeypatch, tmp_path, "--part", "scapre", "--shapes", "", "--widths", "320")
    run(monkeypatch, tmp_path, "--part", "fia", "--most", "1")
    found = run(monkeypatch, tmp_path, "--part", "trainer", "--densities", "0.5", "--steps", "4")
    assert set(found) == {"scapre", "fia", "trainer"}
    for name, part in found.items():
        assert Image.open(tmp_path / f"scaling_{name}.png").width == 760
        assert part["tables"]
        for table in part["tables"].values():
            assert table and all(
                row["seconds"] > 0 and row["peak_mb"] >= 0 for row in table.values()
            )
    assert {k: list(t) for k, t in found["fia"]["tables"].items()} == {
        f"{x}, by prompts, sprite world": ["1"] for x in ("paper", "wanda")
    }
    assert {
        row["unet_calls"] for table in found["fia"]["tables"].values() for row in table.values()
    } == {2 * 2}  # concept and base, 2 steps
