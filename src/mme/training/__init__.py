"""Pretraining and finetuning on PyTorch Lightning.

Networks are in `mme.models`, data sets in `mme.data`.
"""
