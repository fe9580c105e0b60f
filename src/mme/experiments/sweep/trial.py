"""One trial: a short pretraining, probed on the validation split as it goes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from mme.config import Params
from mme.config.edit import with_values
from mme.data.frames import SEED_ORDER
from mme.evaluation.probe import centre_views, encode, knn, linear_probe
from mme.experiments.sweep.space import suggest
from mme.experiments.sweep.study import INTERRUPTED, RUN_ID, SURPLUS, WORKER, is_queued, this_process
from mme.manifest import Manifest
from mme.models.encoder import VideoEncoder
from mme.motion.store import TrackStore
from mme.tracking import Run, is_interrupt, start_run
from mme.training.pretrain import PretrainModule, run_pretraining

METRIC = "val/probe_top1"
"""What trials are ranked by. Losses are no measure: they depend on what is hidden and on the length of the tracks."""

WORK = Path(".work/sweep")

SEED, VALUES, REPEAT_OF = "seed", "values", "repeat_of"
"""Attributes of a repetition: its seed, the values of the trial that it repeats, and that trial's number."""


@dataclass(frozen=True)
class Setting:
    """What the trials of a study share.

    Attributes:
        params: of the pipeline.
        manifest_path: the data's list.
        manifest: the data.
        tracks: its trajectories.
        study: the study's name.
        parent_id: MLflow's run of the sweep.
    """

    params: Params
    manifest_path: Path
    manifest: Manifest
    tracks: TrackStore
    study: str
    parent_id: str

    def pretraining_videos(self) -> Manifest:
        """The data with at most ``sweep.num_clips`` of pretraining's videos, chosen by the seed."""
        manifest, params = self.manifest, self.params
        videos = manifest.videos(params.pretrain.splits)
        count = min(params.sweep.num_clips, len(videos))
        order = np.random.default_rng((SEED_ORDER, params.seed)).permutation(len(videos))
        return manifest.without({videos[index].id for index in order[count:]})


class Probes(Callback):
    """Probes the encoder every few epochs and after the last; a resumed trial keeps those that it has.

    Attributes:
        results: metrics by epochs done.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[VideoEncoder], dict[str, float]],
        take: Callable[[int, dict[str, float]], None],
    ) -> None:
        self.every, self.measure, self.take = every, measure, take
        self.results: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measure, and hand the figures on; that may end the trial."""
        done = trainer.current_epoch + 1
        if done % self.every == 0 or done == trainer.max_epochs:
            self.results[done] = self.measure(cast(PretrainModule, pl_module).model.encoder)
            self.take(done, self.results[done])

    def state_dict(self) -> dict[str, Any]:
        """The results, for the checkpoint."""
        return {"results": self.results}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the results of an interrupted trial."""
        self.results = dict(state_dict["results"])


class Objective:
    """What Optuna maximises: the probe of a trial's encoder."""

    def __init__(self, setting: Setting, begun: Callable[[], None]) -> None:
        """``begun`` is called when a trial has been taken from the queue and says who did."""
        self.setting, self.begun = setting, begun
        self.videos = setting.pretraining_videos()
        self._views: dict[str, Any] = {}

    def __call__(self, trial: optuna.Trial) -> float:
        """Run a trial.

        Raises:
            TrialPruned: it did worse than the others had at the same epoch.
            KeyboardInterrupt: it was told to stop; it will be tried again.
            LookupError: nobody asked for the trial.
        """
        if not is_queued(trial.study.get_trials(deepcopy=False)[trial.number]):
            trial.set_user_attr(SURPLUS, value=True)
            raise LookupError("the queue is empty")
        trial.set_user_attr(WORKER, this_process())
        self.begun()
        params = self._params(trial)
        work = WORK / self.setting.study / params.digest()
        try:
            with start_run(
                "sweep-repeat" if SEED in trial.user_attrs else "sweep-trial",
                params,
                parent_id=self.setting.parent_id,
                tags={"study": self.setting.study, "trial": str(trial.number)},
                resume_run_id=trial.user_attrs.get(RUN_ID),
                killed_by=(optuna.TrialPruned,),
            ) as run:
                trial.set_user_attr(RUN_ID, run.id)
                result = self._train(trial, params, work, run)
        except optuna.TrialPruned:
            shutil.rmtree(work)
            raise
        except BaseException as error:
            if not is_interrupt(error):
                raise
            trial.set_user_attr(INTERRUPTED, value=True)
            raise KeyboardInterrupt("the trial was interrupted") from error
        shutil.rmtree(work)
        return result

    def _params(self, trial: optuna.Trial) -> Params:
        params, attributes = self.setting.params, trial.user_attrs
        if SEED in attributes:
            return with_values(params, {**params.sweep.fixed, **attributes[VALUES], "seed": attributes[SEED]})
        return with_values(params, {**params.sweep.fixed, **suggest(trial, params.sweep.space)})

    def _train(self, trial: optuna.Trial, params: Params, work: Path, run: Run) -> float:
        run.rename(_name(trial))
        run.log_dataset(self.setting.manifest_path, self.setting.manifest.digest, "pretraining and probe")
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values

        def take(epochs: int, metrics: dict[str, float]) -> None:
            run.log_metrics(metrics, epochs - 1)  # curves count epochs from 0
            if epochs not in known:  # before an interruption
                trial.report(metrics[METRIC], epochs)
            if epochs < params.pretrain.epochs and trial.should_prune():
                raise optuna.TrialPruned(f"worse than the median after {epochs} epochs")

        probes = Probes(params.sweep.probe_epochs, lambda encoder: self._measure(encoder, params), take)
        work.mkdir(parents=True, exist_ok=True)
        run_pretraining(params, self.videos, self.setting.tracks, work, run.log_metrics, [probes])
        return probes.results[params.pretrain.epochs][METRIC]

    def _measure(self, encoder: VideoEncoder, params: Params) -> dict[str, float]:
        key = params.clip.digest()
        if key not in self._views:  # decoded once a process, not once a probe
            self._views = {
                key: {split: list(centre_views(self.setting.manifest, split, params)) for split in ("train", "val")}
            }
        views = self._views[key]
        train, val = (encode(encoder, views[split], params.clip) for split in ("train", "val"))
        return {METRIC: linear_probe(train, val), "val/knn_top1": knn(train, val)}


def _name(trial: optuna.Trial) -> str:
    attributes = trial.user_attrs
    if SEED in attributes:
        return f"trial {attributes[REPEAT_OF]:02d}, seed {attributes[SEED]}"
    return f"trial {trial.number:02d}"
