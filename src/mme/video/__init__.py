"""Video files: containers, metadata, decoding, encoding, choosing frames, trimming.

Knows nothing of data sets, targets or models.
"""
