"""``python -m serving``: the service on one address, until SIGTERM."""

from __future__ import annotations


def main() -> None:
    """Read the settings and serve."""
    # Imported here: a decoding process imports this module, but has no use for the service.
    import uvicorn

    from serving import logs
    from serving.app import create_app
    from serving.settings import Settings

    settings = Settings()
    logs.configure(settings.log_level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.upload_timeout_s + settings.deadline_s),
    )


if __name__ == "__main__":
    main()
