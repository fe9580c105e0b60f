"""One trial: a short pretraining, probed every few epochs by cross-validation over training and validation videos."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from mme.config import Params
from mme.config.edit import with_values
from mme.config.paths import TRACKS_FOLDER, WORK_FOLDER
from mme.data.frames import SEED_ORDER
from mme.evaluation.probe import centre_views, cross_validated_metrics, encode
from mme.experiments.sweep.space import suggest
from mme.experiments.sweep.study import (
    INTERRUPTED,
    REPEAT_OF,
    RUN_ID,
    SEED,
    WORKER,
    has_twin,
    is_queued,
    this_process,
)
from mme.manifest import MANIFEST_FILE, Manifest
from mme.models.encoder import VideoEncoder
from mme.motion.store import TrackStore
from mme.tracking import Run, StoreError, is_interrupt, start_run
from mme.training.loop.callbacks import PeriodicProbe
from mme.training.pretrain import run_pretraining

METRIC = "cv/probe_top1"
"""Metric that ranks trials. Losses do not: they depend on the mask ratio and on the length of the tracks."""

PROBED_SPLITS = ("train", "val")
"""Splits of the labelled videos that the probe is cross-validated over; the gate needs the test split unseen."""

WORK = WORK_FOLDER / "sweep"


@dataclass(frozen=True)
class StudyRun:
    """A study that trials are run for.

    Attributes:
        params: parameters of the pipeline.
        study: name of the study.
        parent_id: MLflow run of the sweep.
    """

    params: Params
    study: str
    parent_id: str

    @property
    def work(self) -> Path:
        """Folder of unfinished trials and logs."""
        return WORK / self.study


def manifest_path(params: Params) -> Path:
    """Return the manifest of the data that trials pretrain on and are probed with."""
    return Path(params.pretrain.data, MANIFEST_FILE)


def limit_pretraining_videos(manifest: Manifest, params: Params) -> Manifest:
    """Keep at most ``sweep.num_clips`` videos of pretraining, chosen by the seed, and all other videos."""
    videos = manifest.videos(params.pretrain.splits)
    order = np.random.default_rng((SEED_ORDER, params.seed)).permutation(len(videos))
    return manifest.without({videos[index].id for index in order[params.sweep.num_clips :]})


class TrialObjective:
    """Objective that Optuna maximises: the probe of a trial's encoder."""

    def __init__(self, study_run: StudyRun, on_taken: Callable[[], None]) -> None:
        """``on_taken`` is called after a trial has been taken from the queue and carries the id of this process."""
        self.study_run = study_run
        self.params = study_run.params
        self.on_taken = on_taken
        self.manifest_path = manifest_path(self.params)
        self.manifest = Manifest.load(self.manifest_path)
        self.videos = limit_pretraining_videos(self.manifest, self.params)
        self.tracks = TrackStore(TRACKS_FOLDER)
        self._views: dict[str, Any] = {}

    def __call__(self, trial: optuna.Trial) -> float:
        """Run a trial.

        Raises:
            TrialPruned: other trials had better probes at the same epoch, or another host repeats the same trial.
            KeyboardInterrupt: a signal ended it, or runs cannot be recorded; it will be run again.
            LookupError: the trial did not come from the queue.
        """
        taken = trial.study.get_trials(deepcopy=False)[trial.number]
        if not is_queued(taken):
            raise LookupError("the queue is empty")
        if has_twin(trial.study, taken):
            raise optuna.TrialPruned("another host has queued this repetition before")
        trial.set_user_attr(WORKER, this_process())
        self.on_taken()

        params = self._trial_params(trial)
        first = taken.system_attrs.get("failed_trial", trial.number)  # of the attempts at this trial
        work = self.study_run.work / f"{first:03d}-{params.digest()}"  # two trials may have equal values
        try:
            with start_run(
                "sweep-repeat" if SEED in trial.user_attrs else "sweep-trial",
                params,
                tags={"study": self.study_run.study, "trial": str(trial.number)},
                parent_id=self.study_run.parent_id,
                resume_run_id=trial.user_attrs.get(RUN_ID),
                killed_by=(optuna.TrialPruned,),
            ) as run:
                trial.set_user_attr(RUN_ID, run.id)
                result = self._train(trial, params, work, run)
        except optuna.TrialPruned:
            shutil.rmtree(work)
            raise
        except BaseException as error:
            if not is_interrupt(error) and not isinstance(error, StoreError):
                raise
            trial.set_user_attr(INTERRUPTED, value=True)
            raise KeyboardInterrupt(f"the trial was interrupted: {error}") from error
        shutil.rmtree(work)
        return result

    def _trial_params(self, trial: optuna.Trial) -> Params:
        values = {**self.params.sweep.fixed, **suggest(trial, self.params.sweep.space)}
        return with_values(self.params, {**values, "seed": trial.user_attrs.get(SEED, self.params.seed)})

    def _train(self, trial: optuna.Trial, params: Params, work: Path, run: Run) -> float:
        run.rename(_run_name(trial))
        run.log_dataset(self.manifest_path, self.manifest.digest, "pretraining and probe")
        reported = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values

        def log_probe(metrics: Mapping[str, float], epochs: int) -> None:
            run.log_metrics(metrics, epochs - 1)  # curves count epochs from 0
            if epochs not in reported:  # it is, if the trial resumes after an interruption
                trial.report(metrics[METRIC], epochs)
            if epochs < params.pretrain.epochs and SEED not in trial.user_attrs and trial.should_prune():
                raise optuna.TrialPruned(f"others were better after {epochs} epochs")

        probe = PeriodicProbe(params.sweep.probe_epochs, lambda encoder: self._measure(encoder, params), log_probe)
        work.mkdir(parents=True, exist_ok=True)
        run_pretraining(params, self.videos, self.tracks, work, run.log_metrics, [probe])
        return probe.rows[-1][METRIC]

    def _measure(self, encoder: VideoEncoder, params: Params) -> dict[str, float]:
        key = params.clip.digest()
        if key not in self._views:  # decoded once per process; trials may differ in ``clip``
            self._views = {key: list(centre_views(self.manifest, PROBED_SPLITS, params))}
        features = encode(encoder, self._views[key], params.clip, params.evaluate.pool)
        groups = [video.group or video.id for video in self.manifest.labelled(PROBED_SPLITS)]
        return {f"cv/{name}": value for name, value in cross_validated_metrics(features, groups).items()}


def _run_name(trial: optuna.Trial) -> str:
    attributes = trial.user_attrs
    if SEED in attributes:
        return f"trial {attributes[REPEAT_OF]:02d}, seed {attributes[SEED]}"
    return f"trial {trial.number:02d}"
