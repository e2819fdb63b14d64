"""Memory and cancelling, as ComfyUI sees them."""

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import comfy.model_management
import torch

from ..errors import UnlearnError

Cancelled = comfy.model_management.InterruptProcessingException
Result = TypeVar("Result")


def raise_if_cancelled() -> None:
    """Raises ComfyUI's `Cancelled` when the artist has cancelled the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    free: Any = comfy.model_management.get_free_memory(device)
    return free


def is_cpu(device: torch.device) -> bool:
    """Whether a device is the processor itself."""
    return comfy.model_management.is_device_cpu(device)


def give_back() -> None:
    """Gives memory that is cached but not used back to the device."""
    comfy.model_management.soft_empty_cache()


def is_full(error: Exception) -> bool:
    """Whether an error says that memory has run out."""
    return comfy.model_management.is_oom(error)


def unload_models(device: torch.device) -> None:
    """Takes everything that ComfyUI keeps on a device off it. On the CPU nothing happens."""
    if not is_cpu(device):
        comfy.model_management.free_memory(1e30, device)


def forget_frames(error: BaseException) -> None:
    """Clears the local variables of the functions that an error has come through.

    An error holds on to them while it is handled or shown, and with them to all tensors they name.
    Functions that still run are left alone. What an inner function encloses cannot be cleared, so
    code that relies on this binds large values with functools.partial instead.
    """
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        found = todo.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        traceback.clear_frames(found.__traceback__)
        todo += [found.__context__, found.__cause__]


SMALLER = (
    "lower 'size' where the node has it, free memory (Edit, Unload Models), or start ComfyUI with "
    "--novram"
)
"""What to change where a single picture does not fit."""


class OutOfMemory(UnlearnError):
    """Memory ran out on a single row; the message says what to change."""

    __module__, __qualname__ = UnlearnError.__module__, UnlearnError.__qualname__


def alone(work: Callable[[], Result], what: str = "picture", remedy: str = SMALLER) -> Result:
    """What `work()` gives, which cannot be done in smaller parts; raises OutOfMemory.

    what: what it works on; remedy: what to change where that does not fit.
    """
    try:
        return work()
    except Exception as error:
        comfy.model_management.raise_non_oom(error)
        forget_frames(error)
    give_back()
    raise _full(what, remedy)


def _full(what: str, remedy: str) -> OutOfMemory:
    return OutOfMemory(f"Memory ran out on a single {what}; {remedy}.")


class BatchSize:
    """How many rows are computed at once. It is halved whenever memory runs out.

    what, remedy: what one row is, and what to change when even one does not fit.
    """

    def __init__(self, rows: int, what: str = "picture", remedy: str = SMALLER) -> None:
        self.rows = max(1, rows)
        self.what = what
        self.remedy = remedy

    def run(self, count: int, work: Callable[[int], Result]) -> tuple[int, Result]:
        """Calls `work(n)` with n rows, at most `count`, and returns n and what it gave.

        When memory runs out, n is halved and the work is tried again. Raises OutOfMemory when it
        runs out on one row, and every error that is not about memory.
        """
        while True:
            n = min(count, self.rows)
            try:
                return n, work(n)
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                forget_frames(error)
            # This stands outside the handler, because the error holds on to what filled the memory.
            give_back()
            if n == 1:
                raise _full(self.what, self.remedy)
            self.rows = n // 2
