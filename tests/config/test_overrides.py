"""Values on the command line, through DVC's own parser: those of docs/quick-start.md, and texts quoted as it says."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps
from hypothesis import given, settings
from hypothesis import strategies as st

from mme.config import Params, load_params

ROOT = Path(__file__).parents[2]

DOCUMENTED: list[dict[str, Any]] = [
    {"ingest.root": Path("/data/my_videos-2/50%")},
    {"ingest.root": Path("/data/my videos")},
    {"ingest.root": Path("/data/vidéos [1], no. #2")},
    {"ingest.root": Path("/data/gestes d'été = $neu")},
    {"registry.name": "2026"},
    {"registry.name": "mme-motion-primitives"},
    {"finetune.flip_pairs": (("à gauche", "à droite"), ("left", "right"))},
    {"optimiser.precision": "32", "finetune.flip_pairs": ()},
    {"pretrain.weights": {"position": 1.0, "hog": 0.5}},
]
"""What each line of the page sets, but the last one, which queues experiments."""


def documented() -> list[list[str]]:
    """Return the values of each line, as the shell passes them on."""
    page = (ROOT / "docs/quick-start.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^### Values that need quotes$.*?^```bash$(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    script = "dvc() { printf '%s\\0' \"$@\"; printf '\\n'; }" + block
    output = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    lines = [line.split("\0") for line in output.splitlines()]
    return [[word for option, word in pairwise(line) if option == "-S"] for line in lines]


def params_with(folder: Path, overrides: list[str]) -> Params:
    path = folder / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    apply_overrides(path, overrides)
    return load_params(path)


def value_of(params: Params, name: str) -> Any:
    section, _, key = name.partition(".")
    found = getattr(getattr(params, section), key)
    return found.model_dump() if hasattr(found, "model_dump") else found


@pytest.mark.parametrize("number", range(len(DOCUMENTED)))
def test_documented_lines_set_what_they_say(number: int, tmp_path: Path) -> None:
    params = params_with(tmp_path, documented()[number])
    assert {name: value_of(params, name) for name in DOCUMENTED[number]} == DOCUMENTED[number]


def test_the_last_documented_line_queues_three_experiments(tmp_path: Path) -> None:
    lines = documented()
    assert len(lines) == len(DOCUMENTED) + 1
    sweeps = [dict(sweep)["params.yaml"] for sweep in get_hydra_sweeps({"params.yaml": lines[-1]})]
    assert [params_with(tmp_path, sweep).pretrain.mask_ratio for sweep in sweeps] == [0.6, 0.7, 0.8]


def test_without_the_quotes_the_parser_refuses(tmp_path: Path) -> None:
    """Else the page would ask for them in vain."""
    for value in ("/data/vidéos", "/data/a[1]", "/data/a,b", "/data/a#b", "/data/a=b", "/data/a&b", "~/videos"):
        with pytest.raises(InvalidArgumentError):
            params_with(tmp_path, [f"ingest.root={value}"])


@settings(max_examples=30)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=12))
def test_any_text_can_be_quoted(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """But one with an interpolation of OmegaConf."""
    name = f"x{text}x".replace("${", "$").replace("\\", "/")
    quoted = name.replace("'", "\\'")
    folder = tmp_path_factory.getbasetemp()
    assert params_with(folder, [f"runtime.experiment='{quoted}'"]).runtime.experiment == name
