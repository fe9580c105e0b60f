"""Files are written whole or not at all, also on a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from mme.models.checkpoints import save_weights
from mme.system.errors import one_line_errors
from mme.system.files import write_text
from tests.small_disk import fill, small_disk


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", 2**19) as disk:
        path = disk / "model.safetensors"
        save_weights(path, torch.nn.Linear(10, 10))
        before = path.read_bytes()
        filling = fill(disk)
        with pytest.raises(OSError, match="No space left on device") as caught:
            save_weights(path, torch.nn.Linear(100, 100))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        with pytest.raises(SystemExit), one_line_errors():
            write_text(disk / "metrics.json", "{}" * 10_000)
        [line] = capsys.readouterr().err.splitlines()
        assert f"'{disk / 'metrics.json'}': make room, then run the same command again" in line
        filling.unlink()
        assert path.read_bytes() == before
        assert [entry.name for entry in disk.iterdir()] == [path.name]
