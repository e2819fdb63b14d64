"""FIA in a real ComfyUI, on the sprite world.

It is compared with stock sampling prompt by prompt, cancelled, and given full memory.
"""

import hashlib
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from testbed import pack

collection = pack.module("unlearn.pruning.collection")
statistics = pack.module("unlearn.pruning.group_statistics")
merging = pack.module("unlearn.pruning.merge")
report = pack.module("unlearn.pruning.report")
prompts = pack.module("unlearn.pruning.prompts")
files = pack.module("unlearn.files.saliency_file")
raw_files = pack.module("unlearn.files.raw_statistics")
folders = pack.module("unlearn.host.folders")
lockstep = pack.module("unlearn.host.batched_sampling")
masks = pack.module("unlearn.pruning.masks")
patching = pack.module("unlearn.host.patching")
layers_of = pack.module("unlearn.host.architectures")
weights = pack.module("unlearn.host.weights")
types = pack.module("unlearn.types")
text = pack.module("unlearn.concepts.notation")
UnlearnError = pack.module("unlearn.errors").UnlearnError
fia = pack.module("kernels.fia")
step_log = pack.module("unlearn.files.step_log")
ranking_of = pack.module("unlearn.pruning.ranking").ranking
CAT, OBJECTS = types.Group("object", "cat"), types.Group("object")

SMALL = dict(prompts=3, steps=4, window=2, size=64, cfg=3.0, ceiling=0.2)


def collect(loaded, forget="cat\nhouse", **more):
    model, clip, _ = loaded
    found = collection.collect(model, clip, text.parse(forget), **{**SMALL, **more})[0]
    assert found.rankings and all(len(row) == len(found.layers) > 0 for row in found.rankings)
    return found


_measured = {}


def measured(loaded, forget="cat\nhouse", **more):
    """As `collect`, but once for all tests that only read what it finds."""
    key = (forget, *sorted(more.items()))
    if key not in _measured:
        _measured[key] = collect(loaded, forget, **more)
    return _measured[key]


def state_digest(model):
    h = hashlib.sha256()
    for key, value in model.model.state_dict().items():
        h.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


def one_by_one(loaded, prompts, both):
    """[step][layer] -> (X, W) in float64 of each prompt, from stock euler sampling one by one.

    X holds both halves of guidance, or the conditional one alone.
    """
    keys = [layer.key for layer in layers_of.feed_forward(loaded[0])]
    ws = [weights.read(loaded[0], k).double() for k in keys]
    found = [[[] for _ in keys] for _ in range(2)]
    for number, prompt in enumerate(prompts):
        seed = collection.DEFAULTS["seed"] + number % SMALL["prompts"]
        inputs, order = stock_inputs(loaded, prompt, seed, keys)
        for step in range(2):
            for i, w in enumerate(ws):
                x = inputs[i][step].double()
                if not both:
                    x = x[[order[step].index(0)]]
                found[step][i].append((x, w))
    return found


def stock_inputs(loaded, prompt, seed, keys):
    """([layer][step] -> input of the layer, [step] -> which half of guidance stands where)."""
    import comfy.sample

    model, clip, _ = loaded
    inputs, order, handles = [[] for _ in keys], [], []

    def keep_in(into):
        return lambda module, args: into.append(args[0].clone())

    def note_order(apply, given):
        order.append(given["cond_or_uncond"])
        return apply(given["input"], given["timestep"], **given["c"])

    for key, into in zip(keys, inputs, strict=True):
        module = model.model.get_submodule(key.removesuffix(".weight"))
        handles.append(module.register_forward_pre_hook(keep_in(into)))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    positive, negative = (
        clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, "")
    )
    watched = model.clone()
    watched.set_model_unet_function_wrapper(note_order)
    how = ("euler", "normal", positive, negative, torch.zeros_like(noise))
    comfy.sample.sample(watched, noise, 4, 3.0, *how, last_step=2, disable_pbar=True)
    for handle in handles:
        handle.remove()
    return inputs, order


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
            c, b = (
                torch.stack([u(x, w, score) for x, w in passes[group][step][i]])
                for group in (CAT, OBJECTS)
            )
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
    _, report = collection.collect(model, clip, concepts, **SMALL)
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

    monkeypatch.setattr(fia, "correlation", stop)
    with pytest.raises(mm.InterruptProcessingException):
        collect(loaded)
    assert hooks(model) == 0 and state_digest(model) == before
    monkeypatch.setattr(fia, "correlation", real)
    assert collect(loaded, "cat", prompts=1, window=1).rankings


