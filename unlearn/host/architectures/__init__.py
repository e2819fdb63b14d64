"""What the pack knows of each model family: one file each, behind one base class.

To add a family, write a subclass of `Architecture` in a new file of this folder, and add a row to
the table in tests/host/test_architectures.py.
"""

import importlib
import inspect
import pkgutil

from ..model_types import Model
from .base import TRAINABLE, Architecture, Layer, Spans, kind
from .transformer import Transformer
from .unet import UNet, label, native_size, part, reads_text, text_spans

__all__ = [
    "TRAINABLE", "Architecture", "Layer", "Spans", "Transformer", "cross_attention", "feed_forward",
    "families", "kind", "known", "label", "native_size", "of", "part", "pooled_text", "reads_text",
    "text_spans",
]  # fmt: skip


def families() -> list[type[Architecture]]:
    """Every family that a file of this folder defines, by the names of the files."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f".{module.name}", __name__)
    return _leaves(Architecture)


def _leaves(family: type[Architecture]) -> list[type[Architecture]]:
    """The families made from a class: those that say all that is asked of them."""
    found = [] if inspect.isabstract(family) or family is Transformer else [family]
    for child in family.__subclasses__():
        found += _leaves(child)
    return found


def known(model: Model) -> Architecture | None:
    """The family of a MODEL, None for one that the pack does not know.

    Raises UnlearnError for a relative of a known family that text does not enter.
    """
    keys = tuple(model.model.state_dict())
    for family in families():
        if family.fits(keys):
            found = family(model)
            found.check()
            return found
    return None


def of(model: Model) -> Architecture:
    """As `known`; raises UnlearnError for a family that the pack does not know, too."""
    return known(model) or UNet(model).refuse("text cross-attention layers to train or edit")


def cross_attention(model: Model) -> list[Layer]:
    """The matrices of a MODEL through which text enters, from input to output.

    Raises UnlearnError when there are none.
    """
    return of(model).cross_attention_layers()


def pooled_text(model: Model) -> list[Layer]:
    """The matrices of a MODEL through which the pooled text vector enters, none in most models."""
    return of(model).pooled_text_layers()


def feed_forward(model: Model) -> list[Layer]:
    """The second linear layer of every feed-forward block of a MODEL, from input to output.

    Raises UnlearnError when there are none.
    """
    return of(model).feed_forward_layers()
