"""Says which words a patch harms that nobody wanted to forget, before a picture is drawn."""

from comfy_api.latest import io

from ..unlearn.analysis import charts, forecast
from ..unlearn.errors import finite
from ..unlearn.host.matching import check_clip
from ..unlearn.host.model_types import Clip, Model
from ..unlearn.types import ConceptSet, UnlearnPatch
from .sockets import Concepts, Patch
from .telling import tell


class CollateralForecast(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollateralForecast",
            display_name="Collateral Forecast",
            category="unlearn",
            description="Says which common words and which entries of the keep list a patch harms, "
            "before a picture is drawn. It compares keys and values, and what the model predicts "
            "from noise with and without the patch. For patches of any method.",
            search_aliases=["forget", "erase", "unlearn", "damage", "side effects", "collateral"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model the patch is for, after any LoRA loaders. It is not "
                    "changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that goes with the model, from the same checkpoint "
                    "loader.",
                ),
                Patch.Input(
                    "patch", tooltip="The patch to examine, from ScaPre Solve or another eraser."
                ),
                Concepts.Input(
                    "concepts",
                    optional=True,
                    tooltip="The list the patch was made from. The forecast leaves out what was to "
                    "be forgotten and always examines what was to be kept.",
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
                    tooltip="Also compare what the model predicts from noise under each word, with "
                    "and without the patch. This tells far better which words are harmed. Off: "
                    "only the weights are compared, which is faster.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=2048,
                    step=8,
                    optional=True,
                    tooltip="Side of the predicted pictures, in pixels. 0 is half of the model's "
                    "own size; try 0 first.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Image.Output(
                    "report_image",
                    tooltip="How much is left of the effect of the words that are harmed most.",
                ),
                io.String.Output(
                    "report",
                    tooltip="The same in words. Put what matters to you on the keep list and solve "
                    "again.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        clip: Clip,
        patch: UnlearnPatch,
        strength: float,
        concepts: ConceptSet | None = None,
        glance: bool = True,
        size: int = 0,
    ) -> io.NodeOutput:
        finite(strength=strength)
        check_clip(model, clip)
        if concepts is None:  # the patch says what it forgets
            forgotten = [n for record in patch.provenance for n in record.get("concepts", ())]
            keep = ()
        else:
            forgotten = [name for concept in concepts.concepts for name in concept.names]
            keep = concepts.keep
        settings = forecast.ForecastSettings(strength, glance, size, cls.hidden.unique_id)
        impacts = forecast.of_patch(model, clip, patch, forgotten, keep, settings)
        verdict = forecast.verdict(impacts)
        words = forecast.findings(impacts).report(verdict)
        words = tell(words, cls.hidden)
        chart = (forecast.CHART_HEADING, forecast.bars(impacts, 2 * forecast.WORDS_SHOWN))
        return io.NodeOutput(charts.bar_charts(verdict, [chart]), words)