def test_out_of_memory_shrinks_the_batch_and_counts_nothing_twice(loaded, monkeypatch):
    whole, real, n = measured(loaded), fia.correlation, [0]

    def full(*a, **k):
        n[0] += 1
        if n[0] == 2:  # within the first batch, behind the first layer's first prompt
            raise lockstep.comfy.model_management.OOM_EXCEPTION("out of memory")
        return real(*a, **k)

    monkeypatch.setattr(fia, "correlation", full)
    small = collect(loaded)
    for a, b in zip(whole.rankings[0], small.rankings[0], strict=True):
        torch.testing.assert_close(a.columns, b.columns, rtol=1e-3, atol=1e-3)


def test_prompts_are_measured_under_the_states_that_are_given(loaded):
    """What a CLIP says changes nothing; the states of another concept measure that one."""
    _, clip, _ = loaded

    def said(prompt):
        ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        return states, more

    cat, house = (
        [prompt.split(":", 1)[1] for prompt in measured(loaded).gathered[group].prompts]
        for group in (CAT, types.Group("object", "house"))
    )
    own = {prompt: said(prompt) for prompt in cat}
    swapped = {prompt: said(other) for prompt, other in zip(cat, house, strict=True)}
    plain = measured(loaded).rankings
    for a, b in zip(collect(loaded, encoded=own).rankings[0], plain[0], strict=True):
        assert torch.equal(a.columns, b.columns)
    for a, b, c in zip(
        collect(loaded, encoded=swapped).rankings[0], plain[1], plain[0], strict=True
    ):
        assert torch.equal(a.columns, b.columns) and not torch.equal(a.columns, c.columns)


def test_batches_do_not_matter(loaded, monkeypatch):
    most, whole = lockstep.LARGEST_BATCH, measured(loaded)
    monkeypatch.setattr(fia, "top_threshold", lambda *_: float("inf"))
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

    def folder(name):
        return tmp_path / name if score == "paper" else None

    parts = [
        collect(loaded, "cat", prompts=2, first=first, score=score, folder=folder(f"{first}.raw"))
        for first in (0, 2)
    ]
    both = merging.merge(parts, loaded[0])
    assert set(both.gathered[CAT].prompts) == set(whole.gathered[CAT].prompts)
    for a, b in zip(whole.rankings[0], both.rankings[0], strict=True):
        torch.testing.assert_close(a.columns, b.columns, rtol=1e-3, atol=1e-4)
        top = min(50, len(a.indices))
        assert len(set(a.indices[:top].tolist()) & set(b.indices[:top].tolist())) >= 0.95 * top
    with pytest.raises(UnlearnError, match="count twice"):
        merging.merge([both, parts[0]], loaded[0])


def test_paper_statistics_that_were_not_kept_cannot_be_merged(loaded):
    a, b = (measured(loaded, "cat", prompts=1, window=1, first=first) for first in (0, 1))
    with pytest.raises(UnlearnError, match="were not kept"):
        merging.merge([a, b], loaded[0])


