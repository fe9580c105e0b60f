"""From any source of videos to the normal form and a manifest: the stages `synthesize` and `ingest`.

Knows nothing of motion or models.
"""
