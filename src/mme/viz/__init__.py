"""Pictures of data, tracks, targets, predictions and metrics; reports of experiments draw their own.

Computes no metrics.
"""
