"""Turns saliency into a patch that prunes what concepts need, except what most of them share.

The method is Forget-It-All (arXiv 2601.06163).
"""

from typing import Any

from comfy_api.latest import io

from ..unlearn.errors import UnlearnError, finite
from ..unlearn.pruning import masks
from ..unlearn.pruning.settings import GRANULARITIES, PARTS
from ..unlearn.types import SaliencyMap
from .sockets import Patch, Saliency
from .telling import tell

D = masks.DEFAULTS


class NeuronMaskFuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuronMaskFuse",
            display_name="Fuse Neuron Masks (FIA)",
            category="unlearn",
            description="Makes a patch that prunes the connections the concepts need, except "
            "those that most of them share. It does not measure again, so try several values of "
            "r2. Connect the patch to Apply Unlearn Patch.",
            search_aliases=[
                "erase",
                "remove",
                "unlearn",
                "forget",
                "prune",
                "concept",
                "neuron",
                "mask",
                "FIA",
            ],
            inputs=[
                io.Autogrow.Input(
                    "saliency",
                    template=io.Autogrow.TemplatePrefix(
                        Saliency.Input(
                            "saliency",
                            tooltip="From Concept Saliency or Load Concept Saliency. A new socket "
                            "appears when it is connected.",
                        ),
                        prefix="saliency",
                        min=0,  # the host would insist on the first socket, also where it is muted
                        max=16,
                    ),
                    tooltip="Saliency of one model; concepts of all inputs are fused.",
                ),
                io.Float.Input(
                    "r2",
                    default=D["r2"],
                    min=0.0001,
                    max=1.0,
                    step=0.001,
                    round=False,
                    tooltip="Share of each layer's connections a concept may choose. Try 0.01 "
                    "first, 0.02 for styles, and 0.03 for a concept that is still drawn. A "
                    "concept's weight multiplies it.",
                ),
                io.Float.Input(
                    "alpha",
                    default=D["alpha"],
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="A connection chosen by at least this share of the concepts belongs "
                    "to none of them and is kept. Use 0.6 for objects and 0.8 for styles. Above 1 "
                    "everything chosen is pruned. With one concept it does not matter.",
                ),
                io.Combo.Input(
                    "granularity",
                    options=list(GRANULARITIES),
                    default=D["granularity"],
                    tooltip="Prune single connections, whole hidden neurons (columns), or whole "
                    "output rows. Try 'connection' first; 'neuron' makes the smallest patch.",
                ),
                io.Combo.Input(
                    "parts",
                    options=list(PARTS),
                    default=D["parts"],
                    tooltip="Which parts of the UNet are pruned. Try 'all' first.",
                    advanced=True,
                ),
                io.Float.Input(
                    "from_depth",
                    default=D["from_depth"],
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Leave out layers before this depth: 0 is the first layer, 1 the last.",
                    advanced=True,
                ),
                io.Float.Input(
                    "to_depth",
                    default=D["to_depth"],
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Leave out layers after this depth.",
                    advanced=True,
                ),
                io.String.Input(
                    "per_concept",
                    multiline=True,
                    default="",
                    optional=True,
                    placeholder="van gogh = 3%",
                    tooltip="An r2 of its own for some concepts, one per line.",
                    advanced=True,
                ),
            ],
            outputs=[
                Patch.Output("patch", tooltip="Connect to Apply Unlearn Patch."),
                io.Image.Output(
                    "report_image",
                    tooltip="Charts: the pruned share of each layer, what concepts share, and "
                    "what is kept for all.",
                ),
                io.String.Output(
                    "report", tooltip="The same in words, with warnings and what to do next."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, saliency: dict[str, SaliencyMap | None], per_concept: str = "", **settings: Any
    ) -> io.NodeOutput:
        finite(**{k: settings[k] for k in ("r2", "alpha", "from_depth", "to_depth")})
        maps = [found for found in saliency.values() if found is not None]
        if not maps:
            raise UnlearnError(
                "The input 'saliency' has nothing connected; "
                "connect Concept Saliency or Load Concept Saliency."
            )
        patch, picture, report = masks.fuse(maps, per_concept, **settings)
        report = tell(report, cls.hidden)
        return io.NodeOutput(patch, picture, report)
