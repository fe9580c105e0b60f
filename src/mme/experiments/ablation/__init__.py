"""Objectives against each other: the same data, masks, budget and seeds; only target and head differ."""
