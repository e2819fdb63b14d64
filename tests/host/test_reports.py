"""Every report of every node: a verdict first, warnings next, then advice; figures behind.

`worded` in tests/conftest.py asserts the same of every report that any other test makes.
"""

import re
from types import SimpleNamespace

import pytest
import torch

from testbed import pack

nodes = pack.module("nodes")
aftermath = pack.module("unlearn.closed_form.aftermath")
closed_form = pack.module("unlearn.closed_form.report")
forecast = pack.module("unlearn.analysis.forecast")
erasure = pack.module("unlearn.analysis.report")
layers = pack.module("unlearn.host.architectures")
loras = pack.module("unlearn.files.lora_file")
measures = pack.module("unlearn.analysis.measures")
adapters = pack.module("unlearn.host.adapters")
overlap = pack.module("unlearn.files.patch_overlap")
patch_match = pack.module("unlearn.host.patch_match")
patch_report = pack.module("unlearn.files.patch_report")
patching = pack.module("unlearn.host.patching")
pruning = pack.module("unlearn.pruning.report")
refit = pack.module("nodes.refit_unlearn_patch")
sculpting = pack.module("unlearn.sculpting.report")
telling = pack.module("nodes.telling")
training = pack.module("unlearn.sculpting.settings")
types = pack.module("unlearn.types")
verdicts = pack.module("unlearn.analysis.verdict")
weights = pack.module("unlearn.host.weights")
wording = pack.module("unlearn.wording")

Impact, Left = forecast.WordImpact, aftermath.Remaining
KEPT = (Impact("cat", 0.97, True), Impact("church", 0.95, True))
SCHEMAS = {node.define_schema().display_name: node.define_schema() for node in nodes.NODES}


def solved(
    left=(("fox", 0.0),), retention=(0.0,), drift=0.05, impacts=KEPT, weak="", doubtful=(), told=()
):
    """The report of ScaPre Solve on made-up figures."""
    asked = aftermath.Asked(tuple(Left(*one) for one in left), weak, doubtful)
    found = wording.Findings(details=["Understood as: fox.", *told])
    aftermath._tell_what_is_left(asked, found, "raise 'drift' of ScaPre Solve to 0.2")
    names = [*dict.fromkeys([*(name for name, _ in left), *doubtful])] or ["fox"]
    names += [f"more {i}" for i in range(len(retention) - len(names))]
    edits = SimpleNamespace(changes=[("a", 0.1)], rank=4, lost=0.0)
    report = closed_form.ScaPreReport(
        tuple(names), tuple(retention), drift, edits, impacts, None, asked, found
    )
    assert report.picture().shape[0] == 1
    return report.text(SimpleNamespace(nbytes=2**20))


def trained(left, steps=(20, 20), residual=0.0, notes=(), concepts=("fox", "cat"), **settings):
    """The report of the Dynamic Mask Trainer on made-up figures."""
    result = sculpting.TrainingResult(
        training.TrainingSettings(**{"steps": 20, **settings}),
        concepts,
        (10,),
        ({"total": 1.0},),
        (0.3,),
        tuple(left),
        tuple(steps[: len(left)]),
    )
    changes = (sculpting.MatrixChange("k", 0.1, 0.5),)
    outcome = sculpting.Outcome(SimpleNamespace(nbytes=2**20), changes, residual)
    assert sculpting.picture(result, changes).shape[0] == 1
    return sculpting.text(result, outcome, 12.0, notes)


def masked(own, over=(), pruned=1, common=0):
    """The report of Fuse Neuron Masks on made-up counts. own: (chosen, pruned) of each concept."""
    names = ["fox", "cat", "dog"][: len(own)]
    summary = pruning.MaskSummary(names, over, [("a", 0.1)], pruned, 1, 100)
    summary.own = torch.tensor(own)
    summary.common = torch.full((len(own), len(own)), common)
    assert pruning.mask_picture(summary).shape[0] == 1
    return pruning.mask_text(summary, 3, 2**20, 0.6)


