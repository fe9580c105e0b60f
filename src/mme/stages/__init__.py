"""Entry points of the DVC stages: one thin file per stage.

Reads parameters, calls the package that does the work, records the run.
"""
