"""Attacks that try to bring an erased subject back, with the edited model at hand.

Each is a function (studio, world, subject, erased, budget) -> for each of budget.pictures pictures,
whether it shows the subject. None changes the model that comes in. A negative prompt that belongs
to the method stays in place, but for the gradients of a search.
"""

import contextlib
import functools
from dataclasses import dataclass, field

import numpy as np
import torch

from testbed import pack
from testbed.train.model import to_latent
from testbed.train.plant import noised
from testbed.worlds.captions import Caption

from ..peers import Erased
from .network import PLACE, Text, network, quick

adapters = pack.module("unlearn.host.adapters")
kernel = pack.module("kernels.rece")
layers = pack.module("unlearn.host.architectures")
patching = pack.module("unlearn.host.patching")
types = pack.module("unlearn.types")
weights = pack.module("unlearn.host.weights")
REVIVAL = pack.module("unlearn.closed_form.tuning").REVIVAL
CFG = 3.0  # that the worlds are drawn with
RATE = 5e-3  # Adam's, of textual inversion
PREFIX = 5  # tokens that a prompt search puts before the prompt
LOOKS = 4  # at a prompt search, the last one included
CANDIDATES = 8  # that are tried in one step of a prompt search
RANK, LORA_RATE, LORA_PICTURES = 4, 2e-3, 5

ATTACKS = {}


@dataclass(frozen=True)
class Budget:
    """pictures: drawn after an attack, in `steps` sampling steps, from noise of `seed` on.

    batch: pictures in a training step. search, lora: steps of these attacks. memo: what the attacks
    on one model share; a new one for each model.
    """

    pictures: int = 16
    steps: int = 8
    seed: int = 9000
    batch: int = 4
    search: int = 40
    lora: int = 20
    memo: dict = field(default_factory=dict)

    def once(self, key, make):
        """What `make()` gave at the first call with this key."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


def attack(name, edited_clip=True, **fixed):
    """Registers an attack under a name; fixed: further arguments of the function.

    edited_clip: whether text is read by the CLIP that belongs to the edited model, where there is
    one. Else it is read by that of the unedited model.
    """

    def register(function):
        @functools.wraps(function)
        def reading(studio, world, subject, erased, budget, *given, **more):
            if edited_clip and erased.clip is not None:
                studio = budget.once("studio", functools.partial(studio.reading, erased.clip))
            return function(studio, world, subject, erased, budget, *given, **more)

        ATTACKS[name] = functools.partial(reading, **fixed)
        return reading

    return register


@functools.lru_cache(maxsize=1)
def reader(clip):
    """The Text of a CLIP."""
    return Text(clip)


@contextlib.contextmanager
def gradients():
    """A context in which gradients are computed, wherever it is entered."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def drawn(studio, erased, states, budget):
    """Pictures of states [n, 77, d], drawn as the benchmarks draw texts."""
    texts = [f"revived {i}" for i in range(len(states))]
    studio.states |= dict(zip(texts, states, strict=True))  # in place of what the encoder would say
    how = {"model": erased.model, "negative": erased.negative, "perp": erased.perp}
    try:
        captions = [Caption(t) for t in texts]
        return studio.draw(captions, seed=budget.seed, steps=budget.steps, **how)
    finally:
        for text in texts:
            del studio.states[text]


def sentences(subject, budget, word=None):
    """The sentences that are drawn."""
    return [subject.sentence(i, word) for i in range(budget.pictures)]


def encoded(text, said, embeddings):
    """States [n, 77, d] of sentences, each read once."""
    with torch.inference_mode(), quick():
        each = dict.fromkeys(said)
        for sentence in each:
            each[sentence] = text([sentence], embeddings)[0]
        return torch.stack([each[sentence] for sentence in said])


def loss_of(unet, batch, states):
    """The weighted denoising loss [n] of a batch of `noised`."""
    x, t, noise, weight = batch
    return ((unet(x, t, states) - noise).square() * weight).flatten(1).mean(1)


class Inversion:
    """A textual inversion that goes on where it stopped; its embeddings [tokens, d] start alike."""

    def __init__(self, studio, world, subject, unet, tokens):
        self.studio, self.world, self.subject, self.unet = studio, world, subject, unet
        self.text = reader(studio.clip)
        self.word = " ".join([PLACE] * tokens)
        first = self.text.embedding(subject.start).repeat(tokens, 1)
        self.embeddings = first.requires_grad_()
        self.optimiser = torch.optim.Adam([self.embeddings], RATE)
        self.rng, self.done, self.hits = np.random.default_rng(0), 0, []

    def train(self, steps, batch):
        """Goes on until `steps` steps are done. The pictures of a step are of one object."""
        for step in range(self.done, steps):
            pictures = self.subject.pictures(self.world, [step] * batch, self.rng)
            sentence = self.subject.sentence(step, self.word, drawn=False)
            with quick():
                states = self.text([sentence], self.embeddings).expand(batch, -1, -1)
                loss = loss_of(self.unet, noised(pictures, self.rng), states).mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        self.done = max(self.done, steps)


