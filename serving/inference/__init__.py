"""The model: loading, hot reload, batching, and the path of a video through the service."""
