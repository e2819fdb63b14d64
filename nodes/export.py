"""A patch as a LoRA, and a patched model as a checkpoint."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..unlearn import wording
from ..unlearn.files import lora_file, safetensors_io
from ..unlearn.host import checkpoint, progress, saved_files
from ..unlearn.host.model_types import Clip, Model, Vae
from ..unlearn.types import UnlearnPatch
from .saving_inputs import existing_input
from .sockets import Patch
from .telling import tell


class SaveUnlearnLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveUnlearnLoRA",
            display_name="Save Unlearn Patch as LoRA",
            category="unlearn",
            description="Saves a patch as a LoRA in models/loras that any LoRA loader reads, in "
            "ComfyUI and elsewhere, without this pack. At strength 1 on a model "
            "without the patch it forgets what the patch forgets.",
            search_aliases=["unlearn", "forget", "erase", "export", "lora", "kohya"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model the patch was made from, before Apply Unlearn Patch, with "
                    "the same LoRAs on it.",
                ),
                Patch.Input(
                    "patch",
                    tooltip="From an eraser such as ScaPre Solve, or from Load Unlearn Patch.",
                ),
                io.String.Input(
                    "name",
                    default="my_unlearn_lora",
                    tooltip="File name without ending, subfolder/name to sort. An earlier export "
                    "of that name is replaced, unless 'existing' says otherwise; a LoRA from "
                    "elsewhere never.",
                ),
                io.DynamicCombo.Input(
                    "size",
                    options=[
                        io.DynamicCombo.Option("exact", []),
                        io.DynamicCombo.Option(
                            "rank",
                            [
                                io.Int.Input(
                                    "rank",
                                    default=64,
                                    min=1,
                                    max=4096,
                                    tooltip="Largest rank per weight. Edits of a lower rank stay "
                                    "exact; of others the nearest is kept, and the report says how "
                                    "much is lost. Try 64 first.",
                                )
                            ],
                        ),
                    ],
                    tooltip="Try 'exact' first: small for ScaPre Solve and for pruned neurons, "
                    "large for pruned connections. 'rank' makes the file smaller and loses "
                    "something.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(lora_file.PRECISION),
                    default="float32",
                    tooltip="Numbers in the file. float32 gives the same pictures as the patch; "
                    "float16, as LoRAs usually are, is half as large, and pictures may differ by a "
                    "little.",
                    advanced=True,
                ),
                existing_input(),
            ],
            outputs=[
                io.String.Output(
                    "file",
                    tooltip="The name under which LoRA loaders list it (press R to refresh).",
                ),
                io.String.Output(
                    "report",
                    tooltip="Rank, size, what is exact and how much of the change is lost.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls, name: str | None = None, existing: str | None = "replace", **inputs: Any
    ) -> float:
        """Saves again where the file was deleted or changed since."""
        return saved_files.of_name("loras", name, existing)

    @classmethod
    def execute(
        cls,
        model: Model,
        patch: UnlearnPatch,
        name: str,
        size: dict[str, Any],
        precision: str,
        existing: str = "replace",
    ) -> io.NodeOutput:
        target = saved_files.Target.of("loras", name, existing)
        safetensors_io.check_replaceable(target.path, lora_file.is_ours)
        rank = size["rank"] if size["size"] == "rank" else None
        tensors, metadata, report = lora_file.export(
            model, patch, rank, lora_file.PRECISION[precision], cls.hidden.unique_id
        )
        safetensors_io.write(target.path, tensors, metadata, lora_file.is_ours)
        report = tell(f"{target.written()} {report}", cls.hidden)
        return io.NodeOutput(target.listed, report, ui={"text": [report]})


class SaveUnlearnedCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveUnlearnedCheckpoint",
            display_name="Save Unlearned Checkpoint",
            category="unlearn",
            description="Saves a patched model whole, as ComfyUI's Save Checkpoint does, and "
            "writes into the file what was unlearned. It loads everywhere, without this pack.",
            search_aliases=["unlearn", "forget", "erase", "export", "save checkpoint", "bake"],
            inputs=[
                io.Model.Input("model", tooltip="The patched model, from Apply Unlearn Patch."),
                io.String.Input(
                    "filename_prefix",
                    default="checkpoints/unlearned",
                    tooltip="Where in the output folder and under which name; a number is added, "
                    "nothing is overwritten.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The checkpoint's text encoder. Leave clip and vae empty for the UNet "
                    "alone.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The checkpoint's VAE; connect it for a file that Load Checkpoint "
                    "reads.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "file",
                    tooltip="The file's name in ComfyUI's output folder; move it to "
                    "models/checkpoints.",
                )
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, filename_prefix: str | None = None, **inputs: Any) -> float:
        """Saves again where the file was deleted or changed since."""
        return saved_files.state(filename_prefix)

    @classmethod
    def execute(
        cls, model: Model, filename_prefix: str, clip: Clip | None = None, vae: Vae | None = None
    ) -> io.NodeOutput:
        told = "Putting the patches into the weights, then writing the file"
        progress.status(told, cls.hidden.unique_id)
        name, count = checkpoint.save(
            model, clip, vae, filename_prefix, cls.hidden.prompt, cls.hidden.extra_pnginfo
        )
        path = Path(folder_paths.get_output_directory()) / name
        saved_files.wrote(filename_prefix, path, numbered=True)
        metadata = "Without metadata, since ComfyUI runs with it off."
        if count:
            metadata = f"{count} patch{'es' * (count > 1)} named in its metadata."
        told = wording.compose(f"Saved {name}.", details=[metadata])
        progress.say(told, cls.hidden.unique_id)
        return io.NodeOutput(name, ui={"text": [name]})
