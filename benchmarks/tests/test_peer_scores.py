"""The figures of `dev.py bench peers`: intervals, distances, who is best and last, protocols."""

import json
import math
from argparse import Namespace

import numpy as np
import pytest

from testbed import pack
from testbed.worlds import catalogue

pack.load()
from benchmarks.peers import (  # noqa: E402
    Erased,
    __main__,
    _shared,
    protocols,
    rows,
    scores,
    sweeps,
)
from testbed import tiny  # noqa: E402


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
        for _ in range(100):  # until it looked, also on a busy machine
            scores.time.sleep(0.05)
            if meter.peak >= meter.start + 35 * 2**20:
                break
        del held
    assert 35 < meter.memory < 80 and meter.seconds >= 0.05


def made(world, pictures=24):
    """Title -> Protocol of all that a world can have."""
    titles = protocols.possible(world, list(protocols.MAKERS))
    return {title: protocols.MAKERS[title](world, pictures) for title in titles}


def texts(found):
    return {shot.caption.text for protocol in found for shot in protocol.shots}


def judged_texts(world):
    return texts(made(world, 80).values())


@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_judged_sentences_are_none_that_ours_was_given(name):
    sentences, prompts = (
        pack.module("unlearn.concepts.sentences"),
        pack.module("unlearn.host.text_encoding"),
    )
    world = catalogue.get(name)
    judged, explicit = set(), set()
    for protocol in made(world, 80).values():
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


