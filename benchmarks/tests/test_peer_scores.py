"""The figures of `dev.py bench peers`: intervals, distances, who is best and last, protocols."""

import json
import math
from argparse import Namespace

import numpy as np
import pytest

from testbed import pack
from testbed.worlds import catalogue

pack.load()
from benchmarks.peers import Erased, __main__, protocols, scores  # noqa: E402


def marks(*rows):
    return np.array(rows)


def test_the_harmonic_mean_is_of_what_is_gone_and_what_is_kept():
    assert scores.harmonic(0, 1) == 1
    assert scores.harmonic(0.5, 1) == pytest.approx(2 / 3)
    assert scores.harmonic(1, 1) == scores.harmonic(0, 0) == 0
    assert scores.harmonic(0.2, 1.3) == scores.harmonic(
        0.2, 1
    )  # luck with kept pictures makes up for nothing


def test_rates_are_shares_of_labels_and_kept_is_relative():
    before = marks((1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 2, 2), (0, 0, 0, 2))
    after = marks((1, 1, 0, 0), (0, 1, 0, 0), (0, 0, 1, 2), (0, 0, 0, 2))
    found = scores.rates(before, after)
    assert found["forgot"][0] == 0.5 and found["kept"][0] == 0.5 and found["overall"][0] == 0.5


def test_an_interval_is_that_of_a_binomial_and_always_the_same():
    hits = np.arange(400) % 4 == 0
    value, low, high = scores.share(hits)
    wide = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert (
        value == 0.25
        and low == pytest.approx(0.25 - wide, abs=0.01)
        and high == pytest.approx(0.25 + wide, abs=0.01)
    )
    assert scores.share(hits) == (value, low, high)
    assert scores.share([1, 1, 1]) == (1, 1, 1)


def test_forgot_and_kept_are_resampled_together():
    """Ten pictures that show both things or neither: in every resample forgot equals kept."""
    after = marks(*[(k % 2, 1, k % 2, 1) for k in range(10)])
    before = marks(*[(1, 1, 1, 1)] * 10)
    found = scores.rates(before, after)
    assert found["forgot"] == found["kept"]
    f = np.linspace(found["forgot"][1], found["forgot"][2], 11)
    assert found["overall"][2] == pytest.approx(
        max(scores.harmonic(f, f)), abs=1e-3
    )  # never 1, as apart


def test_every_resample_holds_as_many_pictures_of_each_kind():
    groups = np.array([0, 0, 1, 2, 2, 2])
    index = scores.resampled(groups, 50)
    assert index.shape == (50, 6) and (np.sort(groups[index], 1) == groups).all()
    assert len(np.unique(index, axis=0)) > 10


