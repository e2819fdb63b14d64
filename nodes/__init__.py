"""The nodes an artist sees."""

from .apply_unlearn_patch import ApplyUnlearnPatch
from .concept_saliency import ConceptSaliency
from .neuron_mask_fuse import NeuronMaskFuse
from .saliency_sharing import LoadConceptSaliency, MergeConceptSaliency, SaveConceptSaliency
from .scapre_solve import ScaPreSolve
from .unlearn_concepts import UnlearnConcepts

NODES = [
    UnlearnConcepts,
    ScaPreSolve,
    ApplyUnlearnPatch,
    ConceptSaliency,
    NeuronMaskFuse,
    SaveConceptSaliency,
    LoadConceptSaliency,
    MergeConceptSaliency,
]
