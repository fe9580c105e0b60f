"""Training data: masked clips for pretraining, labelled clips for finetuning, masks, sampling, augmentation.

Reads the normal form and stored tracks; computes no targets.
"""
