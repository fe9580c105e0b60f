"""Model registry: gate, publication, aliases, model card, and the MLflow and ONNX forms of a model.

Calls MLflow through `mme.tracking` only.
"""