def measured(*empty):
    """The report of Concept Saliency of a fox and a cat; empty: names that stand out nowhere."""
    names = ("fox", "cat")
    found = SimpleNamespace(
        concepts=[types.Concept(name) for name in names],
        layers=[1],
        settings={"score": "paper", "prompts": 5, "window": 10},
        rankings=[[SimpleNamespace(indices=[] if name in empty else [1])] for name in names],
    )
    return pruning.saliency_text(found, 30, 3, 9.0, "It took 1.00 GB of memory.")


def compared(gone, kept, concepts=(("fox", 0.9),), kept_changes=None, impacts=(), **more):
    """The Erasure Report on made-up figures."""

    def figures(pair):
        return pair and {"latent": pair[0], "pixels": pair[1], "absolute": 0.1}

    metrics = {
        "broken_pictures": 0,
        "broken_pictures_before": 0,
        "broken_latents_before": 0,
        "pictures": 8,
        "clip": None,
        "concepts": [{"name": n, "latent": x, "pixels": x} for n, x in concepts],
        "forgotten": figures(gone),
        "kept": figures(kept),
        "weights": {"touched": 10, "total": 100, "share": 0.1},
        **more,
    }
    found = verdicts.verdict(metrics, kept_changes or {})
    changes = measures.WeightChanges((measures.LayerChange("a.weight", 1, 2, 0.1),), 100, ())
    expected = erasure.of_forecast(impacts, kept_changes or {})
    return erasure.write_text(found, metrics, changes, expected)


def foreseen(*impacts):
    return forecast.findings(impacts).report(forecast.verdict(impacts))


