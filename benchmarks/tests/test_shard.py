"""A concept list shared among workers gives what one machine measures, every number of it."""

import importlib.util
import json
import sys

import pytest

from benchmarks.scale import shard
from testbed import pack

text = pack.module("unlearn.concepts.notation")
SMALL = [
    x
    for s in ("prompts=2", "steps=2", "window=1", "size=64", "cfg=3", "score=wanda", "ceiling=0.02")
    for x in ("--set", s)
]
LIST = "fox\nstyle: van gogh\nhouse -> building\nobject: sword | blade * 2\nkeep: cat\n"


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "list.txt").write_text(LIST)

    def run(*more):
        argv = [
            "shard",
            "--checkpoint",
            str(checkpoint),
            "--concepts",
            str(tmp_path / "list.txt"),
            "--out",
            str(tmp_path / "out"),
        ]
        monkeypatch.setattr(sys, "argv", [*argv, "--json", *more])
        shard.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_shares_are_whole_and_in_measuring_order():
    wanted = text.parse(LIST.replace("keep: cat\n", ""), "cat")
    for n in range(1, 7):
        parts = shard.shares(wanted, n)
        assert len(parts) == min(n, 4) and all(p.keep == ("cat",) for p in parts)
        assert [c.name for p in parts for c in p.concepts] == ["fox", "house", "sword", "van gogh"]
        assert max(len(p.concepts) for p in parts) - min(len(p.concepts) for p in parts) <= 1


@pytest.mark.world
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "processes"])
def test_two_workers_give_what_one_gives(engine, run, tmp_path):
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (benchmarks/requirements.txt)")
    found = run("--workers", "2", "--engine", engine, "--threads", "1", "--check", *SMALL)
    assert (
        found["equal"]
        and found["engine"] == engine
        and found["shares"] == found["measured"] == 2
        and found["concepts"] == 4
    )
    # cut off and started again: only the lost share is measured
    lost = sorted((tmp_path / "out").glob("share_*"))[0]
    merged = tmp_path / "out" / "merged.safetensors"
    assert not shard.same(merged, next((tmp_path / "out").glob("share_*")))
    lost.unlink()
    assert run("--workers", "2", "--engine", engine, "--threads", "1", *SMALL)["measured"] == 1
    assert shard.same(merged, tmp_path / "out" / "one_machine.safetensors")


@pytest.mark.parametrize(
    "more, words",
    [
        (("--concepts", "nowhere.txt"), "'--concepts' names"),
        (("--checkpoint", "nowhere.safetensors"), "'--checkpoint' names"),
        (("--set", "r2=1"), "has no setting 'r2'"),
    ],
)
def test_what_is_missing_is_one_sentence(more, words, run):
    with pytest.raises(SystemExit, match=words) as error:
        run(*more)
    assert len(str(error.value).splitlines()) == 1


def test_ray_asked_for_and_absent(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="'ray' is not installed"):
        run("--engine", "ray")
