"""Words on what a node is doing: how far it is, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 0.5  # seconds between two messages at least
LOOK_BACK = 15.0  # seconds after which what was fast or slow counts by a third
FIRST_ESTIMATE = 1.5  # seconds of work before a time is named
SOON = 3.0  # seconds left under which none is named


class Stage:
    """Says what a node does, at its beginning and then at most twice a second.

    show: takes each message. clock: tells the time in seconds.
    """

    def __init__(
        self, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._show, self._clock = show, clock
        self._shown = -EVERY
        self.begin("")

    def begin(
        self, what: str, total: int = 0, each: int = 1, then: str = "", guess: float = 0.0
    ) -> None:
        """Another stage of the work begins.

        what: a sentence, in which {at} and {of} stand for the part that is worked on and for how
        many there are. total: steps of the stage, 0 where they are not known; each: steps of a
        part. then: what stands behind it, such as 'then training'. guess: how many seconds the
        stage will take, for as long as nothing is done; 0 where that is not known.
        """
        self._what, self.then, self._guess = what, then, guess
        self.total, self.each, self.done = total, max(1, each), 0
        self._seconds, self._steps = 0.0, 0.0
        self._last = self._clock()
        if what:
            self._say()

    def step(self, n: int = 1) -> None:
        """n steps are done."""
        now = self._clock()
        passed, self._last = now - self._last, now
        kept = 1 / (1 + passed / LOOK_BACK)
        self._seconds = self._seconds * kept + passed
        self._steps = self._steps * kept + n
        self.skip(n)

    def skip(self, n: int = 1) -> None:
        """n steps are done that took no time, as what is read from a cache."""
        self.done += n
        if self._what and self._clock() - self._shown >= EVERY:
            self._say()

    def back_to(self, done: int) -> None:
        """So many steps are done, as where some are done again."""
        self.done = done

    def text(self) -> str:
        """The message of this moment."""
        parts = -(-self.total // self.each)
        at = min(self.done // self.each + 1, max(1, parts))
        said = [self._what.format(at=f"{at:,}", of=f"{parts:,}")]
        left = self.seconds_left()
        if left is not None and left >= SOON:
            said.append(f"{in_words(left)} left")
        return ", ".join([*said, *([self.then] if self.then else [])])

    def seconds_left(self) -> float | None:
        """How long the stage will still take; None where that is not known."""
        if self.total <= 0:
            return None
        share = max(0, self.total - self.done) / self.total
        if self._steps <= 0 or self._seconds < FIRST_ESTIMATE:
            return self._guess * share if self._guess else None
        return self._seconds / self._steps * self.total * share

    def _say(self) -> None:
        self._shown = self._clock()
        self._show(self.text())


def in_words(seconds: float) -> str:
    """A duration as one would say it: '8 s', '40 s', '2 min' or '3 h'."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 3600)} h"
