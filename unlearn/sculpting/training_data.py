"""What Sculpting Memory trains on: latents that the model itself draws for the plan's sentences."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...kernels import sculpting as kernel
from ..errors import UnlearnError
from ..host.memory import BatchSize
from ..host.progress import Progress
from ..host.training_network import Branch, DrawSettings, Network
from . import tuning
from .plan import ForgetTask, TrainingPlan
from .settings import TrainingSettings

_lock = threading.Lock()
# Drawn latents by a digest of everything that decides them, so that another run with other settings
# need not draw them again.
_cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()


class RetainedGroup(NamedTuple):
    """Texts that are to stay as they are, with pictures [n, c, h, w].

    share: of all retained rows. kind: a key of tuning.RETAINED_SHARES.
    """

    share: float
    texts: Sequence[str]
    pictures: torch.Tensor
    kind: str


class Check(NamedTuple):
    """What a concept is measured on: latents x [n, ...] at noise levels sigma [n] on the device.

    text_ids: texts with the concept. superclass_ids: the same texts with its superclass.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    text_ids: list[int]
    superclass_ids: list[int]


class TrainingData:
    """A plan with its latents, float32 [n, c, h, w] on the CPU.

    own and other: by concept name, pictures of the concept and of its superclass. kept and
    captions: one picture for each entry of the plan.
    """

    def __init__(
        self,
        network: Network,
        plan: TrainingPlan,
        settings: TrainingSettings,
        shape: Sequence[int],
        own_pictures: torch.Tensor | None = None,
        bar: Progress | None = None,
    ) -> None:
        """shape: of a latent [c, h, w]. own_pictures: latents that the artist brought, or None."""
        self.network = network
        self.plan = plan
        self.settings = settings
        self.shape = list(shape)
        self.model_digest = _digest(network)
        self.own: dict[str, torch.Tensor] = {}
        self.other: dict[str, torch.Tensor] = {}
        for task in plan.tasks:
            self._draw_task(task, own_pictures, bar)
        for task in plan.earlier_tasks if settings.replays else ():
            self._draw_task(task, None, bar)
        self.kept = self.captions = torch.zeros(0, *self.shape)
        if settings.replays:
            each = settings.kept_pictures
            self.kept = self._draw_plainly([d for d, _ in plan.kept for _ in range(each)], bar)
            self.captions = self._draw_plainly(list(plan.captions), bar)

    def _draw_task(
        self, task: ForgetTask, own_pictures: torch.Tensor | None, bar: Progress | None
    ) -> None:
        """Draws a concept, and its superclass guided away from the concept's name."""
        n, name = self.settings.pictures, task.concept.name
        chosen = [task.drawn[i % len(task.drawn)] for i in range(n)]
        if own_pictures is None:
            own_pictures = self._draw_plainly([own for own, _ in chosen], bar)
        self.own[name] = own_pictures
        self.other[name] = self._drawn([other for _, other in chosen], [name] * n, bar)

    def _draw_plainly(self, texts: list[str], bar: Progress | None) -> torch.Tensor:
        return self._drawn(texts, [""] * len(texts), bar)

    def _drawn(self, texts: list[str], away_from: list[str], bar: Progress | None) -> torch.Tensor:
        """Latents of texts guided away from others, from the cache or drawn by the reference."""
        if not texts:
            return torch.zeros(0, *self.shape)
        key = self._cache_key(texts, away_from)
        with _lock:
            found = _cache.get(key)
        if found is None:
            found = self._draw(texts, away_from, bar)
        elif bar is not None:
            bar.skip(len(texts) * self.settings.sampling_steps)
        with _lock:
            _cache[key] = found
            _cache.move_to_end(key)
            while _cached_bytes() > tuning.CACHED_LATENT_BYTES and len(_cache) > 1:
                _cache.popitem(last=False)
        return found

    def _cache_key(self, texts: list[str], away_from: list[str]) -> bytes:
        s = self.settings
        decides = (
            self.model_digest,
            self.network.conditions_digest([*texts, *away_from]),
            texts,
            away_from,
            s.seed,
            self.shape,
            s.sampling_steps,
            s.cfg,
            self.network.dtype,
        )
        return hashlib.blake2b(repr(decides).encode(), digest_size=16).digest()

    def _draw(self, texts: list[str], away_from: list[str], bar: Progress | None) -> torch.Tensor:
        s, text_id = self.settings, self.network.text_id
        found = self.network.draw(
            self.network.reference,
            [text_id[text] for text in texts],
            [text_id[text] for text in away_from],
            [(s.seed + i) % 2**63 for i in range(len(texts))],
            DrawSettings(tuple(self.shape), s.sampling_steps, s.cfg),
            bar,
        )
        if not torch.isfinite(found).all():
            raise UnlearnError(
                "The input 'model' draws NaN, so it cannot be trained; load an undamaged "
                "checkpoint or set 'precision' to fp32."
            )
        return found

    def retained_groups(self, round_number: int) -> list[RetainedGroup]:
        """Everything that is to stay as it is in a round, with its share of the retained rows."""
        kinds: dict[str, list[tuple[Sequence[str], torch.Tensor]]] = {}
        kinds["earlier"] = []
        for task in (*self.plan.earlier_tasks, *self.plan.tasks[:round_number]):
            name = task.concept.name
            pictures = torch.cat([self.own[name], self.other[name]])
            kinds["earlier"].append(([text for text, _ in task.pairs], pictures))
        each = self.settings.kept_pictures
        kinds["keep"] = [
            (texts, self.kept[i * each : (i + 1) * each])
            for i, (_, texts) in enumerate(self.plan.kept)
        ]
        kinds["prior"] = [
            ([text], self.captions[i : i + 1]) for i, text in enumerate(self.plan.captions)
        ]
        everything = torch.cat([self.kept, self.captions, *self.other.values()])
        kinds["empty"] = [([""], everything)]
        shares = tuning.RETAINED_SHARES
        total = sum(shares[kind] for kind, groups in kinds.items() if groups)
        return [
            RetainedGroup(shares[kind] / total / len(groups), texts, pictures, kind)
            for kind, groups in kinds.items()
            for texts, pictures in groups
        ]

    def retained_states(self) -> torch.Tensor:
        """Text states [n, d] on the CPU of all that is to stay, earlier concepts left out."""
        texts = [""]
        for _, kept in self.plan.kept:
            texts += kept
        texts += self.plan.captions
        ids = [self.network.text_id[text] for text in texts]
        return self.network.conds["c_crossattn"][ids].flatten(0, 1)

    def retained_rows(
        self, groups: Sequence[RetainedGroup], n: int, g: torch.Generator
    ) -> tuple[torch.Tensor, list[int], torch.Tensor]:
        """n random rows of the groups, evenly spread by their shares.

        Returns latents [n, c, h, w], text ids, and booleans [n]: whether the row is of an earlier
        concept, which is to stay as the teacher has it. While it is searched for what brings a
        concept back, pictures of earlier concepts are such rows under any text: the teacher leads
        them away, and the unedited model does not.
        """
        upper = torch.tensor([group.share for group in groups], dtype=torch.float64).cumsum(0)
        at = (torch.arange(n) + torch.rand(n, generator=g)) / n * upper[-1]
        which = torch.searchsorted(upper, at.double()).clamp_max(len(groups) - 1)
        everything = torch.cat([group.pictures for group in groups])
        of_earlier = [group.kind == "earlier" for group in groups for _ in group.pictures]
        latents, text_ids, earlier = [], [], []
        for i in which[torch.randperm(n, generator=g)].tolist():
            group = groups[i]
            matching = torch.rand((), generator=g) < tuning.MATCHING_PICTURES
            pictures = group.pictures if matching else everything
            (number,) = pick(len(pictures), 1, g)
            latents.append(pictures[number])
            text_ids.append(self.network.text_id[group.texts[pick(len(group.texts), 1, g)[0]]])
            led_away = bool(self.settings.resist) and not matching and of_earlier[number]
            earlier.append(group.kind == "earlier" or led_away)
        return torch.stack(latents), text_ids, torch.tensor(earlier)

    def check(self, task: ForgetTask, n: int) -> Check:
        """n measurements of a concept on sentences that are not trained on."""
        g = torch.Generator().manual_seed((self.settings.seed + 7919) % 2**63)
        network, name = self.network, task.concept.name
        pictures = torch.cat([self.own[name], self.other[name]])
        order = torch.randperm(len(pictures), generator=g)
        latents = pictures[order[torch.arange(n) % len(pictures)]]
        sigma = network.levels((torch.arange(n) + 0.5) / n)
        noise = torch.randn(latents.shape, generator=g)
        x = network.noised(latents.to(network.device), noise.to(network.device), sigma)
        pairs = [task.checks[i % len(task.checks)] for i in range(n)]
        own = [network.text_id[text] for text, _ in pairs]
        return Check(x, sigma, own, [network.text_id[text] for _, text in pairs])

    @torch.no_grad()
    def difference(self, branch: Branch, check: Check, batch_size: BatchSize) -> float:
        """How much the name of a concept changes a branch's predictions.

        It is the root mean squared distance between predictions with the concept and with its
        superclass.
        """
        x = torch.cat([check.x, check.x])
        sigma = torch.cat([check.sigma, check.sigma])
        text_ids = check.text_ids + check.superclass_ids
        p = self.network.predict_in_batches(branch, x, sigma, text_ids, batch_size)
        n = len(check.text_ids)
        return float(kernel.squared_error(p[:n], p[n:]).mean().sqrt())


def pick(n: int, k: int, g: torch.Generator) -> list[int]:
    """k random numbers below n."""
    return torch.randint(n, (k,), generator=g).tolist()


def _cached_bytes() -> int:
    return sum(latents.nbytes for latents in _cache.values())


def _digest(network: Network) -> str:
    """Samples of all weights of the network's reference, LoRAs included, as a hex digest.

    They decide what latents the network draws.
    """
    h = hashlib.blake2b(digest_size=16)
    for name, p in network.reference.named_parameters():
        flat = p.detach().flatten()
        samples = flat[:: max(1, flat.numel() // 64)].float().cpu().contiguous()
        h.update(name.encode() + samples.numpy().tobytes())
    return h.hexdigest()
