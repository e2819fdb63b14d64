"""The demo: what it draws in which world, and its sheet."""

import numpy as np
import pytest
from PIL import Image

from testbed import demo, graphs, judged, sheet
from testbed.worlds.evaluate import Look

WORLDS = pytest.mark.parametrize("task", (judged.SPRITES, judged.EMOJI), ids=("sprites", "emoji"))


def look(*names, style=None):
    return Look(names, style, False, ())


@WORLDS
def test_what_is_forgotten_and_kept_is_in_the_world(task):
    world = task.world
    assert {*task.forget, *task.others} <= {*world.objects} and task.style in world.styles
    assert not {*task.forget} & {*task.others}
    lines = task.forget_lines(task.gone).split("\n")
    assert lines[0] == f"fox -> {world.superclass['fox']}" and lines[-1] == f"style: {task.style}"
    assert task.forget_lines([task.style], "style") == task.style
    assert {*task.pruned} <= {*world.bitmaps, *world.styles} and not {*task.pruned} & {*task.gone}
    kept = task.keep_lines(task.gone).split("\n")
    assert {*kept, *task.gone} == {*world.objects, *world.styles}
    assert not {*kept} & {*task.gone}


@WORLDS
def test_the_demo_draws_look_alikes_styles_and_pairs(task):
    shots = task.few_shots()
    assert len({s.caption.text for s in shots}) == len(shots)
    kept = [s.caption for s in shots if not s.forgot]
    gone = [s.caption for s in shots if s.forgot]
    assert {task.world.twin[n] for n in task.forget} <= {c.name for c in kept if c.style is None}
    for part in (gone, kept):
        assert any(c.style for c in part) and any(c.second for c in part)
        assert any(not c.style and not c.second for c in part)
    assert not any({c.name, c.second, c.style} & {*task.gone} for c in kept)
    for part in (gone, kept):  # the sheet has no holes
        placed = sheet.rows([1 + (c.second is not None) for c in part])
        assert all(len(row) + sum(bool(part[i].second) for i, _ in row) == 4 for row in placed)


def test_labels_of_a_picture():
    task = judged.EMOJI
    shots = {s.caption.text: s for s in task.few_shots()}
    gone = {
        "an image of a fox": [(look("fox"), [(True, True)]), (look("wolf"), [(True, False)])],
        "a fox by twemoji": [(look("wolf", style="twemoji"), [(True, False)])],
        "a wolf by line art": [(look("nothing", style="line art"), [(True, True)])],
        "a robot by twemoji": [
            (look("robot", style="fluent"), [(False, True), (False, False)]),
        ],
        "a photo of a house and a taxi": [
            (look("church", "taxi"), [(True, False), (False, True)]),
        ],
    }
    for text, cases in gone.items():
        for seen, labels in cases:
            assert shots[text].labels(seen) == labels, text


@WORLDS
def test_each_shot_is_drawn_before_and_after_with_one_seed(task):
    plan = task.few_shots()
    graph, (before, after) = demo.graph(task, plan, 3)
    side = 8 * task.world.size
    (loader,) = [n for n in graph.values() if n["class_type"] == "CheckpointLoaderSimple"]
    assert loader["inputs"]["ckpt_name"] == task.world.checkpoint
    for k, shot in enumerate(plan):
        samplers = []
        for save in (before, after):
            node = graph[f"{save}_{k}"]
            while node["class_type"] != "KSampler":
                name = "images" if node["class_type"] == "SaveImage" else "samples"
                node = graph[node["inputs"][name][0]]
            samplers.append(node["inputs"])
        first, second = samplers
        assert first["seed"] == second["seed"] and first["model"] != second["model"]
        for inputs in samplers:
            assert graph[inputs["positive"][0]]["inputs"]["text"] == shot.caption.text
            size = graph[inputs["latent_image"][0]]["inputs"]
            wide = 1 + (shot.caption.second is not None)
            assert (size["width"], size["height"]) == (wide * side, side)
    assert graphs.titled(graph, "Report in Words")


@pytest.mark.parametrize("size", (8, 16))
def test_pixels_are_those_that_the_model_drew(size):
    small = np.random.default_rng(0).integers(0, 256, (size, 2 * size, 3), np.uint8)
    big = Image.fromarray(small).resize((16 * size, 8 * size), Image.NEAREST)
    found = demo.pixels(big)
    assert found.shape == (3, size, 2 * size)
    assert np.array_equal((found * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0), small)


def test_the_sheet_shows_every_picture_and_marks_it(tmp_path):
    """Forgotten ones first; a pair takes two places; 64 pixels are enlarged to 128."""
    red, blue = (Image.new("RGB", (64, 64), c) for c in ("red", "blue"))
    pair = Image.new("RGB", (256, 128), "lime")
    shots = [("kept", False), ("forgotten", True), ("pair", True)]
    pictures = [[red, red, pair], [blue, blue, pair]]
    there, lost = [(False, True)], [(False, False)]
    rights = [[there, [(True, True)], there], [lost, [(True, False)], there]]
    sheet.save(shots, pictures, rights, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        found = np.asarray(image.convert("RGB")).astype(int)
    ys, xs = np.nonzero((found == (0, 255, 0)).all(-1))
    assert len(set(xs)) == 2 * 256 and len(set(ys)) == 128
    reds, blues = ((found == c).all(-1) for c in ((255, 0, 0), (0, 0, 255)))
    assert min(reds.sum(), blues.sum()) > 2 * 128 * 128 - 2 * 400
    assert np.nonzero(reds)[1].max() < np.nonzero(blues)[1].min()  # before stands left
    signs = {c: (found == c).all(-1).sum() for c in (sheet.GOOD, sheet.BAD)}
    assert signs[sheet.GOOD] > 4 * signs[sheet.BAD] > 0  # one cross: what was kept is lost
