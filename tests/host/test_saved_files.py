"""Links that the user made, files that are not ours, and files deleted since they were saved."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from testbed import pack

folders, saved_files = (pack.module(f"unlearn.host.{n}") for n in ("folders", "saved_files"))
patch_file, safetensors_io = (
    pack.module(f"unlearn.files.{n}") for n in ("patch_file", "safetensors_io")
)
adapters, types = pack.module("unlearn.host.adapters"), pack.module("unlearn.types")
concepts_node, patch_nodes = (
    pack.module(f"nodes.{n}") for n in ("unlearn_concepts", "patch_files")
)
UnlearnError = pack.module("unlearn.errors").UnlearnError
KEY = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A folder with `models`, `input` and `output` that ComfyUI takes for its own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(
            folder_paths, f"get_{name}_directory", lambda name=name: str(tmp_path / name)
        )
    return tmp_path


def a_patch(seed=0):
    g = torch.Generator().manual_seed(seed)
    edit = adapters.LowRank.of(torch.randn(8, 2, generator=g), torch.randn(2, 8, generator=g))
    provenance = ({"method": "m", "concepts": ["fox"]},)
    return types.UnlearnPatch(((KEY, edit),), types.Fingerprint({KEY: torch.ones(8)}), provenance)


def test_links_that_the_user_made_are_followed(host):
    """Case 05: they were offered in the menu and refused when chosen."""
    disk, patches = host / "disk", host / "models" / "unlearn_patches"
    (disk / "sd15").mkdir(parents=True)
    patches.mkdir(parents=True)
    patch_file.save(disk / "sd15" / "old.safetensors", a_patch())
    patch_file.save(disk / "one.safetensors", a_patch(1))
    (disk / "names.txt").write_text("fox\n")
    (patches / "sd15").symlink_to(disk / "sd15")
    (patches / "one.safetensors").symlink_to(disk / "one.safetensors")
    (host / "input" / "names.txt").symlink_to(disk / "names.txt")
    assert folders.listed("unlearn_patches") == ["one.safetensors", "sd15/old.safetensors"]
    for name in folders.listed("unlearn_patches"):
        assert patch_file.load(folders.find("unlearn_patches", name))[0].provenance
        assert folders.stamp("unlearn_patches", name)
    assert "names.txt" in concepts_node.list_files()
    assert concepts_node.file_path("names.txt").read_text() == "fox\n"
    new = folders.new("unlearn_patches", "sd15/new")
    patch_file.save(new, a_patch(2))
    assert folders.name_of("unlearn_patches", new) == "sd15/new.safetensors"
    assert (disk / "sd15" / "new.safetensors").is_file()


def test_a_whole_linked_models_folder_works(host):
    (host / "disk").mkdir()
    (host / "models").mkdir()
    (host / "models" / "unlearn_patches").symlink_to(host / "disk")
    path = folders.new("unlearn_patches", "a/b")
    patch_file.save(path, a_patch())
    assert folders.name_of("unlearn_patches", path) == "a/b.safetensors"
    assert folders.find("unlearn_patches", "a/b.safetensors") == path
    assert (host / "disk" / "a" / "b.safetensors").is_file()


def test_saving_over_a_linked_file_writes_where_it_points(host):
    patches, target = host / "models" / "unlearn_patches", host / "disk" / "one.safetensors"
    patches.mkdir(parents=True)
    patch_file.save(target, a_patch(1))
    (patches / "one.safetensors").symlink_to(target)
    patch_file.save(folders.new("unlearn_patches", "one"), a_patch(2))
    assert (patches / "one.safetensors").is_symlink()
    assert patch_file.load(target)[0] == a_patch(2)


@pytest.mark.parametrize("name", ["../x", "sd15/../../x", "/etc/passwd", "..", "sd15/..", "a\0b"])
def test_names_that_climb_out_are_refused(host, name):
    disk = host / "disk" / "sd15"
    disk.mkdir(parents=True)
    (host / "disk" / "x.safetensors").write_bytes(b"secret")
    patches = host / "models" / "unlearn_patches"
    patches.mkdir(parents=True)
    (patches / "sd15").symlink_to(disk)
    for ask in (folders.find, folders.new):
        with pytest.raises(UnlearnError, match="file name"):
            ask("unlearn_patches", name)


def test_two_dots_never_lead_on_from_where_a_link_points(host):
    disk, patches = host / "disk" / "sd15", host / "models" / "unlearn_patches"
    disk.mkdir(parents=True)
    (host / "disk" / "x.safetensors").write_bytes(b"secret")
    patches.mkdir(parents=True)
    (patches / "sd15").symlink_to(disk)
    with pytest.raises(UnlearnError, match="There is no file"):
        folders.find("unlearn_patches", "sd15/../x.safetensors")


FOREIGN = {
    "a LoRA of somebody else": lambda p: save_file(
        {"theirs": torch.ones(4)}, p, {"ss_output_name": "detail tweaker"}
    ),
    "a file without metadata": lambda p: save_file({"theirs": torch.ones(4)}, p),
    "no safetensors": lambda p: p.write_bytes(b"theirs"),
    "an empty file": lambda p: p.write_bytes(b""),
    "a folder": lambda p: p.mkdir(),
    "a link that leads nowhere": lambda p: p.symlink_to(p.parent / "gone"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_not_ours_is_never_replaced(host, what):
    """Case 11: Save Unlearn Patch as LoRA replaced a LoRA of that name, whoever made it."""
    lora_file = pack.module("unlearn.files.lora_file")
    kinds = {
        "loras": lora_file.is_ours,
        "unlearn_patches": patch_file.is_ours,
        "unlearn_saliency": pack.module("unlearn.files.saliency_file").is_ours,
    }
    for kind, ours in kinds.items():
        path = folders.new(kind, "detail_tweaker")
        path.parent.mkdir(parents=True)
        FOREIGN[what](path)
        before = path.lstat()
        with pytest.raises(UnlearnError, match="choose another name"):
            safetensors_io.write(path, {"ours": torch.zeros(1)}, {}, ours)
        assert path.lstat() == before and len(list(path.parent.iterdir())) == 1


def test_our_own_files_are_replaced(host):
    lora_file = pack.module("unlearn.files.lora_file")
    path = folders.new("loras", "mine")
    metadata = lora_file._metadata(a_patch(), [])
    for value in (1.0, 2.0):
        safetensors_io.write(path, {"x": torch.tensor([value])}, metadata, lora_file.is_ours)
    assert float(load_file(path)["x"]) == 2
    with pytest.raises(UnlearnError, match="did not make"):  # a LoRA of ours is no patch file
        patch_file.save(path, a_patch())


def test_a_patch_or_a_map_is_refused_where_a_file_of_another_kind_stands(host):
    saliency_file = pack.module("unlearn.files.saliency_file")
    path = folders.new("unlearn_patches", "x")
    safetensors_io.write(path, {"x": torch.ones(1)}, {"format": saliency_file.FORMAT})
    with pytest.raises(UnlearnError, match="did not make"):
        patch_file.save(path, a_patch())
    path.unlink()
    patch_file.save(path, a_patch())
    with pytest.raises(UnlearnError, match="did not make"):
        safetensors_io.write(path, {"x": torch.ones(1)}, {}, saliency_file.is_ours)
    patch_file.save(path, a_patch(1))
    assert patch_file.load(path)[0] == a_patch(1)


def save(patch, name="two", existing="replace"):
    """Runs Save Unlearn Patch as the host does, unless what it keeps still holds."""
    node = patch_nodes.SaveUnlearnPatch
    hidden = {"hidden": SimpleNamespace(unique_id="7")}
    return type("Running", (node,), hidden).execute(patch, name, existing)


def state(name="two", existing="replace"):
    return patch_nodes.SaveUnlearnPatch.fingerprint_inputs(name=name, existing=existing)


def test_a_file_deleted_since_is_saved_again(host):
    """Case 12: the node said the file's name, and there was no file."""
    first = state()
    save(a_patch())
    path = folders.find("unlearn_patches", "two.safetensors")
    assert state() == first  # nothing is written a second time for nothing
    path.unlink()
    again = state()
    assert again != first
    save(a_patch())
    assert path.is_file() and state() == again