class Recording(tiny.Clip):
    """A CLIP that notes every text it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = set()

    def tokenize(self, words, return_word_ids=False):
        self.asked.add(words)
        return super().tokenize(words, return_word_ids)


@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_no_row_is_given_a_judged_sentence(name):
    """By what each row asks the text encoder for, or trains on.

    A sweep's row reads what the official one does, and what ours reads is the same for all.
    """
    world = catalogue.get(name)
    judged, found, every = judged_texts(world), made(world, 1), rows.known()
    wanted = [r for r in every.values() if r.group == rows.OFFICIAL]
    wanted.append(every["uce same information"])
    for title in ("forget 4", "forget 12", "styles", "explicit", "synonyms"):
        if title not in found:
            continue
        (concepts,) = found[title].rounds
        for row in wanted:
            if hasattr(row.module, "read"):
                clip = Recording()
                rows.read(row, clip, concepts, _shared.kind_of(concepts))
                assert len(clip.asked) > 3 and not clip.asked & judged, (title, row.id)
            elif hasattr(row.module, "texts"):
                assert not set(row.module.texts(concepts)) & judged, (title, row.id)


def test_ours_and_conceptprune_are_not_given_a_judged_sentence():
    pruning = pack.module("unlearn.pruning.prompts")
    plans = pack.module("unlearn.closed_form.sentence_plan")
    for name in catalogue.WORLDS:
        world, clip = catalogue.get(name), tiny.Clip()
        judged = judged_texts(world)
        for title in ("forget 8", "styles", "explicit"):
            (concepts,) = made(world, 1)[title].rounds
            groups = pruning.build_groups(clip, concepts.concepts, 8)
            assert not judged & {text for group in groups for text in group.texts}
            assert not judged & set(plans.plan(clip, concepts).texts)


def test_synonyms_are_never_given():
    world = catalogue.get("emoji")
    protocol = made(world)["synonyms"]
    (concepts,) = protocol.rounds
    said = protocols.other_words(world)
    spoken = {word for words in said.values() for word in words}
    given = {*protocol.forgotten, *concepts.keep, *(c.superclass for c in concepts.concepts)}
    assert not spoken & given and not any(c.aliases for c in concepts.concepts)
    for name, words in said.items():
        assert not any(name in word.split() for word in words), name
    for shot in protocol.shots:
        name = shot.caption.name
        assert not set(name.split()) <= set(shot.caption.text.split())
        assert any(word in shot.caption.text for word in said[name])
        assert (shot.gone or shot.kept)[0].value == (name,)
        assert bool(shot.gone) == (name in protocol.forgotten)
    kept = {shot.caption.name for shot in protocol.shots if shot.kept}
    assert protocol.forgotten == set(said) & set(world.order)
    assert kept == set(said) - set(world.order)
    # twins of what is forgotten are among what is kept
    assert {"dog", "house", "taxi"} <= kept and {"cat", "church", "car"} <= protocol.forgotten


def test_nearest_are_the_twenty_likest_words_a_world_can_draw():
    world = catalogue.get("emoji")
    protocol = made(world)["nearest"]
    kept = [shot.caption.name for shot in protocol.shots if shot.kept]
    near = list(dict.fromkeys(kept))
    assert near == protocols.neighbours(world, world.order[:4]) and len(near) == 20
    assert set(near) <= set(world.labels) and not set(near) & protocol.forgotten
    first = {protocols.likeness(world.labels)[name][0] for name in protocol.forgotten}
    assert first <= set(near)
    assert {world.twin[n] for n in ("fox", "car", "guitar")} <= set(near)
    for name in protocol.forgotten:  # nothing is nearer than what was chosen before it
        ranked = protocols.likeness(world.labels)[name]
        assert len(ranked) == len(world.labels) - 1 and name not in ranked


@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_protocols_are_what_they_say(name):
    world = catalogue.get(name)
    for title, protocol in made(world).items():
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


@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_look_alikes_are_forgotten_by_both_halves(name):
    world = catalogue.get(name)
    found = made(world, 16)
    count = len(world.order)
    assert set(world.order) | {world.twin[n] for n in world.order} == set(world.objects)
    halves = found["look-alikes"], found["the other look-alikes"]
    judged = [
        ({s.caption.name for s in p.shots if s.gone}, {s.caption.name for s in p.shots if s.kept})
        for p in halves
    ]
    assert judged[0] == judged[1][::-1] == (set(world.order[:6]), judged[1][0])
    assert judged[1][0] == {world.twin[n] for n in world.order[:6]}
    other = found[f"forget the other {count}"]
    assert other.forgotten == set(world.objects) - set(world.order)


def test_every_forgotten_object_is_judged_however_many_there_are():
    protocol = protocols.MAKERS["forget 24"](catalogue.get("emoji"), 16)
    assert len(protocol.forgotten) == 24
    assert {s.caption.name for s in protocol.shots if s.gone} == protocol.forgotten
    kept = [s for s in protocol.shots if s.kept]
    assert len(kept) == 48 and len({s.caption.name for s in kept}) == 24


def test_a_resample_without_anything_kept_is_left_out():
    before = [[0, 0, 1, 1]] + [[0, 0, 0, 1]] * 9  # one of ten pictures is right before the edit
    found = scores.rates(before, before)
    assert found["kept"] == (1.0, 1.0, 1.0) and found["overall"] == (1.0, 1.0, 1.0)
    nothing = scores.rates([[0, 0, 0, 1]] * 4, [[0, 0, 0, 1]] * 4)
    assert nothing["kept"] == (0.0, 0.0, 0.0)


def test_a_world_has_the_protocols_that_it_has_pairs_and_words_for():
    names = list(protocols.MAKERS)
    left_out = {
        "sprites": {"forget 24", "forget the other 8", "forget the other 24"},
        "glyphs": {"forget 12", "forget 24", "forget the other 12", "forget the other 24"},
        "emoji": {"forget the other 8", "forget the other 12"},
        "emoji_xl": {"forget the other 8", "forget the other 12", "pairs"},  # no pair was trained
    }
    for name, wanted in left_out.items():
        wanted = wanted | (set() if catalogue.get(name).keywords else {"nearest", "synonyms"})
        assert set(names) - set(protocols.possible(catalogue.get(name), names)) == wanted
    assert not any("," in name for name in names)  # they are named by comma


# --- Sweeps ---------------------------------------------------------------------------------------


def cases(world):
    """(reported Protocol, its sweep's Protocol) of all that a world can have."""
    for protocol in made(world, 80).values():
        kind, half = sweeps.kind_of(protocol), sweeps.half_of(world, protocol)
        yield protocol, sweeps.protocol(world, kind, half, 8)


@pytest.mark.parametrize("name", catalogue.WORLDS)
def test_a_sweep_never_sees_what_is_reported(name):
    world = catalogue.get(name)
    reported, seen = judged_texts(world), set()
    for protocol, sweep in cases(world):
        seen |= texts([sweep])
        if sweeps.kind_of(protocol) != "explicit":  # there is only one explicit attribute
            assert not sweep.forgotten & protocol.forgotten, protocol.name
        assert sweeps.kind_of(sweep) == sweeps.kind_of(protocol), protocol.name
        assert sum(bool(s.gone) for s in sweep.shots) == 8
        assert sum(bool(s.kept) for s in sweep.shots) == 16
    assert len(seen) > 30 and not seen & reported
    most = max(len(p.shots) for p in made(world, 80).values())
    assert protocols.SEED + most < sweeps.SEED  # picture i has the seed SEED + i


def test_a_sweep_chooses_the_best_then_what_keeps_most_then_the_first():
    def row(overall, kept):
        return {"overall": (overall, 0, 1), "kept": (kept, 0, 1)}

    assert sweeps.best([row(0.5, 1), row(0.9, 0.8), row(0.8, 1)]) == 1
    assert sweeps.best([row(0.9, 0.8), row(0.9, 0.9), row(0.9, 0.9)]) == 1


def test_a_sweep_is_done_once_and_again_when_its_settings_change(monkeypatch):
    """It solves what was read once at every setting, and the answer is kept in the results."""
    world = catalogue.get("sprites")
    studio = Namespace(model="m", clip="c")
    reported = made(world)["forget 4"]
    asked = []
    overall = {"a": 0.5, "b": 0.9, "c": 0.7}

    def draw(studio, protocol, erased, steps, seed):
        assert seed == sweeps.SEED and protocol.name == "sweep, few"
        return Namespace(marks=erased)

    def read(row, clip, concepts, kind):
        asked.append(row.id)
        return clip, kind

    def erased(row, model, concepts, found, setting, seed):
        assert found == ("c", "few") and model == "m"
        return setting

    def rates(before, after):
        return {"overall": (overall[after], 0, 1), "kept": (1, 1, 1), "forgot": (0, 0, 0)}

    settings = ["a", "b"]
    for module, name, new in (
        (protocols, "draw", draw),
        (rows, "read", read),
        (rows, "erased", erased),
        (rows, "grid", lambda row, kind: settings),
        (scores, "rates", rates),
    ):
        monkeypatch.setattr(module, name, new)
    row, results = rows.known()["uce sweep"], {}

    def setting(fresh=False, pictures=8, **other):
        found = sweeps.Sweeps(results, pictures, 8, fresh)
        args = (other.get("row", row), studio, world, reported, lambda line: None)
        return [found.setting(*args) for _ in range(2)]

    assert setting() == setting() == ["b", "b"] and asked == ["uce sweep"]
    assert list(results["sprites"]) == ["few, order"]
    json.dumps(results)
    assert setting(fresh=True) == ["b", "b"] and len(asked) == 2  # once in a run
    settings[:] = ["a", "c"]
    assert setting() == ["c", "c"] and len(asked) == 3
    assert setting(pictures=16) == ["c", "c"] and len(asked) == 4
    assert setting(row=rows.known()["uce"]) == [None, None] and len(asked) == 4


def test_a_sequence_adds_up():
    class Method:
        @staticmethod
        def erase(model, clip, concepts, seed, size):
            return Erased(f"{model}+{concepts}", 5, negative=concepts, perp=concepts == "b")

    studio = Namespace(model="m", clip=None, judge=Namespace(world=Namespace(size=8)))
    assert __main__.erase(Method, studio, ["a", "b"], 0) == Erased("m+a+b", 10, "a, b", True)


class Tuned:
    """A stand-in for Sweeps."""

    @staticmethod
    def setting(row, *_):
        return "Setting(erase=10.0)" if row.group == "sweep" else None


def test_results_are_taken_up_and_a_failure_is_told(tmp_path, monkeypatch):
    """A second run measures what is missing; a method that fails has its error in the table."""
    given = Namespace(steps=1, fresh=False, out=tmp_path / "peers.json", sweeps=Tuned)
    world, protocol = Namespace(name="w"), Namespace(name="p", shots=[0, 0])
    drawn = protocols.Drawn(marks((1, 1, 0, 0), (0, 0, 1, 1)), np.eye(2))
    monkeypatch.setattr(protocols, "draw", lambda *_: drawn)
    asked = []

    def measure(row_of, setting, *_):
        asked.append((row_of.id, setting))
        if row_of.id == "bad":
            raise ValueError("it needs a GPU.")
        found = row(0.5, 0.4, 0.6, cpu_seconds=1.0, bytes=2**20, group=row_of.group)
        return {**found, "name": row_of.peer.upper()}

    monkeypatch.setattr(__main__, "measure", measure)
    settings = {"pictures": 1, "steps": 1}
    ours, bad = rows.Row("ours", "ours", "ours"), rows.Row("bad", "bad", "official")
    tuned = rows.Row("uce sweep", "uce", "sweep")
    for wanted in ([ours], [ours, bad, tuned]):
        results = __main__.load(given.out, settings)
        __main__.run_protocol(None, world, protocol, wanted, results, given, lambda line: None)
    assert asked == [("ours", None), ("bad", None), ("uce sweep", "Setting(erase=10.0)")]
    found = json.loads(given.out.read_text())["worlds"]["w"]["p"]
    assert found["methods"]["bad"]["error"] == "ValueError: it needs a GPU." and found[
        "unedited"
    ] == {"forgot": 1.0, "kept": 1.0}
    text = given.out.with_suffix(".md").read_text()
    assert (
        "| ours | OURS | 0.50 (0.40 to 0.60) | 1.0 | 1.00 |" in text
        and "| sweep | UCE | 0.50 (0.40 to 0.60) | 1.0 | 1.00 |" in text
        and "| official | bad | failed: ValueError: it needs a GPU. |" in text
    )
    with pytest.raises(SystemExit, match="other settings"):
        __main__.load(given.out, {**settings, "steps": 2})
    # A protocol whose pictures have changed is measured again.
    protocol.shots.append(0)
    results = __main__.load(given.out, settings)
    __main__.run_protocol(None, world, protocol, [ours], results, given, lambda line: None)
    assert len(asked) == 4 and list(results["worlds"]["w"]["p"]["methods"]) == ["ours"]


def test_a_sweep_that_chose_the_official_setting_is_not_drawn_again():
    """Its figures are those of the official row; another setting, or a failed row, is measured."""
    sweep = rows.Row("uce sweep", "uce", "sweep")
    same = rows.Row("uce same information", "uce", "same information")
    concepts = Namespace(concepts=(Namespace(kind="object"),))
    protocol, known = Namespace(rounds=(concepts,)), {"uce official": {"kept": 0.5, "group": "x"}}
    first, second = rows.grid(sweep, "few")[:2]
    found = __main__.official(sweep, first, protocol, known)
    assert found == {"kept": 0.5, "group": "sweep", "setting": repr(first)}
    assert known == {"uce official": {"kept": 0.5, "group": "x"}}
    assert __main__.official(sweep, second, protocol, known) is None
    assert __main__.official(same, first, protocol, known) is None
    assert __main__.official(sweep, first, protocol, {"uce official": {"error": "x"}}) is None
    assert __main__.official(sweep, first, protocol, {}) is None


def reported():
    """Results of two protocols with a row of every group."""
    by = {
        "ours": {**row(0.8, 0.7, 0.9), "name": "ours (ScaPre)", "group": "ours"},
        "uce official": {**row(0.5, 0.4, 0.6), "name": "UCE", "group": "official"},
        "uce sweep": {**row(0.95, 0.92, 1.0), "name": "UCE", "group": "sweep", "setting": "b"},
        "uce same information": {**row(0.85, 0.8, 0.9), "name": "UCE", "group": "same information"},
    }
    better = {**by["uce same information"], **row(0.97, 0.95, 1.0)}
    other = {**by, "uce same information": better}
    return {
        "settings": {"pictures": 16, "steps": 8},
        "worlds": {"w": {"p": {"methods": by}, "q": {"methods": other}}},
        "sweeps": {
            "w": {
                "few, order": {
                    "uce sweep": {
                        "pictures": 8,
                        "chosen": 1,
                        "tried": [
                            {"setting": "a", "overall": (0.1, 0.0, 0.2)},
                            {"setting": "b", "overall": (0.6, 0.5, 0.7)},
                        ],
                    }
                }
            }
        },
    }


def test_the_table_has_a_part_for_each_group_of_rows():
    text = __main__.markdown(reported())
    official, rest = text.split("### Best of a sweep")
    sweep, same = rest.split("### Same information as ours")
    assert "| w: p | **0.80** | 0.50 |" in official and "### Official settings" in official
    assert "Ours is best or tied in 2 of 2 protocols, and last in 0." in official
    assert "| w: p | 0.80 | **0.95** |" in sweep
    assert "Ours is best or tied in 0 of 2 protocols, and last in 2." in sweep
    same, every = same.split("All rows together: ")
    assert "| w: p | 0.80 | **0.85** |" in same and "best or tied in 1 of 2" in same
    assert every.startswith("Ours is best or tied in 0 of 2 protocols, and last in 0.")
    lines = [line for line in every.split("## w: q")[0].splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| ours",
        "| official",
        "| sweep",
        "| same information",
    ]
    assert "| w | few, order | uce sweep | b | 0.60 (0.50 to 0.70) |" in text


def test_a_protocol_without_a_row_of_a_group_is_not_in_its_table():
    alone = {"ours": row(0.9, 0.8, 1.0) | {"name": "ours (ScaPre)", "group": "ours"}}
    results = reported()
    results["worlds"]["w"]["r"] = {"methods": alone}
    official = __main__.markdown(results).split("### Best of a sweep")[0]
    assert "w: p" in official and "w: r" not in official
    found = __main__.summary(results, __main__.RESULTS)
    assert found["groups"]["official"]["best_or_tied"] == ["w: p", "w: q"]


def test_standing_is_told_for_all_rows_and_for_each_group(tmp_path):
    found = __main__.summary(reported(), tmp_path / "peers.json")
    assert found["protocols"] == ["w: p", "w: q"] and found["best_or_tied"] == []
    assert found["groups"]["official"]["best_or_tied"] == ["w: p", "w: q"]
    assert found["groups"]["same information"] == {
        "best_or_tied": ["w: p"],
        "last": [("w: q", "overall")],
    }


def test_results_of_earlier_versions_stay_readable():
    """Their rows name no group, and mean other settings than the same names do now."""
    old = {
        "ours": {**row(0.9, 0.8, 1.0), "name": "ours (ScaPre)"},
        "uce": {**row(0.5, 0.4, 0.6), "name": "UCE"},
        "perp_neg": {**row(0.1, 0.0, 0.2), "name": "Perp-Neg"},
        "esd": {"error": "no"},
    }
    results = {"settings": {"pictures": 1, "steps": 1}, "worlds": {"w": {"p": {"methods": old}}}}
    text = __main__.markdown(results)
    assert "### As earlier versions of this benchmark set them" in text
    assert "| earlier | UCE | 0.50 (0.40 to 0.60) |" in text and "| earlier | esd | failed" in text
    assert "| official | Perp-Neg | 0.10" in text  # it has no setting
    ids = {r.id for r in rows.known().values()}
    assert "uce" not in ids and {"ours", "perp_neg", "negative_prompt"} <= ids
    shipped = sorted(__main__.RESULTS.parent.glob("peers*.json"))
    assert __main__.RESULTS in shipped
    for file in shipped:
        assert "ours (ScaPre)" in __main__.markdown(json.loads(file.read_text(encoding="utf-8")))


def asked_for(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["peers", *args])
    return [r.id for r in __main__.wanted_rows(__main__.options())]


def test_each_round_reads_the_clip_that_the_round_before_left():
    """A method may give a CLIP; what it leaves alone is the one that was given."""
    given = []

    def erase(model, clip, concepts, seed, size):
        given.append(clip)
        return Erased(model, 1, clip=f"{clip}+" if concepts else None)

    method = rows.Method("m", erase)
    world = Namespace(size=8)
    studio = Namespace(model="m", clip="c", judge=Namespace(world=world))
    done = __main__.erase(method, studio, (1, 0, 1), 0)
    assert given == ["c", "c+", "c+"] and done.clip == "c++" and done.nbytes == 3


def test_rows_are_named_on_the_command_line(monkeypatch):
    assert asked_for(monkeypatch, "--methods", "ours,uce") == ["ours", "uce official"]
    named = asked_for(monkeypatch, "--methods", "uce sweep, uce same information")
    assert named == ["uce sweep", "uce same information"]
    same = asked_for(monkeypatch, "--rows", "same information")
    assert same == [
        "ours",
        *(f"{p} same information" for p in ("mace_cfr", "oce", "rece", "speed", "uce")),
    ]
    every = asked_for(monkeypatch)
    assert len(every) == 1 + 1 + 2 + 5 + 5 * 3 and "sculpting official" in every
    short = asked_for(monkeypatch, "--methods", "esd", "--training-steps", "50")
    assert short == ["esd, 50 steps"]
    with pytest.raises(SystemExit, match="no method 'usce'"):
        asked_for(monkeypatch, "--methods", "usce")


def test_the_command_goes_over_worlds_protocols_and_rows(tmp_path, monkeypatch, capsys):
    file, asked = tmp_path / "peers.json", []
    drawn = protocols.Drawn(marks((1, 1, 0, 0), (0, 0, 1, 1)), np.eye(2))

    def measure(row_of, setting, studio, world, protocol, before, given):
        asked.append((world.name, protocol.name, row_of.id))
        return {**row(0.5, 0.4, 0.6, group=row_of.group), "name": row_of.peer}

    crowding = []
    world_of = Namespace(studio=lambda folder, skip: Namespace(clip="clip"))
    monkeypatch.setattr(__main__.alike, "make_alike", lambda *args: crowding.append(args))
    monkeypatch.setattr(catalogue, "get", lambda name: catalogue.MODELS[name]._replace(name=name))
    monkeypatch.setattr(catalogue.World, "studio", lambda self, *a: world_of.studio(*a))
    monkeypatch.setattr(protocols, "draw", lambda *_: drawn)
    monkeypatch.setattr(__main__, "measure", measure)
    args = ["--worlds", "glyphs", "--protocols", "forget 1,synonyms,explicit", "--json"]
    args += ["--methods", "ours,oce", "--crowded", "0.5", "--crowded-words", "twins"]
    monkeypatch.setattr("sys.argv", ["peers", *args, "--pictures", "2", "--out", str(file)])
    __main__.main()
    name = "glyphs, crowded twins 0.5"
    assert [c[:1] + c[2:] for c in crowding] == [("clip", 0.5, "twins")]
    assert asked == [
        (name, title, i) for title in ("forget 1", "explicit") for i in ("ours", "oce official")
    ]
    said = json.loads(capsys.readouterr().out)
    assert said["protocols"] == [f"{name}: forget 1", f"{name}: explicit"]
    assert said["groups"]["official"]["best_or_tied"] == said["protocols"]
    assert "oce" in file.with_suffix(".md").read_text()
    assert json.loads(file.read_text())["sweeps"] == {}
