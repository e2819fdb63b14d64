"""FIA in a real ComfyUI, on the sprite world: against stock sampling prompt by prompt, and what happens when it stops."""

import hashlib
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from testbed import pack

saliency = pack.module("unlearn.pruning.saliency")
files = pack.module("unlearn.files.saliency_file")
lockstep = pack.module("unlearn.host.batched_sampling")
masks = pack.module("unlearn.pruning.masks")
patching = pack.module("unlearn.host.patching")
layers_of = pack.module("unlearn.host.architectures")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")
text = pack.module("unlearn.concepts.notation")
UnlearnError = pack.module("unlearn.errors").UnlearnError
fia = pack.module("kernels.fia")

SMALL = dict(prompts=3, steps=4, window=2, size=64, cfg=3.0, ceiling=0.2)


def collect(loaded, forget="cat\nhouse", **more):
    model, clip, _ = loaded
    return saliency.collect(model, clip, text.parse(forget), **{**SMALL, **more})[0]


def state_digest(model):
    h = hashlib.sha256()
    for key, value in model.model.state_dict().items():
        h.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def one_by_one(loaded, prompts, both):
    """(X, W) in float64 per step, layer and prompt, from stock euler sampling of one prompt at a time; X of both halves of guidance, or of
    the conditional one."""
    import comfy.sample

    model, clip, _ = loaded
    keys = [layer.key for layer in layers_of.feed_forward(model)]
    ws = [weights.read(model, k).double() for k in keys]
    found = [[[] for _ in keys] for _ in range(2)]
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    keep_in = lambda into: lambda module, args: (into.append(args[0].clone()), None)[1]
    for number, prompt in enumerate(prompts):
        passes, order = [[] for _ in keys], []
        handles = [
            model.model.get_submodule(k.removesuffix(".weight")).register_forward_pre_hook(
                keep_in(passes[i])
            )
            for i, k in enumerate(keys)
        ]
        noise = torch.randn(
            1,
            4,
            8,
            8,
            generator=torch.Generator().manual_seed(
                saliency.DEFAULTS["seed"] + number % SMALL["prompts"]
            ),
        )
        positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        watched = model.clone()
        note = lambda apply, given, order=order: (
            order.append(given["cond_or_uncond"])
            or apply(given["input"], given["timestep"], **given["c"])
        )
        watched.set_model_unet_function_wrapper(note)
        comfy.sample.sample(
            watched,
            noise,
            4,
            3.0,
            "euler",
            "normal",
            positive,
            negative,
            torch.zeros_like(noise),
            last_step=2,
            disable_pbar=True,
        )
        [h.remove() for h in handles]
        for step in range(2):
            for i, w in enumerate(ws):
                x = passes[i][step].double()
                x = x if both else x[[order[step].index(0)]]
                found[step][i].append((x, w))
    return found


def u(x, w, score):
    x = x.flatten(0, -2)
    if score == "paper":
        y = x @ w.T
        return w.abs() * (y.T @ x).abs() / y.norm(dim=0)[:, None]
    return w.abs() * (x / x.norm(dim=1, keepdim=True)).norm(dim=0)


@pytest.mark.parametrize(
    "score,halves", [("paper", "conditional"), ("wanda", "conditional"), ("paper", "both")]
)
def test_saliency_is_that_of_stock_sampling_prompt_by_prompt(loaded, score, halves):
    found = collect(loaded, "cat", score=score, halves=halves, r1=0.1, scale="none")
    groups = {
        name: [p.split(":", 1)[1] for p in part.prompts] for name, part in found.gathered.items()
    }
    passes = {
        name: one_by_one(loaded, prompts, halves == "both") for name, prompts in groups.items()
    }
    errors = []
    for i in range(len(found.layers)):
        total = count = 0
        for step in range(2):
            of = lambda name, step=step, i=i: torch.stack(
                [u(x, w, score) for x, w in passes[name][step][i]]
            )
            c, b = of("cat"), of("base object")
            s = (c.mean(0) - b.mean(0) - b.std(0, correction=0)).clamp_min(0)
            tau = s.flatten().sort(descending=True).values[int(0.1 * s.numel()) - 1]
            total, count = total + s / 2, count + (s > tau) / 2
        a = 0.5 * (total + count)
        got = found.rankings[0][i].columns
        errors.append(float((a.sum(0) - got).norm() / a.sum(0).norm().clamp_min(1e-12)))
    assert max(errors) < 2e-3, errors


