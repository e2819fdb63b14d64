"""The workflows that changes go through: pinned actions, and one version of each tool."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STYLE = (ROOT / "tests" / "requirements-style.txt").read_text(encoding="utf-8")
USES = re.compile(r"^\s*(?:- )?uses:\s*(\S+)", re.M)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_every_action_is_pinned_to_a_commit(path):
    used = USES.findall(path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert action.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action


def test_publishing_waits_for_all_tests():
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    assert "needs: [check, host]" in text
    assert {"./.github/workflows/check.yml", "./.github/workflows/host.yml"} < set(
        USES.findall(text)
    )


def test_each_tool_has_one_version():
    pinned = re.findall(r"^([a-z]+)(\[\w+\])?==([\d.]+)$", STYLE, re.M)
    assert {name for name, *_ in pinned} == {"ruff", "pyright"}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    ruff = next(version for name, _, version in pinned if name == "ruff")
    assert set(re.findall(r"ruff==([\d.]+)", hooks)) == {ruff}


def test_the_fast_gate_has_the_torch_of_the_host_tests():
    torch = re.search(r"^torch==.*$", (ROOT / "tests" / "requirements.txt").read_text(), re.M)
    assert torch is not None
    assert f'"{torch.group()}"' in (ROOT / "dev.py").read_text(encoding="utf-8")