# maker, its verdict, what the warnings in front say
MADE = {
    "solve": (lambda: solved(), "Fox gone. Cat, church safe.", []),
    "solve, nothing kept": (lambda: solved(impacts=()), "Fox gone.", []),
    "solve, not gone": (
        lambda: solved([("fox", 0.6), ("key", 0.2), ("house", 0.0)], (0.2, 0.1, 0.0)),
        "Fox may come back. House gone. Key mostly gone. Cat, church safe.",
        ["'fox' still there"],
    ),
    "solve, weak setting": (
        lambda: solved(weak="'prior' is off"),
        "Fox may come back. Cat, church safe.",
        ["'fox' may show"],
    ),
    "solve, not asked": (
        lambda: solved((), doubtful=("line art",)),
        "Line art may come back. Cat, church safe.",
        ["'line art' may show"],
    ),
    "solve, cannot be asked": (lambda: solved(()), "Patch made. Compare pictures.", []),
    "solve, long list": (
        lambda: solved([(f"c{i}", 0.0) for i in range(6)], (0.0,) * 200, impacts=KEPT[:1]),
        "C0, c1 and 4 others gone. Cat safe. 194 more not checked.",
        [],
    ),
    "solve, all wrong": (
        lambda: solved(
            [("fox", 0.9)],
            (0.8,),
            0.5,
            (Impact("cat", 0.2, True), Impact("dog", 0.3, False)),
        ),
        "Fox hardly touched. Cat may change.",
        ["'fox' still there", "'cat' on your keep list may change"],
    ),
    "solve, drift": (
        lambda: solved(drift=0.5, impacts=KEPT),
        "Fox gone. Other pictures may change.",
        ["Other pictures may change"],
    ),
    "train": (
        lambda: trained([{"fox": 0.5}, {"fox": 0.4, "cat": 0.3}]),
        "Fox and cat forgotten.",
        [],
    ),
    "train, not forgotten": (
        lambda: trained(
            [{"fox": 0.9}],
            residual=0.9,
            low_rank=4,
            notes=[wording.Warn("Cancelled before the end.", "Learned until then.")],
        ),
        "Fox may come back. Cat not trained yet.",
        ["Cancelled", "'fox' was not forgotten"],
    ),
    "train, any goal": (
        lambda: trained([{"fox": 0.9}], concepts=("fox",), stop_at=0.95),
        "Fox may come back.",
        [],
    ),
    "masks": (lambda: masked([(10, 9), (10, 8)]), "Patch made for fox and cat.", []),
    "masks, all wrong": (
        lambda: masked([(10, 0), (10, 0)], ("fox",), 50, 9),
        "Fox and cat hardly pruned.",
        ["Much is pruned", "Hardly anything of 'fox'"],
    ),
    "saliency": (lambda: measured(), "Fox and cat measured.", []),
    "saliency, nowhere": (
        lambda: measured("cat"),
        "Cat not found in the model. Fox measured.",
        ["'cat' stands out nowhere"],
    ),
    "compare": (
        lambda: compared((0.9, 0.8), (0.1, 0.1), kept_changes={"dog": 0.1, "everyday": 0.0}),
        "Fox changed. Dog, everyday pictures unchanged.",
        [],
    ),
    "compare, pictures decide": (
        lambda: compared(
            (0.9, 0.8), (0.1, 0.1), kept_changes={"cat": 0.1}, impacts=[Impact("cat", 0.2, True)]
        ),
        "Fox changed. Cat unchanged.",
        [],
    ),
    "compare, side effects": (
        lambda: compared((0.9, 0.8), (0.4, 0.35)),
        "Fox changed. Kept pictures changed too.",
        ["Kept pictures suffer"],
    ),
    "compare, partly": (
        lambda: compared((0.5, 0.5), (0.1, 0.1), [("cat", 0.9), ("fox", 0.02)]),
        "Fox hardly changed. Cat changed. Kept pictures unchanged.",
        ["'fox' may not be forgotten"],
    ),
    "compare, damage": (
        lambda: compared((0.9, 0.8), (0.9, 0.8)),
        "Everything changed, kept pictures too.",
        ["Kept pictures changed"],
    ),
    "compare, nothing": (
        lambda: compared((0.01, 0.02), (0.0, 0.0)),
        "Hardly anything changed.",
        ["Pictures of what to forget"],
    ),
    "compare, nothing kept": (
        lambda: compared((0.9, 0.8), None),
        "Fox changed. Nothing kept was drawn.",
        [],
    ),
    "compare, broken": (
        lambda: compared((0.9, 0.8), None, broken_pictures=3),
        "Edited pictures are broken.",
        ["The patch breaks"],
    ),
    "compare, broken before": (
        lambda: compared((0.9, 0.8), None, broken_pictures_before=3, broken_latents_before=3),
        "Pictures are broken without the patch.",
        ["The fault is in the model"],
    ),
    "compare, broken VAE": (
        lambda: compared((0.9, 0.8), None, broken_pictures_before=3),
        "Pictures are broken without the patch.",
        ["The fault is in the VAE"],
    ),
    "forecast": (lambda: foreseen(*KEPT), "Nothing else should change.", []),
    "forecast, harm": (
        lambda: foreseen(Impact("wolf", 0.4, False), Impact("cat", 0.5, True)),
        "Cat and wolf may change.",
        ["'cat' on your keep list"],
    ),
    "refit": (
        lambda: refit._together(
            [solved(weak="'prior' is off"), measured()], ["Made again, rank 3"]
        ),
        "Patch made again. Fox may come back. Cat, church safe. Fox and cat measured.",
        ["'fox' may show"],
    ),
}


