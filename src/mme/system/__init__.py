"""The operating system: atomic files and digests, process pools, worker processes with deadlines, error output.

Imports nothing else of this project.
"""