def test_a_file_changed_since_is_saved_again(host):
    first = state()
    save(a_patch())
    path = folders.find("unlearn_patches", "two.safetensors")
    patch_file.save(path, a_patch(3))
    os.utime(path, ns=(1, 1))
    assert state() != first


def test_another_patch_under_the_same_name_ends_what_was_kept_of_the_first(host):
    first = state()
    save(a_patch(0))
    assert state() == first
    save(a_patch(1))
    assert state() != first  # or the first patch, chosen again, would not be written


def test_a_name_from_another_node_is_always_saved():
    assert math.isnan(state(None))
    assert patch_nodes.SaveUnlearnPatch.fingerprint_inputs(name="../x") == 0  # said when it runs


def test_a_checkpoint_that_was_moved_to_its_folder_is_not_saved_again(host):
    """Its node asks the artist to move it there."""
    path = host / "output" / "unlearned_00001_.safetensors"
    save_file({"x": torch.ones(4)}, path)
    saved_files.wrote("moved", path, numbered=True)
    assert saved_files.state("moved") == 0
    there = folders.folders("checkpoints")[0]
    there.mkdir(parents=True)
    path.rename(there / path.name)
    assert saved_files.state("moved") == 0
    (there / path.name).write_bytes(b"another file")
    assert saved_files.state("moved") == 1


