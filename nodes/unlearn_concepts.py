"""Names what to forget and what to keep."""

from comfy_api.latest import io

from . import concept_text
from .types import KINDS, Concepts


class UnlearnConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UnlearnConcepts",
            display_name="Concepts to Forget",
            category="unlearn",
            description="Names what the model must forget and what it must keep. Connect it to an eraser such as ScaPre Solve.",
            search_aliases=["erase", "remove", "unlearn", "forget", "censor", "concept"],
            inputs=[
                io.String.Input(
                    "forget",
                    multiline=True,
                    placeholder="cat -> animal | kitten, kitty\nvan gogh",
                    tooltip="What to forget, one concept per line. Optional: '-> word' says what to draw instead, '| word, word' "
                    "adds other names of the same thing, '* 2' pushes it harder. Try first: 'name -> superclass', "
                    "as in 'garbage truck -> vehicle'.",
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    default="",
                    placeholder="fox\ndog",
                    tooltip="What must stay as it is, one per line. Name above all what looks or sounds like a forgotten concept. "
                    "Everyday words are kept anyway.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="object",
                    tooltip="What the forgotten concepts are; it chooses the sentences they are studied in. A line may begin with "
                    "'object:', 'style:' or 'explicit:' to differ from this choice.",
                ),
                Concepts.Input("more", optional=True, tooltip="Another Concepts to Forget node: both lists are used together."),
            ],
            outputs=[
                Concepts.Output("concepts", tooltip="Connect to an eraser such as ScaPre Solve."),
                io.String.Output("text", tooltip="The forget list as it was understood, one concept per line with its kind."),
            ],
        )

    @classmethod
    def execute(cls, forget, keep, kind, more=None):
        concepts = concept_text.parse(forget, keep, kind)
        if more is not None:
            concepts = concept_text.merge(concepts, more)
        return io.NodeOutput(concepts, concept_text.format_set(concepts)[0])
