"""Decoding of uploads in isolated processes that can be killed and replaced."""
