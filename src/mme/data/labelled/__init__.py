"""Labelled clips for finetuning, and their augmentation."""
