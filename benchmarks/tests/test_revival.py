"""The attacks of `dev.py bench revival`, what they are judged by, and how its table is resumed."""

import functools
import hashlib
import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from benchmarks.peers import Erased, _information
from benchmarks.revival import __main__, attacks, defences, network, subjects
from testbed import pack
from testbed.worlds import catalogue
from testbed.worlds.checkpoint import load_judge
from testbed.worlds.evaluate import Studio
from testbed.worlds.judge import drawn_batch

encoding = pack.module("unlearn.host.text_encoding")
weights = pack.module("unlearn.host.weights")
WORLDS = pytest.mark.parametrize("world", catalogue.WORLDS.values(), ids=catalogue.WORLDS)
TINY = {"tokens": 2, "training": 2}


@pytest.fixture(scope="module")
def studio(checkpoint):
    pack.load()
    return Studio(checkpoint, load_judge(catalogue.SPRITES.file))


def budget(pictures=2, steps=2, **more):
    return attacks.Budget(pictures, steps, **{"batch": 2, "search": 1, "lora": 1, **more})


@torch.inference_mode()
def digest(model):
    """What decides what a MODEL draws: its weights with all patches, to the last bit."""
    found = hashlib.blake2b()
    for key in sorted(model.model.state_dict()):
        if key.startswith("diffusion_model."):
            found.update(weights.read(model, key).contiguous().numpy().tobytes())
    return found.hexdigest()


@WORLDS
def test_every_subject_is_seen_where_it_is_drawn_and_the_control_nowhere_else(world):
    judge, rng = load_judge(world.file), np.random.default_rng(5)
    known = subjects.of_world(world)
    assert [s.kind for s in known.values()] == "object object style explicit control".split()
    for subject in known.values():
        pictures = torch.from_numpy(subject.pictures(world, range(100), rng)).movedim(-1, 1)
        assert np.mean(subject.shows(judge, pictures)) >= 0.97, subject.name
    other = drawn_batch(rng, 400, 0.05, world)[0]
    assert np.mean(known[subjects.CONTROL].shows(judge, other)) <= 0.02


@WORLDS
def test_sentences_that_are_drawn_are_not_searched_in(world):
    for subject in subjects.of_world(world).values():
        drawn = {subject.sentence(i) for i in range(200)}
        assert not drawn & {subject.sentence(i, drawn=False) for i in range(200)}
        assert all(subject.name in said for said in drawn)
        assert network.PLACE not in " ".join(drawn)
        assert f"{network.PLACE} {network.PLACE}" in subject.sentence(0, "sks sks")


def attacked_by(name, known):
    """Every kind of subject, of attacks that take little; else one, in turn."""
    every = list({s.kind: s for s in known.values()}.values())
    if "x" not in name and name != "prompt search":
        return every
    place = sorted(attacks.ATTACKS).index(name) % len(every)
    return every[place : place + 1]


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_an_attack_gives_a_hit_for_each_picture_and_leaves_the_model(studio, name):
    world, run, spent = studio.judge.world, attacks.ATTACKS[name], budget()
    before, more = digest(studio.model), TINY if "training" in run.keywords else {}
    for subject in attacked_by(name, subjects.of_world(world)):
        hits = run(studio, world, subject, Erased(studio.model, 0), spent, **more)
        assert len(hits) == 2 and all(isinstance(hit, bool) for hit in hits)
    assert digest(studio.model) == before


def test_a_training_that_is_looked_at_on_the_way_is_the_same_training(studio):
    world = studio.judge.world
    subject, unet = subjects.of_world(world)["fox"], None
    with attacks.gradients():
        unet = attacks.network(studio.model)
        runs = [attacks.Inversion(studio, world, subject, unet, 1) for _ in range(2)]
        runs[0].train(1, 2)
        first = runs[0].embeddings.detach().clone()
        runs[0].train(3, 2)
        runs[1].train(3, 2)
    assert torch.equal(runs[0].embeddings, runs[1].embeddings)
    assert not torch.equal(runs[0].embeddings, first)


def test_a_training_that_brought_all_back_goes_no_further(studio, monkeypatch):
    world, spent = studio.judge.world, budget()
    subject = subjects.of_world(world)["fox"]
    looks = iter([[True, False], [False, False], [True, True]])
    monkeypatch.setattr(subjects.Subject, "shows", lambda *_: next(looks))
    erased = Erased(studio.model, 0)

    def look(training):
        return sum(attacks.inversion(studio, world, subject, erased, spent, 1, training))

    # The best look counts, and after a full one nothing is drawn any more.
    assert [look(1), look(2), look(3), look(4)] == [1, 1, 2, 2]
    assert spent.memo["inversion", "fox", 1].done == 3


def test_the_unedited_model_is_revived_by_what_needs_no_training(studio):
    """Whoever has the name of what was never erased gets it; so the attacks can succeed."""
    world, erased = studio.judge.world, Erased(studio.model, 0)
    spent = budget(4, 8)
    for name in ("fox", "van gogh", "naked"):
        subject = subjects.of_world(world)[name]
        for run in (attacks.rece, attacks.img2img):
            assert sum(run(studio, world, subject, erased, spent)) >= 3, (name, run)