def test_concepts_of_two_machines_merge_exactly_and_files_hold_all(loaded, tmp_path):
    together, apart = measured(loaded), [measured(loaded, name) for name in ("cat", "house")]
    for name, found in zip("ab", apart, strict=True):
        files.save(tmp_path / f"{name}.safetensors", found)
    merged = merging.merge([files.load(tmp_path / f"{name}.safetensors") for name in "ab"])
    assert merged.concepts == together.concepts and merged.layers == together.layers
    for mine, theirs in zip(merged.rankings, together.rankings, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (
                torch.equal(a.indices, b.indices)
                and torch.equal(a.rows, b.rows)
                and torch.equal(a.columns, b.columns)
                and a.peak == b.peak
            )
    assert (
        merged.settings == together.settings and merged.gathered.keys() == together.gathered.keys()
    )


def test_files_that_are_not_ours(loaded, tmp_path):
    path = tmp_path / "x.safetensors"
    files.save(path, measured(loaded, "cat"))
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
            folders.inside(tmp_path, name)


@pytest.mark.parametrize("granularity", ["connection", "neuron", "row"])
def test_the_patch_prunes_exactly_and_restores(loaded, granularity):
    import comfy.model_management as mm

    model = loaded[0]
    mm.load_models_gpu([model])
    before = state_digest(model)
    patch, picture, report = masks.fuse([measured(loaded)], r2=0.05, granularity=granularity)
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
                    torch.rand(c_out, generator=g),
                    torch.rand(c_in, generator=g),
                    1.0,
                )
            )
    print_ = types.Fingerprint({key: torch.zeros(1) for key, *_ in layers})
    settings = {"score": "paper", "prompts": 1}
    return types.SaliencyMap(
        named, tuple(layers), tuple(map(tuple, rankings)), ceiling, print_, settings, {}
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

    def keys(**more):
        return [key for key, _ in masks.fuse([found], r2=0.05, alpha=1.1, **more)[0].edits]

    assert len(keys()) == 6
    assert (
        all("middle" in k for k in keys(parts="middle")) and len(keys(parts="input + middle")) == 4
    )
    assert len(keys(from_depth=0.3, to_depth=0.7)) == 2
    with pytest.raises(UnlearnError, match="leaves no layer"):
        masks.fuse([found], from_depth=0.65, to_depth=0.7)

    def pruned(**more):
        return sum(int(e.mask().sum()) for _, e in masks.fuse([found], alpha=1.1, **more)[0].edits)

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
    """c0 and c1 choose the same connections, c2 others. With alpha 0.6, two of three are most."""
    found, other = fake([(8, 40)] * 6), fake([(8, 40)] * 6, seed=1)
    three = replace(
        found,
        concepts=(*found.concepts, types.Concept("c2")),
        rankings=(*found.rankings[:1] * 2, other.rankings[1]),
    )
    said = masks.fuse([three], r2=0.05, alpha=0.6)[2].replace("Hardly", "hardly")
    assert "c0 & c1 share 100% of their connections" in said and "more than a tenth" not in said
    assert (
        "hardly anything of 'c0'" in said
        and "hardly anything of 'c1'" in said
        and "hardly anything of 'c2'" not in said
    )
    assert (
        "WARNING: Much is pruned; expect damage."
        in masks.fuse([three], r2=0.3, alpha=1.1, granularity="neuron")[2]
    )
    with pytest.raises(UnlearnError, match="leaves nothing to prune"):
        masks.fuse([replace(found, rankings=found.rankings[:1] * 2)], r2=0.05, alpha=0.6)


def test_maps_that_do_not_go_together_are_not_merged():
    settings = dict.fromkeys(merging.MEASURED_ALIKE, 1)
    found = replace(fake([(8, 40)] * 6), settings=settings)
    with pytest.raises(UnlearnError, match="different models"):
        merging.merge([found, replace(fake([(8, 41)] * 6), settings=settings)])
    with pytest.raises(UnlearnError, match=r"different 'cfg' \(1 and 3\)"):
        merging.merge([found, replace(found, settings={**settings, "cfg": 3})])
    with pytest.raises(UnlearnError, match="'c0' stands in several saliency maps; connect 'model'"):
        merging.merge([found, found])


def test_a_concept_that_stands_out_nowhere_is_named():
    found = fake([(8, 40)] * 6)
    settings = {"score": "paper", "prompts": 1, "window": 1}
    nowhere = tuple(replace(r, indices=r.indices[:0]) for r in found.rankings[1])
    said = report.saliency_text(
        replace(found, settings=settings, rankings=(found.rankings[0], nowhere)), 3, 3, 1.0
    )
    assert "WARNING: 'c1' stands out nowhere" in said and "'c0'" not in said


@pytest.mark.parametrize("free, batch", [(10**9, 8), (24, 8), (23, 4), (12, 4), (11, 2), (0, 1)])
def test_as_many_prompts_as_fit_run_at_once(monkeypatch, free, batch):
    """Each half of guidance takes one here, and half as much again is left free."""
    monkeypatch.setattr(lockstep.comfy.model_management, "get_free_memory", lambda device: free)
    model = SimpleNamespace(
        load_device=None, model=SimpleNamespace(memory_required=lambda shape: shape[0])
    )
    assert lockstep._fitting(model, (4, 8, 8), 2) == batch


def paper_need():
    """The memory that the score `paper` needs for layers of 8 x 40 and 4 x 20."""
    return statistics.MemoryNeed.of([("a", 8, 40), ("b", 4, 20)])


def free_memory(monkeypatch, gpu, main):
    def room(device):
        return main if device.type == "cpu" else gpu

    monkeypatch.setattr(statistics.memory, "free_bytes", room)


def test_the_memory_of_the_score_paper_is_known_from_the_shapes():
    """8 bytes a weight and a step of the largest layer, or ranking it; a reserve, and the log."""
    need, known = paper_need(), statistics.tuning
    assert need.work == int(8 * 400 * known.MEMORY_RESERVE)
    assert need.step == int(known.STEP_BYTES * 320 * known.MEMORY_RESERVE)
    assert need.layer == int(known.RANKING_BYTES * 320 * known.MEMORY_RESERVE)
    assert need.total == need.work + need.step + 2**26
    assert replace(need, layer=2**30).total == 2**30 + 2**26


def test_statistics_without_room_beside_the_model_lie_in_main_memory(monkeypatch):
    far, cpu = torch.device("meta"), torch.device("cpu")
    need = paper_need()
    for gpu, main, place in (
        (need.total, 0, far),
        (need.total - 1, need.total, cpu),
        (0, need.total, cpu),
    ):
        free_memory(monkeypatch, gpu, main)
        assert need.place(far) == place, (gpu, main)
        settings = collection.SaliencySettings(r1=0.1)
        layers = [("a", 8, 40), ("b", 4, 20)]
        kept = statistics.PaperStatistics(None, layers, [OBJECTS, CAT], settings)
        kept.allocate(far)
        assert kept.first[0].shape == (8, 40) and kept.concepts == [1]
        assert (kept.first[0].device, kept.second[0].device) == (place, place)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_statistics_that_fit_nowhere_are_refused(monkeypatch, device):
    need = paper_need()
    free_memory(monkeypatch, need.total - 1, need.total - 1)
    with pytest.raises(UnlearnError, match="'paper', which needs .* free; use score 'wanda'"):
        need.place(torch.device(device))


def test_without_memory_nothing_is_run_and_the_need_is_told_before(loaded, monkeypatch):
    said, ran = [], []
    monkeypatch.setattr(statistics.memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(collection.progress, "say", lambda line, node_id: said.append(line))
    monkeypatch.setattr(lockstep.comfy.samplers, "calc_cond_batch", lambda *a: ran.append(a))
    with pytest.raises(UnlearnError, match="use score 'wanda'"):
        collect(loaded)
    assert not ran and hooks(loaded[0]) == 0
    assert len(said) == 1 and said[0].startswith("The statistics will take 0.0")


@pytest.mark.parametrize("in_memory", [2**26, 1])
@pytest.mark.parametrize("scale", ["layer_max", "none"])
def test_what_is_set_aside_adds_up_to_the_same_bits(loaded, monkeypatch, scale, in_memory):
    """As sums [c_out, c_in] of every concept gave it, which took gigabytes on SDXL."""
    monkeypatch.setattr(step_log.tuning, "STEP_LOG_IN_MEMORY", in_memory)
    real, dense, logs = step_log.StepLog.write, {}, []

    def write(self, key, s):
        logs.append(self)
        dense.setdefault(key, []).append(s.clone())
        real(self, key, s)

    monkeypatch.setattr(step_log.StepLog, "write", write)
    found = collect(loaded, window=3, scale=scale)
    assert logs[0]._file.closed and {len(steps) for steps in dense.values()} == {3}
    concepts = sorted({g for g, _ in dense})
    for rankings, g in zip(found.rankings, concepts, strict=True):
        for i, (_, c_out, c_in) in enumerate(found.layers):
            sums = fia.SaliencyAccumulator((c_out, c_in), steps=3)
            for s in dense[g, i]:
                sums.add(s, 0.05)
            expected = ranking_of(sums.saliency(scale), found.ceiling)
            got = rankings[i]
            assert torch.equal(got.indices, expected.indices) and got.peak == expected.peak
            assert torch.equal(got.rows, expected.rows)
            assert torch.equal(got.columns, expected.columns)


def test_a_log_gives_back_what_was_written(tmp_path):
    log = step_log.StepLog(tmp_path / "new")
    written = {}
    for n in range(20):
        array = torch.randn(7, 9, generator=torch.Generator().manual_seed(n)).relu_()
        array = array.T if n % 3 else torch.zeros(9, 7)
        written.setdefault(n % 4, []).append(array)
        log.write(n % 4, array)
    for key, arrays in written.items():
        for (array, positive), expected in zip(log.read(key, (9, 7)), arrays, strict=True):
            assert torch.equal(array, expected) and torch.equal(positive, expected[expected > 0])
    assert log.nbytes == sum(8 + 4 * int((a > 0).sum()) for x in written.values() for a in x)
    assert not list(log.read("none", (9, 7)))
    log.close()


def test_a_full_disk_is_told_in_one_sentence(loaded, monkeypatch):
    class Full:
        def seek(self, at):
            pass

        def write(self, data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(step_log.tempfile, "SpooledTemporaryFile", lambda **how: Full())
    with pytest.raises(UnlearnError, match=r"\(No space left on device\); free disk space"):
        collect(loaded)
    assert hooks(loaded[0]) == 0


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_the_threshold_is_that_of_the_entries_above_zero(share):
    for shift in (-1.0, 0.5, 2.0, 9.0):
        s = (torch.randn(40, 50, generator=torch.Generator().manual_seed(1)) - shift).relu_()
        positive = s[s > 0]
        assert torch.equal(
            fia.top_threshold(positive, share, s.numel()), fia.top_threshold(s, share)
        )


@pytest.mark.parametrize("score", ["paper", "wanda"])
def test_a_concept_may_have_the_name_of_a_baseline(loaded, tmp_path, score):
    """Names that begin with `base ` are concepts as all others, and harm none after them."""
    names = ("base jumper", "base object", "cat")
    found = collect(loaded, "\n".join(names), score=score, prompts=2)
    assert tuple(c.name for c in found.concepts) == names
    alone = collect(loaded, "cat", score=score, prompts=2)
    for a, b in zip(alone.rankings[0], found.rankings[2], strict=True):
        torch.testing.assert_close(a.columns, b.columns, rtol=1e-3, atol=1e-3)
    assert "base object" in found.gathered[types.Group("object", "base object")].prompts[0]
    assert "base object" not in found.gathered[OBJECTS].prompts[0]
    files.save(tmp_path / "x.safetensors", found)
    again = files.load(tmp_path / "x.safetensors")
    assert again.concepts == found.concepts and list(again.gathered) == list(found.gathered)
    for group, part in found.gathered.items():
        assert again.gathered[group].prompts == part.prompts
        if score == "wanda":
            assert torch.equal(again.gathered[group].mean, part.mean)
            assert (again.gathered[group].m2 is None) == (not group.is_baseline)


def test_groups_have_different_names_in_files():
    names = ("base object", "base style", "base jumper", "object", "cat")
    groups = [types.Group(kind) for kind in types.KINDS]
    groups += [types.Group("object", name) for name in names]
    assert len({group.key for group in groups}) == len(groups)
    assert len({raw_files.raw_name(0, group) for group in groups}) == len(groups)
    assert [g.key for g in groups[:3]] == ["base object", "base style", "base explicit"]
    assert types.Group("object", "base jumper").key == "base jumper"


def rewritten(path, change):
    """Writes a saliency file again after `change(content, tensors)`."""
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as f:
        metadata, tensors = f.metadata(), {key: f.get_tensor(key) for key in f.keys()}
    content = json.loads(metadata["saliency"])
    change(content, tensors)
    save_file(tensors, path, {**metadata, "saliency": json.dumps(content)})


def test_files_of_the_first_version_tell_groups_by_their_keys(loaded, tmp_path):
    """They dropped a concept called `base jumper` and kept its statistics, which are left out."""
    path = tmp_path / "x.safetensors"
    found = collect(loaded, "cat", score="wanda", prompts=1)
    files.save(path, found)

    def as_before(content, tensors):
        for entry in content["gathered"].values():
            del entry["kind"], entry["concept"]
        content["gathered"]["base jumper"] = dict(content["gathered"]["cat"])
        for field in ("mean", "m2"):
            tensors[f"gathered.2.{field}"] = tensors[f"gathered.0.{field}"].clone()

    rewritten(path, as_before)
    assert list(files.load(path).gathered) == [OBJECTS, CAT]
    rewritten(path, lambda content, tensors: content["gathered"].pop("base object"))
    with pytest.raises(UnlearnError, match="damaged"):
        files.load(path)


@pytest.mark.parametrize("entry", [{"kind": "thing"}, {"concept": 3}, {"concept": None}])
def test_groups_that_are_not_those_of_the_concepts_are_refused(loaded, tmp_path, entry):
    path = tmp_path / "x.safetensors"
    files.save(path, measured(loaded, "cat", prompts=1, window=1))
    rewritten(path, lambda content, tensors: content["gathered"]["cat"].update(entry))
    with pytest.raises(UnlearnError, match="groups of prompts"):
        files.load(path)


def test_the_values_of_a_ranking_are_for_old_readers_alone(loaded, tmp_path):
    """Version 0.1.0 wants float16 `values` beside the indices, and uses them for nothing."""
    path, found = tmp_path / "x.safetensors", measured(loaded, "cat", prompts=1, window=1)
    files.save(path, found)

    def without_values(content, tensors):
        for i, ranking in enumerate(found.rankings[0]):
            values = tensors.pop(f"0.{i}.values")
            assert values.dtype == torch.float16 and values.shape == ranking.indices.shape

    rewritten(path, without_values)
    assert torch.equal(files.load(path).rankings[0][0].indices, found.rankings[0][0].indices)


def test_statistics_that_are_needed_and_were_not_kept_are_named(loaded):
    """The same prompts twice: nothing is to be merged, but the concept is to be ranked again."""
    found = measured(loaded, "cat", prompts=1, window=1)
    with pytest.raises(UnlearnError, match="'object without a concept' were not kept"):
        merging.merge([found, found], loaded[0])


def test_a_name_measured_as_two_kinds_is_not_merged():
    settings = dict.fromkeys(merging.MEASURED_ALIKE, 1)
    found = replace(fake([(8, 40)] * 6, concepts=1), settings=settings)
    other = replace(found, concepts=(types.Concept("c0", "style"),))
    with pytest.raises(UnlearnError, match="'c0' was measured as object and as style"):
        merging.merge([found, other])


@pytest.mark.parametrize("concepts, told", [(64, True), (65, False)])
def test_what_concepts_share_is_told_only_where_it_was_counted(monkeypatch, concepts, told):
    drawn = {}
    monkeypatch.setattr(report.charts, "bar_charts", lambda title, charts: drawn.update(charts))
    masks.fuse([fake([(8, 40)] * 6, concepts=concepts)], r2=0.05)
    assert ("Shared by two concepts" in drawn) == told


def test_a_layer_no_pattern_knows_is_called_by_its_key():
    assert layers_of.label("diffusion_model.strange.weight") == "diffusion_model.strange.weight"
    key = "diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight"
    assert (layers_of.label(key), layers_of.part(key)) == ("middle 1.0 ff", "middle")


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
    found, _ = collection.collect(
        model,
        clip,
        concepts,
        prompts.OwnLines(("a photo of a {concept}",), ("a photo of a {context}",), ("fox", "axe")),
        **SMALL,
    )
    assert [p.split(":", 1)[1] for p in found.gathered[OBJECTS].prompts] == [
        "a photo of a fox",
        "a photo of a axe",
        "a photo of a fox",
    ]
    with pytest.raises(UnlearnError, match="'base' is empty"):
        own = prompts.OwnLines(("a {concept}",))
        collection.collect(model, clip, concepts, own, **SMALL)
    with pytest.raises(UnlearnError, match="no {concept}"):
        own = prompts.OwnLines(("a cat",), ("a {context}",))
        collection.collect(model, clip, concepts, own, **SMALL)


def test_nan_and_compiled_models_say_so(loaded, monkeypatch):
    model, clip, _ = loaded
    monkeypatch.setattr(
        fia, "correlation", lambda x, y: torch.full((y.shape[1], x.shape[1]), float("nan"))
    )
    with pytest.raises(UnlearnError, match="gives NaN"):
        collect(loaded)
    assert hooks(model) == 0
    compiled = model.clone()
    compiled.add_wrapper_with_key(
        "apply_model", "torch.compile", lambda executor, *a, **k: executor(*a, **k)
    )
    with pytest.raises(UnlearnError, match="compiled"):
        collection.collect(compiled, clip, text.parse("cat"), **SMALL)


def test_the_raw_statistics_say_their_size_and_need_room(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "models_folder", lambda: tmp_path)
    found = collect(loaded, "cat", folder=tmp_path / "x.raw")
    size = sum(p.stat().st_size for p in (tmp_path / "x.raw").iterdir())
    expected = 4 * SMALL["window"] * 3 * sum(a * b for _, a, b in found.layers)
    assert abs(size - expected) < 0.01 * expected
    monkeypatch.setattr(
        raw_files.shutil, "disk_usage", lambda p: type("U", (), {"free": expected // 2})()
    )
    with pytest.raises(UnlearnError, match="the disk has"):
        collect(loaded, "cat", folder=tmp_path / "y.raw")


def test_raw_statistics_that_are_gone_or_damaged_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "models_folder", lambda: tmp_path)
    layers, whole = [("a", 2, 3)], fia.RunningMoments(torch.ones(2, 3), None, 4)
    writer = raw_files.RawWriter(tmp_path / "x.raw", layers, [CAT], 1)
    writer.write(0, CAT, [whole])
    found = raw_files.read_raw(["x.raw"], CAT, 0, 0)
    assert torch.equal(found.mean, whole.mean) and found.m2 is None and found.n == 4
    with pytest.raises(UnlearnError, match="'y.raw' of 'cat' are not in the models folder"):
        raw_files.read_raw(["x.raw", "y.raw"], CAT, 0, 0)
    writer.write(0, CAT, [fia.RunningMoments(torch.full((2, 3), float("nan")), None, 4)])
    with pytest.raises(
        UnlearnError, match=r"in 'x.raw' are damaged \(numbers\); measure them again"
    ):
        raw_files.read_raw(["x.raw"], CAT, 0, 0)
    (path,) = (tmp_path / "x.raw").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnlearnError, match="in 'x.raw' are damaged"):
        raw_files.read_raw(["x.raw"], CAT, 0, 0)


class Packed(torch.nn.Module):
    """A linear layer whose weight is stored as int8 and a scale per row, as GGUF does."""

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
    """Nothing needs gradients or float weights: about the same hidden units are the strongest."""
    import comfy.sd

    plain = measured(loaded, "cat", prompts=2, window=1)
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