def follows_the_rule(text):
    """Asserts that a report does; returns the lines in front of its details."""
    front = wording.front(text).splitlines()
    order = [
        1 if x.startswith("WARNING: ") else 2 if x[:5] in ("Next:", "Try: ") else 0 for x in front
    ]
    assert order == sorted(order) and order.count(0) == 1 and order.count(2) <= 1, text
    assert wording.count("\n".join(front)) <= 60 and not wording.forbidden(text), text
    assert 1 < wording.count(front[0]) <= 18 and front[0].endswith("."), text
    if re.search("may (come back|show)|not be forgotten|still there", "\n".join(front[1:])):
        assert "come back" in front[0] or "hardly" in front[0] or "show" in front[0], text
    assert wording.face(text).splitlines() == front and len(front) <= 4, text
    for line in text.splitlines():
        if line.startswith("Try: "):
            titles = "|".join(map(re.escape, SCHEMAS))
            (setting, node), *more = re.findall(rf"'(\w+)' of ({titles})", line)
            inputs = [i.id for i in SCHEMAS[node].inputs]
            for given in SCHEMAS[node].inputs:
                for option in getattr(given, "options", None) or ():
                    inputs += [i.id for i in getattr(option, "inputs", ())]
            assert setting in inputs and not more, line
    return front


@pytest.mark.parametrize("name", MADE)
def test_every_report_begins_with_its_verdict(name):
    make, verdict, warned = MADE[name]
    text = make()
    front = follows_the_rule(text)
    assert front[0] == verdict
    warnings = [line for line in front if line.startswith("WARNING: ")]
    assert len(warnings) == len(warned), text
    for line, says in zip(warnings, warned, strict=True):
        assert line.startswith(f"WARNING: {says}"), text


def test_figures_stand_behind():
    text = solved([("fox", 0.6)], (0.2,))
    behind = text.partition("\nDetails:\n")[2]
    for figure in ("rank 4", "0.0e+00", "1.00 MB", "5.0%", "'fox' (60% left)", "Understood as"):
        assert figure in behind, figure
    assert "2 more in the details" in solved(
        [("fox", 0.9)], (0.8, 0.1), 0.5, (Impact("cat", 0.2, True),), doubtful=("key",)
    )


def test_reports_of_patches_on_a_model(loaded):
    """Apply, Patch Info and export on a patch, in reverse, weak, twice, and of another model."""
    model = loaded[0]
    key = layers.cross_attention(model)[0].key
    down = torch.nn.functional.normalize(torch.ones(1, weights.shape(model, key)[1]), dim=1)
    edit = adapters.LowRank.of(-(weights.read(model, key) @ down.T), down)
    said = {"method": "ScaPre anchored", "concepts": ["fox"], "settings": {}, "keep": ["cat"]}
    patch = types.UnlearnPatch(((key, edit),), weights.fingerprint(model, [key]), (said,))
    other = {k: torch.randn_like(x) for k, x in patch.fingerprint.samples.items()}
    stranger = types.UnlearnPatch(patch.edits, types.Fingerprint(other), (said,))
    near = {k: x + 0.3 * x.norm() / 8 for k, x in patch.fingerprint.samples.items()}
    relative = types.UnlearnPatch(patch.edits, types.Fingerprint(near), (said,))
    node = type(
        "Running",
        (nodes.ApplyUnlearnPatch,),
        {"hidden": SimpleNamespace(unique_id="7", extra_pnginfo=None)},
    )

    def applied(*patches, strength=1.0, repeated="warn"):
        given = {f"patch{i}": one for i, one in enumerate(patches)}
        found = node.execute(model, given, strength, "warn", repeated=repeated).result[1]
        return follows_the_rule(found)

    assert applied(patch) == [
        "Patch applied. It forgets fox.",
        "Next: draw with the patched model.",
    ]
    assert applied(patch, strength=0.0)[0] == "Nothing changed: the strength is 0."
    assert applied(patch, strength=-1.0)[0] == "Patch applied in reverse."
    assert applied(patch, strength=0.5) == [
        "Patch applied at strength 0.5. Fox may still show.",
        "Try: set 'strength' of Apply Unlearn Patch to 1.",
    ]
    assert applied(patch, patch)[1] == "WARNING: 'fox' is forgotten twice."
    assert applied(stranger)[:2] == [
        "Patch applied to another model.",
        "WARNING: The patch is for another model; expect damage.",
    ]
    assert applied(relative)[:2] == [
        "Patch applied to a similar model.",
        "WARNING: The patch was made for a similar model.",
    ]
    for about in (patch_report.describe(patch), patch_report.describe(patch, about_file=("x",))):
        assert follows_the_rule(about)[0] == "This patch forgets fox."
    fits = follows_the_rule(patch_report.describe(patch, model))
    assert fits[0] == "This patch forgets fox. It fits this model."
    assert "WARNING: " in follows_the_rule(patch_report.describe(stranger, model))[1]
    exact, *_ = follows_the_rule("Saved x. " + loras.export(model, patch)[2])
    assert exact == "Saved x. The LoRA is exact."
    assert "may not forget" not in follows_the_rule(loras.export(model, stranger)[2])[0]


