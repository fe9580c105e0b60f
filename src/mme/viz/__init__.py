"""Every picture of the project: tracks, HOG glyphs, predictions, curves, confusion and calibration.

Computes no metrics.
"""
