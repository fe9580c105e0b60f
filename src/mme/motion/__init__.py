"""Optical flow, camera motion, tracking and the track store: the stage `trajectories`.

Stores raw tracks; what a model predicts from them is defined in `mme.targets`.
"""
