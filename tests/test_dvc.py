"""``dvc.yaml`` against the code: stages depend on the folders that they import."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any, get_args

import grimp
import pytest
import yaml

from mme.config import Params, RuntimeParams, load_params
from mme.config.data import SourceLayout

ROOT = Path(__file__).parents[1]
STAGES = (
    "synthesize",
    "survey-primitives",
    "survey",
    "ingest",
    "ingest-more",
    "trajectories",
    "pretrain",
    "finetune",
    "evaluate",
    "register",
)

STARTS = ("trajectories-start", "pretrain-start")
"""Stages of the pretrainings in `warm_starts`."""

LEFT_OUT = ("config", "manifest", "system", "tracking", "viz", "stages.workspace")
"""Modules that decide no result, with all they contain.

``config`` checks parameters, which are dependencies by themselves. ``manifest`` reads and writes a table: a change of
its columns changes the file, on which stages depend. ``system`` writes files and starts processes, ``tracking``
records runs, and a new style of picture (``viz``) is not worth a training run.
"""

MAX_CODE_DEPENDENCIES = 43


@functools.cache
def pipeline() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    return parsed


@functools.cache
def stages() -> dict[str, dict[str, Any]]:
    """Definitions by stage; of one that stands for many, that of each."""
    return {name: definition.get("do", definition) for name, definition in pipeline()["stages"].items()}


def module_of(stage: str) -> str:
    return f"mme.stages.{stage.partition('-')[0]}"


@functools.cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("mme", exclude_type_checking_imports=True, cache_dir=None)


def file_of(module: str) -> Path:
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def needed_files(stage: str) -> set[Path]:
    """Files of the modules that a stage imports, itself included, without those left out and what only they import."""
    found = {module_of(stage)}
    todo = [module_of(stage)]
    while todo:
        for module in graph().find_modules_directly_imported_by(todo.pop()):
            name = module.removeprefix("mme.")
            left_out = module == "mme" or any(f"{name}.".startswith(f"{part}.") for part in LEFT_OUT)
            if not left_out and module not in found:
                found.add(module)
                todo.append(module)
    return {file_of(module) for module in found}


def code_dependencies(stage: str) -> list[Path]:
    """Files and folders of the package that a stage declares."""
    return [ROOT / dep for dep in stages()[stage]["deps"] if dep.startswith("src/")]


def stages_of(*changed: str) -> set[str]:
    """Stages that DVC runs again because files of the package have changed; those behind them not included."""
    paths = [ROOT / "src/mme" / name for name in changed]
    assert all(path.exists() for path in paths), changed
    return {stage for stage in STAGES for path in paths for dep in code_dependencies(stage) if path.is_relative_to(dep)}


def out_paths(stage: str, *kinds: str) -> list[str]:
    entries = [entry for kind in kinds for entry in stages()[stage].get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def test_the_stages_are_those_of_the_package() -> None:
    assert sorted(stages()) == sorted(STAGES + STARTS)
    for stage, definition in stages().items():
        argument = " ${key}" if "foreach" in pipeline()["stages"][stage] else ""
        if stage == "survey-primitives":
            argument = " motion-primitives"
        assert definition["cmd"] == f'env PYTHONPATH="$PWD/src:$PYTHONPATH" python -m {module_of(stage)}{argument}'
        assert file_of(module_of(stage)).is_file()


def test_more_data_sets_are_ingested_as_the_first_one() -> None:
    first, more = stages()["ingest"], stages()["ingest-more"]
    assert pipeline()["stages"]["ingest-more"]["foreach"] == "${datasets}"
    assert first["deps"][0] == "data/sources/${ingest.source}/ingest.jsonl"
    assert more["deps"] == ["data/sources/${item.source}/ingest-${key}.jsonl", *first["deps"][1:]]
    assert more["params"] == ["datasets.${key}", *first["params"][1:]]
    named = [out.replace("data/", "data/${key}/").replace("ingest.json", "ingest-${key}.json") for out in first["outs"]]
    assert more["outs"] == named


@pytest.mark.parametrize("start", STARTS)
def test_a_warm_start_is_made_as_the_pretraining_that_follows(start: str) -> None:
    """The same code and data dependencies, but parameters, tracks, weights and reports of its own."""
    first, own = stages()[start.removesuffix("-start")], stages()[start]
    assert pipeline()["stages"][start]["foreach"] == "${warm_starts}"
    renamed = {
        "${pretrain.": "${item.pretrain.",
        "data/trajectories": "data/trajectories-${key}",
        "models/pretrain": "models/${key}",
        "reports/trajectories": "reports/trajectories-${key}",
        "reports/pretrain": "reports/pretrain-${key}",
    }
    for kind in ("deps", "outs", "metrics", "plots"):
        expected = first[kind]
        for old, new in renamed.items():
            expected = [name.replace(old, new) for name in expected]
        assert own[kind] == expected
    assert {name.partition(".")[0] for name in own["params"]} <= {"model", "optimiser", "seed", "warm_starts"}


def test_what_ingest_reads_is_looked_at_each_time_unless_it_is_made_by_dvc() -> None:
    """DVC hashes nothing behind linked folders, and nothing outside of the folder that it is given."""
    surveyed = {f"data/sources/{source}" for source in get_args(SourceLayout)}
    assert set(out_paths("survey", "outs")) == surveyed - {"data/sources/motion-primitives"}
    assert out_paths("survey-primitives", "outs") == ["data/sources/motion-primitives"]
    assert stages()["survey"]["always_changed"] is True
    assert stages()["survey-primitives"]["deps"][0] in out_paths("synthesize", "outs")


@pytest.mark.parametrize("stage", STAGES[5:])
def test_stages_read_the_data_set_that_is_asked_for(stage: str) -> None:
    owner = "pretrain" if stage in {"trajectories", "pretrain"} else "finetune"
    deps = stages()[stage]["deps"]
    assert {f"${{{owner}.data}}/manifest.parquet", f"${{{owner}.data}}/videos"} <= set(deps)
    assert not {"data/manifest.parquet", "data/videos"} & set(deps)
    assert {owner, f"{owner}.data"} & set(stages()[stage]["params"])


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_module_is_in_a_declared_folder(stage: str) -> None:
    needed = needed_files(stage)
    declared = code_dependencies(stage)
    missing = sorted(str(file) for file in needed if not any(file.is_relative_to(dep) for dep in declared))
    superfluous = sorted(str(dep) for dep in declared if not any(file.is_relative_to(dep) for file in needed))
    assert (missing, superfluous) == ([], [])


def test_dependencies_are_few() -> None:
    assert sum(len(code_dependencies(stage)) for stage in STAGES) <= MAX_CODE_DEPENDENCIES


def test_editing_hog_reruns_pretraining_and_not_finetuning() -> None:
    assert stages_of("targets/hog.py") == {"pretrain"}
    assert stages_of("data/masked/clips.py", "training/pretrain.py") == {"pretrain"}


def test_editing_finetuning_reruns_nothing_before_it() -> None:
    assert stages_of("training/finetune.py", "data/labelled/clips.py", "stages/finetune.py") == {"finetune"}
    assert stages_of("evaluation/multiview.py") == {"evaluate"}
    assert stages_of("registry/gate.py") == {"register"}


def test_editing_service_commands_reports_and_tracking_reruns_nothing() -> None:
    assert stages_of("viz/plots.py", "viz/tracks.py", "tracking/runs.py", "commands/app.py", "experiments") == set()
    assert not [dep for stage in STAGES for dep in stages()[stage]["deps"] if dep.startswith(("serving", "docker"))]


@pytest.mark.parametrize("stage", STAGES + STARTS)
def test_declared_parameters_exist(stage: str) -> None:
    sections = load_params(ROOT / "params.yaml").model_dump()
    known = {name: set(values) if isinstance(values, dict) else set() for name, values in sections.items()}
    for name in stages()[stage]["params"]:
        section, _, key = name.partition(".")
        assert section in known, name
        if section in {"datasets", "warm_starts"}:
            continue  # its keys are the user's names
        assert not key or key in known[section], name


def test_every_section_that_decides_results_is_some_stages_parameter() -> None:
    declared = {name.partition(".")[0] for stage in STAGES + STARTS for name in stages()[stage]["params"]}
    assert declared == set(Params.model_fields) - {"runtime", "sweep", "ablation"}


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


def test_no_stage_depends_on_values_that_change_no_result() -> None:
    names = [name for stage in STAGES for name in stages()[stage]["params"]]
    assert not [name for name in names if name.partition(".")[0] == "runtime"]
    sections = load_params(ROOT / "params.yaml").model_dump()
    for name in set(names) - {"seed"}:
        values = sections[name.partition(".")[0]]
        assert "." in name or not set(values) & set(RuntimeParams.model_fields), name