def test_raw_statistics_that_were_deleted_are_measured_again(host):
    saliency = pack.module("nodes.concept_saliency")
    ask = saliency.ConceptSaliency.fingerprint_inputs
    folder = saliency._raw_folder("raw")
    assert ask(raw_statistics="") == ask(raw_statistics="raw") == ask(raw_statistics="../x") == 0
    folder.mkdir(parents=True)
    saved_files.wrote(str(folder), folder, numbered=True)
    assert ask(raw_statistics="raw") == 0
    folder.rmdir()
    assert ask(raw_statistics="raw") == 1


@pytest.fixture
def shown(monkeypatch):
    """What Save Unlearn Patch writes under itself."""
    texts = []
    monkeypatch.setattr(patch_nodes.progress, "say", lambda text, node_id: texts.append(text))
    return texts


def test_the_node_says_that_it_replaced_a_file(host, shown):
    save(a_patch(0))
    path = folders.find("unlearn_patches", "two.safetensors")
    os.utime(path, (1.7e9, 1.7e9))
    save(a_patch(1))
    assert shown[0].startswith("Saved two.safetensors, ")
    assert shown[1].startswith("Replaced two.safetensors of 2023-11-1")
    assert patch_file.load(path)[0] == a_patch(1)


def test_counting_up_keeps_every_earlier_file(host, shown):
    """As Save Image does; numbers go on behind the highest one that is there."""
    names = [save(a_patch(seed), "sub/two", "count up").result[0] for seed in range(3)]
    assert names == [f"sub/two{end}.safetensors" for end in ("", "_00002", "_00003")]
    for seed, name in enumerate(names):
        assert patch_file.load(folders.find("unlearn_patches", name))[0] == a_patch(seed)
    assert shown[2].startswith("Saved sub/two_00003.safetensors, ")
    folders.find("unlearn_patches", names[0]).unlink()
    folders.find("unlearn_patches", names[1]).unlink()
    assert save(a_patch(3), "sub/two", "count up").result[0] == "sub/two_00004.safetensors"
    assert save(a_patch(4), "sub/two").result[0] == "sub/two.safetensors"


def test_counting_up_writes_again_only_where_its_own_file_is_gone(host):
    first = state(existing="count up")
    save(a_patch(0), existing="count up")
    save(a_patch(1), existing="count up")
    assert state(existing="count up") == first
    save(a_patch(2))  # another node replaces the plain name
    assert state(existing="count up") == first
    folders.find("unlearn_patches", "two_00002.safetensors").unlink()
    assert state(existing="count up") != first


def test_every_node_that_saves_a_file_looks_at_the_disk():
    nodes = pack.module("nodes").NODES
    saving = [n for n in nodes if n.__name__.startswith("Save")]
    assert len(saving) >= 4
    for node in saving:
        assert "fingerprint_inputs" in vars(node), node.__name__
