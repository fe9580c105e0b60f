"""The classification service: FastAPI in front of ``mme.evaluation.classifier``, with decoding in child processes.

Nothing is imported here, so that a decoding process stays small.
"""