def gaussian(mean, root, n=64, seed=0):
    """[n, d] features whose mean and covariance are exactly `mean` and root root^T."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return white @ np.asarray(root, float).T + mean


def test_frechet_distance_of_gaussians():
    a, b = gaussian([0, 0, 1], np.diag([1, 2, 3])), gaussian([2, 0, 0], np.diag([2, 2, 0.5]), 48)
    assert scores.frechet(a, b) == pytest.approx(
        4 + 1 + (1 - 2) ** 2 + (3 - 0.5) ** 2
    )  # covariances that commute
    assert scores.frechet(a, a) == pytest.approx(0, abs=1e-9)
    s, t = np.array([[2.0, 1], [1, 2]]), np.diag([1.0, 4])
    product = s @ t  # of a 2x2 matrix M with det d: tr sqrt(M) = sqrt(tr M + 2 sqrt d)
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    found = scores.frechet(gaussian([0, 0], np.linalg.cholesky(s)), gaussian([0, 0], np.sqrt(t)))
    assert found == pytest.approx(np.trace(s) + np.trace(t) - 2 * root)


def test_a_distance_lies_in_its_interval():
    a, b = gaussian([0, 0], np.eye(2)), gaussian([1, 0], np.eye(2), seed=1)
    value, low, high = scores.distance(a, b, 200)
    assert value == pytest.approx(1) and low < value < high
    assert scores.distance(a, a, 20) == (0, 0, 0)


def row(overall, low, high, **more):
    return {"overall": (overall, low, high), **more}


def test_best_or_tied():
    table = {
        "best": {"ours": row(0.9, 0.8, 0.95), "uce": row(0.5, 0.4, 0.6)},
        "tied": {"ours": row(0.8, 0.7, 0.9), "uce": row(0.95, 0.9, 1.0)},
        "beaten": {"ours": row(0.8, 0.7, 0.89), "uce": row(0.95, 0.9, 1.0)},
        "beside a failure": {"ours": row(0.8, 0.7, 0.89), "uce": {"error": "no"}},
        "failed": {"ours": {"error": "no"}, "uce": row(0.1, 0.1, 0.1)},
        "not measured": {"uce": row(0.1, 0.1, 0.1)},
    }
    assert scores.best_or_tied(table) == ["best", "tied", "beside a failure"]


def test_last_is_worse_than_every_other_beyond_the_intervals():
    ours = row(0.5, 0.4, 0.6, cpu_seconds=3.0, bytes=10, forgot=(0.4, 0.3, 0.5))
    table = {
        "p": {
            "ours": ours,
            "a": row(0.8, 0.7, 0.9, cpu_seconds=2.0, bytes=10, forgot=(0.1, 0.0, 0.2)),
            "b": row(0.8, 0.59, 0.9, cpu_seconds=1.0, bytes=0, forgot=(0.1, 0.0, 0.2)),
            "c": {"error": "no"},
        },
        "alone": {"ours": ours, "c": {"error": "no"}},
        "failed": {"ours": {"error": "no"}, "a": row(0.8, 0.7, 0.9)},
    }
    assert scores.last(table) == [("p", "forgot"), ("p", "cpu_seconds")]


def test_the_meter_sees_time_and_memory():
    with scores.Meter() as meter:
        held = np.ones(40 * 2**17)  # 40 MB
        scores.time.sleep(0.05)
        del held
    assert 35 < meter.memory < 80 and meter.seconds >= 0.05


@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_judged_sentences_are_none_that_ours_was_given(name):
    sentences, prompts = (
        pack.module("unlearn.concepts.sentences"),
        pack.module("unlearn.host.text_encoding"),
    )
    world = catalogue.get(name)
    judged, explicit = set(), set()
    for make in protocols.MAKERS.values():
        protocol = make(world, 80)
        for shot in protocol.shots:
            (explicit if shot.caption.explicit else judged).add(shot.caption.text)
    assert len(judged) > 100 and explicit
    names = (*world.objects, *world.styles, *world.superclasses)
    for templates in (*sentences.TEMPLATES.values(), *sentences.CHECKED.values(), sentences.KEPT):
        assert not judged & {
            prompts.fix_article(t, n).replace("{concept}", n) for t in templates for n in names
        }
    word = world.explicit_word
    for template in (*sentences.TEMPLATES["explicit"], *sentences.CHECKED["explicit"]):
        opening = prompts.fix_article(template, word).partition("{concept}")[0]
        # Whatever object follows the word.
        assert not any(opening and text.startswith(opening + word) for text in explicit), template


@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_protocols_are_what_they_say(name):
    world = catalogue.get(name)
    for title, make in protocols.MAKERS.items():
        protocol = make(world, 24)
        assert protocol.name == title
        gone = [s for s in protocol.shots if s.gone]
        assert len(gone) == 24 or (title == "superclass" and len(gone) == 48)
        assert sum(bool(s.kept) for s in protocol.shots) == 48
        assert any(protocol.clean(s) for s in protocol.shots)
        for shot in protocol.shots:
            values = {
                n
                for label in shot.kept
                for n in ([label.value] if label.what == "style" else label.value)
            }
            assert not values & protocol.forgotten
        for concepts in protocol.rounds:
            assert not set(concepts.keep) & protocol.forgotten and not any(
                c.aliases for c in concepts.concepts
            )
    assert [len(c.concepts) for c in protocols.sequence(world, 1).rounds] == [1] * 6
    kept = [s.kept[0].value[0] for s in protocols.twins(world, 9).shots if s.kept]
    assert kept and set(kept) <= set(world.twin.values())


def test_a_world_of_few_pairs_forgets_no_more_than_it_has():
    names = list(protocols.MAKERS)
    assert protocols.possible(catalogue.get("emoji"), names) == names
    left_out = {"sprites": {"forget 24"}, "glyphs": {"forget 12", "forget 24"}}
    for name, wanted in left_out.items():
        assert set(names) - set(protocols.possible(catalogue.get(name), names)) == wanted


def test_a_sequence_adds_up():
    class Method:
        @staticmethod
        def erase(model, clip, concepts, seed, size):
            return Erased(f"{model}+{concepts}", 5, negative=concepts, perp=concepts == "b")

    studio = Namespace(model="m", clip=None, judge=Namespace(world=Namespace(size=8)))
    assert __main__.erase(Method, studio, ["a", "b"], 0) == Erased("m+a+b", 10, "a, b", True)


def test_results_are_taken_up_and_a_failure_is_told(tmp_path, monkeypatch):
    """A second run measures what is missing; a method that fails has its error in the table."""
    given = Namespace(steps=1, fresh=False, out=tmp_path / "peers.json")
    world, protocol = Namespace(name="w"), Namespace(name="p", shots=[0, 0])
    drawn = protocols.Drawn(marks((1, 1, 0, 0), (0, 0, 1, 1)), np.eye(2))
    monkeypatch.setattr(protocols, "draw", lambda *_: drawn)
    asked = []

    def measure(name, *_):
        asked.append(name)
        if name == "bad":
            raise ValueError("it needs a GPU.")
        return {**row(0.5, 0.4, 0.6, cpu_seconds=1.0, bytes=2**20), "name": name.upper()}

    monkeypatch.setattr(__main__, "measure", measure)
    settings = {"pictures": 1, "steps": 1}
    for wanted in (["ours"], ["ours", "bad"]):
        results = __main__.load(given.out, settings)
        __main__.run_protocol(None, world, protocol, wanted, results, given, lambda line: None)
    assert asked == ["ours", "bad"]
    found = json.loads(given.out.read_text())["worlds"]["w"]["p"]
    assert found["methods"]["bad"]["error"] == "ValueError: it needs a GPU." and found[
        "unedited"
    ] == {"forgot": 1.0, "kept": 1.0}
    text = given.out.with_suffix(".md").read_text()
    assert (
        "| OURS | 0.50 (0.40 to 0.60) | 1.0 | 1.00 |" in text
        and "| bad | failed: ValueError: it needs a GPU. |" in text
    )
    with pytest.raises(SystemExit, match="other settings"):
        __main__.load(given.out, {**settings, "steps": 2})