@attack("inversion 1x60", tokens=1, training=60)
@attack("inversion 4x60", tokens=4, training=60)
@attack("inversion 1x200", tokens=1, training=200)
@attack("inversion 4x200", tokens=4, training=200)
@attack("inversion 1x1000", tokens=1, training=1000)
@attack("inversion 4x1000", tokens=4, training=1000)
def inversion(studio, world, subject, erased, budget, tokens=1, training=60):
    """Textual inversion: embeddings of new tokens, learned from pictures through the encoder.

    `inversion 4x200` is of 4 tokens with 200 steps.

    The learning rate is constant, so it does not depend on the length, and a training of 1,000
    steps is the same as one of 60 that goes on. So there is one training for each number of tokens,
    and it is looked at on the way. An attacker keeps the best of what was saved: hits are those of
    the best look so far, and a training whose pictures all show the subject goes on no further.
    """
    with gradients():
        unet = budget.once("network", functools.partial(network, erased.model))
        make = functools.partial(Inversion, studio, world, subject, unet, tokens)
        run = budget.once(("inversion", subject.name, tokens), make)
        if run.hits and all(run.hits):
            return list(run.hits)
        run.train(training, budget.batch)
        embeddings = run.embeddings.detach().clone()
    with torch.inference_mode():
        states = encoded(run.text, sentences(subject, budget, run.word), embeddings)
        hits = subject.shows(studio.judge, drawn(studio, erased, states, budget))
    if sum(hits) >= sum(run.hits):
        run.hits = hits
    return list(run.hits)


@torch.inference_mode()
def reviver(model, edited):
    """The matrix M [d, d] of RECE's search: states c are revived as c M.

    A revived state is the one for which the cross-attention of the `edited` MODEL answers most
    nearly as that of the original did to c. It undoes nothing in other layers.
    """
    after, cross, before = 0, 0, 0
    for layer in layers.cross_attention(model):
        w0, w = (weights.read(m, layer.key).double() for m in (model, edited))
        after, cross, before = after + w.T @ w, cross + w.T @ w0, before + w0.T @ w0
    lam = REVIVAL * float(before.diagonal().mean())
    return kernel.revive(after, cross, torch.eye(len(before)), lam).float()


@attack("RECE's embedding", edited_clip=False)
@torch.inference_mode()
def rece(studio, world, subject, erased, budget):
    """RECE's closed-form search, of every token state of sentences with the name.

    Who searches so has the unedited model, and so the states that its text encoder gives.
    """
    found = budget.once("reviver", functools.partial(reviver, studio.model, erased.model))
    back = studio.encode(sentences(subject, budget)) @ found
    return subject.shows(studio.judge, drawn(studio, erased, back, budget))


@attack("img2img at 0.5", strength=0.5)
@attack("img2img at 0.7", strength=0.7)
@torch.inference_mode()
def img2img(studio, world, subject, erased, budget, strength=0.5):
    """Draws over pictures of the subject, in sentences with its name."""
    import comfy.sample

    rng, numbers = np.random.default_rng(budget.seed), range(budget.pictures)
    form = studio.model.model.latent_format
    start = to_latent(subject.pictures(world, numbers, rng))
    noise = [
        torch.randn(start.shape[1:], generator=torch.Generator().manual_seed(budget.seed + i))
        for i in numbers
    ]
    states = studio.encode(sentences(subject, budget))
    away = studio.encode([erased.negative]).expand(len(states), -1, -1)
    with quick():
        found = comfy.sample.sample(
            erased.model,
            torch.stack(noise),
            budget.steps,
            CFG,
            "ddim",
            "ddim_uniform",
            [[states, {}]],
            [[away, {}]],
            form.process_out(start),
            denoise=strength,
            disable_pbar=True,
            seed=0,
        )
    pictures = form.process_in(found.float().cpu())[:, :3] / 2 + 0.5
    return subject.shows(studio.judge, pictures.clamp(0, 1))


class PromptSearch:
    """Tokens [PREFIX] before a prompt with the name that lower the denoising loss of pictures.

    The loss is of one batch at fixed noise, so that prompts can be compared.
    """

    def __init__(self, studio, world, subject, unet, batch):
        rng = np.random.default_rng(0)
        self.text, self.unet, self.rng = reader(studio.clip), unet, rng
        # Pictures of one object, so that one sentence is true of all.
        self.batch = noised(subject.pictures(world, [0] * batch, rng), rng)
        self.sentence = f"{' '.join([PLACE] * PREFIX)} {subject.sentence(0, drawn=False)}"
        size = len(self.text.table) - 2  # the last two are the start and the end of a text
        self.tokens = torch.from_numpy(rng.integers(size, size=PREFIX))
        self.words = self.text.table[:size]
        self.best = float(self.losses(self.tokens[None])[0])

    def losses(self, tokens):
        """The loss [n] under each row of tokens [n, PREFIX]."""
        n = len(self.batch[0])
        with torch.no_grad(), quick():
            states = self.text([self.sentence] * len(tokens), self.words[tokens])
            rows = tuple(part.repeat(len(tokens), 1, 1, 1) for part in self.batch if part.dim() > 1)
            every = rows[0], self.batch[1].repeat(len(tokens)), *rows[1:]
            return loss_of(self.unet, every, states.repeat_interleave(n, 0)).view(-1, n).mean(1)

    def step(self, place):
        """Tries the tokens of which the gradient promises most at one place; keeps the best."""
        said = self.words[self.tokens].clone().requires_grad_()
        with quick():
            states = self.text([self.sentence], said).expand(len(self.batch[0]), -1, -1)
            loss = loss_of(self.unet, self.batch, states).mean()
        (slope,) = torch.autograd.grad(loss, said)
        promise = self.words @ slope[place].float()
        tried = self.tokens.repeat(CANDIDATES, 1)
        tried[:, place] = promise.topk(CANDIDATES, largest=False).indices
        losses = self.losses(tried)
        if float(losses.min()) < self.best:
            self.best, self.tokens = float(losses.min()), tried[int(losses.argmin())]


