"""Masked clips for pretraining: frames, tracks, crop and mask of each sample."""
