"""The nodes an artist sees."""

from .apply_unlearn_patch import ApplyUnlearnPatch
from .collateral_forecast import CollateralForecast
from .concept_saliency import ConceptSaliency
from .dynamic_mask_trainer import DynamicMaskTrainer
from .erasure_report import ErasureReport
from .export import SaveUnlearnedCheckpoint, SaveUnlearnLoRA
from .neuron_mask_fuse import NeuronMaskFuse
from .patch_files import LoadUnlearnPatch, SaveUnlearnPatch, UnlearnPatchInfo
from .refit_unlearn_patch import RefitUnlearnPatch
from .saliency_sharing import LoadConceptSaliency, MergeConceptSaliency, SaveConceptSaliency
from .scapre_solve import ScaPreSolve
from .strength_sweep import UnlearnStrengthSweep
from .text_encoder_solve import TextEncoderSolve
from .unlearn_concepts import UnlearnConcepts
from .wires import checked

_NODES = [
    UnlearnConcepts,
    ScaPreSolve,
    ApplyUnlearnPatch,
    ConceptSaliency,
    NeuronMaskFuse,
    SaveConceptSaliency,
    LoadConceptSaliency,
    MergeConceptSaliency,
    SaveUnlearnPatch,
    LoadUnlearnPatch,
    UnlearnPatchInfo,
    SaveUnlearnLoRA,
    SaveUnlearnedCheckpoint,
    ErasureReport,
    CollateralForecast,
    DynamicMaskTrainer,
    RefitUnlearnPatch,
    UnlearnStrengthSweep,
    TextEncoderSolve,
]
NODES = [checked(node) for node in _NODES]