def test_calls_are_concepts_and_one_base_per_kind(loaded, monkeypatch):
    model, clip, _ = loaded
    ran = []
    real = lockstep.comfy.samplers.calc_cond_batch
    monkeypatch.setattr(
        lockstep.comfy.samplers,
        "calc_cond_batch",
        lambda m, c, x, *a: ran.append(len(x)) or real(m, c, x, *a),
    )
    concepts = text.parse("cat\nhouse\nstyle: monet")
    _, report = saliency.collect(model, clip, concepts, **SMALL)
    groups = (2 + 1) + (1 + 1)  # two objects and their base, one style and its base
    assert sum(ran) == 2 * groups * SMALL["prompts"] * SMALL["window"]  # two halves of guidance
    assert f"= {groups * SMALL['prompts'] * SMALL['window']} UNet calls" in report


def test_nothing_is_changed_and_no_hook_stays(loaded):
    model = loaded[0]
    before = state_digest(model)
    collect(loaded)
    assert state_digest(model) == before and hooks(model) == 0


@pytest.mark.parametrize("at", [1, 3, 9])
def test_cancel_leaves_no_hooks_and_the_next_run_works(loaded, monkeypatch, at):
    import comfy.model_management as mm

    model = loaded[0]
    before, n, real = state_digest(model), [0], fia.correlation

    def stop(*a, **k):
        n[0] += 1
        if n[0] == at:
            mm.interrupt_current_processing()
            mm.throw_exception_if_processing_interrupted()
        return real(*a, **k)

    monkeypatch.setattr(saliency.fia, "correlation", stop)
    with pytest.raises(mm.InterruptProcessingException):
        collect(loaded)
    assert hooks(model) == 0 and state_digest(model) == before
    monkeypatch.setattr(saliency.fia, "correlation", real)
    assert collect(loaded).rankings


