"""Gain of pretraining: the same finetuning from the pretrained encoder and from scratch, over several seeds.

Run after ``make repro``: data and trajectories are reused; pretraining, finetuning and evaluation run anew for each
seed in a temporary folder, through the same stages. Writes ``reports/pretraining_gain.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from mme.system.files import read_json, write_json, write_text

ROOT = Path.cwd()
GAIN_REPORT = ROOT / "reports" / "pretraining_gain"


def run_stage(name: str, folder: Path) -> float:
    """Run a stage in ``folder`` and return its seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"mme.stages.{name}"], cwd=folder, check=True)
    return time.perf_counter() - begin


def run_init(init: str, seed: int, folder: Path, raw: dict[str, Any]) -> dict[str, float]:
    """Pretrain, if ``init`` is ``pretrained``, finetune, and return accuracy on the test split and seconds."""
    raw["seed"], raw["finetune"]["init"] = seed, {"pretrained": "pretrain", "scratch": "random"}[init]
    (folder / "params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    metrics = {"pretrain_s": run_stage("pretrain", folder)} if init == "pretrained" else {}
    metrics[f"{init}/finetune_s"] = run_stage("finetune", folder)
    run_stage("evaluate", folder)
    test = read_json(folder / "reports/evaluate/metrics.json")["test"]
    return metrics | {f"{init}/top1": test["top1"], f"{init}/top5": test["top5"]}


def table(rows: list[dict[str, float]]) -> str:
    """Return the report as Markdown."""
    lines = ["| seed | pretrained top-1 | scratch top-1 | gain, points |", "| --- | --- | --- | --- |"]
    names = ("pretrained/top1", "scratch/top1")
    for row in rows:
        with_it, without = (row[name] for name in names)
        lines.append(f"| {row['seed']} | {with_it:.1%} | {without:.1%} | {100 * (with_it - without):+.1f} |")
    means = [statistics.mean(row[name] for row in rows) for name in names]
    lines.append(f"| **mean** | **{means[0]:.1%}** | **{means[1]:.1%}** | **{100 * (means[0] - means[1]):+.1f}** |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every seed, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").symlink_to(ROOT / "data")
        for seed in seeds:
            rows.append(
                {"seed": seed, **run_init("pretrained", seed, folder, raw), **run_init("scratch", seed, folder, raw)}
            )
            print(table(rows), flush=True)
    write_json(GAIN_REPORT.with_suffix(".json"), rows)
    write_text(GAIN_REPORT.with_suffix(".md"), table(rows))


if __name__ == "__main__":
    main()
