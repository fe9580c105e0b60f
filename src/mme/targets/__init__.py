"""Prediction targets of masked tokens: one module per target, plus the grid of tracks that they share.

Reads no files and trains nothing.
"""
