"""HTTP plumbing: uploads, middleware, metrics, logs, the server."""
