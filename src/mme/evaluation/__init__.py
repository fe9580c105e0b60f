"""From a video to class probabilities: classifier, multi-view evaluation, probes of frozen features.

Trains no network.
"""
