"""Layouts of data sets, one module each: from a folder, as its makers lay it out, to a listing.

Opens lists, not videos. `mme.ingest.sources.LAYOUTS` names the functions.
"""
