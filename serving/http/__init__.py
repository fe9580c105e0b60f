"""HTTP layer: uploads, middleware, metrics, logs, security, the Open Inference Protocol, the server."""
