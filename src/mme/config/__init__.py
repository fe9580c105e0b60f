"""The pydantic mirror of ``params.yaml``: one module per concern, presets, and edits by dotted name.

Holds no defaults for scientific values and runs nothing.
"""

from mme.config.data import IngestParams, Primitive, Split, SynthesizeParams, TrajectoriesParams
from mme.config.evaluation import EvaluateParams, RegistryParams
from mme.config.model import (
    CELLS_PER_PATCH_SIDE,
    ClipParams,
    ModelParams,
    ModelPrecision,
    check_clip_fits,
    frames_needed,
)
from mme.config.params import Params, load_params
from mme.config.runtime import DEFAULT_RUNTIME, RuntimeParams
from mme.config.training import FinetuneParams, MaskKind, OptimisedParams, Pooling, PretrainParams

__all__ = [
    "CELLS_PER_PATCH_SIDE",
    "DEFAULT_RUNTIME",
    "ClipParams",
    "EvaluateParams",
    "FinetuneParams",
    "IngestParams",
    "MaskKind",
    "ModelParams",
    "ModelPrecision",
    "OptimisedParams",
    "Params",
    "Pooling",
    "PretrainParams",
    "Primitive",
    "RegistryParams",
    "RuntimeParams",
    "Split",
    "SynthesizeParams",
    "TrajectoriesParams",
    "check_clip_fits",
    "frames_needed",
    "load_params",
]
