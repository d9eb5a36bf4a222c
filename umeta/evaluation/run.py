"""Evaluate a run on tasks with true labels, rewards or functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from umeta.config.build import RunConfig
from umeta.config.environments import EnvConfig
from umeta.config.images import Config
from umeta.config.regression import RegressionConfig
from umeta.evaluation.images import check, evaluate_images
from umeta.parts import Sink
from umeta.runtime import artifacts, distributed
from umeta.runtime.lock import owned
from umeta.stages.runs import load_run


def evaluate_run(
    folder: Path | str,
    overrides: dict[str, Any] | None = None,
    *,
    device: str = "auto",
    record: Path | None = None,
    trusted: Collection[str] | None = (),
    sinks: Sequence[Sink] = (),
) -> dict[str, Any]:
    """Evaluates a run on the labelled split of its data, beside the baselines; writes `report.{html,md,json}`.

    Finished rows and curves are kept in `evaluation.json`, so that an interrupted evaluation goes on where it stopped.
    `record` names a results file to append to; `overrides` and `trusted` are those of `load_run`; the sinks get the
    results.

    Raises:
        UserError: the run or the labelled data is missing, or the data cannot give the episodes, or another process is
            at work in the run's folder.
    """
    run = load_run(folder, overrides, device=device, trusted=trusted)
    with distributed.held(owned(run.folder)):
        distributed.once(lambda: artifacts.sweep(run.folder))
        if isinstance(run.config, EnvConfig):
            from umeta.evaluation.environments import evaluate_env

            return distributed.once(lambda: evaluate_env(run, record=record, sinks=sinks))
        if isinstance(run.config, RegressionConfig):
            from umeta.evaluation.regression import evaluate_regression

            return distributed.once(lambda: evaluate_regression(run, record=record, sinks=sinks))
        return evaluate_images(run, device, record, sinks)


def checked(config: RunConfig, record: Path | None = None) -> None:
    """Finds what would stop the evaluation that a config asks for, before anything long begins.

    Raises:
        UserError: as `check`, or its counterpart for an environment or functions.
    """
    if isinstance(config, EnvConfig):
        from umeta.evaluation import environments

        environments.check(config, record)
    elif isinstance(config, RegressionConfig):
        from umeta.evaluation import regression

        regression.check(config, record)
    elif isinstance(config, Config) and config.evaluate.episodes != []:
        check(config, record)
