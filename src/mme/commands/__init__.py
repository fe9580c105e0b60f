"""The command line `mme`: one module per group of commands.

Parses arguments and prints results; the work is done elsewhere.
"""