def test_inversion_finds_what_was_never_erased(studio):
    """A word that says nothing comes to say `fox` in few steps."""
    world, erased = studio.judge.world, Erased(studio.model, 0)
    subject, spent = subjects.of_world(world)["fox"], budget(4, 8, batch=4)
    states = studio.encode(attacks.sentences(subject, spent, network.PLACE))
    pictures = attacks.drawn(studio, erased, states, spent)
    assert not any(subject.shows(studio.judge, pictures))
    assert sum(attacks.inversion(studio, world, subject, erased, spent, training=40)) >= 3


def test_reviving_states_of_an_unedited_model_say_the_same(studio):
    with torch.inference_mode():
        states = studio.encode(["a photo of a fox"])
        back = states @ attacks.reviver(studio.model, studio.model)
        layer = attacks.layers.cross_attention(studio.model)[0]
        w = weights.read(studio.model, layer.key).float()
    said, again = states @ w.T, back @ w.T
    assert float((said - again).norm() / said.norm()) < 0.05


def test_the_encoder_of_an_attack_says_what_comfyui_says(loaded):
    _, clip, _ = loaded
    text, said = network.Text(clip), ["a photo of a fox", "an image of a house"]
    with torch.no_grad():
        ours = text(said)
        again = text(["a photo of a sks"], text.embedding("fox")[None])
        two = text(["a sks sks"], torch.stack([text.embedding("fox"), text.embedding("house")]))
    with torch.inference_mode():
        theirs = encoding.encode(clip, [*said, "a fox house"])
    for row, sentence in zip(ours, said, strict=True):
        assert torch.allclose(row, theirs[sentence].float(), atol=2e-2)
    assert torch.allclose(again[0], ours[0], atol=1e-4)
    assert torch.allclose(two[0], theirs["a fox house"].float(), atol=2e-2)


def test_the_network_of_an_attack_predicts_what_the_model_predicts(loaded):
    model, _, _ = loaded
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 77, 768, generator=g)
    times = torch.tensor([100, 700])
    unet = network.network(model)
    with torch.no_grad():
        ours = unet(x, times, text)
    with torch.inference_mode():
        own = model.model.diffusion_model
        dtype = next(own.parameters()).dtype
        theirs = own(x.to(dtype), times, text.to(dtype)).float()
    assert (ours - theirs).norm() / theirs.norm() < 0.02
    assert ours.shape == x.shape and not ours.requires_grad
    states = text.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(unet(x, times, states).sum(), states)
    assert gradient.abs().max() > 0


def test_a_projection_takes_what_the_concept_writes_and_leaves_what_is_kept():
    """With W = 1, the concept adds e1 and e2 to its neutral state, and e2 is kept."""
    e = torch.eye(4, dtype=torch.float64)
    none, at = torch.zeros(1, 4).double(), torch.tensor([True])
    read = _information.Information(
        (e[0] + e[1])[None], none, torch.ones(1).double(), at, ~at, torch.tensor([0]), 1,
        torch.outer(e[1], e[1]), e[1:2], e[1:2], none,
    )  # fmt: skip
    u = defences.outputs_to_remove(e, read)
    assert u.shape == (4, 1) and torch.allclose(u.abs(), e[:, :1])


def test_a_patch_is_made_once_and_read_again_by_the_next_run(studio, tmp_path, monkeypatch):
    """Several patches come back in their order, and nothing that was on the model is lost."""
    made, key = [], attacks.layers.cross_attention(studio.model)[0].key
    wide, tall = weights.shape(studio.model, key)

    def double(case):
        made.append(case.world.name)
        ups = (torch.full((wide, 1), value) for value in (1.0, 2.0))
        edits = [[(key, defences.adapters.LowRank.of(up, torch.ones(1, tall)))] for up in ups]
        return [case.patch("test", studio.model, part) for part in edits]

    monkeypatch.setitem(defences.DEFENCES, "a b", double)
    cases = [defences.Case(studio, tmp_path) for _ in range(2)]
    first, again = ([p.digest for p in case.patches("a b")] for case in cases)
    assert first == again and len(set(first)) == 2 and made == ["sprites"]
    with torch.inference_mode():
        change = weights.read(cases[1].model("a b"), key) - weights.read(studio.model, key)
    assert torch.allclose(change, torch.full_like(change, 3.0), atol=1e-3)
    names = {c.name for c in cases[0].concepts.concepts}
    assert names == {"fox", "house", "van gogh", "naked"}


