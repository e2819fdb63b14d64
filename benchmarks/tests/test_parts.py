"""Tries of the default by pictures: what is changed and put back, and going on after a stop."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.world import crowded, parts
from testbed.worlds import catalogue

WORLD = catalogue.SPRITES


@pytest.fixture
def drawn(monkeypatch):
    """Drawing and solving replaced; a list of what was solved with which constant."""
    seen, handles = [], []

    def solve(model, clip, concepts, settings, folder):
        weight = crowded.tuning.CONTRAST_WEIGHT
        seen.append((model, len(concepts.concepts), weight, settings.chosen.drift))
        return (SimpleNamespace(nbytes=10),)

    def draw(shown, protocol, erased=None, steps=8):
        """Half of the forgotten labels still show in an edited model, and all kept ones do."""
        marks = np.array([(0, len(s.gone), len(s.kept), len(s.kept)) for s in protocol.shots])
        marks[:, 0] = marks[:, 1] * (1 if erased is None else np.arange(len(marks)) % 2)
        return SimpleNamespace(marks=marks)

    monkeypatch.setattr(parts.scapre, "solve", solve)
    monkeypatch.setattr(parts.patching, "apply", lambda model, patch: (f"{model}+", ""))
    monkeypatch.setattr(parts.protocols, "draw", draw)
    shown = SimpleNamespace(model="m", clip="c", judge=SimpleNamespace(world=WORLD))
    monkeypatch.setattr(parts, "studio", lambda name: shown)
    handle = SimpleNamespace(remove=lambda: handles.append("removed"))
    monkeypatch.setattr(parts.alike, "make_alike", lambda *how: handles.append(how[2:]) or [handle])
    return SimpleNamespace(solved=seen, handles=handles)


def options(tmp_path, **changes):
    given = {"crowded": 0.0, "crowded_words": "both", "pictures": 8, "steps": 2}
    given |= {"protocols": "look-alikes,forget 24", "out": tmp_path / "parts.json"} | changes
    return SimpleNamespace(**given)


def empty():
    settings = {"pictures": 8, "steps": 2, "crowded": 0.5, "crowded_words": "twins"}
    return {"settings": settings, "worlds": {}}


TRIES = (crowded.Try("a", {"drift": 0.3}, {}), crowded.Try("b", {}, {"CONTRAST_WEIGHT": 3.0}))


def test_each_try_is_solved_at_its_own_settings_and_constants(drawn, tmp_path):
    before, results = crowded.tuning.CONTRAST_WEIGHT, empty()
    parts.run(WORLD, options(tmp_path), TRIES, results)
    default = crowded.scapre.SolveSettings().chosen.drift
    assert drawn.solved == [("m", 6, before, 0.3), ("m", 6, 3.0, default)]
    assert crowded.tuning.CONTRAST_WEIGHT == before
    found = results["worlds"]["sprites"]
    assert list(found) == ["look-alikes"]  # there are not 24 pairs
    assert found["look-alikes"]["a"]["forgot"][0] == 0.5
    assert found["look-alikes"]["a"]["kept"][0] == 1.0
    assert json.loads((tmp_path / "parts.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(results)
    )
    parts.run(WORLD, options(tmp_path), TRIES, results)
    assert len(drawn.solved) == 2  # nothing is measured twice


def test_rounds_go_on_from_each_other_and_words_are_crowded_for_a_while(drawn, tmp_path):
    given = options(tmp_path, protocols="sequence of 6", crowded=0.5, crowded_words="twins")
    parts.run(WORLD, given, TRIES[:1], empty())
    assert [model for model, *_ in drawn.solved] == ["m" + "+" * i for i in range(6)]
    assert drawn.handles == [(0.5, "twins"), "removed"]


def test_tables_show_every_interval_and_leave_out_what_is_not_measured(drawn, tmp_path):
    given = options(tmp_path, protocols="look-alikes,superclass")
    results = empty()
    parts.run(WORLD, given, TRIES, results)
    del results["worlds"]["sprites"]["superclass"]["b"]
    parts.save(results, given.out)
    page = (tmp_path / "parts.md").read_text(encoding="utf-8")
    found = results["worlds"]["sprites"]
    overall, low, high = found["look-alikes"]["a"]["overall"]
    assert low < overall < high
    assert f"| {overall:.2f} ({low:.2f} to {high:.2f}) |" in page
    assert "| try | look-alikes | superclass |" in page and "--crowded-words twins" in page
    assert page.splitlines()[-1].endswith(") |  |")
    results["settings"]["crowded"] = 0.0
    assert "--crowded-words" not in parts.markdown(results)