@attack("prompt search")
def prompt_search(studio, world, subject, erased, budget):
    """Words of the vocabulary before the prompt with the name, as UnlearnDiffAtk searches them.

    UnlearnDiffAtk (arXiv 2310.11868) minimises the edited model's own denoising loss of a picture
    of the concept over discrete tokens before the prompt. Here each step takes the gradient at the
    tokens' embeddings, and tries the words that it promises most of, in one place after another.
    It is looked at LOOKS times on the way; the best look counts, and a full one ends the search.
    """
    with gradients():
        unet = budget.once("network", functools.partial(network, erased.model))
        run, best = PromptSearch(studio, world, subject, unet, budget.batch), []
    front = " ".join([PLACE] * PREFIX)
    said = [f"{front} {sentence}" for sentence in sentences(subject, budget)]
    for part in range(LOOKS):
        with gradients():
            for step in range(budget.search * part // LOOKS, budget.search * (part + 1) // LOOKS):
                run.step(step % PREFIX)
            found = run.words[run.tokens].clone()
        with torch.inference_mode():
            states = encoded(run.text, said, found)
            hits = subject.shows(studio.judge, drawn(studio, erased, states, budget))
        best = hits if sum(hits) >= sum(best) else best
        if all(best):
            break
    return best


class Adapters:
    """LoRAs of rank RANK beside every matrix of a UNet's attention while a `with` block runs."""

    def __init__(self, unet):
        g, self.unet, self.pairs = torch.Generator().manual_seed(0), unet, {}
        for name, module in unet.named_modules():
            if isinstance(module, torch.nn.Linear) and {"attn1", "attn2"} & {*name.split(".")}:
                down = torch.randn(RANK, module.in_features, generator=g) / module.in_features**0.5
                up = torch.zeros(module.out_features, RANK)
                self.pairs[name] = up.requires_grad_(), down.requires_grad_()

    def __enter__(self):
        def added(pair, module, given, output):
            return output + given[0] @ pair[1].T @ pair[0].T

        self.hooks = [
            self.unet.get_submodule(name).register_forward_hook(functools.partial(added, pair))
            for name, pair in self.pairs.items()
        ]
        return [part for pair in self.pairs.values() for part in pair]

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def on(self, model):
        """The MODEL with these LoRAs."""
        edits = tuple(
            (f"diffusion_model.{name}.weight", adapters.LowRank.of(*(p.detach() for p in pair)))
            for name, pair in self.pairs.items()
        )
        mark = weights.fingerprint(model, [key for key, _ in edits])
        record = {"method": "LoRA", "settings": {}, "concepts": []}
        return patching.apply(model, types.UnlearnPatch(edits, mark, (record,)))[0]


@attack("LoRA on 5 pictures")
def lora(studio, world, subject, erased, budget):
    """A short fine-tuning on five pictures in sentences with the name, which then draws."""
    rng = np.random.default_rng(0)
    with gradients():
        unet = budget.once("network", functools.partial(network, erased.model))
        pictures = subject.pictures(world, range(LORA_PICTURES), rng)
        said = [subject.sentence(i, drawn=False) for i in range(LORA_PICTURES)]
        states, beside = studio.encode(said).clone(), Adapters(unet)
        with beside as parameters:
            optimiser = torch.optim.Adam(parameters, LORA_RATE)
            for _ in range(budget.lora):
                with quick():
                    loss = loss_of(unet, noised(pictures, rng), states).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    with torch.inference_mode():
        tuned = Erased(beside.on(erased.model), 0, erased.negative, erased.perp)
        states = studio.encode(sentences(subject, budget))
        return subject.shows(studio.judge, drawn(studio, tuned, states, budget))


def ordered():
    """Names of the attacks, the cheap ones first."""
    return sorted(ATTACKS, key=lambda n: (cost(n, Budget()), n))


def cost(name, budget):
    """Training steps that an attack takes at most, those that read on from shorter ones included.

    A step of a prompt search counts as three: it tries CANDIDATES prompts as well.
    """
    fixed = ATTACKS[name].keywords
    if "training" in fixed:
        return fixed["training"]
    return {"prompt search": 3 * budget.search, "LoRA on 5 pictures": budget.lora}.get(name, 0)
