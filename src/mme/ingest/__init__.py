"""The stages `synthesize` and `ingest`: from any source of videos to transcoded videos and a manifest.

A new data set is one module of `layouts`. Does not import motion, targets or models.
"""
