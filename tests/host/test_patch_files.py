"""Patch files: what goes in comes out, and nothing of a damaged or foreign file is used."""

import base64
import io
import json
import struct

import pytest
import torch
from PIL import Image

from testbed import pack

patch_files = pack.module("unlearn.files.patch_file")
pictures = pack.module("unlearn.files.small_picture")
patch_reports = pack.module("unlearn.files.patch_report")
files = pack.module("unlearn.files.safetensors_io")
folders = pack.module("unlearn.host.folders")
adapters = pack.module("unlearn.host.adapters")
patching = pack.module("unlearn.host.patching")
weights = pack.module("unlearn.host.weights")
layers = pack.module("unlearn.host.architectures")
types = pack.module("unlearn.types")
nodes = pack.module("nodes.patch_files")
UnlearnError = pack.module("unlearn.errors").UnlearnError
K, Q, F = (
    f"diffusion_model.input_blocks.1.1.transformer_blocks.0.{x}.weight"
    for x in ("attn2.to_k", "attn2.to_q", "ff.net.2")
)


def run(node, *inputs):
    """A node's output as the host runs it."""
    return node.PREPARE_CLASS_CLONE(None).execute(*inputs)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_patch():
    """Every kind of edit, one factor shared, one key twice."""
    down = rand(3, 12, seed=1)
    sparse = torch.where(rand(8, 12, seed=2) > 1.3, rand(8, 12, seed=3), 0)
    edits = (
        (K, adapters.LowRank.of(rand(8, 3), down)),
        (Q, adapters.LowRank.of(rand(8, 3, seed=4).half(), down)),
        (F, adapters.Prune.of(rand(7, 9) > 0, 7, 9)),
        (F, adapters.Prune.of(rand(9) > 0, 7, 9, "column")),
        (F, adapters.Prune.of(rand(7) > 0, 7, 9, "row")),
        (K, adapters.Delta.of(sparse)),
        (Q, adapters.Delta.of(rand(8, 12).bfloat16())),
        (Q, adapters.Delta.of(torch.zeros(8, 12))),
    )
    said = {
        "method": "ScaPre anchored",
        "settings": {"erase": 100.0, "templates": None},
        "concepts": ["cat", "fox"],
        "keep": ["dog"],
    }
    said |= {"lines": ["object: cat -> animal", "object: fox"], "version": "0.1.0"}
    fingerprint = types.Fingerprint({k: rand(64, seed=i) for i, k in enumerate((K, Q, F))})
    return types.UnlearnPatch(
        edits, fingerprint, (said, {"method": "FIA", "settings": {}, "concepts": ["cat"]})
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.safetensors"
    patch_files.save(path, a_patch())
    return path


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder of the host's."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path / "models"


def test_what_goes_in_comes_out(saved):
    patch, (loaded, metadata) = a_patch(), patch_files.load(saved)
    assert loaded == patch and list(loaded.provenance) == json.loads(json.dumps(patch.provenance))
    for (k, a), (k2, b) in zip(patch.edits, loaded.edits, strict=True):
        assert k == k2 and type(a) is type(b)
        for x, y in zip(a.weights, b.weights, strict=True):
            assert (
                torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y
            )
    assert (
        loaded.fingerprint.difference(patch.fingerprint) == 0
        and loaded.fingerprint.samples.keys() == patch.fingerprint.samples.keys()
    )
    assert metadata["method"] == "ScaPre anchored + FIA" and json.loads(metadata["concepts"]) == [
        "cat",
        "fox",
        "cat",
    ]


def test_a_shared_factor_is_stored_once_and_stays_shared(saved):
    from safetensors import safe_open

    with safe_open(saved, "pt") as f:
        assert "0.down" in f.keys() and "1.down" not in f.keys()
    (_, a), (_, b) = patch_files.load(saved)[0].edits[:2]
    assert a.weights[1] is b.weights[1]


def rewrite(path, change):
    """The file with `change(header, data)` made; lengths are left to the change."""
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + n]), bytearray(raw[8 + n :])
    change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def said(field, change):
    """A change of the JSON that a metadata field holds."""

    def make(header, data):
        value = json.loads(header["__metadata__"][field])
        header["__metadata__"][field] = json.dumps(change(value) or value)

    return make


