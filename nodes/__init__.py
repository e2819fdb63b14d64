"""The nodes an artist sees."""

from .apply_unlearn_patch import ApplyUnlearnPatch
from .scapre_solve import ScaPreSolve
from .unlearn_concepts import UnlearnConcepts

NODES = [UnlearnConcepts, ScaPreSolve, ApplyUnlearnPatch]
