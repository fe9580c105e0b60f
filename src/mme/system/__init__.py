"""The operating system: atomic files and digests, worker processes with deadlines, process pools.

Imports nothing else of this project.
"""