def test_out_of_memory_shrinks_the_batch_and_counts_nothing_twice(loaded, monkeypatch):
    whole, real, n = collect(loaded), fia.correlation, [0]

    def full(*a, **k):
        n[0] += 1
        if n[0] == 2:  # within the first batch, behind the first layer's first prompt
            raise lockstep.comfy.model_management.OOM_EXCEPTION("out of memory")
        return real(*a, **k)

    monkeypatch.setattr(saliency.fia, "correlation", full)
    small = collect(loaded)
    for a, b in zip(whole.rankings[0], small.rankings[0], strict=True):
        torch.testing.assert_close(a.columns, b.columns, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(lockstep.comfy.model_management, "soft_empty_cache", lambda *a: None)


def test_batches_do_not_matter(loaded, monkeypatch):
    most, whole = lockstep.LARGEST_BATCH, collect(loaded)
    monkeypatch.setattr(saliency.fia, "top_threshold", lambda s, share: float("inf"))
    strength = collect(
        loaded
    )  # without the counts of eq 3, which jump where rounding takes a score over its threshold
    monkeypatch.setattr(lockstep, "LARGEST_BATCH", 1)
    for a, b in zip(strength.rankings[1], collect(loaded).rankings[1], strict=True):
        torch.testing.assert_close(a.columns, b.columns, rtol=1e-3, atol=1e-3)
    monkeypatch.undo()
    monkeypatch.setattr(lockstep, "LARGEST_BATCH", 1)
    assert most > 1
    for a, b in zip(whole.rankings[1], collect(loaded).rankings[1], strict=True):
        same = torch.isclose(a.columns, b.columns, rtol=1e-3, atol=1e-3)
        assert same.float().mean() > 0.99 and torch.allclose(
            a.columns, b.columns, rtol=0.05, atol=0.5
        )


@pytest.mark.parametrize("score", ["wanda", "paper"])
def test_parts_of_one_concept_merge_as_if_measured_together(loaded, score, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "models_folder", lambda: tmp_path)
    whole = collect(loaded, "cat", prompts=4, score=score)
    folder = lambda name: tmp_path / name if score == "paper" else None
    parts = [
        collect(loaded, "cat", prompts=2, first=first, score=score, folder=folder(f"{first}.raw"))
        for first in (0, 2)
    ]
    both = saliency.merge(parts, loaded[0])
    assert set(both.gathered["cat"].prompts) == set(whole.gathered["cat"].prompts)
    for a, b in zip(whole.rankings[0], both.rankings[0], strict=True):
        torch.testing.assert_close(a.columns, b.columns, rtol=1e-3, atol=1e-4)
        top = min(50, len(a.indices))
        assert len(set(a.indices[:top].tolist()) & set(b.indices[:top].tolist())) >= 0.95 * top
    with pytest.raises(UnlearnError, match="count twice"):
        saliency.merge([both, parts[0]], loaded[0])


def test_paper_statistics_that_were_not_kept_cannot_be_merged(loaded):
    a, b = (collect(loaded, "cat", prompts=2, first=first) for first in (0, 2))
    with pytest.raises(UnlearnError, match="were not kept"):
        saliency.merge([a, b], loaded[0])


def test_concepts_of_two_machines_merge_exactly_and_files_hold_all(loaded, tmp_path):
    together, apart = collect(loaded), [collect(loaded, name) for name in ("cat", "house")]
    for name, found in zip("ab", apart, strict=True):
        files.save(tmp_path / f"{name}.safetensors", found)
    merged = saliency.merge([files.load(tmp_path / f"{name}.safetensors") for name in "ab"])
    assert merged.concepts == together.concepts and merged.layers == together.layers
    for mine, theirs in zip(merged.rankings, together.rankings, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (
                torch.equal(a.indices, b.indices)
                and torch.equal(a.values, b.values)
                and torch.equal(a.columns, b.columns)
            )
    assert (
        merged.settings == together.settings and merged.gathered.keys() == together.gathered.keys()
    )


def test_files_that_are_not_ours(loaded, tmp_path):
    path = tmp_path / "x.safetensors"
    files.save(path, collect(loaded, "cat"))
    whole = path.read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        b"",
        b"PK\x03\x04" + whole,
        whole[:8] + b"[" * 500 + whole[508:],
    ):
        path.write_bytes(broken)
        with pytest.raises(UnlearnError, match="damaged"):
            files.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UnlearnError, match="not a saliency map"):
        files.load(path)
    for name in ("../x", "/etc/x", "", "a/../../x"):
        with pytest.raises(UnlearnError, match="leads out"):
            files.inside(tmp_path, name)


@pytest.mark.parametrize("granularity", ["connection", "neuron", "row"])
def test_the_patch_prunes_exactly_and_restores(loaded, granularity):
    import comfy.model_management as mm

    model = loaded[0]
    mm.load_models_gpu([model])
    before = state_digest(model)
    patch, picture, report = masks.fuse([collect(loaded)], r2=0.05, granularity=granularity)
    assert picture.shape[0] == 1 and "Prunes" in report and "Next:" in report
    patched, warning = patching.apply(model, patch)
    assert warning == ""
    mm.load_models_gpu([model])
    plain = {key: model.model.get_parameter(key).clone() for key, _ in patch.edits}
    mm.load_models_gpu([patched])
    for key, edit in patch.edits:
        w = model.model.get_parameter(key)
        mask = edit.mask().expand(w.shape)
        assert mask.any() and (w[mask] == 0).all() and torch.equal(w[~mask], plain[key][~mask])
    mm.load_models_gpu([model])
    assert state_digest(model) == before


