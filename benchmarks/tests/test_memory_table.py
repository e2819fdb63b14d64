"""The memory table: it is what the shapes give, and what was measured where it was."""

import json
from pathlib import Path

import pytest

from benchmarks.scale import memory_table

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_is_that_of_the_shapes():
    page = (ROOT / "docs" / "results" / "memory.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert lines == memory_table.table() and len(lines) > 10


def test_a_solve_takes_matrices_and_the_weights_in_half():
    assert memory_table.solve_bytes([("k", 1, 2)]) == 24 * 8 * 4 + 2 * 2


@pytest.mark.parametrize("shape", ["SD1.5", "SDXL"])
def test_what_a_solve_takes_is_what_was_measured(shape):
    file = ROOT / "benchmarks" / "results" / "scaling.json"
    tables = json.loads(file.read_text(encoding="utf-8"))["scapre"]["tables"]
    _, text, _ = memory_table.layers_of(shape)
    computed = 8 * memory_table.SOLVE_MATRICES * text[0][2] ** 2 / 2**20
    assert computed == pytest.approx(tables[shape]["100"]["peak_mb"], rel=0.15)
