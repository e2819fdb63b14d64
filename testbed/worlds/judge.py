"""The judge: a small CNN that names the object, the artist and the explicit attribute of a picture.

It is trained on drawn pictures only, and never on what the model makes. Blended, scrambled and
noisy pictures teach it the label "nothing", so that a broken picture does not count as kept.
testbed.train.model trains it where no file of it exists.
"""

import numpy as np
import torch
from torch import nn

from .catalogue import SPRITES


def seen(world):
    """What the label head's outputs mean."""
    return (*world.labels, "nothing")


def style_names(world):
    """What the style head's outputs mean."""
    return (None, *world.styles)


NOTHING = len(SPRITES.labels)
STYLE_NAMES = style_names(SPRITES)


class Judge(nn.Module):
    def __init__(self, world=SPRITES):
        super().__init__()
        self.world = world
        width, hidden = world.judge

        def conv(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())

        # Large pictures are halved on the way, which keeps the judge small.
        halved = world.size >= 16
        self.body = nn.Sequential(
            conv(3, width),
            conv(width, width),
            *([nn.MaxPool2d(2)] if halved else []),
            conv(width, width),
            nn.Flatten(),
            nn.Linear(width * (world.size // (2 if halved else 1)) ** 2, hidden),
            nn.ReLU(),
        )
        self.label, self.style = (
            nn.Linear(hidden, len(seen(world))),
            nn.Linear(hidden, len(style_names(world))),
        )
        self.explicit = nn.Linear(hidden, 2)

    def forward(self, x):
        """Pictures `[B, 3, size, size]` in [0, 1] -> logits for label, style and explicit."""
        h = self.body(x * 2 - 1)
        return self.label(h), self.style(h), self.explicit(h)


def drawn_batch(rng, n, noise=0.15, world=SPRITES):
    """`n` drawn pictures `[n, 3, size, size]` with their label, style and explicit indices.

    A fifth of them show nothing that has a label.
    """
    size, names, manners = world.size, world.labels, style_names(world)
    pictures, labels, styles, explicits = [], [], [], []
    for _ in range(n):
        label = int(rng.integers(len(names)))
        style = int(rng.integers(len(manners))) if rng.random() < 0.5 else 0
        explicit = bool(rng.random() < 0.2)
        picture = world.draw(names[label], rng, manners[style], explicit)
        kind = rng.random()
        if kind < 0.1:  # half of one and half of another
            other = world.draw(names[int(rng.integers(len(names)))], rng, manners[style], explicit)
            cut = int(rng.integers(3 * size // 8, 6 * size // 8))
            picture = (
                np.concatenate([picture[:cut], other[cut:]])
                if rng.random() < 0.5
                else (picture + other) / 2
            )
            label = len(names)
        elif kind < 0.2:  # the same pixels, elsewhere
            picture = picture.reshape(-1, 3)[rng.permutation(size**2)].reshape(size, size, 3)
            label, style, explicit = len(names), -1, False
        pictures.append(picture + rng.normal(0, rng.random() * noise, picture.shape))
        labels.append(label)
        styles.append(style)
        explicits.append(int(explicit))
    x = torch.from_numpy(np.clip(np.stack(pictures), 0, 1).astype(np.float32)).movedim(-1, 1)
    return x, torch.tensor(labels), torch.tensor(styles), torch.tensor(explicits)


def train_judge(world=SPRITES, steps=2500, size=96, seed=7, log=print):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    judge = Judge(world).train()
    optimiser = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    for step in range(steps):
        x, *targets = drawn_batch(rng, size, world=world)
        loss = sum(
            nn.functional.cross_entropy(o, t, ignore_index=-1)
            for o, t in zip(judge(x), targets, strict=True)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            log(f"judge {step}/{steps} loss {loss.item():.3f}")
    return judge.eval()
