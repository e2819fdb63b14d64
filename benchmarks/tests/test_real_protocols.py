"""The protocols for real checkpoints, end to end on fake data.

A few rows, the sprite world's checkpoint, and judges that are told what to see.
"""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.published import artists, attack, coco, i2p, imagenette, judges, real
from testbed import pack

PROTOCOLS = {m.__name__.rpartition(".")[2]: m for m in (artists, attack, coco, i2p, imagenette)}

FAST = ["--steps", "2", "--size", "64", "--cfg", "3", "--set", "prior=false", "--json"]
HEAD = "case_number,prompt,class,evaluation_seed\n"
SIX = HEAD + "".join(
    f"{i},an image of a {n},{n},{100 + i}\n" for i, n in enumerate(["tench"] * 3 + ["church"] * 3)
)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file of ResNet-50's weights that sees a tench in everything."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    labels = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    state = network.state_dict()
    state["fc.bias"][labels.index("tench")] += 1e4
    path = tmp_path_factory.mktemp("judge") / "resnet50.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def nudenet(monkeypatch):
    """A NudeNet that finds in every second picture a belly at 0.6, twice, and feet at 0.59.

    Every picture also has a face, at 0.8.
    """

    class NudeDetector:
        def detect(self, path):
            Image.open(path).verify()
            found = [
                {"class": "BELLY_EXPOSED", "score": 0.6},
                {"class": "BELLY_EXPOSED", "score": 0.9},
                {"class": "FEET_EXPOSED", "score": 0.59},
            ]
            return found * (int(path[-5]) % 2) + [{"class": "FACE_FEMALE", "score": 0.8}]

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=NudeDetector))


@pytest.fixture
def open_clip(monkeypatch, tmp_path):
    """open_clip with a picture's mean colour as feature; texts with 'red' are red, others green."""
    import torchvision

    network = torch.nn.Identity()
    network.encode_image = lambda x: x.mean((2, 3)) + 0.01
    network.encode_text = lambda tokens: torch.stack(
        [torch.eye(3)[0 if t else 1] for t in tokens.tolist()]
    )

    def made(name, pretrained):
        return (network, None, torchvision.transforms.ToTensor())

    def tokenizer(name):
        return lambda lines: torch.tensor(["red" in line for line in lines])

    monkeypatch.setitem(
        sys.modules,
        "open_clip",
        types.SimpleNamespace(create_model_and_transforms=made, get_tokenizer=tokenizer),
    )
    path = tmp_path / "clip.safetensors"
    path.touch()
    return path


@pytest.fixture
def torchmetrics(monkeypatch, tmp_path):
    """FID as the difference of how many pictures there are on each side."""

    class FrechetInceptionDistance(torch.nn.Module):
        device = "cpu"

        def __init__(self, feature_extractor_weights_path):
            super().__init__()
            assert feature_extractor_weights_path
            self.reset()

        def reset(self):
            self.seen = {True: 0, False: 0}

        def update(self, x, real):
            assert x.dtype == torch.uint8 and x.shape[1] == 3
            self.seen[real] += len(x)

        def compute(self):
            return torch.tensor(float(self.seen[True] - self.seen[False]))

    monkeypatch.setitem(
        sys.modules,
        "torchmetrics.image.fid",
        types.SimpleNamespace(FrechetInceptionDistance=FrechetInceptionDistance),
    )
    monkeypatch.setitem(sys.modules, "torchmetrics.image", types.ModuleType("torchmetrics.image"))
    monkeypatch.setitem(sys.modules, "torchmetrics", types.ModuleType("torchmetrics"))
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    path = tmp_path / "inception.pth"
    path.touch()
    return path


@pytest.fixture
def sampled(monkeypatch):
    """The noise of every batch that ComfyUI's sampler is given; sampling goes on as ever."""
    import comfy.sample

    plain, seen = comfy.sample.sample, []

    def sample(model, noise, *args, **more):
        seen.append(noise)
        return plain(model, noise, *args, **more)

    monkeypatch.setattr(comfy.sample, "sample", sample)
    return seen


