"""Files and workflows of tests/data/before_layout, which are older than the present layout of the
code, still load and mean what they meant.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from testbed import pack, tiny

OLD = Path(__file__).parent.parent / "data" / "before_layout"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
PATCHES = [p.stem for p in sorted((OLD / "unlearn_patches").glob("*.safetensors"))]
SALIENCY = [p.stem for p in sorted((OLD / "unlearn_saliency").glob("*.safetensors"))]
WORKFLOWS = sorted((OLD / "workflows").glob("*.json"))
CONCEPTS = "fox -> animal | vixen\nstyle: van gogh * 2", "cat\nhouse"
WIDTH = 64
TRAINING = {
    "preset": {
        "preset": "custom",
        "steps": 3,
        "stop_at": 0.0,
        "batch": 2,
        "held": 2,
        "learning_rate": 1e-3,
        "pictures": 2,
        "sampling_steps": 2,
        "captions": 2,
    },
    "warmup": 1,
    "refresh": 2,
    "cfg": 3.0,
    "size": 64,
    "trainable": "keys and values",
}


nodes = {n.__name__: n for n in pack.module("nodes").NODES}
weights = pack.module("unlearn.host.weights")
concept_text = pack.module("unlearn.concepts.notation")
tuning = pack.module("unlearn.sculpting.tuning")


class NarrowClip(tiny.Clip):
    """The tiny text encoder with states of the width that the old files were made for."""

    def __init__(self):
        super().__init__()
        self.out = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(2)) / 8


def run(name, /, **given):
    """What a node gives with these inputs, and with its defaults for all others."""
    node = nodes[name]
    inputs = {**tiny.defaults(node.define_schema().inputs), **given}
    return node.PREPARE_CLASS_CLONE(None).execute(**inputs).result


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny.model(context_dim=WIDTH)


@pytest.fixture
def models_folder(tmp_path, monkeypatch):
    """ComfyUI's models folder with a copy of the old files in it."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for kind in ("unlearn_patches", "unlearn_saliency", "unlearn_training"):
        shutil.copytree(OLD / kind, tmp_path / kind)
    return tmp_path


@pytest.mark.parametrize("name", PATCHES)
def test_an_old_patch_loads_and_edits_the_same_weights(name, model, models_folder):
    wanted = EXPECTED[name]
    patch = run("LoadUnlearnPatch", name=f"{name}.safetensors")[0]
    assert patch.digest == wanted["digest"]
    assert [[key, edit.name, list(edit.shape)] for key, edit in patch.edits] == wanted["edits"]
    patched, report = run(
        "ApplyUnlearnPatch", model=model, patches={"patch0": patch}, strength=1.0, mismatch="error"
    )[:2]
    assert "WARNING" not in report
    found = {key: float(weights.read(patched, key).double().norm()) for key in wanted["norms"]}
    assert found == pytest.approx(wanted["norms"], rel=1e-6)


@pytest.mark.parametrize("name", SALIENCY)
def test_an_old_saliency_map_loads_and_fuses(name, model, models_folder):
    wanted = EXPECTED[f"saliency_{name}"]
    found = run("LoadConceptSaliency", name=f"{name}.safetensors")[0]
    assert [c.name for c in found.concepts] == wanted["concepts"]
    assert [[r.peak for r in row] for row in found.rankings] == wanted["peaks"]
    assert {group.key: list(part.prompts) for group, part in found.gathered.items()} == wanted[
        "gathered"
    ]
    fused = run("NeuronMaskFuse", saliency={"saliency0": found}, granularity="neuron", r2=0.1)[0]
    assert run(
        "ApplyUnlearnPatch", model=model, patches={"patch0": fused}, strength=1.0, mismatch="error"
    )[0]


def test_the_mask_of_an_old_saliency_map_is_that_of_the_old_pruning_patch(models_folder):
    found = run("LoadConceptSaliency", name="wanda.safetensors")[0]
    for granularity in ("connection", "neuron", "row"):
        fused = run(
            "NeuronMaskFuse", saliency={"saliency0": found}, granularity=granularity, r2=0.1
        )[0]
        old = run("LoadUnlearnPatch", name=f"prune_{granularity}.safetensors")[0]
        for (key, edit), (old_key, old_edit) in zip(fused.edits, old.edits, strict=True):
            assert key == old_key and torch.equal(edit.mask(), old_edit.mask())


def test_training_goes_on_from_an_old_file(model, models_folder, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURED_PREDICTIONS", 2)
    patch = run(
        "DynamicMaskTrainer",
        model=model,
        clip=NarrowClip(),
        concepts=concept_text.parse(*CONCEPTS),
        resume="cut_off",
        **TRAINING,
    )[0]
    found = {
        key: float(edit.change(torch.zeros(edit.shape), 1.0).double().norm())
        for key, edit in patch.edits
    }
    assert found == pytest.approx(EXPECTED["resumed"]["norms"], rel=1e-3)
    assert not (models_folder / "unlearn_training" / "cut_off.safetensors").exists()


def inputs_of(node):
    """Every input a node can have, by name.

    Those of a dynamic input are called 'input.name', those of a growing one 'input.name0'.
    """
    found = set()
    for entry in node.define_schema().inputs:
        found.add(entry.id)
        for option in getattr(entry, "options", None) or ():
            found |= {f"{entry.id}.{more.id}" for more in getattr(option, "inputs", ())}
        if template := getattr(entry, "template", None):
            found |= (
                {f"{entry.id}.{name}" for name in template.names}
                if hasattr(template, "names")
                else set()
            )
            if prefix := getattr(template, "prefix", None):
                found |= {f"{entry.id}.{prefix}{i}" for i in range(template.max)}
    return found


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_an_old_workflow_names_only_nodes_and_inputs_that_exist(file):
    workflow = json.loads(file.read_text(encoding="utf-8"))
    parts = [workflow, *workflow.get("definitions", {}).get("subgraphs", ())]
    ours = [
        n
        for part in parts
        for n in part["nodes"]
        if n["type"] in nodes or n.get("properties", {}).get("cnr_id") == "unlearn-diffusion"
    ]
    assert ours
    for node in ours:
        assert node["type"] in nodes, node["type"]
        missing = {entry["name"] for entry in node.get("inputs", ())} - inputs_of(
            nodes[node["type"]]
        )
        assert not missing, (node["type"], missing)
        schema = nodes[node["type"]].define_schema()
        assert len(node.get("outputs", ())) <= len(schema.outputs)
