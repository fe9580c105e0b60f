"""The model in service: loading, replacement, batching."""
