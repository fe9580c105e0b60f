"""Decoding of uploads in expendable processes."""
