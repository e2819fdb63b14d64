"""What a patch does to words that nobody asked to forget, told before a picture is drawn."""

from comfy_api.latest import io

from ..unlearn.analysis import charts, forecast
from ..unlearn.errors import finite
from ..unlearn.host import progress
from .sockets import Concepts, Patch


class CollateralForecast(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CollateralForecast",
            display_name="Collateral Forecast",
            category="unlearn",
            description="Says which common words and which of the kept texts a patch harms, before a picture is drawn: from its keys and "
            "values, and from a glance of both models at noise. For patches of any method.",
            search_aliases=["forget", "erase", "unlearn", "damage", "side effects", "collateral"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model the patch is for, after any LoRA loaders. It is not changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with the model, from the same checkpoint loader.",
                ),
                Patch.Input(
                    "patch", tooltip="The patch to look at, from ScaPre Solve or another eraser."
                ),
                Concepts.Input(
                    "concepts",
                    optional=True,
                    tooltip="What was to be forgotten (left out here) and kept (looked at first).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    tooltip="The strength you will apply the patch at. Try 1 first.",
                ),
                io.Boolean.Input(
                    "glance",
                    default=True,
                    optional=True,
                    tooltip="Let the model, with and without the patch, look at noise once per word: this tells far better what is harmed. "
                    "Off: from the weights alone, in a second.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=2048,
                    step=8,
                    optional=True,
                    tooltip="Side of what it looks at, in pixels. 0 is half of the model's own size; try 0 first.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output(
                    "report_image", tooltip="How much of what the words hit hardest say is left."
                ),
                io.String.Output(
                    "report",
                    tooltip="The same in words. Put what matters to you on the keep list and solve again.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, patch, strength, concepts=None, glance=True, size=0):
        finite(strength=strength)
        forgotten = (
            [n for c in concepts.concepts for n in c.names]
            if concepts
            else [n for p in patch.provenance for n in p.get("concepts", ())]
        )
        keep = concepts.keep if concepts else ()
        hits = forecast.of_patch(
            model, clip, patch, forgotten, keep, cls.hidden.unique_id, strength, glance, size
        )
        words = "\n".join(forecast.describe(hits))
        progress.say(words, cls.hidden.unique_id)
        return io.NodeOutput(
            charts.bar_charts(
                "Collateral Forecast", [(forecast.TITLE, forecast.bars(hits, 2 * forecast.SHOWN))]
            ),
            words,
        )