def fake(shapes, concepts=2, ceiling=0.06, seed=0):
    """A SaliencyMap of random rankings for layers of any shape."""
    g = torch.Generator().manual_seed(seed)
    named = tuple(types.Concept(f"c{i}") for i in range(concepts))
    layers, rankings = [], [[] for _ in named]
    for i, (c_out, c_in) in enumerate(shapes):
        part = ["input_blocks.1.1", "middle_block.1", "output_blocks.3.1"][
            min(2, 3 * i // len(shapes))
        ]
        layers.append(
            (f"diffusion_model.{part}.transformer_blocks.{i}.ff.net.2.weight", c_out, c_in)
        )
        for into in rankings:
            k = int(ceiling * c_out * c_in)
            indices = torch.randint(0, c_out * c_in, (k,), generator=g).unique()[:k]
            order = indices[torch.randperm(len(indices), generator=g)].int()
            into.append(
                types.Ranking(
                    order,
                    torch.ones(len(order)).half(),
                    torch.rand(c_out, generator=g),
                    torch.rand(c_in, generator=g),
                    1.0,
                )
            )
    print_ = types.Fingerprint({key: torch.zeros(1) for key, *_ in layers})
    return types.SaliencyMap(
        named, tuple(layers), tuple(map(tuple, rankings)), ceiling, print_, {"score": "paper"}, {}
    )


SD15 = (
    [(320, 1280)] * 2
    + [(640, 2560)] * 2
    + [(1280, 5120)] * 3
    + [(1280, 5120)] * 3
    + [(640, 2560)] * 3
    + [(320, 1280)] * 3
)


def test_another_r2_takes_under_a_second_on_the_sd15_shape():
    found = fake(SD15)
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        masks.fuse([found], r2=0.01)
        best = min(best, time.perf_counter() - start)
    assert best < 1.0, best


def test_filters_weights_and_shares():
    found = fake([(8, 40)] * 6)
    keys = lambda **more: [
        key for key, _ in masks.fuse([found], r2=0.05, alpha=1.1, **more)[0].edits
    ]
    assert len(keys()) == 6
    assert (
        all("middle" in k for k in keys(parts="middle")) and len(keys(parts="input + middle")) == 4
    )
    assert len(keys(from_depth=0.3, to_depth=0.7)) == 2
    with pytest.raises(UnlearnError, match="leaves no layer"):
        masks.fuse([found], from_depth=0.65, to_depth=0.7)
    pruned = lambda **more: sum(
        int(e.mask().sum()) for _, e in masks.fuse([found], alpha=1.1, **more)[0].edits
    )
    assert pruned(r2=0.01) < pruned(r2=0.01, per_concept="c0 = 5%") < pruned(r2=0.05)
    assert pruned(r2=0.01, per_concept="c0 = 0.05") == pruned(r2=0.01, per_concept="c0 = 5 %")
    for line in ("c7 = 3%", "c0", "c0 = many", "c0 = 0", "c0 = 101%"):
        with pytest.raises(UnlearnError, match="per_concept"):
            masks.fuse([found], per_concept=line)
    assert "ceiling" in masks.fuse([found], r2=0.5)[2]
    with pytest.raises(UnlearnError, match="two inputs"):
        masks.fuse([found, found])
    with pytest.raises(UnlearnError, match="different models"):
        masks.fuse([found, fake([(8, 41)] * 6)])


def test_concepts_that_choose_alike_are_named():
    """c0 and c1 choose the very same connections, c2 others: with alpha 0.6 two of three are most."""
    found, other = fake([(8, 40)] * 6), fake([(8, 40)] * 6, seed=1)
    three = replace(
        found,
        concepts=(*found.concepts, types.Concept("c2")),
        rankings=(*found.rankings[:1] * 2, other.rankings[1]),
    )
    said = masks.fuse([three], r2=0.05, alpha=0.6)[2]
    assert (
        "WARNING: c0 & c1 share 100% of their connections" in said
        and "more than a tenth" not in said
    )
    assert (
        "hardly anything of 'c0'" in said
        and "hardly anything of 'c1'" in said
        and "hardly anything of 'c2'" not in said
    )
    assert (
        "WARNING: more than a tenth is pruned"
        in masks.fuse([three], r2=0.3, alpha=1.1, granularity="neuron")[2]
    )
    with pytest.raises(UnlearnError, match="leaves nothing to prune"):
        masks.fuse([replace(found, rankings=found.rankings[:1] * 2)], r2=0.05, alpha=0.6)


def test_maps_that_do_not_go_together_are_not_merged():
    settings = dict.fromkeys(saliency.MEASURED_ALIKE, 1)
    found = replace(fake([(8, 40)] * 6), settings=settings)
    with pytest.raises(UnlearnError, match="different models"):
        saliency.merge([found, replace(fake([(8, 41)] * 6), settings=settings)])
    with pytest.raises(UnlearnError, match=r"different 'cfg' \(1 and 3\)"):
        saliency.merge([found, replace(found, settings={**settings, "cfg": 3})])
    with pytest.raises(UnlearnError, match="'c0' stands in several saliency maps; connect 'model'"):
        saliency.merge([found, found])


def test_a_concept_that_stands_out_nowhere_is_named():
    found = fake([(8, 40)] * 6)
    settings = {"score": "paper", "prompts": 1, "window": 1}
    nowhere = tuple(
        replace(r, indices=r.indices[:0], values=r.values[:0]) for r in found.rankings[1]
    )
    said = saliency._text(
        replace(found, settings=settings, rankings=(found.rankings[0], nowhere)), 3, 3, 1.0
    )
    assert "WARNING: 'c1' stands out nowhere" in said and "'c0'" not in said


@pytest.mark.parametrize(
    "kind, velocity, side",
    [("SD15", False, 512), ("SD20", False, 512), ("SD20", True, 768), ("SDXL", False, 1024)],
)
def test_the_size_a_model_was_made_for(kind, velocity, side):
    model = SimpleNamespace(
        model_config=type(kind, (), {})(),
        model_type=SimpleNamespace(name="V_PREDICTION" if velocity else "EPS"),
    )
    assert (
        pack.module("unlearn.host.architectures").native_size(SimpleNamespace(model=model))
        == side
    )


@pytest.mark.parametrize("free, batch", [(10**9, 8), (24, 8), (23, 4), (12, 4), (11, 2), (0, 1)])
def test_as_many_prompts_as_fit_run_at_once(monkeypatch, free, batch):
    """Each half of guidance takes one here, and half as much again is left free."""
    monkeypatch.setattr(lockstep.comfy.model_management, "get_free_memory", lambda device: free)
    model = SimpleNamespace(
        load_device=None, model=SimpleNamespace(memory_required=lambda shape: shape[0])
    )
    assert lockstep._fitting(model, (4, 8, 8), 2) == batch


def test_statistics_without_room_beside_the_model_lie_in_main_memory(monkeypatch):
    far = torch.device("meta")
    for free, device in (
        (10**9, far),
        (8 * 40 * 13 * 1.2 - 1, torch.device("cpu")),
    ):  # 8 bytes a weight, and 5 for the one concept
        monkeypatch.setattr(
            saliency.comfy.model_management, "get_free_memory", lambda device, free=free: free
        )
        kept = saliency._Matrices(None, [("a", 8, 40)], ["base object", "cat"], 0.1, None)
        kept.allocate(far)
        assert (
            kept.device == device
            and kept.first[0].shape == (8, 40)
            and kept.second[0].device == device
        )


def test_the_first_step_is_measured_before_guidance_acts(loaded, monkeypatch):
    """Without guidance half the work gives the very same; no half but the prompt's is run."""
    ran, real = [], lockstep.comfy.samplers.calc_cond_batch
    first = dict(prompts=1, steps=2, window=1)
    guided = collect(loaded, "cat", **first)
    monkeypatch.setattr(
        lockstep.comfy.samplers,
        "calc_cond_batch",
        lambda m, c, x, *a: ran.append(len(x)) or real(m, c, x, *a),
    )
    plain = collect(loaded, "cat", **first, cfg=1.0)
    assert sum(ran) == 2  # the concept and its base
    for a, b in zip(guided.rankings[0], plain.rankings[0], strict=True):
        torch.testing.assert_close(a.rows, b.rows, rtol=1e-3, atol=1e-4)


def test_own_lines(loaded):
    model, clip, _ = loaded
    concepts = text.parse("cat")
    found, _ = saliency.collect(
        model,
        clip,
        concepts,
        ("a photo of a {concept}",),
        ("a photo of a {context}",),
        ("fox", "axe"),
        **SMALL,
    )
    assert [p.split(":", 1)[1] for p in found.gathered["base object"].prompts] == [
        "a photo of a fox",
        "a photo of a axe",
        "a photo of a fox",
    ]
    with pytest.raises(UnlearnError, match="'base' is empty"):
        saliency.collect(model, clip, concepts, ("a {concept}",), **SMALL)
    with pytest.raises(UnlearnError, match="no {concept}"):
        saliency.collect(model, clip, concepts, ("a cat",), ("a {context}",), **SMALL)


def test_nan_and_compiled_models_say_so(loaded, monkeypatch):
    model, clip, _ = loaded
    monkeypatch.setattr(
        saliency.fia, "correlation", lambda x, y: torch.full((y.shape[1], x.shape[1]), float("nan"))
    )
    with pytest.raises(UnlearnError, match="gives NaN"):
        collect(loaded)
    assert hooks(model) == 0
    compiled = model.clone()
    compiled.add_wrapper_with_key(
        "apply_model", "torch.compile", lambda executor, *a, **k: executor(*a, **k)
    )
    with pytest.raises(UnlearnError, match="compiled"):
        saliency.collect(compiled, clip, text.parse("cat"), **SMALL)


def test_the_raw_statistics_say_their_size_and_need_room(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "models_folder", lambda: tmp_path)
    found = collect(loaded, "cat", folder=tmp_path / "x.raw")
    size = sum(p.stat().st_size for p in (tmp_path / "x.raw").iterdir())
    expected = 4 * SMALL["window"] * 3 * sum(a * b for _, a, b in found.layers)
    assert abs(size - expected) < 0.01 * expected
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda p: type("U", (), {"free": expected // 2})()
    )
    with pytest.raises(UnlearnError, match="the disk has"):
        collect(loaded, "cat", folder=tmp_path / "y.raw")


def test_raw_statistics_that_are_gone_or_damaged_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "models_folder", lambda: tmp_path)
    layers, whole = [("a", 2, 3)], fia.RunningMoments(torch.ones(2, 3), None, 4)
    writer = files.RawWriter(tmp_path / "x.raw", layers, ["cat"], 1)
    writer.write(0, "cat", [whole])
    found = files.read_raw(["x.raw"], "cat", 0, 0)
    assert torch.equal(found.mean, whole.mean) and found.m2 is None and found.n == 4
    with pytest.raises(UnlearnError, match="'y.raw' of 'cat' are not in the models folder"):
        files.read_raw(["x.raw", "y.raw"], "cat", 0, 0)
    writer.write(0, "cat", [fia.RunningMoments(torch.full((2, 3), float("nan")), None, 4)])
    with pytest.raises(
        UnlearnError, match=r"in 'x.raw' are damaged \(numbers\); measure them again"
    ):
        files.read_raw(["x.raw"], "cat", 0, 0)
    (path,) = (tmp_path / "x.raw").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnlearnError, match="in 'x.raw' are damaged"):
        files.read_raw(["x.raw"], "cat", 0, 0)


