"""Defences: what is done to a model so that it forgets, and so that it stays forgotten.

Each is a function (case) -> the patches to put on the model, one after another. To measure another
one, write it under `@defence("its name")`; it may build on others through `case.patches(name)`.
"""

import functools
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from testbed import pack

from ..peers import Erased, _information, protocols
from ..world import dynamic_mask, fia
from .attacks import reviver
from .subjects import CONTROL, of_world

adapters = pack.module("unlearn.host.adapters")
complement = pack.module("kernels.complement").complement
layers = pack.module("unlearn.host.architectures")
masks = pack.module("unlearn.pruning.masks")
encoder = pack.module("unlearn.closed_form.text_encoder")
parts = pack.module("unlearn.files.encoder_parts")
patch_file = pack.module("unlearn.files.patch_file")
patching = pack.module("unlearn.host.patching")
saliency = pack.module("unlearn.pruning.collection")
saliency_prompts = pack.module("unlearn.pruning.prompts")
sculpting = pack.module("unlearn.sculpting.train")
sculpting_settings = pack.module("unlearn.sculpting.settings")
solving = pack.module("unlearn.closed_form.solve")
text = pack.module("unlearn.concepts.notation")
types = pack.module("unlearn.types")
weights = pack.module("unlearn.host.weights")

UNEDITED, SCAPRE, FIA = "none", "ScaPre", "Forget-It-All"
AS_REVIVED = "ScaPre + pruned as revived"
TRAINER, STACK = "Dynamic Mask Trainer", "all three stacked"
SEARCHED, TEXT = " + trained against search", "text encoder"
PRUNED = {"granularity": "connection", "r2": 0.03}
HELD = 0.99  # share of the energy of kept outputs whose directions no projection touches
WRITTEN = 0.95  # share of the energy of what the concept writes beside them that is projected out
SEED = 0

DEFENCES = {}


def defence(name):
    """Registers a defence, a function (case) -> patches, under the name of its row."""

    def register(function):
        DEFENCES[name] = function
        return function

    return register


class Case:
    """What all defences of a run are given.

    studio: the world's. concepts: everything that is forgotten, as one ConceptSet. folder: where
    patches are kept, so that a run that goes on makes none twice; None keeps them in memory.
    """

    def __init__(self, studio, folder=None):
        self.studio, self.folder, self.known = studio, folder, {}
        self.world, subjects = studio.judge.world, of_world(studio.judge.world)
        self.subjects = [s for name, s in subjects.items() if name != CONTROL]
        self.objects = tuple(s.name for s in self.subjects if s.kind == "object")
        self.styles = tuple(s.name for s in self.subjects if s.kind == "style")
        self.concepts = protocols.concepts(self.world, self.objects, self.styles, explicit=True)

    def patches(self, name):
        """The patches of a defence; made once, and kept."""
        if name not in self.known:
            kept = [] if self.folder is None else sorted(self._files(name))
            if kept:
                self.known[name] = tuple(patch_file.load(file)[0] for file in kept)
            else:
                self.known[name] = tuple(DEFENCES[name](self))
                self._keep(name)
        return self.known[name]

    def _files(self, name):
        return Path(self.folder).glob(f"{_slug(name)}.[0-9].safetensors")

    def _keep(self, name):
        if self.folder is None:
            return
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        for i, patch in enumerate(self.known[name]):
            patch_file.save(Path(self.folder) / f"{_slug(name)}.{i}.safetensors", patch)

    def model(self, name):
        """The MODEL with a defence."""
        return self.on(self.studio.model, self.patches(name))

    @torch.inference_mode()
    def on(self, model, patches):
        """A MODEL with patches, one after another, but for what is of the text encoder."""
        of_model = [part for part in map(parts.of_model, patches) if part is not None]
        return functools.reduce(lambda m, patch: patching.apply(m, patch)[0], of_model, model)

    @torch.inference_mode()
    def erased(self, name):
        """Erased of a defence; with a CLIP where it edits the text encoder."""
        patches = self.patches(name)
        of_clip = [part for part in map(parts.of_encoder, patches) if part is not None]
        clip = functools.reduce(parts.apply, of_clip, self.studio.clip) if of_clip else None
        return Erased(self.model(name), sum(patch.nbytes for patch in patches), clip=clip)

    def patch(self, method, model, edits):
        """An UnlearnPatch of edits [(weight key, edit)] of a MODEL."""
        keys = list(dict.fromkeys(key for key, _ in edits))
        names = [c.name for c in self.concepts.concepts]
        record = {"method": method, "settings": {}, "concepts": names}
        return types.UnlearnPatch(tuple(edits), weights.fingerprint(model, keys), (record,))


def _slug(name):
    return "".join(c if c.isalnum() else "-" for c in name.lower())


@defence(UNEDITED)
def none(case):
    """The model as it came."""
    return ()


@defence(SCAPRE)
@torch.inference_mode()
def scapre(case):
    """The pack's default closed form."""
    return (solving.solve(case.studio.model, case.studio.clip, case.concepts)[0],)


@defence("ScaPre + robustness rounds")
@torch.inference_mode()
def rounds(case):
    """ScaPre with two rounds that also erase the states that RECE's search finds."""
    settings = solving.SolveSettings.of(rounds=2)
    return (solving.solve(case.studio.model, case.studio.clip, case.concepts, settings)[0],)


class Saliency(NamedTuple):
    """One measurement of saliency: concepts of one kind, and the lines it is measured with."""

    concepts: object
    own: object


