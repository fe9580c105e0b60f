"""The pydantic mirror of ``params.yaml``: one module per concern, presets, and edits by dotted name.

Holds no defaults for scientific values and runs nothing.
"""

from mme.config.params import (
    CELLS_PER_PATCH_SIDE,
    ClipParams,
    EvaluateParams,
    FinetuneParams,
    IngestParams,
    MaskKind,
    ModelParams,
    OptimisedParams,
    Params,
    PretrainParams,
    Primitive,
    RegistryParams,
    RunParams,
    Split,
    SynthesizeParams,
    TrajectoriesParams,
    frames_needed,
    load_params,
)

__all__ = [
    "CELLS_PER_PATCH_SIDE",
    "ClipParams",
    "EvaluateParams",
    "FinetuneParams",
    "IngestParams",
    "MaskKind",
    "ModelParams",
    "OptimisedParams",
    "Params",
    "PretrainParams",
    "Primitive",
    "RegistryParams",
    "RunParams",
    "Split",
    "SynthesizeParams",
    "TrajectoriesParams",
    "frames_needed",
    "load_params",
]