@pytest.fixture
def bench(checkpoint, loaded, tmp_path, monkeypatch, capsys):
    """Runs a benchmark on files written to a data folder and returns its JSON.

    The checkpoint is read once for all tests. The forecast of an edit has a few words only, because
    no test here looks at it.
    """
    import comfy.sd

    monkeypatch.setattr(
        pack.module("unlearn.concepts.sentences"),
        "prior_words",
        lambda: ("bread", "river", "hat"),
    )
    monkeypatch.setattr(comfy.sd, "load_checkpoint_guess_config", lambda path: loaded)
    data, out = tmp_path / "data", tmp_path / "out"

    def run(name, files, *more, fast=FAST):
        data.mkdir(exist_ok=True)
        for file, content in files.items():
            (data / file).write_text(content, encoding="utf-8")
        monkeypatch.setattr(
            sys,
            "argv",
            [
                name,
                "--checkpoint",
                str(checkpoint),
                "--data",
                str(data),
                "--out",
                str(out),
                *fast,
                *map(str, more),
            ],
        )
        PROTOCOLS[name].main()
        said = capsys.readouterr()
        run.log, run.table = said.err, said.out
        return json.loads(said.out.splitlines()[-1])

    run.data, run.out = data, out
    return run


@pytest.mark.world
def test_imagenette_from_the_rows_to_the_results(bench, resnet, sampled):
    how = ("--judge-weights", resnet, "--forget", "tench", "--batch", "2")
    found = bench("imagenette", {"imagenette.csv": SIX}, *how)
    assert found["measured"]["before"]["classes"] == {"tench": 100.0, "church": 0.0}
    assert (
        found["measured"]["after"]["forgot"] == 100.0 and found["measured"]["after"]["kept"] == 0.0
    )
    assert found["provenance"][0]["concepts"] == ["tench"] and found["rows"] == 6
    assert json.loads((bench.out / "results_scapre.json").read_text()) == found
    assert "as published: ScaPre" in bench.table and "as published: Forget-It-All" in bench.table

    def row(name):
        return next(
            line.split("|")[0].split() for line in bench.table.splitlines() if line.startswith(name)
        )

    assert row("tench") == ["tench", "100.00", "100.00"] and row("gas pump")[-2:] == ["-", "-"]
    # each row has the noise of its own seed, before and after alike
    want = torch.stack(
        [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(100 + i)) for i in range(6)]
    )
    assert (
        torch.equal(torch.cat(sampled), torch.cat([want, want]))
        and [len(x) for x in sampled] == [2] * 6
    )
    plain, edited = ((bench.out / f / "00000.png").read_bytes() for f in ("plain", "edit_scapre"))
    assert plain != edited

    # again: the patch is read, nothing is drawn
    sampled.clear()
    times = {p: p.stat().st_mtime_ns for p in bench.out.rglob("*.png")}
    assert len(times) == 12
    assert bench("imagenette", {}, *how)["measured"] == found["measured"]
    assert not sampled and "the edit is in" in bench.log

    # a lost picture and a damaged one are drawn again, by the very seed
    lost, damaged = bench.out / "plain" / "00004.png", bench.out / "edit_scapre" / "00001.png"
    was = lost.read_bytes(), damaged.read_bytes()
    lost.unlink()
    damaged.write_bytes(was[1][: len(was[1]) // 2])
    assert bench("imagenette", {}, *how)["measured"] == found["measured"]
    assert sum(map(len, sampled)) == 2

    def near(a, b):
        return (
            torch.frombuffer(bytearray(a.tobytes()), dtype=torch.uint8).int()
            - torch.tensor(list(b.tobytes()))
        ).abs().max() <= 1

    # A picture is alone in its batch now, so it is equal up to rounding.
    for path, before in ((lost, was[0]), (damaged, was[1])):
        path.with_suffix(".was").write_bytes(before)
        assert near(Image.open(path), Image.open(path.with_suffix(".was")))
    others = {p: t for p, t in times.items() if p not in (lost, damaged)}
    assert others and {p: p.stat().st_mtime_ns for p in others} == others

    # another guidance is another picture
    sampled.clear()
    bench("imagenette", {}, *how, "--cfg", "2", "--limit", "1")
    assert sum(map(len, sampled)) == 4  # one of each class, before and after


@pytest.mark.world
def test_edits_fia_patch_and_none(bench, resnet):
    fia = [
        x
        for name in ("prompts=2", "steps=2", "window=1", "size=64", "score=wanda", "r2=0.02")
        for x in ("--set", name)
    ]
    how = ("--judge-weights", resnet, "--limit", "1")
    fast = ["--steps", "2", "--size", "64", "--json"]
    found = bench("imagenette", {"imagenette.csv": SIX}, *how, "--edit", "fia", *fia, fast=fast)
    assert (
        found["provenance"][0]["method"] == "FIA"
        and found["provenance"][0]["settings"]["r2"] == 0.02
    )
    (patch,) = bench.out.glob("fia_*.safetensors")
    again = bench("imagenette", {}, *how, "--edit", f"patch:{patch}", fast=fast)
    assert again["measured"] == found["measured"] and again["provenance"] == found["provenance"]
    plain = bench("imagenette", {}, *how, "--edit", "none", fast=fast)
    assert plain["measured"]["after"] is None and plain["provenance"] == []
    assert (bench.out / "results_none.json").exists() and (
        bench.out / f"results_{patch.stem}.json"
    ).exists()


@pytest.mark.world
def test_i2p_counts_body_parts(bench, nudenet):
    prompts = "prompt,categories,sd_seed\n" + "".join(
        f'"(someone), no. {i}, {"x " * 90 if i else ""}","{c}",{4261553411 + i}\n'
        for i, c in enumerate(["sexual, hate"] * 4 + ["hate"] * 2)
    )
    found = bench("i2p", {"i2p.csv": prompts}, "--forget", "naked, nude")
    before = found["measured"]["before"]
    assert (
        before["counts"]["Belly"] == 6
        and before["counts"]["Feet"] == 0
        and before["counts"]["Total"] == 6
    )
    assert (
        before["pictures"]["Total"] == before["shown"] == 3
        and found["measured"]["after"]["counts"] == before["counts"]
    )
    assert found["provenance"][0]["lines"] == ["explicit: naked", "explicit: nude"]
    assert bench("i2p", {}, "--edit", "none", "--category", "sexual", "--limit", "3")["rows"] == 3
    assert bench("i2p", {}, "--edit", "none", "--category", "sexual")["rows"] == 4


@pytest.mark.world
def test_artists_by_clip(bench, open_clip):
    prompts = "case_number,prompt,artist,evaluation_seed\n" + "".join(
        f"{i},a house by {a},{a},{i}\n" for i, a in enumerate(["red monet", "klimt"] * 3)
    )
    found = bench(
        "artists", {"artists.csv": prompts}, "--judge-weights", open_clip, "--forget", "klimt"
    )["measured"]
    for when, folder in (("before", "plain"), ("after", "edit_scapre")):
        colours = (
            torch.stack(
                [
                    judges.as_bytes(judges.opened(bench.out / folder / f"{i:05}.png"))
                    .float()
                    .mean((1, 2))
                    / 255
                    for i in range(6)
                ]
            )
            + 0.01
        )
        colours = colours / colours.norm(dim=1, keepdim=True)
        assert found[when]["erased"]["clip"] == pytest.approx(
            100 * float(colours[1::2, 1].mean()), abs=0.01
        )
        assert found[when]["kept"]["clip"] == pytest.approx(
            100 * float(colours[0::2, 0].mean()), abs=0.01
        )
        assert found[when]["h_a"] == pytest.approx(
            found[when]["kept"]["clip"] - found[when]["erased"]["clip"]
        )
        right = 100 * (colours[1::2, 1] > colours[1::2, 0]).float().mean()
        assert found[when]["erased"]["accuracy"] == pytest.approx(float(right))
    assert found["fsr"] in (0.0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100.0)


@pytest.mark.world
def test_coco_by_clip_and_fid(bench, open_clip, torchmetrics):
    prompts = "case_number,source,prompt,evaluation_seed,coco_id\n" + "".join(
        f"{i},coco,a red house no. {i},{i},{i}\n" for i in range(6)
    )
    photographs = bench.data / "images"
    photographs.mkdir(parents=True)
    for i, size in enumerate([(40, 30), (30, 40), (40, 30), (8, 8)]):
        Image.new("RGB", size, (i, 0, 0)).save(photographs / f"{i}.jpg")
    how = ("--judge-weights", open_clip, "--fid-weights", torchmetrics)
    found = bench("coco", {"coco.csv": prompts}, *how, "--forget", "fox")["measured"]
    assert found["before"]["fid"] == found["after"]["fid"] == -2.0 and found["fid_sd"] == 0.0
    assert 0 < found["before"]["clip"] <= 100
    assert (
        bench("coco", {}, "--judge-weights", open_clip, "--no-fid", "--edit", "none")["measured"][
            "before"
        ]["fid"]
        is None
    )


@pytest.mark.world
def test_attack_erases_each_concept_alone(bench, nudenet, resnet):
    prompts = "case_number,prompt,evaluation_seed,evaluation_guidance\n" + "".join(
        f"{i},Photo no. {i}.,{i},7.5\n" for i in range(2)
    )
    files = {
        "nudity.csv": prompts,
        "tench.csv": prompts,
        "garbage_truck.csv": prompts,
        "vangogh.csv": prompts,
    }
    found = bench("attack", files, "--judge-weights", resnet, "--threshold", "0.75")
    assert {name: row["before"] for name, row in found["measured"].items()} == {
        "nudity": 50.0,
        "tench": 100.0,
        "garbage truck": 0.0,
    }
    assert [p["concepts"][:1] for p in found["provenance"]] == [
        ["garbage truck"],
        ["nude"],
        ["tench"],
    ]
    assert "vangogh.csv is left out" in bench.log and found["rows"] == 6


def refused(bench, name, files, *more):
    with pytest.raises(SystemExit) as error:
        bench(name, files, *more)
    (line,) = str(error.value).splitlines()
    return line


def test_every_missing_thing_is_one_sentence(bench, resnet, monkeypatch, tmp_path, checkpoint):
    def say(name, files, *more):
        return refused(bench, name, files, *more)

    rows = {"imagenette.csv": SIX}
    nowhere = tmp_path / "nowhere.pth"
    assert "'--data' is" in say("imagenette", {}, "--data", nowhere)
    assert "holds 0 .csv files" in say("imagenette", {})
    assert "no column 'class'" in say(
        "imagenette", {"imagenette.csv": "prompt,evaluation_seed\nx,1\n"}
    )
    assert "no column 'evaluation_seed'" in say(
        "imagenette", {"imagenette.csv": "prompt,class\nx,tench\n"}
    )
    assert "no column 'prompt'" in say("imagenette", {"imagenette.csv": ""})
    assert "has no rows" not in say(
        "imagenette", {"imagenette.csv": HEAD + "0,x,tench,one\n"}
    ) and "whole number" in say("imagenette", {})
    assert "no rows" in say("imagenette", {"imagenette.csv": HEAD})
    assert "'--judge-weights' is not given" in say("imagenette", rows)
    assert "which is not there" in say("imagenette", rows, "--judge-weights", nowhere)
    (tmp_path / "other.pth").write_bytes(b"no weights")
    assert "does not fit ResNet" in say(
        "imagenette", rows, "--judge-weights", tmp_path / "other.pth"
    )
    judged = ("--judge-weights", resnet)
    assert "none that ResNet-50 knows" in say(
        "imagenette", {"imagenette.csv": SIX.replace("church", "sprite")}, *judged
    )
    assert "'--checkpoint' names" in say("imagenette", rows, *judged, "--checkpoint", nowhere)
    assert "use scapre, fia, patch:FILE or none" in say(
        "imagenette", rows, *judged, "--edit", "esd"
    )
    assert "names the patch" in say("imagenette", rows, *judged, "--edit", f"patch:{nowhere}")
    assert "has no '='" in say("imagenette", rows, *judged, "--set", "erase")
    assert "has no setting 'eraze'" in say("imagenette", rows, *judged, "--set", "eraze=1")
    assert "FIA has no setting 'prior'" in say("imagenette", rows, *judged, "--edit", "fia")
    caption = {"coco.csv": "prompt,evaluation_seed\nx,1\n"}
    for module, name, files, more in (
        ("nudenet", "i2p", {"i2p.csv": "prompt,sd_seed\nx,1\n"}, ()),
        (
            "open_clip",
            "artists",
            {"artists.csv": "prompt,artist,seed\nx,y,1\n"},
            ("--judge-weights", resnet),
        ),
        ("torchvision.models", "imagenette", rows, ("--judge-weights", resnet)),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        assert "is not installed" in say(
            name, files, *more
        ) and "benchmarks/requirements.txt" in say(name, files, *more)
    (
        (bench.data / "imagenette.csv").unlink(),
        (bench.data / "i2p.csv").unlink(),
        (bench.data / "artists.csv").unlink(),
    )
    assert "open-clip-torch" in say("coco", caption)


def test_missing_things_of_coco_and_fid(bench, open_clip, monkeypatch, request, tmp_path):
    caption = {"coco.csv": "prompt,evaluation_seed\nx,1\n"}
    how = ("--judge-weights", open_clip)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    assert "'torchmetrics' is not installed" in refused(bench, "coco", caption, *how)
    inception = request.getfixturevalue("torchmetrics")
    assert "'--fid-weights' is not given" in refused(bench, "coco", caption, *how)
    assert "has no photographs" in refused(bench, "coco", caption, *how, "--fid-weights", inception)
    assert "'--forget' is empty" in refused(bench, "coco", caption, *how, "--no-fid")
    (tmp_path / "data" / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / "0.png")
    assert "needs two at least" in refused(
        bench, "coco", caption, *how, "--fid-weights", inception, "--edit", "none"
    )


def test_what_is_no_checkpoint(tmp_path):
    for name in ("no.safetensors", "no.ckpt"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(real.UnlearnError, match="no checkpoint that ComfyUI reads"):
            real.load(tmp_path / name)


def test_rows_keep_their_numbers_only_where_they_are_unique(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("﻿case_number,prompt,evaluation_seed\n7,x,1\n9,y,2.0\n", encoding="utf-8")
    assert [(r.number, r.seed) for r in real.rows(path)] == [(7, 1), (9, 2)]
    path.write_text("case_number,prompt,evaluation_seed\n7,x,1\n7,y,2\n")
    assert [r.number for r in real.rows(path)] == [0, 1]


@pytest.mark.world
def test_long_prompts_end_where_the_encoder_does_and_parentheses_are_literal(loaded):
    clip = loaded[1]
    with torch.inference_mode():
        positive, negative = real.conditioning(clip, ["x " * 200, "a (cat)"], 64)
        assert positive[0][0].shape[:2] == (2, 77) and negative[0][0].shape[0] == 1
        plain = clip.encode_from_tokens_scheduled(clip.tokenize("a \\(cat\\)"))[0][0]
        emphasis = clip.encode_from_tokens_scheduled(clip.tokenize("a (cat)"))[0][0]
    assert torch.equal(positive[0][0][1:], plain) and not torch.equal(plain, emphasis)


@pytest.mark.parametrize("name", ["imagenette", "artists", "i2p", "coco", "attack"])
def test_published_tables_are_whole(name):
    tables = real.published(name)
    assert tables
    for table in tables:
        assert table["columns"] and table["rows"]
        assert table["source"] and table["known"] and table["unit"]
        for column in table["columns"].values():
            assert len(column) == len(table["rows"])
        for total, how in (("average", lambda x: sum(x) / len(x)), ("Total", sum)):
            if total in table["rows"] and table["rows"].index(total) > 1:
                at = table["rows"].index(total)
                for column in table["columns"].values():
                    if None not in column[:at]:
                        known = (table["source"], column)
                        assert how(column[:at]) == pytest.approx(column[at], abs=0.5), known


def test_every_optional_package_is_in_the_requirements():
    folder = Path(real.__file__).parent
    asked = {
        a or b
        for f in folder.glob("*.py")
        for a, b in re.findall(r'need\("[\w.]+", "([\w-]+)"\)|need\("(\w+)"\)', f.read_text())
    }
    listed = {
        re.match(r"[\w-]+", line)[0]
        for line in (folder.parent / "requirements.txt").read_text().splitlines()
        if line[0] != "#"
    }
    assert (
        {"open-clip-torch", "nudenet", "torchmetrics"}
        <= asked
        <= listed | {"torchvision", "torch-fidelity"}
    )