def saliencies(case):
    """The Saliency of each kind of concept, in sentences that the worlds know."""
    world, found = case.world, []
    contexts = tuple(n for n in world.objects if n not in case.objects)
    bare = ("a photo of a {concept} {context}", "an image of a {concept} {context}")
    base = ("a photo of a {context}", "an image of a {context}")
    word = world.explicit_word
    for lines, own in (
        ("\n".join(case.objects), fia.lines(world, case.objects)),
        ("\n".join(f"style: {s}" for s in case.styles), fia.lines(world, case.objects, True)),
        (f"explicit: {word}", (bare, base, contexts)),
    ):
        found.append(Saliency(text.parse(lines), saliency_prompts.OwnLines(*own)))
    return found


def measured(case, model, one, matrix=None):
    """SaliencyMap of a Saliency on a MODEL.

    matrix: [d, d]; where given, a prompt with a concept is read as its states times this.
    """
    clip, how = case.studio.clip, {**fia.HOW, "size": 8 * case.world.size}
    groups = saliency_prompts.build_groups(clip, one.concepts.concepts, how["prompts"], 0, one.own)
    said = {}
    for group, texts in groups:
        for prompt in texts if matrix is not None and group.concept is not None else ():
            ((states, more),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            said[prompt] = states @ matrix.to(states), more
    return saliency.collect(model, clip, one.concepts, one.own, encoded=said, **how)[0]


@defence(FIA)
@torch.inference_mode()
def forget_it_all(case):
    """Saliency of the names on the model as it came, fused and pruned."""
    maps = [measured(case, case.studio.model, one) for one in saliencies(case)]
    return (masks.fuse(maps, **PRUNED)[0],)


def trained(case, earlier=None, resist_search=False):
    """The patch of Dynamic Mask Trainer, with the settings of `dev.py bench dynamic_mask`.

    earlier: what it starts from and contains. resist_search: as the node's input.
    """
    more = {"size": 8 * case.world.size, "variant": "replay", "seed": SEED}
    how = sculpting_settings.TrainingSettings(**{**dynamic_mask.LEARNING, **more})
    if resist_search:
        how = replace(how.against_search(), precision="bf16")  # takes half the time
    inputs = sculpting.TrainingInputs(earlier=earlier)
    s = case.studio
    return sculpting.train(s.model, s.clip, case.concepts, how, inputs).patch


@defence(TRAINER)
@torch.inference_mode()
def trainer(case):
    """Dynamic Mask Trainer, as `dev.py bench dynamic_mask` trains the worlds."""
    return (trained(case),)


def trained_against_search(case, start):
    """A defence's patches, trained on while states that revive a concept are searched."""
    first, *others = case.patches(start)
    return (trained(case, sum(others, first), resist_search=True),)


@defence(f"{SCAPRE}{SEARCHED}")
@torch.inference_mode()
def scapre_and_search(case):
    """From ScaPre's edit on."""
    return trained_against_search(case, SCAPRE)


@defence(f"{AS_REVIVED}{SEARCHED}")
@torch.inference_mode()
def pruned_and_search(case):
    """From ScaPre's edit and its pruning on."""
    return trained_against_search(case, AS_REVIVED)


@defence(TEXT)
@torch.inference_mode()
def text_encoder(case):
    """The first layer of the text encoder alone, as Erase in Text Encoder edits it."""
    return (encoder.solve(case.studio.clip, case.concepts)[0],)


@defence(f"{SCAPRE} + {TEXT}")
@torch.inference_mode()
def both_ends(case):
    """The keys and values, and the text encoder."""
    return (*case.patches(SCAPRE), *case.patches(TEXT))


@defence(STACK)
@torch.inference_mode()
def stacked(case):
    """ScaPre, then Forget-It-All, then Dynamic Mask Trainer from there on."""
    (solved,), (pruned,) = case.patches(SCAPRE), case.patches(FIA)
    return (trained(case, solved + pruned),)


def outputs_to_remove(w, read):
    """Orthonormal [d_out, r] of what the concepts write with a weight W [d_out, d].

    read: an _information.Information. Directions in which kept words write are left out, so that
    their outputs stay. Each concept's contrasts are scaled alike.
    """
    kept = torch.cat([read.kept, read.listed]) @ w.T
    free = complement(kept.T @ kept, HELD)
    found = []
    for i in range(read.count):
        own = read.of == i
        contrast = (read.concept - read.target)[own] * read.weight[own].sqrt()[:, None]
        written = contrast @ w.T
        left = written @ free / written.norm()
        found.append(left)
    together = torch.cat(found)
    values, vectors = torch.linalg.eigh(together.T @ together)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    rank = int((values.cumsum(0) < WRITTEN * values.sum()).sum()) + 1
    return free @ vectors[:, :rank]


@defence("ScaPre + values projected")
@torch.inference_mode()
def values_projected(case):
    """ScaPre's patch, and one that projects what the concepts write out of the values."""
    edited, edits = case.model(SCAPRE), []
    read = _information.read(case.studio.clip, case.concepts)
    for layer in layers.cross_attention(case.studio.model):
        if layer.role == "value":
            u = outputs_to_remove(weights.read(case.studio.model, layer.key).double(), read)
            down = u.T @ weights.read(edited, layer.key).double()
            edits.append((layer.key, adapters.LowRank.of(-u.float(), down.float())))
    name = "Output projection"
    return (*case.patches(SCAPRE), case.patch(name, case.studio.model, edits))


@defence(AS_REVIVED)
@torch.inference_mode()
def pruned_as_revived(case):
    """ScaPre's patch, and a pruning by the saliency of the embedding that revives, not of the name.

    A name says nothing to the edited model. RECE's embedding draws the concept again, so under it
    the units are active that draw the concept, whatever it is called.
    """
    edited = case.model(SCAPRE)
    matrix = reviver(case.studio.model, edited)
    maps = [measured(case, edited, one, matrix) for one in saliencies(case)]
    return (*case.patches(SCAPRE), masks.fuse(maps, **PRUNED)[0])
