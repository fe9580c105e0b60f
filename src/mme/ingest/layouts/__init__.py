"""Public data sets as their makers lay them out: one module each, from a folder to a listing."""