class Packed(torch.nn.Module):
    """A linear layer whose loader keeps its weight in a form of its own, as GGUF does: int8 and a scale per row."""

    def __init__(self, linear):
        super().__init__()
        w = linear.weight.float()
        self.scale = w.abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter(
            (w / self.scale).round().to(torch.int8), requires_grad=False
        )
        self.bias, self.in_features, self.out_features = (
            linear.bias,
            linear.in_features,
            linear.out_features,
        )

    def forward(self, x):
        return torch.nn.functional.linear(
            x, (self.weight.float() * self.scale).to(x), self.bias.to(x)
        )


@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp8", "packed"])
def test_any_precision(loaded, checkpoint, kind):
    """Nothing needs gradients or float weights: the strongest hidden units are about those of the plain model."""
    import comfy.sd

    plain = collect(loaded, "cat", prompts=2, window=1)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}.get(kind)
    options = {} if dtype is None else {"dtype": dtype}
    model, *_ = comfy.sd.load_checkpoint_guess_config(
        str(checkpoint), output_vae=False, output_clip=False, model_options=options
    )
    if kind == "packed":
        for layer in layers_of.feed_forward(model):
            path = layer.key.removesuffix(".weight")
            parent = model.model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], Packed(model.model.get_submodule(path)))
    found = collect((model, *loaded[1:]), "cat", prompts=2, window=1)
    for a, b in zip(plain.rankings[0], found.rankings[0], strict=True):
        same = set(a.columns.topk(100).indices.tolist()) & set(b.columns.topk(100).indices.tolist())
        assert len(same) >= 60, len(same)
