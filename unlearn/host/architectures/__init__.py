"""What the pack knows of each model family: one file each, behind one base class.

To add a family, write a subclass of `Transformer` or `Architecture` in a new file of this folder;
docs/families.md says how.
"""

import importlib
import pkgutil

from ...errors import UnlearnError
from ..model_types import Model
from .base import TRAINABLE, Architecture, Layer, Spans, kind
from .transformer import Transformer
from .unet import UNet, label, part, reads_text, text_spans, unet_size

__all__ = [
    "TRAINABLE", "Architecture", "Layer", "Spans", "Transformer", "cross_attention", "feed_forward",
    "UNet", "families", "kind", "known", "label", "native_size", "of", "part", "pooled_text",
    "reads_text", "refuse_transformer", "text_spans",
]  # fmt: skip


def families() -> list[type[Architecture]]:
    """Every family that a file of this folder defines, by the names of the files."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f".{module.name}", __name__)
    return _leaves(Architecture)


def _leaves(family: type[Architecture]) -> list[type[Architecture]]:
    """The families made from a class: those that say all that is asked of them."""
    found = [] if family.__abstractmethods__ or family is Transformer else [family]
    for child in family.__subclasses__():
        found += _leaves(child)
    return found


def known(model: Model) -> Architecture | None:
    """The family of a MODEL, None for one that the pack does not know.

    Raises UnlearnError for a relative of a known family that text does not enter.
    """
    found = _fitting(model)
    if found is not None:
        found.check()
    return found


def _fitting(model: Model) -> Architecture | None:
    """The family whose layers a MODEL has, if any."""
    keys = tuple(model.model.state_dict())
    return next((family(model) for family in families() if family.fits(keys)), None)


def native_size(model: Model) -> int:
    """Side in pixels of the square pictures a MODEL was made for, known or not."""
    found = _fitting(model)
    return unet_size(model) if found is None else found.native_size()


def of(model: Model) -> Architecture:
    """As `known`; raises UnlearnError for a family that the pack does not know, too."""
    found = known(model)
    if found is None:
        raise UnlearnError(
            f"The input 'model' ({kind(model)}) has no text cross-attention that this pack knows; "
            f"it works with SD1.x, SD2.x, SDXL, {', '.join(_titles())}, and docs/families.md says "
            "how to add a family."
        )
    return found


def _titles() -> list[str]:
    """What the known families of transformers are called."""
    found = {family.title for family in families() if issubclass(family, Transformer)}
    return sorted(found)


def refuse_transformer(model: Model, work: str) -> None:
    """Raises UnlearnError for a diffusion transformer, where `work` is made for UNets alone."""
    found = known(model)
    if isinstance(found, Transformer):
        raise UnlearnError(
            f"The input 'model' is a {found.title} model, and {work} works with SD1.x, SD2.x and "
            "SDXL alone; use ScaPre Solve for this one."
        )


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
