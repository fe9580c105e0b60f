"""The parts of the command `mme`: one module a group of commands."""
