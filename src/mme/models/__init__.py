"""Networks and their weights: encoder, masked motion model, classifier, losses, model folders, conversions.

Knows nothing of files of videos or of training loops.
"""
