"""A real nginx in front of a service."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port
from tests.serving.service import wait_until

PROXY = "127.0.0.3"
"""Address from which nginx calls the service."""


@contextmanager
def nginx(folder: Path, *, service: str, location: str, target: str = "") -> Iterator[str]:
    """Run nginx on another address; yield its own.

    It says that clients came by https, as one that ends TLS does.

    Args:
        folder: of its files.
        service: ``http://HOST:PORT``.
        location: the path that it forwards.
        target: what the location's path is replaced by; nothing keeps it.
    """
    command = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if command is None:
        pytest.skip("there is no nginx")
    listen = f"127.0.0.2:{free_port()}"
    stores = "".join(
        f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_max_body_size 64m;
{stores}  server {{
    listen {listen};
    location {location} {{
      proxy_pass {service}{target};
      proxy_bind {PROXY};
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
    }}
  }}
}}
""",
        encoding="utf-8",
    )
    process = subprocess.Popen([command, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(config)])
    try:
        wait_until(lambda: answers(f"http://{listen}"), 30)
        yield f"http://{listen}"
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    try:
        httpx.get(address)
    except httpx.TransportError:
        return False
    return True