def tensor(name, **what):
    return lambda header, data: header[name].update(what)


def flip(header, data):
    data[len(data) // 2] ^= 1


def nan(header, data):
    at = header["0.up"]["data_offsets"][0]
    data[at : at + 4] = struct.pack("<f", float("nan"))


def swapped(header, data):
    """Two indices of the sparse delta change places."""
    at = header["5.indices"]["data_offsets"][0]
    data[at : at + 8] = data[at + 4 : at + 8] + data[at : at + 4]


def outside(header, data):
    end = header["5.indices"]["data_offsets"][1]
    data[end - 4 : end] = struct.pack("<i", 8 * 12)


DAMAGE = {
    "flipped bit": flip,
    "nan": nan,
    "indices not ascending": swapped,
    "index outside": outside,
    "tensor cut": lambda h, d: d.__delitem__(slice(len(d) - 4, len(d))),
    "tensor too long": lambda h, d: d.extend(b"1234"),
    "tensor missing": lambda h, d: h.pop("0.up"),
    "tensor of another dtype": tensor("0.up", dtype="I32"),
    "tensor of another shape": tensor("0.up", shape=[3, 8]),
    "tensor of no dimension": tensor("2.mask", shape=[]),
    "offsets outside": tensor("0.up", data_offsets=[0, 10**9]),
    "no edits": said("edits", lambda e: e.clear()),
    "no metadata": lambda h, d: h["__metadata__"].pop("edits"),
    "not json": lambda h, d: h["__metadata__"].update(edits="[{"),
    "deep json": lambda h, d: h["__metadata__"].update(edits="[" * 10**5),
    "edits not a list": lambda h, d: h["__metadata__"].update(edits="7"),
    "edit not an object": said("edits", lambda e: e.__setitem__(0, None)),
    "unknown kind": said("edits", lambda e: e[0].update(kind="run")),
    "unknown field": said("edits", lambda e: e[0].update(more=1)),
    "key of another part": said("edits", lambda e: e[0].update(key="model_sampling.sigmas")),
    "key not a string": said("edits", lambda e: e[0].update(key=3)),
    "size declared larger": said("edits", lambda e: e[2].update(d_out=8)),
    "size negative": said("edits", lambda e: e[2].update(d_out=-7, d_in=-9)),
    "size not whole": said("edits", lambda e: e[2].update(d_out=7.0)),
    "size true": said("edits", lambda e: e[4].update(d_in=True)),
    "size huge": said("edits", lambda e: e[4].update(d_in=10**30)),
    "granularity unknown": said("edits", lambda e: e[2].update(granularity="all")),
    "delta without indices": said("edits", lambda e: e[5].update(indices=None)),
    "tensor by number": said("edits", lambda e: e[0].update(up=0)),
    "mask is a null": said("edits", lambda e: e[2].update(mask=None)),
    "tensor of another edit": said("edits", lambda e: e[0].update(down="5.values")),
    "edits in another order": said("edits", lambda e: list(reversed(e))),
    "provenance not a list": lambda h, d: h["__metadata__"].update(provenance="3"),
    "provenance without method": said("provenance", lambda p: p[0].pop("method")),
    "concepts not text": said("provenance", lambda p: p[0].update(concepts=[1])),
    "concepts another": said("provenance", lambda p: p[0].update(concepts=["dog"])),
    "fingerprint of no weight": lambda h, d: h.update({"fingerprint.x": h.pop(f"fingerprint.{K}")}),
    "fingerprint of another shape": tensor(f"fingerprint.{K}", shape=[8, 8]),
    "checksum missing": lambda h, d: h["__metadata__"].pop("checksum"),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_in_one_sentence(saved, change):
    rewrite(saved, change)
    with pytest.raises(
        UnlearnError, match=r"^The file 'a.safetensors' is damaged \(.*\); get it again.*\.$"
    ) as error:
        patch_files.load(saved)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(saved, tmp_path):
    whole = saved.read_bytes()
    for broken in (
        b"",
        whole[:5],
        whole[: len(whole) // 2],
        b"PK\x03\x04" + whole,
        b"\xff" * 8 + whole[8:],
        whole[:8] + b"[" * 500 + whole[508:],
    ):
        saved.write_bytes(broken)
        with pytest.raises(UnlearnError, match="damaged"):
            patch_files.load(saved)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, saved)
    with pytest.raises(UnlearnError, match="is not an unlearn patch"):
        patch_files.load(saved)
    saved.write_bytes(whole)
    rewrite(saved, lambda h, d: h["__metadata__"].update(format_version="2"))
    with pytest.raises(UnlearnError, match="update ComfyUI-Unlearn"):
        patch_files.load(saved)


def test_writing_is_whole_or_not_at_all(saved, monkeypatch):
    whole = saved.read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(UnlearnError, match="cannot be written .*No space"):
        patch_files.save(saved, a_patch())
    assert saved.read_bytes() == whole and [p.name for p in saved.parent.iterdir()] == [
        "a.safetensors"
    ]

    def stopped(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        patch_files.save(saved, a_patch())
    assert saved.read_bytes() == whole and [p.name for p in saved.parent.iterdir()] == [
        "a.safetensors"
    ]


OUTSIDE = ["../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "", "  ", ".", "..", "x\0y"]


@pytest.mark.parametrize("name", [*OUTSIDE, "a/", ".safetensors"])
def test_no_name_leads_out(models, name):
    """Even where there is a file: a name is refused before it is looked for."""
    (models / "unlearn_patches").mkdir(parents=True)
    (models / "x.safetensors").write_bytes(b"x")
    with pytest.raises(UnlearnError, match="file name"):
        folders.new("unlearn_patches", name)
    refusal = "leads out" if name in OUTSIDE else "There is no file"
    with pytest.raises(UnlearnError, match=refusal):
        folders.find("unlearn_patches", name)
    assert folders.stamp("unlearn_patches", name) == ""


def test_the_folder_is_registered_and_extra_paths_are_searched(models, tmp_path):
    import folder_paths

    extra = tmp_path / "elsewhere"
    extra.mkdir()
    folder_paths.add_model_folder_path("unlearn_patches", str(extra))
    assert folders.folders("unlearn_patches") == [extra, models / "unlearn_patches"]
    patch_files.save(models / "unlearn_patches" / "sub" / "own.safetensors", a_patch())
    patch_files.save(extra / "theirs.safetensors", a_patch())
    (extra / "notes.txt").write_text("no")
    assert folders.listed("unlearn_patches") == ["sub/own.safetensors", "theirs.safetensors"]
    for name in folders.listed("unlearn_patches"):
        assert folders.find("unlearn_patches", name).is_file() and folders.stamp(
            "unlearn_patches", name
        )
    assert folders.new("unlearn_patches", "x.safetensors") == extra / "x.safetensors"


def test_the_nodes_save_list_and_load(models):
    (name,) = run(nodes.SaveUnlearnPatch, a_patch(), "sub/mine").result
    assert name == "sub/mine.safetensors"
    combo = nodes.LoadUnlearnPatch.define_schema().inputs[0]
    assert combo.options == [name]
    before = nodes.LoadUnlearnPatch.fingerprint_inputs(name)
    patch, about = run(nodes.LoadUnlearnPatch, name).result
    assert patch == a_patch() and "object: cat -> animal" in about and "keeps: dog" in about
    run(nodes.SaveUnlearnPatch, a_patch() + a_patch(), "sub/mine")
    assert nodes.LoadUnlearnPatch.fingerprint_inputs(name) != before
    with pytest.raises(UnlearnError, match="There is no file"):
        run(nodes.LoadUnlearnPatch, "other.safetensors")


def grey(level, height=300, width=200):
    return torch.full((1, height, width, 3), level)


def metadata_of(path):
    with files.opened(path) as (metadata, _, _):
        return metadata


def shown(output):
    """The picture [h, w, 3] that a node shows, None where it shows none."""
    import folder_paths
    import numpy as np
    from PIL import Image

    ui = output.ui or {}
    if not ui.get("images"):
        return None
    ui = ui["images"][0]
    path = f"{folder_paths.get_temp_directory()}/{ui['subfolder']}/{ui['filename']}"
    return torch.from_numpy(np.asarray(Image.open(path), np.float32) / 255)


def test_a_patch_carries_a_small_picture_that_its_nodes_show(models):
    run(nodes.SaveUnlearnPatch, a_patch(), "mine", "replace", grey(0.2), grey(0.8))
    output = run(nodes.LoadUnlearnPatch, "mine.safetensors")
    patch = output.result[0]
    assert patch == a_patch()  # the picture does not make it another patch
    for node in (output, run(nodes.UnlearnPatchInfo, patch)):
        picture = shown(node)
        assert picture.shape == (256, 2 * 171 + 4, 3)
        assert picture[:, :160].mean() == pytest.approx(0.2, abs=0.02)
        assert picture[:, -160:].mean() == pytest.approx(0.8, abs=0.02)
    run(nodes.SaveUnlearnPatch, patch, "again")
    again = run(nodes.LoadUnlearnPatch, "again.safetensors").result[0]
    assert again.picture == patch.picture and (patch + patch).picture == ""


def test_a_patch_without_a_picture_shows_none(models):
    run(nodes.SaveUnlearnPatch, a_patch(), "plain")
    assert shown(run(nodes.LoadUnlearnPatch, "plain.safetensors")) is None
    assert "picture" not in metadata_of(folders.find("unlearn_patches", "plain.safetensors"))


def test_large_and_noisy_pictures_stay_small():
    noise = torch.rand(1, 700, 3000, 4, generator=torch.Generator().manual_seed(0))
    text = pictures.encoded([noise, noise[:, :, :700]])
    assert 0 < len(text) <= pictures.LARGEST
    assert pictures.decoded(text).shape == (1, 256, 256 + 4 + 256, 3)
    assert pictures.encoded([]) == "" and pictures.decoded("") is None


def damaged_pictures():
    good = pictures.encoded([grey(0.5)])
    large = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(large, "JPEG", quality=1)
    other = io.BytesIO()
    Image.new("RGB", (8, 8)).save(other, "PNG")
    return {
        "no base64": "not base64!",
        "other letters": "\u00e9" * 40,
        "cut": good[: len(good) // 2 // 4 * 4],
        "no picture": base64.b64encode(b"hello").decode(),
        "too long": "A" * (pictures.LARGEST + 4),
        "too many pixels": base64.b64encode(large.getvalue()).decode()[: pictures.LARGEST],
        "a PNG": base64.b64encode(other.getvalue()).decode(),
    }


@pytest.mark.parametrize("name", damaged_pictures())
def test_a_damaged_picture_never_stops_a_load(saved, tmp_path, name):
    with files.opened(saved) as (metadata, header, read):
        tensors = {n: read(n) for n in header}
    path = tmp_path / "b.safetensors"
    files.write(path, tensors, metadata | {"picture": damaged_pictures()[name]})
    patch, _ = patch_files.load(path)
    assert patch == a_patch() and patch.picture == ""


def for_model(model, key, edit):
    return types.UnlearnPatch(
        ((key, edit),), weights.fingerprint(model, [key]), ({"method": "m", "concepts": ["cat"]},)
    )


def test_info_tells_what_is_in_a_patch_and_whose_it_is(loaded):
    model = loaded[0]
    (text,) = run(nodes.UnlearnPatchInfo, a_patch()).result
    for words in (
        "forgets: object: cat -> animal, object: fox",
        "erase 100.0",
        "rank 3",
        "pruning:",
        "change by value",
        "8 edits of 3 weights",
    ):
        assert words in text, text
    key = layers.feed_forward(model)[0].key
    edit = adapters.Prune.of(torch.ones(1280).bool(), 320, 1280, "column")
    mine = for_model(model, key, edit)
    assert "409,600 of 409,600" in patch_reports.describe(
        mine, model
    ) and "for this very model" in patch_reports.describe(mine, model)
    other = types.UnlearnPatch(mine.edits, types.Fingerprint({key: rand(64)}), mine.provenance)
    assert "WARNING" in patch_reports.describe(other, model)
    with pytest.raises(UnlearnError, match="lacks 2 of the weights|of shape"):
        patch_reports.describe(a_patch(), model)


def test_a_fingerprint_of_another_size_or_weight_is_refused(loaded):
    model = loaded[0]
    key = layers.feed_forward(model)[0].key
    edit = adapters.Prune.of(torch.ones(1280).bool(), 320, 1280, "column")
    short = types.UnlearnPatch(((key, edit),), types.Fingerprint({key: rand(10)}))
    with pytest.raises(UnlearnError, match="fingerprint"):
        patching.apply(model, short)
    foreign = types.UnlearnPatch(
        ((key, edit),), types.Fingerprint({"diffusion_model.nowhere.weight": rand(64)})
    )
    with pytest.raises(UnlearnError, match="lacks 1 of the weights"):
        patching.apply(model, foreign)


def test_a_patched_model_says_what_was_applied(loaded):
    model = loaded[0]
    key = layers.feed_forward(model)[0].key
    patch = for_model(model, key, adapters.Prune.of(torch.ones(1280).bool(), 320, 1280, "column"))
    once, _ = patching.apply(model, patch, 0.5)
    twice, _ = patching.apply(once.clone(), patch, 1.0)
    assert patching.manifest(model) == () and [m["strength"] for m in patching.manifest(twice)] == [
        0.5,
        1.0,
    ]
    assert [m["strength"] for m in patching.manifest(once)] == [0.5] and patching.manifest(twice)[
        0
    ]["concepts"] == ["cat"]


@pytest.mark.parametrize("stacked", [1, 2])
def test_applying_builds_one_state_dict_however_many_weights_are_patched(
    loaded, monkeypatch, stacked
):
    """A state dict of SDXL has thousands of entries, and a patch of it changes 140 weights."""
    model = loaded[0]
    keys = [layer.key for layer in layers.cross_attention(model)]
    assert len(keys) == 8
    edits = [
        (key, adapters.LowRank.of(rand(weights.shape(model, key)[0], 1), rand(1, 768)))
        for key in keys
    ]
    patch = types.UnlearnPatch(
        tuple(edits) * stacked,
        weights.fingerprint(model, keys),
        ({"method": "m", "concepts": ["cat"]},),
    )
    model.model_size()  # the host's first clone of a model counts its bytes over a state dict
    built, real = [], type(model.model).state_dict

    def state_dict(self, *args, **rest):
        built.append(self)
        return real(self, *args, **rest)

    monkeypatch.setattr(type(model.model), "state_dict", state_dict)
    patched, _ = patching.apply(model, patch)
    assert len(built) == stacked  # one for each edit of one and the same weight
    assert all(len(patched.patches[key]) == stacked for key in keys)


def test_edits_of_one_weight_go_in_first_to_last(loaded):
    model = loaded[0]
    key = layers.feed_forward(model)[0].key
    low = adapters.LowRank.of(rand(320, 1), rand(1, 1280))
    all_of_it = adapters.Prune.of(torch.ones(1280).bool(), 320, 1280, "column")
    for edits, left in (((low, all_of_it), False), ((all_of_it, low), True)):
        patch = types.UnlearnPatch(
            tuple((key, edit) for edit in edits),
            weights.fingerprint(model, [key]),
            ({"method": "m", "concepts": []},) * 2,
        )
        patched, _ = patching.apply(model, patch)
        assert bool(weights.read(patched, key).any()) == left
