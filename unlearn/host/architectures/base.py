"""What the pack asks of a model family. One file for each family answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, NoReturn

from ...errors import UnlearnError
from .. import weights
from ..model_types import Model
from ..text_encoding import Prompt

Role = Literal["key", "value", "key and value", "query", "output", "entry", "feed-forward"]
# The choices of which matrices are trained, as the node Dynamic Mask Trainer names them.
TRAINABLE = ("cross-attention", "keys and values", "all attention")
WIDEST = "attention and feed-forward"  # of UNets; what is trained against a search


class Layer(NamedTuple):
    """One weight matrix [d_out, d_in], or some rows of it.

    key: of the patcher. label: short name for reports. role: what the matrix computes; 'entry' is
    the one layer through which text, or the pooled text vector, enters beside or without
    cross-attention. group: layers of one group read the same input, so what is measured there can
    be shared. rows: (first, one past the last) where several matrices are stored as one, None for
    all rows. columns: the same where a part of the input alone is text.
    """

    key: str
    label: str
    role: Role
    group: str
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None


class Spans(NamedTuple):
    """Where the parts of a prompt stand among its token states.

    own: the tokens of the phrase. after: the words after it. end: the end token, None for text
    encoders without one. padding: what follows.
    """

    own: range
    after: range
    end: int | None
    padding: range


class Architecture(ABC):
    """A model family, asked about one MODEL.

    Methods that give layers list them from input to output, and raise UnlearnError where there are
    none.
    """

    # What the model reads of the text encoder's output in addition to the token states.
    conditioning_extras: tuple[str, ...] = ()

    def __init__(self, model: Model) -> None:
        self.model = model
        self.keys: tuple[str, ...] = tuple(model.model.state_dict())

    @classmethod
    @abstractmethod
    def fits(cls, keys: tuple[str, ...]) -> bool:
        """Whether a model with these weights is of this family."""

    @abstractmethod
    def cross_attention_layers(self) -> list[Layer]:
        """The matrices through which text enters."""

    def pooled_text_layers(self) -> list[Layer]:
        """The matrices through which the pooled text vector enters; none in most families."""
        return []

    @abstractmethod
    def feed_forward_layers(self) -> list[Layer]:
        """The second linear layer of every feed-forward block."""

    @abstractmethod
    def trainable_matrices(self, which: str) -> list[Layer]:
        """The matrices to train; `which` is one of TRAINABLE."""

    @staticmethod
    @abstractmethod
    def label(key: str) -> str:
        """Short name of a weight for reports; a weight of another kind keeps its key."""

    @staticmethod
    @abstractmethod
    def reads_text(key: str) -> bool:
        """Whether text enters through a weight."""

    @abstractmethod
    def native_size(self) -> int:
        """Side in pixels of the square pictures the model was made for."""

    @abstractmethod
    def uses_pooled_text(self) -> bool:
        """Whether the model reads a pooled text vector in addition to the token states."""

    @abstractmethod
    def lora_names(self) -> dict[str, str]:
        """Weight key -> the name that LoRA files have for it."""

    @abstractmethod
    def spans(self, prompt: Prompt, length: int) -> Spans:
        """Where the parts of a prompt stand among its `length` token states."""

    def check(self) -> None:  # noqa: B027 - most families have nothing to check
        """Raises UnlearnError where text does not enter as the family says, as in a relative."""

    def text_width(self) -> int:
        """Width of the text states that enter; raises UnlearnError when there are several."""
        widths = {weights.shape(self.model, x.key)[1] for x in self.cross_attention_layers()}
        if len(widths) > 1:
            raise UnlearnError(
                f"The input 'model' ({kind(self.model)}) reads text states of several widths; use "
                "an SD1.x, SD2.x or SDXL checkpoint."
            )
        return widths.pop()

    def refuse(self, lacking: str) -> NoReturn:
        """Raises UnlearnError for a model that lacks a kind of layer."""
        raise UnlearnError(
            f"The input 'model' ({kind(self.model)}) has no {lacking}; "
            "use an SD1.x, SD2.x or SDXL checkpoint."
        )


def kind(model: Model) -> str:
    """The name of ComfyUI's class for a kind of model, as in 'SDXL'."""
    inner: Any = model.model
    return type(getattr(inner, "model_config", inner)).__name__
