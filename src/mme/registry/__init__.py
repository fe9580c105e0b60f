"""The model registry: gate, publication, aliases, model card, MLflow and ONNX forms of a model.

Talks to MLflow through `mme.tracking` only.
"""
