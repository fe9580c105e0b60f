"""The servers of other tests."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from tests import servers


@servers.needs_postgres
def test_postgres_creates_databases_and_leaves_no_process_or_file() -> None:
    with servers.postgres(["one", "two"]) as server:
        with psycopg.connect(f"{server.address}/two") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        group = [server.process, *psutil.Process(server.process.pid).children(recursive=True)]
    assert not [process for process in group if psutil.pid_exists(process.pid)]
    assert not server.log.parent.exists()


def test_s3_has_its_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name, value in servers.S3_CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with servers.s3(tmp_path / "log", ["dvc", "mlflow"]) as server:
        client = boto3.client("s3", endpoint_url=server.address)
        assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["dvc", "mlflow"]
    with pytest.raises(httpx.TransportError):
        httpx.get(server.address)