class Fake:
    """A Case of two defences that give no patches, and what was made of them."""

    world = catalogue.SPRITES
    subjects = [s for s in subjects.of_world(world).values() if s.kind != "control"]
    objects, styles, concepts, studio = ("fox", "house"), ("van gogh",), None, None

    def patches(self, name):
        return ()

    def model(self, name):
        if name == "broken":
            raise ValueError("it needs a GPU.")
        return name

    def erased(self, name):
        return Erased(self.model(name), 0)


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path, monkeypatch):
    given = Namespace(pictures=2, steps=2, judged=2, fresh=False, out=tmp_path / "revival.json")
    asked = []

    def fake(studio, world, subject, erased, budget):
        asked.append((erased.model, subject.name))
        if (erased.model, subject.name) == ("ScaPre", "house"):
            raise RuntimeError("no room")
        return [True, False]

    monkeypatch.setattr(attacks, "ATTACKS", {"fake": functools.partial(fake)})
    monkeypatch.setattr(__main__.Table, "figures", lambda self, row: self.case.model(row) and {
        "forgot": [0.25, 0, 1], "kept": [0.5, 0, 1], "overall": [0.6, 0, 1]})  # fmt: skip
    settings = {"pictures": 2}
    for names in (["fox"], ["fox", "house", subjects.CONTROL]):
        results = __main__.records.load(given.out, settings)
        results["commit"] = "abc1234"
        table = __main__.Table(Fake(), results, given, asked.append)
        cells = table.open(["none", "ScaPre", "broken"], ["fake"], names, ["none"])
        asked.clear()
        for cell in cells:
            table.measure(*cell)
    measured = [cell for cell in asked if isinstance(cell, tuple)]
    assert measured == [("none", "house"), ("none", subjects.NO_WORD), ("ScaPre", "house")]
    rows = json.loads(given.out.read_text())["worlds"]["sprites"]
    assert rows["none"]["attacks"]["fake"]["fox"]["revived"] == 0.5
    assert rows["none"]["kept"][0] == 0.5 and rows["none"]["commit"] == "abc1234"
    assert rows["ScaPre"]["attacks"]["fake"]["house"]["error"] == "RuntimeError: no room"
    assert "error" not in rows["ScaPre"] and rows["ScaPre"]["kept"][0] == 0.5
    assert rows["broken"]["error"] == "ValueError: it needs a GPU."
    text = __main__.markdown(json.loads(given.out.read_text()))
    assert "| fake | 0.50 |  |" in text and "abc1234" in text
    assert f"### control: {subjects.CONTROL}" in text and "broken" not in text


def test_a_defence_of_the_text_encoder_gives_a_clip_and_leaves_the_model(studio, tmp_path):
    case = defences.Case(studio, tmp_path)
    concepts = defences.text.parse("fox -> animal")
    case.known[defences.TEXT] = (defences.encoder.solve(studio.clip, concepts)[0],)
    erased = case.erased(defences.TEXT)
    assert erased.model is studio.model and erased.clip is not studio.clip
    assert erased.nbytes == case.known[defences.TEXT][0].nbytes > 0
    said = [s.encode(["a photo of a fox"]) for s in (studio, studio.reading(erased.clip))]
    assert not torch.equal(*said)
    assert case.erased(defences.UNEDITED).clip is None


def test_the_lengths_of_a_training_cost_one_training():
    """An erased subject may be back at the first look; the control trains to the end."""
    looks = [f"inversion 1x{steps}" for steps in (60, 200, 1000)]
    cells = [(look, "none", name) for look in looks for name in ("fox", subjects.CONTROL)]
    spent = attacks.Budget()
    assert __main__.training(cells, spent) == (1060, 2000)
    cells += [("LoRA on 5 pictures", "none", "fox"), (__main__.NONE, "none", "")]
    assert __main__.training(cells, spent) == (1080, 2020)


def test_the_page_gets_its_table_between_the_marks(tmp_path, monkeypatch):
    page, out = tmp_path / "page.md", tmp_path / "revival.json"
    page.write_text("# Title\n\n" + "\nold\n".join(__main__.MARKS) + "\n\nafter\n")
    monkeypatch.setattr(__main__, "PAGE", page)
    monkeypatch.setattr(__main__, "RESULTS", out)
    rows = {"none": {"attacks": {"img2img at 0.5": {"fox": {"revived": 1.0, "commit": "abc"}}}}}
    rows["none"]["attacks"]["img2img at 0.5"]["house"] = {"revived": 0.5, "commit": "abc"}
    __main__.save({"worlds": {"sprites": rows}}, Namespace(out=out))
    text = page.read_text()
    assert text.startswith("# Title\n\n<!--") and text.endswith("\n\nafter\n")
    assert "old" not in text and "| img2img at 0.5 | 0.75 |" in text


def test_what_is_judged_without_an_attack_names_everything_that_is_forgotten():
    shots = __main__.protocol(Fake(), 8).shots
    gone, kept = [s for s in shots if s.gone], [s for s in shots if s.kept]
    assert len(gone) == 8 and len(kept) == 16
    assert {label.what for s in gone for label in s.gone} == {"sprite", "style", "explicit"}
    assert {s.caption.name for s in gone} >= {"fox", "house"}
    assert not {"fox", "house"} & {s.caption.name for s in kept}
    assert not any(label.value == "van gogh" for s in kept for label in s.kept)