def workflow(**instance):
    """A page's workflow with a blueprint of ScaPre Solve and Apply Unlearn Patch."""
    given = [{"name": "keep"}, {"name": "strength", "label": "how much"}]
    inside = [
        {"id": 1, "type": "UnlearnConcepts", "inputs": [{"name": "forget"}, {"name": "keep"}]},
        {"id": 2, "type": "ScaPreSolve", "inputs": [{"name": "variant.drift"}]},
        {"id": 3, "type": "ApplyUnlearnPatch", "inputs": [{"name": "strength"}]},
    ]
    links = [
        {"origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 1},
        {"origin_id": -10, "origin_slot": 1, "target_id": 3, "target_slot": 0},
        {"origin_id": 2, "origin_slot": 0, "target_id": 3, "target_slot": 0},
    ]
    found = {"id": "u", "name": "Erase Concepts", "inputs": given, "nodes": inside, "links": links}
    return {
        "workflow": {
            "nodes": [{"id": 5, "type": "u", **instance}],
            "definitions": {"subgraphs": [found]},
        }
    }


@pytest.mark.parametrize(
    "given, told",
    [
        (
            "Try: raise 'drift' of ScaPre Solve to 0.2.",
            "Try: raise 'drift' of ScaPre Solve (inside Erase Concepts) to 0.2.",
        ),
        (
            "Try: add what matters to 'keep' of Concepts to Forget.",
            "Try: add what matters to 'keep' of Erase Concepts.",
        ),
        (
            "Try: set 'strength' of Apply Unlearn Patch to 1.",
            "Try: set 'how much' of Erase Concepts to 1.",
        ),
        (
            "Next: connect the patch to Apply Unlearn Patch.",
            "Next: compare pictures with the same seed.",
        ),
        ("Try: raise 'kept' of Erasure Report.", "Try: raise 'kept' of Erasure Report."),
        ("Of 'drift' of ScaPre Solve.", "Of 'drift' of ScaPre Solve."),
    ],
)
def test_inside_a_blueprint_advice_names_what_the_artist_sees(given, told):
    text = f"Gone.\n{given}\n\nDetails:\nrank"
    assert telling.in_place(text, telling.around("5:2", workflow())) == text.replace(given, told)
    assert telling.in_place(text, telling.around("5", workflow())) == text


def test_a_blueprint_is_called_by_its_title_and_shows_what_was_put_on_its_face():
    shown = workflow(title="My eraser", properties={"proxyWidgets": [["2", "variant.drift"]]})
    text = telling.in_place("A.\nTry: raise 'drift' of ScaPre Solve.", telling.around("5:2", shown))
    assert text == "A.\nTry: raise 'variant.drift' of My eraser."


@pytest.mark.parametrize(
    "sent",
    [None, {}, {"workflow": None}, {"workflow": {"nodes": [{}]}}, {"workflow": {"nodes": []}}, 7],
)
def test_whatever_the_page_sends_no_report_fails(sent):
    assert telling.around("5:2", sent) is None and telling.around(None, sent) is None
