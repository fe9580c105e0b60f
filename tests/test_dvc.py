"""The pipeline's definition against the code: what `dvc.yaml` promises has to follow from what the stages import."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from mme.config import Params, load_params

ROOT = Path(__file__).parents[1]
STAGES = ("synthesize", "ingest", "ingest-more", "trajectories", "pretrain", "finetune", "evaluate", "register")

RECORDING = {
    "config", "section", "ablation_params", "sweep_params", "files", "tracking", "tracking.recorded",
    "tracking.registry", "tracking.runs", "tracking.store", "stages.workspace",
}  # fmt: skip
"""Modules that check parameters, write files and record runs: no stage's results depend on them."""

DRAWING = {"pretrain": {"plots"}, "finetune": {"plots"}}
"""A new style of picture is not worth a training run."""


@functools.cache
def pipeline() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return parsed


@functools.cache
def stages() -> dict[str, dict[str, Any]]:
    """Definitions by stage; of one that stands for many, that of each."""
    return {name: definition.get("do", definition) for name, definition in pipeline()["stages"].items()}


def module_of(stage: str) -> str:
    return "mme.stages.ingest" if stage == "ingest-more" else f"mme.stages.{stage}"


@functools.cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("mme", exclude_type_checking_imports=True, cache_dir=None)


def file_of(module: str) -> Path:
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def needed_files(stage: str) -> set[Path]:
    """Files of the modules that a stage imports, itself included, that can change what it writes."""
    modules = {module_of(stage), *graph().find_upstream_modules(module_of(stage))}
    left_out = {f"mme.{name}" for name in RECORDING | DRAWING.get(stage, set())} | {"mme"}
    return {file_of(module) for module in modules - left_out if file_of(module).name != "__init__.py"}


def declared_files(stage: str) -> set[Path]:
    """Files of the package that a stage declares as dependencies, folders spread out."""
    files: set[Path] = set()
    for dep in stages()[stage]["deps"]:
        path = ROOT / dep
        if dep.startswith("src/"):
            files |= {file for file in path.glob("*.py") if file.name != "__init__.py"} if path.is_dir() else {path}
    return files


def out_paths(stage: str, *kinds: str) -> list[str]:
    entries = [entry for kind in kinds for entry in stages()[stage].get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def test_the_stages_are_those_of_the_package() -> None:
    assert tuple(stages()) == STAGES
    for stage, definition in stages().items():
        argument = " ${key}" if stage == "ingest-more" else ""
        assert definition["cmd"] == f"python -m {module_of(stage)}{argument}"
        assert file_of(module_of(stage)).is_file()


def test_more_data_sets_are_ingested_as_the_first_one() -> None:
    first, more = stages()["ingest"], stages()["ingest-more"]
    assert pipeline()["stages"]["ingest-more"]["foreach"] == "${datasets}"
    assert more["deps"] == ["${item.root}", *first["deps"][1:]]
    assert more["params"] == ["datasets.${key}", *first["params"][1:]]
    named = [out.replace("data/", "data/${key}/").replace("ingest.json", "ingest-${key}.json") for out in first["outs"]]
    assert more["outs"] == named


@pytest.mark.parametrize("stage", STAGES[3:])
def test_stages_read_the_data_set_that_is_asked_for(stage: str) -> None:
    owner = "pretrain" if stage in {"trajectories", "pretrain"} else "finetune"
    deps = stages()[stage]["deps"]
    assert {f"${{{owner}.data}}/manifest.parquet", f"${{{owner}.data}}/videos"} <= set(deps)
    assert not {"data/manifest.parquet", "data/videos"} & set(deps)
    assert {owner, f"{owner}.data"} & set(stages()[stage]["params"])


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_what_the_stage_imports(stage: str) -> None:
    needed, declared = needed_files(stage), declared_files(stage)
    missing = sorted(str(path.relative_to(ROOT)) for path in needed - declared)
    superfluous = sorted(str(path.relative_to(ROOT)) for path in declared - needed)
    assert (missing, superfluous) == ([], [])


def test_editing_the_service_or_the_command_runs_nothing() -> None:
    deps = {dep for stage in STAGES for dep in stages()[stage]["deps"]}
    assert not {
        dep for dep in deps if dep.startswith("serving") or dep.endswith("cli.py") or dep in {".", "src", "src/mme"}
    }


@pytest.mark.parametrize("stage", STAGES)
def test_declared_parameters_exist(stage: str) -> None:
    known = {section: set(values) for section, values in load_params(ROOT / "params.yaml").model_dump().items()}
    for name in stages()[stage]["params"]:
        section, _, key = name.partition(".")
        assert section in known, name
        if section == "datasets":
            continue  # its keys are the user's names
        assert not key or key in known[section], name


def test_every_section_that_decides_results_is_some_stages_parameter() -> None:
    declared = {name.partition(".")[0] for stage in STAGES for name in stages()[stage]["params"]}
    assert declared == set(Params.model_fields) - {"tracking", "sweep", "ablation"}


def test_finetuning_parameters_reach_finetuning_only() -> None:
    users = {stage for stage in STAGES if "finetune" in stages()[stage]["params"]}
    assert users == {"finetune"}


def test_every_output_is_ignored_by_git_so_that_dvc_writes_no_gitignore() -> None:
    paths = [path for stage in STAGES for path in out_paths(stage, "outs", "metrics", "plots") if "$" not in path]
    answer = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(answer.stdout.split()) == sorted(paths)


def test_the_receipt_is_never_restored_from_a_cache() -> None:
    (receipt,) = [entry for entry in stages()["register"]["outs"] if isinstance(entry, dict)]
    assert receipt == {"reports/register.json": {"cache": False, "persist": True}}


def test_plots_show_what_stages_write() -> None:
    written = {path for stage in STAGES for path in out_paths(stage, "plots")}
    shown: set[str] = set()
    for entry in pipeline()["plots"]:
        if isinstance(entry, str):
            shown.add(entry)
        else:
            (plot,) = entry.values()
            shown |= set(plot["y"])
    assert shown == written


@pytest.mark.xfail(strict=True, reason="finetuning imports the targets")
def test_editing_hog_reruns_pretraining_and_not_finetuning() -> None:
    hog = ROOT / "src/mme/targets/hog.py"
    assert {stage for stage in STAGES if hog in declared_files(stage)} == {"pretrain"}


@pytest.mark.xfail(strict=True, reason="values that change no result are parameters of stages")
def test_no_stage_depends_on_values_that_change_no_result() -> None:
    operational = {"num_workers", "accumulate", "num_loader_workers", "frame_cache_mb", "engine", "deadline_s"}
    sections = load_params(ROOT / "params.yaml").model_dump()
    for stage in STAGES:
        for name in stages()[stage]["params"]:
            values = sections[name.partition(".")[0]]
            assert "." in name or not (isinstance(values, dict) and operational & set(values)), (stage, name)
