"""Ablation of the objective: same data, masks, budget and seeds; only target and head differ."""
